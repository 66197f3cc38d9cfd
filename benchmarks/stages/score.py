"""Scores of one set of samples against a data set's reference images."""

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from benchmarks.core.store import seeded
from benchmarks.frozen.extractors import FeatureExtractor
from metrics.features import extract
from metrics.frechet import bootstrap, frechet_bias, frechet_distance, frechet_infinity
from metrics.kid import kid
from metrics.memorisation import memorisation
from metrics.per_class import frechet_per_class, kid_per_class
from metrics.prdc import NEIGHBOURS, prdc
from metrics.probe import Probe

PAIRS = 8  # samples shown beside the training images they are closest to


class Scores(NamedTuple):
    """What an evaluator says of one set of samples."""

    row: dict[str, float]  # columns of results.csv
    selection: dict[str, float]  # what settings are chosen by: the distance to training images
    diagnostics: dict[str, Any]  # what else a careful reader may ask
    pairs: list[tuple[int, int]]  # the samples closest to training images: rows of both


@dataclass(frozen=True)
class Evaluator:
    """Scores images against one data set's reference split, by one feature extractor."""

    extractor: FeatureExtractor
    device: torch.device
    reference: Tensor  # (M, d) features
    reference_labels: Tensor | None = None  # (M,)
    # columns that are the same for every row: floors, real label accuracy
    row_constants: dict[str, float] = field(default_factory=dict)
    holdout: Tensor | None = None  # features of real images that nothing has seen
    train: Tensor | None = None  # features of at most 10,000 training images
    probe: Probe | None = None
    probe_split: str | None = None  # the split whose images it was fitted on
    key: str = ""  # names the reference images, the extractor and the way of scoring
    diagnostic_constants: dict[str, float] = field(default_factory=dict)

    def score(self, images: np.ndarray, labels: Tensor | None) -> Scores:
        """Of uint8 images (N, 3, H, W), sampled for `labels` (N,) where they were."""
        return self.of_features(extract(self.extractor.net, images, device=self.device), labels)

    def of_features(self, features: Tensor, labels: Tensor | None) -> Scores:
        """Of features (N, d); what needs labels or training images is left out where there are
        none.

        Errors are stratified where both sides hold equal fractions of every class. Precision and
        its kin are of as many reference images as there are samples, the first ones of each; empty
        below 7, KID below 3.
        """
        row, diagnostics = self._distances(features, labels)
        if labels is not None and self.probe:
            row["label_accuracy"] = self.probe.accuracy(features, labels)
        if labels is not None and self.reference_labels is not None:
            both = (self.reference, self.reference_labels, features, labels)
            diagnostics["kid_per_class"] = kid_per_class(*both)
            diagnostics["fd_per_class"] = frechet_per_class(*both)
        selection, pairs = {}, []
        if self.train is not None:
            selection["fd_train"] = frechet_distance(self.train, features)
            pairs = self._copies(features, row, diagnostics)
        return Scores(row, selection, diagnostics | self.diagnostic_constants, pairs)

    def _distances(
        self, features: Tensor, labels: Tensor | None
    ) -> tuple[dict[str, float], dict[str, Any]]:
        """Columns and diagnostics of the samples as a whole."""
        smaller = min(len(features), len(self.reference))
        strata = (None, None)
        if balanced_alike(self.reference_labels, labels):
            strata = (self.reference_labels, labels)
        fd = frechet_distance(self.reference, features)
        rng = self._rng("bootstrap")
        resampled = bootstrap(self.reference, features, rng=rng, labels=strata)
        row = {"fd": fd, "fd_std": resampled.std().item()}
        diagnostics: dict[str, Any] = {"bootstrap": resampled.tolist()}
        if smaller > NEIGHBOURS + 1:
            row |= prdc(self.reference, features)._asdict()
        if smaller >= 3:
            row["kid"], row["kid_stderr"] = kid(self.reference, features, labels=strata)
        if smaller >= 2 * features.shape[1]:  # below that the extrapolation says nothing
            rng = self._rng("infinity")
            diagnostics["fd_infinity"] = frechet_infinity(self.reference, features, rng=rng)
        return row, diagnostics

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
