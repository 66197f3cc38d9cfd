"""The whole bench as a user runs it: every artefact there, nothing done twice, nothing lost by a
kill.
"""

import json
import signal
import time
from pathlib import Path

import pandas as pd
import pytest
import torch
from benches import TINY, command, run, start
from safetensors.torch import load_file

from benchmarks.results import records
from benchmarks.results.columns import NAMES

# columns that are never empty in a row of this bench
ALWAYS = [
    "fd_generator",
    "kid_generator",
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
STAGES = {
    "choosing the precision",
    "images",
    "latents",
    "evaluators and floors",
    "training",
    "tuning",
    "sampling",
    "counting",
    "scoring",
    "report",
    "the rest",
}


@pytest.fixture(scope="module")
def smoke(tmp_path_factory) -> tuple[Path, str, float]:
    """The preset `smoke`, in a process of its own: folder, output and wall seconds."""
    folder = tmp_path_factory.mktemp("smoke")
    began = time.perf_counter()
    process = start(folder, "experiment=smoke")
    out, err = process.communicate(timeout=400)
    assert process.returncode == 0, err
    return folder, out, time.perf_counter() - began


@pytest.fixture(scope="module")
def tiny_folder(tmp_path_factory) -> Path:
    """Where benches of the same few images share their caches; each has a name of its own."""
    return tmp_path_factory.mktemp("tiny")


def table(folder: Path, name: str) -> pd.DataFrame:
    """The rows of a bench."""
    return pd.read_csv(folder / "results" / name / "results.csv")


def summary(folder: Path, name: str) -> str:
    """The report of a bench, in words."""
    return (folder / "results" / name / "summary.md").read_text()


def seconds_spent(out: str) -> dict[str, float]:
    """The last line that a bench prints, parsed."""
    line = next(line for line in out.splitlines() if line.startswith("seconds spent: "))
    pairs = [stage.rsplit(" ", 1) for stage in line.split(": ", 1)[1].split(", ")]
    return {name: float(seconds) for name, seconds in pairs}


def test_a_smoke_bench_measures_all_three_families(smoke):
    folder, _, _ = smoke
    rows = table(folder, "smoke")
    assert list(rows.columns) == NAMES
    assert set(rows["model"]) == {"unet", "dit", "ar"} and (rows["status"] == "ok").all()
    assert rows[rows["family"] != "ar"].groupby("model")["steps"].nunique().min() >= 2
    assert set(rows[rows["family"] == "ar"]["steps"]) == {64}
    assert rows[ALWAYS].notna().all(axis=None)
    assert (rows[["fd", "seconds_per_image", "latency_seconds"]] > 0).all(axis=None)
    assert (rows["gmacs_per_image"] == rows["gmacs_generator"] + rows["gmacs_decoder"]).all()
    gflops = (2 * rows["gmacs_per_image"]).tolist()
    assert rows["gflops_per_image"].tolist() == pytest.approx(gflops)
    assert (rows["train_utilisation"] > 0).all() and rows["run_id"].is_unique


def test_a_smoke_bench_writes_a_report_and_prints_where_its_plots_are(smoke):
    folder, out, _ = smoke
    results = folder / "results" / "smoke"
    for name in ("fd_vs_steps", "fd_vs_gflops", "fd_vs_seconds", "loss_vs_flops"):
        assert (results / "plots" / f"{name}.png").stat().st_size > 10_000
        assert f"{name}.png" in out, "paths are printed at the end"
    assert list((results / "samples").glob("*.png"))
    words = summary(folder, "smoke")
    assert "generator-only FD[local]" in words and "| FID" not in words
    assert "Do the judges agree?" in words and "KID[efficientnet_lite0]" in words


def test_a_bench_prints_where_its_time_went(smoke):
    _, out, wall = smoke
    spent = seconds_spent(out)
    assert set(spent) == STAGES
    assert sum(spent.values()) < wall and spent["training"] > 1
    assert 0 <= spent["the rest"] < 0.2 * wall, "no stage is counted twice, or not at all"


def test_a_record_holds_what_it_takes_to_repeat_it(smoke):
    folder = smoke[0] / "results" / "smoke"
    loaded, gathered = records.read(folder), json.loads((folder / "results.json").read_text())
    assert len(loaded) == len(gathered["records"]) == 14
    # results.json has what records share only once, such as the loss log of a training
    stored = list(gathered["parts"].values())
    stored += [record.get("train_log") for record in gathered["records"]]
    logs = {id(log) for record in loaded for log in stored if log == record["train_log"]}
    assert len(logs) == 3, "one log a training"
    # a wheel's metadata may leave out its build
    torch_version = torch.__version__.split("+")[0]
    for record in loaded:
        assert record["config"]["train"]["unit"] == "images" and record["config"]["name"] == "smoke"
        assert {"data", "latents", "features", "training"} <= set(record["fingerprints"])
        assert record["versions"]["torch"].split("+")[0] == torch_version
        assert record["train_log"][-1][0] == record["row"]["train_images"]


def test_an_image_s_cost_is_its_evaluations(smoke):
    rows = table(smoke[0], "smoke")
    for _, of_model in rows[rows["family"] != "ar"].groupby("model"):
        each = of_model["gmacs_generator"] / of_model["nfe"]
        assert each.max() / each.min() == pytest.approx(1, rel=1e-6)


def test_a_second_bench_does_nothing_again_and_a_new_step_count_never_retrains(smoke):
    folder = smoke[0]
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*.safetensors")}
    ended = run(folder, "experiment=smoke")
    assert ended.code == 0, ended.err
    assert "6 of 6 measurements are there" in ended.out
    assert "2 of 2 measurements are there" in ended.out
    assert before == {path: path.stat().st_mtime_ns for path in folder.rglob("*.safetensors")}

    # by one judge: the other is slow, and what is new for one is new for both
    dit = ["experiment=smoke", "model=dit", "steps=[2,3]", "features=local"]
    ended = run(folder, *dit, "data.reference_images=50")
    assert ended.code == 0 and "0 of 2 measurements are there" in ended.out, ended
    ended = run(folder, *dit)
    assert ended.code == 0 and "1 of 2 measurements are there" in ended.out, ended
    made = []
    for path in set(folder.rglob("*.safetensors")) - set(before):
        in_cell = path.parent.parent.name == "cells"
        made.append(path.name.split("-")[0] if in_cell else path.parent.name)
    assert sorted(made) == ["evaluators", "samples"], (
        "a new step count is sampled, a new reference scored; nothing is encoded or trained again"
    )


@pytest.mark.usefixtures("no_figures")
def test_a_model_of_one_step_count_is_measured_at_it_whatever_is_asked_for(tiny_folder):
    asked = ["experiment=smoke", "name=only", "model=ar", "steps=[2,4]", *TINY, "train.budget=2"]
    ended = run(tiny_folder, *asked)
    assert ended.code == 0, ended.err
    assert "measured at 16 steps, as it supports no other count" in ended.out
    assert list(table(tiny_folder, "only")["steps"]) == [16]


@pytest.mark.usefixtures("no_figures")
def test_a_multirun_sweep_shares_caches_and_ends_in_one_report(tiny_folder):
    sweep = ["-m", "experiment=smoke", "name=sweep", "model=dit,ar", "seed=0,1", "steps=[2,16]"]
    ended = run(tiny_folder, *sweep, *TINY, "train.budget=2")
    assert ended.code == 0, ended.err
    rows = table(tiny_folder, "sweep")
    # 16 px are 16 tokens, and the AR model samples one a step
    expected = [("ar", seed, 16) for seed in (0, 1)]
    expected += [("dit", seed, steps) for seed in (0, 1) for steps in (2, 16)]
    assert sorted(zip(rows["model"], rows["seed"], rows["steps"], strict=True)) == expected
    cache = tiny_folder / "cache"
    assert len(list((cache / "latents").glob("*"))) == 1
    assert len(list((cache / "data").glob("*/meta.json"))) == 1


def test_a_trade_off_trains_once_and_answers_in_words(tmp_path):
    """Steps x guidance x samplers of one training each, weights kept on the way, a model of one
    step count beside one of any.
    """
    ended = run(
        tmp_path,
        "-m",
        "experiment=tradeoff",
        "data=procedural",
        "tune=none",
        "seed=0",
        "model=dit,ar_any",
        "sampler=default,dpmpp",
        "steps=[1,8]",
        "guidance=[1,2]",
        *TINY,
        "train.budget=8",
        "train.snapshots=[0.5]",
    )
    assert ended.code == 0, ended.err
    assert "sampler=dpmpp is not one of its own" in ended.out
    rows = table(tmp_path, "tradeoff")
    assert (rows["status"] == "ok").all()
    assert len(list((tmp_path / "cache" / "cells").glob("*"))) == 2, "one training of each model"
    whole = rows[rows["train_fraction"] == 1]
    sizes = {("ar_any", "random-order"): 4, ("dit", "dpmpp"): 4, ("dit", "euler"): 4}
    assert whole.groupby(["model", "sampler"]).size().to_dict() == sizes
    assert set(whole["train_images"]) == {64}
    assert whole[["precision", "recall", "density", "coverage"]].notna().all(axis=None)
    kept = rows[rows["train_fraction"] == 0.5]
    assert set(kept["steps"]) == {8} and set(kept["train_images"]) == {32}
    words = summary(tmp_path, "tradeoff")
    # at 16 px the decoder hides too much for any verdict
    assert whole["recall_autoencoder"].max() < 0.7
    assert "No verdict: real images through the autoencoder have a recall of" in words
    assert "### Compared" not in words
    for plot in ("fd_vs_training.png", "precision_recall.png", "fd_vs_latency"):
        assert plot in words


def cell_file(folder: Path, name: str) -> Path:
    """A file of the only cell there is."""
    (path,) = (folder / "cache" / "cells").glob(f"*/{name}")
    return path


@pytest.mark.usefixtures("no_figures")
def test_a_killed_run_goes_on_and_ends_with_the_same_weights(tmp_path):
    """SIGKILL after a checkpoint; the resumed run's weights are bit for bit those of an unbroken
    one, and so is its loss log, but for the seconds.
    """
    options = ["experiment=smoke", "name=kill", "model=dit", "steps=[2]", *TINY]
    options += ["train.budget=100", "train.checkpoint_seconds=0"]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    ended = run(whole, *options)
    assert ended.code == 0, ended.err

    process = start(broken, *options)
    deadline = time.time() + 200
    while not list(broken.glob("cache/cells/*/checkpoint.pt")) and time.time() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    finished = list(broken.glob("cache/cells/*/weights.safetensors"))
    assert not finished, "killed too late for the test to mean anything"

    ended = run(broken, *options)
    assert ended.code == 0 and "resuming" in ended.out, ended
    expected, resumed = (load_file(cell_file(f, "weights.safetensors")) for f in (whole, broken))
    assert expected.keys() == resumed.keys()
    assert all(torch.equal(expected[name], resumed[name]) for name in expected)
    logs = [json.loads(cell_file(f, "train.json").read_text())["log"] for f in (whole, broken)]
    assert [row[:4] for row in logs[0]] == [row[:4] for row in logs[1]]


@pytest.mark.usefixtures("no_figures")
def test_a_diverged_cell_is_a_row_the_others_still_run_and_it_is_not_tried_again(tiny_folder):
    options = ["-m", "experiment=smoke", "name=wild", "model=dit,ar", "steps=[2,16]", *TINY]
    options += ["train.budget=25", "size.dit.lr=1e30"]
    ended = run(tiny_folder, *options)
    assert ended.code == 4 and "diverged" in ended.err and "Traceback" not in ended.err
    rows = table(tiny_folder, "wild")
    statuses = sorted(zip(rows["model"], rows["status"], strict=True))
    assert statuses == [("ar", "ok"), ("dit", "diverged")]
    assert "diverged" in summary(tiny_folder, "wild")
    ended = run(tiny_folder, *options)
    assert ended.code == 4 and "diverged before" in ended.err
    assert "1 of 1 measurements are there" in ended.out


@pytest.mark.usefixtures("no_figures")
def test_a_last_update_that_blows_up_is_not_scored_as_black_images(tiny_folder):
    options = ["experiment=smoke", "name=late", "model=dit", "steps=[2]", *TINY]
    ended = run(tiny_folder, *options, "train.budget=1", "model.lr=1e30")
    assert ended.code != 0 and "diverged" in ended.err
    assert set(table(tiny_folder, "late")["status"]) == {"diverged"}


@pytest.mark.usefixtures("no_figures")
def test_networks_that_differ_in_any_setting_are_told_apart(tiny_folder):
    options = ["-m", "experiment=smoke", "name=lr", "model=dit", "steps=[2]", *TINY]
    ended = run(tiny_folder, *options, "train.budget=2", "model.lr=1e-3,2e-3")
    assert ended.code == 0, ended.err
    assert "dit, lr 0.001" in ended.out and "dit, lr 0.002" in ended.out
    rows_of_trainings = summary(tiny_folder, "lr").count("| dit | xs | 0 | lr 0.00")
    assert rows_of_trainings == 2


def test_a_complete_cache_is_only_read(smoke):
    """So it may lie where it cannot be written."""
    folder = smoke[0]
    before = {path: path.stat().st_mtime_ns for path in (folder / "cache").rglob("*")}
    ended = run(folder, "experiment=smoke", "model=dit", f"results_dir={folder}/others")
    assert ended.code == 0 and (folder / "others" / "smoke" / "summary.md").exists()
    assert {path: path.stat().st_mtime_ns for path in (folder / "cache").rglob("*")} == before


def test_a_failed_request_loses_nothing_that_is_there(smoke):
    folder = smoke[0]
    before = (folder / "results" / "smoke" / "results.csv").read_text()
    assert run(folder, "experiment=smoke", "data.image_size=30").code != 0
    assert (folder / "results" / "smoke" / "results.csv").read_text() == before


def test_reports_can_be_rebuilt_from_records_alone(smoke):
    folder = smoke[0] / "results" / "smoke"
    before = pd.read_csv(folder / "results.csv")
    plots = sorted((folder / "plots").glob("*.png"))
    grids = sorted((folder / "samples").glob("*.png"))
    for path in (folder / "results.csv", folder / "summary.md", *plots):
        path.unlink()
    (folder / "records" / "broken.json").write_text('{"row": ')
    # of rows that are gone: their records were made anew elsewhere
    (folder / "samples" / "gone-2.png").write_bytes(grids[0].read_bytes())
    ended = command("report", str(folder))
    assert ended.code == 0, ended.err
    pd.testing.assert_frame_equal(pd.read_csv(folder / "results.csv"), before)
    assert sorted((folder / "plots").glob("*.png")) == plots and len(plots) == 5
    assert sorted((folder / "samples").glob("*.png")) == grids
    assert "gone" not in (folder / "summary.md").read_text()
    (folder / "records" / "broken.json").unlink()


def test_results_json_alone_holds_all_records(smoke):
    folder = smoke[0] / "results" / "smoke"
    whole = records.read(folder)
    (folder / "records").rename(folder / "moved")
    assert records.read(folder) == whole
    (folder / "moved").rename(folder / "records")
