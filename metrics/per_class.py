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
    """Each class with at least so many rows on both sides: its label, its real and fake rows."""
    for label in fake_labels.unique().tolist():
        real_rows, fake_rows = real[real_labels == label], fake[fake_labels == label]
        if min(len(real_rows), len(fake_rows)) >= least:
            yield label, real_rows, fake_rows


def kid_per_class(
    real: Tensor, real_labels: Tensor, fake: Tensor, fake_labels: Tensor
) -> dict[int, Kernel]:
    """By class, the kernel distance between features (N, d) and (M, d) with labels (N,) and (M,).

    Of the classes with at least three rows on both sides.
    """
    # The kernel distance's jackknife leaves one row out and still needs a pair.
    classes = _classes(real, real_labels, fake, fake_labels, 3)
    return {label: kid(real_rows, fake_rows) for label, real_rows, fake_rows in classes}


def frechet_per_class(
    real: Tensor, real_labels: Tensor, fake: Tensor, fake_labels: Tensor
) -> dict[int, float]:
    """The same with the Fréchet distance.

    Of the classes with at least 2 d rows on both sides: below that it is mostly bias.
    """
    # The bias is C (1 / N + 1 / M) (`frechet_bias`), and a class has few rows.
    classes = _classes(real, real_labels, fake, fake_labels, 2 * real.shape[1])
    return {
        label: frechet_distance(real_rows, fake_rows) for label, real_rows, fake_rows in classes
    }
