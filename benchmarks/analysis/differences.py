"""Two measurements compared: their difference, its error, and "tie" where that is what it is.

Every record keeps the distances of its bootstrap. Samples judged alike and drawn from one sampling
seed are resampled alike, so that the spread of the differences is a paired error: what two models
share, labels, reference and noise where they allow, cancels.
"""

import math
import statistics
from typing import Any, NamedTuple

from scipy.stats import t as student

MARGIN = 0.1  # of the first's distance: a test that could not have shown so much is inconclusive, not a tie
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
    """Of two records, the difference in fd, with a paired error where both were judged alike."""
    rows = [record["row"] for record in (first, second)]
    value = rows[1]["fd"] - rows[0]["fd"]
    redrawn = [record.get("diagnostics", {}).get("bootstrap") for record in (first, second)]
    alike = all(first.get(k) == second.get(k) for k in ("judge", "sampling_seed")) and rows[0].get(
        "num_samples"
    ) == rows[1].get("num_samples")
    if alike and all(redrawn):
        error = statistics.stdev(b - a for a, b in zip(*redrawn, strict=True))
        return Difference(value, error, 2 * error, "paired bootstrap", MARGIN * rows[0]["fd"])
    error = math.hypot(*(math.nan if row.get("fd_std") is None else row["fd_std"] for row in rows))
    return Difference(value, error, 2 * error, "two bootstraps, unpaired", MARGIN * rows[0]["fd"])


def accuracy_difference(first: dict[str, Any], second: dict[str, Any]) -> Difference:
    """Of two rows, the difference in label accuracy, each a share of as many independent draws as
    there are samples.
    """
    error = math.hypot(
        *(
            (row["label_accuracy"] * (1 - row["label_accuracy"]) / row["num_samples"]) ** 0.5
            for row in (first, second)
        )
    )
    return Difference(
        second["label_accuracy"] - first["label_accuracy"],
        error,
        2 * error,
        "pictures drawn",
        ACCURACY_MARGIN,
    )


def over_seeds(first: list[float], second: list[float], margin: float) -> Difference:
    """Of two or more trainings of both, one for each seed: the mean difference, its standard error,
    Student's 95% limit.

    `basis` also names the joint standard deviation: the root of the sum of both variances between
    seeds.
    """
    count, differences = len(first), [b - a for a, b in zip(first, second, strict=True)]
    error, joint = (
        statistics.stdev(differences) / count**0.5,
        math.hypot(statistics.stdev(first), statistics.stdev(second)),
    )
    limit, value = float(student.ppf(0.975, count - 1)) * error, statistics.mean(differences)
    times = f", {abs(value) / joint:.2g} of them apart" if joint else ""
    return Difference(
        value, error, limit, f"SE over {count} training seeds; joint SD {joint:.2g}{times}", margin
    )
