"""The kernel distance (KID, Binkowski et al. 2018, arXiv 1801.01401): an unbiased squared MMD, over all pairs, in float64."""

import torch
from torch import Tensor


def _kernel_sum(a: Tensor, b: Tensor, rows: int = 1024) -> Tensor:
    """Sum of (a.b / d + 1)^3 over all pairs."""
    return sum(((part @ b.T / a.shape[1] + 1) ** 3).sum() for part in a.split(rows))


def kid(real: Tensor, fake: Tensor) -> float:
    """Features (N, d) and (M, d) -> the full U-statistic of squared MMD; around 0, also below, for two samples of one distribution.

    Raises ValueError for fewer than two rows, or differing d.
    """
    a, b = (x.detach().to("cpu", torch.float64) for x in (real, fake))
    n, m = len(a), len(b)
    if min(n, m) < 2 or a.shape[1:] != b.shape[1:]:
        raise ValueError(f"kid: features must be (N, d) and (M, d) with N, M >= 2, got {tuple(a.shape)} and {tuple(b.shape)}")
    own = [_kernel_sum(x, x) - ((x.square().sum(1) / x.shape[1] + 1) ** 3).sum() for x in (a, b)]
    return (own[0] / (n * (n - 1)) + own[1] / (m * (m - 1)) - 2 * _kernel_sum(a, b) / (n * m)).item()
