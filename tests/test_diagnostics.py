"""The report's tables for careful readers, of made-up records: floors, copies, seeds, ties,
classes.
"""

import numpy as np
import pandas as pd
import pytest

from benchmarks.analysis import diagnostics
from benchmarks.analysis.panel import Panel, panels
from benchmarks.reports import plots
from benchmarks.reports.summary import build_report
from benchmarks.results import records

RNG = np.random.default_rng(0)
ROW = {
    "status": "ok",
    "size": "xs",
    "data": "d",
    "num_classes": 10,
    "image_size": 32,
    "autoencoder": "shipped",
    "latent_shape": "4x8x8",
    "train_flops": 1e12,
    "train_fraction": 1.0,
    "sampler": "euler",
    "guidance": 1.0,
    "num_samples": 64,
    "reference_images": 64,
    "features": "local",
    "fd_std": 0.5,
    "fd_floor_real": 1.0,
    "fd_floor_analytic": 0.9,
    "fd_floor_autoencoder": 2.0,
    "fd_floor_codebook": 3.0,
    "kid": 0.1,
    "kid_stderr": 0.01,
    "precision": 0.5,
    "recall": 0.5,
    "memorised_fraction": 0.3,
    "device": "cpu",
    "label_accuracy": 0.5,
    "seconds_per_image": 0.1,
    "dtype": "bf16",
    "started_at": "2026",
}
DIAGNOSTICS = {
    "fd_train_floor": 1.5,
    "fd_anchor": 50.0,
    "train_images_searched": 99,
    "memorised_flagged": False,
    "memorised_expected": 0.01,
    "kid_per_class": {f"class {k}": [0.1 * k, 0.1] for k in range(10)},
}


def record(
    model: str, fd: float, *, seed: int = 0, sampling: int = 0, steps: int = 8, **diagnostics
) -> dict:
    """One measurement; bootstraps of one sampling seed share their noise."""
    noise = np.random.default_rng(sampling).normal(size=20)
    bootstrap = fd + 0.5 * noise + 0.05 * RNG.normal(size=20)
    own = {
        "run_id": f"{model}-{seed}-{sampling}-{steps}",
        "family": "ar" if model == "ar" else "dit",
        "model": model,
        "seed": seed,
        "steps": steps,
        "fd": fd,
        "gflops_per_image": 1.0 * steps,
        "latency_seconds": 0.1 * steps,
        "nfe": steps,
    }
    fingerprints = {
        "training": f"{model}{seed}",
        "data": "d",
        "latents": "l",
        "features": "f",
        "features_dim": 128,
    }
    return {
        "row": ROW | own,
        "selection": {"fd_train": fd + 1},
        "diagnostics": DIAGNOSTICS | {"bootstrap": bootstrap.tolist()} | diagnostics,
        "sampling_seed": sampling,
        "evaluator": "e",
        "fingerprints": fingerprints,
        "config": {"name": "x"},
    }


def panel_of(made_up: list[dict]) -> Panel:
    """The one panel of these records."""
    (panel,) = panels(records.table(made_up))
    return panel


def ties(made_up: list[dict]) -> list[list[object]]:
    """The rows of the table of ties."""
    by_id = {one["row"]["run_id"]: one for one in made_up}
    return diagnostics.ties(panel_of(made_up).best_of_seeds, by_id)[1]


def summary_of(folder, made_up: list[dict]) -> str:
    """The summary.md of a folder with these records."""
    for one in made_up:
        records.write(folder, one["row"], **{k: v for k, v in one.items() if k != "row"})
    build_report(folder)
    return (folder / "summary.md").read_text()


def test_quality_stands_beside_each_family_s_own_floor_and_flags_copies():
    panel = panel_of([record("dit", 10.0, memorised_flagged=True), record("ar", 10.0)])
    header, rows = diagnostics.quality(panel.best)
    dit, ar = ({**dict(zip(header, row, strict=True))} for row in rows)
    assert dit["above own floor"] == 8 and ar["above own floor"] == 7
    assert dit["the same, to training images"] == 9.5
    assert dit["memorised fraction"] == "0.3 FLAGGED" and ar["memorised fraction"] == "0.3"


def test_what_was_not_measured_leaves_cells_empty():
    bare = record("dit", 10.0)
    bare["diagnostics"], bare["row"]["kid"], bare["row"]["memorised_fraction"] = {}, None, None
    both = [bare, record("ar", 9.0)]
    header, rows = diagnostics.quality(panel_of(both).best)
    assert dict(zip(header, rows[0], strict=True))["KID[local] ± SE"] is None
    assert len(diagnostics.classes(panel_of(both).best)[1]) == 1
    ((*_, error, verdict, _),) = ties(both)
    # 1 is within two errors, but these of 1.4 are wider than a tenth of 9
    assert "unpaired" in error and verdict == "inconclusive"


def test_a_crossed_design_takes_trainings_and_samplings_apart():
    """300 designs of 3 x 3: training SD 0.5, sampling SD 1, residual 0.1. Each mean variance is
    right within three standard errors.
    """
    rng, estimates = np.random.default_rng(1), []
    for _ in range(300):
        trainings, samplings = 0.5 * rng.normal(size=(3, 1)), rng.normal(size=(1, 3))
        fd = 10 + trainings + samplings + 0.1 * rng.normal(size=(3, 3))
        cells = [
            dict(curve="dit", steps=8, training=t, sampling_seed=s, fd=fd[t, s], fd_std=1.0)
            for t in range(3)
            for s in range(3)
        ]
        (row,) = diagnostics.seeds(pd.DataFrame(cells))[1]
        assert row[2:4] == [3, 3] and row[4] == pytest.approx(fd.mean())
        estimates.append([np.nan if std is None else std**2 for std in row[5:7]])
    variances = np.nan_to_num(np.array(estimates))
    errors = variances.std(0) / 300**0.5
    for mean, error, truth in zip(variances.mean(0), errors, (0.25, 1.0), strict=True):
        assert abs(mean - truth) < 3 * error
    assert np.isnan(np.array(estimates)).mean() < 0.05


def test_one_training_sampled_once_has_no_spread_to_show():
    panel = panel_of([record("dit", 10.0), record("ar", 9.0)])
    assert diagnostics.seeds(panel.chosen_of_seeds)[1] == []


def test_pairs_tie_by_their_paired_error():
    rows = ties([record("dit", 10.0), record("unet", 10.05), record("ar", 12.0)])
    assert {(row[0], row[1]): row[4] for row in rows} == {
        ("dit, 8 steps", "unet, 8 steps"): "tie",
        ("dit, 8 steps", "ar, 8 steps"): "worse",
        ("unet, 8 steps", "ar, 8 steps"): "worse",
    }


def test_several_trainings_are_compared_over_their_seeds():
    made_up = [record("dit", 10.0 + 0.3 * s, seed=s) for s in range(3)]
    made_up += [record("ar", fd, seed=s) for s, fd in enumerate((10.4, 11.0, 11.0))]
    ((first, second, value, error, verdict, labels),) = ties(made_up)
    assert first.startswith("dit") and second.startswith("ar") and value == pytest.approx(0.5)
    assert "joint SD 0.46" in error, "0.3 and 0.35 between seeds"
    assert "3 training seeds" in error and "1.1 of them apart" in error
    assert verdict == "worse", "0.5 is 5 standard errors, above Student's 4.3"
    assert labels == "+0.000 ± 0 (SE over 3 training seeds; joint SD 0), a tie"


def test_label_accuracies_of_single_trainings_differ_by_the_error_of_two_fractions():
    both = [record("dit", 10.0), record("ar", 10.1)]
    for one, accuracy in zip(both, (0.5, 0.8), strict=True):
        one["row"] |= {"label_accuracy": accuracy, "num_samples": 100}
    ((*_, labels),) = ties(both)
    assert labels == "+0.300 ± 0.064"  # sqrt(0.5 * 0.5 / 100 + 0.8 * 0.2 / 100)


def test_seeds_of_a_budget_in_minutes_are_one_curve_and_two_budgets_two():
    made_up = [record("dit", 10.0 + s, seed=s) for s in range(3)]
    for i, one in enumerate(made_up):
        one["row"]["train_flops"] *= 1 + 0.05 * i  # what a clock made of it
        one["config"] = {"train": {"budget": 10, "unit": "minutes"}}
    assert set(panel_of(made_up).best_of_seeds["curve"]) == {"dit"}
    made_up[2]["config"] = {"train": {"budget": 20, "unit": "minutes"}}
    names = set(panel_of(made_up).best_of_seeds["curve"])
    assert names == {"dit, budget 10 minutes", "dit, budget 20 minutes"}


def test_the_report_has_every_table_and_one_curve_for_several_samplings(tmp_path):
    made_up = [
        record(model, fd + 0.1 * sampling, sampling=sampling, steps=steps)
        for model, fd in (("dit", 9.0), ("ar", 8.0))
        for sampling in range(2)
        for steps in (4, 8)
    ]
    summary = summary_of(tmp_path, made_up)
    for title in ("Every measure", "Between seeds", "Ties", "Classes", "What they say"):
        assert f"### {title}" in summary, title
    lines = build_report(tmp_path).splitlines()
    assert [line.split()[:1] for line in lines].count(["dit"]) == 2, "one row a step count"
    assert "mostly bias" in summary
    assert (tmp_path / "plots" / "fd_vs_steps.png").exists()


def test_a_measurement_that_failed_is_a_line_of_the_report_and_not_its_end(tmp_path):
    good = record("dit", 9.0, steps=4) | {"train_log": [[1, 2.0, 3.0, 4.0, 5.0]]}
    good["row"] |= {"objective": "flow", "train_flops": 2.0}
    bad = record("dit", 9.0, steps=8) | {"reason": "too wild"}
    measured = [name for name in bad["row"] if name.startswith(("fd", "train_flops"))]
    bad["row"] = {k: v for k, v in bad["row"].items() if k not in measured}
    bad["row"]["status"] = "diverged"
    text = summary_of(tmp_path, [good, bad])
    assert "too wild" in text and "| dit | 4 |" in text
    (diverged,) = (r for r in records.read(tmp_path) if r["row"]["status"] == "diverged")
    assert "train_log" not in diverged


def test_records_of_an_earlier_version_are_left_out_and_other_recipes_stay(tmp_path, capsys):
    recipe = {"name": "x", "model": {"lr": 1}, "train": {"budget": 1, "snapshots": []}}
    old = record("dit", 20.0, steps=4) | {"config": recipe}
    old["fingerprints"]["training"], old["row"]["started_at"] = "before", "2025"
    # when weights are kept changes nothing about what is trained
    kept = recipe | {"train": recipe["train"] | {"snapshots": [0.5]}}
    new = record("dit", 10.0, steps=8) | {"config": kept}
    other = record("dit", 15.0, steps=16) | {"config": recipe | {"model": {"lr": 2}}}
    other["fingerprints"]["training"] = "lr2"
    text = summary_of(tmp_path, [old, new, other])
    assert "1 record(s) of earlier versions" in capsys.readouterr().out
    assert "| 4 |" not in text and "| dit, lr 1 | 8 |" in text and "| dit, lr 2 | 16 |" in text


def test_a_best_guidance_at_the_edge_of_the_sweep_is_said_to_be(tmp_path):
    swept = {"dit": {1.0: 9.0, 2.0: 8.0, 4.0: 7.0}, "ar": {1.0: 9.0, 2.0: 6.0, 4.0: 7.0}}
    made_up = []
    for model, distances in swept.items():
        for guidance, fd in distances.items():
            one = record(model, fd, steps=int(8 * guidance))  # another run_id
            one["row"] |= {"guidance": guidance, "steps": 8}
            made_up.append(one)
    text = summary_of(tmp_path, made_up)
    assert "Best at the largest guidance tried, so perhaps better still beyond it: dit (4)." in text


def test_an_axis_shows_the_floors_near_the_curves_and_names_those_far_below():
    made_up = [record("dit", 14.0, steps=4), record("dit", 30.0, steps=8)]
    for one in made_up:
        one["row"] |= {"fd_floor_autoencoder": 15.0, "fd_floor_codebook": 16.0}
    panel = panel_of(made_up)
    low, high = plots._limits(panel)
    assert 1 < low < 14 and high > 50, "every curve, its own floors and the anchor are on it"
    labels = plots._floors(panel)
    assert "floor: real images, 1 (off the axis)" in labels and "floor: autoencoder, 15" in labels
