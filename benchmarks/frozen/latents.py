"""Images to whitened latents and tokens, once per data set: what all three families train on."""

import os
import random
import socket
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from benchmarks.core import versions
from benchmarks.core.locks import load_or_make, make_if_free
from benchmarks.core.store import digest, seeded, write_tensors
from benchmarks.frozen.autoencoder import LatentSpace
from benchmarks.frozen.shards import Rows, Shards, mean_and_std, moments
from benchmarks.images.stored import Dataset, Split
from models.generator import Batch
from models.randomness import to_device

HELD = 8 * 2**30  # bytes of latents and tokens that a GPU may hold; more are read as they are used


@dataclass(frozen=True)
class LatentSet:
    """Training latents of a data set, index 0 as they are and 1 of the mirror images."""

    latents: Tensor | Rows  # (2, N, C, H, W) float32, whitened per channel
    tokens: Tensor | Rows  # (2, N, H*W) int32
    labels: Tensor  # (N,) int64
    mean: Tensor  # (C,) of the raw latents
    std: Tensor  # (C,)
    key: str  # of all of it
    images_key: str = ""  # of all but the tokens

    def to(self, device: torch.device) -> "LatentSet":
        """On a device; rows on disk stay there for a CPU, and where a GPU should not hold them."""
        moved = {name: getattr(self, name).to(device) for name in ("labels", "mean", "std")}
        rows = {"latents": self.latents, "tokens": self.tokens}
        held = device.type != "cpu" and sum(each.nbytes for each in rows.values()) <= HELD
        for name, each in rows.items():
            if isinstance(each, Tensor):
                moved[name] = each.to(device)
            elif held:
                moved[name] = each.held(device)
        return replace(self, **moved)

    def batch(self, seed: int, step: int, size: int, rows: slice | None = None) -> Batch:
        """Training batch `step` of `size` images: a pure function of (seed, step).

        Each epoch has a new order; each image is mirrored at a coin's toss. With `rows`, only these
        images are read, and the latents and tokens of the others are zeros: one of several
        processes needs its own part, and the shape of the whole.
        """
        device = self.labels.device
        at = batch_indices(len(self.labels), size, seed, step)
        mirror = torch.randint(2, (size,), generator=seeded("mirror", seed, step))
        labels = self.labels[to_device(at, device)]
        if rows:
            mirror, at = mirror[rows], at[rows]
        there = (to_device(mirror, device), to_device(at, device))
        taken = [
            each[there] if isinstance(each, Tensor) else to_device(each[mirror, at], device)
            for each in (self.latents, self.tokens)
        ]
        if rows:
            taken = [_in_whole(part, size, rows) for part in taken]
        return Batch(taken[0], taken[1].long(), labels)

    def raw(self, latents: Tensor) -> Tensor:
        """Whitened latents (B, C, H, W) in the autoencoder's own units."""
        mean, std = (to_device(x, latents.device).to(latents.dtype) for x in (self.mean, self.std))
        return latents * std[:, None, None] + mean[:, None, None]


def _in_whole(part: Tensor, size: int, rows: slice) -> Tensor:
    """`rows` of a batch in one of `size` images, of which the others are zeros."""
    whole = part.new_zeros(size, *part.shape[1:])
    whole[rows] = part
    return whole


# a pure function; two, for a batch that spans the end of one epoch and the start of the next
@lru_cache(maxsize=2)
def _order(count: int, seed: int, epoch: int) -> Tensor:
    """The order in which an epoch sees the training images."""
    return torch.randperm(count, generator=seeded("order", seed, epoch))


def batch_indices(count: int, size: int, seed: int, step: int) -> Tensor:
    """Indices (size,) of batch `step`: places step*size ... of an endless row of shuffled epochs.

    `count` is the number of training images, which may be fewer than a batch has.
    """
    pieces, place = [], step * size
    while size:
        epoch, start = divmod(place, count)
        piece = _order(count, seed, epoch)[start : start + size]
        pieces.append(piece)
        place, size = place + len(piece), size - len(piece)
    return torch.cat(pieces)


def prepare_latents(
    dataset: Dataset, space: LatentSpace, *, cache: str | Path, device: torch.device
) -> LatentSet:
    """The training latents and tokens of a data set, encoded on first use and cached in shards.

    Of several processes that want them, each encodes what no other one is at.
    """
    key = digest("latents", versions.LATENTS, dataset.train_key, space.key)
    images_key = digest("latents", versions.LATENTS, dataset.train_key, space.autoencoder_key)
    # another kind of device or another torch rounds otherwise: a training's key says which it had
    made = digest(key, device.type, torch.__version__)
    shards = Shards(Path(cache) / "latents" / made, made, len(dataset.train))
    mean, std = mean_and_std(encode_missing(dataset, space, shards, device))
    return LatentSet(
        latents=Rows(shards.paths(), "latents", mean, std),
        tokens=Rows(shards.paths(), "tokens"),
        labels=torch.from_numpy(dataset.train.labels.copy()),
        mean=mean,
        std=std,
        key=key,
        images_key=images_key,
    )


def encode_missing(
    dataset: Dataset, space: LatentSpace, shards: Shards, device: torch.device
) -> list[Tensor]:
    """Every shard that is not there yet, encoded; the moments of all of them, in order.

    Processes that begin together begin at different shards, and none waits before all are taken.
    """
    space = space.to(device)
    parts: dict[int, Tensor] = {}
    numbers = list(range(len(shards)))
    random.Random(f"{socket.gethostname()} {os.getpid()}").shuffle(numbers)
    # disable=None: no bar where nobody watches a terminal
    bar = tqdm(total=shards.count, desc="encoding", unit="images", leave=False, disable=None)

    def make(number: int) -> Tensor:
        tensors = _encode(dataset, space, shards.images(number), device, bar.update)
        write_tensors(shards.path(number), shards.key_of(number), tensors)
        return tensors["moments"]

    with bar:
        for get in (make_if_free, load_or_make):
            for number in [number for number in numbers if number not in parts]:
                load = partial(shards.moments, number)
                found = get(shards.path(number), load, partial(make, number))
                if found is not None:
                    parts[number] = found
    return [parts[number] for number in sorted(parts)]


@torch.inference_mode()
def _encode(
    dataset: Dataset,
    space: LatentSpace,
    images: range,
    device: torch.device,
    tell: Callable[[int], Any],
) -> dict[str, Tensor]:
    """The latents of some training images and of their mirror images, their tokens, and what the
    mean and variance of all are computed from.
    """
    batch = space.at_once(dataset.image_size)
    raw, tokens = [], []
    for start in range(images.start, images.stop, batch):
        pixels = torch.from_numpy(dataset.train[start : min(start + batch, images.stop)]).to(device)
        latents = space.autoencoder.encode(torch.cat([pixels, pixels.flip(3)]))
        raw.append(latents.unflatten(0, (2, -1)).cpu())
        tokens.append(space.codebook.tokenize(latents).unflatten(0, (2, -1)).int().cpu())
        tell(len(pixels))
    latents = torch.cat(raw, dim=1)
    # diffusion assumes data of about unit variance; measured, since each data set has its own
    return {"latents": latents, "tokens": torch.cat(tokens, dim=1), "moments": moments(latents)}


@torch.inference_mode()
def decode(space: LatentSpace, data: LatentSet, latents: Tensor) -> Tensor:
    """Whitened latents (N, C, H, W) to uint8 images (N, 3, fH, fW) on their device.

    In float32, whatever the model ran in: samples and the reconstructed hold-out take the same way.
    """
    batch = space.at_once(latents.shape[-1] * space.autoencoder.factor)
    chunks = latents.split(batch)
    return torch.cat([space.autoencoder.decode(data.raw(chunk.float())) for chunk in chunks])


@torch.inference_mode()
def reconstruct(
    images: Split | np.ndarray,
    coded: bool = True,
    *,
    space: LatentSpace,
    data: LatentSet,
    device: torch.device,
    codebook: nn.Module | None = None,
) -> dict[str, Tensor]:
    """Images, uint8 (N, 3, H, W), through the `autoencoder` and, if `coded`, also through
    autoencoder and `codebook`: uint8 (N, 3, H, W) each, on the CPU.

    `codebook` is one for whitened latents, the one that models share where None is given.
    """
    space = space.to(device)
    book = codebook or space.codebook.whitened(data.mean, data.std)
    mean, std = (x.to(device)[:, None, None] for x in (data.mean, data.std))
    batch = space.at_once(images[:1].shape[-1])
    rebuilt: dict[str, list[Tensor]] = {"autoencoder": []}
    if coded:
        rebuilt["codebook"] = []
    for start in range(0, len(images), batch):
        pixels = torch.from_numpy(images[start : start + batch]).to(device)
        # whitened and back, though decoding alone would do: samples come the same way
        whitened = (space.autoencoder.encode(pixels) - mean) / std
        rebuilt["autoencoder"].append(decode(space, data, whitened).cpu())
        if coded:
            rebuilt["codebook"].append(decode(space, data, book.quantise(whitened)).cpu())
    return {name: torch.cat(batches) for name, batches in rebuilt.items()}
