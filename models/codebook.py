"""A codebook over raw autoencoder latents: k-means centres, nearest-neighbour ids, and back.

One token stands for one latent position (C numbers), so a (C, H, W) latent is H * W tokens in
raster order.
"""

import torch
from safetensors.torch import save_file
from scipy.spatial import cKDTree
from torch import LongTensor, Tensor, nn

CHUNK = 1 << 24  # distances held at once: 64 MiB of float32
TREE_CHANNELS = 8  # up to here a k-d tree beats comparing with every entry


class Codebook(nn.Module):
    """K entries of C numbers. `whitened(mean, std)` gives the same codebook speaking whitened
    latents.
    """

    def __init__(self, size: int, channels: int = 4):
        super().__init__()
        self.register_buffer("entries", torch.zeros(size, channels))
        self.register_buffer("mean", torch.zeros(channels), persistent=False)
        self.register_buffer("std", torch.ones(channels), persistent=False)

    @property
    def size(self) -> int:
        return len(self.entries)

    def whitened(self, mean: Tensor, std: Tensor) -> "Codebook":
        """The same entries for latents (z - mean) / std, per channel; nearest is still measured in
        raw units.
        """
        twin = Codebook(self.size, self.entries.shape[1]).to(self.entries.device)
        twin.entries, twin.mean, twin.std = (
            self.entries,
            mean.to(self.entries),
            std.to(self.entries),
        )
        return twin

    def tokenize(self, latents: Tensor) -> LongTensor:
        """(B, C, H, W) -> ids (B, H*W) of the nearest entries, in raster order."""
        points = latents.float().permute(0, 2, 3, 1).flatten(0, 2) * self.std + self.mean
        return nearest(points, self.entries).view(len(latents), -1)

    def detokenize(self, ids: LongTensor) -> Tensor:
        """Ids (B, H*W) of a square latent -> (B, C, H, W)."""
        side = round(ids.shape[1] ** 0.5)
        if side * side != ids.shape[1]:
            raise ValueError(f"{ids.shape[1]} tokens do not make a square latent")
        points = (self.entries[ids] - self.mean) / self.std
        return points.view(len(ids), side, side, -1).permute(0, 3, 1, 2).contiguous()

    def statistics(self, ids: LongTensor) -> dict[str, float]:
        """Of a set of tokens: `usage`, the share of entries that occur, 0 to 1; `perplexity`, exp
        of the ids' entropy, 1 to K.
        """
        share = torch.bincount(ids.flatten(), minlength=self.size).double() / ids.numel()
        used = share[share > 0]
        return {
            "usage": len(used) / self.size,
            "perplexity": (-(used * used.log()).sum()).exp().item(),
        }

    def save(self, path) -> None:
        save_file(
            {"entries": self.entries.float().cpu()},
            str(path),
            metadata={"kind": "latentbench-codebook"},
        )


def nearest(points: Tensor, centres: Tensor) -> LongTensor:
    """Index of the nearest centre, (N, C), (K, C) -> (N,): by k-d tree on a CPU, by all distances
    on any other device.
    """
    if points.device.type == "cpu" and points.shape[1] <= TREE_CHANNELS:
        return torch.from_numpy(cKDTree(centres.numpy()).query(points.numpy(), workers=-1)[1])
    lengths = centres.square().sum(1)
    parts = points.split(max(1, CHUNK // len(centres)))
    return torch.cat([torch.addmm(lengths, part, centres.T, alpha=-2).argmin(1) for part in parts])


def spread(points: Tensor, size: int, *, rng: torch.Generator) -> Tensor:
    """k-means++ (Arthur & Vassilvitskii 2007): starting centres (K, C), each drawn with probability
    ~ squared distance to the others.
    """
    draws = torch.rand(size, generator=rng, dtype=torch.float64).to(points.device)
    picks = torch.empty(size, dtype=torch.long, device=points.device)
    columns = points.T.contiguous()
    picks[0] = (draws[0] * len(points)).long()
    gaps = torch.full((len(points),), torch.inf, device=points.device)
    for i in range(size):
        if i:
            total = gaps.cumsum(0, dtype=torch.float64)
            picks[i] = torch.searchsorted(total, draws[i] * total[-1], right=True).clamp(
                max=len(points) - 1
            )
        away = (columns - columns[:, picks[i], None]).square_().sum(0)
        gaps = torch.minimum(gaps, away)
    return points[picks].clone()


def fit(
    points: Tensor, size: int, *, rng: torch.Generator, iterations: int = 20, start_points: int = 8
) -> Codebook:
    """Seeded Lloyd k-means on (N, C) points, on whichever device they lie.

    The k-means++ start sees `start_points` points an entry. An entry that loses all its points is
    put on the point that is now worst served, the next on the second worst. Raises ValueError where
    there are fewer points than entries.
    """
    if len(points) < size:
        raise ValueError(
            f"codebook size {size} needs at least as many latent vectors, got {len(points)}"
        )
    points = points[torch.randperm(len(points), generator=rng).to(points.device)].float()
    centres = spread(points[: max(size * start_points, 50_000)], size, rng=rng)
    for _ in range(iterations):
        ids = nearest(points, centres)
        counts = torch.bincount(ids, minlength=size)
        sums = torch.zeros_like(centres).index_add_(0, ids, points)
        dead = (counts == 0).nonzero().flatten()
        if len(dead):
            errors = (points - centres[ids]).square().sum(1)
            sums[dead], counts[dead] = points[errors.topk(len(dead)).indices], 1
        centres = sums / counts[:, None]
    book = Codebook(size, points.shape[1]).to(points.device)
    book.entries.copy_(centres)
    return book
