"""Training steps of models named by a user: which stages, and what is counted of each."""

import pandas as pd
import pytest
from hand_counts import hand_count, of_size
from test_perf import CPU, bench_of

from benchmarks.perf import bench, comparisons
from benchmarks.perf.stage_list import PAIRS, extent_on, stage_list
from benchmarks.stages.model import forward_macs, on_meta


def test_only_the_training_of_named_models_is_measured_each_head_by_itself(tmp_path):
    extent = extent_on(CPU, "s", 16, 16)
    names = list(stage_list(extent, 16, tmp_path, ["uvit", "ar_continuous"]))
    assert names[:3] == [
        *("train uvit s 16", "train ar_continuous s 16 head gmm"),
        "train ar_continuous s 16 head flow",
    ]
    assert len(names) == 6, "and the same at size xs"


def test_a_flow_map_s_second_pass_is_in_its_flops(monkeypatch):
    """Four forward passes' worth in place of three: one more without gradient."""
    counted = {}

    def compare(self, stage, calls, images, flops=0, **columns):
        counted[columns["model"]] = flops / images
        return {}

    monkeypatch.setattr(bench.Bench, "compare", compare)
    for name, overrides in (("dit", []), ("dit_flowmap", PAIRS)):
        measured = bench_of()
        comparisons.training(measured, name, "xs", 4, 2, compiled=False, overrides=overrides)
    mine, _ = bench.generator("dit_flowmap", "xs", 4, CPU)
    assert counted["dit_flowmap"] == 8 * forward_macs(on_meta(mine))
    assert counted["dit_flowmap"] / counted["dit"] == pytest.approx(4 / 3, rel=0.02)


def test_a_step_on_pixels_is_measured_and_counted_on_patches_of_pixels(monkeypatch):
    """48 numbers a place, as `autoencoder=pixels` has them, in what enters and in the FLOPs."""
    counted, took = {}, []

    def compare(self, stage, calls, images, flops=0, **columns):
        counted[columns["model"]] = flops / images
        calls["ours"]()
        return {}

    def step(state, steps):
        took.append(next(steps).latents.shape)

    monkeypatch.setattr(bench.Bench, "compare", compare)
    monkeypatch.setattr(comparisons, "train_step", step)
    monkeypatch.setattr(comparisons, "_input_path", lambda *_: None)
    comparisons.training(bench_of(), "dit_pixels", "xs", 4, 2, compiled=False)
    cfg = of_size("xs", "model=dit_pixels")
    assert took == [(2, 48, 4, 4)]
    assert counted["dit_pixels"] == 6 * hand_count(cfg, 4)


def test_the_time_of_a_head_that_is_integrated_is_a_row_without_utilisation():
    measured = bench_of(ceiling=bench.ceiling(CPU))
    overrides = ["model.head=flow"]
    comparisons.training(measured, "ar_continuous", "xs", 4, 2, compiled=False, overrides=overrides)
    table = pd.DataFrame(measured.rows).query("baseline == 'its head alone'").set_index("role")
    assert 0 < table.ratio["ours"] < 1, "the head is a part of the step"
    assert pd.isna(table.utilisation["baseline"]) and table.utilisation["ours"] > 0
