"""Two measurements compared: their difference, its error, and what may be said of it.

Distances are compared by their logarithms, so that a difference of 0.1 is about a tenth of the
distance, whatever its size. Two networks are compared over three trainings of each or more, because
training again moves a distance more than its samples do. Two settings of one network need no
second training: what they share cancels, and the error is that of the images.
"""

import math
import statistics
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import pandas as pd
from scipy.stats import t as student

from benchmarks.results.columns import ERRORS, leading

LEVEL = 0.05  # of the chance of calling equal networks different, in all comparisons of a table
MARGIN = 0.1  # of a distance: networks that differ by surely less are called a tie
ACCURACY_MARGIN = 0.05  # the same for label accuracies, of which 1 is all
LEAST_RECALL = 0.7  # of real images through the autoencoder: below it no verdict on quality
UNLIKE = 3.0  # standard deviations this many times apart are each network's own (Welch)
LEAST_TRAININGS = 3  # of each network, behind any word on which is better
NOT_JUDGED = "not judged: fewer than three trainings each"


class Difference(NamedTuple):
    """`value` is second minus first, of a measure where lower is better."""

    value: float  # of logarithms for distances
    error: float  # its standard error; NaN where it is unknown
    freedom: float  # degrees of freedom behind that error
    basis: str  # what the error is of
    margin: float  # a smaller difference does not matter

    def ratio(self) -> str:
        """Of a difference of logarithms, the second over the first, and the interval that holds the
        true ratio with a chance of 95%, such as `1.30 (1.12 to 1.51)`.
        """
        if math.isnan(self.error):
            return f"{math.exp(self.value):.3g}"
        reach = float(student.ppf(1 - LEVEL / 2, self.freedom)) * self.error
        low, middle, high = (math.exp(self.value + way * reach) for way in (-1, 0, 1))
        return f"{middle:.3g} ({low:.3g} to {high:.3g})"

    @property
    def p(self) -> float:
        """The chance of so large a difference between equals, two-sided; NaN where unknown."""
        if math.isnan(self.error):
            return math.nan
        if self.error == 0:
            return float(self.value == 0)
        return 2 * float(student.sf(abs(self.value) / self.error, self.freedom))

    def verdict(self, p: float | None = None) -> str:
        """Of the second: better, worse, tie, inconclusive, unknown, or not judged.

        `p` is `self.p`, adjusted where several comparisons stand together (see `holm`). A tie is an
        equivalence, shown by two one-sided tests: the difference is surely within the margin.
        """
        if self.basis == NOT_JUDGED:
            return NOT_JUDGED
        p = self.p if p is None else p
        if math.isnan(p):
            return "unknown"
        if p < LEVEL:
            return "better" if self.value < 0 else "worse"
        limit = abs(self.value) + float(student.ppf(1 - LEVEL, self.freedom)) * self.error
        return "tie" if limit <= self.margin else "inconclusive"


def holm(values: Sequence[float]) -> list[float]:
    """The p-values of one table, adjusted so that the chance of any false difference among them is
    what it would be for one (Holm 1979). NaN stays NaN.
    """
    known = sorted((p, i) for i, p in enumerate(values) if not math.isnan(p))
    adjusted, highest = list(values), 0.0
    for rank, (p, i) in enumerate(known):
        highest = max(highest, min(1.0, (len(known) - rank) * p))
        adjusted[i] = highest
    return adjusted


class Spread(NamedTuple):
    """How far trainings of one recipe lie apart, from all recipes that were trained again."""

    variance: float  # of the logarithm of a distance, or of an accuracy, between trainings
    freedom: int  # degrees of freedom behind it


def spread(groups: Sequence[Sequence[float]]) -> Spread | None:
    """The pooled variance between trainings; `groups` holds one value a training, by recipe.

    A single recipe has too few trainings to say how much they scatter; all of a table together
    say it better. None where nothing was trained twice, or never differs.
    """
    again = [values for values in groups if len(values) > 1]
    freedom = sum(len(values) - 1 for values in again)
    squares = sum(statistics.variance(values) * (len(values) - 1) for values in again)
    return Spread(squares / freedom, freedom) if squares > 0 else None


def between_networks(
    first: Sequence[float], second: Sequence[float], of_trainings: Spread | None, margin: float
) -> Difference:
    """Of one value a training of two networks (logarithms of distances): the difference of their
    means. Not judged unless both were trained three times.
    """
    value = statistics.mean(second) - statistics.mean(first)
    if min(len(first), len(second)) < LEAST_TRAININGS:
        return Difference(value, math.nan, math.nan, NOT_JUDGED, margin)
    if of_trainings is None:
        return Difference(value, math.nan, math.nan, "no spread between trainings", margin)
    # so far apart that a pooled spread is neither's: Welch's test, each by its own
    spreads = [Spread(statistics.variance(v), len(v) - 1) for v in (first, second)]
    variances = [one.variance for one in spreads]
    if max(variances) <= UNLIKE**2 * min(variances):
        spreads = [_own_or(of_trainings, values) for values in (first, second)]
    errors = [
        one.variance / len(values) for one, values in zip(spreads, (first, second), strict=True)
    ]
    freedom: float = of_trainings.freedom
    if any(one is not of_trainings for one in spreads):  # two estimates: Welch's degrees of freedom
        parts = [error**2 / one.freedom for error, one in zip(errors, spreads, strict=True)]
        freedom = sum(errors) ** 2 / sum(parts)
    basis = f"{len(first)} and {len(second)} trainings"
    return Difference(value, math.sqrt(sum(errors)), freedom, basis, margin)


def _own_or(of_trainings: Spread, values: Sequence[float]) -> Spread:
    """The pooled spread, unless this network's own trainings scatter more: recipes need not scatter
    alike, and an average over steadier ones would call its luck a difference.
    """
    own = Spread(statistics.variance(values), len(values) - 1)
    return own if own.variance > of_trainings.variance else of_trainings


def between_settings(first: Sequence[float], second: Sequence[float], margin: float) -> Difference:
    """Of two settings of the same two or more trainings, in the same order: the mean difference."""
    differences = [b - a for a, b in zip(first, second, strict=True)]
    value, error = statistics.mean(differences), statistics.stdev(differences)
    error /= len(differences) ** 0.5
    basis = f"{len(differences)} trainings, paired"
    return Difference(value, error, len(differences) - 1, basis, margin)


def within_training(first: dict[str, Any], second: dict[str, Any]) -> Difference:
    """Of two records of one network, the difference of their log distances: the error is that of
    the images, paired where both were evaluated and sampled alike.
    """
    rows = [record["row"] for record in (first, second)]
    name = leading(rows[0])
    value = math.log(rows[1][name] / rows[0][name])
    bootstraps = [record.get("diagnostics", {}).get("bootstrap") for record in (first, second)]
    alike = all(first.get(key) == second.get(key) for key in ("evaluator", "sampling_seed"))
    same_size = rows[0].get("num_samples") == rows[1].get("num_samples")
    if alike and same_size and all(bootstraps):
        error = paired_error((rows[0][name], rows[1][name]), bootstraps)
        return Difference(value, error, math.inf, "one training, its images", MARGIN)
    errors = [(row.get(ERRORS[name]) or math.nan) / row[name] for row in rows]
    basis = "one training, its images, unpaired"
    return Difference(value, math.hypot(*errors), math.inf, basis, MARGIN)


def log_ratio(a: pd.Series, b: pd.Series) -> tuple[float, float]:
    """The logarithm of a's distance over b's and its error, paired where they were resampled alike:
    both are of one network, sampled from one seed.
    """
    value = math.log(a["distance"] / b["distance"])
    bootstraps = [(row.get("diagnostics") or {}).get("bootstrap") for row in (a, b)]
    if all(bootstraps) and a.get("sampling_seed") == b.get("sampling_seed"):
        return value, paired_error((a["distance"], b["distance"]), bootstraps)
    relative = [row["distance_std"] / row["distance"] for row in (a, b)]
    return value, math.hypot(*relative)


def excess(
    some: pd.DataFrame,
    others: pd.DataFrame,
    of_pair: Callable[[pd.Series, pd.Series], tuple[float, float]] = log_ratio,
) -> Difference:
    """By how much rows at one setting lie above those at another, of log distances or of what
    `of_pair` compares: the mean over the trainings that both have, and its error: of the images, or
    between trainings if that is larger.
    """
    values, errors = [], []
    for training, rows in some.groupby("training"):
        other = others[others["training"] == training]
        if len(other):
            value, error = of_pair(rows.iloc[0], other.iloc[0])
            values.append(value)
            errors.append(error)
    if not values:
        return Difference(math.inf, math.nan, math.nan, "no training has both", MARGIN)
    of_images = math.hypot(*errors) / len(errors)
    if len(values) == 1:
        return Difference(values[0], of_images, math.inf, "one training, its images", MARGIN)
    between = between_settings([0.0] * len(values), values, MARGIN)
    # few trainings may lie close together by chance
    return between._replace(error=max(between.error, of_images))


def paired_error(distances: tuple[float, float], bootstraps: Sequence[Sequence[float]]) -> float:
    """The standard error of the logarithm of the ratio of two distances that were resampled alike.

    To first order. Near their floor resampled distances lie well above the distance, so that the
    logarithms of their ratios would scatter too little.
    """
    first, second = distances
    return statistics.stdev(b / second - a / first for a, b in zip(*bootstraps, strict=True))


def accuracy_within_training(first: dict[str, Any], second: dict[str, Any]) -> Difference:
    """Of two rows of one network, the difference in label accuracy, signed so that lower is better.

    Each is a fraction of as many independent trials as there are samples.
    """
    variances = [
        row["label_accuracy"] * (1 - row["label_accuracy"]) / row["num_samples"]
        for row in (first, second)
    ]
    value = first["label_accuracy"] - second["label_accuracy"]
    error = math.sqrt(sum(variances))
    return Difference(value, error, math.inf, "one training, its samples", ACCURACY_MARGIN)
