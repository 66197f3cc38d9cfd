"""The whole bench as a user runs it: every artefact there, nothing done twice, nothing lost by a
kill, one line for bad input.
"""

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from benchmarks.__main__ import main
from benchmarks.results import records
from benchmarks.results.columns import NAMES

ROOT = Path(__file__).parent.parent
TINY = [
    "data.train_images=64",
    "data.reference_images=20",
    "num_samples=20",
    "sample_batch=16",
    "train.unit=steps",
    "train.batch=8",
]


def start(folder: Path, *overrides: str) -> subprocess.Popen:
    command = [
        sys.executable,
        "-m",
        "benchmarks",
        "run",
        *overrides,
        f"cache_dir={folder}/cache",
        f"results_dir={folder}/results",
    ]
    if not any(override.startswith("device=") for override in overrides):
        command.append("device=cpu")
    return subprocess.Popen(
        command,
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
    )


def run(folder: Path, *overrides: str) -> tuple[int, str, str]:
    process = start(folder, *overrides)
    out, err = process.communicate(timeout=400)
    return process.returncode, out, err


def weights(folder: Path) -> dict[str, torch.Tensor]:
    loaded = load_file(next((folder / "cache" / "cells").glob("*/weights.safetensors")))
    return {k: v.clone() for k, v in loaded.items()}  # or damaging the file would damage them too


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    folder = tmp_path_factory.mktemp("smoke")
    started = time.perf_counter()
    code, out, err = run(folder, "experiment=smoke")
    assert code == 0, err
    return folder, out, time.perf_counter() - started


def test_a_smoke_bench_reports_all_three_families(smoke):
    folder, out, _ = smoke
    results = folder / "results" / "smoke"
    rows = pd.read_csv(results / "results.csv")
    assert list(rows.columns) == NAMES
    assert set(rows["model"]) == {"unet", "dit", "ar"} and (rows["status"] == "ok").all()
    assert rows[rows["family"] != "ar"].groupby("model")["steps"].nunique().min() >= 2
    assert set(rows[rows["family"] == "ar"]["steps"]) == {64}
    always = [
        "fd",
        "gmacs_per_image",
        "seconds_per_image",
        "nfe",
        "label_accuracy",
        "fd_floor_real",
        "fd_floor_codebook",
        "train_flops",
        "peak_memory_mb",
    ]
    assert (
        rows[always].notna().all().all()
        and (rows[["fd", "seconds_per_image", "latency_seconds"]] > 0).all().all()
    )
    assert (rows["gmacs_per_image"] == rows["gmacs_generator"] + rows["gmacs_decoder"]).all()
    assert rows["gflops_per_image"].tolist() == pytest.approx(
        (2 * rows["gmacs_per_image"]).tolist()
    )
    assert (rows["train_utilisation"] > 0).all() and rows["run_id"].is_unique
    for name in ("fd_vs_steps", "fd_vs_gflops", "fd_vs_seconds", "loss_vs_flops"):
        assert (results / "plots" / f"{name}.png").stat().st_size > 10_000
        assert f"{name}.png" in out, "paths are printed at the end"
    assert list((results / "samples").glob("*.png"))
    assert (
        "FD[local]" in (results / "summary.md").read_text()
        and "| FID" not in (results / "summary.md").read_text()
    )


def test_a_bench_says_where_its_time_went(smoke):
    _, out, wall = smoke
    line = next(line for line in out.splitlines() if line.startswith("seconds spent: "))
    spent = {
        name: float(seconds)
        for name, seconds in (part.rsplit(" ", 1) for part in line.split(": ", 1)[1].split(", "))
    }
    assert set(spent) == {
        "pictures",
        "latents",
        "judge and floors",
        "training",
        "sampling",
        "counting",
        "scoring",
        "report",
        "the rest",
    }
    assert sum(spent.values()) < wall and spent["training"] > 1
    assert 0 <= spent["the rest"] < 0.2 * wall, "no stage is counted twice, and little is in none"


def test_a_record_holds_what_it_takes_to_repeat_it(smoke):
    folder = smoke[0] / "results" / "smoke"
    found, gathered = records.read(folder), json.loads((folder / "results.json").read_text())
    stored = [
        *gathered["parts"].values(),
        *(record.get("train_log") for record in gathered["records"]),
    ]
    logs = {id(log) for record in found for log in stored if log == record["train_log"]}
    assert len(found) == len(gathered["records"]) == 7 and len(logs) == 3, "one log a training"
    for record in found:
        assert record["config"]["train"]["unit"] == "images" and record["config"]["name"] == "smoke"
        assert {"data", "latents", "features", "training"} <= set(record["fingerprints"])
        assert (
            record["versions"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
        )  # a wheel's metadata may leave out its build
        assert record["train_log"][-1][0] == record["row"]["train_images"]


def test_an_image_s_cost_is_its_evaluations(smoke):
    rows = pd.read_csv(smoke[0] / "results" / "smoke" / "results.csv")
    for _, part in rows[rows["family"] != "ar"].groupby("model"):
        each = part["gmacs_generator"] / part["nfe"]
        assert each.max() / each.min() == pytest.approx(1, rel=1e-6)


def test_a_second_bench_does_nothing_again_and_a_new_step_count_never_retrains(smoke):
    folder, _, first = smoke
    kept = {path: path.stat().st_mtime_ns for path in folder.rglob("*.safetensors")}
    started = time.perf_counter()
    code, out, err = run(folder, "experiment=smoke")
    assert code == 0, err
    assert time.perf_counter() - started < first
    assert "3 of 3 measurements are there" in out and "1 of 1 measurements are there" in out
    assert kept == {path: path.stat().st_mtime_ns for path in folder.rglob("*.safetensors")}
    code, out, err = run(
        folder, "experiment=smoke", "model=dit", "steps=[2,3]", "data.reference_images=50"
    )
    assert code == 0 and "0 of 2 measurements are there" in out, out + err
    code, out, err = run(folder, "experiment=smoke", "model=dit", "steps=[2,3]")
    assert code == 0 and "1 of 2 measurements are there" in out, out + err
    new = set(folder.rglob("*.safetensors")) - set(kept)
    kinds = sorted(
        path.name.split("-")[0] if path.parent.parent.name == "cells" else path.parent.name
        for path in new
    )
    assert kinds == ["judge", "samples"], (
        "a new step count draws, a new reference scores; nothing is encoded or trained again"
    )


def test_a_multirun_sweep_shares_caches_and_ends_in_one_report(tmp_path):
    code, _, err = run(
        tmp_path,
        "-m",
        "experiment=smoke",
        "model=dit,ar",
        "seed=0,1",
        "name=sweep",
        "steps=[2,64]",
        *TINY,
        "train.budget=2",
    )
    assert code == 0, err
    rows = pd.read_csv(tmp_path / "results" / "sweep" / "results.csv")
    assert sorted(zip(rows["model"], rows["seed"], rows["steps"], strict=True)) == [
        ("ar", 0, 64), ("ar", 1, 64), ("dit", 0, 2), ("dit", 0, 64), ("dit", 1, 2), ("dit", 1, 64),
    ]  # fmt: skip
    assert (
        len(list((tmp_path / "cache" / "latents").glob("*"))) == 1
        and len(list((tmp_path / "cache" / "data").glob("*/meta.json"))) == 1
    )


def test_a_trade_off_trains_once_and_answers_in_words(tmp_path):
    """Steps x guidance x samplers of one training each, weights kept on the way, a model of one
    step count beside one of any.
    """
    options = [
        "-m",
        "experiment=tradeoff",
        "model=dit,ar_any",
        "sampler=default,dpmpp",
        "steps=[1,8]",
        "guidance=[1,2]",
        *TINY,
    ]
    code, out, err = run(tmp_path, *options, "train.budget=8", "train.snapshots=[0.5]")
    assert code == 0, err
    folder = tmp_path / "results" / "tradeoff"
    rows = pd.read_csv(folder / "results.csv")
    assert (rows["status"] == "ok").all() and len(
        list((tmp_path / "cache" / "cells").glob("*"))
    ) == 2
    whole = rows[rows["train_fraction"] == 1]
    assert whole.groupby(["model", "sampler"]).size().to_dict() == {
        ("ar_any", "random-order"): 4,
        ("dit", "dpmpp"): 4,
        ("dit", "euler"): 4,
    }
    kept = rows[rows["train_fraction"] == 0.5]
    assert (
        set(kept["steps"]) == {8}
        and set(kept["train_images"]) == {32}
        and set(whole["train_images"]) == {64}
    )
    assert whole[["precision", "recall", "density", "coverage"]].notna().all(axis=None)
    summary = (folder / "summary.md").read_text()
    for said in (
        "costs least with",
        "GFLOPs per image:",
        "no more steps are told apart from",
        "fd_vs_training.png",
        "precision_recall.png",
        "fd_vs_latency",
    ):
        assert said in summary, said
    assert "sampler=dpmpp is not one of its own" in out


def test_a_killed_run_goes_on_and_ends_with_the_same_weights(tmp_path):
    """SIGKILL after a checkpoint; the resumed run's weights are bit for bit those of an unbroken
    one.
    """
    options = [
        "experiment=smoke",
        "model=dit",
        "name=kill",
        "steps=[2]",
        *TINY,
        "train.budget=100",
        "train.checkpoint_seconds=0",
    ]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    code, _, err = run(whole, *options)
    assert code == 0, err
    process = start(broken, *options)
    deadline = time.time() + 200
    while not list(broken.glob("cache/cells/*/checkpoint.pt")) and time.time() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not list(broken.glob("cache/cells/*/weights.safetensors")), (
        "killed too late for the test to mean anything"
    )
    code, out, err = run(broken, *options)
    assert code == 0 and "resuming" in out, out + err
    expected, got = weights(whole), weights(broken)
    assert expected.keys() == got.keys() and all(torch.equal(expected[k], got[k]) for k in expected)
    logs = [
        json.loads(next((f / "cache" / "cells").glob("*/train.json")).read_text())["log"]
        for f in (whole, broken)
    ]
    assert [row[:4] for row in logs[0]] == [row[:4] for row in logs[1]], (
        "the loss log is the unbroken run's too"
    )


def test_a_diverged_cell_is_a_row_the_others_still_run_and_it_is_not_tried_again(tmp_path):
    options = [
        "-m",
        "experiment=smoke",
        "model=dit,ar",
        "name=wild",
        "steps=[2,64]",
        *TINY,
        "train.budget=25",
        "size.dit.lr=1e30",
    ]
    code, _, err = run(tmp_path, *options)
    assert code == 4 and "diverged" in err and "Traceback" not in err
    rows = pd.read_csv(tmp_path / "results" / "wild" / "results.csv")
    assert sorted(zip(rows["model"], rows["status"], strict=True)) == [
        ("ar", "ok"),
        ("dit", "diverged"),
    ]
    assert "diverged" in (tmp_path / "results" / "wild" / "summary.md").read_text()
    code, out, err = run(tmp_path, *options)
    assert code == 4 and "diverged before" in err and "1 of 1 measurements are there" in out


def test_a_last_update_that_blows_up_is_not_scored_as_black_pictures(tmp_path):
    code, _, err = run(
        tmp_path,
        "experiment=smoke",
        "model=dit",
        "name=late",
        "steps=[2]",
        *TINY,
        "train.budget=1",
        "model.lr=1e30",
    )
    assert code != 0 and "diverged" in err
    assert set(pd.read_csv(tmp_path / "results" / "late" / "results.csv")["status"]) == {"diverged"}


def test_networks_that_differ_in_any_setting_are_told_apart(tmp_path):
    code, out, err = run(
        tmp_path,
        "-m",
        "experiment=smoke",
        "model=dit",
        "name=lr",
        "steps=[2]",
        *TINY,
        "train.budget=2",
        "model.lr=1e-3,2e-3",
    )
    assert code == 0, err
    assert "dit, lr 0.001" in out and "dit, lr 0.002" in out
    assert (tmp_path / "results" / "lr" / "summary.md").read_text().count(
        "| dit | xs | 0 | lr 0.00"
    ) == 2, "two rows of trainings"


BAD = [
    (["data=imagefolder", "data.path=/nowhere/at/all"], "data.path=/nowhere/at/all"),
    (["data=imagefolder"], "data.path"),
    (["data.image_size=30"], "data.image_size=30"),
    (["data.image_size=48"], "data.image_size=48"),
    (["model=ar", "steps=[3]"], "steps=3"),
    (["model=dit", "steps=[0]"], "steps=0"),
    (["num_samples=1"], "num_samples=1"),
    (["device=quantum"], "device=quantum"),
    (["train.unit=parsecs"], "train.unit=parsecs"),
    (["data=tiny_imagenet"], "data.path=zh-plus/tiny-imagenet"),
    (["autoencoder.weights=/nowhere.safetensors"], "autoencoder.weights"),
    (["features.weights=/nowhere.safetensors"], "features.weights"),
    (["train.precision=fp8"], "train.precision=fp8"),
    (["train.budget=lots"], "train.budget=lots"),
    (["steps=[2.5]"], "steps=[2.5]"),
    (["guidance=[x]"], "guidance=['x']"),
    (["seed=x"], "seed=x"),
    (["sample_batch=0"], "sample_batch=0"),
    (["features=inception"], "features=inception"),
    (["model=nonsense"], "nonsense"),
    (["size=xxl"], "xxl"),
    (["experiment=nonsense"], "nonsense"),
]


@pytest.mark.parametrize("overrides, said", BAD, ids=[b[1] for b in BAD])
def test_bad_input_is_one_line_and_a_non_zero_exit(tmp_path, overrides, said, monkeypatch, capsys):
    """All cells of a sweep trip over the same thing: it is still said once. (Hydra's own message
    for unknown names is longer.)
    """
    preset = [] if any(o.startswith("experiment=") for o in overrides) else ["experiment=smoke"]
    places = [f"cache_dir={tmp_path}/cache", f"results_dir={tmp_path}/results", "device=cpu"]
    monkeypatch.setattr(sys, "argv", ["python -m benchmarks", "run", *places, *preset, *overrides])
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(SystemExit) as stopped:
        main()
    code, (out, err) = stopped.value.code, capsys.readouterr()
    assert code != 0 and said in err, err
    assert "Traceback" not in err + out
    if "nonsense" not in said and said != "xxl":
        lines = [line for line in err.splitlines() if line.strip()]
        assert len(lines) == 1 and lines[0].startswith("latentbench: "), err
    assert not list(tmp_path.glob("results/*/records/*.json"))


def test_a_failed_request_loses_nothing_that_is_there(smoke):
    folder = smoke[0]
    before = (folder / "results" / "smoke" / "results.csv").read_text()
    assert run(folder, "experiment=smoke", "data.image_size=30")[0] != 0
    assert (folder / "results" / "smoke" / "results.csv").read_text() == before


def test_reports_can_be_rebuilt_from_records_alone(smoke):
    folder = smoke[0] / "results" / "smoke"
    before = pd.read_csv(folder / "results.csv")
    plots = sorted((folder / "plots").glob("*.png"))
    for path in (folder / "results.csv", folder / "summary.md", *plots):
        path.unlink()
    (folder / "records" / "broken.json").write_text('{"row": ')
    pictures = sorted((folder / "samples").glob("*.png"))
    (folder / "samples" / "gone-2.png").write_bytes(
        pictures[0].read_bytes()
    )  # of a group whose records were drawn anew elsewhere
    subprocess.run(
        [sys.executable, "-m", "benchmarks", "report", str(folder)],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    pd.testing.assert_frame_equal(pd.read_csv(folder / "results.csv"), before)
    assert sorted((folder / "plots").glob("*.png")) == plots and len(plots) == 5
    assert (
        sorted((folder / "samples").glob("*.png")) == pictures
        and "gone" not in (folder / "summary.md").read_text()
    )
    (folder / "records" / "broken.json").unlink()
    whole = records.read(folder)
    (folder / "records").rename(folder / "moved")
    assert records.read(folder) == whole, "results.json alone holds them all"
    (folder / "moved").rename(folder / "records")


def test_records_hold_no_words_json_lacks_and_no_unknown_columns(tmp_path):
    records.write(tmp_path, {"run_id": "x", "fd": math.nan, "status": "ok"}, extra=[math.inf])
    found = records.read(tmp_path)[0]
    assert found["row"]["fd"] is None and found["extra"] == [None]
    with pytest.raises(ValueError, match="fid_score"):
        records.write(tmp_path, {"run_id": "y", "fid_score": 1.0})
