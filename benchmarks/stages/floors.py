"""Evaluators of a data set: features of its real images, the floors, which are the distances that
real images get, and the ceilings, which are what they get of what is better higher.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.core import versions
from benchmarks.core.locks import load_or_make
from benchmarks.core.store import digest, read_tensors, seeded, write_tensors
from benchmarks.frozen.extractors import FeatureExtractor
from benchmarks.images.stored import Dataset, Split
from benchmarks.stages.features import features_of
from benchmarks.stages.score import Evaluator, analytic_floor
from metrics.features import frechet_features
from metrics.frechet import frechet_distance
from metrics.kid import kid
from metrics.prdc import NEIGHBOURS, recall
from metrics.probe import Probe, fit_probe

PROBE_IMAGES = 5000
SELECTION_IMAGES = 2000  # training images through the autoencoder, to choose settings by

# floor -> the two sets of features whose distance it is
FLOORS = {
    "fd_floor_real": ("reference", "holdout"),
    "fd_floor_autoencoder": ("reference", "holdout_through"),
    "fd_floor_codebook": ("reference", "holdout_codebook"),
    # each image's mean colour: an upper end of the scale
    "fd_anchor": ("reference", "holdout_colour"),
    "fd_generator_floor_real": ("reference_through", "holdout_through"),
    "fd_generator_floor_codebook": ("reference_through", "holdout_codebook"),
    "fd_generator_anchor": ("reference_through", "holdout_colour"),
    "fd_selection_floor": ("train_through", "holdout_through"),
}
CODEBOOK_FLOORS = [name for name, pair in FLOORS.items() if "holdout_codebook" in pair]
CODEBOOK_FLOORS += ["kid_generator_floor_codebook"]
DIAGNOSTIC = ("fd_anchor", "fd_generator_anchor", "fd_selection_floor")  # scalars, no columns

Through = Callable[[], dict[str, np.ndarray]]  # see `through.images_through`


def prepare_evaluator(
    extractor: FeatureExtractor,
    dataset: Dataset,
    through: Through | None,
    *,
    key: str,
    autoencoder_key: str,
    cache: str | Path,
    device: torch.device,
    split: str,
) -> Evaluator:
    """The evaluator of a data set: features of the real images, the probe and the floors, computed
    once and cached.

    `through` gives real images through what `key` names (`through.images_through`), or is None
    where samples come through no autoencoder. Distances compare where `autoencoder_key` is the
    same, be the codebooks others. The probe is fitted on images of `split`
    (`extractors.probe_split`).
    """
    made_by = (versions.SCORING, device.type, torch.__version__)
    file_key = digest("evaluator", made_by, extractor.key, dataset.key, key, split)
    path = Path(cache) / "evaluators" / f"{file_key}.safetensors"
    tensors = _load_or_measure(path, file_key, extractor, dataset, through, device, split)
    constants = {name: value.item() for name, value in tensors.items() if value.ndim == 0}
    diagnostics = {name: constants.pop(name) for name in DIAGNOSTIC if name in constants}
    return Evaluator(
        extractor=extractor,
        device=device,
        reference=tensors["reference"],
        reference_through=tensors.get("reference_through"),
        reference_labels=labels_of(dataset.reference),
        row_constants=constants,
        holdout=tensors["holdout"],
        train=tensors["train"],
        train_through=tensors.get("train_through"),
        probe=Probe(*(tensors[name] for name in Probe._fields)),
        probe_split=split,
        key=digest(versions.SCORING, extractor.key, dataset.key, autoencoder_key),
        diagnostic_constants=diagnostics,
    )


def seen_through(dataset: Dataset) -> dict[str, Split]:
    """The real images that `images_through` takes through the autoencoder."""
    train = some_of(dataset.train, SELECTION_IMAGES)
    return {"reference": dataset.reference, "train": train, "holdout": dataset.holdout}


def labels_of(split: Split) -> Tensor:
    """The labels of a split, (N,) int64."""
    return torch.from_numpy(split.labels.copy())


def train_images(dataset: Dataset, extractor: FeatureExtractor) -> Split:
    """The training images that copies are looked for in: at random but always the same."""
    return some_of(dataset.train, extractor.searched)


def probe_images(dataset: Dataset, split: str, most: int = PROBE_IMAGES) -> Split:
    """The real images that the probe is fitted on: at most 5000 of a split."""
    return some_of(getattr(dataset, split), min(PROBE_IMAGES, most))


def some_of(split: Split, count: int) -> Split:
    """At most `count` images of a split, at random but always the same."""
    chosen = torch.randperm(len(split), generator=seeded("probe"))[:count].numpy()
    return Split(split.pixels, split.index[chosen], split.labels[chosen])


def mean_colours(split: Split) -> np.ndarray:
    """Each image of a split as its mean colour, uint8 (N, 3, H, W)."""
    colours = split[:].mean(axis=(2, 3), keepdims=True).round().astype(np.uint8)
    height, width = split.pixels.shape[2:]
    return torch.from_numpy(colours).expand(-1, -1, height, width).numpy()


def _load_or_measure(
    path: Path,
    key: str,
    extractor: FeatureExtractor,
    dataset: Dataset,
    through: Through | None,
    device: torch.device,
    probe_split: str,
) -> dict[str, Tensor]:
    """What `_measure` gives, from the file where it is there under this key, else kept there."""

    def make() -> tuple[dict[str, Tensor], dict[str, str]]:
        tensors = _measure(extractor, dataset, through, device, probe_split)
        write_tensors(path, key, tensors)
        return tensors, {}

    tensors, _ = load_or_make(path, partial(read_tensors, path, key), make)
    return tensors


def _measure(
    extractor: FeatureExtractor,
    dataset: Dataset,
    through: Through | None,
    device: torch.device,
    probe_split: str,
) -> dict[str, Tensor]:
    """Features of the splits as they are and through the autoencoder, the probe, and as scalars all
    that `measure_floors` gives.
    """
    images = {
        "reference": dataset.reference,
        "holdout": dataset.holdout,
        "train": train_images(dataset, extractor),
        "holdout_colour": mean_colours(dataset.holdout),
    }
    if through:
        images |= through()
    net = extractor.net
    tensors = {name: features_of(extractor, some, device) for name, some in images.items()}
    probe = _probe(extractor, dataset, probe_split, tensors["train"], device)
    tensors |= measure_floors(net, tensors, probe, labels_of(dataset.reference))
    return tensors | probe._asdict()


def _probe(
    extractor: FeatureExtractor,
    dataset: Dataset,
    split: str,
    train_features: Tensor,
    device: torch.device,
) -> Probe:
    """What says which class an image shows: the network's own head where it knows the classes, else
    a linear probe fitted on real images.
    """
    if split == "head":
        return extractor.net.probe_of(dataset.classes)
    chosen = probe_images(dataset, split, extractor.searched)
    if split == "train":  # the same random choice, so they are its first ones
        features = train_features[: len(chosen)]
    else:
        features = features_of(extractor, chosen, device)
    return fit_probe(features, labels_of(chosen), len(dataset.classes))


def measure_floors(
    net: torch.nn.Module, tensors: dict[str, Tensor], probe: Probe, labels: Tensor
) -> dict[str, Tensor]:
    """The floors, the anchor and the ceilings, as float64 scalars, from the features of `_measure`.

    `labels` are the reference's. What needs the autoencoder is left out where there is none.
    """
    reference, holdout = tensors["reference"], tensors["holdout"]
    scalars = _distances(net, tensors)
    projected = frechet_features(net, reference)
    scalars["fd_floor_analytic"] = analytic_floor(projected, len(holdout), labels)
    scalars["label_accuracy_real"] = probe.accuracy(reference, labels)
    through = tensors.get("reference_through")
    if through is not None:
        scalars["label_accuracy_ceiling"] = probe.accuracy(through, labels)
        scalars |= _kid_floor("real", through, tensors["holdout_through"])
        scalars |= _kid_floor("codebook", through, tensors["holdout_codebook"])
        if min(len(reference), len(holdout)) > NEIGHBOURS + 1:
            scalars["recall_autoencoder"] = recall(reference, tensors["holdout_through"])
    return {name: torch.tensor(value, dtype=torch.float64) for name, value in scalars.items()}


def codebook_floors(evaluator: Evaluator, coded: Tensor) -> dict[str, float]:
    """The floors of another codebook than the shared one, from features (N, d) of the hold-out
    images through it.
    """
    through = evaluator.reference_through
    tensors = {"reference": evaluator.reference, "holdout_codebook": coded}
    tensors["reference_through"] = through
    floors = _distances(evaluator.extractor.net, tensors)
    return floors | _kid_floor("codebook", through, coded)


def _kid_floor(name: str, through: Tensor, rebuilt: Tensor) -> dict[str, float]:
    """The kernel distance of real images from features (M, d) and (N, d); empty below 3 images."""
    if min(len(through), len(rebuilt)) < 3:
        return {}
    return {f"kid_generator_floor_{name}": kid(through, rebuilt).distance}


def _distances(net: torch.nn.Module, tensors: dict[str, Tensor]) -> dict[str, float]:
    """The Fréchet distances of real images, by the name of the floor that each is."""
    floors = {}
    for name, pair in FLOORS.items():
        if all(one in tensors for one in pair):
            floors[name] = frechet_distance(*(frechet_features(net, tensors[x]) for x in pair))
    return floors
