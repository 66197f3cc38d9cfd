"""`make weights WEIGHTS_DATA=<folder>`: train what every family shares and none trains:
autoencoder, codebook, judge.

    python -m benchmarks.commands.train_frozen FOLDER [--unseen FOLDER] [--only autoencoder codebook judge] [--scale 1.0] [--out DIR]

FOLDER is an image folder (train/<class>/*, val/<class>/*) of 64 px or larger pictures. A tenth as
many procedural pictures are mixed in, from a seed the benchmark never draws. Each stage writes one
safetensors file and its model card (.json and .md); scores are of validation pictures, also of
classes no weight has seen where --unseen names a folder of them.
"""

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from benchmarks.core import cli
from benchmarks.core.environment import device_name, git_state
from benchmarks.core.errors import BadInput, Diverged
from benchmarks.core.store import atomic_file, file_digest, load_weights, write_json
from benchmarks.frozen import train_autoencoder, train_extractor
from benchmarks.frozen.autoencoder import SHIPPED_FOLDER, load_codebook
from benchmarks.images import procedural
from benchmarks.images.dataset import Dataset, load_dataset
from metrics.features import WEIGHTS as JUDGE_WEIGHTS
from metrics.features import LocalFeatures
from models.autoencoder import Autoencoder
from models.codebook import Codebook

SIZE = 64
CODEBOOK_SIZE = 2048
PICTURES = {  # seen in training, repeats included; the CUDA figures are a guess at half an hour, not yet tried
    "cpu": {"autoencoder": 240_000, "judge": 500_000},
    "cuda": {"autoencoder": 3_000_000, "judge": 3_000_000},
}
RECIPES = {
    "autoencoder": "benchmarks/recipes/autoencoding.py, train_autoencoder: per-picture log MSE, Muon and AdamW, warm-up and cosine, bfloat16 autocast; "
    "every sixth batch at 32 px, noise on the latents of every fourth picture",
    "codebook": "benchmarks/recipes/autoencoding.py, fit_codebook: k-means (k-means++ start, dead entries re-seeded) on latent vectors of 64 "
    "and 32 px training pictures, half each",
    "judge": "benchmarks/recipes/judging.py, train_judge: cross-entropy with smoothed labels over all classes, AdamW, warm-up and cosine, "
    "bfloat16 autocast; mirrored, shifted, zoomed and mixed pictures; every third batch has been through 32 px",
}
STAGES = tuple(RECIPES)
Save = Callable[[Path], None]
LICENCE = (
    "Made from scratch; no other network's weights were used. Where the pictures are ImageNet's (Tiny-ImageNet's are), their terms "
    "allow non-commercial research and education only: treat the file accordingly. The code that made it is Apache-2.0."
)


class Config(SimpleNamespace):
    """A namespace with `.get`, as `benchmarks.data.load` reads its settings."""

    def get(self, key: str, default: Any = None) -> Any:
        return getattr(self, key, default)


class Pictures(SimpleNamespace):
    """train, labels: real and procedural, mixed; scored: name -> (pictures, labels, training split
    or None); classes: names of all.
    """


def folder_data(folder: str, cache: str, held_out: int) -> Dataset:
    cfg = Config(
        source="imagefolder",
        name="imagefolder",
        path=folder,
        image_size=SIZE,
        reference_images=held_out,
    )
    return load_dataset(cfg, num_samples=2, cache=cache)


def load_pictures(folder: str, unseen: str | None, cache: str, held_out: int = 2000) -> Pictures:
    """Everything to train on and to score with. Raises BadInput for folders that cannot be used."""
    real = folder_data(folder, cache, held_out)
    drawn, drawn_labels = procedural.generate(
        len(real.train) // 10, SIZE, seed=procedural.WEIGHTS_SEED
    )
    train = np.concatenate([real.train[:], drawn])
    labels = np.concatenate([real.train.labels, drawn_labels + len(real.classes)])
    held_drawn, held_labels = procedural.generate(
        held_out // 2, SIZE, seed=procedural.WEIGHTS_SEED, stream="reference"
    )
    scored = {
        "held-out pictures of the training classes": (
            real.reference[:],
            real.reference.labels,
            None,
        ),
        "procedural pictures": (held_drawn, held_labels + len(real.classes), None),
    }
    if unseen:
        other = folder_data(unseen, cache, held_out // 2)
        overlap = set(other.classes) & set(real.classes)
        if overlap:
            raise BadInput(
                f"--unseen {unseen}: {len(overlap)} of its classes are trained on, e.g. {sorted(overlap)[0]}"
            )
        scored["validation pictures of unseen classes"] = (
            other.reference[:],
            other.reference.labels,
            other.train,
        )
    return Pictures(
        train=train, labels=labels, scored=scored, classes=real.classes + procedural.CLASS_NAMES
    )


def make_autoencoder(pictures: Pictures, out: Path, count: int, device: str) -> Save:
    return train_autoencoder.train_autoencoder(pictures.train, count=count, device=device).save


def make_codebook(pictures: Pictures, out: Path, count: int, device: str) -> Save:
    model = load_weights(Autoencoder(), out / "autoencoder.safetensors", "autoencoder").to(device)
    return train_autoencoder.fit_codebook(
        model, pictures.train, CODEBOOK_SIZE, device=device, both_sizes=True
    ).save


def make_judge(pictures: Pictures, out: Path, count: int, device: str) -> Save:
    judge = train_extractor.train_judge(
        pictures.train, pictures.labels, len(pictures.classes), count=count, device=device
    )
    state = {
        k: (v.half() if v.is_floating_point() else v).contiguous().cpu()
        for k, v in judge.state_dict().items()
    }
    return lambda path: save_file(state, str(path), metadata={"kind": "latentbench-judge"})


def latent_scores(pictures: Pictures, folder: Path, device: str, *, coded: bool) -> dict[str, Any]:
    """Of each scored set at 64 and 32 px: PSNR; with the codebook also through it, its usage and
    perplexity.
    """
    model = load_weights(Autoencoder(), folder / "autoencoder.safetensors", "autoencoder").to(
        device
    )
    book = (load_codebook(folder / "codebook.safetensors") if coded else Codebook(2)).to(device)
    scores: dict[str, Any] = {}
    for name, (images, _, _) in pictures.scored.items():
        for size in (SIZE, 32):
            x = (
                train_autoencoder.shrunk(torch.from_numpy(images), size).numpy()
                if size != SIZE
                else images
            )
            read = train_autoencoder.reconstruction_scores(model, book, x, device)
            scores[f"{name}, {size} px"] = {
                k: round(v, 3) for k, v in read.items() if coded or k == "psnr"
            }
    return scores


def judge_scores(pictures: Pictures, folder: Path, device: str) -> dict[str, Any]:
    """Top-1 on held-out pictures, a linear probe on unseen classes, pictures per second."""
    judge = load_weights(
        LocalFeatures(len(pictures.classes)), folder / "judge.safetensors", "judge"
    ).to(device)
    scores: dict[str, Any] = {
        "dim": judge.dim,
        "images_per_second": round(train_extractor.images_per_second(judge, SIZE, device)),
    }
    for name, (images, labels, train) in pictures.scored.items():
        if train is None:
            scores[f"{name}: top-1 of {len(pictures.classes)}"] = round(
                train_extractor.top1(judge, images, labels, device), 4
            )
        else:
            classes = len(set(labels.tolist()))
            accuracy = train_extractor.probe_accuracy(
                judge, train, (images, labels), classes, device
            )
            scores[
                f"{name}: linear probe of {classes}, fitted on {len(train)} training pictures"
            ] = round(accuracy, 4)
    return scores


def write_card(
    path: Path,
    stage: str,
    about: str,
    seconds: float,
    seen: int,
    pictures: Pictures,
    scores: dict[str, Any],
    device: str,
) -> None:
    """The model card, as JSON beside the weights (their hash is checked against it) and as Markdown
    to read.
    """
    real = len(pictures.classes) - len(procedural.CLASS_NAMES)
    card = {
        "name": stage,
        "file": path.name,
        "sha256": file_digest(path),
        "bytes": path.stat().st_size,
        "data": f"{len(pictures.train)} training pictures of {SIZE} px: {about}, {real} classes (listed in models/weights/data.json), and "
        f"procedural ones (benchmarks/pictures/procedural.py, seed {procedural.WEIGHTS_SEED}), one in eleven",
        "pictures_seen": seen or "at most 10000 at each size",
        "recipe": RECIPES[stage],
        "command": f"make weights WEIGHTS_DATA=<those classes> UNSEEN_DATA=<others> ARGS='--only {stage}'",
        "seed": 0,
        "hardware": device_name(torch.device(device)),
        "seconds": round(seconds),
        "torch": torch.__version__,
        **git_state(),
        "scores": scores,
        "licence": LICENCE,
    }
    if stage == "codebook":
        card["autoencoder_sha256"] = file_digest(path.with_name("autoencoder.safetensors"))
    write_json(path.with_suffix(".json"), card)
    lines = [f"# {stage}", ""]
    for key, value in card.items():
        if isinstance(value, dict):
            lines += [
                f"- **{key}**",
                *(f"  - {name}: {json.dumps(score)}" for name, score in value.items()),
            ]
        else:
            lines.append(f"- **{key}**: {value}")
    with atomic_file(path.with_suffix(".md")) as temporary:
        temporary.write_text("\n".join(lines) + "\n")


def run_stage(
    stage: str, pictures: Pictures, out: Path, args: argparse.Namespace, device: str
) -> None:
    """One file, its scores and its card, made and checked aside: what is there already is replaced
    by something whole, or not at all.

    Raises Diverged for weights that are not finite.
    """
    make = {"autoencoder": make_autoencoder, "codebook": make_codebook, "judge": make_judge}[stage]
    count, started = int(PICTURES[device].get(stage, 0) * args.scale), time.perf_counter()
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out, prefix=".") as folder:
        path = Path(folder) / f"{stage}.safetensors"
        make(pictures, out, count, device)(path)
        seconds = time.perf_counter() - started
        if not all(tensor.isfinite().all() for tensor in load_file(path).values()):
            raise Diverged(f"{stage}: the weights are not finite; those in {out} stay as they were")
        if stage == "codebook":
            shutil.copy(out / "autoencoder.safetensors", folder)
        scores = (
            judge_scores(pictures, path.parent, device)
            if stage == "judge"
            else latent_scores(pictures, path.parent, device, coded=stage == "codebook")
        )
        write_card(path, stage, args.about, seconds, count, pictures, scores, device)
        (out / f"{stage}.json").unlink(missing_ok=True)  # no card may describe another's file
        for suffix in (".safetensors", ".md", ".json"):
            os.replace(path.with_suffix(suffix), out / f"{stage}{suffix}")
    write_json(
        SHIPPED_FOLDER / "data.json" if args.out is None else out / "data.json",
        {"classes": pictures.classes},
    )
    print(json.dumps({"stage": stage, "seconds": round(seconds), "scores": scores}), flush=True)


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = cli.parser("train-frozen", __doc__)
    parser.add_argument("folder")
    parser.add_argument("--unseen", help="an image folder of other classes, to score with")
    parser.add_argument(
        "--about", default="an image folder", help="what the pictures are, for the model cards"
    )
    parser.add_argument("--only", nargs="+", choices=STAGES, default=STAGES)
    parser.add_argument(
        "--scale", type=float, default=1.0, help="share of the full recipe's pictures (for trials)"
    )
    parser.add_argument(
        "--out", type=Path, help="write all files there instead of over the shipped ones"
    )
    parser.add_argument(
        "--held-out",
        type=int,
        default=2000,
        help="validation pictures to score with; half as many of other kinds",
    )
    parser.add_argument("--cache", default=".cache")
    return parser.parse_args(argv)


def main(argv: Sequence[str]) -> None:
    args = _arguments(argv)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        pictures = load_pictures(args.folder, args.unseen, args.cache, args.held_out)
        print(
            f"{len(pictures.train)} training pictures, {len(pictures.classes)} classes, device {device}",
            flush=True,
        )
        for stage in args.only:
            run_stage(
                stage,
                pictures,
                args.out or (JUDGE_WEIGHTS.parent if stage == "judge" else SHIPPED_FOLDER),
                args,
                device,
            )
    except (BadInput, Diverged, ValueError) as error:
        sys.exit(f"latentbench: {error}")
