"""Scores of one set of samples against a data set's reference images.

Two distances, always both. `fd` is to the reference images as they are: what a user gets, the
decoder included. `fd_generator` is to the same images passed through the autoencoder that all
models share: what the generator alone loses, whatever the decoder blurs.
"""

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from benchmarks.core.store import seeded
from benchmarks.frozen.extractors import FeatureExtractor
from benchmarks.stages.features import features_of
from metrics.features import frechet_features
from metrics.frechet import bootstrap, frechet_bias, frechet_distance, frechet_infinity
from metrics.kid import kid
from metrics.memorisation import memorisation
from metrics.per_class import frechet_per_class, kid_per_class
from metrics.prdc import NEIGHBOURS, prdc, recall
from metrics.probe import Probe

PAIRS = 8  # samples shown beside the training images they are closest to
FULL_COVARIANCE = 5000  # images from which on all of a network's dimensions give a distance, too
# for precision and its kin, whose cost grows with the square; as many as ADM's protocol takes
MANIFOLD_IMAGES = 10_000
DIGITS = 6  # of a bootstrap's distances in a record, which holds 200 of them


class Scores(NamedTuple):
    """What an evaluator says of one set of samples."""

    row: dict[str, float]  # columns of results.csv
    selection: dict[str, float]  # what settings are chosen by: distance and recall to training data
    diagnostics: dict[str, Any]  # what else a careful reader may ask
    pairs: list[tuple[int, int]]  # the samples closest to training images: rows of both


@dataclass(frozen=True)
class Evaluator:
    """Scores images against one data set's reference split, by one feature extractor.

    Features are (N, d) float32. What came `through` the autoencoder is None where there is none, as
    for images made elsewhere; `fd_generator` and its kin are left out then.
    """

    extractor: FeatureExtractor
    device: torch.device
    reference: Tensor  # (M, d) features
    reference_through: Tensor | None = None  # (M, d), of the same images
    reference_labels: Tensor | None = None  # (M,)
    # columns that are the same for every row: floors, ceilings
    row_constants: dict[str, float] = field(default_factory=dict)
    holdout: Tensor | None = None  # features of real images that nothing has seen
    train: Tensor | None = None  # features of some training images: copies are looked for there
    train_through: Tensor | None = None  # and of fewer: settings are chosen by distances to these
    probe: Probe | None = None
    probe_split: str | None = None  # the images it was fitted on: a split, or ImageNet's
    key: str = ""  # names the images and networks behind every number here
    diagnostic_constants: dict[str, float] = field(default_factory=dict)

    def score(self, images: np.ndarray, labels: Tensor | None) -> Scores:
        """Of uint8 images (N, 3, H, W), sampled for `labels` (N,) where they were."""
        return self.of_features(self.features(images), labels)

    def features(self, images: np.ndarray) -> Tensor:
        """Of uint8 images (N, 3, H, W), (N, d)."""
        return features_of(self.extractor, images, self.device)

    def of_features(self, features: Tensor, labels: Tensor | None) -> Scores:
        """Of features (N, d); what needs labels or training images is left out where there are
        none.

        Errors are stratified where both sides hold equal fractions of every class. Precision and
        its kin are of as many reference images as there are samples, the first ones of each; empty
        below 7, KID below 3.
        """
        row, diagnostics = self._system(features, labels)
        if self.reference_through is not None:
            own, more = self._generator(features, labels)
            row, diagnostics = row | own, diagnostics | more
        if labels is not None and self.probe:
            row["label_accuracy"] = self.probe.accuracy(features, labels)
        pairs = []
        if self.train is not None:
            pairs = self._copies(features, row, diagnostics)
        return Scores(row, self.selection(features), diagnostics | self.diagnostic_constants, pairs)

    def selection(self, features: Tensor) -> dict[str, float]:
        """What settings are chosen by: `fd_generator_train` and `recall_train`, to training images
        through the autoencoder; empty where there are none.
        """
        if self.train_through is None:
            return {}
        chosen_by = {"fd_generator_train": self.frechet(self.train_through, features)}
        if min(len(features), len(self.train_through)) > NEIGHBOURS + 1:
            chosen_by["recall_train"] = recall(self.train_through, features)
        return chosen_by

    def frechet(self, real: Tensor, fake: Tensor) -> float:
        """The Fréchet distance of features (N, d), over the dimensions that it is taken over."""
        net = self.extractor.net
        return frechet_distance(frechet_features(net, real), frechet_features(net, fake))

    def _system(
        self, features: Tensor, labels: Tensor | None
    ) -> tuple[dict[str, float], dict[str, Any]]:
        """Columns and diagnostics against the reference images as they are."""
        row: dict[str, float] = {}
        diagnostics: dict[str, Any] = {}
        row["fd"], resampled = self._with_bootstrap(self.reference, features, labels)
        row["fd_std"] = resampled.std().item()
        smaller = min(len(features), len(self.reference))
        if smaller >= 3:
            row["kid"], row["kid_stderr"] = kid(
                self.reference, features, labels=self._strata(labels)
            )
        if self.reference_through is None:  # no generator of ours: this is all there is
            diagnostics["bootstrap"] = _rounded(resampled)
            row |= self._neighbourhoods(self.reference, features)
            diagnostics |= self._per_class(self.reference, features, labels)
        projected = frechet_features(self.extractor.net, features)
        if smaller >= 2 * projected.shape[1]:  # below that the extrapolation says nothing
            real = frechet_features(self.extractor.net, self.reference)
            rng = self._rng("infinity")
            diagnostics["fd_infinity"] = frechet_infinity(real, projected, rng=rng)
        return row, diagnostics

    def _generator(
        self, features: Tensor, labels: Tensor | None
    ) -> tuple[dict[str, float], dict[str, Any]]:
        """Columns and diagnostics against the reference images through the autoencoder."""
        real = self.reference_through
        row: dict[str, float] = {}
        row["fd_generator"], resampled = self._with_bootstrap(real, features, labels)
        row["fd_generator_std"] = resampled.std().item()
        diagnostics: dict[str, Any] = {"bootstrap": _rounded(resampled)}
        smaller = min(len(features), len(real))
        if smaller >= 3:
            row["kid_generator"], row["kid_generator_stderr"] = kid(
                real, features, labels=self._strata(labels)
            )
        row |= self._neighbourhoods(real, features)
        diagnostics |= self._per_class(real, features, labels)
        if smaller >= FULL_COVARIANCE and hasattr(self.extractor.net, "project"):
            row["fd_generator_full"] = frechet_distance(real, features)
        return row, diagnostics

    def _per_class(self, real: Tensor, features: Tensor, labels: Tensor | None) -> dict[str, Any]:
        """Both distances of each class; empty without labels."""
        if labels is None or self.reference_labels is None:
            return {}
        projected = [frechet_features(self.extractor.net, x) for x in (real, features)]
        return {
            "kid_per_class": kid_per_class(real, self.reference_labels, features, labels),
            "fd_per_class": frechet_per_class(
                projected[0], self.reference_labels, projected[1], labels
            ),
        }

    def _with_bootstrap(
        self, real: Tensor, fake: Tensor, labels: Tensor | None
    ) -> tuple[float, Tensor]:
        """The Fréchet distance, and those of resamples."""
        real, fake = (frechet_features(self.extractor.net, x) for x in (real, fake))
        rng = self._rng("bootstrap")
        resampled = bootstrap(real, fake, rng=rng, labels=self._strata(labels))
        return frechet_distance(real, fake), resampled

    def _neighbourhoods(self, real: Tensor, fake: Tensor) -> dict[str, float]:
        """Precision, recall, density and coverage; empty for too few images."""
        if min(len(real), len(fake)) <= NEIGHBOURS + 1:
            return {}
        return prdc(real[:MANIFOLD_IMAGES], fake[:MANIFOLD_IMAGES])._asdict()

    def _strata(self, labels: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        """The labels of both sides where both are balanced alike."""
        if balanced_alike(self.reference_labels, labels):
            return self.reference_labels, labels
        return None, None

    def _copies(
        self, features: Tensor, row: dict[str, float], diagnostics: dict[str, Any]
    ) -> list[tuple[int, int]]:
        """Adds what says whether samples are copies; returns those closest to training images."""
        copies = memorisation(
            features, train=self.train, reference=self.reference, held_out=self.holdout
        )
        row["memorised_fraction"] = copies.fraction
        diagnostics["memorised_flagged"] = copies.flagged
        diagnostics["memorised_expected"] = copies.expected
        diagnostics["train_images_searched"] = len(self.train)
        closest = copies.closeness.argsort()[:PAIRS]
        return list(zip(closest.tolist(), copies.nearest[closest].tolist(), strict=True))

    def _rng(self, purpose: str) -> torch.Generator:
        """The same for all samples, so that the errors of two models can be paired."""
        return seeded(purpose, self.extractor.key)


def _rounded(distances: Tensor) -> list[float]:
    """To the digits that a record keeps."""
    return [float(f"{value:.{DIGITS}g}") for value in distances.tolist()]


def balanced_alike(a: Tensor | None, b: Tensor | None) -> bool:
    """Whether both have labels, and equal fractions of every class: only then is the balance part
    of the design and not of the noise.
    """
    if a is None or b is None:
        return False
    classes = int(max(a.max(), b.max())) + 1
    fractions = [labels.bincount(minlength=classes).double() / len(labels) for labels in (a, b)]
    difference = (fractions[0] - fractions[1]).abs().max()
    return bool(difference <= 1 / len(a) + 1 / len(b))  # each may miss by an image


def analytic_floor(reference: Tensor, n: int, labels: Tensor | None) -> float:
    """The distance that finite N and M alone make, from the moments of `reference` (M, d).

    Of class-balanced samples where the classes have rows enough to tell; NaN below 8 rows.
    """
    if len(reference) < 8:
        return float("nan")
    enough = labels is not None and labels.unique(return_counts=True)[1].min() >= 4
    return frechet_bias(reference, n, len(reference), labels if enough else None)
