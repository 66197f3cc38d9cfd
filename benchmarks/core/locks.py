"""Of several processes that want one artefact, on one machine or many, one makes it.

A lock is a file beside the artefact, created exclusively and renewed by its holder every ten
seconds. It is free once its holder is known to be dead, or has not renewed it for half a minute by
the clock of whoever waits. So the cache may lie on a network file system, as long as that creates
files exclusively, renames them atomically and shows changes to others within seconds. A holder that
stood still for longer may find the artefact made by another: both are the same, and each takes its
place as a whole.

filelock frees the lock of a dead holder by exchanging two names, which network file systems refuse.
There, and for a lock that a power cut left empty, `_free_abandoned` does it by renaming.
"""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from filelock import SoftFileLease, Timeout

from benchmarks.core import files
from benchmarks.core.errors import OutOfTime
from benchmarks.core.session import session

Made = TypeVar("Made")
LEASE = 30.0  # seconds without a sign of life after which a lock is free
PATIENCE = 5.0  # seconds of waiting that nobody is told of


def load_or_make(
    path: Path,
    load: Callable[[], Made | None],
    make: Callable[[], Made],
    *,
    out_of_time: Callable[[], bool] = bool,
) -> Made:
    """What `load` gives, made first by one process where it is None; the others wait for that one.

    `path` names the artefact. What is there already is read without a lock: a cache may be
    read-only. Raises OutOfTime as `only_one`.
    """
    found = load()
    if found is not None:
        return found
    with only_one(path, out_of_time=out_of_time):
        found = load()
        return make() if found is None else found


def make_if_free(
    path: Path, load: Callable[[], Made | None], make: Callable[[], Made]
) -> Made | None:
    """As `load_or_make`, but None at once where another process is making it."""
    found = load()
    if found is not None:
        return found
    lease = _lease(path)
    try:
        lease.acquire(timeout=0)
    except Timeout:
        _free_abandoned(_marker(path))
        return None
    try:
        found = load()
        return make() if found is None else found
    finally:
        lease.release()


def _lease(path: Path) -> SoftFileLease:
    path.parent.mkdir(parents=True, exist_ok=True)
    return SoftFileLease(_marker(path), lease_duration=LEASE)


def _marker(path: Path) -> Path:
    return path.with_name(f"{path.name}.lock")


def _free_abandoned(marker: Path) -> None:
    """Remove a lock that nobody has renewed for longer than filelock would wait; called again and
    again by whoever waits for it.
    """
    with suppress(OSError):
        state = _state(marker)
        known, since = session.locks_seen.get(marker, (None, 0.0))
        if state != known:
            session.locks_seen[marker] = state, time.monotonic()
        elif time.monotonic() - since > LEASE + PATIENCE:
            _remove(marker, state)


def _remove(marker: Path, state: tuple[Any, ...]) -> None:
    """Remove a lock that is as `state` says; of several processes that try, one succeeds. Another
    lock, which somebody took in between, is put back.
    """
    taken = files.aside(marker)
    os.rename(marker, taken)
    if _state(taken) != state:
        try:
            os.link(taken, marker)  # never over a third one
        except FileExistsError:
            pass
        except OSError:  # a file system without links
            os.rename(taken, marker)
            return
    taken.unlink()


def _state(marker: Path) -> tuple[Any, ...]:
    """What changes where a lock is renewed or taken by another."""
    about = marker.stat()
    return about.st_ino, about.st_mtime_ns, about.st_size


@contextmanager
def only_one(path: Path, *, out_of_time: Callable[[], bool] = bool) -> Iterator[None]:
    """Within, no other process is within for the same `path`, which need not exist.

    Raises OutOfTime where that became true while another one was.
    """
    lease = _lease(path)
    while True:
        try:
            lease.acquire(timeout=PATIENCE)
            break
        except Timeout:
            session.print_once(f"waiting for another process, which makes {path.name}")
            _free_abandoned(_marker(path))
        if out_of_time():
            raise OutOfTime(f"another process makes {path.name}")
    try:
        yield
    finally:
        lease.release()
