"""A cell on several processes: the same losses and the same samples as on one."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import pandas as pd
import pytest
import torch
from benches import TINY, run, start
from conftest import FAMILIES, random_batch, rng, tiny
from safetensors.torch import load_file

from benchmarks.core import team
from benchmarks.core.errors import BadInput, PeerLost, raise_if_stopped
from benchmarks.core.session import Session
from benchmarks.core.store import ROOT
from benchmarks.run import refuse_within_a_team

BENCH = ["experiment=smoke", "name=team", "steps=[2,16]", *TINY, "train.precision=fp32"]
BENCH += ["data.reference_images=40", "num_samples=40", "train.budget=40", "train.batch=8"]
BENCH += ["model.lr=1e-3"]  # sums round otherwise in two processes, and high rates enlarge that

TORCHRUN = ["torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
ACCELERATE = ["accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
LAUNCHERS = {"torchrun": TORCHRUN, "accelerate launch": ACCELERATE}


def launched(
    folder: Path,
    *overrides: str,
    launcher: Sequence[str] = TORCHRUN,
    program: Sequence[str] = ("-m", "benchmarks"),
) -> subprocess.Popen:
    """A bench on two processes of this machine."""
    call = [sys.executable, "-m", *launcher, *program, "run", "device=cpu"]
    call += [f"cache_dir={folder}/cache", f"results_dir={folder}/results", *overrides]
    return subprocess.Popen(
        call, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=os.environ
    )


def ended(process: subprocess.Popen) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


def losses(folder: Path) -> list[float]:
    """The loss log of the one training of a bench."""
    (path,) = folder.glob("cache/cells/*/train.json")
    return [row[2] for row in json.loads(path.read_text())["log"]]


def said(err: str) -> list[str]:
    """The lines of the suite's own on stderr."""
    return [line for line in err.splitlines() if line.startswith("latentbench: ")]


def without_samples(trained: Path, folder: Path) -> None:
    """A copy of a bench's cache that holds the weights, but has to sample."""
    shutil.copytree(trained / "cache", folder / "cache")
    for path in folder.glob("cache/cells/*/samples-*.safetensors"):
        path.unlink()


def images(folder: Path) -> dict[str, torch.Tensor]:
    """The samples of a bench, by their names."""
    paths = sorted(folder.glob("cache/cells/*/samples-*.safetensors"))
    return {path.name: load_file(path)["images"] for path in paths}


# --- a part of a batch


@pytest.mark.parametrize("family", FAMILIES)
def test_the_parts_of_a_batch_have_the_loss_and_gradients_of_the_whole(family):
    model, batch = tiny(family).train(), random_batch(6)
    whole = model(batch, rng=rng())
    (wanted,) = torch.autograd.grad(whole, [next(model.parameters())])
    parts = [model(batch, rng=rng(), rows=rows) for rows in (slice(0, 3), slice(3, 6))]
    loss = torch.stack(parts).mean()
    (gradient,) = torch.autograd.grad(loss, [next(model.parameters())])
    torch.testing.assert_close(loss, whole, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(gradient, wanted, rtol=1e-4, atol=1e-6)
    assert parts[0] != parts[1], "they are of other images"


def test_a_batch_that_cannot_be_divided_is_refused():
    assert [team.rows(6, part, 3) for part in range(3)] == [slice(0, 2), slice(2, 4), slice(4, 6)]
    with pytest.raises(BadInput, match=r"train.batch=6 .* give a multiple of 4"):
        team.rows(6, 0, 4)


@pytest.mark.parametrize("word", ["hydra/launcher=joblib", "device=cuda:1"])
def test_what_would_start_processes_or_choose_a_card_within_a_team_is_refused(word, monkeypatch):
    refuse_within_a_team([word])  # by itself it may
    monkeypatch.setattr(team, "size", lambda: 2)
    refuse_within_a_team(["model=dit", "device=cuda", "hydra/launcher=basic"])
    with pytest.raises(BadInput, match=word):
        refuse_within_a_team(["model=dit", word])


def test_more_processes_than_cards_are_refused(monkeypatch):
    for name in (*team.NEEDED, "LOCAL_WORLD_SIZE"):
        monkeypatch.setenv(name, "2")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(BadInput, match="2 processes on this machine and 1 GPU"):
        team.start()


def test_after_an_error_that_the_others_did_not_have_the_run_ends(monkeypatch, capsys):
    """It is raised where it can be recorded; what all would do together next is not begun."""
    monkeypatch.setattr(team, "size", lambda: 2)
    monkeypatch.setattr(team.dist, "broadcast_object_list", lambda *args, **options: None)
    monkeypatch.setattr(team, "session", Session())
    with pytest.raises(ZeroDivisionError):
        team.together(0, lambda own: 1 / own)
    with pytest.raises(SystemExit) as ended_by:
        team.together(1, lambda own: pytest.fail("begun"))
    assert ended_by.value.code == 1
    assert "all 2 processes end" in capsys.readouterr().err


# --- a whole cell


@pytest.fixture(scope="module")
def one(tmp_path_factory) -> Path:
    """A bench of a model that is trained by one process."""
    folder = tmp_path_factory.mktemp("one")
    done = run(folder, *BENCH, "model=dit")
    assert done.code == 0, done.err
    return folder


def test_passes_of_a_batch_train_as_one(one, tmp_path):
    """`train.accumulate` is of the machine, as its memory is: the training has the same name."""
    done = run(tmp_path, *BENCH, "model=dit", "train.accumulate=4")
    assert done.code == 0, done.err
    assert losses(tmp_path) == pytest.approx(losses(one), abs=1e-4)
    trainings = [[path.name for path in (f / "cache" / "cells").iterdir()] for f in (one, tmp_path)]
    assert trainings[0] == trainings[1]


@pytest.mark.long
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_two_processes_train_sample_and_score_as_one(one, tmp_path, launcher):
    process = launched(tmp_path, *BENCH, "model=dit", launcher=LAUNCHERS[launcher])
    code, out, err = ended(process)
    assert code == 0, err[-3000:]
    assert out.count("seconds spent:") == 1, "the leader alone prints"
    assert losses(tmp_path) == pytest.approx(losses(one), abs=1e-4)
    files = [folder / "results/team/results.csv" for folder in (one, tmp_path)]
    # rows of one second may stand in either order
    tables = [pd.read_csv(file).sort_values("steps") for file in files]
    for name in ("train_processes", "sample_processes"):
        assert [table[name].unique().tolist() for table in tables] == [[1], [2]]
    each = tables[1].train_images_per_second_each
    assert each.tolist() == pytest.approx((tables[1].train_images_per_second / 2).tolist())
    for name in ("fd_generator", "fd", "kid", "recall", "fd_floor_real", "label_accuracy"):
        assert tables[1][name].to_list() == pytest.approx(tables[0][name].to_list(), rel=0.02)


@pytest.mark.long
@pytest.mark.parametrize("model", ["unet", "ar", "ar_any", "masked"])
def test_the_precision_is_measured_by_one_process_of_two(model, tmp_path):
    """With the settings that a user has who sets none, and more than one pass of a batch."""
    options = [*BENCH, f"model={model}", "train.precision=auto", "train.accumulate=2"]
    code, out, err = ended(launched(tmp_path, *options))
    assert code == 0 and out.count("train.precision=") == 1, err[-3000:]
    done = run(tmp_path / "one", *options)
    assert done.code == 0, done.err


@pytest.mark.long
def test_two_processes_sample_the_same_images_of_the_same_weights(one, tmp_path):
    before = images(one)
    without_samples(one, tmp_path)
    code, _, err = ended(launched(tmp_path, *BENCH, "model=dit"))
    assert code == 0, err[-3000:]
    after = images(tmp_path)
    assert before.keys() == after.keys() and len(before) == 2
    for name, wanted in before.items():
        difference = (after[name].int() - wanted.int()).abs()
        assert difference.max() <= 1, "one level is rounding"


@pytest.mark.long
@pytest.mark.parametrize("first, second", [(launched, start), (start, launched)])
def test_a_training_that_was_killed_goes_on_with_another_number_of_processes(
    one, tmp_path, first, second
):
    options = [*BENCH, "model=dit", "train.checkpoint_seconds=0"]
    process, deadline = first(tmp_path, *options), time.time() + 200
    while not list(tmp_path.glob("cache/cells/*/checkpoint.pt")) and time.time() < deadline:
        time.sleep(0.01)
    process.terminate()
    ended(process)
    code, out, err = ended(second(tmp_path, *options))
    assert code == 0, err[-3000:]
    assert "train: resuming" in out
    assert losses(tmp_path) == pytest.approx(losses(one), abs=1e-4)


def process_of(rank: int, folder: Path) -> int:
    """The number of the process of a team that works in a folder."""
    for place in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            variables = (place / "environ").read_bytes().split(b"\0")
            call = (place / "cmdline").read_bytes()
            if f"RANK={rank}".encode() in variables and str(folder).encode() in call:
                return int(place.name)
    raise AssertionError(f"process {rank} is not there")


@pytest.mark.long
@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_process_of_a_team_is_one_line_and_no_failed_training(tmp_path, rank):
    options = [*BENCH, "model=dit", "train.checkpoint_seconds=0", "train.budget=400"]
    process, deadline = launched(tmp_path, *options), time.time() + 200
    while not list(tmp_path.glob("cache/cells/*/checkpoint.pt")) and time.time() < deadline:
        time.sleep(0.01)
    os.kill(process_of(rank, tmp_path), signal.SIGKILL)
    code, _, err = ended(process)
    assert code != 0 and "not foreseen" not in err
    assert set(said(err)) <= {
        "latentbench: another process of this run ended; the same command goes on",
        "latentbench: stopped by SIGTERM; the same command goes on",  # torchrun was quicker
    }
    assert not list(tmp_path.glob("results/*/records/*.json"))


def test_a_broken_connection_is_no_fault_of_the_training():
    error = RuntimeError(
        "[/pytorch/gloo/transport/tcp/pair.cc:553] Connection closed by peer [::1]"
    )
    with pytest.raises(PeerLost):
        Session().guard(_raise, error)
    with pytest.raises(PeerLost):
        raise_if_stopped(error)
    session = Session()
    session.guard(_raise, RuntimeError("the sizes of tensors must match"))
    assert len(session.errors) == 1, "anything else is"


def _raise(error: Exception) -> None:
    raise error


def test_who_does_not_see_the_leader_s_files_says_so(monkeypatch):
    """It would make anew what the leader has found."""
    monkeypatch.setattr(team, "size", lambda: 2)
    monkeypatch.setattr(team, "leads", lambda: False)
    with pytest.raises(BadInput, match="cache_dir must be on a disk that all processes share"):
        team.together(None, print)


@pytest.mark.long
def test_what_cannot_be_is_one_line_from_two_processes(tmp_path):
    code, _, err = ended(launched(tmp_path, *BENCH, "model=dit", "train.batch=5"))
    lines = said(err)
    assert code == 1 and len(lines) == 1, err
    assert "train.batch=5 cannot be divided among 2 processes" in lines[0]


BREAKS = """\
import os
from benchmarks.__main__ import main
from benchmarks.stages import jointly

def breaks(*args, **options):
    raise ValueError("made up")

if os.environ["RANK"] == "0":
    jointly.sample_images = breaks
main()
"""


OTHERWISE = """\
import os, sys
import benchmarks.run
from benchmarks.__main__ import main
from benchmarks.stages.checkpoint import Checkpoints

finished = Checkpoints.finished

def others(self, generator):
    found = finished(self, generator)
    next(generator.parameters()).data.add_(1)
    return found

if os.environ["RANK"] == "1":
    if "arguments" in sys.argv[0]:
        sys.argv.append("seed=7")
    elif "code" in sys.argv[0]:
        benchmarks.run.code_digest = lambda: "of a file that was edited there"
    else:
        Checkpoints.finished = others
main()
"""


@pytest.mark.long
@pytest.mark.parametrize("other", ["arguments", "code"])
def test_processes_that_were_started_unlike_end_in_one_line(tmp_path, other):
    (tmp_path / f"{other}.py").write_text(OTHERWISE)
    process = launched(tmp_path, *BENCH, "model=dit", program=[str(tmp_path / f"{other}.py")])
    code, _, err = ended(process)
    lines = said(err)
    assert code == 1 and len(lines) == 1, err
    assert "processes see different arguments or code" in lines[0]
    assert not (tmp_path / "results").exists()


@pytest.mark.long
def test_processes_with_different_trained_weights_mix_no_samples(one, tmp_path):
    """As on two machines, each of which has trained the cell in a cache of its own."""
    without_samples(one, tmp_path)
    (tmp_path / "weights.py").write_text(OTHERWISE)
    process = launched(tmp_path, *BENCH, "model=dit", program=[str(tmp_path / "weights.py")])
    code, _, err = ended(process)
    assert code == 1 and "processes see different weights" in err, err
    assert not list(tmp_path.glob("cache/cells/*/samples-*.safetensors"))


def test_what_stops_one_process_stops_all(monkeypatch, capsys):
    """Here one that follows: it says why, and the leader is told by the sum of faults."""
    monkeypatch.setattr(team, "session", Session())
    monkeypatch.setattr(team, "rank", lambda: 1)
    assert team.alike(lambda: 3) == 3
    with pytest.raises(BadInput, match="a process could not do as the others"):
        team.alike(lambda: 1 / 0)
    assert "process 1: ZeroDivisionError" in capsys.readouterr().err
    monkeypatch.setattr(team, "rank", lambda: 0)
    with pytest.raises(ZeroDivisionError):
        team.alike(lambda: 1 / 0)
    monkeypatch.setattr(team, "anywhere", lambda fact: True)
    with pytest.raises(BadInput):
        team.alike(lambda: 3)


@pytest.mark.long
def test_an_error_of_the_first_process_alone_is_a_row_and_ends_all(one, tmp_path):
    without_samples(one, tmp_path)
    (tmp_path / "breaks.py").write_text(BREAKS)
    process = launched(tmp_path, *BENCH, "model=dit", program=[str(tmp_path / "breaks.py")])
    code, _, err = ended(process)
    assert code == 1 and "all 2 processes end" in err, err[-3000:]
    rows = pd.read_csv(tmp_path / "results/team/results.csv")
    assert rows.status.tolist() == ["failed"], "the second was not begun"
    assert launched_again(tmp_path) == 0


def launched_again(folder: Path) -> int:
    """The exit code of the same bench, with nothing broken."""
    return ended(launched(folder, *BENCH, "model=dit"))[0]
