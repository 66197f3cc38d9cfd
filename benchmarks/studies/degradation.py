"""Is the judge worth listening to? `make judge-study`: real pictures spoiled step by step, and what
each measure says of them.

    python -m benchmarks.studies.degradation [data=...] [features=...] [num_samples=1500]

Six ladders of five levels (benchmarks/pictures/ladders.py) over `num_samples` training pictures are
compared with the `reference` split, by FD over the features, FD over raw pixels (the strawman),
KID, precision and recall. A measure passes a ladder if it gets strictly worse at every level, the
unspoiled level 0 included. Writes results/judge/<data>: study.csv, study.md, study.png,
degradations.png.
"""

import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from omegaconf import DictConfig
from torch import Tensor

from benchmarks.analysis.curves import distance_name
from benchmarks.core.cli import run_hydra
from benchmarks.core.environment import pick_device
from benchmarks.core.errors import BadInput
from benchmarks.core.settings import check as check_settings
from benchmarks.core.store import atomic_file
from benchmarks.frozen.extractors import FeatureExtractor, load_extractors
from benchmarks.images.dataset import Dataset, Split, load_dataset
from benchmarks.reports.shrink import FIGURE_BYTES, shrink
from benchmarks.results.tables import markdown
from benchmarks.studies.degradations import DEGRADATIONS, Degradation, check, degrade
from benchmarks.studies.reconstruct import picture
from metrics.features import extract
from metrics.frechet import bootstrap, frechet_distance
from metrics.kid import kid
from metrics.prdc import prdc

POOL = 5  # pictures to choose from for each one compared: with four of five classes missing, the rest must fill the places
RISING = {"fd": 1, "fd_pixels": 1, "kid": 1, "precision": -1, "recall": -1}  # which way is worse


def balanced(split: Split, classes: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Pictures and labels 0, 1, ..., K-1, 0, 1, ...: any prefix is class-balanced."""
    each = min(-(-count // classes), np.bincount(split.labels, minlength=classes).min())
    places = np.stack(
        [np.flatnonzero(split.labels == label)[:each] for label in range(classes)], axis=1
    ).flatten()
    return split[places], split.labels[places]


def pixels(pictures: Any) -> Tensor:
    """Raw pixels as features, float32 in [0, 1]."""
    return torch.from_numpy(np.ascontiguousarray(pictures[:])).flatten(1).float() / 255


def measures(
    net: torch.nn.Module,
    device: torch.device,
    reference: tuple[Tensor, Tensor],
    pictures: np.ndarray,
) -> dict[str, float]:
    """Every measure of one set of pictures against the reference's features and pixels."""
    features = extract(net, pictures, device=device)
    near = prdc(reference[0], features)
    return {
        "fd": frechet_distance(reference[0], features),
        "fd_std": bootstrap(
            reference[0], features, rng=torch.Generator().manual_seed(0), repeats=10
        )
        .std()
        .item(),
        "fd_pixels": frechet_distance(reference[1], pixels(pictures)),
        "kid": kid(reference[0], features).distance,
        "precision": near.precision,
        "recall": near.recall,
    }


def climb(net: torch.nn.Module, device: torch.device, dataset: Dataset, n: int) -> pd.DataFrame:
    """One row per ladder and level, level 0 being the unspoiled pictures."""
    pool, labels = balanced(dataset.train, len(dataset.classes), POOL * n)
    if len(pool) < n:
        raise BadInput(
            f"num_samples={n}: the study needs as many training pictures, class-balanced, and there are {len(pool)}"
        )
    check(labels, n)
    if len(dataset.reference) < n:
        raise BadInput(
            f"num_samples={n}: precision and recall need as many reference pictures, and data.reference_images={len(dataset.reference)}"
        )
    reference = (extract(net, dataset.reference, device=device), pixels(dataset.reference))
    start, rows = measures(net, device, reference, pool[:n]), []
    for ladder in DEGRADATIONS:
        rows.append(
            {"degradation": ladder.name, "unit": ladder.unit, "level": 0, "amount": 0.0, **start}
        )
        for level, amount in enumerate(ladder.levels, 1):
            read = measures(net, device, reference, degrade(ladder, pool, labels, n, amount))
            rows.append(
                {
                    "degradation": ladder.name,
                    "unit": ladder.unit,
                    "level": level,
                    "amount": amount,
                    **read,
                }
            )
        print(f"{ladder.name}: fd", *(format(row["fd"], ".3g") for row in rows[-6:]), flush=True)
    return pd.DataFrame(rows)


def verdicts(table: pd.DataFrame) -> pd.DataFrame:
    """Per ladder and measure, the steps (of five) at which it gets strictly worse."""
    steps = {
        name: {
            measure: int((sign * np.diff(part[measure]) > 0).sum())
            for measure, sign in RISING.items()
        }
        for name, part in table.groupby("degradation", sort=False)
    }
    return pd.DataFrame(steps).T


def weak_steps(table: pd.DataFrame) -> list[str]:
    """Steps of the ladders, from one level to the next, whose rise of fd is below two standard
    deviations of both levels together.
    """
    found = []
    for ladder, part in table.groupby("degradation", sort=False):
        for before, after in itertools.pairwise(part.to_dict("records")):
            rise, error = after["fd"] - before["fd"], math.hypot(after["fd_std"], before["fd_std"])
            if rise < 2 * error:
                found.append(
                    f"{ladder} {before['amount']:g} to {after['amount']:g} ({rise / error:.1f})"
                )
    return found


def summary(table: pd.DataFrame, features: FeatureExtractor, dataset: Dataset, n: int) -> list[str]:
    """study.md: the verdicts, where each measure fails, and every number."""
    steps, name = verdicts(table), distance_name(features.name)
    labels = {
        "fd": name,
        "fd_pixels": "FD[pixels]",
        "kid": f"KID[{features.name}]",
        "precision": "precision",
        "recall": "recall",
    }
    lines = [f"# Is {name} worth listening to? {dataset.name}, {dataset.image_size} px", ""]
    lines += [
        f"{n} training pictures, spoiled, against {len(dataset.reference)} reference pictures; weights {features.weights[:12]}.",
        "",
    ]
    lines += [
        f"Made by `make judge-study ARGS='data=... data.image_size={dataset.image_size} num_samples={n} data.reference_images={len(dataset.reference)}'`.",
        "",
    ]
    lines += ["Steps, of five, at which a measure gets strictly worse:", ""]
    lines += markdown(
        ["degradation", *labels.values()],
        [[ladder, *row] for ladder, row in zip(steps.index, steps.values.tolist(), strict=True)],
    )
    lines += ["", "## Where it fails", ""]
    for measure, label in labels.items():
        failed = [
            f"{ladder} ({row[measure]} of 5)"
            for ladder, row in steps.iterrows()
            if row[measure] < 5
        ]
        lines.append(
            f"- {label}: {', '.join(failed) if failed else 'worse at every step of every ladder'}."
        )
    lines.append(
        f"- Steps that {name} sees by less than two joint bootstrap SD: {', '.join(weak_steps(table)) or 'none'}."
    )
    last = (
        table[table["level"] == table["level"].max()].set_index("degradation")["fd"].sort_values()
    )
    lines.append(
        f"- How {name} weighs the worst levels: {', '.join(f'{ladder} {value:.3g}' for ladder, value in last.items())}."
    )
    lines.append(
        "- A recall of 0 under mode collapse says only that each picture has k copies of itself: its neighbourhood is a point."
    )
    lines += [
        "",
        "![measures](study.png)",
        "",
        "![pictures](degradations.png)",
        "",
        "## Every number",
        "",
    ]
    columns = ["degradation", "amount", "unit", *RISING, "fd_std"]
    return [*lines, *markdown(columns, table[columns].values.tolist())]


def plot(table: pd.DataFrame, features: FeatureExtractor, path: Path) -> None:
    """A column per ladder; FD over features, FD over pixels, KID, precision and recall below each
    other.
    """
    rows = [
        ("fd", distance_name(features.name)),
        ("fd_pixels", "FD[pixels]"),
        ("kid", "KID"),
        ("precision", "precision, recall"),
    ]
    figure, axes = plt.subplots(
        len(rows), len(DEGRADATIONS), figsize=(17, 9), sharex="col", squeeze=False
    )
    for i, (name, part) in enumerate(table.groupby("degradation", sort=False)):
        column = axes[:, i]
        for ax, (measure, label) in zip(column, rows, strict=True):
            sd = part["fd_std"] if measure == "fd" else None
            ax.errorbar(part["level"], part[measure], yerr=sd, marker="o", capsize=3)
            if measure == "precision":
                ax.errorbar(part["level"], part["recall"], marker="s", ls="--")
                ax.legend(["precision", "recall"], fontsize=7)
            ax.set_ylabel(label if i == 0 else "")
        column[0].set_title(name)
        column[-1].set_xticks(part["level"])
        column[-1].set_xlabel(
            f"level: {part['unit'].iloc[0]}\n" + ", ".join(f"{a:g}" for a in part["amount"][1:]),
            fontsize=8,
        )
    figure.tight_layout()
    with atomic_file(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)
    plt.close(figure)


def show(ladders: list[Degradation], dataset: Dataset, n: int, path: Path) -> None:
    """For each ladder, two pictures unspoiled and at its five levels; of those that choose
    pictures, the first twelve at level 5.
    """
    pool, labels = balanced(dataset.train, len(dataset.classes), POOL * n)
    rows = []
    for ladder in ladders:
        if ladder.chooses:
            rows.append(
                degrade(ladder, pool, labels, n, ladder.levels[-1])[: 2 * (len(ladder.levels) + 1)]
            )
        else:
            both = [degrade(ladder, pool, labels, 2, level) for level in (0, *ladder.levels)]
            rows.append(
                np.concatenate([np.stack([pictures[i] for pictures in both]) for i in range(2)])
            )
    picture([torch.from_numpy(np.ascontiguousarray(row)) for row in rows], path)


def study(cfg: DictConfig) -> None:
    check_settings(cfg)
    device, n = pick_device(cfg.device), int(cfg.num_samples)
    judges = load_extractors(cfg.features)
    dataset = load_dataset(cfg.data, num_samples=cfg.num_samples, cache=cfg.cache_dir)
    for features in judges:
        table = climb(features.net.to(device), device, dataset, n)
        folder = (
            Path(cfg.results_dir) / "judge" / f"{dataset.name}-{dataset.image_size}-{features.name}"
        )
        with atomic_file(folder / "study.csv") as path:
            table.to_csv(path, index=False)
        lines = summary(table, features, dataset, n)
        with atomic_file(folder / "study.md") as path:
            path.write_text("\n".join(lines) + "\n")
        plot(table, features, folder / "study.png")
        show(DEGRADATIONS, dataset, n, folder / "degradations.png")
        for path in (folder / "study.png", folder / "degradations.png"):
            shrink(path, path, FIGURE_BYTES)  # `make judge-study` writes into results/reference
        print("\n".join(lines[:14]))  # up to the table of verdicts
        print(folder / "study.md")


def main(argv: Sequence[str]) -> None:
    run_hydra("study", __doc__, study, argv)
