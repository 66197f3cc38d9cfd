"""Evaluators of a data set: features of its real images, and the floors, which are the distances
that real images get.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.core import versions
from benchmarks.core.store import digest, read_tensors, seeded, write_tensors
from benchmarks.frozen.extractors import FeatureExtractor
from benchmarks.images.dataset import Dataset, Split
from benchmarks.stages.score import Evaluator, analytic_floor
from metrics.features import extract
from metrics.frechet import frechet_distance
from metrics.probe import Probe, fit_probe

PROBE_IMAGES = 5000
TRAIN_IMAGES = 10_000  # of the training images, to measure distances to them

# what the hold-out is made into -> the column of its distance to the reference images
FLOORS = {
    "floor_autoencoder": "fd_floor_autoencoder",
    "floor_codebook": "fd_floor_codebook",
    "floor_colour": "fd_anchor",  # the mean colour of each image: an upper end of the scale
}


def prepare_evaluator(
    extractor: FeatureExtractor,
    dataset: Dataset,
    rebuilt: Callable[[], dict[str, Tensor]],
    *,
    key: str,
    cache: str | Path,
    device: torch.device,
    split: str,
) -> Evaluator:
    """The evaluator of a data set: features of the real images, the probe and the floors, computed
    once and cached.

    `rebuilt` gives the hold-out's images through what `key` names, as `latents.reconstruct` does;
    the probe is fitted on images of `split`: see `extractors.probe_split`.
    """
    file_key = digest("evaluator", versions.SCORING, extractor.key, dataset.key, key, split)
    path = Path(cache) / "evaluators" / f"{file_key}.safetensors"
    ready = read_tensors(path, file_key)
    if ready:
        tensors = ready[0]
    else:
        tensors = _measure(extractor.net, dataset, rebuilt(), device, split)
        write_tensors(path, file_key, tensors)
    # scalars are columns, but for these two
    scalars = {name: value.item() for name, value in tensors.items() if value.ndim == 0}
    constants = {name: scalars.pop(name) for name in ("fd_anchor", "fd_train_floor")}
    return Evaluator(
        extractor=extractor,
        device=device,
        reference=tensors["reference"],
        reference_labels=labels_of(dataset.reference),
        row_constants=scalars,
        holdout=tensors["holdout"],
        train=tensors["train"],
        probe=Probe(*(tensors[name] for name in Probe._fields)),
        probe_split=split,
        key=digest(versions.SCORING, extractor.key, dataset.key),
        diagnostic_constants=constants,
    )


def labels_of(split: Split) -> Tensor:
    """The labels of a split, (N,) int64."""
    return torch.from_numpy(split.labels.copy())


def train_images(dataset: Dataset) -> Split:
    """The training images that distances are measured to: at most 10,000, at random but always the
    same.
    """
    return some_of(dataset.train, TRAIN_IMAGES)


def probe_images(dataset: Dataset, split: str) -> Split:
    """The real images that the probe is fitted on: at most 5000 of a split."""
    return some_of(getattr(dataset, split), PROBE_IMAGES)


def some_of(split: Split, count: int) -> Split:
    """At most `count` images of a split, at random but always the same."""
    chosen = torch.randperm(len(split), generator=seeded("probe"))[:count].numpy()
    return Split(split.pixels, split.index[chosen], split.labels[chosen])


def mean_colours(split: Split) -> np.ndarray:
    """Each image of a split as its mean colour, uint8 (N, 3, H, W)."""
    colours = split[:].mean(axis=(2, 3), keepdims=True).round().astype(np.uint8)
    height, width = split.pixels.shape[2:]
    return torch.from_numpy(colours).expand(-1, -1, height, width).numpy()


def _measure(
    net: nn.Module,
    dataset: Dataset,
    rebuilt: dict[str, Tensor],
    device: torch.device,
    probe_split: str,
) -> dict[str, Tensor]:
    """Features of the reference, of training images, of the hold-out as it is and made into what
    FLOORS names; the probe; and as scalars all that `measure_floors` gives.
    """
    images = {"reference": dataset.reference, "holdout": dataset.holdout}
    for name, pixels in rebuilt.items():
        images[f"floor_{name}"] = pixels.numpy()
    images["floor_colour"] = mean_colours(dataset.holdout)
    tensors = {name: extract(net, some, device=device) for name, some in images.items()}
    tensors["train"] = extract(net, train_images(dataset), device=device)

    split = probe_images(dataset, probe_split)
    if probe_split == "train":  # the same random choice, so they are its first ones
        features = tensors["train"][: len(split)]
    else:
        features = extract(net, split, device=device)
    probe = fit_probe(features, labels_of(split), len(dataset.classes))
    floors = measure_floors(tensors, probe, labels_of(dataset.reference))
    return tensors | probe._asdict() | floors


def measure_floors(tensors: dict[str, Tensor], probe: Probe, labels: Tensor) -> dict[str, Tensor]:
    """The floors, the anchor and the real label accuracy, as scalars, from features.

    `labels` are the reference's.
    """
    reference, holdout = tensors["reference"], tensors["holdout"]
    floors = {
        column: frechet_distance(reference, tensors[name])
        for name, column in FLOORS.items()
        if name in tensors
    }
    floors["fd_floor_real"] = frechet_distance(reference, holdout)
    floors["fd_floor_analytic"] = analytic_floor(reference, len(holdout), labels)
    floors["fd_train_floor"] = frechet_distance(tensors["train"], holdout)
    floors["label_accuracy_real"] = probe.accuracy(reference, labels)
    return {name: torch.tensor(value, dtype=torch.float64) for name, value in floors.items()}
