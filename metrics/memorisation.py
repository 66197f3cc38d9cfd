"""Are samples copies? Nearest training picture against nearest held-out picture, calibrated on
pictures that cannot be copies.
"""

import math
from typing import NamedTuple

import torch
from torch import LongTensor, Tensor

RATE = (
    0.01  # of held-out pictures that lie as close to a training picture as what is called memorised
)
ROWS = 1024  # of a matrix of distances at once
SAME = 1e-3  # a smaller closeness is a copy's: rounding in the distances of equal rows


class Memorisation(NamedTuple):
    """`share` of samples at least as close as the closest `RATE` of held-out pictures.

    `closeness` (N,) is the distance to the nearest training picture over that to the nearest
    reference picture (0: a copy), which blurred or collapsed samples, near to everything or to
    little, leave alone. `expected` is what no copying reads: `RATE`, or more where some held-out
    pictures are themselves in the training set. `flagged`: the share is above that by more than
    three standard errors of two binomials, the samples' and the held-out pictures'.
    """

    fraction: float
    expected: float
    flagged: bool
    closeness: Tensor
    nearest: LongTensor  # (N,) rows of `train`


def _closeness(points: Tensor, train: Tensor, reference: Tensor) -> tuple[Tensor, LongTensor]:
    """Of each point, its closeness and its nearest row of `train`."""
    near, which, far = [], [], []
    for part in points.split(ROWS):
        found = torch.cdist(part, train).min(dim=1)
        near.append(found.values)
        which.append(found.indices)
        far.append(torch.cdist(part, reference).min(dim=1).values)
    ratio = torch.cat(near) / torch.cat(far).clamp(min=1e-12)
    return ratio.where(ratio > SAME, 0), torch.cat(which)


def memorisation(
    samples: Tensor, *, train: Tensor, reference: Tensor, held_out: Tensor
) -> Memorisation:
    """Of features (N, d) of samples, of the training pictures, and of two sets of real pictures not
    trained on.

    After the data-copying tests of Meehan et al. 2020 (arXiv 2004.05675). Raises ValueError for an
    empty set or differing d.
    """
    sets = [samples, train, reference, held_out]
    if min(map(len, sets)) < 1 or len({x.shape[1:] for x in sets}) > 1:
        raise ValueError(
            f"memorisation: four sets of features (N, d) are needed, got {', '.join(str(tuple(x.shape)) for x in sets)}"
        )
    samples, train, reference, held_out = (x.detach().to("cpu", torch.float64) for x in sets)
    closeness, nearest = _closeness(samples, train, reference)
    calibration = _closeness(held_out, train, reference)[0]
    limit = calibration.quantile(RATE)
    share, expected = ((x <= limit).double().mean().item() for x in (closeness, calibration))
    error = math.sqrt(expected * (1 - expected) * (1 / len(samples) + 1 / len(held_out)))
    return Memorisation(share, expected, share > expected + 3 * error, closeness, nearest)
