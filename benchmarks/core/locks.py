"""Of several processes that want one artefact, on one machine or many, one makes it.

A lock is a file beside the artefact, created exclusively and renewed by its holder every ten
seconds. It is free once its holder is known to be dead, or has not renewed it for half a minute by
the clock of whoever waits. So the cache may lie on a network file system, as long as that creates
files exclusively and shows changes to others within seconds. A holder that stood still for longer
may find the artefact made by another: both are the same, and each takes its place as a whole.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from filelock import SoftFileLease, Timeout

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
        return None
    try:
        found = load()
        return make() if found is None else found
    finally:
        lease.release()


def _lease(path: Path) -> SoftFileLease:
    path.parent.mkdir(parents=True, exist_ok=True)
    return SoftFileLease(path.with_name(f"{path.name}.lock"), lease_duration=LEASE)


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
        if out_of_time():
            raise OutOfTime(f"another process makes {path.name}")
    try:
        yield
    finally:
        lease.release()
