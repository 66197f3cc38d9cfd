"""A codebook over raw autoencoder latents: k-means centres, nearest-neighbour ids, and back.

One token stands for one latent position (C numbers), so a (C, H, W) latent is H * W tokens in raster order.
"""

import torch
from safetensors.torch import save_file
from torch import LongTensor, Tensor, nn


class Codebook(nn.Module):
    """K entries of C numbers. `whitened(mean, std)` gives the same codebook speaking whitened latents."""

    def __init__(self, size: int, channels: int = 4):
        super().__init__()
        self.register_buffer("entries", torch.zeros(size, channels))
        self.register_buffer("mean", torch.zeros(channels), persistent=False)
        self.register_buffer("std", torch.ones(channels), persistent=False)

    @property
    def size(self) -> int:
        return len(self.entries)

    def whitened(self, mean: Tensor, std: Tensor) -> "Codebook":
        """The same entries for latents (z - mean) / std, per channel; nearest is still measured in raw units."""
        twin = Codebook(self.size, self.entries.shape[1]).to(self.entries.device)
        twin.entries, twin.mean, twin.std = self.entries, mean.to(self.entries), std.to(self.entries)
        return twin

    def tokenize(self, latents: Tensor) -> LongTensor:
        """(B, C, H, W) -> ids (B, H*W) of the nearest entries, in raster order."""
        points = latents.float().permute(0, 2, 3, 1).flatten(0, 2) * self.std + self.mean
        ids = torch.cat([nearest(chunk, self.entries) for chunk in points.split(4096)])
        return ids.view(len(latents), -1)

    def detokenize(self, ids: LongTensor) -> Tensor:
        """Ids (B, H*W) of a square latent -> (B, C, H, W)."""
        side = round(ids.shape[1] ** 0.5)
        if side * side != ids.shape[1]:
            raise ValueError(f"{ids.shape[1]} tokens do not make a square latent")
        points = (self.entries[ids] - self.mean) / self.std
        return points.view(len(ids), side, side, -1).permute(0, 3, 1, 2).contiguous()

    def save(self, path) -> None:
        save_file({"entries": self.entries.float().cpu()}, str(path), metadata={"kind": "latentbench-codebook"})


def nearest(points: Tensor, centres: Tensor) -> LongTensor:
    """Index of the nearest centre: argmin |c|^2 - 2 p.c, (N, C), (K, C) -> (N,)."""
    return (centres.square().sum(1) - 2 * points @ centres.T).argmin(1)


def fit(points: Tensor, size: int, *, rng: torch.Generator, iterations: int = 20) -> Codebook:
    """Seeded Lloyd k-means on (N, C) points; entries that lose all their points are re-seeded on random ones.

    Raises ValueError where there are fewer points than entries.
    """
    if len(points) < size:
        raise ValueError(f"codebook size {size} needs at least as many latent vectors, got {len(points)}")
    centres = points[torch.randperm(len(points), generator=rng)[:size]].clone()
    for _ in range(iterations):
        ids = torch.cat([nearest(chunk, centres) for chunk in points.split(4096)])
        counts = torch.bincount(ids, minlength=size)
        sums = torch.zeros_like(centres).index_add_(0, ids, points)
        centres = sums / counts.clamp(min=1)[:, None]
        dead = (counts == 0).nonzero().flatten()
        centres[dead] = points[torch.randint(len(points), (len(dead),), generator=rng)]
    book = Codebook(size, points.shape[1])
    book.entries.copy_(centres)
    return book
