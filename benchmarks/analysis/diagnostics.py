"""What a careful reader asks of a panel, as tables: every measure, errors between seeds, copies,
classes and ties.
"""

from itertools import combinations

import pandas as pd

from benchmarks.analysis import verdicts
from benchmarks.analysis.curves import distance_name, in_order
from benchmarks.analysis.differences import ACCURACY_MARGIN, MARGIN, NOT_JUDGED, Difference
from benchmarks.analysis.panel import Panel
from benchmarks.results.columns import ERRORS, leading

Table = tuple[list[str], list[list[object]]]  # header, rows
MOST_CLASSES = 3
MOST_CURVES = 8  # whose pairs are shown: more would be a page of pairs
FULL = "fd_generator_full"
MANIFOLD = ("precision", "recall", "density", "coverage")


def at_most_steps(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows of each curve at its most steps, in the order of the curves."""
    rows = rows[rows["steps"] == rows.groupby("curve")["steps"].transform("max")]
    place = {name: i for i, name in enumerate(in_order(rows))}
    return rows.sort_values("curve", key=lambda names: names.map(place), kind="stable")


def quality(panel: Panel) -> Table:
    """Each curve at its most steps: every measure of it, means over trainings.

    Copies are flagged where they are in any training or sampling.
    """
    flags = [bool(one.get("memorised_flagged")) for one in panel.by_sampling["diagnostics"]]
    flagged = panel.by_sampling[flags].groupby(["curve", "steps"]).groups
    full = panel.shown[FULL].notna().any()
    rows = []
    for _, row in at_most_steps(panel.shown).iterrows():
        copies = None
        if pd.notna(row["memorised_fraction"]):
            copies = f"{row['memorised_fraction']:.3g}"
            copies += " FLAGGED" if (row["curve"], row["steps"]) in flagged else ""
        kernels = [_with_error(row, "kid_generator", "kid_generator_stderr")]
        kernels.append(_with_error(row, "kid", "kid_stderr"))
        distances = [row["fd_generator"], *([row[FULL]] if full else []), row["fd"]]
        manifold = [row[name] for name in MANIFOLD]
        rows.append([row["curve"], row["steps"], *distances, *kernels, *manifold, copies])
    name = distance_name(panel.features)
    header = ["model", "steps", f"generator-only {name}"]
    header += ["the same over all features"] if full else []
    header += [f"{name}, decoder included"]
    header += [f"generator-only KID[{panel.features}] ± SE", "KID, decoder included ± SE"]
    return [*header, *MANIFOLD, "memorised fraction"], rows


def _with_error(row: pd.Series, name: str, error: str) -> str | None:
    return f"{row[name]:.3g} ± {row[error]:.2g}" if pd.notna(row[name]) else None


def classes(panel: Panel) -> Table:
    """Each leading curve at its most steps, its first training: the classes that stand out most,
    for worse and better.

    By distance where every class had images enough for it, else by KID within the class.
    """
    rows = []
    for _, row in at_most_steps(panel.leading).drop_duplicates("curve").iterrows():
        kernels = row["diagnostics"].get("kid_per_class") or {}
        distances = row["diagnostics"].get("fd_per_class") or {}
        if distances and len(distances) == len(kernels):
            measure = distance_name(row["features"])
            marks = [(value, f"{name} {value:.3g}") for name, value in distances.items()]
        else:
            measure = "KID ± SE"
            marks = [
                (value, f"{name} {value:.3g} ± {error:.2g}")
                for name, (value, error) in kernels.items()
            ]
        texts = [text for _, text in sorted(marks, reverse=True)]
        if len(texts) >= 2 * MOST_CLASSES:
            worst, best_first = texts[:MOST_CLASSES], texts[::-1][:MOST_CLASSES]
            rows.append([row["curve"], measure, ", ".join(worst), ", ".join(best_first)])
    return ["model", "measure within the class", "worst classes", "best classes"], rows


def seeds(panel: Panel) -> Table:
    """Where several were trained or sampled: means, and the standard deviations between trainings,
    between samplings, and of the bootstrap.
    """
    table = []
    for (name, steps), same in panel.by_sampling.groupby(["curve", "steps"], sort=False):
        block = same.pivot_table(index="training", columns="sampling_seed", values="distance")
        block = block.dropna(axis=1)
        if max(block.shape) < 2:
            continue
        bootstrap = (same["distance_std"] ** 2).mean() ** 0.5
        deviations = [v**0.5 if v >= 0 else None for v in _variances(block)]
        table.append([name, steps, *block.shape, block.to_numpy().mean(), *deviations, bootstrap])
    header = ["model", "steps", "trainings", "samplings", f"mean {panel.distance}"]
    header += ["SD between trainings", "SD between samplings", "bootstrap SD"]
    return header, table


def _variances(block: pd.DataFrame) -> tuple[float, float]:
    """Between trainings (rows) and between samplings within a training of distances.

    Each training has noise of its own, so samplings are nested in trainings: the mean square
    between trainings holds a sampling's variance, too, which is taken away. Of one sampling each
    the two cannot be told apart, and the first holds both.
    """
    trainings, samplings = block.shape
    within = block.var(axis=1).mean() if samplings > 1 else float("nan")
    between = block.mean(axis=1).var() if trainings > 1 else float("nan")
    if samplings > 1:
        between -= within / samplings
    return between, within


def ties(panel: Panel) -> Table:
    """Every pair of leading curves at their most steps: the second's distance over the
    first's, the errors and the verdict, what the other distances say, and the difference in label
    accuracy. Of many curves the pairs of the lowest (see `unprinted`).
    """
    groups = _from_lowest(panel)
    compared = differences(groups)
    # those that are not shown were looked at, too: they share the chance of a false verdict
    verdict = verdicts.judged(compared)
    favoured = favoured_by_others(groups)
    table = []
    for pair in combinations(list(groups)[:MOST_CURVES], 2):
        names = [f"{name}, {_setting(groups[name].iloc[0])}" for name in pair]
        distance, accuracy = compared["distance", *pair], compared["accuracy", *pair]
        words = f"{-accuracy.value:+z.3f}"
        if not pd.isna(accuracy.error):
            words += f" ± {accuracy.error:.2g}, {verdict['accuracy', *pair]}"
        cells = [distance.ratio(), verdict["distance", *pair], favoured[pair]]
        table.append([*names, *cells, words])
    header = ["first", "second", f"second / first, {panel.distance} (95% interval)"]
    header += ["the second is", "other distances favour"]
    return [*header, "label accuracy, second - first"], table


def unprinted(panel: Panel) -> list[str]:
    """A line on the curves that `ties` leaves out; none where it has all."""
    count = panel.leading["curve"].nunique()
    if count <= MOST_CURVES:
        return []
    return [
        f"The {MOST_CURVES} lowest of {count} curves: {count - MOST_CURVES} are not printed. The "
        f"verdicts count the pairs of all {count}."
    ]


def _from_lowest(panel: Panel) -> dict[str, pd.DataFrame]:
    """The rows of each leading curve at its most steps, the lowest distance first."""
    rows = at_most_steps(panel.leading)
    order = rows.groupby("curve")["distance"].mean().sort_values().index
    return {name: rows[rows["curve"] == name] for name in order}


def favoured_by_others(groups: dict[str, pd.DataFrame]) -> dict[tuple[str, str], str]:
    """Of every pair of networks, which of the two the distances that do not lead call better, in
    words; empty where none of them is judged. All of them together share the chance of a false one.

    A tie by the leading distance alone would hide that every other one tells the two apart.
    """
    lead = leading(next(iter(groups.values())).iloc[0]) if groups else ""
    compared = {}
    for measure in ERRORS:
        if measure == lead:
            continue
        # a KID at its floor may be 0 or less, which has no logarithm
        values = {
            name: verdicts.log_distances(rows, measure)
            for name, rows in groups.items()
            if measure in rows and (rows.groupby("training")[measure].mean() > 0).all()
        }
        by_pair = verdicts.between_all(values, MARGIN)
        compared |= {(measure, *pair): one for pair, one in by_pair.items()}
    words = verdicts.judged(compared)
    return {
        pair: _favoured([words[name, *pair] for name in ERRORS if (name, *pair) in words])
        for pair in combinations(groups, 2)
    }


def _favoured(words: list[str]) -> str:
    """Verdicts on the second of a pair, by several distances, in one clause."""
    known = [word for word in words if word not in (NOT_JUDGED, "unknown")]
    second, first = known.count("better"), known.count("worse")
    if not known:
        return ""
    if not (first or second):
        return f"neither: 0 of {len(known)}"
    if first == second:
        return f"divided: {first} each, of {len(known)}"
    if first > second:
        return f"the first: {first} of {len(known)}; the second: {second or 'none'}"
    return f"the second: {second} of {len(known)}; the first: {first or 'none'}"


def differences(groups: dict[str, pd.DataFrame]) -> dict[tuple[str, str, str], Difference]:
    """Of every pair of networks, by measure and names: the difference in distance, and that in
    label accuracy. Both are columns of one table, whose verdicts share the chance of a false one.
    """
    accuracies = {
        # errors and not hits, so that lower is better, as of a distance
        name: [-value for value in rows.groupby("training")["label_accuracy"].mean()]
        for name, rows in groups.items()
    }
    by_accuracy = verdicts.between_all(accuracies, ACCURACY_MARGIN)
    by_distance = verdicts.differences(groups)
    return {("distance", *pair): one for pair, one in by_distance.items()} | {
        ("accuracy", *pair): one for pair, one in by_accuracy.items()
    }


def _setting(row: pd.Series) -> str:
    steps = f"{row['steps']:.0f} steps"
    if row["guidance"] == 1 or row["chosen"]:  # trainings may have chosen differently
        return steps
    return f"{steps}, guidance {row['guidance']:g}"
