"""What a careful reader asks of a group of rows, as Markdown tables: errors between seeds, excess over floors, copies, classes, ties."""

import itertools
from pathlib import Path
from typing import Any

import pandas as pd

from benchmarks import verdicts
from benchmarks.paired import difference
from benchmarks.plots import distance_name, in_order

Table = tuple[list[str], list[list[object]]]
MOST_CLASSES = 3
MOST_CURVES = 8  # compared with each other: more would be a page of pairs


def excess(part: pd.DataFrame) -> pd.Series:
    """Distance above the family's own floor: the codebook's for models of tokens, the autoencoder's for diffusion."""
    tokens = part["family"] == "ar"
    return part["fd"] - part["fd_floor_codebook"].where(tokens, part["fd_floor_autoencoder"])


def at_best(part: pd.DataFrame) -> pd.DataFrame:
    """One row a curve: at its own best guidance and sampler, its most steps, its first drawing."""
    part = verdicts.own_best(part).sort_values(["steps", "sampling_seed"], ascending=[False, True]).drop_duplicates("curve")
    return part.set_index("curve", drop=False).loc[in_order(part.reset_index(drop=True))]


def quality(part: pd.DataFrame) -> Table:
    """Each curve at its best: every measure of it."""
    part = at_best(part)
    asked = pd.DataFrame(part["diagnostics"].tolist(), index=part.index).reindex(
        columns=["fd_infinity", "fd_train_floor", "memorised_flagged"]
    )
    rows = []
    for at, row in part.iterrows():
        gap = row["fd_train"] - asked.at[at, "fd_train_floor"] if row["fd_train"] is not None else None
        share = f"{row['memorised_share']:.3g}{' FLAGGED' * (asked.at[at, 'memorised_flagged'] is True)}"
        kid = f"{row['kid']:.3g} ± {row['kid_se']:.2g}"
        manifold = [row[name] for name in ("precision", "recall", "density", "coverage")]
        excesses = [excess(part)[at], row["fd"] - row["fd_floor_real"], gap, asked.at[at, "fd_infinity"]]
        rows.append([row["curve"], row["steps"], row["fd"], *excesses, kid, *manifold, share])
    header = [
        "model",
        "steps",
        distance_name(part["features"].iloc[0]),
        "above own floor",
        "above real pictures",
        "the same, to training pictures",
        "at infinite N (secondary)",
    ]
    return [*header, "KID ± SE", "precision", "recall", "density", "coverage", "memorised share"], rows


def classes(part: pd.DataFrame) -> Table:
    """Each curve at its best: its worst and best classes by the kernel distance within the class."""
    rows = []
    for _, row in at_best(part).iterrows():
        found = sorted(((value, error, name) for name, (value, error) in row["diagnostics"].get("kid_per_class", {}).items()), reverse=True)
        said = [f"{name} {value:.3g} ± {error:.2g}" for value, error, name in found]
        if len(said) >= 2 * MOST_CLASSES:
            rows.append([row["curve"], ", ".join(said[:MOST_CLASSES]), ", ".join(said[: -MOST_CLASSES - 1 : -1])])
    return ["model", "worst classes, KID ± SE", "best classes"], rows


def seeds(part: pd.DataFrame) -> Table:
    """Where several were trained or drawn: means, and the standard deviations between trainings, between drawings, and of the bootstrap.

    `part` has a `curve` whose name leaves training seeds out. Between trainings: of the means over the same drawings, less what
    drawing alone adds to them (empty where that is more).
    """
    rows = []
    for (name, steps), same in part.groupby(["curve", "steps"], sort=False):
        trained, drawn = same["training"].nunique(), same["sampling_seed"].nunique()
        if trained < 2 and drawn < 2:
            continue
        within = same.groupby("training")["fd"].var().mean() if drawn > 1 else float("nan")
        between = same.groupby("training")["fd"].mean().var() if trained > 1 else float("nan")
        between -= within / drawn if drawn > 1 else 0
        bootstrap = (same["fd_sd"] ** 2).mean() ** 0.5
        deviations = [between**0.5 if between >= 0 else None, within**0.5, bootstrap]
        rows.append([name, steps, trained, drawn, same["fd"].mean(), *deviations])
    header = ["model", "steps", "trainings", "drawings", "mean fd", "SD between trainings", "SD between drawings", "bootstrap SD"]
    return header, rows


def ties(part: pd.DataFrame, found: dict[str, dict[str, Any]], folder: Path) -> Table:
    """Every pair of curves at its best: the second's distance less the first's, its error, and whether that is a tie."""
    best = at_best(part).reset_index(drop=True).sort_values("fd").head(MOST_CURVES)
    rows = []
    for (_, a), (_, b) in itertools.combinations(best.iterrows(), 2):
        apart = difference((folder, found[a["run_id"]]), (folder, found[b["run_id"]]))
        error = f"{apart.error:.3g}{'' if apart.paired else ' (unpaired)'}"
        rows.append([f"{a['curve']}, {a['steps']:.0f} steps", f"{b['curve']}, {b['steps']:.0f} steps", apart.value, error, apart.verdict])
    return ["first", "second", "second - first", "± SD", "the second is"], rows
