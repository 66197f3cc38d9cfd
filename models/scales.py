"""Codebooks by scale: latents as maps of tokens from one for the whole image to one for each place.

Each scale says what those before it left over (VAR, arXiv 2404.02905, algorithm 1, without its
trained convolutions): the residual is averaged over the areas of the scale, coded, enlarged and
taken away.
"""

from collections.abc import Sequence
from itertools import accumulate

import torch
import torch.nn.functional as F
from torch import LongTensor, Tensor, nn

from models import codebook

FIT_VECTORS = 100_000  # at most, of each scale


def powers_of_two(side: int) -> list[int]:
    """1, 2, 4, ... up to `side`. Raises ValueError where it is none of them."""
    if side < 1 or side & (side - 1):
        raise ValueError(
            f"model.sides: scales of 1, 2, 4, ... do not tile latents of {side}x{side}; "
            f"give divisors of {side}, from 1 to {side}"
        )
    return [2**n for n in range(side.bit_length())]


class ScaleCodebooks(nn.Module):
    """`size` entries for each of the scales of whitened latents (C, H, W), H = W.

    `sides` are the scales' places a side, ascending, divisors of H and H itself; None is all powers
    of two. Zero until `fit`. Raises ValueError for sides that do not tile the latents.
    """

    def __init__(
        self, size: int, latent_shape: tuple[int, int, int], sides: Sequence[int] | None = None
    ):
        super().__init__()
        channels, height, width = latent_shape
        if height != width:
            raise ValueError(f"model.sides: scales are square, latents are {height}x{width}")
        self.sides = list(sides) if sides else powers_of_two(height)
        tiles = all(height % side == 0 for side in self.sides)
        if not tiles or self.sides != sorted(set(self.sides)) or self.sides[-1] != height:
            raise ValueError(
                f"model.sides={self.sides}: ascending divisors of {height}, the last of them "
                f"{height}, which tile latents of {height}x{height}"
            )
        self.size, self.side = size, height
        self.register_buffer("entries", torch.zeros(len(self.sides), size, channels))

    @property
    def tokens(self) -> int:
        """Of an image, all scales together."""
        return sum(side**2 for side in self.sides)

    def spans(self) -> list[tuple[int, int]]:
        """Each scale's first token, and the one after its last."""
        ends = list(accumulate(side**2 for side in self.sides))
        return list(zip([0, *ends], ends, strict=False))

    def shrunk(self, latents: Tensor, side: int) -> Tensor:
        """(B, C, H, W) -> the means (B, side^2, C) of as many areas, in raster order."""
        return F.adaptive_avg_pool2d(latents, side).flatten(2).transpose(1, 2)

    def enlarged(self, scale: int, ids: LongTensor) -> Tensor:
        """What one scale's ids (B, side^2) add to the latents, (B, C, H, W)."""
        return self._placed(self.entries[scale], self.sides[scale], ids)

    def _placed(self, entries: Tensor, side: int, ids: LongTensor) -> Tensor:
        """Entries (K, C) at their areas, `side` a side, as latents (B, C, H, W)."""
        maps = entries[ids].transpose(1, 2).unflatten(2, (side, side))
        if side == self.side:
            return maps.contiguous()
        return F.interpolate(maps, size=(self.side, self.side), mode="bilinear")

    def tokenize(self, latents: Tensor) -> tuple[LongTensor, Tensor]:
        """(B, C, H, W) -> ids (B, T) of all scales in turn, and (B, T, C): at each token what the
        scales before its own make of its area, zeros at the first.
        """
        total, ids, before = torch.zeros_like(latents), [], []
        for scale, side in enumerate(self.sides):
            before.append(self.shrunk(total, side))
            points = self.shrunk(latents - total, side)
            own = codebook.nearest(points.flatten(0, 1), self.entries[scale])
            ids.append(own.view(len(latents), -1))
            total = total + self.enlarged(scale, ids[-1])
        return torch.cat(ids, dim=1), torch.cat(before, dim=1)

    def detokenize(self, ids: LongTensor) -> Tensor:
        """Ids (B, T) -> latents (B, C, H, W): the sum of what all scales add."""
        parts = [self.enlarged(n, ids[:, a:b]) for n, (a, b) in enumerate(self.spans())]
        return torch.stack(parts).sum(0)

    def quantise(self, latents: Tensor) -> Tensor:
        """What tokens keep of latents (B, C, H, W), of the same shape."""
        ids, _ = self.tokenize(latents)
        return self.detokenize(ids)

    @torch.no_grad()
    def fit(self, latents: Tensor, *, seed: int = 0) -> None:
        """k-means of each scale's residuals on training latents (N, C, H, W), scale after scale.

        A scale of fewer vectors than entries, as the first one of few images, repeats its last.
        All of it is done on the host, where sums have an order: several processes that fit the same
        latents must come to the same entries.
        """
        rng = torch.Generator().manual_seed(seed)
        left = latents.float().cpu()
        for scale, side in enumerate(self.sides):
            points = self.shrunk(left, side).flatten(0, 1)
            some = torch.randperm(len(points), generator=rng)[:FIT_VECTORS]
            size = min(self.size, len(points))
            fitted = codebook.fit(points[some], size, rng=rng).entries
            self.entries[scale] = fitted[torch.arange(self.size).clamp(max=size - 1)]
            ids = codebook.nearest(points, fitted).view(len(left), -1)
            left = left - self._placed(fitted, side, ids)
