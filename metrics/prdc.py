"""Precision and recall (Kynkaanniemi et al. 2019, arXiv 1904.06991), density and coverage (Naeem et
al. 2020, arXiv 2002.09797).
"""

from typing import NamedTuple

import torch
from torch import Tensor

NEIGHBOURS = 5
MOST = 10_000


class Manifold(NamedTuple):
    """Two samples of one distribution read precision and recall of 0.8 to 0.9, density about 1,
    coverage near 1.
    """

    precision: float
    recall: float
    density: float
    coverage: float


def _radii(points: Tensor, k: int) -> Tensor:
    """Distance of each point to its k-th nearest neighbour, itself left out."""
    return torch.cdist(points, points).kthvalue(k + 1, dim=1).values


def prdc(real: Tensor, fake: Tensor, *, k: int = NEIGHBOURS) -> Manifold:
    """Of features (N, d) and (M, d), the first min(N, M) of each, at most 10,000: with unequal
    numbers coverage depends on them.

    Raises ValueError for k + 1 rows or fewer, or differing d.
    """
    n = min(len(real), len(fake), MOST)
    if n <= k + 1 or real.shape[1:] != fake.shape[1:]:
        raise ValueError(
            f"prdc: features must be (N, d) and (M, d) with more than {k + 1} rows, got {tuple(real.shape)}, {tuple(fake.shape)}"
        )
    real, fake = (x[:n].detach().to("cpu", torch.float64) for x in (real, fake))
    real_radii, fake_radii, between = _radii(real, k), _radii(fake, k), torch.cdist(real, fake)
    inside = between < real_radii[:, None]
    return Manifold(
        precision=inside.any(0).double().mean().item(),
        recall=(between < fake_radii).any(1).double().mean().item(),
        density=inside.sum(0).double().mean().item() / k,
        coverage=(between.min(1).values < real_radii).double().mean().item(),
    )
