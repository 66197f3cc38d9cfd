"""What a report says of learning rates: a plot where they were swept, their origin where not."""

from pathlib import Path

import pytest
from omegaconf import OmegaConf
from test_diagnostics import panel_of, record, summary_of

from benchmarks.analysis.panel import panels
from benchmarks.core.settings import compose, flatten
from benchmarks.core.store import ROOT
from benchmarks.reports import plots, rates
from benchmarks.reports.searched_rates import SEARCHES, SWEPT, rate_notes
from benchmarks.results import records

REFERENCE = ROOT / "results" / "reference"
# of networks, as far as one of them changed
WIDTHS = ("mlp", "width", "depth", "head", "denoiser.channels", "denoiser.width", "denoiser.depth")


@pytest.fixture(scope="module")
def studies() -> dict:
    """The table of each search by its name."""
    return {
        search.study: records.table(records.current(records.read(REFERENCE / search.study)))
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
    tried = 0
    machines = panels(table[of_model & (table["guidance"] == 1)])
    for panel in machines:
        assert set(panel.rows["budget"]) == {f"{search.budget:g} flops"}
        for _, curve in rates.swept(panel).groupby("curve"):
            best = curve.loc[curve["distance"].idxmin()]
            ours = curve[curve["lr"] == chosen]
            if len(ours):
                joint = (best["distance_std"] ** 2 + ours["distance_std"].iloc[0] ** 2) ** 0.5
                assert ours["distance"].iloc[0] - best["distance"] <= 2 * joint
                tried += 1
    # one each of the heads, where there are several
    assert tried >= max(panel.rows["objective"].nunique() for panel in machines)
    assert today(model, size)["lr"] == chosen


@pytest.mark.parametrize("size, model", [(s.size, model) for s in SEARCHES for model in s.rates])
def test_a_search_with_earlier_networks_is_said_to_be_one(size, model, studies):
    """All rates were tried with today's network, or its own with lower and higher ones beside it;
    else the model is among those that have changed.
    """
    (search,) = (one for one in SEARCHES if one.size == size)
    everything = records.current(records.read(REFERENCE / search.study))
    own = [one for one in everything if one["row"]["model"] == model]
    now = today(model, size)
    tried = {one["config"]["model"]["lr"] for one in own}
    tried_now = {one["config"]["model"]["lr"] for one in own if is_like(one, now)}
    chosen = search.rates[model]
    between = chosen in tried_now and min(tried_now) < chosen < max(tried_now)
    assert (tried == tried_now or between) == (model not in search.of_earlier_networks)


def today(model: str, size: str) -> dict:
    """The settings of a model, flat, with the codebook's entries."""
    pixels = ["autoencoder=pixels", "autoencoder.patch=4"] if model == "dit_pixels" else []
    cfg = compose(f"model={model}", f"size={size}", *pixels)
    settings = flatten(OmegaConf.to_container(cfg.model, resolve=True))
    return settings | {"entries": cfg.size.codebook_size}


def is_like(one: dict, now: dict) -> bool:
    """Whether a record is of the network that these settings give, whatever its learning rate."""
    then = flatten(one["config"]["model"])
    widths = [key for key in WIDTHS if key in now and key in then]
    codebook = one["row"]["codebook"] or ""
    shared = codebook.startswith(("fitted", "shipped"))
    return all(then[key] == now[key] for key in widths) and (
        not shared or codebook.endswith(f" {now['entries']}")
    )


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
        trained_at(4e-3, "masked", train_flops=9e13, objective="masked-token"),
        trained_at(5e-3, "unet"),
        trained_at(4e-3, "ar_scale", objective="next-scale"),
        trained_at(4e-3, "uvit", size="s"),
    ]
    lines = "\n".join(rate_notes(made_up))
    best = "without guidance the best of a search at size xs16"
    assert f"- `dit` 0.004: {best}, or not told apart from it (" in lines
    assert "photographs of 64 px, 3e+13 FLOPs, one training a rate)." in lines
    assert f"- `masked` 0.004: {best}" in lines
    assert (
        "all or some of a slightly other network; these trainings have 3 times as many)." in lines
    )
    assert "- `unet` 0.005: not the rate that a search chose at size xs16." in lines
    assert "- `ar_scale` 0.004: not searched at size xs16 for what was trained here." in lines
    assert "- `uvit` 0.004: not searched at size s for what was trained here." in lines


def test_another_objective_or_other_widths_have_no_searched_rate():
    wider = trained_at(4e-3, "ar", objective="next-token")
    wider["config"]["match"] = "params"
    for one, name in ((trained_at(4e-3, objective="eps"), "dit"), (wider, "ar")):
        line = f"- `{name}` 0.004: not searched at size xs16 for what was trained here."
        assert line in rate_notes([one])
    wider["config"]["match"] = "time"  # the same networks, another budget
    assert "without guidance the best" in rate_notes([wider])[2]


def test_rates_that_are_compared_with_each_other_are_not_said_to_lack_a_search():
    lines = rate_notes([trained_at(rate, size="s") for rate in (1e-4, 2e-4)])
    assert lines[2] == f"- `dit` 0.0001, `dit` 0.0002: {SWEPT}."
    sizes = rate_notes([trained_at(8e-3, size="xs"), trained_at(4e-3, size="xs16")])
    assert not any(SWEPT in line for line in sizes), "each size has a rate of its own"


def test_a_report_has_the_origin_of_rates_and_the_plot_of_a_sweep(tmp_path):
    summary = summary_of(tmp_path, [trained_at(4e-3), trained_at(8e-3), trained_at(4e-3, "ar")])
    assert "Learning rates:" in summary.split("### Training")[1]
    assert "![fd_vs_lr](plots/fd_vs_lr.png)" in summary


def test_of_models_trained_elsewhere_nothing_is_said():
    elsewhere = record("dit", 9.0)
    elsewhere["config"] = {}
    assert rate_notes([elsewhere]) == []


def test_rates_are_compared_at_the_most_steps_that_all_of_them_have():
    made_up = [trained_at(2e-3), trained_at(4e-3), trained_at(4e-3)]
    made_up[2]["row"] |= {"steps": 64, "run_id": "more steps"}
    table = rates.swept(panel_of(made_up))
    assert set(table["steps"]) == {made_up[0]["row"]["steps"]} and len(table) == 2


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
