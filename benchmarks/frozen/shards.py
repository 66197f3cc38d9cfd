"""Latents and tokens as they lie on disk: shards of equally many images, each whole by itself, so
that several processes may write them and an encoding that was stopped goes on.

They are read row by row, where they lie. So a training needs no more memory for a million images
than for a thousand, and what the operating system keeps of them in its cache is all that is kept.
"""

import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.core.errors import BadInput
from benchmarks.core.store import read_tensors

IMAGES = 8192  # of a shard
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

    def load(self, number: int) -> dict[str, Tensor] | None:
        """The tensors of a shard that is whole; else None, with a printed line if it is damaged."""
        shard = read_tensors(self.path(number), f"{self.key} {number}")
        return shard[0] if shard else None

    def paths(self) -> list[Path]:
        return [self.path(number) for number in range(len(self))]


class Rows:
    """One tensor (2, N, ...) of all shards: `rows[mirror, at]` reads some of its rows.

    `mirror` and `at` are whole numbers, slices or tensors of them. With `mean` and `std` (C,) of
    the rows' first dimension, they are whitened as they are read. Raises BadInput where a file is
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
        self.files = [_open(path, name) for path in paths]
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
        """All rows, (2, N, ...), on a device."""
        return self[:, :].to(device)

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
class _File:
    """Where one tensor lies in an open safetensors file."""

    path: Path
    file: Any  # open, unbuffered
    offset: int  # bytes
    count: int  # images
    row: tuple[int, ...]  # the shape of one
    dtype: Any

    def read(self, mirror: int, image: int, into: np.ndarray) -> None:
        place = self.offset + (mirror * self.count + image) * into.nbytes
        content = os.pread(self.file.fileno(), into.nbytes, place)
        if len(content) != into.nbytes:
            raise BadInput(f"cache_dir: {self.path} was cut short meanwhile; run again")
        into[...] = np.frombuffer(content, self.dtype).reshape(self.row)


def _open(path: Path, name: str) -> _File:
    """A tensor (2, n, ...) of a safetensors file."""
    file = open(path, "rb", buffering=0)  # noqa: SIM115  (as long as its rows are read)
    size = int.from_bytes(os.pread(file.fileno(), HEADER, 0), "little")
    entry = json.loads(os.pread(file.fileno(), size, HEADER))[name]
    _, count, *row = entry["shape"]
    offset = HEADER + size + entry["data_offsets"][0]
    return _File(path, file, offset, count, tuple(row), TYPES[entry["dtype"]])


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
