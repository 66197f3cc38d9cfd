"""What a report says of learning rates: a plot where they were swept, their origin where not."""

from pathlib import Path

import pytest
from test_diagnostics import panel_of, record

from benchmarks.analysis.panel import panels
from benchmarks.core.settings import compose
from benchmarks.core.store import ROOT
from benchmarks.reports import plots, rates
from benchmarks.reports.searched_rates import SEARCHES, rate_notes
from benchmarks.results import records


@pytest.fixture(scope="module")
def studies() -> dict:
    """The table of each search by its name."""
    folder = ROOT / "results" / "reference"
    return {
        search.study: records.table(records.current(records.read(folder / search.study)))
        for search in SEARCHES
    }


@pytest.mark.parametrize("size, model", [(s.size, model) for s in SEARCHES for model in s.rates])
def test_a_rate_that_is_said_to_be_searched_was(size, model, studies):
    """Without guidance no other rate of that search is lower beyond twice their joint error, and
    the configuration has this one.
    """
    (search,) = (one for one in SEARCHES if one.size == size)
    chosen, table = search.rates[model], studies[search.study]
    of_model = (table["model"] == model) & (table["size"] == size)
    (panel,) = panels(table[of_model & (table["guidance"] == 1)])
    assert set(panel.rows["budget"]) == {f"{search.budget:g} flops"}
    tried = 0
    for _, curve in rates.swept(panel).groupby("curve"):
        best = curve.loc[curve["distance"].idxmin()]
        ours = curve[curve["lr"] == chosen]
        if len(ours):
            joint = (best["distance_std"] ** 2 + ours["distance_std"].iloc[0] ** 2) ** 0.5
            assert ours["distance"].iloc[0] - best["distance"] <= 2 * joint
            tried += 1
    assert tried
    pixels = ["autoencoder=pixels", "autoencoder.patch=4"] if model == "dit_pixels" else []
    assert compose(f"model={model}", f"size={size}", *pixels).model.lr == chosen


def trained_at(rate: float, model: str = "dit", size: str = "xs16", **columns) -> dict:
    """A record of a training at a learning rate."""
    one = record(model, 9.0 + 100 * rate)
    one["row"] |= {"size": size, "train_flops": 3e13, "train_fraction": 1.0, "objective": "flow"}
    one["row"] |= {"run_id": f"{one['row']['run_id']}-{rate}"} | columns
    one["fingerprints"]["training"] += f"-{rate}"
    one["config"] = {"model": {"lr": rate}, "match": "flops"}
    return one


def test_each_rate_is_said_to_come_from_a_search_or_from_none():
    made_up = [
        trained_at(4e-3),
        trained_at(4e-3, "ar", train_flops=9e13, objective="next-token"),
        trained_at(5e-3, "unet"),
        trained_at(4e-3, "ar_scale", objective="next-scale"),
        trained_at(4e-3, "uvit", size="s"),
    ]
    lines = "\n".join(rate_notes(made_up))
    best = "without guidance the best of a search at size xs16"
    assert f"- `dit` 0.004: {best}, or not told apart from it (" in lines
    assert (
        "photographs of 64 px, 3e+13 FLOPs, one training a rate, a slightly other network)."
        in lines
    )
    assert f"- `ar` 0.004: {best}" in lines
    assert "network; these trainings have 3 times as many)." in lines
    assert "- `unet` 0.005: not the rate that a search chose at size xs16." in lines
    assert "- `ar_scale` 0.004: not searched at size xs16 for what was trained here." in lines
    assert "- `uvit` 0.004: not searched at size s for what was trained here." in lines


def test_another_objective_or_other_widths_have_no_searched_rate():
    other = trained_at(4e-3, objective="eps")
    wider = trained_at(4e-3)
    wider["config"]["match"] = "params"
    for one in (other, wider):
        assert "- `dit` 0.004: not searched at size xs16 for what was trained here." in (
            rate_notes([one])
        )


def test_of_models_trained_elsewhere_nothing_is_said():
    elsewhere = record("dit", 9.0)
    elsewhere["config"] = {}
    assert rate_notes([elsewhere]) == []


def test_a_sweep_of_rates_is_plotted_by_rate_with_its_lowest_filled(tmp_path: Path, monkeypatch):
    figures = []
    monkeypatch.setattr(plots, "save", lambda figure, path: figures.append(figure) or path)
    assert rates.rate_plot([panel_of([trained_at(4e-3)])], tmp_path) is None, "nothing is swept"
    made_up = [trained_at(rate) for rate in (8e-3, 2e-3, 4e-3)] + [trained_at(4e-3, "ar")]
    assert rates.rate_plot([panel_of(made_up)], tmp_path) == tmp_path / "fd_vs_lr.png"
    (axis,) = figures[0].get_axes()
    (curve,) = axis.containers  # the model of one rate has no curve
    assert curve.get_label().startswith("dit (")
    assert curve.lines[0].get_xdata().tolist() == [2e-3, 4e-3, 8e-3]
    assert curve.lines[0].get_ydata().tolist() == pytest.approx([9.2, 9.4, 9.8])
    (lowest,) = (line for line in axis.lines if len(line.get_xdata()) == 1)
    assert lowest.get_xdata() == [2e-3]
    assert "; one training each" in figures[0].subfigs[0].get_suptitle()
