"""What the numbers say, in words: which network is lowest within a budget.

Networks are compared over three trainings of each or more, or not at all.
"""

import itertools
import math
from typing import Any

import numpy as np
import pandas as pd

from benchmarks.analysis.differences import (
    LEAST_TRAININGS,
    MARGIN,
    NOT_JUDGED,
    Difference,
    between_networks,
    holm,
    spread,
)
from benchmarks.results.columns import is_busy

COSTS = {"gflops_per_image": "GFLOPs per image", "latency_seconds": "seconds of latency"}
BUDGETS = 2  # of each cost
MOST_LINES = 12  # of all panels of a report together


def frontier(cost: Any, distance: Any) -> np.ndarray:
    """The Pareto frontier, (n,) bool: what no other point beats in one and equals or beats in both.

    Both are better lower; of equal points the first stays.
    """
    cost, distance = np.asarray(cost, float), np.asarray(distance, float)
    order = np.lexsort((distance, cost))
    # the lowest distance among all that cost less
    best_before = np.minimum.accumulate(np.r_[np.inf, distance[order][:-1]])
    kept = np.zeros(len(cost), bool)
    kept[order] = distance[order] < best_before
    return kept


def log_distances(rows: pd.DataFrame, measure: str = "distance") -> list[float]:
    """One value a training: the logarithm of the mean distance over its samplings."""
    return [math.log(value) for value in rows.groupby("training")[measure].mean()]


def differences(groups: dict[Any, pd.DataFrame]) -> dict[tuple[Any, Any], Difference]:
    """Of every pair of networks, given by name with its rows at one setting: the difference of
    their log distances.
    """
    return between_all({name: log_distances(rows) for name, rows in groups.items()}, MARGIN)


def between_all(values: dict[Any, list[float]], margin: float) -> dict[tuple[Any, Any], Difference]:
    """Every pair of networks compared; `values` are one a training, lower is better."""
    of_trainings = spread(list(values.values()))
    return {
        (a, b): between_networks(values[a], values[b], of_trainings, margin)
        for a, b in itertools.combinations(values, 2)
    }


def judged(compared: dict[Any, Difference]) -> dict[Any, str]:
    """The verdict on the second of each pair, all pairs taken together: the chance of any false
    "better" or "worse" among them is that of one.
    """
    adjusted = holm([difference.p for difference in compared.values()])
    return {
        pair: difference.verdict(p)
        for (pair, difference), p in zip(compared.items(), adjusted, strict=True)
    }


def answers(rows: pd.DataFrame, means: pd.DataFrame, most: int = MOST_LINES) -> list[str]:
    """At most `most` lines on the leading rows of a panel, one a training, and their means over
    trainings; each has its `curve`. What is left out is counted.
    """
    measured = means["distance"].notna() & means["gflops_per_image"].notna()
    means = means[measured & means["latency_seconds"].notna()]
    if means["curve"].nunique() < 2:
        return []
    lines = []
    spread_of_budgets = rows["train_flops"].max() / rows["train_flops"].min()
    if spread_of_budgets > 1.05:
        lines.append(f"Training budgets differ by a factor of {spread_of_budgets:.3g}.")
    few = set(means[means["trainings"] < LEAST_TRAININGS]["curve"])
    enough = means[~means["curve"].isin(few)]
    if enough["curve"].nunique() < 2:
        lines.append(f"Which network is better is {NOT_JUDGED}.")
    else:
        if few:  # named before the others are judged: one of them may be lower than all
            names = [name for name in means["curve"].unique() if name in few]
            of_which = "Judged below are networks of three trainings or more"
            lines.append(f"{of_which}. Left out, for fewer: {'; '.join(names)}.")
        lines += best_under(rows[~rows["curve"].isin(few)], enough)
    if len(lines) > most:
        left_out = len(lines) - most + 1
        lines = [*lines[: most - 1], f"{left_out} more lines are left out."]
    return lines


def best_under(rows: pd.DataFrame, means: pd.DataFrame) -> list[str]:
    """For two budgets of each cost, the network with the lowest distance and those that are not
    told apart from it, each at its own best step count within the budget. Nothing of seconds that
    are marked busy.
    """
    affordable, compared, not_judged = {}, {}, []
    for column, meaning in COSTS.items():
        if any(is_busy(row, column) for _, row in rows.iterrows()):
            reason = "other programs were busy while some rows were timed"
            not_judged.append(f"Budgets in {meaning} are not judged: {reason}.")
            continue
        for budget in _budgets(means, column):
            under = means[means[column] <= budget].sort_values("distance").drop_duplicates("curve")
            affordable[f"Up to {budget:.2g} {meaning}, each at its best step count"] = under
            # the same two points within two budgets are one comparison
            compared = _differences_at(_points(under), rows) | compared
    verdicts = judged(compared)  # of all budgets together
    judged_lines = [f"{words}: {_lowest(at, verdicts)}." for words, at in affordable.items()]
    return judged_lines + not_judged


def _lowest(under: pd.DataFrame, verdicts: dict[Any, str]) -> str:
    """Which of the rows, lowest first, is lowest, and which others are not told apart from it."""
    lowest, *others = _points(under)
    alike = [
        point[0]
        for point in others
        if verdicts[min(lowest, point), max(lowest, point)] not in ("better", "worse")
    ]
    if alike and len(alike) == len(others):
        return f"no network is told apart from the lowest, {_named(under.iloc[0])}"
    line = f"{_named(under.iloc[0])} is lowest"
    # names of curves have commas of their own
    return f"{line}; not told apart from it: {'; '.join(alike)}" if alike else line


def _points(means: pd.DataFrame) -> list[tuple[str, float]]:
    """The curve and the step count of each row."""
    return list(zip(means["curve"], means["steps"], strict=True))


def _differences_at(points: list[tuple[str, float]], rows: pd.DataFrame) -> dict[Any, Difference]:
    """`differences` between all of these points, each pair of them in order."""
    return differences(
        {
            (curve, steps): rows[(rows["curve"] == curve) & (rows["steps"] == steps)]
            for curve, steps in sorted(points)
        }
    )


def _budgets(means: pd.DataFrame, column: str) -> list[float]:
    """Costs between the least that every curve can be had for and the dearest point measured, which
    is the second of two.
    """
    least = means.groupby("curve")[column].min().max()
    most = means[column].max()
    return [least, most][: 1 if least == most else BUDGETS]


def _named(row: pd.Series) -> str:
    error = f"{row['distance']:.3g} ± {row['distance_std']:.2g}"
    return f"{row['curve']} at {_steps(row['steps'])} ({error})"


def _steps(count: float) -> str:
    return "1 step" if count == 1 else f"{count:.0f} steps"
