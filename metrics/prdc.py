"""Precision and recall (arXiv 1904.06991), density and coverage (arXiv 2002.09797).

A set of features is taken as the union of balls around its rows, each as large as the distance to
the row's k-th nearest neighbour.
"""

from typing import NamedTuple

import torch
from torch import Tensor

NEIGHBOURS = 5  # k, as the second paper has it
MOST = 10_000  # rows of either set: the matrix of distances is 800 MB then


class Manifold(NamedTuple):
    """Between two samples of one distribution: the first two 0.8 to 0.9, the others near 1."""

    precision: float  # fraction of the samples inside the real balls, 0 to 1
    recall: float  # fraction of the real rows inside the samples' balls, 0 to 1
    density: float  # real balls that a sample lies in, over k; 0 and up
    coverage: float  # fraction of the real balls that hold a sample, 0 to 1


def _radii(points: Tensor, k: int) -> Tensor:
    """The distance (N,) of each point (N, d) to its k-th nearest neighbour, itself left out."""
    return torch.cdist(points, points).kthvalue(k + 1, dim=1).values


def _equally_many(real: Tensor, fake: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The first min(N, M) rows of each, at most 10,000, in float64 on the CPU."""
    n = min(len(real), len(fake), MOST)
    if n <= k + 1 or real.shape[1:] != fake.shape[1:]:
        raise ValueError(
            f"prdc: features must be (N, d) and (M, d) with more than {k + 1} rows, "
            f"got {tuple(real.shape)}, {tuple(fake.shape)}"
        )
    real, fake = (x[:n].detach().to("cpu", torch.float64) for x in (real, fake))
    return real, fake


def _recall(between: Tensor, fake_radii: Tensor) -> float:
    """From the distances between both (real, fake), and the radii of the fake rows."""
    return (between < fake_radii).any(1).double().mean().item()


def recall(real: Tensor, fake: Tensor, *, k: int = NEIGHBOURS) -> float:
    """`prdc(real, fake, k=k).recall` alone, which needs no radii of the real rows."""
    real, fake = _equally_many(real, fake, k)
    return _recall(torch.cdist(real, fake), _radii(fake, k))


def prdc(real: Tensor, fake: Tensor, *, k: int = NEIGHBOURS) -> Manifold:
    """Of features (N, d) and (M, d), the first min(N, M) rows of each, at most 10,000.

    With unequal numbers coverage would depend on them. Raises ValueError for k + 1 rows or fewer,
    or differing d.
    """
    real, fake = _equally_many(real, fake, k)
    real_radii, fake_radii = _radii(real, k), _radii(fake, k)
    between = torch.cdist(real, fake)  # (real, fake)
    inside = between < real_radii[:, None]
    return Manifold(
        precision=inside.any(0).double().mean().item(),
        recall=_recall(between, fake_radii),
        density=inside.sum(0).double().mean().item() / k,
        coverage=(between.min(1).values < real_radii).double().mean().item(),
    )
