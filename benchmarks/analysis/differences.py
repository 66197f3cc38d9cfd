"""Two measurements compared: their difference, its error, and "tie" where that is what it is.

Every record keeps the distances of its bootstrap. Samples evaluated alike and sampled from one seed
are resampled alike, so that the spread of the differences is a paired error: what two models share
(labels, reference, and noise where they allow) cancels.
"""

import math
import statistics
from typing import Any, NamedTuple

from scipy.stats import t as student

# of the first's distance: a test that could not have shown so much is inconclusive, not a tie
MARGIN = 0.1
ACCURACY_MARGIN = 0.05  # the same for label accuracies, of which 1 is all


class Difference(NamedTuple):
    """`value` is second minus first; `limit` is what it must exceed to be one: two `error`s, more
    where few trainings gave it.

    A difference within the limit is a tie, but only where the limit is at most `margin`; a wider
    error is inconclusive.
    """

    value: float
    error: float
    limit: float
    basis: str  # what the error is of
    margin: float

    @property
    def verdict(self) -> str:
        """Of the second, of a measure where lower is better: better, worse, tie, inconclusive, or
        unknown where the error is.
        """
        if math.isnan(self.limit):
            return "unknown"
        if abs(self.value) > self.limit:
            return "better" if self.value < 0 else "worse"
        return "tie" if self.limit <= self.margin else "inconclusive"


def difference(first: dict[str, Any], second: dict[str, Any]) -> Difference:
    """Of two records, the difference in fd, with a paired error where both were evaluated alike."""
    rows = [record["row"] for record in (first, second)]
    value, margin = rows[1]["fd"] - rows[0]["fd"], MARGIN * rows[0]["fd"]
    bootstraps = [record.get("diagnostics", {}).get("bootstrap") for record in (first, second)]
    alike = all(first.get(name) == second.get(name) for name in ("evaluator", "sampling_seed"))
    same_size = rows[0].get("num_samples") == rows[1].get("num_samples")
    if alike and same_size and all(bootstraps):
        error = statistics.stdev(b - a for a, b in zip(*bootstraps, strict=True))
        return Difference(value, error, 2 * error, "paired bootstrap", margin)
    errors = [math.nan if row.get("fd_std") is None else row["fd_std"] for row in rows]
    error = math.hypot(*errors)
    return Difference(value, error, 2 * error, "two bootstraps, unpaired", margin)


def accuracy_difference(first: dict[str, Any], second: dict[str, Any]) -> Difference:
    """Of two rows, the difference in label accuracy.

    Each is a fraction of as many independent trials as there are samples.
    """
    variances = [
        row["label_accuracy"] * (1 - row["label_accuracy"]) / row["num_samples"]
        for row in (first, second)
    ]
    error = math.hypot(*(variance**0.5 for variance in variances))
    value = second["label_accuracy"] - first["label_accuracy"]
    return Difference(value, error, 2 * error, "samples", ACCURACY_MARGIN)


def over_seeds(first: list[float], second: list[float], margin: float) -> Difference:
    """Of two or more trainings of both, one for each seed: the mean difference, its standard error,
    Student's 95% limit.

    `basis` also names the joint standard deviation: the root of the sum of both variances between
    seeds.
    """
    count = len(first)
    differences = [b - a for a, b in zip(first, second, strict=True)]
    value, error = statistics.mean(differences), statistics.stdev(differences) / count**0.5
    limit = float(student.ppf(0.975, count - 1)) * error
    joint = math.hypot(statistics.stdev(first), statistics.stdev(second))
    basis = f"SE over {count} training seeds; joint SD {joint:.2g}"
    if joint:
        basis += f", {abs(value) / joint:.2g} of them apart"
    return Difference(value, error, limit, basis, margin)
