"""Atomic files and folders: whole or absent, and on the disk before they count."""

import contextlib
import errno
import os
import re
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import IO

from benchmarks.core.errors import BadInput

OF_TORCH = ("PytorchStreamWriter", "inline_container")  # in its errors of a file's end
RUST_ERROR = re.compile(r"os error (\d+)")
OLD = 7 * 86_400.0  # seconds after which what another machine left is no longer being made
ZEROS = 1 << 20  # bytes written at once
ALMOST_NOTHING = 1 << 20  # bytes: a disk with less is full
# ".<name>.<machine>.<process>.tmp": what a process makes before it takes its place
LEFT_OVER = re.compile(r"^\..+\.(?P<machine>[^.]+)\.(?P<process>\d+)\.(tmp|old)$", re.DOTALL)


@contextlib.contextmanager
def atomic_file(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it takes its place, on failure it goes."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(path, "tmp")
    try:
        with _disk_errors_by_name(path):
            yield temporary
        # safetensors makes files that only their owner can read; a cache may be shared
        temporary.chmod(0o666 & ~_umask())
        # else a power cut might leave the new name with nothing behind it
        _to_disk(temporary)
        os.replace(temporary, path)
        _to_disk(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(path: str | Path, *, lasting: bool = True) -> Iterator[Path]:
    """As `atomic_file`, for a folder of several files; an older folder of that name is replaced.

    Not `lasting`: files that can be made again, too many to wait for each.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary, older = _temporary(path, "tmp"), _temporary(path, "old")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        with _disk_errors_by_name(path):
            yield temporary
        for one in [*temporary.rglob("*"), temporary] if lasting else []:
            _to_disk(one)
        if path.exists():  # the older one goes only when the newer one is in its place
            os.replace(path, older)
        os.replace(temporary, path)
        _to_disk(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(older, ignore_errors=True)


def check_writable(folder: str | Path, key: str) -> None:
    """Make a folder that is to be written. Raises BadInput, naming the key, where that cannot be.

    Asked for before hours of work, not after.
    """
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        reason = f"{folder} cannot be written ({error.strerror})"
        raise BadInput(f"{key}: {reason}; give a folder that can") from None


@contextlib.contextmanager
def _disk_errors_by_name(path: Path) -> Iterator[None]:
    """Whatever a library raises when the disk is full becomes the OSError that it is."""
    try:
        yield
    except (OSError, BadInput):
        raise
    except Exception as error:
        code = RUST_ERROR.search(str(error))
        if code:  # safetensors' own, which is no OSError
            raise OSError(int(code[1]), os.strerror(int(code[1])), str(path)) from None
        full = shutil.disk_usage(path.parent).free < ALMOST_NOTHING
        if full or any(word in str(error) for word in OF_TORCH):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from None
        raise


@cache  # once for each folder
def tidy(root: Path) -> None:
    """Remove, in a folder and all within, what processes of this machine left that run no more."""
    for path in root.rglob(".*.*.*.*"):
        if LEFT_OVER.match(path.name):
            _remove_left_over(path.parent)


def aside(path: Path) -> Path:
    """Where this process puts what stood at `path` until it is removed."""
    return _temporary(path, "old")


def _temporary(path: Path, suffix: str) -> Path:
    """Where this process makes what will stand at `path`."""
    _remove_left_over(path.parent)
    return path.with_name(f".{path.name}.{_machine()}.{os.getpid()}.{suffix}")


@cache
def _umask() -> int:
    """The permissions that new files of this process lack."""
    mask = os.umask(0o022)  # it can be read only by setting it
    os.umask(mask)
    return mask


@cache
def _machine() -> str:
    """Names where process numbers are known: this boot of this machine, or of this container."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8")
        return f"{boot[:8]}-{os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:  # not Linux
        return socket.gethostname().replace(".", "-") or "unnamed"


@cache  # once for each folder
def _remove_left_over(folder: Path) -> None:
    """Remove what processes of this machine left unfinished that run no more."""
    for path in folder.iterdir():
        found = LEFT_OVER.match(path.name)
        if not found or _is_at_work(path, found["machine"], int(found["process"])):
            continue
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):  # of a cache that cannot be written
                path.unlink()


def _is_at_work(path: Path, machine: str, process: int) -> bool:
    """Whether the process that makes a file may still run. One of another machine, which may share
    the folder, cannot be asked: it is given a week since it last wrote.
    """
    if machine == _machine():
        return runs(process)
    try:
        return time.time() - path.stat().st_mtime < OLD
    except OSError:  # it has just gone
        return True


def runs(process: int) -> bool:
    """Whether a process of this machine, by its number, has not ended."""
    try:
        os.kill(process, 0)  # sends nothing
    except ProcessLookupError:
        return False
    except OverflowError:  # no process has such a number
        return False
    except PermissionError:  # another user's
        return True
    return True


def _to_disk(path: Path) -> None:
    """Wait until a file's bytes, or a folder's names, are on the disk."""
    place = os.open(path, os.O_RDONLY)
    try:
        os.fsync(place)
    except OSError as error:  # some file systems cannot for folders
        if error.errno not in (errno.EINVAL, errno.ENOTSUP) or not path.is_dir():
            raise
    finally:
        os.close(place)


def reserve(file: IO[bytes], size: int) -> None:
    """Room on the disk for a file's first `size` bytes. OSError where there is none.

    Writing to a mapped file of a full disk would end the process.
    """
    try:
        os.posix_fallocate(file.fileno(), 0, size)
        return
    except AttributeError:  # not on this system
        pass
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS):
            raise OSError(error.errno, error.strerror, file.name) from None
    start = file.seek(0, os.SEEK_END)
    while start < size:
        start += file.write(bytes(min(ZEROS, size - start)))
    file.flush()
