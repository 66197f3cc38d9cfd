"""The judges of one data set: features of its real pictures, its floors, and the scores of
generated ones.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.core import versions
from benchmarks.core.store import digest, read_tensors, seeded, write_tensors
from benchmarks.frozen.extractors import FeatureExtractor
from benchmarks.images.dataset import Dataset, Split
from metrics.features import extract
from metrics.frechet import bootstrap, frechet_bias, frechet_distance, frechet_infinity
from metrics.kid import kid
from metrics.memorisation import memorisation
from metrics.per_class import frechet_per_class, kid_per_class
from metrics.prdc import NEIGHBOURS, prdc
from metrics.probe import Probe, fit_probe

PROBE_IMAGES = 5000
TRAIN_IMAGES = 10_000  # of the training pictures, to measure distances to them
PAIRS = 8  # samples shown beside the training pictures they are closest to


class Scores(NamedTuple):
    """What a judge says of one set of samples."""

    row: dict[str, float]  # columns of results.csv
    selection: dict[str, float]  # what settings are chosen by: the distance to training pictures
    diagnostics: dict[str, Any]  # what else a careful reader may ask
    pairs: list[tuple[int, int]]  # the samples closest to training pictures: rows of both


@dataclass(frozen=True)
class Evaluator:
    """Scores pictures against one data set's reference split."""

    extractor: FeatureExtractor
    device: torch.device
    reference: Tensor  # (M, d) features
    reference_labels: Tensor | None = None
    row_constants: dict[str, float] = field(
        default_factory=dict
    )  # columns that are the same for every row: floors, real label accuracy
    holdout: Tensor | None = None  # of real images that nothing has seen
    train: Tensor | None = None  # of at most 10,000 training pictures
    probe: Probe | None = None
    probe_split: str | None = None  # the split whose pictures it was fitted on
    key: str = ""  # names the reference pictures, the network and the way of scoring
    diagnostic_constants: dict[str, float] = field(
        default_factory=dict
    )  # diagnostics that are the same for every row

    def score(self, images: np.ndarray, labels: Tensor | None) -> Scores:
        """Of uint8 pictures (N, 3, H, W), drawn for `labels` (N,) where they were."""
        return self.of_features(extract(self.extractor.net, images, device=self.device), labels)

    def of_features(self, features: Tensor, labels: Tensor | None) -> Scores:
        """Of features (N, d); what needs labels or training pictures is left out where there are
        none.

        Errors are stratified where both sides hold equal shares of every class. Precision and its
        kin are of as many reference pictures as there are samples, the first ones of each; empty
        below 7, KID below 3.
        """
        n, selection, pairs = min(len(features), len(self.reference)), {}, []
        known = (
            (self.reference_labels, labels)
            if balanced_alike(self.reference_labels, labels)
            else (None, None)
        )
        redrawn = bootstrap(self.reference, features, rng=self._rng("bootstrap"), labels=known)
        row = {"fd": frechet_distance(self.reference, features), "fd_std": redrawn.std().item()}
        diagnostics: dict[str, Any] = {"bootstrap": redrawn.tolist()}
        if n > NEIGHBOURS + 1:
            row |= prdc(self.reference, features)._asdict()
        if n >= 3:
            row |= dict(
                zip(("kid", "kid_stderr"), kid(self.reference, features, labels=known), strict=True)
            )
        if n >= 2 * features.shape[1]:
            diagnostics["fd_infinity"] = frechet_infinity(
                self.reference, features, rng=self._rng("infinity")
            )
        if labels is not None and self.probe:
            row["label_accuracy"] = self.probe.accuracy(features, labels)
        if labels is not None and self.reference_labels is not None:
            diagnostics["kid_per_class"] = kid_per_class(
                self.reference, self.reference_labels, features, labels
            )
            diagnostics["fd_per_class"] = frechet_per_class(
                self.reference, self.reference_labels, features, labels
            )
        if self.train is not None:
            selection["fd_train"] = frechet_distance(self.train, features)
            copies = memorisation(
                features, train=self.train, reference=self.reference, held_out=self.holdout
            )
            row["memorised_fraction"] = copies.fraction
            diagnostics |= {
                "memorised_flagged": copies.flagged,
                "memorised_expected": copies.expected,
                "train_images": len(self.train),
            }
            worst = copies.closeness.argsort()[:PAIRS]
            pairs = list(zip(worst.tolist(), copies.nearest[worst].tolist(), strict=True))
        return Scores(row, selection, diagnostics | self.diagnostic_constants, pairs)

    def _rng(self, purpose: str) -> torch.Generator:
        return seeded(purpose, self.extractor.key)


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
    """The judge of a data set: features of the real pictures, the probe and the floors, computed
    once and cached.

    `rebuilt` makes the floor split's pictures through what `key` names, such as `reconstruct`; the
    probe is fitted on pictures of `split`: see `networks.probe_split`.
    """
    key = digest("judge", versions.SCORING, extractor.key, dataset.key, key, split)
    path = Path(cache) / "judge" / f"{key}.safetensors"
    ready = read_tensors(path, key)
    tensors = ready[0] if ready else _measure(extractor.net, dataset, rebuilt(), device, split)
    if not ready:
        write_tensors(path, key, tensors)
    probe = Probe(*(tensors[name] for name in Probe._fields))
    known = {name: value.item() for name, value in tensors.items() if value.ndim == 0}
    constants = {name: known.pop(name) for name in ("fd_anchor", "fd_train_floor")}
    labels, key = (
        torch.from_numpy(dataset.reference.labels.copy()),
        digest(versions.SCORING, extractor.key, dataset.key),
    )
    return Evaluator(
        extractor,
        device,
        tensors["reference"],
        labels,
        known,
        tensors["holdout"],
        tensors["train"],
        probe,
        split,
        key,
        constants,
    )


def balanced_alike(a: torch.Tensor | None, b: torch.Tensor | None) -> bool:
    """Whether both have labels, and equal shares of every class: only then is the balance part of
    the design and not of the noise.
    """
    if a is None or b is None:
        return False
    counts = [
        x.bincount(minlength=int(max(a.max(), b.max())) + 1).double() / len(x) for x in (a, b)
    ]
    return bool(
        (counts[0] - counts[1]).abs().max() <= 1 / len(a) + 1 / len(b)
    )  # each may miss by a picture


def analytic_floor(reference: Tensor, n: int, labels: Tensor | None) -> float:
    """What finite N and M alone read: of class-balanced samples where the classes have rows enough
    to tell, NaN below 8 rows.
    """
    if len(reference) < 8:
        return float("nan")
    enough = labels is not None and labels.unique(return_counts=True)[1].min() >= 4
    return frechet_bias(reference, n, len(reference), labels if enough else None)


def train_images(dataset: Dataset) -> Split:
    """The training pictures that distances are measured to: at most 10,000, at random but always
    the same.
    """
    return some_of(dataset.train, TRAIN_IMAGES)


def some_of(whole: Split, count: int) -> Split:
    """At most `count` pictures of a split, at random but always the same."""
    some = torch.randperm(len(whole), generator=seeded("probe"))[:count].numpy()
    return Split(whole.pixels, whole.index[some], whole.labels[some])


def probe_images(dataset: Dataset, split: str) -> Split:
    """The real pictures that the probe is fitted on: at most 5000 of a split."""
    return some_of(getattr(dataset, split), PROBE_IMAGES)


def _measure(
    net: nn.Module,
    dataset: Dataset,
    rebuilt: dict[str, Tensor],
    device: torch.device,
    probe_split: str,
) -> dict[str, Tensor]:
    """FeatureExtractor of the reference, of the floor split as it is, rebuilt and as its mean
    colours, and the probe fitted on real pictures.
    """
    plain = dataset.holdout[:].mean(axis=(2, 3), keepdims=True).round().astype(np.uint8)
    rebuilt = rebuilt | {
        "colour": torch.from_numpy(plain).expand(-1, -1, *dataset.holdout.pixels.shape[2:])
    }
    pictures = {"reference": dataset.reference, "holdout": dataset.holdout} | {
        f"floor_{k}": v.numpy() for k, v in rebuilt.items()
    }
    tensors = {name: extract(net, images, device=device) for name, images in pictures.items()}
    tensors["train"] = extract(net, train_images(dataset), device=device)
    split = probe_images(dataset, probe_split)
    seen = (
        tensors["train"][: len(split)]
        if probe_split == "train"
        else extract(net, split, device=device)
    )
    probe = fit_probe(seen, torch.from_numpy(split.labels.copy()), len(dataset.classes))
    return (
        tensors
        | probe._asdict()
        | _known(tensors, probe, torch.from_numpy(dataset.reference.labels.copy()))
    )


def _known(tensors: dict[str, Tensor], probe: Probe, labels: Tensor) -> dict[str, Tensor]:
    """The floors, the anchor and the real label accuracy, as scalars."""
    reference, floor = tensors["reference"], tensors["holdout"]
    found = {
        f"fd_{name}": frechet_distance(reference, x)
        for name, x in tensors.items()
        if name.startswith("floor_")
    }
    found["fd_anchor"] = found.pop("fd_floor_colour")
    found |= {
        "fd_floor_real": frechet_distance(reference, floor),
        "fd_floor_analytic": analytic_floor(reference, len(floor), labels),
    }
    found |= {
        "fd_train_floor": frechet_distance(tensors["train"], floor),
        "label_accuracy_real": probe.accuracy(reference, labels),
    }
    return {name: torch.tensor(value, dtype=torch.float64) for name, value in found.items()}
