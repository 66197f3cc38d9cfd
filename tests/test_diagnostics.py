"""The report's tables and notes for careful readers, of made-up records: floors, copies, trainings,
comparisons, classes, judges.
"""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from scipy.stats import t

from benchmarks.analysis import diagnostics
from benchmarks.analysis.differences import NOT_JUDGED
from benchmarks.analysis.panel import Panel, panels
from benchmarks.reports import rows
from benchmarks.reports.notes import notes
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
    "fd_generator_std": 0.5,
    "fd_generator_floor_real": 1.0,
    "fd_generator_floor_codebook": 1.2,
    "kid_generator": 0.2,
    "kid_generator_stderr": 0.02,
    "fd_std": 0.7,
    "fd_floor_real": 1.5,
    "fd_floor_analytic": 0.9,
    "fd_floor_autoencoder": 2.0,
    "fd_floor_codebook": 3.0,
    "kid": 0.1,
    "kid_stderr": 0.01,
    "precision": 0.5,
    "recall": 0.5,
    "recall_autoencoder": 0.9,
    "memorised_fraction": 0.3,
    "device": "cpu",
    "label_accuracy": 0.5,
    "seconds_per_image": 0.1,
    "dtype": "bf16",
    "started_at": "2026",
}
DIAGNOSTICS = {
    "fd_generator_anchor": 50.0,
    "train_images_searched": 99,
    "memorised_flagged": False,
    "memorised_expected": 0.01,
    "kid_per_class": {f"class {k}": [0.1 * k, 0.1] for k in range(10)},
}


def record(
    model: str, fd: float, *, seed: int = 0, sampling: int = 0, steps: int = 8, **diagnostics
) -> dict:
    """One measurement, whose generator-only distance is `fd`; bootstraps of one sampling seed share
    their noise.
    """
    noise = np.random.default_rng(sampling).normal(size=20)
    bootstrap = fd + 0.5 * noise + 0.05 * RNG.normal(size=20)
    own = {
        "run_id": f"{model}-{seed}-{sampling}-{steps}",
        "family": "ar" if model == "ar" else "dit",
        "model": model,
        "seed": seed,
        "steps": steps,
        "fd_generator": fd,
        "fd": 2 * fd,
        "gflops_per_image": 1.0 * steps,
        "latency_seconds": 0.1 * steps,
        "nfe": steps,
    }
    fingerprints = {
        "training": f"{model}{seed}",
        "data": "d",
        "autoencoder": "a",
        "latents": "l",
        "features": "f",
        "features_dim": 128,
    }
    return {
        "row": ROW | own,
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


def trained(model: str, *distances: float, **settings) -> list[dict]:
    """A network's records, one training for each distance."""
    return [record(model, fd, seed=seed, **settings) for seed, fd in enumerate(distances)]


def ties(made_up: list[dict]) -> list[list[object]]:
    """The rows of the table of pairs."""
    return diagnostics.ties(panel_of(made_up))[1]


def summary_of(folder, made_up: list[dict]) -> str:
    """The summary.md of a folder with these records."""
    for one in made_up:
        records.write(folder, one["row"], **{k: v for k, v in one.items() if k != "row"})
    build_report(folder)
    return (folder / "summary.md").read_text()


def said(summary: str) -> list[str]:
    """The lines under "What they say", of all panels."""
    parts = summary.split("### What they say")[1:]
    return [line for part in parts for line in part.split("\n\n")[1].splitlines()]


def test_quality_has_both_distances_of_every_curve_and_flags_copies():
    panel = panel_of([record("dit", 10.0, memorised_flagged=True), record("ar", 9.0)])
    header, table = diagnostics.quality(panel)
    dit, ar = (dict(zip(header, row, strict=True)) for row in table)
    assert dit["generator-only FD[local]"] == 10 and dit["FD[local], decoder included"] == 20
    assert dit["generator-only KID[local] ± SE"] == "0.2 ± 0.02"
    assert dit["memorised fraction"] == "0.3 FLAGGED" and ar["memorised fraction"] == "0.3"


def test_copies_of_any_training_flag_the_curve():
    made_up = trained("dit", 10.0, 10.1)
    made_up.append(record("dit", 10.2, seed=2, memorised_flagged=True))
    (row,) = diagnostics.quality(panel_of(made_up))[1]
    assert row[-1] == "0.3 FLAGGED"


def test_what_was_not_measured_leaves_cells_empty():
    bare = record("dit", 10.0)
    bare["diagnostics"] = {}
    for name in ("kid_generator", "kid", "memorised_fraction", "label_accuracy"):
        bare["row"][name] = None
    panel = panel_of([bare, record("ar", 9.0)])
    header, (first, _) = diagnostics.quality(panel)
    cells = dict(zip(header, first, strict=True))
    assert cells["generator-only KID[local] ± SE"] is None
    assert cells["memorised fraction"] is None
    assert len(diagnostics.classes(panel)[1]) == 1


def test_classes_are_ordered_by_their_distance():
    ((_, measure, worst, best),) = diagnostics.classes(panel_of([record("dit", 10.0)]))[1]
    assert measure == "KID ± SE"
    assert worst.startswith("class 9 0.9 ± 0.1") and best.startswith("class 0 0 ± 0.1")


def test_a_nested_design_takes_trainings_and_samplings_apart():
    """600 designs of 3 x 3: training SD 0.5, and samplings of SD 1 that trainings do not share.
    Each mean variance is right within three standard errors.
    """
    rng = np.random.default_rng(1)
    designs = 10 + 0.5 * rng.normal(size=(600, 3, 1)) + rng.normal(size=(600, 3, 3))
    variances = np.array([diagnostics._variances(pd.DataFrame(one)) for one in designs])
    errors = variances.std(0) / 600**0.5
    for mean, error, truth in zip(variances.mean(0), errors, (0.25, 1.0), strict=True):
        assert abs(mean - truth) < 3 * error


def test_the_table_of_trainings_has_means_and_their_spreads():
    """Two trainings, two samplings: 10 +- 1 and 20 +- 1."""
    cells = [
        dict(curve="dit", steps=8, training=t, sampling_seed=s, distance=d, distance_std=0.3)
        for t, s, d in ((0, 0, 9.0), (0, 1, 11.0), (1, 0, 19.0), (1, 1, 21.0))
    ]
    panel = SimpleNamespace(by_sampling=pd.DataFrame(cells), distance="distance")
    ((*names, mean, trainings, samplings, bootstrap),) = diagnostics.seeds(panel)[1]
    assert names == ["dit", 8, 2, 2] and mean == 15 and bootstrap == pytest.approx(0.3)
    assert samplings == pytest.approx(2**0.5) and trainings == pytest.approx((50 - 1) ** 0.5)


def test_one_training_sampled_once_has_no_spread_to_show():
    panel = panel_of([record("dit", 10.0), record("ar", 9.0)])
    assert diagnostics.seeds(panel)[1] == []


def test_networks_of_one_training_each_are_not_judged_in_the_table_of_pairs():
    """Twice the distance is shown, but no error and no verdict."""
    ((first, second, relative, verdict, _, labels),) = ties(
        [record("dit", 10.0), record("ar", 5.0)]
    )
    assert (first, second) == ("ar, 8 steps", "dit, 8 steps")
    assert relative == "2" and verdict == NOT_JUDGED and labels == "+0.000"


def test_several_trainings_are_compared_by_the_spread_of_all_of_them():
    made_up = trained("dit", 10.0, 10.3, 10.6) + trained("ar", 12.4, 13.0, 13.0)
    made_up += trained("unet", 10.0, 10.4, 10.6) + trained("masked", 15.0)
    table = {(row[0].split(",")[0], row[1].split(",")[0]): row[2:] for row in ties(made_up)}
    logs = np.log([[10.0, 10.3, 10.6], [12.4, 13.0, 13.0], [10.0, 10.4, 10.6]])
    own = logs.var(axis=1, ddof=1)
    # of each of the two the pooled spread, or its own where that is larger
    variances = np.maximum(own, own.mean())[:2] / 3
    # degrees of freedom: six behind the pooled spread, two behind one's own, joined as Welch's
    behind = np.where(own > own.mean(), 2, 6)[:2]
    freedom = variances.sum() ** 2 / (variances**2 / behind).sum()
    reach = t.ppf(0.975, freedom) * variances.sum() ** 0.5
    value = logs[1].mean() - logs[0].mean()
    low, middle, high = np.exp([value - reach, value, value + reach])
    ratio, verdict, *_ = table["dit", "ar"]
    assert ratio == f"{middle:.3g} ({low:.3g} to {high:.3g})" and verdict == "worse"
    # 0.3% apart, and surely within 10%
    assert table["dit", "unet"][1] == "tie"
    assert {row[1] for pair, row in table.items() if "masked" in pair} == {NOT_JUDGED}


def test_label_accuracies_are_compared_over_trainings_with_signs_as_a_reader_expects():
    made_up = trained("dit", 10.0, 10.3, 10.6) + trained("ar", 12.4, 13.0, 13.0)
    accuracies = (0.50, 0.51, 0.52, 0.70, 0.71, 0.72)
    for one, accuracy in zip(made_up, accuracies, strict=True):
        one["row"]["label_accuracy"] = accuracy
    ((*_, labels),) = ties(made_up)
    assert labels == "+0.200 ± 0.0082, better"  # 0.01 x sqrt(2 / 3)


def test_settings_chosen_by_tuning_are_compared_and_the_configured_ones_shown_beside():
    made_up = trained("dit", 10.0, 10.3, 10.6) + trained("ar", 9.0, 9.2, 9.4)
    for one in trained("dit", 6.0, 6.1, 6.2):
        one["row"] |= {"run_id": one["row"]["run_id"] + "t", "guidance": 2.0, "settings": "tuned"}
        made_up.append(one)
    panel = panel_of(made_up)
    assert panel.names == ["dit", "dit, tuned", "ar"]
    assert set(panel.leading["curve"]) == {"dit, tuned", "ar"}
    ((first, second, _, verdict, *_),) = ties(made_up)
    assert (first, second) == ("dit, tuned, 8 steps", "ar, 8 steps")
    assert verdict == "worse"


def test_seeds_of_a_budget_in_minutes_are_one_curve_and_two_budgets_two():
    made_up = trained("dit", 10.0, 11.0, 12.0)
    for i, one in enumerate(made_up):
        one["row"]["train_flops"] *= 1 + 0.05 * i  # what a clock made of it
        one["config"] = {"train": {"budget": 10, "unit": "minutes"}}
    shown = panel_of(made_up).shown
    assert shown["curve"].tolist() == ["dit"] and shown["trainings"].tolist() == [3]
    made_up[2]["config"] = {"train": {"budget": 20, "unit": "minutes"}}
    names = set(panel_of(made_up).shown["curve"])
    assert names == {"dit, budget 10 minutes", "dit, budget 20 minutes"}


def test_several_trainings_are_one_row_of_means_that_says_how_many():
    panel = panel_of([*trained("dit", 10.0, 11.0, 12.0), record("ar", 9.0)])
    header, (dit, ar) = rows.measured(panel)
    cells = [dict(zip(header, row, strict=True)) for row in (dit, ar)]
    assert [one["trainings"] for one in cells] == [3, 1]
    assert [v for k, v in cells[0].items() if k.startswith("generator-only FD[local]")] == [
        "11 ± 0.58"
    ]
    assert len(rows.trained(panel)[1]) == 4


def test_the_table_of_trainings_says_what_tells_them_apart():
    made_up = trained("dit", 10.0, 11.0)
    assert "dtype" not in rows.trained(panel_of(made_up))[0]
    made_up[1]["row"] |= {"dtype": "fp32", "seed": 0}
    header, networks = rows.trained(panel_of(made_up))
    assert [row[header.index("dtype")] for row in networks] == ["bf16", "fp32"]


def test_without_a_generator_only_distance_that_of_the_system_leads():
    made_up = [record("dit", 10.0), record("ar", 9.0)]
    for one in made_up:
        one["row"] |= dict.fromkeys(("fd_generator", "fd_generator_std", "recall_autoencoder"))
    panel = panel_of(made_up)
    assert panel.distance == "FD[local]" and panel.shown["distance"].tolist() == [20.0, 18.0]
    assert not any("generator" in line for line in notes(panel, made_up[0]))
