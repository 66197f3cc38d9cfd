"""Score pictures from anywhere: `make score IMAGES=<folder|npz|parquet> REFERENCE=<the same, or a
data config>`.

    python -m benchmarks.commands.score_images IMAGES REFERENCE [Hydra overrides: features=..., data.path=..., ...]

REFERENCE is a path, or the name of a file in conf/data (its `reference` split, with training
pictures and floors of as many pictures as are scored, or of `num_samples=` where the data holds out
fewer). Prints a table and, as the last line of each feature network, one JSON object with the
column names of results.csv.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra.errors import HydraException
from omegaconf import DictConfig

from benchmarks.analysis.curves import FEW, distance_name
from benchmarks.core import cli
from benchmarks.core.environment import pick_device
from benchmarks.core.errors import BadInput
from benchmarks.core.session import session
from benchmarks.core.settings import check, compose, config_names
from benchmarks.core.store import digest, write_json
from benchmarks.frozen.extractors import load_extractors, probe_split
from benchmarks.images import import_export
from benchmarks.images.dataset import load_dataset
from benchmarks.results import records
from benchmarks.results.columns import NAMES
from benchmarks.results.tables import markdown
from benchmarks.stages.score import Evaluator, analytic_floor, balanced_alike, prepare_evaluator
from metrics.features import extract
from metrics.prdc import NEIGHBOURS

FEWEST = NEIGHBOURS + 3  # below this nothing but the distance itself could be said
LONG = ("kid_per_class", "fd_per_class", "bootstrap")  # diagnostics that are no single numbers
SHOWN = [
    "fd",
    "fd_std",
    "fd_floor_real",
    "fd_floor_analytic",
    "kid",
    "kid_stderr",
    "precision",
    "recall",
    "density",
    "coverage",
]
SHOWN += ["label_accuracy", "label_accuracy_real", "memorised_fraction"]


def pictures(path: Path, what: str) -> tuple[np.ndarray, torch.Tensor | None]:
    """Pictures and labels of a file or folder, shuffled always alike: files come sorted by class,
    and some measures look at the first few.

    Raises BadInput for fewer than can be scored.
    """
    images, labels = import_export.read(path, what)
    if len(images) < FEWEST:
        raise BadInput(
            f"{what}={path}: {len(images)} picture(s); at least {FEWEST} are needed, and thousands to say much"
        )
    order = np.random.default_rng(0).permutation(len(images))
    return images[order], None if labels is None else torch.from_numpy(
        labels[order].astype(np.int64)
    )


def judges(
    cfg: DictConfig, reference: str, images: np.ndarray, drawn_for: torch.Tensor | None, path: Path
) -> list[Evaluator]:
    """One judge for each feature network, of a path's pictures or of a data config's splits. Raises
    BadInput where sizes differ.
    """
    device = pick_device(cfg.device)
    if not Path(reference).exists():
        return _of_dataset(cfg, images, drawn_for, path, device)
    real, labels = pictures(Path(reference), "REFERENCE")
    if real.shape[1:] != images.shape[1:]:
        sizes = " and ".join(f"{x.shape[3]}x{x.shape[2]}" for x in (images, real))
        raise BadInput(
            f"IMAGES={path} and REFERENCE={reference} are {sizes}; resize one, else the resizing is what is measured"
        )
    found, balanced = [], labels if balanced_alike(labels, drawn_for) else None
    for features in load_extractors(cfg.features):
        known = extract(features.net, real, device=device)
        floor = {"fd_floor_analytic": analytic_floor(known, len(images), balanced)}
        found.append(Evaluator(features, device, known, labels, floor))
    return found


def _of_dataset(
    cfg: DictConfig,
    images: np.ndarray,
    drawn_for: torch.Tensor | None,
    path: Path,
    device: torch.device,
) -> list[Evaluator]:
    if images.shape[2:] != (cfg.data.image_size,) * 2:
        raise BadInput(
            f"IMAGES={path} are {images.shape[3]}x{images.shape[2]}, data.image_size={cfg.data.image_size}: give the same"
        )
    count = min(cfg.num_samples, len(images))
    dataset = load_dataset(cfg.data, num_samples=count, cache=cfg.cache_dir)
    if count < len(images):
        print(
            f"Floors are of {count} real pictures, the scores of {len(images)}: at that number the floors would lie lower."
        )
    if drawn_for is None or not balanced_alike(
        torch.from_numpy(dataset.reference.labels.copy()), drawn_for
    ):
        print(
            "Floors are of class-balanced pictures, which these are not known to be: at their own balance the floors may lie higher."
        )
    if drawn_for is not None and not 0 <= int(drawn_for.min()) <= int(drawn_for.max()) < len(
        dataset.classes
    ):
        raise BadInput(
            f"IMAGES={path}: labels {drawn_for.min()} to {drawn_for.max()}, but the data has classes 0 to {len(dataset.classes) - 1}"
        )
    if dataset.aside:
        print(
            f"WARNING: {', '.join(dataset.aside)}: set aside from the training folder; a model trained on all of it has seen them."
        )
    found = []
    for features in load_extractors(cfg.features):
        split = probe_split(cfg.data, features, dataset.classes)
        found.append(
            prepare_evaluator(
                features,
                dataset,
                dict,
                key="as they are",
                cache=cfg.cache_dir,
                device=device,
                split=split,
            )
        )
    return found


def row(judge: Evaluator, images: np.ndarray, labels: torch.Tensor | None) -> dict[str, Any]:
    """The quality columns of results.csv for these pictures, `diagnostics` beside them."""
    scores = judge.score(images, labels)
    known = {
        "num_samples": len(images),
        "reference_images": len(judge.reference),
        "features": judge.extractor.name,
    }
    found = records.clean(
        known | judge.row_constants | scores.row | {"image_size": images.shape[-1]}
    )
    ordered = {name: found[name] for name in NAMES if name in found}
    return ordered | records.clean(
        scores.selection | {k: v for k, v in scores.diagnostics.items() if k not in LONG}
    )


def report(cfg: DictConfig, path: Path, reference: str) -> None:
    """Score and print; also written to results/score/."""
    images, labels = pictures(path, "IMAGES")
    cfg.num_samples = len(images) if cfg.num_samples is None else cfg.num_samples  # of the floors
    check(cfg)
    for judge in judges(cfg, reference, images, labels, path):
        found, dim = row(judge, images, labels), judge.reference.shape[1]
        name, few = (
            distance_name(judge.extractor.name),
            min(len(images), len(judge.reference)) < 2 * dim,
        )
        shown = [column for column in SHOWN if found.get(column) is not None]
        print(
            "\n".join(
                markdown(
                    [
                        "images",
                        *(
                            name + f" ({FEW})" * few if c == "fd" else c.replace("_", " ")
                            for c in shown
                        ),
                    ],
                    [[path.name, *(found[c] for c in shown)]],
                )
            )
        )
        if name != "FID":
            print(
                f"{name} compares with other {name} values on the same pictures only, never with a published FID."
            )
        if found.get("memorised_flagged"):
            print(
                "WARNING: more samples lie close to training pictures than copying nothing explains."
            )
        line = found | {
            "images": path.name,
            "reference": Path(reference).name,
            "features_sha256": judge.extractor.weights,
        }
        write_json(
            Path(cfg.results_dir)
            / "score"
            / f"{path.stem}-{digest(str(path), reference, found['features'])[:8]}.json",
            line,
        )
        print(json.dumps(line), flush=True)


def main(argv: Sequence[str]) -> None:
    parser = cli.parser("score", __doc__)
    parser.add_argument("images", type=Path)
    parser.add_argument("reference")
    parser.add_argument("overrides", nargs="*")
    args = parser.parse_args(argv)
    known = config_names("data")
    is_path = Path(args.reference).exists()
    if not is_path and args.reference not in known:
        sys.exit(
            f"latentbench: REFERENCE={args.reference} is neither a file, a folder nor one of {', '.join(known)}"
        )
    wanted = [] if is_path else [f"data={args.reference}"]
    try:
        cfg = compose(*wanted, "num_samples=null", *args.overrides)
    except HydraException as error:
        sys.exit(f"latentbench: an override does not fit: {' '.join(str(error).split())[:200]}")
    session.guard(report, cfg, args.images, args.reference)
