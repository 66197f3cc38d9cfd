"""The images of a study: real ones and the same through the autoencoder, and what each is compared
with.
"""

from dataclasses import dataclass

import numpy as np
import torch

from benchmarks.core.errors import BadInput
from benchmarks.core.store import seeded
from benchmarks.frozen.autoencoder import LatentSpace
from benchmarks.images.stored import Dataset, Split
from benchmarks.studies.degradations import (
    CHOICE,
    DEGRADATIONS,
    LABELS,
    PASSES,
    Degradation,
    Rebuild,
    amounts_of,
    check_levels_differ,
    degrade,
    repeated,
    rows_in_use,
)

REAL, REBUILT = "real", "reconstructed"  # the two kinds of images that are degraded
# images to choose from for each one compared: with four of five classes missing, the rest must
# fill the places
POOL = 5
PROBE_IMAGES = 2000
SHOWN_LEVELS = (0, 1, 3, 5)  # of each degradation, on the sheet of examples


@dataclass(frozen=True)
class Material:
    """All images of a study."""

    n: int  # images compared at each level
    labels: np.ndarray  # of the pools
    pools: dict[str, np.ndarray]  # REAL, and the same images REBUILT; any prefix is balanced
    # the first n of the pool 0, 1, ... 6 times through the autoencoder
    passes: list[np.ndarray]
    reference: Split
    reference_rebuilt: np.ndarray
    probe_images: Split  # neither in the pool nor in the reference

    def at(self, kind: str, degradation: Degradation, amount: float) -> np.ndarray:
        """The images of one level, uint8 (n, 3, H, W), made from REAL or REBUILT ones."""
        if degradation.kind == PASSES:
            return self.passes[int(amount) + (kind == REBUILT)]
        return degrade(degradation, self.pools[kind], self.labels, self.n, amount)


def balanced(labels: np.ndarray, classes: int, count: int) -> np.ndarray:
    """Indices of images with labels 0, 1, ..., K-1, 0, 1, ...: any prefix is class-balanced."""
    each = min(-(-count // classes), np.bincount(labels, minlength=classes).min())
    places = [np.flatnonzero(labels == label)[:each] for label in range(classes)]
    return np.stack(places, axis=1).flatten()


def images_for_probe(dataset: Dataset, pooled: np.ndarray) -> Split:
    """Images that the study compares nowhere else: training images beyond the pool, or the
    hold-out's where these leave more of the rarest class.
    """
    free = np.setdiff1d(np.arange(len(dataset.train)), pooled)
    free = free[torch.randperm(len(free), generator=seeded("study", "probe")).numpy()]
    train, classes = dataset.train, len(dataset.classes)
    beyond = Split(train.pixels, train.index[free], train.labels[free])
    candidates = [beyond, dataset.holdout]
    most = max(candidates, key=lambda split: np.bincount(split.labels, minlength=classes).min())
    return Split(most.pixels, most.index[:PROBE_IMAGES], most.labels[:PROBE_IMAGES])


@torch.inference_mode()
def through_autoencoder(space: LatentSpace, device: torch.device, images: np.ndarray) -> np.ndarray:
    """Images encoded and decoded. Latents are not whitened in between, as a model's are: it would
    be undone at once.
    """
    batch, rebuilt = space.at_once(images.shape[-1]), []
    for start in range(0, len(images), batch):
        chunk = torch.from_numpy(np.ascontiguousarray(images[start : start + batch])).to(device)
        rebuilt.append(space.autoencoder.decode(space.autoencoder.encode(chunk)).cpu().numpy())
    return np.concatenate(rebuilt)


def prepare(dataset: Dataset, n: int, rebuild: Rebuild) -> Material:
    """The images of a study. Raises BadInput for too few."""
    train = dataset.train
    pooled = balanced(train.labels, len(dataset.classes), POOL * n)
    if len(pooled) < n:
        raise BadInput(
            f"num_samples={n}: the study needs as many training images, class-balanced, "
            f"and there are {len(pooled)}"
        )
    check_levels_differ(train.labels[pooled], n)
    if len(dataset.reference) < n:
        raise BadInput(
            f"num_samples={n}: precision and recall need as many reference images, "
            f"and data.reference_images={len(dataset.reference)}"
        )
    # encoding and features take the time: no more images than some level has
    pooled = pooled[rows_in_use(train.labels[pooled], n)]
    pool = train[pooled]
    rebuilt = rebuild(pool)
    passes = [pool[:n], rebuilt[:n]]
    for _ in range(5):
        passes.append(repeated(passes[-1], 1, rebuild))
    return Material(
        n=n,
        labels=train.labels[pooled],
        pools={REAL: pool, REBUILT: rebuilt},
        passes=passes,
        reference=dataset.reference,
        reference_rebuilt=rebuild(dataset.reference[:]),
        probe_images=images_for_probe(dataset, pooled),
    )


def example_images(material: Material) -> list[tuple[str, np.ndarray]]:
    """Of each degradation that is to be seen, titled tiles of real images: untouched and at three
    levels. Where images are chosen, a tile is four images of each of four classes.
    """
    examples = []
    for degradation in DEGRADATIONS:
        if degradation.kind == LABELS:
            continue
        for level in SHOWN_LEVELS:
            amount = amounts_of(degradation)[level]
            images = material.at(REAL, degradation, amount)
            tile = images[0]
            if degradation.kind == CHOICE:
                tile = mosaic(images[places_of_four(material.labels[: material.n])])
            title = f"{degradation.name} {amount:g}" if level else "untouched"
            examples.append((title, tile))
    return examples


def places_of_four(labels: np.ndarray) -> np.ndarray:
    """The first four places of each of four classes, in the order of classes, (16,)."""
    classes = np.linspace(0, labels.max(), 4).round()
    return np.concatenate([np.flatnonzero(labels == label)[:4] for label in classes])


def mosaic(images: np.ndarray) -> np.ndarray:
    """Sixteen images (16, 3, H, W) as one, (3, 4H, 4W), a row for each four."""
    rows = [np.concatenate(list(images[start : start + 4]), axis=2) for start in range(0, 16, 4)]
    return np.concatenate(rows, axis=1)
