"""Are samples copies? Nearest training picture against nearest held-out picture, calibrated on pictures that cannot be copies."""

import math
from typing import NamedTuple

import torch
from torch import LongTensor, Tensor

RATE = 0.01  # of held-out pictures that lie as close to a training picture as what is called memorised


class Memorisation(NamedTuple):
    """`share` of samples whose closeness is below that of all but `RATE` of held-out pictures: `RATE` is what no copying reads.

    `closeness` (N,) is the distance to the nearest training picture over that to the nearest reference picture (0: a copy), which
    blurred or collapsed samples, near to everything or to little, leave alone. `flagged`: the share is above `RATE` by more than three
    standard errors of two binomials, the samples' and the held-out pictures'.
    """

    share: float
    flagged: bool
    closeness: Tensor
    nearest: LongTensor  # (N,) rows of `train`


def _closeness(points: Tensor, train: Tensor, reference: Tensor) -> tuple[Tensor, LongTensor]:
    found = torch.cdist(points, train).min(dim=1)
    return found.values / torch.cdist(points, reference).min(dim=1).values.clamp(min=1e-12), found.indices


def memorisation(samples: Tensor, *, train: Tensor, reference: Tensor, held_out: Tensor) -> Memorisation:
    """Of features (N, d) of samples, of the training pictures, and of two sets of real pictures not trained on.

    After the data-copying tests of Meehan et al. 2020 (arXiv 2004.05675). Raises ValueError for an empty set or differing d.
    """
    sets = [samples, train, reference, held_out]
    if min(map(len, sets)) < 1 or len({x.shape[1:] for x in sets}) > 1:
        raise ValueError(f"memorisation: four sets of features (N, d) are needed, got {', '.join(str(tuple(x.shape)) for x in sets)}")
    samples, train, reference, held_out = (x.detach().to("cpu", torch.float64) for x in sets)
    closeness, nearest = _closeness(samples, train, reference)
    limit = _closeness(held_out, train, reference)[0].quantile(RATE)
    share = (closeness < limit).double().mean().item()
    error = math.sqrt(RATE * (1 - RATE) * (1 / len(samples) + 1 / len(held_out)))
    return Memorisation(share, share > RATE + 3 * error, closeness, nearest)
