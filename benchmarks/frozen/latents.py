"""Pictures to whitened latents and tokens, once per data set: what all three families train on."""

from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from benchmarks.core import versions
from benchmarks.core.store import digest, read_tensors, seeded, write_tensors
from benchmarks.frozen.autoencoder import LatentSpace
from benchmarks.images.dataset import Dataset, Split
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
    key: str

    def to(self, device: torch.device) -> "LatentSet":
        return replace(self, **{name: getattr(self, name).to(device) for name in TENSORS})

    def batch(self, seed: int, step: int, size: int) -> Batch:
        """Training batch `step`: a pure function of (seed, step), each epoch a new order, each
        picture mirrored at a coin's toss.
        """
        device = self.labels.device
        at = to_device(batch_indices(len(self.labels), size, seed, step), device)
        mirror = to_device(
            torch.randint(2, (size,), generator=seeded("mirror", seed, step)), device
        )
        return Batch(self.latents[mirror, at], self.tokens[mirror, at].long(), self.labels[at])

    def raw(self, latents: Tensor) -> Tensor:
        """Whitened -> the autoencoder's own units."""
        mean, std = (to_device(x, latents.device).to(latents.dtype) for x in (self.mean, self.std))
        return latents * std[:, None, None] + mean[:, None, None]


@lru_cache(maxsize=2)
def _order(count: int, seed: int, epoch: int) -> Tensor:
    return torch.randperm(count, generator=seeded("order", seed, epoch))


def batch_indices(count: int, size: int, seed: int, step: int) -> Tensor:
    """The pictures of batch `step`: places step*size ... of an endless row of shuffled epochs."""
    parts, place = [], step * size
    while size:
        epoch, start = divmod(place, count)
        part = _order(count, seed, epoch)[start : start + size]
        parts.append(part)
        place, size = place + len(part), size - len(part)
    return torch.cat(parts)


def prepare_latents(
    dataset: Dataset, space: LatentSpace, *, cache: str | Path, device: torch.device
) -> LatentSet:
    """The training latents and tokens of a data set, encoded on first use and cached."""
    key = digest("latents", versions.LATENTS, dataset.train_key, space.key)
    path = Path(cache) / "latents" / f"{key}.safetensors"
    ready = read_tensors(path, key)
    if ready:
        return LatentSet(**ready[0], key=key)
    tensors = _encode(dataset, space, device)
    write_tensors(path, key, tensors)
    return LatentSet(**tensors, key=key)


@torch.inference_mode()
def _encode(dataset: Dataset, space: LatentSpace, device: torch.device) -> dict[str, Tensor]:
    """Encode every training picture and its mirror image, whiten per channel, and look up the
    tokens.
    """
    space, raw, tokens, batch = space.to(device), [], [], space.at_once(dataset.image_size)
    for start in tqdm(
        range(0, len(dataset.train), batch),
        desc="encoding",
        unit="batch",
        leave=False,
        disable=None,
    ):
        images = torch.from_numpy(dataset.train[start : start + batch]).to(device)
        latents = space.autoencoder.encode(torch.cat([images, images.flip(3)]))
        raw.append(latents.unflatten(0, (2, -1)).cpu())
        tokens.append(space.codebook.tokenize(latents).unflatten(0, (2, -1)).int().cpu())
    latents = torch.cat(raw, dim=1)
    std, mean = torch.std_mean(latents, dim=(0, 1, 3, 4))
    whitened = (latents - mean[:, None, None]) / std[:, None, None].clamp(min=1e-6)
    labels = torch.from_numpy(dataset.train.labels.copy())
    return dict(
        latents=whitened, tokens=torch.cat(tokens, dim=1), labels=labels, mean=mean, std=std
    )


@torch.inference_mode()
def decode(space: LatentSpace, data: LatentSet, latents: Tensor) -> Tensor:
    """Whitened latents to uint8 images on their device, in float32: generated and floor images take
    the same way.
    """
    batch = space.at_once(latents.shape[-1] * space.autoencoder.factor)
    return torch.cat(
        [space.autoencoder.decode(data.raw(part.float())) for part in latents.split(batch)]
    )


@torch.inference_mode()
def reconstruct(
    split: Split, space: LatentSpace, data: LatentSet, device: torch.device
) -> dict[str, Tensor]:
    """A split's pictures through the autoencoder and through autoencoder and codebook, uint8 (N, 3,
    H, W) each.
    """
    space, out = space.to(device), {"autoencoder": [], "codebook": []}
    book = space.codebook.whitened(data.mean, data.std)
    batch = space.at_once(split.pixels.shape[-1])
    for start in range(0, len(split), batch):
        images = torch.from_numpy(split[start : start + batch]).to(device)
        latents = space.autoencoder.encode(images)
        whitened = (latents - data.mean.to(device)[:, None, None]) / data.std.to(device)[
            :, None, None
        ]
        out["autoencoder"].append(decode(space, data, whitened).cpu())
        out["codebook"].append(decode(space, data, book.detokenize(book.tokenize(whitened))).cpu())
    return {name: torch.cat(parts) for name, parts in out.items()}
