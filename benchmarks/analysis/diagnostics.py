"""What a careful reader asks of a group of rows, as Markdown tables: errors between seeds, excess
over floors, copies, classes, ties.
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

Table = tuple[list[str], list[list[object]]]
MOST_CLASSES = 3
MOST_CURVES = 8  # compared with each other: more would be a page of pairs


def excess(part: pd.DataFrame) -> pd.Series:
    """Distance above the family's own floor: the codebook's for models of tokens, the autoencoder's
    for diffusion.
    """
    tokens = part["family"] == "ar"
    return part["fd"] - part["fd_floor_codebook"].where(tokens, part["fd_floor_autoencoder"])


def at_best(part: pd.DataFrame) -> pd.DataFrame:
    """Of `verdicts.own_best` rows, one a curve: at its most steps, its first drawing."""
    part = part.sort_values(["steps", "sampling_seed"], ascending=[False, True]).drop_duplicates(
        "curve"
    )
    return part.set_index("curve", drop=False).loc[in_order(part.reset_index(drop=True))]


def quality(part: pd.DataFrame) -> Table:
    """Each curve at its best: every measure of it."""
    part, rows = at_best(part), []
    for (_, row), above in zip(part.iterrows(), excess(part), strict=True):
        said = row["diagnostics"]
        gap = (
            row["fd_train"] - said["fd_train_floor"]
            if said.get("fd_train_floor") is not None
            else None
        )
        kid = f"{row['kid']:.3g} ± {row['kid_stderr']:.2g}" if pd.notna(row["kid"]) else None
        share = row["memorised_fraction"]
        share = (
            f"{share:.3g}{' FLAGGED' * bool(said.get('memorised_flagged'))}"
            if pd.notna(share)
            else None
        )
        manifold = [row[name] for name in ("precision", "recall", "density", "coverage")]
        excesses = [above, row["fd"] - row["fd_floor_real"], gap, said.get("fd_infinity")]
        rows.append([row["curve"], row["steps"], row["fd"], *excesses, kid, *manifold, share])
    features = part["features"].iloc[0]
    header = [
        "model",
        "steps",
        distance_name(features),
        "above own floor",
        "above real pictures",
        "the same, to training pictures",
    ]
    return [
        *header,
        "at infinite N (secondary)",
        f"KID[{features}] ± SE",
        "precision",
        "recall",
        "density",
        "coverage",
        "memorised share",
    ], rows


def classes(part: pd.DataFrame) -> Table:
    """Each curve at its best: the classes that stand out most, for worse and better: by distance
    where every class had pictures enough for it, else by KID within the class over its error.
    """
    rows = []
    for _, row in at_best(part).iterrows():
        kernels, distances = (
            row["diagnostics"].get(name) or {} for name in ("kid_per_class", "fd_per_class")
        )
        if distances and len(distances) == len(kernels):
            found = [(value, f"{name} {value:.3g}") for name, value in distances.items()]
        else:
            found = [
                (value / max(error, 1e-12), f"{name} {value:.3g} ± {error:.2g}")
                for name, (value, error) in kernels.items()
            ]
        said = [text for _, text in sorted(found, reverse=True)]
        if len(said) >= 2 * MOST_CLASSES:
            measure = (
                distance_name(row["features"])
                if distances and len(distances) == len(kernels)
                else "KID ± SE"
            )
            rows.append(
                [
                    row["curve"],
                    measure,
                    ", ".join(said[:MOST_CLASSES]),
                    ", ".join(said[: -MOST_CLASSES - 1 : -1]),
                ]
            )
    return ["model", "measure within the class", "worst classes", "best classes"], rows


def seeds(part: pd.DataFrame) -> Table:
    """Where several were trained or drawn: means, and the standard deviations between trainings,
    between drawings, and of the bootstrap.

    `part` has a `curve` whose name leaves training seeds out. Trainings are drawn from with the
    same noise and labels, so a crossed analysis of variance takes the two apart: from each mean
    square the residual's is taken away (empty where nothing is left).
    """
    rows = []
    for (name, steps), same in part.groupby(["curve", "steps"], sort=False):
        block = same.pivot_table(index="training", columns="sampling_seed", values="fd").dropna(
            axis=1
        )
        trained, drawn = block.shape
        if max(trained, drawn) < 2:
            continue
        between, across = block.mean(axis=1).var() * drawn, block.mean(axis=0).var() * trained
        residual = (
            block.sub(block.mean(axis=1), axis=0).sub(block.mean(axis=0), axis=1)
            + block.to_numpy().mean()
        )
        residual = (
            (residual**2).to_numpy().sum() / ((trained - 1) * (drawn - 1))
            if min(trained, drawn) > 1
            else 0.0
        )
        variances = [(between - residual) / drawn, (across - residual) / trained]
        bootstrap = (same["fd_std"] ** 2).mean() ** 0.5
        rows.append(
            [
                name,
                steps,
                trained,
                drawn,
                block.to_numpy().mean(),
                *(v**0.5 if v >= 0 else None for v in variances),
                bootstrap,
            ]
        )
    header = [
        "model",
        "steps",
        "trainings",
        "drawings",
        "mean fd",
        "SD between trainings",
        "SD between drawings",
        "bootstrap SD",
    ]
    return header, rows


def ties(best: pd.DataFrame, found: dict[str, dict[str, Any]]) -> Table:
    """Every pair of models at its best: the second's distance and label accuracy less the first's,
    the errors, and the verdict.

    `best` are `verdicts.own_best` rows with a `curve` whose name leaves training seeds out: where
    both were trained with several of the same seeds, the error is that of the differences between
    them; else it covers the pictures drawn, not training again.
    """
    best = best[best["steps"] == best.groupby("curve")["steps"].transform("max")]
    means = best.groupby("curve")["fd"].mean().sort_values().head(MOST_CURVES)
    rows = []
    for one, other in itertools.combinations(means.index, 2):
        a, b = (
            best[best["curve"] == name].sort_values(["seed", "sampling_seed"])
            for name in (one, other)
        )
        apart = _over_shared_seeds("fd", a, b, MARGIN * means[one]) or difference(
            *(found[x.iloc[0]["run_id"]] for x in (a, b))
        )
        labels = _over_shared_seeds("label_accuracy", a, b, ACCURACY_MARGIN) or accuracy_difference(
            a.iloc[0], b.iloc[0]
        )
        told = {"tie": "a tie", "inconclusive": "inconclusive"}.get(labels.verdict)
        basis = f" ({labels.basis})" * labels.basis.startswith("SE")
        said = f"{labels.value:+.3f} ± {labels.error:.2g}{basis}{f', {told}' if told else ''}"
        names = [f"{name}, {_setting(x.iloc[0])}" for name, x in ((one, a), (other, b))]
        rows.append(
            [*names, apart.value, f"{apart.error:.3g} ({apart.basis})", apart.verdict, said]
        )
    return [
        "first",
        "second",
        "second - first",
        "± error",
        "the second is",
        "label accuracy, second - first",
    ], rows


def _setting(row: pd.Series) -> str:
    return f"{row['steps']:.0f} steps" + f", guidance {row['guidance']:g}" * bool(
        row["guidance"] != 1
    )


def _over_shared_seeds(
    measure: str, a: pd.DataFrame, b: pd.DataFrame, margin: float
) -> Difference | None:
    """Over the training seeds both have, where there are several."""
    one, other = (x.groupby(["seed", "sampling_seed"])[measure].mean() for x in (a, b))
    shared = pd.concat([one, other], axis=1).dropna().groupby("seed").mean()
    return over_seeds(*shared.T.values.tolist(), margin) if len(shared) > 1 else None
