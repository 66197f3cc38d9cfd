"""Panels: one name, place and look for every curve, and never too many on one pair of axes."""

import pytest
from test_diagnostics import panel_of, record

from benchmarks.analysis.panel import MOST_CURVES, facets, panels
from benchmarks.reports import plots
from benchmarks.results import records


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


def test_no_two_curves_of_a_panel_look_alike():
    """Heun without guidance once looked as another sampler without guidance."""
    panel = panel_of(swept(["unet", "dit", "ar"], ["euler", "heun"]))
    assert len(panel.names) == 12, "with and without guidance, heun and euler, of three models"
    assert len(set(panel.looks.values())) == len(panel.names)


def test_a_network_keeps_its_colour_and_marker_whatever_is_chosen():
    panel = panel_of(swept(["unet", "dit"], ["euler", "heun"]))
    for model in ("unet", "dit"):
        looks = [look for name, look in panel.looks.items() if name.startswith(model)]
        assert len({(look.colour, look.marker) for look in looks}) == 1


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


def test_a_plot_of_training_has_axes_by_model_where_its_curves_are_many(tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr(plots, "save", lambda figure, path: figures.append(figure) or path)
    made_up = []
    for model in ("unet", "dit"):
        for seed in range(5):
            for fraction in (0.5, 1.0):
                one = record(model, 9.0 - fraction, seed=seed)
                one["row"] |= {"train_fraction": fraction, "train_flops": 1e12 * fraction}
                one["row"]["run_id"] += str(fraction)
                one["config"] = {"train": {"budget": 1e12, "unit": "flops"}}
                made_up.append(one)
    plots.training_plot([panel_of(made_up)], tmp_path)
    (figure,) = figures
    assert [len(axis.containers) for axis in figure.get_axes()] == [5, 5]
