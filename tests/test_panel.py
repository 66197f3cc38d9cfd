"""Panels: one name, place and look for every curve, one curve for several trainings, and never too
many on one pair of axes.
"""

import math

import matplotlib.pyplot as plt
import pandas as pd
import pytest
from test_diagnostics import panel_of, record

from benchmarks.analysis.curves import in_order
from benchmarks.analysis.panel import MOST_CURVES, facets, panels
from benchmarks.reports import plots, rows
from benchmarks.results import records
from benchmarks.results.tables import show


def swept(models: list[str], samplers: list[str]) -> list[dict]:
    """Records of every model at guidance 1 and 2 with every sampler, at two step counts."""
    made_up = []
    for model in models:
        for place, sampler in enumerate(samplers):
            for guidance in (1.0, 2.0):
                for steps in (4, 8):
                    one = record(model, 10.0 - guidance + 0.1 * place, steps=steps)
                    one["row"] |= {"sampler": sampler, "guidance": guidance}
                    one["row"]["run_id"] += f"{sampler}{guidance}"
                    made_up.append(one)
    return made_up


def tuned(one: dict, **columns) -> dict:
    """The same measurement with settings that tuning chose."""
    named = {"run_id": one["row"]["run_id"] + "tuned", "settings": "tuned"}
    return one | {"row": one["row"] | named | columns}


def configured_and_tuned(models: list[str], seeds: int = 1) -> list[dict]:
    """Records of every model as configured and tuned, at two step counts."""
    made_up = []
    for model in models:
        for seed in range(seeds):
            for steps in (4, 8):
                made_up.append(record(model, 9.0 + seed, seed=seed, steps=steps))
                chosen = record(model, 7.0 + seed, seed=seed, steps=steps)
                made_up.append(tuned(chosen, guidance=1.0 + steps, sampler="heun"))
    return made_up


def test_no_two_curves_of_a_panel_look_alike():
    """Heun without guidance once looked as another sampler without guidance."""
    panel = panel_of(swept(["unet", "dit", "ar"], ["euler", "heun"]))
    assert len(panel.names) == 12, "with and without guidance, heun and euler, of three models"
    assert len(set(panel.looks.values())) == len(panel.names)


def test_a_network_keeps_its_colour_and_marker_whether_tuned_or_not():
    """Its line and its hollow markers say which; without tuning every line is whole."""
    panel = panel_of(configured_and_tuned(["unet", "dit"]))
    assert panel.names == ["dit", "dit, tuned", "unet", "unet, tuned"]
    for model in ("unet", "dit"):
        plain, chosen = panel.looks[model], panel.looks[f"{model}, tuned"]
        assert (plain.colour, plain.marker) == (chosen.colour, chosen.marker)
        assert (plain.line, plain.hollow) == ("--", True)
        assert (chosen.line, chosen.hollow) == ("-", False)
    assert len(set(panel.looks.values())) == 4
    (look,) = panel_of([record("dit", 9.0)]).looks.values()
    assert (look.line, look.hollow) == ("-", False)


def test_chosen_settings_are_one_curve_though_they_differ_at_every_step_count():
    panel = panel_of(configured_and_tuned(["dit"]))
    assert panel.curve("dit, tuned").sort_values("steps")["guidance"].tolist() == [5.0, 9.0]
    assert set(panel.leading["curve"]) == {"dit, tuned"}
    assert panel.distance == "generator-only FD[local]"


def test_a_mean_over_trainings_that_chose_differently_shows_no_one_s_settings():
    made_up = []
    for seed, (guidance, sampler) in enumerate([(1.0, "euler"), (2.5, "dpmpp"), (2.5, "dpmpp")]):
        for steps in (4, 8):
            chosen = record("dit", 7.0 + seed, seed=seed, steps=steps)
            columns = {"sampler": sampler} if steps == 8 else {"sampler": "dpmpp"}
            made_up.append(tuned(chosen, guidance=guidance if steps == 8 else 2.5, **columns))
    panel = panel_of(made_up)
    few, most = (row for _, row in panel.shown.sort_values("steps").iterrows())
    assert (few["guidance"], few["sampler"]) == (2.5, "dpmpp")
    assert math.isnan(most["guidance"]) and most["sampler"] == "several"
    header, table = rows.measured(panel)
    shown = dict(zip(header, table[1], strict=True))
    assert (shown["sampler"], show(shown["guidance"])) == ("several", "")


def test_several_trainings_are_one_curve_of_means():
    panel = panel_of(configured_and_tuned(["dit"], seeds=3))
    assert panel.names == ["dit", "dit, tuned"] and len(panel.shown) == 4
    assert set(panel.shown["trainings"]) == {3}
    assert panel.curve("dit, tuned")["distance"].tolist() == [8.0, 8.0]
    assert panel.curve("dit")["distance_std"].tolist() == pytest.approx([3**-0.5] * 2)
    assert len(panel.by_training) == len(panel.rows) == 12
    assert len(panel.leading) == 6, "one a training, for what is said in words"


@pytest.mark.parametrize(
    "settings, names",
    [
        (
            [{"head": "gmm", "mlp": 376}, {"head": "flow", "mlp": 248}],
            ["ar_continuous, head flow", "ar_continuous, head gmm"],
        ),
        # other widths are named, and a confounded rate is not hidden
        (
            [{"head": "gmm", "mlp": 376}, {"head": "gmm", "mlp": 248}],
            ["ar_continuous, mlp 248", "ar_continuous, mlp 376"],
        ),
        (
            [{"head": "gmm", "mlp": 376, "lr": 0.1}, {"head": "gmm", "mlp": 248, "lr": 0.2}],
            ["ar_continuous, lr 0.1, mlp 376", "ar_continuous, lr 0.2, mlp 248"],
        ),
        (
            [{"head": "gmm", "lr": 0.1}, {"head": "flow", "lr": 0.2}],
            ["ar_continuous, head flow, lr 0.2", "ar_continuous, head gmm, lr 0.1"],
        ),
    ],
)
def test_a_curve_is_named_by_what_was_chosen_and_not_by_what_follows_from_it(settings, names):
    """A head has a width that makes its network as dear, and an objective of its own."""
    made_up = [record("ar_continuous", 9.0), record("ar_continuous", 8.0)]
    for place, (one, own) in enumerate(zip(made_up, settings, strict=True)):
        one["row"] |= {"objective": {"gmm": "mixture", "flow": "flow head"}[own["head"]]}
        one["row"]["run_id"] += str(place)
        one["fingerprints"]["training"] += str(place)
        one["config"] = {"model": own}
    assert panel_of(made_up).names == names


def test_distances_through_other_autoencoders_share_no_panel():
    """Though the autoencoder has the same name: its weights may have changed under it."""
    made_up = [record("dit", 9.0), record("ar", 8.0)]
    made_up[1]["fingerprints"]["autoencoder"] = "finished"
    assert len(panels(records.table(made_up))) == 2


@pytest.mark.parametrize("count", [1, 8])
def test_few_curves_share_one_pair_of_axes(count):
    assert [len(names) for _, names in facets({f"c{i}": "dit" for i in range(count)})] == [count]


def test_many_curves_have_axes_by_model_with_eight_at_most():
    models = {f"dit {i}": "dit" for i in range(11)} | {"ar": "ar"}
    groups = facets(models)
    assert [(title, len(names)) for title, names in groups] == [("dit", 8), ("dit", 3), ("ar", 1)]
    assert [name for _, names in groups for name in names] == list(models)


def test_no_axes_of_a_plot_hold_more_curves_than_can_be_told_apart(tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr(plots, "save", lambda figure, path: figures.append(figure) or path)
    made_up = swept(["unet", "dit", "ar"], ["euler", "heun"])
    panel = panel_of(made_up)
    plots.distance_plot([panel], "gflops_per_image", tmp_path)
    plots.guidance_plot([panel], tmp_path)
    assert len(figures) == 2
    for figure in figures:
        for axis in figure.get_axes():
            assert len(axis.containers) + len(axis.lines) <= 5 * MOST_CURVES
            assert len(axis.containers) <= MOST_CURVES
    assert [len(axis.containers) for axis in figures[0].get_axes()] == [4, 4, 4]


def test_panels_of_different_latents_have_different_titles():
    made_up = [record("dit", 9.0), record("ar", 8.0)]
    for one, size in zip(made_up, (512, 2048), strict=True):
        one["row"]["autoencoder"] = f"shipped-{size}"
        one["fingerprints"]["latents"] = str(size)
    titles = {panel.title for panel in panels(records.table(made_up))}
    assert len(titles) == 2 and all("latents" in title for title in titles)


@pytest.fixture
def figures(monkeypatch) -> list:
    """What is plotted, instead of files."""
    kept: list = []
    monkeypatch.setattr(plots, "save", lambda figure, path: kept.append(figure) or path)
    return kept


def kept_on_the_way(model: str, seed: int, rate: float = 1.0) -> list[dict]:
    """Records of a training at half and all of its budget."""
    made_up = []
    for fraction in (0.5, 1.0):
        one = record(model, 9.0 + seed - fraction, seed=seed)
        one["row"] |= {"train_fraction": fraction, "train_flops": 1e12 * fraction}
        one["row"]["run_id"] += f"{fraction}-{rate}"
        one["fingerprints"]["training"] += f"-{rate}"
        one["config"] = {
            "model": {"lr": rate},
            "train": {"budget": 1e12, "unit": "flops"},
        }
        made_up.append(one)
    return made_up


def test_a_plot_of_training_has_one_curve_of_means_for_several_trainings(tmp_path, figures):
    made_up = [one for seed in range(3) for one in kept_on_the_way("dit", seed)]
    plots.training_plot([panel_of(made_up)], tmp_path)
    (axis,) = figures[0].get_axes()
    (curve,) = axis.containers
    assert curve.get_label() == "dit (8 steps)"
    assert curve.lines[0].get_ydata().tolist() == [9.5, 9.0], "means over seeds"


def test_a_plot_of_training_has_axes_by_model_where_its_curves_are_many(tmp_path, figures):
    made_up = []
    for model in ("unet", "dit"):
        for rate in range(5):
            made_up += kept_on_the_way(model, 0, float(rate))
    plots.training_plot([panel_of(made_up)], tmp_path)
    assert [len(axis.containers) for axis in figures[0].get_axes()] == [5, 5]


def test_names_in_axes_leave_out_the_model_and_leave_the_axes_their_width(tmp_path, figures):
    made_up = []
    for model in ("unet", "dit"):
        for rate in range(5):
            some = kept_on_the_way(model, 0, float(rate))
            for one in some:
                one["config"]["model"]["a_setting_of_a_very_long_name"] = "x" * 60 + str(rate)
            made_up += some
    plots.training_plot([panel_of(made_up)], tmp_path)
    figure = figures[0]
    figure.draw_without_rendering()
    for axis in figure.get_axes():
        assert axis.get_window_extent().width > 0.3 * figure.bbox.width
        texts = [text.get_text() for text in axis.get_legend().get_texts()]
        assert len(texts) == 5 and not any(text.startswith(axis.get_title()) for text in texts)


def test_a_plot_of_guidance_is_of_settings_as_configured(tmp_path, figures):
    """Tuned settings of one guidance at each step count are no sweep, and nothing to plot."""
    alone = [tuned(record("dit", 9.0, steps=steps), guidance=steps / 2.0) for steps in (4, 8)]
    assert plots.guidance_plot([panel_of(alone)], tmp_path) is None
    made_up = [*swept(["dit"], ["euler"]), tuned(record("dit", 7.0, steps=16), guidance=3.0)]
    assert plots.guidance_plot([panel_of(made_up)], tmp_path) is not None
    (axis,) = figures[0].get_axes()
    assert [text.get_text() for text in axis.texts] == ["1", "2"]


def test_a_plot_of_losses_says_once_what_all_trainings_have_in_common(tmp_path, figures):
    """The legend has what tells them apart; of a training that was measured twice, one curve."""
    made_up = [record("dit", 9.0, seed=seed, steps=steps) for seed in (2, 10) for steps in (4, 8)]
    variants = ["", "", "lr 0.1", "lr 0.1"]
    for one in made_up:
        one["row"] |= {"train_fraction": 1.0, "train_flops": 2e12, "objective": "flow"}
        one["train_log"] = [[10, 1e12, 0.5], [20, 2e12, 0.4]]
    assert plots.loss_plot(made_up, variants, tmp_path)
    figure = figures[0]
    (axis,) = figure.get_axes()
    assert [line.get_label() for line in axis.lines] == ["dit, seed 2", "dit, seed 10, lr 0.1"]
    (block,) = figure.subfigs
    assert "xs" in block.get_suptitle() and "2e+12 FLOPs" in block.get_suptitle()
    assert "seed" not in block.get_suptitle()


def test_ticks_are_formulas_and_names_with_dollars_are_none(tmp_path):
    figure, axis = plt.subplots()
    axis.loglog([1, 1e4], [1, 1e4])
    title = axis.set_title("of $a and $b")
    plots.save(figure, tmp_path / "x.png")
    ticks = [*axis.get_xticklabels(), *axis.get_yticklabels()]
    formulas = [tick for tick in ticks if "$" in tick.get_text()]
    assert formulas and all(tick.get_parse_math() for tick in formulas)
    assert not title.get_parse_math()


def test_curves_stand_in_the_order_of_their_numbers():
    names = [f"ar_block, block {k}, tuned" for k in (16, 2, 1, 8)] + ["ar", "dit, lr 0.002"]
    names += ["dit, lr 0.0001", "dit, lr 1e-05"]
    rows = pd.DataFrame({"curve": names, "family": ["ar"] * 5 + ["dit"] * 3})
    dits = ["dit, lr 1e-05", "dit, lr 0.0001", "dit, lr 0.002"]
    blocks = [f"ar_block, block {k}, tuned" for k in (1, 2, 8, 16)]
    assert in_order(rows) == [*dits, "ar", *blocks]
