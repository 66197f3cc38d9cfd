"""Do the distances rise as images are degraded step by step, and what do they weigh against what?

    python -m benchmarks study num_samples=200 data.reference_images=200 features=local
    python -m benchmarks study data=imagefolder data.path=/images num_samples=1000

Thirteen degradations of five levels over `num_samples` training images, once as they are and once
through the autoencoder, as samples are decoded. Both are compared with the `reference` split
(`fd`), the latter also with the reference through the autoencoder (`fd_generator`). Rules that are
fixed in the code say what passes. Writes results/judge/<data>: study.csv, study.md, study.png,
degradations.png. A study that was stopped goes on where it was, by what the cache keeps.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from omegaconf import DictConfig
from torch import Tensor

from benchmarks.core import versions
from benchmarks.core.cli import run_hydra
from benchmarks.core.environment import pick_device
from benchmarks.core.files import atomic_file, check_writable
from benchmarks.core.locks import load_or_make
from benchmarks.core.settings import check
from benchmarks.core.store import (
    digest,
    read_sealed,
    read_tensors,
    write_sealed,
    write_tensors,
)
from benchmarks.frozen.autoencoder import LatentSpace, latent_shape, load_latent_space
from benchmarks.frozen.extractors import FeatureExtractor, load_extractors
from benchmarks.images.dataset import load_dataset
from benchmarks.images.stored import Dataset
from benchmarks.reports.shrink import FIGURE_BYTES, shrink
from benchmarks.studies.degradations import (
    DEGRADATIONS,
    IMAGES,
    LABELS,
    PASSES,
    Degradation,
    amounts_of,
    labels_at,
    rows_of,
)
from benchmarks.studies.findings import (
    LEADING,
    Setting,
    page,
    plot,
    rules_as_table,
    show,
)
from benchmarks.studies.material import (
    REAL,
    REBUILT,
    Material,
    example_images,
    prepare,
    through_autoencoder,
)
from metrics.features import extract, frechet_features
from metrics.frechet import bootstrap, frechet_distance
from metrics.kid import kid
from metrics.prdc import prdc
from metrics.probe import Probe, fit_probe


@dataclass(frozen=True)
class Targets:
    """What images are compared with over one extractor: features, and the probe on them."""

    net: torch.nn.Module
    device: torch.device
    reference: Tensor
    reference_rebuilt: Tensor
    reference_labels: Tensor
    probe: Probe


def prepare_targets(
    net: torch.nn.Module, device: torch.device, material: Material, classes: int
) -> Targets:
    """The features of all that images are compared with, and a fitted probe."""
    some = material.probe_images
    return Targets(
        net=net,
        device=device,
        reference=extract(net, material.reference, device=device),
        reference_rebuilt=extract(net, material.reference_rebuilt, device=device),
        reference_labels=torch.from_numpy(material.reference.labels.copy()),
        probe=fit_probe(
            extract(net, some, device=device), torch.from_numpy(some.labels.copy()), classes
        ),
    )


def pixels(images: Any) -> Tensor:
    """Raw pixels as features, float32 in [0, 1]."""
    return torch.from_numpy(np.ascontiguousarray(images[:])).flatten(1).float() / 255


def pixel_distances(material: Material) -> pd.DataFrame:
    """FD over raw pixels of the real images at each level: one row per degradation and level."""
    reference = pixels(material.reference)
    untouched = frechet_distance(reference, pixels(material.passes[0]))
    rows = []
    for degradation in DEGRADATIONS:
        for level, amount in enumerate(amounts_of(degradation)):
            distance = untouched
            # new labels leave the pixels as they are
            if level and degradation.kind != LABELS:
                images = material.at(REAL, degradation, amount)
                distance = frechet_distance(reference, pixels(images))
            rows.append((REAL, degradation.name, level, distance))
    return pd.DataFrame(rows, columns=["images", "degradation", "level", "fd_pixels"])


def measures(targets: Targets, kind: str, features: Tensor, labels: Tensor) -> dict[str, Any]:
    """Every measure of one set of images, and under `resampled` the bootstrap of the leading
    distance of its kind.
    """
    real, rebuilt = targets.reference, targets.reference_rebuilt
    fake, strata = frechet_features(targets.net, features), (targets.reference_labels, labels)
    manifold, kernel = prdc(real, features), kid(real, features, labels=strata)
    target = real if kind == REAL else rebuilt
    row: dict[str, Any] = {
        "fd": frechet_distance(frechet_features(targets.net, real), fake),
        "kid": kernel.distance,
        "kid_error": kernel.error,
        "precision": manifold.precision,
        "recall": manifold.recall,
        "label_accuracy": targets.probe.accuracy(features, labels),
    }
    projected = frechet_features(targets.net, target)
    if kind == REBUILT:
        row["fd_generator"] = frechet_distance(projected, fake)
        kernel = kid(rebuilt, features, labels=strata)
        row |= {"kid_generator": kernel.distance, "kid_generator_error": kernel.error}
    # always the same resamples: those of two levels compare in pairs
    rng = torch.Generator().manual_seed(0)
    row["resampled"] = bootstrap(projected, fake, rng=rng, labels=strata)
    row[f"{LEADING[kind]}_std"] = row["resampled"].std().item()
    return row


@dataclass(frozen=True)
class PoolFeatures:
    """Features that there are before anything is degraded, each extracted once."""

    pools: dict[str, Tensor]  # of REAL and of REBUILT images
    passes: list[Tensor]  # as Material.passes

    @classmethod
    def of_tensors(cls, named: dict[str, Tensor]) -> "PoolFeatures":
        """From what `tensors` gives."""
        pools = {kind: named[kind] for kind in (REAL, REBUILT)}
        return cls(pools, [named[f"pass {i}"] for i in range(len(named) - len(pools))])

    def tensors(self) -> dict[str, Tensor]:
        """All of them by name, none a view of another, which no file can hold."""
        passes = {f"pass {i}": features.clone() for i, features in enumerate(self.passes)}
        return self.pools | passes

    def at(self, kind: str, degradation: Degradation, rows: np.ndarray, amount: float) -> Tensor:
        """The features of one level that only chooses images, or how often they are rebuilt."""
        if degradation.kind == PASSES:
            return self.passes[int(amount) + (kind == REBUILT)]
        return self.pools[kind][rows]


def pool_features(targets: Targets, material: Material) -> PoolFeatures:
    """The features of all images of a study that are not degraded any further."""
    pools = {
        kind: extract(targets.net, pool, device=targets.device)
        for kind, pool in material.pools.items()
    }
    passes = [features[: material.n] for features in pools.values()]
    for images in material.passes[2:]:
        passes.append(extract(targets.net, images, device=targets.device))
    return PoolFeatures(pools, passes)


def kept_features(path: Path, make: Callable[[], PoolFeatures]) -> PoolFeatures:
    """What `make` gives, once: `path` keeps it for the study that its folder is named after."""
    key = path.parent.name

    def kept() -> PoolFeatures | None:
        stored = read_tensors(path, key)
        return None if stored is None else PoolFeatures.of_tensors(stored[0])

    def made() -> PoolFeatures:
        features = make()
        write_tensors(path, key, features.tensors())
        return features

    return load_or_make(path, kept, made)


def measure_ladder(
    targets: Targets,
    material: Material,
    known: PoolFeatures,
    kind: str,
    degradation: Degradation,
    untouched: dict[str, Any],
) -> list[dict[str, Any]]:
    """One row per level of a degradation, `untouched` being what level 0 measures."""
    ladder = []
    for level, amount in enumerate(amounts_of(degradation)):
        said = labels_at(degradation, material.labels, material.n, amount)
        rows = rows_of(degradation, material.labels, material.n, amount)
        measured = untouched
        if degradation.kind == LABELS:
            # no distance sees a label: nothing else can have changed
            accuracy = targets.probe.accuracy(known.pools[kind][rows], said)
            measured = untouched | {"label_accuracy": accuracy}
        elif level and degradation.kind == IMAGES:
            images = material.at(kind, degradation, amount)
            features = extract(targets.net, images, device=targets.device)
            measured = measures(targets, kind, features, said)
        elif level:
            features = known.at(kind, degradation, rows, amount)
            measured = measures(targets, kind, features, said)
        about = {"images": kind, "degradation": degradation.name, "unit": degradation.unit}
        ladder.append(about | {"level": level, "amount": amount} | measured)
    return ladder


def kept_ladder(path: Path, measure: Callable[[], list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """What `measure` gives, once: `path` keeps it, so that a study that was stopped goes on."""
    kept = read_sealed(path)
    if kept is None:
        rows = [row | {"resampled": row["resampled"].tolist()} for row in measure()]
        kept = {"rows": rows}
        write_sealed(path, kept)
    return [
        row | {"resampled": torch.tensor(row["resampled"], dtype=torch.float64)}
        for row in kept["rows"]
    ]


def measure_all(targets: Targets, material: Material, kept: Path) -> pd.DataFrame:
    """One row per kind of images, degradation and level, level 0 being the images as they are.

    The folder `kept` keeps the features of what is not degraded, and each ladder as soon as it is
    measured.
    """
    known = kept_features(kept / "features.safetensors", partial(pool_features, targets, material))
    n = material.n
    rows = []
    for kind, pool in known.pools.items():
        untouched = measures(targets, kind, pool[:n], torch.from_numpy(material.labels[:n]))
        for degradation in DEGRADATIONS:
            measure = partial(
                measure_ladder, targets, material, known, kind, degradation, untouched
            )
            name = f"{kind}-{degradation.name}-{digest(amounts_of(degradation))}.json"
            ladder = kept_ladder(kept / name.replace(" ", "_"), measure)
            for row in ladder:
                change = row["resampled"] - untouched["resampled"]
                row[f"{LEADING[kind]}_change_std"] = change.std().item()
            distances = [format(row[LEADING[kind]], ".3g") for row in ladder]
            print(f"{kind}, {degradation.name}: {LEADING[kind]}", *distances, flush=True)
            rows += ladder
    return pd.DataFrame(rows).drop(columns="resampled")


def study(cfg: DictConfig) -> None:
    """The study of every feature extractor that is asked for."""
    check(cfg)
    check_writable(Path(cfg.results_dir) / "judge", "results_dir")
    device, n = pick_device(cfg.device), int(cfg.num_samples)
    latent_shape(cfg.autoencoder, cfg.data.image_size)  # refuses a size that it cannot encode
    extractors = load_extractors(cfg.features)
    dataset = load_dataset(cfg.data, num_samples=cfg.num_samples, cache=cfg.cache_dir)
    space = load_latent_space(cfg.autoencoder, dataset, cache=cfg.cache_dir, device=device)
    material = prepare(dataset, n, partial(through_autoencoder, space.to(device), device))
    distances = pixel_distances(material)
    for extractor in extractors:
        net = extractor.net.to(device)
        targets = prepare_targets(net, device, material, len(dataset.classes))
        made_of = (extractor.fingerprint, dataset.key, space.autoencoder_key, n)
        key = digest(versions.SCORING, *made_of, device.type, torch.__version__)
        table = measure_all(targets, material, Path(cfg.cache_dir) / "judge" / key).merge(
            distances, how="left", on=["images", "degradation", "level"]
        )
        write(table, material, about(cfg, dataset, extractor, space), Path(cfg.results_dir))


def about(
    cfg: DictConfig, dataset: Dataset, extractor: FeatureExtractor, space: LatentSpace
) -> Setting:
    """What was measured, for the page and its folder's name."""
    return Setting(
        data=dataset.name,
        image_size=dataset.image_size,
        num_samples=int(cfg.num_samples),
        reference_images=len(dataset.reference),
        features=extractor.name,
        weights=extractor.weights,
        autoencoder=space.name,
    )


def write(table: pd.DataFrame, material: Material, setting: Setting, results: Path) -> None:
    """study.csv, study.md and the two figures, and the rules on the terminal."""
    folder = results / "judge" / setting.name
    with atomic_file(folder / "study.csv") as path:
        table.to_csv(path, index=False)
    with atomic_file(folder / "study.md") as path:
        path.write_text("\n".join(page(table, setting)) + "\n", encoding="utf-8")
    plot(table, setting, folder / "study.png")
    show(example_images(material), folder / "degradations.png")
    for path in (folder / "study.png", folder / "degradations.png"):
        shrink(path, path, FIGURE_BYTES)  # small enough to be committed
    print("\n".join(rules_as_table(table)))
    print(folder / "study.md")


def main(argv: Sequence[str]) -> None:
    run_hydra("study", __doc__, study, argv)
