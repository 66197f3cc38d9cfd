"""Six ways to degrade a set of real images, five levels each: what a distance must notice, and more
so at each level.
"""

import itertools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.core.errors import BadInput
from benchmarks.core.store import seeded

PATCHES = 8  # along each side


class Degradation(NamedTuple):
    """A name, what its levels count, the levels, and change(images, level) -> images, both uint8
    (N, 3, H, W).

    `chooses`: the level does not change images but says which are there; change(labels, n, level)
    -> n indices.
    """

    name: str
    unit: str
    levels: tuple[float, ...]
    change: Callable[..., Tensor]
    chooses: bool = False


def blurred(x: Tensor, sigma: float) -> Tensor:
    """Separable Gaussian, `sigma` in pixels of a 64 px image."""
    sigma *= x.shape[-1] / 64
    reach = max(1, round(3 * sigma))  # beyond three sigma lies 0.3% of the weight
    kernel = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / sigma) ** 2)
    kernel = (kernel / kernel.sum()).repeat(3, 1, 1, 1)
    y = F.conv2d(F.pad(x.float(), (reach,) * 4, mode="reflect"), kernel, groups=3)
    return _quantised(F.conv2d(y, kernel.transpose(2, 3), groups=3))


def noisy(x: Tensor, std: float) -> Tensor:
    """White noise of `std` grey levels, of 255."""
    return _quantised(x + std * torch.randn(x.shape, generator=seeded("ladder", "noise")))


def salted(x: Tensor, fraction: float) -> Tensor:
    """`fraction` of the pixels black or white."""
    # one number for all three channels, so that a pixel is black or white, not coloured
    uniform = torch.rand(len(x), 1, *x.shape[2:], generator=seeded("ladder", "salt"))
    salted = torch.where(uniform < fraction, 255, x)
    return torch.where(uniform < fraction / 2, 0, salted).to(torch.uint8)


def shuffled(x: Tensor, fraction: float) -> Tensor:
    """`fraction` of each image's 64 patches change places among themselves."""
    rng, side = seeded("ladder", "patches"), x.shape[-1] // PATCHES
    # a side that is no multiple of eight keeps its last few pixels
    whole = PATCHES * side
    inner = x[..., :whole, :whole]
    patches = F.unfold(inner.float(), side, stride=side)  # (N, 3 side^2, 64)
    count = round(fraction * patches.shape[2])
    for i in range(len(x)):
        moved = torch.randperm(patches.shape[2], generator=rng)[:count]
        patches[i, :, moved] = patches[i, :, moved.roll(1)]
    changed = x.clone()
    changed[..., :whole, :whole] = _quantised(F.fold(patches, inner.shape[2:], side, stride=side))
    return changed


def fewer_classes(labels: Tensor, n: int, fraction: float) -> Tensor:
    """`fraction` of the classes gone; more images of the others take their places, repeated only
    where they run short.
    """
    classes = int(labels.max()) + 1
    pool = (labels < max(1, classes - round(fraction * classes))).nonzero().flatten()
    return pool[torch.arange(n) % len(pool)]


def collapsed(labels: Tensor, n: int, fraction: float) -> Tensor:
    """`fraction` of each class's variety gone: as many images as before, all from the first few of
    the class.
    """
    chosen = torch.arange(n)
    for label in labels[:n].unique():
        mine = (labels[:n] == label).nonzero().flatten()
        chosen[mine] = mine[torch.arange(len(mine)) % max(1, round((1 - fraction) * len(mine)))]
    return chosen


def _quantised(x: Tensor) -> Tensor:
    return x.clamp(0, 255).round().to(torch.uint8)


DEGRADATIONS = [
    Degradation("Gaussian blur", "sigma, px at 64 px", (0.75, 1.0, 1.5, 2.0, 3.0), blurred),
    Degradation("Gaussian noise", "std, grey levels", (4, 8, 16, 32, 64), noisy),
    Degradation("salt and pepper", "fraction of pixels", (0.005, 0.01, 0.02, 0.05, 0.1), salted),
    Degradation("patch shuffling", "fraction of patches", (0.1, 0.2, 0.4, 0.7, 1.0), shuffled),
    Degradation(
        "missing classes",
        "fraction of classes",
        (0.1, 0.2, 0.4, 0.6, 0.8),
        fewer_classes,
        chooses=True,
    ),
    Degradation(
        "mode collapse",
        "fraction of variety gone",
        (0.5, 0.75, 0.85, 0.9, 0.95),
        collapsed,
        chooses=True,
    ),
]


def check_levels_differ(labels: np.ndarray, n: int) -> None:
    """Raises BadInput where classes, or images of each, are too few for the levels to differ:
    equal levels would blame the distance.
    """
    classes = int(labels.max()) + 1
    for degradation in DEGRADATIONS:
        if not degradation.chooses:
            continue
        sets = [set(range(n))]  # level 0
        for level in degradation.levels:
            chosen = degradation.change(torch.from_numpy(labels), n, level)
            sets.append(set(chosen.tolist()))
        if any(a == b for a, b in itertools.pairwise(sets)):
            raise BadInput(
                f"num_samples={n} of {classes} classes: too few for five different levels of "
                f"{degradation.name}; 10 classes and 20 images of each are enough"
            )


def degrade(
    degradation: Degradation, pool: np.ndarray, labels: np.ndarray, n: int, level: float
) -> np.ndarray:
    """`n` images at one level of a degradation; level 0 is the first `n` as they are.

    Any prefix of the pool must be class-balanced; what lies beyond the first `n` takes the places
    of missing classes.
    """
    if not level:
        return pool[:n]
    if degradation.chooses:
        return pool[degradation.change(torch.from_numpy(labels), n, level).numpy()]
    return degradation.change(torch.from_numpy(pool[:n]), level).numpy()
