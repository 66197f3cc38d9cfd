"""What one call of a command has done so far: all process-wide state but facts of the machine."""

import errno
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from benchmarks.core.errors import BadInput, OutOfTime, raise_if_stopped

TO_BE_CONTINUED = 75  # exit code of a run whose time was up: EX_TEMPFAIL of sysexits.h
ONLY_DIVERGED = 4  # exit code of a run of which nothing failed, but some training diverged


NO_MEMORY = "can't allocate memory"  # in the RuntimeError of torch's allocator on a CPU
# what a file system may refuse, and the mend
ROOM = "make room, or give another cache_dir= or results_dir="
WRITABLE = "make it writable, or give another cache_dir= or results_dir="
OF_THE_MACHINE = {
    errno.ENOSPC: ROOM,
    errno.EDQUOT: ROOM,
    errno.EFBIG: ROOM,
    errno.EIO: ROOM,
    errno.EROFS: WRITABLE,
    errno.EACCES: WRITABLE,
    errno.EPERM: WRITABLE,
}


@dataclass
class Session:
    """One call of a command, be it one cell or a sweep of many in this process."""

    started: float = field(default_factory=time.time)  # seconds since the epoch
    errors: list[str] = field(default_factory=list)  # one line for each thing that ended badly
    unfinished: list[str] = field(default_factory=list)  # what the next run has to go on with
    diverged: list[str] = field(default_factory=list)  # trainings that diverged, which is a result
    seconds: dict[str, float] = field(default_factory=dict)  # wall seconds by stage
    # the last report of each results folder; None: there are newer records
    reports: dict[Path, str | None] = field(default_factory=dict)
    # why a download failed, by what was asked for: other cells of a sweep do not wait for it again
    unreachable: dict[str, str] = field(default_factory=dict)
    # files whose digest was checked, or that were written, by path, size and time
    checked: set[tuple] = field(default_factory=set)
    # locks that others hold: what they were like, and since when by this process's clock
    locks_seen: dict[Path, tuple[tuple[Any, ...], float]] = field(default_factory=dict)
    begun: bool = False  # whether a cell was
    printed: set[str] = field(default_factory=set)  # lines that are printed once only
    sweep_folder: Path | None = None  # of a sweep, for its launcher
    sweep_cache: Path | None = None  # where its cells find what is made once
    job_name: str = ""  # of what a launcher may run elsewhere
    # of a process in a team: networks and cells like the leader's, by their keys
    from_leader: dict[str, Any] = field(default_factory=dict)
    # the machine and process that launched this one for a cell, if one did
    launched_by: tuple[str, int] | None = None
    cells_left: bool = False  # whether a launcher gave up while other processes may still run cells
    card: Any = None  # the lock on the GPU that this process, of a launcher, took for itself
    team_lost: bool = False  # whether the others wait for what will not come

    def complain(self, line: str, *, diverged: bool = False) -> None:
        """One line on stderr, once, and a non-zero exit code at the end."""
        lines = self.diverged if diverged else self.errors
        if line not in lines:
            lines.append(line)
            print(f"latentbench: {line}", file=sys.stderr, flush=True)

    def print_once(self, line: str) -> None:
        """Print a line, however many cells of a sweep have the same to say."""
        if line not in self.printed:
            self.printed.add(line)
            print(line, flush=True)

    def guard(self, task: Callable[..., None], *args: Any) -> None:
        """`task(*args)`, its errors as one line each, so that what comes after still runs.

        Ctrl-C and SIGTERM end the process, also where a library made an error of them.
        """
        try:
            task(*args)
        except Exception as error:
            raise_if_stopped(error)
            foreseen = isinstance(error, BadInput | HydraException | OmegaConfBaseException)
            if isinstance(error, OutOfTime):
                self.unfinished.append(str(error))
                print(f"out of time: {error}", flush=True)
            elif not foreseen and os.environ.get("HYDRA_FULL_ERROR") == "1":
                raise
            else:
                self.complain(in_words(error))

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Adds the wall seconds of what runs inside to `seconds[name]`, whether or not it succeeds.

        Stages are not nested.
        """
        began = time.perf_counter()
        try:
            yield
        finally:
            spent = time.perf_counter() - began
            self.seconds[name] = self.seconds.get(name, 0.0) + spent

    def outcome(self) -> dict[str, Any]:
        """What another process must know of this one, as JSON holds it."""
        return {
            "errors": self.errors,
            "unfinished": self.unfinished,
            "diverged": self.diverged,
            "seconds": self.seconds,
            "reports": [str(folder) for folder in self.reports],
        }

    def merge(self, outcome: dict[str, Any]) -> None:
        """Take another process's outcome for one's own. Reports have to be built again."""
        for line in outcome.get("errors", []):
            self.complain(line)
        for line in outcome.get("diverged", []):
            self.complain(line, diverged=True)
        self.unfinished += outcome.get("unfinished", [])
        for name, seconds in outcome.get("seconds", {}).items():
            self.seconds[name] = self.seconds.get(name, 0.0) + seconds
        self.reports |= {Path(folder): None for folder in outcome.get("reports", [])}

    def exit_code(self) -> int:
        """1 if anything ended badly, 75 if anything is left, 4 if a training diverged, else 0."""
        if self.errors:
            return 1
        if self.unfinished:
            return TO_BE_CONTINUED
        return ONLY_DIVERGED if self.diverged else 0

    def finish(self) -> NoReturn:
        """End the process."""
        sys.exit(self.exit_code())


def in_words(error: Exception) -> str:
    """One line about any error: what it says of input that cannot be used, of the machine, or that
    nobody has foreseen it.
    """
    if isinstance(error, BadInput):
        return str(error)
    if isinstance(error, OmegaConfBaseException):
        return f"configuration: {str(error).splitlines()[0]}"
    if isinstance(error, HydraException):
        return f"configuration: {in_one_line(error)}"
    return of_the_machine(error) or unforeseen(error)


def of_the_machine(error: Exception) -> str | None:
    """A line about a file or memory that could not be had; None for any other error."""
    too_much = isinstance(error, RuntimeError) and NO_MEMORY in str(error)
    if isinstance(error, MemoryError) or too_much:
        return f"not enough memory: {' '.join(str(error).split())}"
    if not isinstance(error, OSError):
        return None
    if error.errno in OF_THE_MACHINE:
        place, mend = error.filename or "a file", OF_THE_MACHINE[error.errno]
        return f"{place}: {error.strerror}; {mend}"
    return f"{error.filename}: {error.strerror}" if error.filename and error.strerror else None


def unforeseen(error: Exception) -> str:
    """A line about any error that nothing says how to mend."""
    reason = " ".join(f"{type(error).__name__}: {error}".split())
    return f"{reason} (not foreseen; HYDRA_FULL_ERROR=1 shows where)"


def in_one_line(error: HydraException) -> str:
    """What Hydra says over many lines, without where it has looked and where to read on."""
    text = str(error).split("Config search path")[0].split("See https:")[0]
    cause = error.__cause__
    if isinstance(cause, OmegaConfBaseException):  # says what Hydra leaves out
        text += f" ({str(cause).splitlines()[0]})"
    return " ".join(text.split())


session = Session()  # of this process
