"""What the numbers say, in words: who is cheapest to a distance, who is best for a budget, which
steps are not worth paying for.

Only settings a user could have chosen are compared: at each step count a model without guidance and
at its own best, by distance to *training* images. Seeds are averaged. Two rows are not told apart
where they differ by less than two standard deviations: of one training each, by the paired
bootstrap of both (it covers the images, not training again); of several, by Student's limit.
"""

import math
import statistics
from typing import Any

import numpy as np
import pandas as pd

from benchmarks.analysis.differences import over_seeds

# what is trained; another seed is the same again
RECIPE = ["model", "size", "objective", "budget", "dtype", "variant"]
COSTS = {
    "gflops_per_image": ("GFLOPs per image", "GFLOPs"),
    "latency_seconds": ("seconds of latency", "s"),
}
TARGETS = (2.0, 1.5, 1.1)  # times the best distance: what is asked to be reached for the least
MOST_BUDGETS = 4
# evaluates the network twice a step: a curve of its own, for at equal step counts it would hide
# what costs half
TWICE = "heun"
AVERAGED = (
    "fd",
    "label_accuracy",
    "precision",
    "recall",
    "seconds_per_image",
    "images_per_second",
    "latency_seconds",
    "peak_memory_mb",
)


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


def tied(a: pd.Series, b: pd.Series) -> bool:
    """Whether two rows' distances are not told apart; never so where an error is unknown."""
    seeds_a, seeds_b = a.get("by_seed") or {}, b.get("by_seed") or {}
    shared = sorted(seeds_a.keys() & seeds_b.keys())
    if len(shared) > 1:
        first, second = [seeds_a[s] for s in shared], [seeds_b[s] for s in shared]
        return over_seeds(first, second, math.inf).verdict == "tie"
    return bool(abs(a["fd"] - b["fd"]) < 2 * _error(a, b))


def _error(a: pd.Series, b: pd.Series) -> float:
    """The standard deviation of a difference, paired where both were resampled alike."""
    bootstraps = [(row.get("diagnostics") or {}).get("bootstrap") for row in (a, b)]
    alike = all(a.get(name) == b.get(name) for name in ("sampling_seed", "num_samples"))
    if alike and all(bootstraps):
        return statistics.stdev(x - y for x, y in zip(*bootstraps, strict=True))
    return math.hypot(a["fd_std"], b["fd_std"])


def own_best(rows: pd.DataFrame, within: tuple[str, ...] = ()) -> pd.DataFrame:
    """Per recipe and step count (and `within`), the rows of its own best guidance and sampler.

    That is the lowest distance to *training* images, the mean over seeds, of the settings that most
    trainings have. A column `pick` says which choice a row is of: empty here, or `heun` beside
    other samplers of the same recipe.
    """
    keys = [name for name in (*RECIPE, "steps", *within) if name in rows]
    kept = []
    for _, same in split_heun(rows).groupby([*keys, "pick"], dropna=False, sort=False):
        if len(same[["guidance", "sampler"]].drop_duplicates()) > 1:
            settings = same.groupby(["guidance", "sampler"], as_index=False, dropna=False)
            means = settings.agg(fd_train=("fd_train", "mean"), trainings=("training", "nunique"))
            order = means.sort_values(
                ["trainings", "fd_train", "guidance"], ascending=[False, True, True]
            )
            best = order.iloc[0]
            is_best = same["guidance"] == best["guidance"]
            same = same[is_best & (same["sampler"] == best["sampler"])]
        kept.append(same)
    return pd.concat(kept).sort_index()


def split_heun(rows: pd.DataFrame) -> pd.DataFrame:
    """With a column `pick`: `heun` for its rows where the recipe has other samplers, too."""
    twice = rows["sampler"].astype(str).str.startswith(TWICE)
    recipe = [rows[name] for name in RECIPE if name in rows]
    alone = twice.groupby(recipe, dropna=False).transform("all")
    return rows.assign(pick=np.where(twice & ~alone, TWICE, ""))


def chosen(rows: pd.DataFrame) -> pd.DataFrame:
    """Each recipe at its own best; of a sweep over guidance without guidance, too, told apart by
    `pick`.
    """
    recipe = [name for name in RECIPE if name in rows]
    if not (rows.groupby(recipe, dropna=False)["guidance"].nunique() > 1).any():
        return own_best(rows)
    unguided = rows[rows["guidance"] == 1]
    picked = [_picked(own_best(unguided), "no guidance")] if len(unguided) else []
    for _, best in own_best(rows).groupby([*recipe, "pick"], dropna=False, sort=False):
        # where no guidance is its best at every step count, there is nothing more to show
        if not (picked and best.index.isin(picked[0].index).all()):
            picked.append(_picked(best, "best guidance"))
    return pd.concat(picked, ignore_index=True)


def _picked(rows: pd.DataFrame, choice: str) -> pd.DataFrame:
    return rows.assign(pick=[f"{pick}, {choice}" if pick else choice for pick in rows["pick"]])


def over_samplings(rows: pd.DataFrame) -> pd.DataFrame:
    """Several samplings of the same weights and setting as their mean; `fd_std` stays one's."""
    keys = ["training", "train_fraction", "steps", "guidance", "sampler", "pick"]
    samplings = rows.groupby([name for name in keys if name in rows], dropna=False)
    if samplings.ngroups == len(rows):
        return rows
    means = samplings[[name for name in AVERAGED if name in rows]].transform("mean")
    fd_std = samplings["fd_std"].transform(lambda std: (std**2).mean() ** 0.5)
    return rows.assign(**means, fd_std=fd_std)[samplings.cumcount() == 0]


def averaged(rows: pd.DataFrame) -> pd.DataFrame:
    """One row for each curve and step count: means over K seeds, and `fd_std` that mean's error.

    Seeds differ by their samples, too, so their variance holds both. With few seeds it may come out
    below the samples' own, which it cannot be: the larger is taken. `by_seed` keeps the distances.
    """
    measures = [name for name in ("fd", "seconds_per_image", *COSTS) if name in rows]
    means = []
    for _, same in rows.groupby(["curve", "steps"], sort=False):
        row = {**same.iloc[0], **same[measures].mean(), "by_seed": {}}
        if len(same) > 1:
            variance = max((same["fd_std"] ** 2).mean(), same["fd"].var())
            row["fd_std"] = math.sqrt(variance / len(same))
            row["diagnostics"] = {}
            if "seed" in same:
                row["by_seed"] = dict(zip(same["seed"], same["fd"], strict=True))
        means.append(row)
    return pd.DataFrame(means)


def _named(row: pd.Series) -> str:
    return f"{row['curve']} at {_steps(row['steps'])} ({row['fd']:.3g} ± {row['fd_std']:.2g})"


def _steps(count: float) -> str:
    return "1 step" if count == 1 else f"{count:.0f} steps"


def _round_budgets(values: pd.Series) -> list[float]:
    """At most four of 1, 2, 5, 10, ...: above the cheapest of the values, below the dearest."""
    low, high = math.log10(values.min()), math.log10(values.max())
    exponents = range(math.floor(low), math.ceil(high) + 1)
    steps = [m * 10.0**e for e in exponents for m in (1, 2, 5)]
    inside = [budget for budget in steps if values.min() <= budget < values.max()]
    places = np.linspace(0, len(inside) - 1, min(MOST_BUDGETS, len(inside)))
    return [inside[i] for i in places.round().astype(int)]


def cheapest(rows: pd.DataFrame, name: str) -> list[str]:
    """For each target distance, what reaches it for the least of each cost, and what may: cheaper,
    and above it by less than the error.
    """
    lines, best = [], rows["fd"].min()
    for target in [best * factor for factor in TARGETS]:
        gflops, latency = (_cheapest_to(target, rows, column) for column in COSTS)
        line = (
            f"{name} of {target:.3g} or less costs least with {gflops}; in latency with {latency}."
        )
        lines.append(line)
    return lines


def _cheapest_to(target: float, rows: pd.DataFrame, column: str) -> str:
    reached = rows[rows["fd"] <= target]
    row = reached.loc[reached[column].idxmin()]
    within_error = (rows["fd"] > target) & (rows["fd"] - 2 * rows["fd_std"] <= target)
    near = rows[within_error & (rows[column] < row[column])]
    near = near.sort_values(column).drop_duplicates("curve")
    answer = f"{_named(row)} for {row[column]:.3g} {COSTS[column][1]}"
    if len(near):
        others = ", ".join(_named(other) for _, other in near.iterrows())
        answer += f" (within the error also {others})"
    return answer


def best_under(rows: pd.DataFrame) -> list[str]:
    """For several budgets of each cost, the best row and what is not told apart from it."""
    lines = []
    for column, (meaning, _) in COSTS.items():
        for budget in _round_budgets(rows[column]):
            affordable = rows[rows[column] <= budget].sort_values("fd")
            best = affordable.iloc[0]
            others = affordable[affordable["curve"] != best["curve"]].drop_duplicates("curve")
            ties = [row["curve"] for _, row in others.iterrows() if tied(best, row)]
            line = f"Up to {budget:g} {meaning}: {_named(best)}"
            if ties:
                line += f"; not told apart from {', '.join(ties)}"
            lines.append(line + ".")
    return lines


def enough_steps(rows: pd.DataFrame) -> list[str]:
    """Per curve, the fewest steps that no larger count measured improves on by more than the error
    (which need not be small).
    """
    lines = []
    for name, curve in rows.groupby("curve", sort=False):
        curve = curve.sort_values("steps")
        if len(curve) < 2:
            continue
        enough = next(row for i, row in enumerate(_rows(curve)) if _is_enough(curve, i))
        if enough["steps"] == curve["steps"].iloc[-1]:
            verdict = f"still improving at {_steps(enough['steps'])}, the most measured"
        else:
            verdict = f"no more steps are told apart from {_steps(enough['steps'])}"
        lines.append(f"{name}: {verdict}, at {enough['fd']:.3g} ± {enough['fd_std']:.2g}.")
    return lines


def _rows(table: pd.DataFrame) -> list[pd.Series]:
    return [row for _, row in table.iterrows()]


def _is_enough(curve: pd.DataFrame, i: int) -> bool:
    """Whether no later row of a curve is better by more than the error."""
    row = curve.iloc[i]
    later = _rows(curve.iloc[i + 1 :])
    return all(other["fd"] >= row["fd"] or tied(row, other) for other in later)


def answers(rows: pd.DataFrame, name: str) -> list[str]:
    """All of it as lines, of the rows of one comparable group, each with its `curve` (whose name
    leaves seeds out).

    Nothing for fewer than two rows. Trainings of different budgets are compared as they are, and
    said to be.
    """
    known = rows["fd"].notna() & rows["gflops_per_image"].notna() & rows["latency_seconds"].notna()
    rows = rows[known]
    if len(rows) < 2:
        return []
    lines = []
    spread = rows["train_flops"].max() / rows["train_flops"].min()
    if spread > 1.05:
        lines.append(f"Training budgets differ by a factor of {spread:.3g}.")
    rows = averaged(rows)
    return lines + cheapest(rows, name) + best_under(rows) + enough_steps(rows)
