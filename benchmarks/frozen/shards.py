"""Latents and tokens as they lie on disk: shards of equally many images, each whole by itself, so
that several processes may write them and an encoding that was stopped goes on.

They are read row by row, where they lie. So a training needs no more memory for a million images
than for a thousand, and what the operating system keeps of them in its cache is all that is kept.
"""

import errno
import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from benchmarks.core.checked import is_whole
from benchmarks.core.store import read_tensors, stamp_of

IMAGES = 8192  # of a shard
AT_ONCE = 1024  # images to copy to a device
OPEN = 512  # files at most that are open at once: a process may have about 1,000
HEADER = 8  # bytes, before a safetensors file's header, that say how long it is
TYPES = {"F32": np.float32, "I32": np.int32}


@dataclass(frozen=True)
class Shards:
    """The files of an encoding of `count` images, which need not be there yet; `key` names it."""

    folder: Path
    key: str
    count: int

    def __len__(self) -> int:
        return math.ceil(self.count / IMAGES)

    def images(self, number: int) -> range:
        """The images that a shard is of."""
        return range(number * IMAGES, min(self.count, (number + 1) * IMAGES))

    def path(self, number: int) -> Path:
        return self.folder / f"{number:05d}.safetensors"

    def key_of(self, number: int) -> str:
        return f"{self.key} {number}"

    def moments(self, number: int) -> Tensor | None:
        """The moments of a shard that is whole; else None, with a printed line if it is damaged."""
        path = self.path(number)
        mark = path.with_suffix(".checked")

        def check() -> bool:
            return read_tensors(path, self.key_of(number)) is not None

        if not path.exists() or not is_whole([path], self.key_of(number), mark, check):
            return None
        with safe_open(str(path), "pt") as file:
            return file.get_tensor("moments")

    def paths(self) -> list[Path]:
        return [self.path(number) for number in range(len(self))]


class Rows:
    """One tensor (2, N, ...) of all shards: `rows[mirror, at]` reads some of its rows.

    `mirror` and `at` are whole numbers, slices or tensors of them. With `mean` and `std` (C,) of
    the rows' first dimension, they are whitened as they are read. Raises OSError where a file is
    not as it was when it was checked.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        name: str,
        mean: Tensor | None = None,
        std: Tensor | None = None,
    ):
        self.paths, self.name, self.mean, self.std = list(paths), name, mean, std
        self.files = [_place(path, name) for path in paths]
        counts = [file.count for file in self.files]
        self.starts = np.cumsum([0, *counts])
        self.shape = (2, sum(counts), *self.files[0].row)

    def __len__(self) -> int:
        return 2

    @property
    def nbytes(self) -> int:
        """Of all rows."""
        return math.prod(self.shape) * np.dtype(self.files[0].dtype).itemsize

    def __getitem__(self, places: tuple[Any, Any]) -> Tensor:
        mirror, at = (_numbers(place, n) for place, n in zip(places, self.shape, strict=False))
        if isinstance(places[0], int):
            return self._read(np.full(len(at), mirror[0]), at)
        if isinstance(places[0], slice):
            return torch.stack([self._read(np.full(len(at), m), at) for m in mirror])
        return self._read(mirror, at)

    def held(self, device: torch.device) -> Tensor:
        """All rows, (2, N, ...), on a device; the host never holds more than some of them."""
        kind = torch.from_numpy(np.empty(0, self.files[0].dtype)).dtype
        whole = torch.empty(self.shape, dtype=kind, device=device)
        for start in range(0, self.shape[1], AT_ONCE):
            rows = slice(start, start + AT_ONCE)
            whole[:, rows] = self[:, rows].to(device)
        return whole

    def _read(self, mirror: np.ndarray, at: np.ndarray) -> Tensor:
        rows = np.empty((len(at), *self.shape[2:]), self.files[0].dtype)
        shard = np.searchsorted(self.starts, at, side="right") - 1
        for i, (which, image) in enumerate(zip(shard, at - self.starts[shard], strict=True)):
            self.files[which].read(int(mirror[i]), int(image), rows[i])
        read = torch.from_numpy(rows)
        if self.mean is None:
            return read
        return (read - self.mean[:, None, None]) / self.std[:, None, None].clamp(min=1e-6)

    def __reduce__(self) -> tuple[Any, ...]:
        """Another process opens the files itself."""
        return Rows, (self.paths, self.name, self.mean, self.std)


@dataclass(frozen=True)
class _Place:
    """Where one tensor (2, n, ...) lies in a safetensors file."""

    path: Path
    stamp: tuple  # of the file: another may take its name
    offset: int  # bytes
    count: int  # images
    row: tuple[int, ...]  # the shape of one
    dtype: Any

    def read(self, mirror: int, image: int, into: np.ndarray) -> None:
        start = self.offset + (mirror * self.count + image) * into.nbytes
        content = os.pread(_opened(self.path, self.stamp).fileno(), into.nbytes, start)
        if len(content) != into.nbytes:
            # no BadInput: of several processes it happens to one
            raise OSError(errno.ENODATA, "was cut short while it was read; run again", self.path)
        into[...] = np.frombuffer(content, self.dtype).reshape(self.row)


@lru_cache(maxsize=OPEN)
def _opened(path: Path, stamp: tuple) -> Any:
    """An open file, which is closed once it is needed least."""
    return open(path, "rb", buffering=0)


def _place(path: Path, name: str) -> _Place:
    """A tensor (2, n, ...) of a safetensors file."""
    with open(path, "rb") as file:
        size = int.from_bytes(file.read(HEADER), "little")
        entry = json.loads(file.read(size))[name]
    _, count, *row = entry["shape"]
    offset = HEADER + size + entry["data_offsets"][0]
    return _Place(path, stamp_of(path), offset, count, tuple(row), TYPES[entry["dtype"]])


def _numbers(place: Any, count: int) -> np.ndarray:
    """A place in a dimension of `count` as whole numbers."""
    if isinstance(place, Tensor):
        return place.cpu().numpy()
    return np.atleast_1d(np.arange(count)[place])


def moments(latents: Tensor) -> Tensor:
    """(3, C) float64: how many values a channel has, their sum and that of their squares, of
    latents (2, n, C, H, W).
    """
    values = latents.double().movedim(2, 0).flatten(1)
    count = torch.full((len(values),), values.shape[1], dtype=torch.float64)
    return torch.stack([count, values.sum(1), values.square().sum(1)])


def mean_and_std(parts: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Of each channel, (C,) float32, from the `moments` of all parts."""
    count, total, squares = torch.stack(list(parts)).sum(0)
    mean = total / count
    variance = (squares / count - mean.square()).clamp(min=0) * count / (count - 1)
    return mean.float(), variance.sqrt().float()
