"""A codebook over raw autoencoder latents: k-means centres, nearest-neighbour ids, and back.

One token stands for one latent position (C numbers), so a (C, H, W) latent is H * W tokens in
raster order.
"""

from pathlib import Path

import torch
from safetensors.torch import save_file
from scipy.spatial import cKDTree
from torch import LongTensor, Tensor, nn

CHUNK = 1 << 24  # distances held at once: 64 MiB of float32
TREE_CHANNELS = 8  # up to here a k-d tree is faster than comparing with every entry
START_ROWS = 50_000  # the k-means++ start sees at least so many points, where there are as many


class Codebook(nn.Module):
    """K entries of C numbers each.

    It takes and gives raw latents of the autoencoder; `whitened` makes a twin for whitened ones.
    """

    def __init__(self, size: int, channels: int = 4):
        super().__init__()
        self.register_buffer("entries", torch.zeros(size, channels))
        # not saved: they belong to a data set
        self.register_buffer("mean", torch.zeros(channels), persistent=False)
        self.register_buffer("std", torch.ones(channels), persistent=False)

    @property
    def size(self) -> int:
        """The number of entries, K."""
        return len(self.entries)

    def whitened(self, mean: Tensor, std: Tensor) -> "Codebook":
        """The same entries for latents (z - mean) / std, with mean and std (C,).

        The nearest entry is still looked for in raw units, so that tokens do not depend on the
        whitening.
        """
        twin = Codebook(self.size, self.entries.shape[1]).to(self.entries.device)
        twin.entries = self.entries
        twin.mean, twin.std = mean.to(self.entries), std.to(self.entries)
        return twin

    def tokenize(self, latents: Tensor) -> LongTensor:
        """(B, C, H, W) -> ids (B, H*W) of the nearest entries, in raster order."""
        # Back to raw units: see `whitened`.
        points = latents.float().permute(0, 2, 3, 1).flatten(0, 2) * self.std + self.mean
        return nearest(points, self.entries).view(len(latents), -1)

    def detokenize(self, ids: LongTensor) -> Tensor:
        """Ids (B, H*W) of a square latent -> (B, C, H, W). Raises ValueError where it is none."""
        side = round(ids.shape[1] ** 0.5)
        if side * side != ids.shape[1]:
            raise ValueError(f"{ids.shape[1]} tokens do not make a square latent")
        points = (self.entries[ids] - self.mean) / self.std
        return points.view(len(ids), side, side, -1).permute(0, 3, 1, 2).contiguous()

    def quantise(self, latents: Tensor) -> Tensor:
        """What tokens keep of latents (B, C, H, W), of the same shape."""
        return self.detokenize(self.tokenize(latents))

    def statistics(self, ids: LongTensor) -> dict[str, float]:
        """Of a set of tokens, of any shape.

        `usage`: the fraction of the entries that occur, 0 to 1. `perplexity`: exp of the entropy of
        the ids, 1 to K.
        """
        frequency = torch.bincount(ids.flatten(), minlength=self.size).double() / ids.numel()
        used = frequency[frequency > 0]
        entropy = -(used * used.log()).sum()
        return {"usage": len(used) / self.size, "perplexity": entropy.exp().item()}

    def save(self, path: str | Path) -> None:
        """Write the entries as float32 safetensors."""
        entries = self.entries.float().cpu()
        save_file({"entries": entries}, str(path), metadata={"kind": "latentbench-codebook"})


def nearest(points: Tensor, centres: Tensor) -> LongTensor:
    """The index (N,) of the centre (K, C) nearest to each point (N, C)."""
    if points.device.type == "cpu" and points.shape[1] <= TREE_CHANNELS:
        tree = cKDTree(centres.numpy())
        return torch.from_numpy(tree.query(points.numpy(), workers=-1)[1])
    # |p - c|^2 without |p|^2, which is the same for all centres.
    lengths = centres.square().sum(1)
    chunks = points.split(max(1, CHUNK // len(centres)))
    return torch.cat(
        [torch.addmm(lengths, chunk, centres.T, alpha=-2).argmin(1) for chunk in chunks]
    )


def spread(points: Tensor, size: int, *, rng: torch.Generator) -> Tensor:
    """Starting centres (K, C) among points (N, C) by k-means++ (Arthur & Vassilvitskii 2007).

    Each next one is a point chosen with probability proportional to the squared distance to the
    nearest centre so far.
    """
    uniform = torch.rand(size, generator=rng, dtype=torch.float64).to(points.device)
    chosen = torch.empty(size, dtype=torch.long, device=points.device)
    columns = points.T.contiguous()  # sums over C then run along memory
    chosen[0] = (uniform[0] * len(points)).long()
    gaps = torch.full((len(points),), torch.inf, device=points.device)
    for i in range(size):
        # The inverse of the cumulated squared distances, in float64: there may be millions.
        if i:
            total = gaps.cumsum(0, dtype=torch.float64)
            place = torch.searchsorted(total, uniform[i] * total[-1], right=True)
            chosen[i] = place.clamp(max=len(points) - 1)  # rounding may put it past the end
        distance = (columns - columns[:, chosen[i], None]).square_().sum(0)
        gaps = torch.minimum(gaps, distance)
    return points[chosen].clone()


def fit(
    points: Tensor, size: int, *, rng: torch.Generator, iterations: int = 20, start_points: int = 8
) -> Codebook:
    """Seeded Lloyd k-means on points (N, C), on whichever device they lie.

    The k-means++ start sees `start_points` points an entry. An entry that loses all its points is
    put on the point that is now worst served, the next one on the second worst. Raises ValueError
    where there are fewer points than entries.
    """
    if len(points) < size:
        raise ValueError(
            f"codebook size {size} needs at least as many latent vectors, got {len(points)}"
        )
    points = points[torch.randperm(len(points), generator=rng).to(points.device)].float()
    centres = spread(points[: max(size * start_points, START_ROWS)], size, rng=rng)
    # Lloyd's two steps: assign each point to a centre, move each centre to its points.
    for _ in range(iterations):
        ids = nearest(points, centres)
        counts = torch.bincount(ids, minlength=size)
        sums = torch.zeros_like(centres).index_add_(0, ids, points)
        dead = (counts == 0).nonzero().flatten()
        if len(dead):
            errors = (points - centres[ids]).square().sum(1)
            sums[dead], counts[dead] = points[errors.topk(len(dead)).indices], 1
        centres = sums / counts[:, None]  # each the mean of the points nearest to it
    book = Codebook(size, points.shape[1]).to(points.device)
    book.entries.copy_(centres)
    return book
