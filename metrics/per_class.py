"""Distances within each class: the Fréchet distance where a class has rows enough for it, the
kernel distance where it has a few.
"""

from collections.abc import Iterator

from torch import Tensor

from metrics.frechet import frechet_distance
from metrics.kid import Kernel, kid


def _classes(
    real: Tensor, real_labels: Tensor, fake: Tensor, fake_labels: Tensor, least: int
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Each class with at least so many rows on both sides, and those."""
    for k in fake_labels.unique().tolist():
        pair = real[real_labels == k], fake[fake_labels == k]
        if min(map(len, pair)) >= least:
            yield k, *pair


def kid_per_class(
    real: Tensor, real_labels: Tensor, fake: Tensor, fake_labels: Tensor
) -> dict[int, Kernel]:
    """Of features (N, d), (M, d) and their labels: class -> kernel distance, for classes with at
    least three rows on both sides.
    """
    return {k: kid(a, b) for k, a, b in _classes(real, real_labels, fake, fake_labels, 3)}


def frechet_per_class(
    real: Tensor, real_labels: Tensor, fake: Tensor, fake_labels: Tensor
) -> dict[int, float]:
    """The same with the Fréchet distance, for classes with at least 2 d rows on both sides: below
    that it is mostly bias.
    """
    return {
        k: frechet_distance(a, b)
        for k, a, b in _classes(real, real_labels, fake, fake_labels, 2 * real.shape[1])
    }
