"""Are samples copies of training images? Calibrated on real images that cannot be.

After the data-copying tests of arXiv 2004.05675: whether a sample lies nearer to the training set
than to images of the same distribution that were not trained on, measured in feature space.
"""

import math
from typing import NamedTuple

import torch
from torch import LongTensor, Tensor

# The fraction of held-out images that lie as close to a training image as what is called memorised.
RATE = 0.01
ROWS = 1024  # of a matrix of distances at once
SAME = 1e-3  # a closeness below is a copy's: rounding in the distances of equal rows


class Memorisation(NamedTuple):
    """How many samples are too close to a training image, and how close each one is.

    `closeness` is the distance to the nearest training image over that to the nearest reference
    image; 0 is a copy. Blurred or collapsed samples, near to everything or to little, leave it as
    it is. A sample counts as memorised where it is at least as close as the closest RATE of
    held-out images are.
    """

    fraction: float  # of the samples that count as memorised, 0 to 1
    expected: float  # without copying: RATE, or more if held-out images are in the training set
    flagged: bool  # above expected by over three standard errors, of samples and held-out images
    closeness: Tensor  # (N,) float64
    nearest: LongTensor  # (N,) rows of `train`


def _closeness(points: Tensor, train: Tensor, reference: Tensor) -> tuple[Tensor, LongTensor]:
    """The closeness of each point (N,), and its nearest row of `train` (N,)."""
    to_train, nearest_rows, to_reference = [], [], []
    for rows in points.split(ROWS):
        nearest = torch.cdist(rows, train).min(dim=1)
        to_train.append(nearest.values)
        nearest_rows.append(nearest.indices)
        to_reference.append(torch.cdist(rows, reference).min(dim=1).values)
    ratio = torch.cat(to_train) / torch.cat(to_reference).clamp(min=1e-12)
    return ratio.where(ratio > SAME, 0), torch.cat(nearest_rows)


def memorisation(
    samples: Tensor, *, train: Tensor, reference: Tensor, held_out: Tensor
) -> Memorisation:
    """Compare features of samples (N, d) with those of training and of real images.

    `reference` (R, d) and `held_out` (H, d) are two sets of real images that were not trained on:
    the first is what closeness is measured against, the second calibrates it. Raises ValueError for
    an empty set or differing d.
    """
    sets = [samples, train, reference, held_out]
    if min(map(len, sets)) < 1 or len({x.shape[1:] for x in sets}) > 1:
        shapes = ", ".join(str(tuple(x.shape)) for x in sets)
        raise ValueError(f"memorisation: four sets of features (N, d) are needed, got {shapes}")
    samples, train, reference, held_out = (x.detach().to("cpu", torch.float64) for x in sets)
    closeness, nearest = _closeness(samples, train, reference)
    calibration, _ = _closeness(held_out, train, reference)
    limit = calibration.quantile(RATE)
    fraction = (closeness <= limit).double().mean().item()
    expected = (calibration <= limit).double().mean().item()
    # of the difference of two binomials
    error = math.sqrt(expected * (1 - expected) * (1 / len(samples) + 1 / len(held_out)))
    return Memorisation(
        fraction=fraction,
        expected=expected,
        flagged=fraction > expected + 3 * error,
        closeness=closeness,
        nearest=nearest,
    )
