"""Sweeps in several processes at once, by Hydra's launchers."""

import importlib.util
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from benches import TINY, start
from filelock import SoftFileLease
from hydra import compose, initialize_config_dir

from benchmarks.core import cli, environment, jobs
from benchmarks.core.errors import BadInput
from benchmarks.core.jobs import take_card
from benchmarks.core.session import session
from benchmarks.core.settings import CONF

BENCH = ["-m", "experiment=smoke", "name=launched", "steps=[16]", *TINY, "train.budget=30"]
LAUNCHERS = {
    "joblib": ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"],
    "submitit_local": ["hydra/launcher=submitit_local", "hydra.launcher.timeout_min=5"],
}
# what differs from run to run by nature
MEASURED = ("seconds", "per_second", "memory", "utilisation", "others_", "started_at", "device")


def launcher(name: str) -> list[str]:
    """The overrides that choose a launcher; skips the test where it is not installed."""
    plugin = f"hydra_plugins.hydra_{name.split('_')[0]}_launcher"
    if importlib.util.find_spec(plugin) is None:
        pytest.skip(f"{plugin} is not installed")
    return LAUNCHERS[name]


def rows(folder: Path) -> pd.DataFrame:
    """results.csv but for what a clock or the machine made, sorted."""
    table = pd.read_csv(folder / "results" / "launched" / "results.csv", dtype=str)
    kept = [name for name in table if not any(word in name for word in MEASURED)]
    return table[kept].sort_values("run_id", ignore_index=True)


def ended(process: subprocess.Popen) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


def training(folder: Path, *overrides: str) -> subprocess.Popen:
    """A bench, as soon as one of its cells has a lock."""
    process = start(folder, *overrides)
    while process.poll() is None and not list(folder.glob("cache/cells/*.lock")):
        time.sleep(0.05)
    return process


# --- launchers


@pytest.mark.long
def test_cells_in_several_processes_give_the_rows_of_one(tmp_path, monkeypatch):
    for library in ("OMP", "OPENBLAS", "MKL"):  # sums over other threads round differently
        monkeypatch.setenv(f"{library}_NUM_THREADS", "1")
    cells = [*BENCH, "model=dit,ar", "seed=0,1"]
    two = start(tmp_path / "two", *cells, *launcher("joblib"))
    alone, _, _ = ended(start(tmp_path / "one", *cells))
    code, out, err = ended(two)
    assert alone == code == 0, err[-2000:]
    assert "generator-only FD[local]" in out, "the launching process prints the report"
    pd.testing.assert_frame_equal(rows(tmp_path / "one"), rows(tmp_path / "two"))
    # each made once, and no lock is left
    for room in ("latents", "evaluators", "cells"):
        made = [{p.name for p in (tmp_path / n / "cache" / room).iterdir()} for n in ("one", "two")]
        assert made[0] == made[1]
    assert not list((tmp_path / "two").rglob("*.lock"))


@pytest.mark.long
def test_what_ends_badly_in_another_process_is_said_by_the_launching_one(tmp_path):
    cells = [*BENCH, "model=dit", "seed=0,-1", *launcher("submitit_local")]
    code, out, err = ended(start(tmp_path, *cells))
    assert code == 1 and "latentbench: seed=-1: a whole number from 0" in err
    assert "Traceback" not in err and "generator-only FD[local]" in out, "the other cell is there"


@pytest.mark.long
def test_a_killed_process_of_a_sweep_is_one_line_and_the_next_run_goes_on(tmp_path):
    cells = [*BENCH, "model=dit", "seed=0,1", *launcher("joblib")]
    process = training(tmp_path, *cells)
    lease = SoftFileLease(str(next(tmp_path.glob("cache/cells/*.lock"))))
    os.kill(lease.pid, signal.SIGKILL)
    code, _, err = ended(process)
    assert code == 1 and "Traceback" not in err
    assert err.count("latentbench: ") == 1, "progress bars end without a new line"
    assert "latentbench: a process of the sweep ended before its cell did" in err
    code, _, err = ended(start(tmp_path, *cells))
    assert code == 0 and len(rows(tmp_path)) == 2, err
    assert not list(tmp_path.rglob("*.lock"))


@pytest.mark.long
def test_cells_go_on_and_report_when_the_launching_process_is_gone(tmp_path):
    """As where the connection to a cluster breaks."""
    cells = [*BENCH, "model=dit", "seed=0,1", *launcher("submitit_local")]
    process = training(tmp_path, *cells)
    process.kill()
    ended(process)
    until = time.monotonic() + 200
    while not any(tmp_path.glob("results/*/results.csv")) or len(rows(tmp_path)) < 2:
        assert time.monotonic() < until, "the last cell has built no report"
        time.sleep(0.5)


def test_what_waits_for_its_turn_is_not_told_that_the_disk_is_another(tmp_path, monkeypatch):
    """One cell of a cluster was killed, which ends the launching process; others are queued."""
    job = jobs.Job(print, full_error="0")
    session.__init__()
    session.sweep_folder, session.cells_left = tmp_path, True
    outcomes = tmp_path / "outcomes" / job.name
    outcomes.mkdir(parents=True)
    jobs.merge_outcomes(job)
    assert outcomes.is_dir()
    session.cells_left = False
    jobs.merge_outcomes(job)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("missing", ["results_dir", "cache_dir"])
def test_a_machine_that_does_not_see_what_is_shared_runs_no_cell(missing, tmp_path, monkeypatch):
    """It would make everything once more, and nobody would see it."""
    ran, shared = [], {name: tmp_path / name for name in ("results_dir", "cache_dir")}
    sweep = SimpleNamespace(dir=shared["results_dir"])
    hydra = SimpleNamespace(launcher=SimpleNamespace(_target_="Joblib"), sweep=sweep)
    cfg = SimpleNamespace(hydra=hydra, cache_dir=str(shared["cache_dir"]))
    monkeypatch.setattr(jobs.HydraConfig, "get", lambda: hydra)
    session.__init__()
    job = jobs.Job(ran.append, full_error="0", launched_by=("another machine", 1))
    session.job_name = job.name
    jobs.NoteSweep().on_multirun_start(cfg)
    job(cfg)
    assert ran == [cfg], "a machine that sees both"
    shared[missing].rename(tmp_path / "elsewhere")
    with pytest.raises(BadInput, match=f"^{missing}: .* does not see .*{missing}"):
        job(cfg)
    assert len(ran) == 1
    if missing == "cache_dir":  # a cell may have a cache of its own
        job(SimpleNamespace(cache_dir="another"))
        assert len(ran) == 2
    (tmp_path / "elsewhere").rename(shared[missing])
    jobs.merge_outcomes(job)
    assert not list(tmp_path.rglob("outcomes"))


def test_a_cell_that_finds_other_code_than_its_launcher_had_is_not_run(tmp_path, monkeypatch):
    ran = []
    job = jobs.Job(ran.append, full_error="0", launched_by=("another machine", 1))
    hydra = SimpleNamespace(sweep=SimpleNamespace(dir=str(tmp_path)))
    monkeypatch.setattr(jobs.HydraConfig, "get", lambda: hydra)
    folder = tmp_path / "outcomes" / job.name
    folder.mkdir(parents=True)
    for digest in (job.code, "of a file that was edited meanwhile"):
        session.__init__()
        monkeypatch.setattr(jobs, "code_digest", lambda digest=digest: digest)
        job("the cell")
    assert ran == ["the cell"]
    session.__init__()
    (outcome,) = folder.glob("*.json")
    assert "is not what this command began with" in outcome.read_text()


@pytest.mark.parametrize("change", ["edited", "renamed"])
def test_a_cell_whose_configurations_have_changed_is_not_run(change, tmp_path, monkeypatch):
    """With or without a launcher: each cell is composed when its turn comes."""
    shutil.copytree(CONF, tmp_path / "conf")
    monkeypatch.setattr(environment, "ROOT", tmp_path)
    session.__init__()
    ran, preset = [], tmp_path / "conf" / "experiment" / "smoke.yaml"
    job = jobs.Job(ran.append, full_error="0")
    job("the first cell")
    if change == "edited":
        preset.write_text(preset.read_text().replace("steps: [2, 4, 64]", "steps: [2, 4]"))
    else:
        preset.rename(preset.with_name("smoky.yaml"))
    job("the second cell")
    assert ran == ["the first cell"]
    assert "the folder conf/ on " in session.errors[0] and "start it again" in session.errors[0]
    session.__init__()


def test_a_job_that_broke_outside_of_its_cell_is_one_line_with_its_log(tmp_path):
    """And the cells that are queued still find the folder in which they say what became of them."""
    utils = pytest.importorskip("submitit.core.utils")
    rule = "-" * 22
    failed = utils.FailedJobError(
        f"Job (task=0) failed during processing with trace:\n{rule}\nTraceback (most recent call"
        f' last):\n  File "/suite/run.py", line 3\n    def broken(\nSyntaxError: never closed\n'
        "    of more lines\n\n"
        f"{rule}\nYou can check full logs with 'job.stderr(0)'or at paths:\n"
        "  - /results/.submitit/7_0_log.err\n  - /results/.submitit/7_0_log.out"
    )
    log = "its errors are in /results/.submitit/7_0_log.err"
    for error, why, first in (
        (failed, f"SyntaxError: never closed; {log}", "once that is mended, "),
        (utils.UncompletedJobError("killed"), "for want of memory perhaps", ""),
    ):
        session.__init__()

        def composed(error=error):
            raise error

        with pytest.raises(BadInput) as said:
            cli._raising(composed)
        line = f"a process of the sweep ended before its cell did ({why}); {first}the same command"
        assert str(said.value) == f"{line} goes on" and session.cells_left


def test_the_example_for_a_cluster_is_one_that_hydra_takes():
    launcher("submitit_local")
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("config", ["hydra/launcher=slurm_gpu"], return_hydra_config=True)
    slurm = cfg.hydra.launcher
    assert slurm._target_.endswith("SlurmLauncher")
    assert (slurm.gpus_per_node, slurm.array_parallelism) == (1, 8)


# --- GPUs of a machine


@pytest.fixture
def three_cards(monkeypatch):
    """A machine with three GPUs, as far as `take_card` looks; the cards that were taken."""
    taken = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(torch.cuda, "set_device", taken.append)
    cards = [SimpleNamespace(uuid=f"GPU-{name}") for name in "abc"]
    monkeypatch.setattr(torch.cuda, "get_device_properties", cards.__getitem__)
    return taken


def test_each_process_of_a_launcher_takes_a_card_of_its_own(three_cards, tmp_path, monkeypatch):
    locks_of_others = []
    for _ in range(3):
        monkeypatch.setattr(session, "card", None)  # as another process begins
        take_card(tmp_path)
        take_card(tmp_path)  # its next cell
        locks_of_others.append(session.card)
    assert three_cards == [0, 1, 2]
    monkeypatch.setattr(session, "card", None)
    take_card(tmp_path)
    assert three_cards == [0, 1, 2], "all are taken: the first is shared"
    locks_of_others[1].release()  # its process has ended
    take_card(tmp_path)
    assert three_cards == [0, 1, 2, 1]
