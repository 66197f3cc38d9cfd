"""All images of a data set to pixels, by as many processes as there are cores."""

import multiprocessing
import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO

import numpy as np
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from benchmarks.core.environment import own_cores
from benchmarks.core.errors import BadInput, raise_if_stopped
from benchmarks.images.decode import Unreadable, decode

MANY = 512  # images from which starting processes costs less than it saves
MOST = 16  # processes
AT_ONCE = 64  # images that a process decodes before it hands them over

Opener = Callable[[], Path | IO[bytes]]  # an image's file, when it is its turn


class _Decoded(Dataset):
    """Image i as pixels, or in words why there are none."""

    def __init__(self, files: Sequence[Opener], size: int | None) -> None:
        self.files, self.size = files, size

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, i: int) -> np.ndarray | str | OSError:
        try:
            return decode(self.files[i](), self.size)
        except Unreadable as error:
            return str(error)
        except OSError as error:  # for the parent to raise: torch would make another error of it
            return error


def decode_all(files: Sequence[Opener], size: int | None) -> Iterator[np.ndarray | str]:
    """Each file's pixels, uint8 (3, size, size), in order; in words why where it has none. Without
    a size each has its own.

    In processes: on small images threads would wait for Python's lock more than they decode.
    Raises BadInput where one of them was killed, and OSError where a disk fails.
    """
    loader = DataLoader(
        _Decoded(files, size),
        batch_size=AT_ONCE,
        num_workers=_processes() if len(files) >= MANY else 0,
        # no tensors: those would be handed over in shared memory, of which a container has little
        collate_fn=list,
        worker_init_fn=_leave_interrupts_to_the_parent,
    )
    # disable=None: no bar where nobody watches a terminal
    bar = tqdm(total=len(files), desc="decoding", unit="images", leave=False, disable=None)
    with bar:
        try:
            for images in loader:
                for image in images:
                    if isinstance(image, OSError):
                        raise image
                    yield image
                bar.update(len(images))
        except RuntimeError as error:
            raise_if_stopped(error)
            if "DataLoader worker (pid" not in str(error):
                raise
            raise BadInput(
                "a process that decoded images was killed, for want of memory perhaps; the same "
                "command tries again"
            ) from None


def _processes() -> int:
    """How many processes decode; 0 where this one does."""
    if multiprocessing.current_process().daemon:  # which may start none
        return 0
    cores = min(MOST, len(own_cores()))
    return cores if cores > 1 else 0


def _leave_interrupts_to_the_parent(worker: int) -> None:
    """A Ctrl-C reaches every process of the terminal; the parent ends its own."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
