"""How many steps are enough for each network.

Steps of one network are compared within each training, by what their samples share.
"""

import itertools

import pandas as pd

from benchmarks.analysis.differences import Difference, excess
from benchmarks.analysis.verdicts import judged

ENOUGH = 2.0  # errors that fewer steps may lie above the best count
HEADER = ["model", "where", "fewest that will do", "lowest at", "no difference that matters"]
HEADER += ["worse", "undecided", "settings"]

Counts = dict[float, pd.DataFrame]  # one network's rows by step count, ascending


def enough_steps(rows: pd.DataFrame) -> tuple[list[str], list[list[object]]]:
    """Header and a row for each curve with several step counts: the fewest that will do, the one
    that is lowest, and of every other what it is beside the lowest.
    """
    table = []
    for name, curve in rows.groupby("curve", sort=False):
        at = dict(list(curve.groupby("steps")))
        if len(at) > 1:
            table.append([name, *_of_counts(at)])
    return HEADER, table


def _of_counts(at: Counts) -> list[str]:
    """The cells on one network.

    A difference that is surely within the margin does not matter, however surely it is one: paired
    errors are so small that a hundredth of a distance would be called worse.
    """
    best = _lowest(at)
    above = {steps: excess(at[steps], at[best]) for steps in at if steps != best}
    # a chance of 1 that it is none leaves the question whether it is within the margin
    alike = [steps for steps, one in above.items() if one.verdict(1.0) == "tie"]
    surely = _worse_than(at, best)
    worse = [steps for steps in above if steps in surely and steps not in alike]
    others = [steps for steps in above if steps not in (*alike, *worse)]
    # a count that is surely worse will not do, though it lies within two errors
    near = [steps for steps, one in above.items() if _is_near(one) and steps not in worse]
    fewest, most = min([best, *alike, *near]), max(at)
    trainings = max(rows["training"].nunique() for rows in at.values())
    settings = {frozenset(_settings_of(rows)) for rows in at.values()}
    lowest = _named(at, [best])
    if best == most and not alike:  # more steps might be better still
        lowest = f"not converged: the most measured is best, {lowest}"
    return [
        "in this training" if trainings == 1 else f"over {trainings} trainings",
        "none fewer than the most" if fewest == most else _named(at, [fewest]),
        lowest,
        *(_named(at, counts) for counts in (alike, worse, others)),
        "differ" if len(settings) > 1 else "alike",
    ]


def _lowest(at: Counts) -> float:
    """The count with the lowest distance: each is compared with the most steps, because not every
    training need have every count.
    """
    above_most = {steps: excess(rows, at[max(at)]).value for steps, rows in at.items()}
    return min(at, key=lambda steps: above_most[steps])


def _is_near(above: Difference) -> bool:
    return above.value <= 0 or above.value <= ENOUGH * above.error


def _worse_than(at: Counts, best: float) -> list[float]:
    """The step counts that are worse than the best one.

    The best is not known beforehand, so that every pair of counts might have been asked about: all
    of them share the chance of a false answer.
    """
    compared = {(a, b): excess(at[b], at[a]) for a, b in itertools.combinations(at, 2)}
    verdicts = judged(compared)
    return [
        steps
        for steps in at
        if verdicts.get((best, steps)) == "worse" or verdicts.get((steps, best)) == "better"
    ]


def _settings_of(rows: pd.DataFrame) -> set[tuple]:
    return set(zip(rows["guidance"], rows["sampler"], strict=True))


def _named(at: Counts, counts: list[float]) -> str:
    """Step counts with their distances, such as `4 (5.1), 8 (4.9)`."""
    return ", ".join(f"{steps:.0f} ({at[steps]['distance'].mean():.3g})" for steps in counts)
