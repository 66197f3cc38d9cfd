"""Do the distances rise as real images are degraded step by step?

    python -m benchmarks study num_samples=200 data.reference_images=200
    python -m benchmarks study data=imagefolder data.path=/images num_samples=1000

Six degradations of five levels over `num_samples` training images are compared with the `reference`
split, by FD over the features, FD over raw pixels (the strawman), KID, precision and recall. A
measure passes a degradation if it gets strictly worse at every level, the untouched level 0
included. Writes results/judge/<data>: study.csv, study.md, study.png, degradations.png.
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
from benchmarks.core.settings import check
from benchmarks.core.store import atomic_file
from benchmarks.frozen.extractors import FeatureExtractor, load_extractors
from benchmarks.images.dataset import Dataset, Split, load_dataset
from benchmarks.reports.shrink import FIGURE_BYTES, shrink
from benchmarks.results.tables import markdown
from benchmarks.studies import degradations
from benchmarks.studies.degradations import DEGRADATIONS, Degradation, degrade
from benchmarks.studies.reconstruct import write_sheet
from metrics.features import extract
from metrics.frechet import bootstrap, frechet_distance
from metrics.kid import kid
from metrics.prdc import prdc

# images to choose from for each one compared: with four of five classes missing, the rest must
# fill the places
POOL = 5
RISING = {"fd": 1, "fd_pixels": 1, "kid": 1, "precision": -1, "recall": -1}  # which way is worse


def balanced(split: Split, classes: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Images and labels 0, 1, ..., K-1, 0, 1, ...: any prefix is class-balanced."""
    each = min(-(-count // classes), np.bincount(split.labels, minlength=classes).min())
    places = [np.flatnonzero(split.labels == label)[:each] for label in range(classes)]
    index = np.stack(places, axis=1).flatten()
    return split[index], split.labels[index]


def pixels(images: Any) -> Tensor:
    """Raw pixels as features, float32 in [0, 1]."""
    return torch.from_numpy(np.ascontiguousarray(images[:])).flatten(1).float() / 255


def measures(
    net: torch.nn.Module,
    device: torch.device,
    reference: tuple[Tensor, Tensor],
    images: np.ndarray,
) -> dict[str, float]:
    """Every measure of one set of images against the reference's features and pixels."""
    real, real_pixels = reference
    features = extract(net, images, device=device)
    manifold = prdc(real, features)
    rng = torch.Generator().manual_seed(0)
    return {
        "fd": frechet_distance(real, features),
        "fd_std": bootstrap(real, features, rng=rng, repeats=10).std().item(),
        "fd_pixels": frechet_distance(real_pixels, pixels(images)),
        "kid": kid(real, features).distance,
        "precision": manifold.precision,
        "recall": manifold.recall,
    }


def measure_all(
    net: torch.nn.Module, device: torch.device, dataset: Dataset, n: int
) -> pd.DataFrame:
    """One row per degradation and level, level 0 being the images as they are.

    Raises BadInput for too few images.
    """
    pool, labels = balanced(dataset.train, len(dataset.classes), POOL * n)
    if len(pool) < n:
        raise BadInput(
            f"num_samples={n}: the study needs as many training images, class-balanced, "
            f"and there are {len(pool)}"
        )
    degradations.check_levels_differ(labels, n)
    if len(dataset.reference) < n:
        raise BadInput(
            f"num_samples={n}: precision and recall need as many reference images, "
            f"and data.reference_images={len(dataset.reference)}"
        )
    reference = (extract(net, dataset.reference, device=device), pixels(dataset.reference))
    untouched = measures(net, device, reference, pool[:n])
    rows = []
    for degradation in DEGRADATIONS:
        about = {"degradation": degradation.name, "unit": degradation.unit}
        rows.append(about | {"level": 0, "amount": 0.0} | untouched)
        for level, amount in enumerate(degradation.levels, 1):
            images = degrade(degradation, pool, labels, n, amount)
            measured = measures(net, device, reference, images)
            rows.append(about | {"level": level, "amount": amount} | measured)
        distances = [format(row["fd"], ".3g") for row in rows[-1 - len(degradation.levels) :]]
        print(f"{degradation.name}: fd", *distances, flush=True)
    return pd.DataFrame(rows)


def verdicts(table: pd.DataFrame) -> pd.DataFrame:
    """Per degradation and measure, the steps (of five) at which it gets strictly worse."""
    steps = {}
    for name, rows in table.groupby("degradation", sort=False):
        steps[name] = {
            measure: int((sign * np.diff(rows[measure]) > 0).sum())
            for measure, sign in RISING.items()
        }
    return pd.DataFrame(steps).T


def weak_steps(table: pd.DataFrame) -> list[str]:
    """Steps from one level to the next whose rise of fd is below two standard deviations of both
    levels together.
    """
    weak = []
    for name, rows in table.groupby("degradation", sort=False):
        for before, after in itertools.pairwise(rows.to_dict("records")):
            rise, error = after["fd"] - before["fd"], math.hypot(after["fd_std"], before["fd_std"])
            if rise < 2 * error:
                step = f"{before['amount']:g} to {after['amount']:g}"
                weak.append(f"{name} {step} ({rise / error:.1f})")
    return weak


def summary(
    table: pd.DataFrame, extractor: FeatureExtractor, dataset: Dataset, n: int
) -> list[str]:
    """study.md: the verdicts, where each measure fails, and every number."""
    name, size = distance_name(extractor.name), dataset.image_size
    reference = len(dataset.reference)
    labels = {
        "fd": name,
        "fd_pixels": "FD[pixels]",
        "kid": f"KID[{extractor.name}]",
        "precision": "precision",
        "recall": "recall",
    }
    steps = verdicts(table)
    rows = [[row, *values] for row, values in zip(steps.index, steps.values.tolist(), strict=True)]
    columns = ["degradation", "amount", "unit", *RISING, "fd_std"]
    return [
        f"# Is {name} worth listening to? {dataset.name}, {size} px",
        "",
        f"{n} training images, degraded, against {reference} reference images; "
        f"weights {extractor.weights[:12]}.",
        "",
        f"Made by `python -m benchmarks study data=... data.image_size={size} num_samples={n} "
        f"data.reference_images={reference}`.",
        "",
        "Steps, of five, at which a measure gets strictly worse:",
        "",
        *markdown(["degradation", *labels.values()], rows),
        "",
        *_failures(table, steps, labels),
        "",
        "![measures](study.png)",
        "",
        "![degraded images](degradations.png)",
        "",
        "## Every number",
        "",
        *markdown(columns, table[columns].values.tolist()),
    ]


def _failures(table: pd.DataFrame, steps: pd.DataFrame, labels: dict[str, str]) -> list[str]:
    """Where each measure fails, in words."""
    name, lines = labels["fd"], ["## Where it fails", ""]
    for measure, label in labels.items():
        failed = [
            f"{degradation} ({row[measure]} of 5)"
            for degradation, row in steps.iterrows()
            if row[measure] < 5
        ]
        where = ", ".join(failed) or "worse at every step of every degradation"
        lines.append(f"- {label}: {where}.")
    weak = ", ".join(weak_steps(table)) or "none"
    lines.append(f"- Steps that {name} sees by less than two joint bootstrap SD: {weak}.")
    last = table[table["level"] == table["level"].max()]
    last = last.set_index("degradation")["fd"].sort_values()
    weights = ", ".join(f"{degradation} {value:.3g}" for degradation, value in last.items())
    lines.append(f"- How {name} weighs the worst levels: {weights}.")
    lines.append(
        "- A recall of 0 under mode collapse says only that each image has k copies of itself: "
        "its neighbourhood is a point."
    )
    return lines


def plot(table: pd.DataFrame, extractor: FeatureExtractor, path: Path) -> None:
    """A column per degradation; FD over features, FD over pixels, KID, precision and recall below
    each other.
    """
    rows = [
        ("fd", distance_name(extractor.name)),
        ("fd_pixels", "FD[pixels]"),
        ("kid", "KID"),
        ("precision", "precision, recall"),
    ]
    shape = (len(rows), len(DEGRADATIONS))
    figure, axes = plt.subplots(*shape, figsize=(17, 9), sharex="col", squeeze=False)
    for i, (name, of_it) in enumerate(table.groupby("degradation", sort=False)):
        column = axes[:, i]
        for axis, (measure, label) in zip(column, rows, strict=True):
            errors = of_it["fd_std"] if measure == "fd" else None
            axis.errorbar(of_it["level"], of_it[measure], yerr=errors, marker="o", capsize=3)
            if measure == "precision":
                axis.errorbar(of_it["level"], of_it["recall"], marker="s", ls="--")
                axis.legend(["precision", "recall"], fontsize=7)
            axis.set_ylabel(label if i == 0 else "")
        amounts = ", ".join(f"{amount:g}" for amount in of_it["amount"][1:])
        column[0].set_title(name)
        column[-1].set_xticks(of_it["level"])
        column[-1].set_xlabel(f"level: {of_it['unit'].iloc[0]}\n{amounts}", fontsize=8)
    figure.tight_layout()
    with atomic_file(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)
    plt.close(figure)


def show(of_sheet: list[Degradation], dataset: Dataset, n: int, path: Path) -> None:
    """A sheet of images. For each degradation, two images untouched and at its five levels; of
    those that choose images, the first twelve at level 5.
    """
    pool, labels = balanced(dataset.train, len(dataset.classes), POOL * n)
    rows = []
    for degradation in of_sheet:
        levels = (0, *degradation.levels)
        if degradation.chooses:
            row = degrade(degradation, pool, labels, n, levels[-1])[: 2 * len(levels)]
        else:
            at_level = [degrade(degradation, pool, labels, 2, level) for level in levels]
            row = np.concatenate([np.stack([pair[i] for pair in at_level]) for i in range(2)])
        rows.append(torch.from_numpy(np.ascontiguousarray(row)))
    write_sheet(rows, path)


def study(cfg: DictConfig) -> None:
    """The study of every feature extractor that is asked for."""
    check(cfg)
    device, n = pick_device(cfg.device), int(cfg.num_samples)
    extractors = load_extractors(cfg.features)
    dataset = load_dataset(cfg.data, num_samples=cfg.num_samples, cache=cfg.cache_dir)
    for extractor in extractors:
        table = measure_all(extractor.net.to(device), device, dataset, n)
        name = f"{dataset.name}-{dataset.image_size}-{extractor.name}"
        folder = Path(cfg.results_dir) / "judge" / name
        with atomic_file(folder / "study.csv") as path:
            table.to_csv(path, index=False)
        lines = summary(table, extractor, dataset, n)
        with atomic_file(folder / "study.md") as path:
            path.write_text("\n".join(lines) + "\n")
        plot(table, extractor, folder / "study.png")
        show(DEGRADATIONS, dataset, n, folder / "degradations.png")
        for path in (folder / "study.png", folder / "degradations.png"):
            shrink(path, path, FIGURE_BYTES)  # small enough to be committed
        print("\n".join(lines[:14]))  # up to the table of verdicts
        print(folder / "study.md")


def main(argv: Sequence[str]) -> None:
    run_hydra("study", __doc__, study, argv)
