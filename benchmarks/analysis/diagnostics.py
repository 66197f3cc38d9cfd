"""What a careful reader asks of a group of rows, as tables: errors between seeds, excess over
floors, copies, classes, ties.
"""

import itertools
from typing import Any

import pandas as pd

from benchmarks.analysis.curves import distance_name, in_order
from benchmarks.analysis.differences import (
    ACCURACY_MARGIN,
    MARGIN,
    Difference,
    accuracy_difference,
    difference,
    over_seeds,
)

Table = tuple[list[str], list[list[object]]]  # header, rows
MOST_CLASSES = 3
MOST_CURVES = 8  # compared with each other: more would be a page of pairs
MANIFOLD = ("precision", "recall", "density", "coverage")


def excess(rows: pd.DataFrame) -> pd.Series:
    """Distance above the family's own floor: the codebook's for models of tokens, else the
    autoencoder's.
    """
    tokens = rows["family"] == "ar"
    return rows["fd"] - rows["fd_floor_codebook"].where(tokens, rows["fd_floor_autoencoder"])


def at_most_steps(rows: pd.DataFrame) -> pd.DataFrame:
    """Of `verdicts.own_best` rows, one a curve: at its most steps, its first sampling."""
    rows = rows.sort_values(["steps", "sampling_seed"], ascending=[False, True])
    rows = rows.drop_duplicates("curve")
    return rows.set_index("curve", drop=False).loc[in_order(rows.reset_index(drop=True))]


def quality(best: pd.DataFrame) -> Table:
    """Each curve at its best: every measure of it."""
    best = at_most_steps(best)
    rows = []
    for (_, row), above in zip(best.iterrows(), excess(best), strict=True):
        diagnostics = row["diagnostics"]
        gap, kid, copies = None, None, None
        if diagnostics.get("fd_train_floor") is not None:
            gap = row["fd_train"] - diagnostics["fd_train_floor"]
        if pd.notna(row["kid"]):
            kid = f"{row['kid']:.3g} ± {row['kid_stderr']:.2g}"
        if pd.notna(row["memorised_fraction"]):
            copies = f"{row['memorised_fraction']:.3g}"
            copies += " FLAGGED" if diagnostics.get("memorised_flagged") else ""
        distances = [row["fd"], above, row["fd"] - row["fd_floor_real"], gap]
        manifold = [row[name] for name in MANIFOLD]
        infinity = diagnostics.get("fd_infinity")
        rows.append([row["curve"], row["steps"], *distances, infinity, kid, *manifold, copies])
    features = best["features"].iloc[0]
    distances = ["above own floor", "above real images", "the same, to training images"]
    header = ["model", "steps", distance_name(features), *distances]
    header += ["at infinite N (secondary)", f"KID[{features}] ± SE", *MANIFOLD]
    return [*header, "memorised fraction"], rows


def classes(best: pd.DataFrame) -> Table:
    """Each curve at its best: the classes that stand out most, for worse and better.

    By distance where every class had images enough for it, else by KID within the class over its
    error.
    """
    rows = []
    for _, row in at_most_steps(best).iterrows():
        kernels = row["diagnostics"].get("kid_per_class") or {}
        distances = row["diagnostics"].get("fd_per_class") or {}
        if distances and len(distances) == len(kernels):
            measure = distance_name(row["features"])
            marks = [(value, f"{name} {value:.3g}") for name, value in distances.items()]
        else:
            measure = "KID ± SE, ordered by KID / SE"
            marks = [
                (value / max(error, 1e-12), f"{name} {value:.3g} ± {error:.2g}")
                for name, (value, error) in kernels.items()
            ]
        texts = [text for _, text in sorted(marks, reverse=True)]
        if len(texts) >= 2 * MOST_CLASSES:
            worst, best_first = texts[:MOST_CLASSES], texts[::-1][:MOST_CLASSES]
            rows.append([row["curve"], measure, ", ".join(worst), ", ".join(best_first)])
    return ["model", "measure within the class", "worst classes", "best classes"], rows


def seeds(rows: pd.DataFrame) -> Table:
    """Where several were trained or sampled: means, and the standard deviations between trainings,
    between samplings, and of the bootstrap.

    `rows` have a `curve` whose name leaves training seeds out.
    """
    table = []
    for (name, steps), same in rows.groupby(["curve", "steps"], sort=False):
        block = same.pivot_table(index="training", columns="sampling_seed", values="fd")
        block = block.dropna(axis=1)
        if max(block.shape) < 2:
            continue
        bootstrap = (same["fd_std"] ** 2).mean() ** 0.5
        deviations = [v**0.5 if v >= 0 else None for v in _variances(block)]
        table.append([name, steps, *block.shape, block.to_numpy().mean(), *deviations, bootstrap])
    header = ["model", "steps", "trainings", "samplings", "mean fd"]
    header += ["SD between trainings", "SD between samplings", "bootstrap SD"]
    return header, table


def _variances(block: pd.DataFrame) -> tuple[float, float]:
    """Between trainings (rows) and between samplings (columns) of distances.

    All trainings are sampled with the same noise and labels, so a crossed analysis of variance
    takes the two apart: from each mean square the residual's is taken away.
    """
    trainings, samplings = block.shape
    between = block.mean(axis=1).var() * samplings
    across = block.mean(axis=0).var() * trainings
    residual = 0.0
    if min(trainings, samplings) > 1:
        left = block.sub(block.mean(axis=1), axis=0).sub(block.mean(axis=0), axis=1)
        left = left + block.to_numpy().mean()
        residual = (left**2).to_numpy().sum() / ((trainings - 1) * (samplings - 1))
    return (between - residual) / samplings, (across - residual) / trainings


def ties(best: pd.DataFrame, by_id: dict[str, dict[str, Any]]) -> Table:
    """Every pair of models at its best: the second's distance and label accuracy less the first's,
    the errors, and the verdict.

    `best` are `verdicts.own_best` rows with a `curve` whose name leaves training seeds out, `by_id`
    their records. Where both were trained with several of the same seeds, the error is that of the
    differences between them; else it covers the samples, not training again.
    """
    best = best[best["steps"] == best.groupby("curve")["steps"].transform("max")]
    means = best.groupby("curve")["fd"].mean().sort_values().head(MOST_CURVES)
    rows = []
    for first, second in itertools.combinations(means.index, 2):
        a, b = (
            best[best["curve"] == name].sort_values(["seed", "sampling_seed"])
            for name in (first, second)
        )
        distance = _over_shared_seeds("fd", a, b, MARGIN * means[first])
        if distance is None:
            distance = difference(*(by_id[side.iloc[0]["run_id"]] for side in (a, b)))
        names = [f"{name}, {_setting(x.iloc[0])}" for name, x in ((first, a), (second, b))]
        error = f"{distance.error:.3g} ({distance.basis})"
        rows.append([*names, distance.value, error, distance.verdict, _accuracies(a, b)])
    header = ["first", "second", "second - first", "± error", "the second is"]
    return [*header, "label accuracy, second - first"], rows


def _accuracies(a: pd.DataFrame, b: pd.DataFrame) -> str:
    """The difference in label accuracy in words."""
    labels = _over_shared_seeds("label_accuracy", a, b, ACCURACY_MARGIN)
    if labels is None:
        labels = accuracy_difference(a.iloc[0], b.iloc[0])
    text = f"{labels.value:+.3f} ± {labels.error:.2g}"
    if labels.basis.startswith("SE"):
        text += f" ({labels.basis})"
    words = {"tie": ", a tie", "inconclusive": ", inconclusive"}
    return text + words.get(labels.verdict, "")


def _setting(row: pd.Series) -> str:
    steps = f"{row['steps']:.0f} steps"
    return steps if row["guidance"] == 1 else f"{steps}, guidance {row['guidance']:g}"


def _over_shared_seeds(
    measure: str, a: pd.DataFrame, b: pd.DataFrame, margin: float
) -> Difference | None:
    """Over the training seeds both have, where there are several."""
    first, second = (x.groupby(["seed", "sampling_seed"])[measure].mean() for x in (a, b))
    shared = pd.concat([first, second], axis=1).dropna().groupby("seed").mean()
    return over_seeds(*shared.T.values.tolist(), margin) if len(shared) > 1 else None
