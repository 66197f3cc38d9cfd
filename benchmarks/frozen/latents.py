"""Images to whitened latents and tokens, once per data set: what all three families train on."""

from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from benchmarks.core import versions
from benchmarks.core.locks import load_or_make
from benchmarks.core.store import digest, read_tensors, seeded, write_tensors
from benchmarks.frozen.autoencoder import LatentSpace
from benchmarks.images.stored import Dataset, Split
from models.generator import Batch, to_device

TENSORS = ("latents", "tokens", "labels", "mean", "std")


@dataclass(frozen=True)
class LatentSet:
    """Training latents of a data set, index 0 as they are and 1 of the mirror images."""

    latents: Tensor  # (2, N, C, H, W) float32, whitened per channel
    tokens: Tensor  # (2, N, H*W) int32
    labels: Tensor  # (N,) int64
    mean: Tensor  # (C,) of the raw latents
    std: Tensor  # (C,)
    key: str  # of all of it
    images_key: str = ""  # of all but the tokens

    def to(self, device: torch.device) -> "LatentSet":
        return replace(self, **{name: getattr(self, name).to(device) for name in TENSORS})

    def batch(self, seed: int, step: int, size: int) -> Batch:
        """Training batch `step` of `size` images: a pure function of (seed, step).

        Each epoch has a new order; each image is mirrored at a coin's toss.
        """
        device = self.labels.device
        at = to_device(batch_indices(len(self.labels), size, seed, step), device)
        tosses = torch.randint(2, (size,), generator=seeded("mirror", seed, step))
        mirror = to_device(tosses, device)
        return Batch(self.latents[mirror, at], self.tokens[mirror, at].long(), self.labels[at])

    def raw(self, latents: Tensor) -> Tensor:
        """Whitened latents (B, C, H, W) in the autoencoder's own units."""
        mean, std = (to_device(x, latents.device).to(latents.dtype) for x in (self.mean, self.std))
        return latents * std[:, None, None] + mean[:, None, None]


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
    """The training latents and tokens of a data set, encoded on first use and cached."""
    key = digest("latents", versions.LATENTS, dataset.train_key, space.key)
    path = Path(cache) / "latents" / f"{key}.safetensors"
    images_key = digest("latents", versions.LATENTS, dataset.train_key, space.autoencoder_key)
    keys = {"key": key, "images_key": images_key}

    def make() -> tuple[dict[str, Tensor], dict[str, str]]:
        tensors = _encode(dataset, space, device)
        write_tensors(path, key, tensors)
        return tensors, {}

    tensors, _ = load_or_make(path, partial(read_tensors, path, key), make)
    return LatentSet(**tensors, **keys)


@torch.inference_mode()
def _encode(dataset: Dataset, space: LatentSpace, device: torch.device) -> dict[str, Tensor]:
    """Encode every training image and its mirror image, whiten per channel, and look up the
    tokens.
    """
    space, batch = space.to(device), space.at_once(dataset.image_size)
    raw, tokens = [], []
    starts = range(0, len(dataset.train), batch)
    # disable=None: no bar where nobody watches a terminal
    for start in tqdm(starts, desc="encoding", unit="batch", leave=False, disable=None):
        images = torch.from_numpy(dataset.train[start : start + batch]).to(device)
        latents = space.autoencoder.encode(torch.cat([images, images.flip(3)]))
        raw.append(latents.unflatten(0, (2, -1)).cpu())
        tokens.append(space.codebook.tokenize(latents).unflatten(0, (2, -1)).int().cpu())
    latents = torch.cat(raw, dim=1)
    # diffusion assumes data of about unit variance; measured, since each data set has its own
    std, mean = torch.std_mean(latents, dim=(0, 1, 3, 4))
    whitened = (latents - mean[:, None, None]) / std[:, None, None].clamp(min=1e-6)
    labels = torch.from_numpy(dataset.train.labels.copy())
    return {
        "latents": whitened,
        "tokens": torch.cat(tokens, dim=1),
        "labels": labels,
        "mean": mean,
        "std": std,
    }


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
    split: Split,
    coded: bool = True,
    *,
    space: LatentSpace,
    data: LatentSet,
    device: torch.device,
) -> dict[str, Tensor]:
    """A split's images through the `autoencoder` and, if `coded`, also through autoencoder and
    `codebook`: uint8 (N, 3, H, W) each, on the CPU.
    """
    space = space.to(device)
    book = space.codebook.whitened(data.mean, data.std)
    mean, std = (x.to(device)[:, None, None] for x in (data.mean, data.std))
    batch = space.at_once(split.pixels.shape[-1])
    rebuilt: dict[str, list[Tensor]] = {"autoencoder": []}
    if coded:
        rebuilt["codebook"] = []
    for start in range(0, len(split), batch):
        images = torch.from_numpy(split[start : start + batch]).to(device)
        # whitened and back, though decoding alone would do: samples come the same way
        whitened = (space.autoencoder.encode(images) - mean) / std
        rebuilt["autoencoder"].append(decode(space, data, whitened).cpu())
        if coded:
            quantised = book.detokenize(book.tokenize(whitened))
            rebuilt["codebook"].append(decode(space, data, quantised).cpu())
    return {name: torch.cat(batches) for name, batches in rebuilt.items()}
