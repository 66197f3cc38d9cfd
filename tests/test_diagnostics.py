"""The report's tables for careful readers, of made-up records: floors, copies, seeds, ties,
classes.
"""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from benchmarks.analysis import diagnostics, verdicts
from benchmarks.analysis.curves import curve_names
from benchmarks.reports import plots
from benchmarks.reports.summary import build_report
from benchmarks.results import records

RNG = np.random.default_rng(0)


def record(model: str, fd: float, *, seed: int = 0, draw: int = 0, steps: int = 8, **said) -> dict:
    """One measurement; bootstraps of one draw share their noise."""
    noise = np.random.default_rng(draw).normal(size=20)
    row = {
        "run_id": f"{model}-{seed}-{draw}-{steps}",
        "status": "ok",
        "family": "ar" if model == "ar" else "dit",
        "model": model,
        "size": "xs",
    }
    row |= {
        "seed": seed,
        "data": "d",
        "num_classes": 10,
        "image_size": 32,
        "autoencoder": "shipped",
        "latent_shape": "4x8x8",
        "train_flops": 1e12,
    }
    row |= {
        "train_fraction": 1.0,
        "sampler": "euler",
        "steps": steps,
        "guidance": 1.0,
        "num_samples": 64,
        "reference_images": 64,
    }
    row |= {
        "features": "local",
        "fd": fd,
        "fd_std": 0.5,
        "fd_floor_real": 1.0,
        "fd_floor_autoencoder": 2.0,
        "fd_floor_codebook": 3.0,
    }
    row |= {
        "kid": 0.1,
        "kid_stderr": 0.01,
        "precision": 0.5,
        "recall": 0.5,
        "memorised_fraction": 0.3,
        "device": "cpu",
        "label_accuracy": 0.5,
    }
    row |= {
        "gflops_per_image": 1.0 * steps,
        "latency_seconds": 0.1 * steps,
        "seconds_per_image": 0.1,
        "nfe": steps,
        "dtype": "bf16",
    }
    extra = {
        "bootstrap": (fd + 0.5 * noise + 0.05 * RNG.normal(size=20)).tolist(),
        "fd_train_floor": 1.5,
        "train_pictures": 99,
    }
    extra |= {
        "memorised_flagged": False,
        "memorised_expected": 0.01,
        "kid_per_class": {f"class {k}": [0.1 * k, 0.1] for k in range(10)},
    }
    prints = {
        "training": f"{model}{seed}",
        "data": "d",
        "latents": "l",
        "features": "f",
        "features_dim": 128,
    }
    return {
        "row": row,
        "selection": {"fd_train": fd + 1},
        "diagnostics": extra | said,
        "sampling_seed": draw,
        "judge": "j",
        "fingerprints": prints,
    }


def tables(found: list[dict]) -> tuple[pd.DataFrame, pd.DataFrame, dict[str, dict]]:
    """Each at its best, named with and without its seed, and the records by their name."""
    best = verdicts.own_best(records.table(found))
    by_id = {r["row"]["run_id"]: r for r in found}
    return (
        best.assign(curve=curve_names(best)),
        best.assign(curve=curve_names(best.assign(seed=0))),
        by_id,
    )


def test_quality_stands_beside_each_family_s_own_floor_and_flags_copies():
    named, _, _ = tables([record("dit", 10.0, memorised_flagged=True), record("ar", 10.0)])
    header, rows = diagnostics.quality(named)
    said = {row[0]: dict(zip(header, row, strict=True)) for row in rows}
    assert said["dit"]["above own floor"] == 8 and said["ar"]["above own floor"] == 7
    assert said["dit"]["the same, to training pictures"] == 9.5
    assert (
        said["dit"]["memorised share"] == "0.3 FLAGGED" and said["ar"]["memorised share"] == "0.3"
    )


def test_records_of_before_leave_cells_empty():
    old = record("dit", 10.0)
    old["diagnostics"], old["row"]["kid"], old["row"]["memorised_fraction"] = {}, None, None
    named, chosen, by_id = tables([old, record("ar", 9.0)])
    header, rows = diagnostics.quality(named)
    assert dict(zip(header, rows[0], strict=True))["KID[local] ± SE"] is None
    assert len(diagnostics.classes(named)[1]) == 1
    ((*_, error, verdict, _),) = diagnostics.ties(chosen, by_id)[1]
    assert "unpaired" in error and verdict == "inconclusive", (
        "1 is within two errors, but these of 1.4 are wider than a tenth of 9"
    )


def test_a_crossed_design_takes_trainings_and_drawings_apart():
    """300 designs of 3 x 3: training SD 0.5, drawing SD 1, residual 0.1. Each mean variance is
    right within three standard errors.
    """
    rng, found = np.random.default_rng(1), []
    for _ in range(300):
        fd = (
            10
            + 0.5 * rng.normal(size=(3, 1))
            + rng.normal(size=(1, 3))
            + 0.1 * rng.normal(size=(3, 3))
        )
        cells = [
            dict(curve="dit", steps=8, training=t, sampling_seed=d, fd=fd[t, d], fd_std=1.0)
            for t in range(3)
            for d in range(3)
        ]
        _, ((_, _, trained, drawn, mean, between, across, _),) = diagnostics.seeds(
            pd.DataFrame(cells)
        )
        assert (trained, drawn) == (3, 3) and mean == pytest.approx(fd.mean())
        found.append(
            (np.nan if between is None else between**2, np.nan if across is None else across**2)
        )
    variances = np.nan_to_num(np.array(found))
    for mean, error, truth in zip(
        variances.mean(0), variances.std(0) / 300**0.5, (0.25, 1.0), strict=True
    ):
        assert abs(mean - truth) < 3 * error
    assert np.isnan(np.array(found)).mean() < 0.05


def test_one_training_drawn_once_has_no_spread_to_show():
    assert diagnostics.seeds(tables([record("dit", 10.0), record("ar", 9.0)])[1])[1] == []


def test_pairs_tie_by_their_paired_error():
    _, chosen, by_id = tables([record("dit", 10.0), record("unet", 10.05), record("ar", 12.0)])
    rows = {(row[0], row[1]): row[4] for row in diagnostics.ties(chosen, by_id)[1]}
    assert rows == {
        ("dit, 8 steps", "unet, 8 steps"): "tie",
        ("dit, 8 steps", "ar, 8 steps"): "worse",
        ("unet, 8 steps", "ar, 8 steps"): "worse",
    }


def test_several_trainings_are_compared_over_their_seeds():
    some = [record("dit", 10.0 + 0.3 * s, seed=s) for s in range(3)] + [
        record("ar", 10.4 + 0.3 * s + 0.3 * (s == 1), seed=s) for s in range(3)
    ]
    _, chosen, by_id = tables(some)
    ((first, second, value, error, verdict, labels),) = diagnostics.ties(chosen, by_id)[1]
    assert "joint SD 0.46" in error, "0.3 and 0.35 between seeds"
    assert first.startswith("dit") and second.startswith("ar") and value == pytest.approx(0.5)
    assert "3 training seeds" in error and verdict == "worse", (
        "0.5 is 5 standard errors, above Student's 4.3"
    )
    assert (
        labels == "+0.000 ± 0 (SE over 3 training seeds; joint SD 0), a tie"
        and "1.1 of them apart" in error
    )


def test_label_accuracies_of_single_trainings_differ_by_the_error_of_two_shares():
    some = [record("dit", 10.0), record("ar", 10.1)]
    for one, accuracy in zip(some, (0.5, 0.8), strict=True):
        one["row"] |= {"label_accuracy": accuracy, "num_samples": 100}
    _, chosen, by_id = tables(some)
    ((*_, labels),) = diagnostics.ties(chosen, by_id)[1]
    assert labels == "+0.300 ± 0.064"  # sqrt(0.5 * 0.5 / 100 + 0.8 * 0.2 / 100)


def test_seeds_of_a_budget_in_minutes_are_one_curve_and_two_budgets_two():
    some = [record("dit", 10.0 + s, seed=s) for s in range(3)]
    for i, one in enumerate(some):
        one["row"]["train_flops"] *= 1 + 0.05 * i  # what a clock made of it
        one["config"] = {"train": {"budget": 10, "unit": "minutes"}}
    assert set(tables(some)[1]["curve"]) == {"dit"}
    some[2]["config"] = {"train": {"budget": 20, "unit": "minutes"}}
    assert set(tables(some)[1]["curve"]) == {"dit, budget 10 minutes", "dit, budget 20 minutes"}


def test_the_report_has_every_table_and_one_curve_for_several_drawings(tmp_path):
    for one in [
        record(m, fd + 0.1 * d, draw=d, steps=s)
        for m, fd in (("dit", 9.0), ("ar", 8.0))
        for d in range(2)
        for s in (4, 8)
    ]:
        row = one["row"] | {"started_at": "2026"}
        rest = {k: v for k, v in one.items() if k != "row"}
        records.write(tmp_path, row, **rest, trained_by={}, train_log=[], config={"name": "x"})
    text = build_report(tmp_path)
    summary = (tmp_path / "summary.md").read_text()
    for title in ("Every measure", "Between seeds", "Ties", "Classes", "What they say"):
        assert f"### {title}" in summary, title
    assert [line.split()[:1] for line in text.splitlines()].count(["dit"]) == 2, (
        "one row a step count"
    )
    assert "mostly bias" in summary
    assert (tmp_path / "plots" / "fd_vs_steps.png").exists()


def built(folder, found: list[dict]) -> str:
    for one in found:
        rest = {k: v for k, v in one.items() if k != "row"}
        records.write(
            folder,
            one["row"] | {"started_at": one["row"].get("started_at", "2026")},
            **{"config": {"name": "x"}} | rest,
        )
    build_report(folder)
    return (folder / "summary.md").read_text()


def test_a_point_that_failed_is_a_line_of_the_report_and_not_its_end(tmp_path):
    good, bad = (
        record("dit", 9.0, steps=s) | {"train_log": [[1, 2.0, 3.0, 4.0, 5.0]]} for s in (4, 8)
    )
    good["row"] |= {"objective": "flow", "train_flops": 2.0}
    bad["row"] = {
        k: v for k, v in bad["row"].items() if not k.startswith(("fd", "train_flops"))
    } | {"status": "diverged"}
    del bad["train_log"]
    text = built(tmp_path, [good, bad | {"reason": "too wild"}])
    assert "too wild" in text and "| dit | 4 |" in text
    assert "train_log" not in next(
        r for r in records.read(tmp_path) if r["row"]["status"] == "diverged"
    )


def test_records_of_an_earlier_version_are_left_out_and_other_recipes_stay(tmp_path, capsys):
    recipe = {"name": "x", "model": {"lr": 1}, "train": {"budget": 1, "snapshots": []}}
    old, new, other = (
        record("dit", fd, steps=s) | {"config": recipe}
        for fd, s in ((20.0, 4), (10.0, 8), (15.0, 16))
    )
    old["fingerprints"], old["row"]["started_at"] = (
        old["fingerprints"] | {"training": "before"},
        "2025",
    )
    new["config"] = recipe | {
        "train": recipe["train"] | {"snapshots": [0.5]}
    }  # changes nothing about what is trained
    other["fingerprints"], other["config"] = (
        other["fingerprints"] | {"training": "lr2"},
        recipe | {"model": {"lr": 2}},
    )
    text = built(tmp_path, [old, new, other])
    assert "1 record(s) of earlier versions" in capsys.readouterr().out
    assert "| 4 |" not in text and "| dit, lr 1 | 8 |" in text and "| dit, lr 2 | 16 |" in text


def test_a_best_guidance_at_the_edge_of_the_sweep_is_said_to_be(tmp_path):
    swept = {"dit": {1.0: 9.0, 2.0: 8.0, 4.0: 7.0}, "ar": {1.0: 9.0, 2.0: 6.0, 4.0: 7.0}}
    some = [
        record(m, fd, steps=int(8 * g)) for m, scales in swept.items() for g, fd in scales.items()
    ]
    for one, guidance in zip(some, [1.0, 2.0, 4.0] * 2, strict=True):
        one["row"] |= {"guidance": guidance, "steps": 8}
    text = built(tmp_path, some)
    assert "Best at the largest guidance drawn, so perhaps better still beyond it: dit (4)." in text


def test_an_axis_shows_the_floors_near_the_curves_and_names_those_far_below():
    axis = plt.figure().subplots()
    floors = {
        "fd_floor_real": 1.0,
        "fd_floor_analytic": 0.9,
        "fd_floor_autoencoder": 15.0,
        "fd_floor_codebook": 16.0,
    }
    part = pd.DataFrame(
        [{"fd": fd, "diagnostics": {"fd_anchor": 50.0}, **floors} for fd in (14.0, 30.0)]
    )
    plots._floor_lines(axis, part)
    low, high = axis.get_ylim()
    assert 1 < low < 14 and high > 50, "every curve, its own floors and the anchor are on it"
    said = {line.get_label() for line in axis.get_lines()}
    assert "floor: real vs real, 1 (off the axis)" in said and "floor: autoencoder, 15" in said
