"""Thirteen ways to degrade a set of images, five levels each, and what each must do to a
distance.
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
UNSHARP_SIGMA = 1.0  # px at 64 px: about what the shared decoder blurs
LUMA = (0.299, 0.587, 0.114)  # of red, green and blue in the grey that an eye sees

# what the levels of a degradation change, and with it what its `change` takes and gives:
IMAGES = "images"  # change(images, amount) -> images, uint8 (N, 3, H, W)
CHOICE = "choice"  # change(labels, n, amount) -> n rows: which images are there
LABELS = "labels"  # change(labels, amount) -> labels: what the images are said to show
PASSES = "passes"  # change(images, amount, rebuild) -> images: how often through the autoencoder

# what is demanded of the distance to reconstructed reference images, as the level goes up:
RISES = "rises"  # strictly, at each level
NO_GAIN = "no gain"  # never below level 0: may undo the decoder's blur, but is no better for it
UNSEEN = "unseen"  # no distance can notice; label accuracy falls at each level

Rebuild = Callable[[np.ndarray], np.ndarray]  # images once through the autoencoder


class Degradation(NamedTuple):
    """A name, what its levels count, the levels from weak to strong, and what is demanded."""

    name: str
    unit: str
    levels: tuple[float, ...]
    change: Callable[..., Tensor]
    kind: str = IMAGES
    demand: str = RISES
    untouched: float = 0.0  # the amount at which nothing changes: level 0


def blurred(x: Tensor, sigma: float) -> Tensor:
    """Separable Gaussian, `sigma` in pixels of a 64 px image."""
    return _quantised(_smooth(x, sigma))


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


def sharpened(x: Tensor, amount: float) -> Tensor:
    """Unsharp mask: `amount` times what a blur takes away is added."""
    return _quantised(x + amount * (x - _smooth(x, UNSHARP_SIGMA)))


def saturated(x: Tensor, factor: float) -> Tensor:
    """Each pixel's distance from the grey of its own brightness, times `factor`."""
    grey = _grey(x)
    return _quantised(grey + factor * (x - grey))


def contrasted(x: Tensor, factor: float) -> Tensor:
    """Each pixel's distance from the image's mean grey, times `factor`."""
    mean = _grey(x).mean(dim=(2, 3), keepdim=True)
    return _quantised(mean + factor * (x - mean))


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


def duplicated(labels: Tensor, n: int, fraction: float) -> Tensor:
    """`fraction` of each class's images replaced by copies of the class's others, at random."""
    chosen = torch.arange(n)
    for label in labels[:n].unique():
        # a generator for each class: a level replaces what the levels before it replaced, and more
        rng = seeded("ladder", "duplicates", int(label))
        mine = (labels[:n] == label).nonzero().flatten()
        mine = mine[torch.randperm(len(mine), generator=rng)]
        copies = min(round(fraction * len(mine)), len(mine) - 1)
        kept = mine[copies:]
        chosen[mine[:copies]] = kept[torch.randint(len(kept), (copies,), generator=rng)]
    return chosen


def swapped(labels: Tensor, fraction: float) -> Tensor:
    """`fraction` of the labels replaced by another class's, at random."""
    rng, classes = seeded("ladder", "labels"), int(labels.max()) + 1
    # whole orders, whatever the fraction: a level swaps what the levels before it swapped, and more
    order = torch.randperm(len(labels), generator=rng)
    others = (labels + torch.randint(1, classes, labels.shape, generator=rng)) % classes
    changed, at = labels.clone(), order[: round(fraction * len(labels))]
    changed[at] = others[at]
    return changed


def repeated(images: np.ndarray, count: float, rebuild: Rebuild) -> np.ndarray:
    """Images `count` times through the autoencoder."""
    for _ in range(int(count)):
        images = rebuild(images)
    return images


def _smooth(x: Tensor, sigma: float) -> Tensor:
    """uint8 images blurred, float."""
    sigma *= x.shape[-1] / 64
    reach = max(1, round(3 * sigma))  # beyond three sigma lies 0.3% of the weight
    kernel = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / sigma) ** 2)
    kernel = (kernel / kernel.sum()).repeat(3, 1, 1, 1)
    y = F.conv2d(F.pad(x.float(), (reach,) * 4, mode="reflect"), kernel, groups=3)
    return F.conv2d(y, kernel.transpose(2, 3), groups=3)


def _grey(x: Tensor) -> Tensor:
    """The brightness of each pixel, float (N, 1, H, W)."""
    return (x.float() * torch.tensor(LUMA)[:, None, None]).sum(1, keepdim=True)


def _quantised(x: Tensor) -> Tensor:
    return x.clamp(0, 255).round().to(torch.uint8)


UP, DOWN = (1.1, 1.2, 1.3, 1.45, 1.6), (0.9, 0.8, 0.7, 0.6, 0.5)
CLASSES = (0.1, 0.2, 0.3, 0.5, 0.8)
VARIETY = (0.5, 0.75, 0.85, 0.9, 0.95)
PART = (0.1, 0.2, 0.4, 0.6, 0.8)
TIMES = {"demand": NO_GAIN, "untouched": 1.0}  # of those whose amounts are factors

DEGRADATIONS = [
    Degradation("Gaussian blur", "sigma, px at 64 px", (0.75, 1.0, 1.5, 2.0, 3.0), blurred),
    Degradation("Gaussian noise", "std, grey levels", (4, 8, 16, 32, 64), noisy),
    Degradation("salt and pepper", "fraction of pixels", (0.005, 0.01, 0.02, 0.05, 0.1), salted),
    Degradation("patch shuffling", "fraction of patches", (0.1, 0.2, 0.4, 0.7, 1.0), shuffled),
    Degradation(
        "sharpening", "amount of mask", (0.25, 0.5, 0.75, 1.0, 1.5), sharpened, demand=NO_GAIN
    ),
    Degradation("saturation", "factor", UP, saturated, **TIMES),
    Degradation("contrast up", "factor", UP, contrasted, **TIMES),
    Degradation("contrast down", "factor", DOWN, contrasted, **TIMES),
    Degradation("missing classes", "fraction of classes", CLASSES, fewer_classes, CHOICE),
    Degradation("mode collapse", "fraction of variety gone", VARIETY, collapsed, CHOICE),
    Degradation("duplicates", "fraction of images", PART, duplicated, CHOICE),
    Degradation("label swaps", "fraction of labels", PART, swapped, LABELS, UNSEEN),
    Degradation("autoencoder passes", "more passes", (1, 2, 3, 4, 5), repeated, PASSES),
]


def amounts_of(degradation: Degradation) -> tuple[float, ...]:
    """The amounts of levels 0 to 5."""
    return (degradation.untouched, *degradation.levels)


def rows_of(degradation: Degradation, labels: np.ndarray, n: int, amount: float) -> np.ndarray:
    """The rows of the pool that are there at one level: the first `n` but for a CHOICE.

    Any prefix of the pool must be class-balanced; what lies beyond the first `n` takes the places
    of missing classes.
    """
    if degradation.kind != CHOICE or amount == degradation.untouched:
        return np.arange(n)
    return degradation.change(torch.from_numpy(labels), n, amount).numpy()


def labels_at(degradation: Degradation, labels: np.ndarray, n: int, amount: float) -> Tensor:
    """What the `n` images of one level are said to show, (n,) int64."""
    said = torch.from_numpy(labels[rows_of(degradation, labels, n, amount)])
    swaps = degradation.kind == LABELS and amount != degradation.untouched
    return degradation.change(said, amount) if swaps else said


def degrade(
    degradation: Degradation,
    pool: np.ndarray,
    labels: np.ndarray,
    n: int,
    amount: float,
    rebuild: Rebuild | None = None,
) -> np.ndarray:
    """`n` images at one level of a degradation; level 0 is the first `n` of the pool as they are.

    `rebuild` is needed for PASSES only.
    """
    images = pool[rows_of(degradation, labels, n, amount)]
    if amount == degradation.untouched:
        return images
    if degradation.kind == IMAGES:
        return degradation.change(torch.from_numpy(images), amount).numpy()
    if degradation.kind == PASSES:
        return degradation.change(images, amount, rebuild)
    return images


def check_levels_differ(labels: np.ndarray, n: int) -> None:
    """Raises BadInput where classes, or images of each, are too few for the levels to differ:
    equal levels would blame the distance.
    """
    classes = int(labels.max()) + 1
    for degradation in DEGRADATIONS:
        if degradation.kind != CHOICE:
            continue
        sets = [
            set(rows_of(degradation, labels, n, amount).tolist())
            for amount in amounts_of(degradation)
        ]
        if any(a == b for a, b in itertools.pairwise(sets)):
            raise BadInput(
                f"num_samples={n} of {classes} classes: too few for five different levels of "
                f"{degradation.name}; 10 classes and 20 images of each are enough"
            )


def rows_in_use(labels: np.ndarray, n: int) -> np.ndarray:
    """The rows of the pool that some level of some degradation has, in order.

    The pool without the others gives the same images: a CHOICE takes the first ones that it can.
    """
    chosen = [
        rows_of(degradation, labels, n, amount)
        for degradation in DEGRADATIONS
        for amount in amounts_of(degradation)
    ]
    return np.unique(np.concatenate(chosen))
