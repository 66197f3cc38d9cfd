"""The kernel distance (KID, arXiv 1801.01401): an unbiased squared MMD, over all pairs, in float64.

The kernel is the paper's, (x.y / d + 1)^3. Where public code averages over random subsets, this is
the full U-statistic, with an error of its own.
"""

from typing import NamedTuple

import torch
from torch import Tensor

ROWS = 1024  # of a kernel matrix at once


class Kernel(NamedTuple):
    """The distance and its standard error, in the kernel's units."""

    distance: float  # around 0, also below, for two samples of one distribution
    error: float  # by a delete-one jackknife over both samples


def _kernel(a: Tensor, b: Tensor) -> Tensor:
    """Of all pairs of rows (N, d) and (M, d), (N, M)."""
    return (a @ b.T / a.shape[1] + 1) ** 3


def _kernel_sums(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """The kernel of all pairs, summed over b for each a (N,) and over a for each b (M,)."""
    per_a, per_b = [], a.new_zeros(len(b))
    for rows in a.split(ROWS):
        kernel = _kernel(rows, b)
        per_a.append(kernel.sum(1))
        per_b += kernel.sum(0)
    return torch.cat(per_a), per_b


def _without_self(a: Tensor) -> Tensor:
    """Kernel sums of each row with all others (N,)."""
    sums = a.new_zeros(len(a))
    for start in range(0, len(a), ROWS):
        stop = min(start + ROWS, len(a))
        # Each pair once: k(i, j) = k(j, i), so the columns past the block are sums of later rows.
        kernel = _kernel(a[start:stop], a[start:])
        sums[start:stop] += kernel.sum(1)
        sums[stop:] += kernel[:, stop - start :].sum(0)
    # With the pairs (i, i) the estimate would be biased.
    return sums - (a.square().sum(1) / a.shape[1] + 1) ** 3


def _jackknife_variance(left_out: Tensor, labels: Tensor | None) -> Tensor:
    """Of the values with each row left out (N,); within classes where labels (N,) are given."""
    groups = [left_out]
    if labels is not None:
        groups = [left_out[labels == label] for label in labels.unique()]
    return sum((len(x) - 1) / len(x) * (x - x.mean()).square().sum() for x in groups)


def _one_left_out(
    own: Tensor, other_mean: Tensor, across: Tensor, across_sum: Tensor, others: int
) -> Tensor:
    """The distance with each row of one sample left out (n,).

    `own` (n,) and `across` (n,) are a row's kernel sums with its own and with the other sample.
    `other_mean` is the mean over pairs within the other sample, of `others` rows, and `across_sum`
    the sum over all pairs across.
    """
    n = len(own)
    own_mean = (own.sum() - 2 * own) / ((n - 1) * (n - 2))  # both pairs (i, j) and (j, i) go
    return own_mean + other_mean - 2 * (across_sum - across) / ((n - 1) * others)


def kid(
    real: Tensor, fake: Tensor, *, labels: tuple[Tensor | None, Tensor | None] = (None, None)
) -> Kernel:
    """The full U-statistic of squared MMD between features (N, d) and (M, d).

    `labels` are those of the real and of the fake rows, where these are class-balanced by design:
    then only what varies within a class adds to the error. The distance is a little below zero for
    equals then, because pairs of one class are rarer within a set than between the two: compare it
    with that of real images. Raises ValueError for fewer than three rows, or differing d.
    """
    a, b = real.detach().to("cpu", torch.float64), fake.detach().to("cpu", torch.float64)
    n, m = len(a), len(b)
    if min(n, m) < 3 or a.shape[1:] != b.shape[1:]:
        raise ValueError(
            "kid: features must be (N, d) and (M, d) with N, M >= 3, "
            f"got {tuple(a.shape)} and {tuple(b.shape)}"
        )
    # MMD^2 = E k(a, a') + E k(b, b') - 2 E k(a, b), over pairs of different rows.
    own_a, own_b = _without_self(a), _without_self(b)
    across_a, across_b = _kernel_sums(a, b)
    mean_a, mean_b = own_a.sum() / (n * (n - 1)), own_b.sum() / (m * (m - 1))
    across_sum = across_a.sum()
    distance = mean_a + mean_b - 2 * across_sum / (n * m)
    left_out_a = _one_left_out(own_a, mean_b, across_a, across_sum, m)
    left_out_b = _one_left_out(own_b, mean_a, across_b, across_sum, n)
    variance_a = _jackknife_variance(left_out_a, labels[0])
    variance_b = _jackknife_variance(left_out_b, labels[1])
    return Kernel(distance.item(), (variance_a + variance_b).sqrt().item())
