"""The locks by which processes share every cache."""

import multiprocessing
import os
import time
from pathlib import Path

import filelock
import pytest

from benchmarks.core import locks
from benchmarks.core.errors import OutOfTime
from benchmarks.core.session import session


def make(folder: Path, seconds: float) -> None:
    """In a process of its own: make the artefact, unless another process does."""
    path = folder / "artefact"

    def made() -> str:
        time.sleep(seconds)
        (folder / f"made by {os.getpid()}").touch()
        path.write_text("done")
        return "done"

    found = locks.load_or_make(path, lambda: path.read_text() if path.exists() else None, made)
    assert found == "done"


def begun(folder: Path, seconds: float) -> multiprocessing.Process:
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=make, args=(folder, seconds), daemon=True)
    process.start()
    return process


def holder_of(folder: Path) -> multiprocessing.Process:
    """A process that holds the lock of the artefact, and will not let it go."""
    process = begun(folder, 300)
    while not list(folder.glob("*.lock")):
        assert process.is_alive(), "it ended before it had the lock"
        time.sleep(0.01)
    return process


@pytest.mark.long
def test_of_several_processes_one_makes_an_artefact(tmp_path):
    processes = [begun(tmp_path, 0.5) for _ in range(4)]
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0] * 4
    assert len(list(tmp_path.glob("made by *"))) == 1
    assert not list(tmp_path.glob("*.lock"))


@pytest.mark.long
def test_a_killed_holder_leaves_the_lock_to_the_next(tmp_path):
    holder = holder_of(tmp_path)
    holder.kill()
    holder.join()
    began = time.monotonic()
    make(tmp_path, 0)
    assert time.monotonic() - began < locks.LEASE / 2, "its death is noticed, not waited for"


def test_a_holder_on_another_machine_that_shows_no_life_loses_the_lock(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "LEASE", 1.0)
    with locks.only_one(tmp_path / "artefact"):
        (marker,) = tmp_path.glob("*.lock")
        abandoned = marker.read_text()
    # as a machine that lost its power leaves it: another's name, and nobody renews it
    marker.write_text(abandoned.replace(abandoned.splitlines()[1], "elsewhere"))
    with locks.only_one(tmp_path / "artefact"):
        pass
    assert not marker.exists()


@pytest.mark.parametrize("left", ["by another machine", "empty"])
def test_an_abandoned_lock_is_free_on_a_file_system_that_exchanges_no_names(
    tmp_path, monkeypatch, left
):
    """As network file systems are. An empty lock is what a power cut may leave on any."""
    monkeypatch.setattr(filelock._soft, "exchange_names", lambda *names: False)
    monkeypatch.setattr(locks, "LEASE", 0.3)
    monkeypatch.setattr(locks, "PATIENCE", 0.1)
    with locks.only_one(tmp_path / "artefact"):
        (marker,) = tmp_path.glob("*.lock")
        abandoned = marker.read_text()
    until = time.monotonic() + 20
    for taken in (False, True):  # by whoever waits, and by whoever only looks now and then
        elsewhere = abandoned.replace(abandoned.splitlines()[1], "elsewhere")
        marker.write_text(elsewhere if left == "by another machine" else "")
        if not taken:
            with locks.only_one(
                tmp_path / "artefact", out_of_time=lambda: time.monotonic() > until
            ):
                pass
        while taken and not locks.make_if_free(tmp_path / "artefact", lambda: None, lambda: "made"):
            assert time.monotonic() < until, "nobody freed it"
            time.sleep(0.05)
        assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("links", [True, False], ids=["links", "no links"])
def test_a_lock_that_was_taken_in_between_is_put_back(tmp_path, monkeypatch, links):
    def refuse(*paths):
        raise PermissionError("this file system has no links")

    if not links:
        monkeypatch.setattr(os, "link", refuse)
    marker = tmp_path / "artefact.lock"
    marker.write_text("abandoned")
    judged = locks._state(marker)
    marker.write_text("of a living process")
    locks._remove(marker, judged)
    assert marker.read_text() == "of a living process"
    locks._remove(marker, locks._state(marker))
    assert not list(tmp_path.iterdir())


def test_a_lock_that_is_renewed_is_left_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "LEASE", 0.3)
    monkeypatch.setattr(locks, "PATIENCE", 0.1)
    holder = locks._lease(tmp_path / "artefact")
    holder.acquire()
    until = time.monotonic() + 1.5
    while time.monotonic() < until:
        locks._free_abandoned(tmp_path / "artefact.lock")
        time.sleep(0.05)
    assert (tmp_path / "artefact.lock").exists()
    holder.release()
    assert not list(tmp_path.iterdir())


@pytest.mark.long
def test_waiting_ends_when_the_time_is_up(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "PATIENCE", 0.1)
    holder = holder_of(tmp_path)
    with (
        pytest.raises(OutOfTime, match="another process makes artefact"),
        locks.only_one(tmp_path / "artefact", out_of_time=lambda: True),
    ):
        pass
    assert "waiting for another process, which makes artefact" in session.printed
    holder.kill()
    holder.join()
    assert not (tmp_path / "artefact").exists()
