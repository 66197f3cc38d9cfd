"""What the numbers say, in words: who is cheapest to a distance, who is best for a budget, which
steps are not worth paying for.

Only settings a user could have chosen are compared: at each step count a model without guidance and
at its own best, by distance to *training* pictures. Seeds are averaged. Two points are not told
apart where they differ by less than two standard deviations: of one training each, by the paired
bootstrap of both (it covers the pictures drawn, not training again); of several, by Student's
limit.
"""

import math
import statistics
from typing import Any

import numpy as np
import pandas as pd

from benchmarks.analysis.differences import over_seeds

RECIPE = [
    "model",
    "size",
    "objective",
    "budget",
    "dtype",
    "variant",
]  # what is trained; another seed is the same again
COSTS = {
    "gflops_per_image": ("GFLOPs per image", "GFLOPs"),
    "latency_seconds": ("seconds of latency", "s"),
}
SHARES = (2.0, 1.5, 1.1)  # of the best distance: the targets asked about
MOST_BUDGETS = 4
TWICE = "heun"  # asks the network twice a step: a curve of its own, else at equal step counts it would hide what costs half
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
    """The Pareto frontier: which points (both lower is better) no other point beats or equals in
    one and beats in the other, (n,) bool.
    """
    cost, distance = np.asarray(cost, float), np.asarray(distance, float)
    order = np.lexsort((distance, cost))
    best = np.minimum.accumulate(np.r_[np.inf, distance[order][:-1]])
    kept = np.zeros(len(cost), bool)
    kept[order] = distance[order] < best
    return kept


def tied(a: pd.Series, b: pd.Series) -> bool:
    """Whether two rows' distances are not told apart; never so where an error is unknown."""
    seeds = [row.get("by_seed") or {} for row in (a, b)]
    shared = sorted(seeds[0].keys() & seeds[1].keys())
    if len(shared) > 1:
        return (
            over_seeds(*([found[seed] for seed in shared] for found in seeds), math.inf).verdict
            == "tie"
        )
    redrawn = [(row.get("diagnostics") or {}).get("bootstrap") for row in (a, b)]
    paired = (
        all(redrawn)
        and a.get("sampling_seed") == b.get("sampling_seed")
        and a.get("num_samples") == b.get("num_samples")
    )
    error = (
        statistics.stdev(x - y for x, y in zip(*redrawn, strict=True))
        if paired
        else math.hypot(a["fd_std"], b["fd_std"])
    )
    return bool(abs(a["fd"] - b["fd"]) < 2 * error)


def own_best(part: pd.DataFrame, within: tuple[str, ...] = ()) -> pd.DataFrame:
    """Per recipe and step count (and what else is to be kept apart), the rows of its own best
    guidance and sampler.

    That is the lowest distance to *training* pictures, the mean over seeds and drawings, of the
    settings that most trainings have. A column `pick` says that rows are of a choice, and which:
    empty here, or `heun` beside other samplers of the same recipe.
    """
    kept, keys = [], [name for name in (*RECIPE, "steps", *within) if name in part]
    part = split_heun(part)
    for _, rows in part.groupby([*keys, "pick"], dropna=False, sort=False):
        if len(rows[["guidance", "sampler"]].drop_duplicates()) > 1:
            settings = rows.groupby(["guidance", "sampler"], as_index=False, dropna=False)
            means = settings.agg(fd_train=("fd_train", "mean"), trainings=("training", "nunique"))
            best = means.sort_values(
                ["trainings", "fd_train", "guidance"], ascending=[False, True, True]
            ).iloc[0]
            rows = rows[
                (rows["guidance"] == best["guidance"]) & (rows["sampler"] == best["sampler"])
            ]
        kept.append(rows)
    return pd.concat(kept).sort_index()


def split_heun(part: pd.DataFrame) -> pd.DataFrame:
    """With a column `pick`: `heun` for its rows where the recipe was drawn with other samplers,
    too, else empty.
    """
    twice = part["sampler"].astype(str).str.startswith(TWICE)
    beside = twice & ~twice.groupby(
        [part[name] for name in RECIPE if name in part], dropna=False
    ).transform("all")
    return part.assign(pick=np.where(beside, TWICE, ""))


def chosen(part: pd.DataFrame) -> pd.DataFrame:
    """Each recipe at its own best; of a sweep over guidance without guidance, too, told apart by
    `pick`.
    """
    recipe = [name for name in RECIPE if name in part]
    if not (part.groupby(recipe, dropna=False)["guidance"].nunique() > 1).any():
        return own_best(part)
    plain = part[part["guidance"] == 1]
    found = [_picked(own_best(plain), "no guidance")] if len(plain) else []
    for _, rows in own_best(part).groupby([*recipe, "pick"], dropna=False, sort=False):
        if not (
            found and rows.index.isin(found[0].index).all()
        ):  # else no guidance is its best at every step count
            found.append(_picked(rows, "best guidance"))
    return pd.concat(found, ignore_index=True)


def _picked(part: pd.DataFrame, said: str) -> pd.DataFrame:
    return part.assign(pick=[", ".join(filter(None, [pick, said])) for pick in part["pick"]])


def rows_to_show(part: pd.DataFrame) -> pd.DataFrame:
    """`chosen` rows, several drawings of one setting of the same weights as their mean."""
    return over_drawings(chosen(part))


def over_drawings(part: pd.DataFrame) -> pd.DataFrame:
    """Several drawings of the same weights and setting as their mean; `fd_std` stays that of one
    drawing.
    """
    keys = [
        name
        for name in ("training", "train_fraction", "steps", "guidance", "sampler", "pick")
        if name in part
    ]
    drawings = part.groupby(keys, dropna=False)
    if drawings.ngroups == len(part):
        return part
    averages = (
        drawings[[name for name in AVERAGED if name in part]]
        .transform("mean")
        .assign(fd_std=drawings["fd_std"].transform(lambda sd: (sd**2).mean() ** 0.5))
    )
    first = drawings.cumcount() == 0
    return part.assign(**averages)[first]


def averaged(part: pd.DataFrame) -> pd.DataFrame:
    """One row for each curve and step count: means over K seeds, and `fd_std` that mean's error.

    Seeds differ by their pictures, too, so their variance holds both; with few seeds it may come
    out below the pictures' own, which it cannot be: the larger is taken. `by_seed` keeps the
    distances.
    """
    found, measures = [], [name for name in ("fd", "seconds_per_image", *COSTS) if name in part]
    for _, rows in part.groupby(["curve", "steps"], sort=False):
        row = {**rows.iloc[0], **rows[measures].mean(), "by_seed": {}}
        if len(rows) > 1:
            row["fd_std"] = math.sqrt(
                max((rows["fd_std"] ** 2).mean(), rows["fd"].var()) / len(rows)
            )
            row |= {
                "diagnostics": {},
                "by_seed": dict(zip(rows["seed"], rows["fd"], strict=True))
                if "seed" in rows
                else {},
            }
        found.append(row)
    return pd.DataFrame(found)


def _named(row: pd.Series) -> str:
    return f"{row['curve']} at {_steps(row['steps'])} ({row['fd']:.3g} ± {row['fd_std']:.2g})"


def _steps(count: float) -> str:
    return "1 step" if count == 1 else f"{count:.0f} steps"


def _round_budgets(values: pd.Series) -> list[float]:
    """At most four of 1, 2, 5, 10, ... that part the points: above the cheapest, below the dearest."""
    low, high = math.log10(values.min()), math.log10(values.max())
    steps = [m * 10.0**e for e in range(math.floor(low), math.ceil(high) + 1) for m in (1, 2, 5)]
    inside = [b for b in steps if values.min() <= b < values.max()]
    take = np.linspace(0, len(inside) - 1, min(MOST_BUDGETS, len(inside))).round().astype(int)
    return [inside[i] for i in take]


def cheapest(part: pd.DataFrame, name: str) -> list[str]:
    """For each target distance, what reaches it for the least of each cost, and what may: cheaper,
    and above it by less than the error.
    """
    lines, best = [], part["fd"].min()
    for target in [best * share for share in SHARES]:
        reached, found = part[part["fd"] <= target], []
        for column, (_, unit) in COSTS.items():
            row = reached.loc[reached[column].idxmin()]
            near = part[
                (part["fd"] > target)
                & (part["fd"] - 2 * part["fd_std"] <= target)
                & (part[column] < row[column])
            ]
            near = near.sort_values(column).drop_duplicates("curve")
            perhaps = (
                f" (within the error also {', '.join(_named(r) for _, r in near.iterrows())})"
                if len(near)
                else ""
            )
            found.append(f"{_named(row)} for {row[column]:.3g} {unit}{perhaps}")
        lines.append(
            f"{name} of {target:.3g} or less costs least with {found[0]}; in latency with {found[1]}."
        )
    return lines


def best_under(part: pd.DataFrame) -> list[str]:
    """For several budgets of each cost, the best point and what is not told apart from it."""
    lines = []
    for column, (meaning, _) in COSTS.items():
        for budget in _round_budgets(part[column]):
            rows = part[part[column] <= budget].sort_values("fd")
            best = rows.iloc[0]
            others = rows[rows["curve"] != best["curve"]].drop_duplicates("curve")
            ties = [row["curve"] for _, row in others.iterrows() if tied(best, row)]
            lines.append(
                f"Up to {budget:g} {meaning}: {_named(best)}"
                + f"; not told apart from {', '.join(ties)}" * bool(ties)
                + "."
            )
    return lines


def enough_steps(part: pd.DataFrame) -> list[str]:
    """Per curve, the fewest steps that no larger count measured improves on by more than the error
    (which need not be small).
    """
    lines = []
    for name, rows in part.groupby("curve", sort=False):
        rows = rows.sort_values("steps")
        if len(rows) < 2:
            continue
        for i in range(len(rows)):
            later = rows.iloc[i + 1 :]
            if all(
                row["fd"] >= rows.iloc[i]["fd"] or tied(rows.iloc[i], row)
                for _, row in later.iterrows()
            ):
                break
        enough = rows.iloc[i]
        said = (
            f"still improving at {_steps(enough['steps'])}, the most measured"
            if i == len(rows) - 1
            else ""
        )
        said = said or f"no more steps are told apart from {_steps(enough['steps'])}"
        lines.append(f"{name}: {said}, at {enough['fd']:.3g} ± {enough['fd_std']:.2g}.")
    return lines


def answers(part: pd.DataFrame, name: str) -> list[str]:
    """All of it as lines, of the rows of one comparable group, each with its `curve` (whose name
    leaves seeds out).

    Nothing for fewer than two points. Trainings of different budgets are compared as they are, and
    said to be.
    """
    part = part[
        part["fd"].notna() & part["gflops_per_image"].notna() & part["latency_seconds"].notna()
    ]
    if len(part) < 2:
        return []
    spread = part["train_flops"].max() / part["train_flops"].min()
    uneven = [f"Training budgets differ by a factor of {spread:.3g}."] if spread > 1.05 else []
    part = averaged(part)
    return [*uneven, *cheapest(part, name), *best_under(part), *enough_steps(part)]
