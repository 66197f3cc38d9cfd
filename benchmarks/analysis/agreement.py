"""Whether the judges of one setting agree: on the order of networks, and on what a change of
settings or of steps is good for.
"""

import math
from itertools import combinations, product
from typing import NamedTuple

import pandas as pd
from scipy.stats import spearmanr

from benchmarks.analysis.choices import CHOSEN, searched
from benchmarks.analysis.diagnostics import FULL, at_most_steps
from benchmarks.analysis.differences import Difference, excess
from benchmarks.analysis.panel import Panel
from benchmarks.analysis.step_counts import ENOUGH
from benchmarks.results.columns import ERRORS

MOST_NAMED = 5  # of what two judges disagree on


class Change(NamedTuple):
    """What a change of settings or of steps did to one distance."""

    sign: int  # 1 raised, -1 lowered, 0 neither by more than the errors
    words: str


def disagreement(panels: list[Panel]) -> list[str]:
    """How far the judges of one setting (panels that differ in features alone) agree: on the order
    of the leading curves at their most steps (Spearman's rank correlation, and the pairs they turn
    round), and on what a change of settings or of steps is good for.
    """
    lines = []
    for first, second in combinations(panels, 2):
        if first.features == second.features:  # one judge of other images
            continue
        lines += _turned_pairs(first, second)
        for mine, theirs in product(_measures(first).items(), _measures(second).items()):
            lines += _opposite_changes((first, *mine), (second, *theirs))
    return lines


def _measures(panel: Panel) -> dict[str, str]:
    """The distances that changes are judged by, columns and what they are called: the one that
    leads, and KID where that one sees some components of the features only.

    A Fréchet distance over all of many features takes thousands of images; KID has all of them.
    """
    measures = {"distance": panel.distance}
    if panel.rows["projected"].any() and panel.rows[FULL].isna().any():
        of_generator = panel.rows["kid_generator"].notna().any()
        name, words = ("kid_generator", "generator-only ") if of_generator else ("kid", "")
        measures[name] = f"{words}KID[{panel.features}]"
    return measures


def _turned_pairs(first: Panel, second: Panel) -> list[str]:
    """One line on the order of the leading curves at their most steps."""
    marks = [
        at_most_steps(panel.leading).groupby("curve", sort=False)["distance"].mean()
        for panel in (first, second)
    ]
    both = pd.concat(marks, axis=1, keys=["first", "second"]).dropna()
    if len(both) < 2:
        return []
    turned = [
        f"{a} and {b}"
        for a, b in combinations(both.index, 2)
        if (both["first"][a] - both["first"][b]) * (both["second"][a] - both["second"][b]) < 0
    ]
    count = len(both) * (len(both) - 1) // 2
    line = f"{first.distance} and {second.distance} order {len(turned)} of {count} pairs"
    line += " differently"
    if len(both) > 2:
        line += f" (rank correlation {spearmanr(both['first'], both['second'])[0]:.2f})"
    return [line + (f": {'; '.join(turned[:MOST_NAMED])}." if turned else ".")]


def _opposite_changes(first: tuple[Panel, str, str], second: tuple[Panel, str, str]) -> list[str]:
    """One line on the changes that one judge likes and the other does not, both beyond the errors
    of the images. Each is a panel, the column of a distance, and what that is called.
    """
    mine, theirs = (_changes(panel, measure) for panel, measure, _ in (first, second))
    both = [name for name in mine if name in theirs]
    opposite = [name for name in both if mine[name].sign * theirs[name].sign < 0]
    if not both:
        return []
    line = f"Of {len(both)} changes of settings or steps, {len(opposite)} are better by one of "
    line += f"{first[2]} and {second[2]} and worse by the other, by more than two errors each"
    named = [f"{name} ({mine[name].words}; {theirs[name].words})" for name in opposite[:MOST_NAMED]]
    return [line + (f": {'; '.join(named)}." if named else ".")]


def _changes(panel: Panel, measure: str) -> dict[str, Change]:
    """What each change did: chosen settings in place of those configured, at each step count, and
    the most steps in place of the fewest.
    """
    changes, rows_of = {}, searched(panel.by_training)
    rows_of = rows_of[rows_of[measure].notna()]
    for (network, steps), rows in rows_of.groupby(["network", "steps"], sort=False):
        by_pick = dict(list(rows.groupby("pick")))
        if {"", CHOSEN} <= set(by_pick):
            name = f"{network} at {steps:.0f} steps, settings chosen"
            changes[name] = _change(by_pick[""], by_pick[CHOSEN], measure)
    for curve, rows in rows_of.groupby("curve", sort=False):
        few, many = rows["steps"].min(), rows["steps"].max()
        if few < many:
            ends = [rows[rows["steps"] == steps] for steps in (few, many)]
            changes[f"{curve} from {few:.0f} to {many:.0f} steps"] = _change(*ends, measure)
    return changes


def _change(before: pd.DataFrame, after: pd.DataFrame, measure: str) -> Change:
    """What became of a distance, within each training: settings of one network share their noise,
    which cancels where both were resampled alike.
    """
    if measure == "distance":
        change = excess(after, before)
        return Change(_sign(change), f"{math.exp(change.value):.3g} times")
    # of KID no resamples are kept, and it has no logarithm at zero or below
    error = ERRORS[measure]
    change = excess(
        after, before, lambda a, b: (a[measure] - b[measure], math.hypot(a[error], b[error]))
    )
    values = [f"{rows[measure].mean():.3g}" for rows in (before, after)]
    return Change(_sign(change), " to ".join(values))


def _sign(change: Difference) -> int:
    """1 for a higher distance, -1 for a lower one, 0 within the errors."""
    if not abs(change.value) > ENOUGH * change.error:
        return 0
    return 1 if change.value > 0 else -1
