"""Large files that are read whole once, to see that they are what was written, and not again until
something is written to them.
"""

from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from benchmarks.core.session import session
from benchmarks.core.store import read_json, write_json


def is_whole(files: Sequence[Path], key: str, mark: Path, check: Callable[[], bool]) -> bool:
    """Whether files are whole and `key`'s: `check()`, or what an earlier process noted in `mark`.

    A note counts while the files have the sizes and times that they had then. No program can set
    the time of a file's last change, so that a file written to under an old date is checked again.
    """
    note = _note(files, key)  # before the check: what is written meanwhile was not checked
    known = (str(mark), str(note))
    if known in session.checked or read_json(mark) == note:
        return True
    if not check():
        return False
    session.checked.add(known)  # every cell of a sweep asks
    with suppress(OSError):  # where a cache can only be read, it is checked at every start
        write_json(mark, note)
    return True


def _note(files: Sequence[Path], key: str) -> list[Any]:
    found = [(path.name, path.stat()) for path in files]
    return [key, *([name, f.st_size, f.st_mtime_ns, f.st_ctime_ns, f.st_ino] for name, f in found)]
