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
from safetensors.torch import load_file

from benchmarks.core.store import ROOT

BENCH = ["experiment=smoke", "name=team", "steps=[2,16]", *TINY, "train.precision=fp32"]
BENCH += ["data.reference_images=40", "num_samples=40", "train.budget=40", "train.batch=8"]
# sums round otherwise in two processes, and high rates enlarge that
BENCH += ["sample_batch=32", "model.lr=1e-3"]
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


# --- a whole cell


@pytest.fixture(scope="module")
def one(tmp_path_factory) -> Path:
    """A bench of a model that is trained by one process."""
    folder = tmp_path_factory.mktemp("one")
    done = run(folder, *BENCH, "model=dit")
    assert done.code == 0, done.err
    return folder


@pytest.mark.long  # tests/test_train.py has it for the training alone
def test_passes_of_a_batch_train_as_one(one, tmp_path):
    """`train.accumulate` is of the machine: the training has the same name."""
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
    batches = [table["sample_batch"].unique().tolist() for table in tables]
    assert batches == [[32], [20]], "each of two processes has twenty of the forty images"
    assert [table.device.str.endswith(", 2 processes").all() for table in tables] == [False, True]
    each = tables[1].train_images_per_second_each
    assert each.tolist() == pytest.approx((tables[1].train_images_per_second / 2).tolist())
    for name in ("fd_generator", "fd", "kid", "recall", "fd_floor_real", "label_accuracy"):
        assert tables[1][name].to_list() == pytest.approx(tables[0][name].to_list(), rel=0.02)


@pytest.mark.long
def test_two_processes_train_every_family_as_one(tmp_path):
    models = "unet,ar,ar_any,masked,ar_scale,uvit,dit_flowmap,ar_continuous,masked_continuous"
    options = [*BENCH, f"model={models}", "size=xs", "autoencoder.codebook_size=64"]
    code, _, err = ended(launched(tmp_path / "two", *options))
    assert code == 0, err[-3000:]
    done = run(tmp_path / "one", *options)
    assert done.code == 0, done.err
    logs = [
        {
            path.parent.name: [row[2] for row in json.loads(path.read_text())["log"]]
            for path in (tmp_path / name).glob("cache/cells/*/train.json")
        }
        for name in ("one", "two")
    ]
    assert len(logs[0]) == 9 and logs[0].keys() == logs[1].keys()
    for name, wanted in logs[0].items():
        assert logs[1][name] == pytest.approx(wanted, abs=1e-4), name


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
    # torchrun may be quicker than the connection
    kinds = ("the connection to another process of this run broke", "stopped by SIGTERM")
    lines = said(err)
    assert lines and all(line.endswith("; the same command goes on") for line in lines)
    assert all(any(kind in line for kind in kinds) for line in lines)
    assert not list(tmp_path.glob("results/*/records/*.json"))


@pytest.mark.long
def test_what_cannot_be_is_one_line_from_two_processes(tmp_path):
    code, _, err = ended(launched(tmp_path, *BENCH, "model=dit", "train.batch=5"))
    lines = said(err)
    assert code == 1 and len(lines) == 1, err
    assert "train.batch=5 cannot be divided among 2 processes" in lines[0]


def ended_as(folder: Path, name: str, program: str) -> tuple[int, str]:
    """How a bench of two processes ends that run this program: its exit code and stderr."""
    file = folder / f"{name}.py"
    file.write_text(program)
    code, _, err = ended(launched(folder, *BENCH, "model=dit", program=[str(file)]))
    return code, err


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
    code, err = ended_as(tmp_path, other, OTHERWISE)
    lines = said(err)
    assert code == 1 and len(lines) == 1, err
    assert "processes see different arguments, code or devices" in lines[0]
    assert not (tmp_path / "results").exists()


@pytest.mark.long
def test_processes_with_different_trained_weights_mix_no_samples(one, tmp_path):
    """As on two machines, each of which has trained the cell in a cache of its own."""
    without_samples(one, tmp_path)
    code, err = ended_as(tmp_path, "weights", OTHERWISE)
    assert code == 1 and "processes see different weights" in err, err
    assert not list(tmp_path.glob("cache/cells/*/samples-*.safetensors"))


@pytest.mark.long
def test_an_error_of_the_first_process_alone_is_a_row_and_ends_all(one, tmp_path):
    without_samples(one, tmp_path)
    code, err = ended_as(tmp_path, "breaks", BREAKS)
    assert code == 1 and "all 2 processes end" in err, err[-3000:]
    rows = pd.read_csv(tmp_path / "results/team/results.csv")
    assert rows.status.tolist() == ["failed"], "the second was not begun"
    assert launched_again(tmp_path) == 0


def launched_again(folder: Path) -> int:
    """The exit code of the same bench, with nothing broken."""
    return ended(launched(folder, *BENCH, "model=dit"))[0]


THROUGH = """\
import sys
import torch
from benchmarks.core import team
from benchmarks.core.settings import compose
from benchmarks.core.store import tensors_digest
from benchmarks.frozen.autoencoder import LatentSpace, load_latent_space
from benchmarks.frozen.extractors import load_extractors
from benchmarks.frozen.latents import prepare_latents
from benchmarks.images.dataset import load_dataset
from benchmarks.stages import features
from benchmarks.stages.floors import seen_through
from benchmarks.stages.through import images_through

LatentSpace.at_once = lambda self, size: 4
features.BATCH = 8
cache, cpu = sys.argv[1], torch.device("cpu")
team.start()
if team.leads():
    sizes = ["data.image_size=16", "data.train_images=40", "data.reference_images=21"]
    cfg = compose(*sizes, "features=local")
    dataset = load_dataset(cfg.data, num_samples=10, cache=cache)
    space = load_latent_space(cfg.autoencoder, dataset, cache=cache, device=cpu)
    latents = prepare_latents(dataset, space, cache=cache, device=cpu)
    images = images_through(seen_through(dataset), space, latents, cpu)
    (extractor,) = load_extractors(cfg.features)
    of_images = features.features_of(extractor, images["reference_through"], cpu)
    all_of_it = {name: torch.from_numpy(some) for name, some in images.items()}
    print("made", tensors_digest(all_of_it | {"features": of_images}), len(of_images))
    team.dismiss()
else:
    team.follow()
"""


@pytest.mark.long
def test_real_images_come_through_the_same_in_any_number_of_processes(tmp_path):
    """Bit for bit, and the features of what comes out, too."""
    program = tmp_path / "through.py"
    program.write_text(THROUGH)
    made = []
    for launcher in ([], [*TORCHRUN], [*TORCHRUN[:-1], "3"]):
        call = [sys.executable, *(["-m", *launcher] if launcher else []), str(program)]
        done = subprocess.run(
            [*call, str(tmp_path / "cache")],
            cwd=ROOT,
            text=True,
            capture_output=True,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        made += [line for line in done.stdout.splitlines() if line.startswith("made")]
    assert len(made) == 3 and len(set(made)) == 1 and made[0].endswith(" 21")
