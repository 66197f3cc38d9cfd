"""Interruptions and damage: whatever happened before, the next run ends with the rows of an
unbroken one.

`make test-faults` has sixty kills and damages every file in several ways; the ordinary tests have
a few of each.
"""

import multiprocessing
import os
import random
import resource
import runpy
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from benches import TINY, _bench, run
from conftest import ALL
from preloaded import IMPORTED
from tally import tried

from benchmarks.core.store import ROOT

pytestmark = pytest.mark.usefixtures("no_figures")

KILLS = 60
NOBODY = 65534  # the user who owns nothing
LONGEST = 12.0  # seconds after its first line within which a run is killed
BENCH = ["-m", "experiment=smoke", "name=faults", "model=dit,ar", "steps=[2,16]"]
BENCH += [*TINY, "train.budget=60", "train.checkpoint_seconds=0", "train.snapshots=[0.5]"]
BENCH += ["tune=default", "tune.guidance=[1,2]", "tune.num_samples=16"]
BENCH += ["tune.steps=[2]"]
# what differs from run to run by nature
MEASURED = ("seconds", "per_second", "memory", "utilisation", "others_cpu", "started_at")


def rows(folder: Path) -> pd.DataFrame:
    """results.csv but for what a clock or the machine made, sorted."""
    table = pd.read_csv(folder / "results" / "faults" / "results.csv", dtype=str)
    kept = [name for name in table if not any(word in name for word in MEASURED)]
    return table[kept].sort_values("run_id", ignore_index=True)


def left_over(folder: Path) -> list[Path]:
    """What a dead process left unfinished."""
    patterns = ("*.tmp", "*.old", "*.lock", "outcomes")
    return [path for pattern in patterns for path in folder.rglob(pattern)]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """A folder in which the bench ran once, undisturbed."""
    folder = tmp_path_factory.mktemp("unbroken")
    ended = run(folder, *BENCH)
    assert ended.code == 0, ended.err
    return folder


def check_like(unbroken: Path, folder: Path) -> None:
    """Run the bench in `folder` to its end: its rows are those of an unbroken run."""
    ended = run(folder, *BENCH)
    assert ended.code == 0, ended.err
    pd.testing.assert_frame_equal(rows(folder), rows(unbroken))
    assert not left_over(folder)


# --- processes


def _in_process(
    arguments: list[str], log: Path, limit: tuple[int, int] | None, plain_user: bool
) -> None:
    """In the new process: a command of the suite, its output in the file `log`."""
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(file, stream)
    if limit:
        resource.setrlimit(limit[0], (limit[1], limit[1]))
    if plain_user and os.getuid() == 0:  # root may do everything, whatever a file says
        os.environ["HOME"] = "/nonexistent"
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)
    sys.argv = ["python -m benchmarks", *arguments]
    runpy.run_module("benchmarks", run_name="__main__", alter_sys=False)


def begin(folder: Path, log: Path, limit: tuple[int, int] | None = None, plain_user: bool = False):
    """The bench in a process of its own, of which the libraries are loaded already."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(IMPORTED)
    arguments = _bench(folder, tuple(BENCH))
    process = context.Process(target=_in_process, args=(arguments, log, limit, plain_user))
    process.start()
    return process


def wait_for_text(log: Path, process) -> None:
    """Until the run has printed something, and handles signals."""
    while process.is_alive() and not (log.exists() and log.stat().st_size):
        time.sleep(0.01)


def end(process, kind: signal.Signals, log: Path) -> None:
    """Send a signal, which must end the process soon, and in one line where it can say one."""
    os.kill(process.pid, kind)
    process.join(60)
    assert not process.is_alive(), f"{kind} did not end it"
    text = log.read_text()
    assert "Traceback" not in text, text[-2000:]
    if kind != signal.SIGKILL and process.exitcode != 0:  # it may just have been done
        assert process.exitcode == 128 + kind and text.count("latentbench: stopped by") == 1


DEAF = """
import os, signal, time
from benchmarks import __main__ as suite
suite.AGAIN = 0.5
class Deaf:
    def __del__(self):
        os.kill(os.getpid(), signal.SIG{})
suite.listen()
try:
    Deaf()  # what is raised in a destructor is ignored
    time.sleep(30)
except (KeyboardInterrupt, suite.Terminated) as error:
    signal.setitimer(signal.ITIMER_REAL, 0)
    print(type(error).__name__)
"""


@pytest.mark.parametrize("name, heard", [("TERM", "Terminated"), ("INT", "KeyboardInterrupt")])
def test_a_signal_that_comes_where_python_ignores_exceptions_is_heard_all_the_same(name, heard):
    call = [sys.executable, "-c", DEAF.format(name)]
    done = subprocess.run(call, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.stdout.strip(), done.stderr) == (heard, "")


@pytest.mark.long  # tests/test_bench.py has a SIGKILL, tests/test_cli.py has signals
def test_a_run_that_is_killed_again_and_again_ends_with_the_rows_of_an_unbroken_one(
    unbroken, tmp_path
):
    """At random moments, by SIGKILL, SIGTERM and Ctrl-C in turns."""
    moments = random.Random(0)
    folder, killed, attempt = tmp_path / "bench", 0, 0
    while killed < KILLS:
        kind = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)[attempt % 3]
        log, attempt = tmp_path / f"{attempt}.log", attempt + 1
        process = begin(folder, log)
        wait_for_text(log, process)
        process.join(moments.uniform(0, LONGEST))
        if not process.is_alive():  # it was done before: from nothing again
            pd.testing.assert_frame_equal(rows(folder), rows(unbroken))
            shutil.rmtree(folder)
            continue
        with tried(f"{kind.name} at a random moment"):
            end(process, kind, log)
            killed += 1
            # a copy goes on to the end; the folder itself is killed again
            left = tmp_path / f"left{killed}"  # a process looks for left-overs once in a folder
            shutil.copytree(folder, left)
            check_like(unbroken, left)
            shutil.rmtree(left)
    check_like(unbroken, folder)


@pytest.mark.long  # tests/test_data.py and tests/test_launchers.py have one lock each
@pytest.mark.parametrize("count", [2, 4])
def test_runs_that_begin_together_on_an_empty_cache_end_alike(unbroken, tmp_path, count):
    logs = [tmp_path / f"{i}.log" for i in range(count)]
    with tried(f"{count} runs begun together on an empty cache"):
        processes = [begin(tmp_path / "bench", log) for log in logs]
        for process, log in zip(processes, logs, strict=True):
            process.join(500)
            assert process.exitcode == 0, log.read_text()[-2000:]
        pd.testing.assert_frame_equal(rows(tmp_path / "bench"), rows(unbroken))
        assert not left_over(tmp_path / "bench")


KIB = 1024
SIZES = (4, 100, 400) if ALL else (100,)
LIMITS = {f"files of {size} KiB": (resource.RLIMIT_FSIZE, size * KIB) for size in SIZES}
if ALL:
    LIMITS["3 GiB of memory"] = (resource.RLIMIT_AS, 3 * KIB**3)


@pytest.mark.parametrize("limit", LIMITS.values(), ids=LIMITS)
def test_a_disk_or_a_memory_that_is_too_small_is_said_and_spoils_nothing(unbroken, tmp_path, limit):
    folder, log = tmp_path / "bench", tmp_path / "log"
    of_a_disk = limit[0] == resource.RLIMIT_FSIZE
    with tried("a full disk" if of_a_disk else "too little memory"):
        process = begin(folder, log, limit)
        process.join(300)
        text = log.read_text()
        assert process.exitcode in (0, 1) and "Traceback" not in text, text[-2000:]
        assert "not foreseen" not in text
        if of_a_disk:
            assert process.exitcode == 1 and "; make room" in text
        check_like(unbroken, folder)


# --- permissions


def open_to_all(folder: Path) -> None:
    """Whatever is in a folder can be read and written by everybody."""
    for path in [folder, *folder.rglob("*")]:
        path.chmod(0o777 if path.is_dir() else 0o666)


def close(pattern: str, folder: Path, mode: int) -> None:
    """Set the permissions of what a pattern names, and of all that is in it."""
    found = list(folder.glob(pattern))
    assert found, pattern
    for path in found:
        for one in [*path.rglob("*"), path]:
            one.chmod(mode | (0o111 if one.is_dir() and mode else 0))


# what loses its permissions, which are left, and how the next run ends: whole, or refused
PERMISSIONS = {
    "a whole cache that cannot be written": ("cache", 0o444, 0),
    "results that cannot be written": ("results/faults", 0o444, 1),
    "a cache that cannot be read": ("cache", 0, 1),
    "weights that cannot be read": ("cache/cells/*/weights.safetensors", 0, 0),
    "latents that cannot be read": ("cache/latents/*/*", 0, 0),
    "a record that cannot be read": ("results/faults/records/*", 0, 0),
}


@pytest.mark.parametrize("case", PERMISSIONS if ALL else [*PERMISSIONS][:3])
def test_files_that_may_not_be_read_or_written_are_made_again_or_named(unbroken, case):
    pattern, mode, code = PERMISSIONS[case]
    folder = Path(tempfile.mkdtemp())  # pytest's own folders are closed to other users
    try:
        shutil.copytree(unbroken, folder, dirs_exist_ok=True)
        open_to_all(folder)
        close(pattern, folder, mode)
        # something is left to do, so that everything is asked for
        next((folder / "results/faults/records").glob("*.json")).unlink()
        log = folder / "log"
        log.touch(mode=0o666)
        with tried("permissions taken away"):
            process = begin(folder, log, plain_user=True)
            process.join(120)
            text = log.read_text()
            assert process.exitcode == code and "Traceback" not in text, text[-2000:]
            assert "not foreseen" not in text
            open_to_all(folder)
            check_like(unbroken, folder)
    finally:
        shutil.rmtree(folder)


# --- damage


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path: Path) -> None:
    """One bit, in the middle."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


def zero(path: Path) -> None:
    """Up to 4 KiB, behind what may be a header."""
    data = bytearray(path.read_bytes())
    start = len(data) // 3
    data[start : start + 4096] = bytes(len(data[start : start + 4096]))
    path.write_bytes(data)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def swap(path: Path) -> None:
    """The content of another file of the same kind, where there is one."""
    others = [p for p in path.parent.parent.rglob(f"*{path.suffix}") if p != path]
    if others:
        path.write_bytes(others[0].read_bytes())


DAMAGED = {
    cut: "cut short",
    flip: "one bit flipped",
    zero: "4 KiB of zeros",
    empty: "emptied",
    swap: "another's content",
}
DAMAGES: list[Callable[[Path], None]] = [*DAMAGED] if ALL else [flip]


def artefacts(folder: Path) -> list[Path]:
    """Everything a run reads again, one of each folder unless all are asked for."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    kinds = (".npy", ".json", ".safetensors", *[".checked"] * ALL)
    files = [path for path in files if path.suffix in kinds]
    files = [path for path in files if path.name != "results.json"]  # written, never read here
    if ALL:
        return files
    return list({path.parts[-3]: path for path in files}.values())


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_noticed_and_made_again(unbroken, tmp_path, damage):
    folder = tmp_path / "bench"
    shutil.copytree(unbroken, folder)
    expected = rows(unbroken)
    for path in artefacts(folder):
        before = path.read_bytes()
        damage(path)
        if path.read_bytes() == before:
            continue
        where = f"{damage.__name__} {path.relative_to(folder)}"
        with tried(f"an artefact, {DAMAGED[damage]}"):
            ended = run(folder, *BENCH)
            assert ended.code == 0 and "Traceback" not in ended.err, f"{where}: {ended.err}"
            pd.testing.assert_frame_equal(rows(folder), expected, obj=where)


@pytest.mark.long  # tests/test_train.py damages them in one process
def test_damage_to_a_checkpoint_starts_over(unbroken, tmp_path):
    folder, log = tmp_path / "bench", tmp_path / "log"
    process = begin(folder, log)
    while process.is_alive() and not list(folder.glob("cache/cells/*/checkpoint.pt")):
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    for path in folder.glob("cache/cells/*/checkpoint.pt"):
        flip(path)
    with tried("a checkpoint, one bit flipped"):
        check_like(unbroken, folder)
