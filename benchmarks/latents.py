"""Pictures to whitened latents and tokens, once per data set: what all three families train on."""

from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from tqdm import tqdm

from benchmarks.data import Dataset
from benchmarks.store import BadInput, digest, file_digest, read_tensors, seeded, write_tensors
from models.autoencoder import Autoencoder, load_weights
from models.codebook import Codebook
from models.generator import Batch

SHIPPED = Path(__file__).parent.parent / "models" / "weights"
TENSORS = ("latents", "tokens", "labels", "mean", "std")


@dataclass(frozen=True)
class LatentSpace:
    """The frozen autoencoder, its codebook and the fingerprint of both."""

    autoencoder: Autoencoder
    codebook: Codebook
    name: str
    key: str

    def to(self, device: torch.device) -> "LatentSpace":
        return replace(self, autoencoder=self.autoencoder.to(device), codebook=self.codebook.to(device))


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
        """Training batch `step`: a pure function of (seed, step), each epoch a new order, each picture mirrored at a coin's toss."""
        at = batch_indices(len(self.labels), size, seed, step).to(self.labels.device)
        mirror = torch.randint(2, (size,), generator=seeded("mirror", seed, step)).to(at)
        return Batch(self.latents[mirror, at], self.tokens[mirror, at].long(), self.labels[at])

    def raw(self, latents: Tensor) -> Tensor:
        """Whitened -> the autoencoder's own units."""
        return latents * self.std.to(latents)[:, None, None] + self.mean.to(latents)[:, None, None]


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


def load_space(cfg: Any) -> LatentSpace:
    """The autoencoder and codebook of `conf/autoencoder/*.yaml`. Raises BadInput for files that do not fit."""
    paths = {name: Path(cfg.get(name) or SHIPPED / f"{name}.safetensors") for name in ("weights", "codebook")}
    if not cfg.get("weights"):
        paths["weights"] = SHIPPED / "autoencoder.safetensors"
    try:
        autoencoder = load_weights(Autoencoder(), paths["weights"], "autoencoder.weights")
        with safe_open(str(paths["codebook"]), "pt") as file:
            entries = file.get_slice("entries").get_shape()
        codebook = load_weights(Codebook(*entries), paths["codebook"], "autoencoder.codebook")
    except (OSError, SafetensorError) as error:
        raise BadInput(f"autoencoder.codebook: {paths['codebook']} is not a codebook ({error})") from None
    except ValueError as error:
        raise BadInput(str(error)) from None
    return LatentSpace(autoencoder, codebook, cfg.name, digest(*(file_digest(path) for path in paths.values())))


def shipped_codebook_size() -> int:
    """Entries of the codebook in models/weights."""
    with safe_open(str(SHIPPED / "codebook.safetensors"), "pt") as file:
        return file.get_slice("entries").get_shape()[0]


def latent_shape(space: LatentSpace, image_size: int) -> tuple[int, int, int]:
    """(C, H, W); raises BadInput for a size the autoencoder cannot take."""
    try:
        return space.autoencoder.latent_shape(image_size)
    except ValueError as error:
        raise BadInput(str(error)) from None


def prepare(dataset: Dataset, space: LatentSpace, *, cache: str | Path, device: torch.device) -> LatentSet:
    """The training latents and tokens of a data set, encoded on first use and cached."""
    key = digest("latents", 1, dataset.train_key, space.key)
    path = Path(cache) / "latents" / f"{key}.safetensors"
    ready = read_tensors(path, key)
    if ready:
        return LatentSet(**ready[0], key=key)
    tensors = _encode(dataset, space, device)
    write_tensors(path, key, tensors)
    return LatentSet(**tensors, key=key)


@torch.inference_mode()
def _encode(dataset: Dataset, space: LatentSpace, device: torch.device, batch: int = 128) -> dict[str, Tensor]:
    """Encode every training picture and its mirror image, whiten per channel, and look up the tokens."""
    space, raw, tokens = space.to(device), [], []
    for start in tqdm(range(0, len(dataset.train), batch), desc="encoding", unit="batch", leave=False, disable=None):
        images = torch.from_numpy(dataset.train[start : start + batch]).to(device)
        latents = space.autoencoder.encode(torch.cat([images, images.flip(3)]))
        raw.append(latents.unflatten(0, (2, -1)).cpu())
        tokens.append(space.codebook.tokenize(latents).unflatten(0, (2, -1)).int().cpu())
    latents = torch.cat(raw, dim=1)
    std, mean = torch.std_mean(latents, dim=(0, 1, 3, 4))
    whitened = (latents - mean[:, None, None]) / std[:, None, None].clamp(min=1e-6)
    labels = torch.from_numpy(dataset.train.labels.copy())
    return dict(latents=whitened, tokens=torch.cat(tokens, dim=1), labels=labels, mean=mean, std=std)
