"""What the numbers say, in words: how many steps are enough for each network, and which is lowest
within a budget.

Networks are compared over three trainings of each or more, or not at all. Steps of one network are
compared within each training, by what their samples share.
"""

import itertools
import math
import statistics
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

COSTS = {"gflops_per_image": "GFLOPs per image", "latency_seconds": "seconds of latency"}
BUDGETS = 2  # of each cost
MOST_LINES = 12  # of all panels of a report together
ENOUGH = 2.0  # errors that fewer steps may lie above the best count


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


def log_distances(rows: pd.DataFrame) -> list[float]:
    """One value a training: the logarithm of the mean distance over its samplings."""
    return [math.log(value) for value in rows.groupby("training")["distance"].mean()]


def pairs(groups: dict[str, pd.DataFrame]) -> list[tuple[str, str, Difference, str]]:
    """Every pair of networks, given by name with its rows at one setting: the difference of their
    log distances, and the verdict on the second, all pairs taken together.
    """
    values = {name: log_distances(rows) for name, rows in groups.items()}
    of_trainings = spread(list(values.values()))
    compared = [
        (a, b, between_networks(values[a], values[b], of_trainings, MARGIN))
        for a, b in itertools.combinations(values, 2)
    ]
    adjusted = holm([difference.p for _, _, difference in compared])
    return [
        (a, b, difference, difference.verdict(p))
        for (a, b, difference), p in zip(compared, adjusted, strict=True)
    ]


def answers(rows: pd.DataFrame, means: pd.DataFrame, most: int = MOST_LINES) -> list[str]:
    """At most `most` lines on the leading rows of a panel, one a training, and their means over
    trainings; each has its `curve`. What is left out is counted.
    """
    measured = means["distance"].notna() & means["gflops_per_image"].notna()
    means = means[measured & means["latency_seconds"].notna()]
    if means["curve"].nunique() < 2 and len(means) < 2:
        return []
    lines = []
    spread_of_budgets = rows["train_flops"].max() / rows["train_flops"].min()
    if spread_of_budgets > 1.05:
        lines.append(f"Training budgets differ by a factor of {spread_of_budgets:.3g}.")
    if means["curve"].nunique() > 1:
        if (means["trainings"] >= LEAST_TRAININGS).all():
            lines += best_under(rows, means)
        else:
            lines.append(f"Which network is better is {NOT_JUDGED}.")
    # last, because of many curves some are cut
    lines += enough_steps(rows)
    if len(lines) > most:
        left_out = len(lines) - most + 1
        lines = [*lines[: most - 1], f"{left_out} more lines are left out."]
    return lines


def enough_steps(rows: pd.DataFrame) -> list[str]:
    """Per curve, the fewest steps that are not told apart from the best count measured: no more
    than two errors of the difference above it. Which more steps are worse is said, too.
    """
    lines = []
    for name, curve in rows.groupby("curve", sort=False):
        at = dict(list(curve.groupby("steps")))  # ascending
        if len(at) > 1:
            lines.append(f"{name}: {_enough_of(at)}.")
    return lines


def _enough_of(at: dict[float, pd.DataFrame]) -> str:
    """What is said of one network's rows by step count."""
    most = max(at)
    above_most = {steps: _excess(at[steps], at[most])[0] for steps in at}
    best = min(at, key=lambda steps: above_most[steps])
    errors_above = {steps: _in_errors(*_excess(at[steps], at[best])) for steps in at}
    enough = min(steps for steps in at if errors_above[steps] <= ENOUGH)
    verb = "is" if enough == 1 else "are"
    if enough == best:
        measured = ", the most measured," if best == most else ""
        line = f"{_steps(best)}{measured} {verb} best ({_mean(at[best])})"
        line += "; fewer are worse" if enough > min(at) else ""
    else:
        line = f"{_steps(enough)} ({_mean(at[enough])}) {verb} not told apart from the best"
        line += f" count, {_steps(best)} ({_mean(at[best])})"
    worse = [s for s in at if s > enough and errors_above[s] > ENOUGH]
    if worse:
        named = [f"{_steps(steps)} ({_mean(at[steps])})" for steps in worse]
        line += f"; {' and '.join(named)} are worse"
    if enough != best and _settings_of(at[enough]) != _settings_of(at[best]):
        line += "; other settings were chosen for these"
    return line


def _mean(rows: pd.DataFrame) -> str:
    return f"{rows['distance'].mean():.3g}"


def _settings_of(rows: pd.DataFrame) -> set[tuple]:
    return set(zip(rows["guidance"], rows["sampler"], strict=True))


def _in_errors(difference: float, error: float) -> float:
    if difference <= 0:
        return 0.0
    return difference / error if error > 0 else math.inf


def _excess(some: pd.DataFrame, others: pd.DataFrame) -> tuple[float, float]:
    """By how much the log distance of `some` lies above that of `others`, the mean over the
    trainings that both have, and its error: of the images, or between trainings if that is larger.
    """
    differences, errors = [], []
    for training, rows in some.groupby("training"):
        other = others[others["training"] == training]
        if len(other):
            difference, error = _log_ratio(rows.iloc[0], other.iloc[0])
            differences.append(difference)
            errors.append(error)
    if not differences:
        return math.inf, 0.0
    error = math.hypot(*errors) / len(errors)
    if len(differences) > 1:
        error = max(error, statistics.stdev(differences) / len(differences) ** 0.5)
    return statistics.mean(differences), error


def _log_ratio(a: pd.Series, b: pd.Series) -> tuple[float, float]:
    """The logarithm of a's distance over b's and its error, paired where they were resampled alike:
    both are of one network, sampled from one seed.
    """
    value = math.log(a["distance"] / b["distance"])
    bootstraps = [(row.get("diagnostics") or {}).get("bootstrap") for row in (a, b)]
    if all(bootstraps) and a.get("sampling_seed") == b.get("sampling_seed"):
        resampled = [math.log(x / y) for x, y in zip(*bootstraps, strict=True)]
        return value, statistics.stdev(resampled)
    relative = [row["distance_std"] / row["distance"] for row in (a, b)]
    return value, math.hypot(*relative)


def best_under(rows: pd.DataFrame, means: pd.DataFrame) -> list[str]:
    """For two budgets of each cost, the network with the lowest distance and those that are not
    told apart from it, each at its own best step count within the budget.
    """
    lines = []
    for column, meaning in COSTS.items():
        for budget in _budgets(means, column):
            affordable = means[means[column] <= budget].sort_values("distance")
            affordable = affordable.drop_duplicates("curve")
            names = dict(zip(affordable["curve"], affordable["steps"], strict=True))
            groups = {
                name: rows[(rows["curve"] == name) & (rows["steps"] == steps)]
                for name, steps in names.items()
            }
            lowest = affordable.iloc[0]
            told_apart = {
                {a, b}.difference({lowest["curve"]}).pop()
                for a, b, _, verdict in pairs(groups)
                if lowest["curve"] in (a, b) and verdict in ("better", "worse")
            }
            others = [name for name in names if name not in (*told_apart, lowest["curve"])]
            line = f"{_named(lowest)} is lowest"
            if len(others) == len(names) - 1 > 0:
                line = f"no network is told apart from the lowest, {_named(lowest)}"
            elif others:
                line += f"; not told apart from it: {', '.join(others)}"
            lines.append(f"Up to {budget:.2g} {meaning}: {line}.")
    return lines


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
