"""A result depends on nothing that its key does not hold, and what the machine refuses is said."""

import errno
import os
import shutil
import subprocess
import sys
import time

import pandas as pd
import pytest
import torch
from conftest import composed, tiny

from benchmarks.core import environment, files
from benchmarks.core.errors import BadInput
from benchmarks.core.files import atomic_file, atomic_folder
from benchmarks.core.session import Session, in_words
from benchmarks.core.store import ROOT, write_tensors
from benchmarks.reports.rows import cell
from benchmarks.results import records
from benchmarks.results.columns import BY_NAME, is_busy, is_unsteady
from benchmarks.stages import faster_precision, prepare
from metrics import speed

CPU = torch.device("cpu")


# --- variables of the environment


@pytest.mark.parametrize(
    "name, value",
    [("WORLD_SIZE", "2"), ("NVIDIA_TF32_OVERRIDE", "1"), ("ONEDNN_DEFAULT_FPMATH_MODE", "BF16")],
)
def test_what_changes_numbers_or_waits_for_others_is_refused(monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    with pytest.raises(BadInput, match=f"{name} is set"):
        environment.refuse_foreign_settings()


def test_settings_of_a_launcher_are_taken_out_and_named(monkeypatch, capsys):
    for name in ("ACCELERATE_DYNAMO_BACKEND", "RANK", "WORLD_SIZE"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setattr(environment, "session", Session())
    environment.refuse_foreign_settings()
    assert not {"ACCELERATE_DYNAMO_BACKEND", "RANK", "WORLD_SIZE"} & set(os.environ)
    line = "not used, from the environment: ACCELERATE_DYNAMO_BACKEND, RANK, WORLD_SIZE"
    assert line in capsys.readouterr().out


def test_several_processes_of_which_one_was_started_are_refused(monkeypatch):
    """As `accelerate launch --num_processes 2` does without two GPUs: it would count as two."""
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    monkeypatch.setattr(environment, "session", Session())
    monkeypatch.setenv("MASTER_PORT", "29500")
    with pytest.raises(BadInput, match=r"started one, .* add --multi_gpu"):
        environment.refuse_foreign_settings()
    monkeypatch.delenv("MASTER_PORT")
    environment.refuse_foreign_settings()
    assert "ACCELERATE_MIXED_PRECISION" not in os.environ
    monkeypatch.setenv("MASTER_PORT", "29500")
    environment.refuse_foreign_settings()  # it says nothing by itself


def test_a_launcher_that_would_divide_the_model_is_refused(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "false")
    environment.refuse_foreign_settings()
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(BadInput, match="ACCELERATE_USE_FSDP is set: models that are divided"):
        environment.refuse_foreign_settings()


# --- the faster precision


def multiply(monkeypatch, *, bf16: float, fp32: float) -> None:
    """Makes up the speed of matrix products."""
    rates = {torch.bfloat16: bf16, torch.float32: fp32}
    monkeypatch.setattr(faster_precision.speed, "product_flops", lambda device: rates)


@pytest.fixture
def timed(monkeypatch):
    """Makes up the seconds that an image takes by precision; returns which steps were timed."""
    steps = []

    def state(model, cfg, precision, device):
        return precision

    def set_seconds(**of_an_image):
        def seconds(precision, data, images, device):
            steps.append((precision, images))
            return of_an_image[precision] * images

        monkeypatch.setattr(faster_precision, "_seconds", seconds)
        return steps

    monkeypatch.setattr(faster_precision, "_state", state)
    multiply(monkeypatch, bf16=1.0, fp32=1.0)
    return set_seconds


class NoData:
    """Latents that nothing looks at."""

    def to(self, device):
        return self


@pytest.mark.parametrize(
    "bf16, fp32, faster",
    [(0.01, 0.03, "bf16"), (0.03, 0.01, "fp32"), (0.0105, 0.01, "bf16")],
    ids=["fast", "slow", "a tie is not left to chance"],
)
def test_the_faster_precision_is_taken_kept_and_printed(
    tmp_path, timed, capsys, bf16, fp32, faster
):
    timed(bf16=bf16, fp32=fp32)
    cfg, file = composed("size=xs"), tmp_path / f"{faster}{bf16}.json"
    assert faster_precision.faster_precision(None, NoData(), cfg, CPU, file) == faster
    assert f"train.precision={faster}" in capsys.readouterr().out
    steps = timed(bf16=fp32, fp32=bf16)
    before = len(steps)
    assert faster_precision.faster_precision(None, NoData(), cfg, CPU, file) == faster
    assert len(steps) == before, "another run of this machine measures nothing"


def test_a_slow_machine_times_few_images(tmp_path, timed):
    steps = timed(bf16=3.0, fp32=2.0)
    faster_precision.faster_precision(None, NoData(), composed(), CPU, tmp_path / "x.json")
    assert {images for _, images in steps} == {faster_precision.FEW}


def test_a_step_in_bf16_that_takes_for_ever_is_taken_once(tmp_path, timed):
    steps = timed(bf16=30.0, fp32=0.2)
    file = tmp_path / "x.json"
    assert faster_precision.faster_precision(None, NoData(), composed(), CPU, file) == "fp32"
    assert steps == [("fp32", faster_precision.FEW), ("bf16", faster_precision.FEW)]


def test_where_products_in_bf16_are_hopeless_no_step_is_taken(tmp_path, timed, monkeypatch, capsys):
    """One step of a large network would take minutes there."""
    steps = timed(bf16=0.1, fp32=0.1)
    multiply(monkeypatch, bf16=1e9, fp32=1.4e11)
    file, cfg = tmp_path / "x.json", composed()
    assert faster_precision.faster_precision(None, NoData(), cfg, CPU, file) == "fp32"
    assert steps == []
    assert "takes 1.4e+02 times as long in bf16" in capsys.readouterr().out
    precision, line = faster_precision.faster_sampling(None, None, None, CPU, tmp_path / "y.json")
    assert precision == "fp32" and "a matrix product" in line


@pytest.mark.parametrize("bf16, fp32, faster", [(0.01, 0.03, "bf16"), (0.5, 0.01, "fp32")])
def test_the_faster_precision_of_sampling_is_taken_and_kept(
    tmp_path, monkeypatch, bf16, fp32, faster
):
    calls = []

    def seconds(model, space, data, config, device):
        calls.append((config.precision, config.batch))
        return {"bf16": bf16, "fp32": fp32}[config.precision] * config.batch

    multiply(monkeypatch, bf16=1.0, fp32=1.0)
    monkeypatch.setattr(faster_precision, "seconds_of_a_batch", seconds)
    call = (tiny("dit"), None, None, CPU, tmp_path / "x.json")
    precision, line = faster_precision.faster_sampling(*call)
    assert precision == faster and f"sample_precision={faster}" in line
    slow = 2 * max(bf16, fp32) * 8 > faster_precision.LONGEST
    assert {batch for _, batch in calls} == ({2} if slow else {2, 16})
    before = len(calls)
    assert faster_precision.faster_sampling(*call)[0] == faster and len(calls) == before


@pytest.mark.parametrize(
    "overrides, expected",
    [
        (["train.precision=fp32"], "fp32"),
        (["train.precision=fp32", "sample_precision=bf16"], "bf16"),
        (["train.precision=auto"], "measured"),
    ],
)
def test_who_pins_the_precision_of_training_means_both(tmp_path, monkeypatch, overrides, expected):
    monkeypatch.setattr(prepare, "faster_precision", lambda *_: "bf16")
    monkeypatch.setattr(prepare, "faster_sampling", lambda *_: ("measured", ""))
    tiny_data = ["data.image_size=16", "data.train_images=40", "data.reference_images=10"]
    cfg = composed(
        *tiny_data, "num_samples=10", "features=local", f"cache_dir={tmp_path}", *overrides
    )
    assert {config.precision for config in prepare.prepare(cfg).unguided} == {expected}


@pytest.mark.alone
def test_the_ceiling_is_that_of_the_best_type_and_measured_in_seconds():
    began = time.perf_counter()
    ceiling = speed.ceiling_flops(CPU)
    assert time.perf_counter() - began < 20
    a = torch.randn(512, 512)
    _, seconds = speed.timed(lambda: [a @ a for _ in range(20)], CPU)
    assert ceiling > 0.5 * 20 * 2 * 512**3 / seconds


# --- other programs


def test_other_programs_are_noticed_while_something_is_timed():
    watch = speed.OtherPrograms(CPU)
    busy = "import time\nend = time.time() + 1.5\nwhile time.time() < end: pass"
    cores = len(os.sched_getaffinity(0))
    others = [subprocess.Popen([sys.executable, "-c", busy]) for _ in range(cores)]
    time.sleep(1.5)
    share = watch.share()
    for other in others:
        other.wait()
    assert share is not None and share > 0.4


def test_a_moment_is_too_short_to_say():
    assert speed.OtherPrograms(CPU).share() is None


@pytest.mark.parametrize("others_hold, share", [(0, 0.0), (40, 0.4)])
def test_other_programs_on_a_gpu_are_known_by_the_memory_they_hold(monkeypatch, others_hold, share):
    ours, whole = 30, 100
    free = whole - ours - others_hold
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (free * 2**30, whole * 2**30))
    own = ours * 2**30 - speed.OVERHEAD
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: own)
    assert speed.others_gpu(torch.device("cuda")) == pytest.approx(share)
    assert speed.others_gpu(CPU) is None


def test_seconds_beside_other_programs_are_marked():
    quiet = {"others_cpu": 0.02, "others_gpu": float("nan"), "train_others_cpu": None}
    assert not any(is_busy(quiet, name) for name in BY_NAME)
    on_a_gpu = quiet | {"others_gpu": 0.3}
    marked = [name for name in BY_NAME if is_busy(on_a_gpu, name)]
    assert marked == ["seconds_per_image", "images_per_second", "latency_seconds"]
    assert is_busy(quiet | {"train_others_cpu": 0.5}, "train_seconds")
    assert not is_busy(on_a_gpu, "fd_generator")


def test_repeats_that_lie_far_apart_are_marked():
    assert speed.spread([1.0, 1.3, 1.1, 1.2, 5.0]) == pytest.approx(0.2)
    assert speed.spread([1.0, 9.0, 9.0]) is None, "too few to say"
    steady, shaken = ({"batch_seconds_spread": spread} for spread in (0.05, 0.5))
    assert not any(is_unsteady(steady, name) for name in BY_NAME)
    marked = [name for name in BY_NAME if is_unsteady(shaken, name)]
    assert marked == ["seconds_per_image", "images_per_second"]
    assert not is_unsteady({"batch_seconds_spread": float("nan")}, "seconds_per_image")
    row = pd.Series(shaken | {"seconds_per_image": 0.25, "latency_seconds": 0.5})
    assert cell(row, "seconds_per_image") == "0.25 (unsteady)"
    assert cell(row, "latency_seconds") == 0.5


def test_memory_that_torch_cannot_have_is_foreseen():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60)
    assert in_words(caught.value).startswith("not enough memory: ")
    assert "not foreseen" in in_words(RuntimeError("sizes do not match"))


# --- files


def test_what_dead_processes_left_goes_and_what_others_make_stays(tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    machine = files._machine()
    names = {
        f".a.json.{machine}.{dead.pid}.tmp": False,
        f".b.{machine}.{dead.pid}.old": False,
        f".a.json.{machine}.{os.getpid()}.tmp": True,
        f".a.json.elsewhere.{dead.pid}.tmp": True,
        f".old.json.elsewhere.{dead.pid}.tmp": False,  # of a week ago
        ".hidden": True,
    }
    for name in names:
        (tmp_path / name).mkdir() if name.endswith("old") else (tmp_path / name).touch()
        if name.startswith(".old"):
            os.utime(tmp_path / name, (0, 0))
    with atomic_file(tmp_path / "new") as path:
        path.write_text("x")
    assert {name: (tmp_path / name).exists() for name in names} == names


def test_a_cache_can_be_read_by_whoever_may_read_new_files(tmp_path):
    (tmp_path / "plain").touch()
    write_tensors(tmp_path / "x.safetensors", "key", {"a": torch.zeros(1)})
    modes = {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()}
    assert modes == {(tmp_path / "plain").stat().st_mode & 0o777}


@pytest.mark.parametrize("atomic", [atomic_file, atomic_folder])
def test_a_full_disk_is_one_foreseen_line_whatever_a_library_raises(
    tmp_path, monkeypatch, capsys, atomic
):
    usage = shutil.disk_usage(tmp_path)._replace(free=0)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)

    def write():
        with atomic(tmp_path / "x"):
            raise RuntimeError("PytorchStreamWriter failed writing file data/0")

    ended = Session()
    ended.guard(write)
    (line,) = ended.errors
    assert line.startswith(f"{tmp_path / 'x'}: {os.strerror(errno.ENOSPC)}; make room")
    assert not list(tmp_path.iterdir())


def test_a_folder_with_results_of_someone_else_is_refused(tmp_path):
    records.refuse_foreign(tmp_path / "new")
    (tmp_path / "results.csv").write_text("mine")
    with pytest.raises(BadInput, match=r"holds results\.csv, but no records of this suite"):
        records.refuse_foreign(tmp_path)
    (tmp_path / "records").mkdir()
    (tmp_path / "records" / "1.json").write_text('{"temperature": 20}')
    (tmp_path / "results.json").write_text('{"mine": 1}')
    with pytest.raises(BadInput, match="no records of this suite"):
        records.refuse_foreign(tmp_path)
    (tmp_path / "records" / "2.json").write_text('{"row": {}}')
    records.refuse_foreign(tmp_path)


@pytest.mark.parametrize("missing, encoding", [("HOME", "cp1252"), ("PATH", "ascii")])
def test_a_command_needs_no_home_no_git_and_no_locale(missing, encoding):
    """Without PATH there is no git to be found."""
    environment = {"HOME": "/nonexistent", "PATH": os.environ["PATH"], "LC_ALL": "C"}
    environment |= {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}  # else Python mends it
    environment |= {"PYTHONIOENCODING": encoding}
    del environment[missing]
    call = [sys.executable, "-m", "benchmarks", "report", "/nowhere/\u00e9"]
    done = subprocess.run(call, cwd=ROOT, env=environment, capture_output=True, text=True)
    (line,) = done.stderr.splitlines()
    assert done.returncode == 1 and line.startswith("latentbench: ") and "nowhere" in line
