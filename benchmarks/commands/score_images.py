"""Score images made elsewhere: a folder, an .npz with arr_0 (ADM's layout) or a .parquet file.

    python -m benchmarks score samples.npz /images/val
    python -m benchmarks score samples/ imagefolder data.path=/images data.image_size=64

The second argument is what they are compared with: files likewise, or the name of a file in
conf/data. From such a data set come also training images and floors, of as many images as are
scored, or of `num_samples=` where the data holds out fewer. Hydra overrides may follow: features=,
data.path=, ... With image_size=64 all images, of whatever sizes, are cropped and resized to 64x64.

Prints a table and, as the last line of each feature extractor, one JSON object with the column
names of results.csv.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig

from benchmarks.analysis.curves import FEW, distance_name
from benchmarks.core import cli
from benchmarks.core.environment import pick_device, refuse_foreign_settings
from benchmarks.core.errors import BadInput
from benchmarks.core.files import check_writable
from benchmarks.core.session import session
from benchmarks.core.settings import check, compose, config_names
from benchmarks.core.store import digest, write_json
from benchmarks.core.text import file_name
from benchmarks.frozen.extractors import load_extractors, probe_split
from benchmarks.images import import_export
from benchmarks.images.dataset import load_dataset
from benchmarks.images.stored import Dataset
from benchmarks.results import records
from benchmarks.results.columns import NAMES
from benchmarks.results.tables import markdown
from benchmarks.stages.floors import prepare_evaluator
from benchmarks.stages.score import Evaluator, analytic_floor, balanced_alike
from metrics.features import extract, frechet_features
from metrics.prdc import NEIGHBOURS

SMALLEST, LARGEST = 8, 4096  # pixels a side that images may be brought to
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
    "label_accuracy",
    "label_accuracy_real",
    "memorised_fraction",
]


def read_shuffled(
    path: Path, what: str, size: int | None = None
) -> tuple[np.ndarray, torch.Tensor | None]:
    """Images uint8 (N, 3, H, W) and labels (N,) of a file or folder, always in the same new order.

    Files come sorted by class, and some measures look at the first few only. `what` names the
    argument in errors. All images must have one size where none is given that they are brought to.
    Raises BadInput for fewer than can be scored.
    """
    images, labels = import_export.read(path, what, size)
    if len(images) < FEWEST:
        raise BadInput(
            f"{what}={path}: {len(images)} image(s); at least {FEWEST} are needed, "
            "and thousands to say much"
        )
    order = np.random.default_rng(0).permutation(len(images))
    if labels is None:
        return images[order], None
    return images[order], torch.from_numpy(labels[order].astype(np.int64))


def evaluators_of_files(
    cfg: DictConfig,
    reference: Path,
    size: int | None,
    images: np.ndarray,
    labels: torch.Tensor | None,
    path: Path,
) -> list[Evaluator]:
    """One evaluator for each feature extractor, against the images of a file or folder.

    `images`, of `path`, and their `labels` are those to be scored. Raises BadInput where sizes
    differ and none is given.
    """
    device = pick_device(cfg.device)
    real, real_labels = read_shuffled(reference, "REFERENCE", size)
    if real.shape[1:] != images.shape[1:]:
        sizes = " and ".join(f"{x.shape[3]}x{x.shape[2]}" for x in (images, real))
        raise BadInput(
            f"IMAGES={path} and REFERENCE={reference} are {sizes}; say image_size=<pixels>, to "
            "which both are then brought"
        )
    # the floor of class-balanced images is lower, and right only where both sides are balanced
    balanced = real_labels if balanced_alike(real_labels, labels) else None
    evaluators = []
    for extractor in load_extractors(cfg.features):
        features = extract(extractor.net, real, device=device)
        projected = frechet_features(extractor.net, features)  # of which the distance is
        floor = analytic_floor(projected, len(images), balanced)
        evaluators.append(
            Evaluator(
                extractor=extractor,
                device=device,
                reference=features,
                reference_labels=real_labels,
                row_constants={"fd_floor_analytic": floor},
            )
        )
    return evaluators


def evaluators_of_data(
    cfg: DictConfig, images: np.ndarray, labels: torch.Tensor | None, path: Path
) -> list[Evaluator]:
    """One evaluator for each feature extractor, against a data set's splits.

    Raises BadInput where sizes or labels do not fit.
    """
    device, size = pick_device(cfg.device), int(cfg.data.image_size)
    if images.shape[2:] != (size, size):
        raise BadInput(
            f"IMAGES={path} are {images.shape[3]}x{images.shape[2]}, data.image_size={size}: "
            f"give the same, or image_size={size} to resize them"
        )
    held_out = min(cfg.num_samples, len(images))
    dataset = load_dataset(cfg.data, num_samples=held_out, cache=cfg.cache_dir)
    _check_labels(labels, len(dataset.classes), path)
    _warn_of_floors(dataset, held_out, len(images), labels)
    evaluators = []
    for extractor in load_extractors(cfg.features):
        evaluators.append(
            prepare_evaluator(
                extractor,
                dataset,
                None,  # these images came through no autoencoder of ours
                key="as they are",
                autoencoder_key="none",
                cache=cfg.cache_dir,
                device=device,
                split=probe_split(cfg.data, extractor, dataset.classes),
            )
        )
    return evaluators


def _check_labels(labels: torch.Tensor | None, classes: int, path: Path) -> None:
    if labels is not None and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        raise BadInput(
            f"IMAGES={path}: labels {labels.min()} to {labels.max()}, "
            f"but the data has classes 0 to {classes - 1}"
        )


def _warn_of_floors(
    dataset: Dataset, held_out: int, scored: int, labels: torch.Tensor | None
) -> None:
    """Print how the floors differ from what the scored images deserve."""
    if held_out < scored:
        print(
            f"Floors are of {held_out} real images, the scores of {scored}: "
            "at that number the floors would lie lower."
        )
    real_labels = torch.from_numpy(dataset.reference.labels.copy())
    if not balanced_alike(real_labels, labels):
        print(
            "Floors are of class-balanced images, which these are not known to be: "
            "at their own balance the floors may lie higher."
        )
    if dataset.aside:
        print(
            f"WARNING: {', '.join(dataset.aside)}: set aside from the training folder; "
            "a model trained on all of it has seen them."
        )


def row(evaluator: Evaluator, images: np.ndarray, labels: torch.Tensor | None) -> dict[str, Any]:
    """The quality columns of results.csv for these images, `diagnostics` beside them."""
    scores = evaluator.score(images, labels)
    columns = {
        "num_samples": len(images),
        "reference_images": len(evaluator.reference),
        "features": evaluator.extractor.name,
        "image_size": images.shape[-1],
    }
    columns = records.clean(columns | evaluator.row_constants | scores.row)
    ordered = {name: columns[name] for name in NAMES if name in columns}
    short = {name: value for name, value in scores.diagnostics.items() if name not in LONG}
    return ordered | records.clean(scores.selection | short)


def score(cfg: DictConfig, path: Path, reference: str, size: int | None) -> None:
    """Score and print; also written to results/score/."""
    wanted = cfg.num_samples  # of the floors; null: as many as there are images, which need 2 too
    cfg.num_samples = 2 if wanted is None else wanted
    check(cfg)
    if wanted is not None and Path(reference).exists():
        raise BadInput(
            f"num_samples={wanted}: all images of REFERENCE={reference} are used; it is for the "
            "floors of a data set, named by a file of conf/data"
        )
    check_writable(Path(cfg.results_dir) / "score", "results_dir")
    images, labels = read_shuffled(path, "IMAGES", size)
    cfg.num_samples = len(images) if wanted is None else wanted
    if Path(reference).exists():
        evaluators = evaluators_of_files(cfg, Path(reference), size, images, labels, path)
    else:
        evaluators = evaluators_of_data(cfg, images, labels, path)
    for evaluator in evaluators:
        columns = row(evaluator, images, labels)
        _print_table(path.name, columns, evaluator)
        line = columns | {
            "images": path.name,
            "reference": Path(reference).name,
            "resized": size is not None,
            "features_sha256": evaluator.extractor.weights,
        }
        name = digest(str(path), reference, columns["features"], size)[:8]
        file = f"{file_name(path.stem)}-{name}.json"
        write_json(Path(cfg.results_dir) / "score" / file, line)
        print(json.dumps(line), flush=True)


def _print_table(name: str, columns: dict[str, Any], evaluator: Evaluator) -> None:
    """The numbers as a table, and what must be known before quoting them."""
    distance = distance_name(evaluator.extractor.name)
    smaller = min(columns["num_samples"], columns["reference_images"])
    few = smaller < 2 * evaluator.extractor.fingerprint["frechet_dim"]
    shown = [column for column in SHOWN if columns.get(column) is not None]
    headings = {column: column.replace("_", " ") for column in shown}
    headings["fd"] = f"{distance} ({FEW})" if few else distance
    header = ["images", *(headings[column] for column in shown)]
    print("\n".join(markdown(header, [[name, *(columns[column] for column in shown)]])))
    if distance != "FID":
        print(
            f"{distance} compares with other {distance} values on the same images only, "
            "never with a published FID."
        )
    if columns.get("memorised_flagged"):
        print("WARNING: more samples lie close to training images than copying nothing explains.")


def main(argv: Sequence[str]) -> None:
    arguments = cli.parser("score", __doc__)
    arguments.add_argument("images", type=cli.path)
    arguments.add_argument("reference", type=cli.path)
    arguments.add_argument("overrides", nargs="*")
    args = arguments.parse_args(argv)
    refuse_foreign_settings()
    known = config_names("data")
    reference = str(args.reference)
    is_path = args.reference.exists()
    if not is_path and reference not in known:
        sys.exit(
            f"latentbench: REFERENCE={reference} is neither a file, a folder nor one of "
            f"{', '.join(known)}"
        )
    data = [] if is_path else [f"data={reference}"]
    overrides, size = _image_size(args.overrides)
    if size is not None and not is_path:
        data.append(f"data.image_size={size}")
    cfg = compose(*data, "num_samples=null", *map(cli.quoted_path, overrides))
    session.guard(score, cfg, args.images, reference, size)


def _image_size(overrides: Sequence[str]) -> tuple[list[str], int | None]:
    """The overrides without `image_size=`, which is no setting of a bench, and its value."""
    sizes = [word for word in overrides if word.startswith("image_size=")]
    if not sizes:
        return list(overrides), None
    text = sizes[-1].partition("=")[2]
    if not (text.isdecimal() and SMALLEST <= int(text) <= LARGEST):
        wanted = f"a whole number of pixels from {SMALLEST} to {LARGEST}"
        sys.exit(f"latentbench: image_size={text}: {wanted}")
    return [word for word in overrides if word not in sizes], int(text)
