"""The kernel distance (KID, Binkowski et al. 2018, arXiv 1801.01401): an unbiased squared MMD, over
all pairs, in float64.
"""

from typing import NamedTuple

import torch
from torch import Tensor

ROWS = 1024  # of a kernel matrix at once


class Kernel(NamedTuple):
    """The distance and its standard error: a delete-one jackknife over both samples, within classes
    where these are balanced by design.
    """

    distance: float
    error: float


def _kernel_sums(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """(a.b / d + 1)^3 of all pairs, summed over b for each a (N,) and over a for each b (M,)."""
    rows, columns = [], a.new_zeros(len(b))
    for part in a.split(ROWS):
        kernel = (part @ b.T / a.shape[1] + 1) ** 3
        rows.append(kernel.sum(1))
        columns += kernel.sum(0)
    return torch.cat(rows), columns


def _without_self(a: Tensor) -> Tensor:
    """Kernel sums of each row with all others (N,)."""
    return _kernel_sums(a, a)[0] - (a.square().sum(1) / a.shape[1] + 1) ** 3


def _spread(left_out: Tensor, labels: Tensor | None) -> Tensor:
    """The jackknife's variance of values with each row left out."""
    groups = [left_out] if labels is None else [left_out[labels == k] for k in labels.unique()]
    return sum((len(x) - 1) / len(x) * (x - x.mean()).square().sum() for x in groups)


def kid(
    real: Tensor, fake: Tensor, *, labels: tuple[Tensor | None, Tensor | None] = (None, None)
) -> Kernel:
    """Features (N, d) and (M, d) -> the full U-statistic of squared MMD, around 0, also below, for
    two samples of one distribution.

    Raises ValueError for fewer than three rows, or differing d.
    """
    a, b = (x.detach().to("cpu", torch.float64) for x in (real, fake))
    n, m = len(a), len(b)
    if min(n, m) < 3 or a.shape[1:] != b.shape[1:]:
        raise ValueError(
            f"kid: features must be (N, d) and (M, d) with N, M >= 3, got {tuple(a.shape)} and {tuple(b.shape)}"
        )
    own_a, own_b, (across_a, across_b) = _without_self(a), _without_self(b), _kernel_sums(a, b)
    total_a, total_b, across = (
        own_a.sum() / (n * (n - 1)),
        own_b.sum() / (m * (m - 1)),
        across_a.sum(),
    )
    less_a = (
        (own_a.sum() - 2 * own_a) / ((n - 1) * (n - 2))
        + total_b
        - 2 * (across - across_a) / ((n - 1) * m)
    )
    less_b = (
        (own_b.sum() - 2 * own_b) / ((m - 1) * (m - 2))
        + total_a
        - 2 * (across - across_b) / ((m - 1) * n)
    )
    variance = _spread(less_a, labels[0]) + _spread(less_b, labels[1])
    return Kernel((total_a + total_b - 2 * across / (n * m)).item(), variance.sqrt().item())
