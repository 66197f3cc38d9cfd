"""Train what all models share and none trains: autoencoder, codebook, judge and projection.

    python -m benchmarks train-frozen /images
    python -m benchmarks train-frozen /images --unseen /other-classes --only judge --out /mine

The judge is the feature extractor behind FD[local]; the projection is what the features of
EfficientNet-Lite0 are reduced by for FD[efficientnet_lite0]. The folder holds images of 64 px or
more in train/<class>/* and val/<class>/*. A tenth as many procedural images are mixed in, from a
seed that the benchmark never samples. Each stage writes one safetensors file and its model card
(.json and .md). Scores are of validation images; with --unseen also of classes that no weight has
seen.
"""

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file
from torch import nn

from benchmarks.core import cli
from benchmarks.core.environment import device_name, git_state
from benchmarks.core.errors import BadInput, Diverged
from benchmarks.core.store import atomic_file, file_digest, load_weights, write_json
from benchmarks.frozen import train_autoencoder, train_extractor
from benchmarks.frozen.autoencoder import SHIPPED_FOLDER, load_codebook
from benchmarks.frozen.perceptual import PerceptualLoss
from benchmarks.images import procedural
from benchmarks.images.dataset import Dataset, Split, load_dataset
from metrics.efficientnet import PROJECTION, EfficientNetFeatures, installed_weights
from metrics.features import WEIGHTS as JUDGE_WEIGHTS
from metrics.features import LocalFeatures, extract
from models.autoencoder import Autoencoder
from models.codebook import Codebook

SIZE = 64
CODEBOOK_SIZE = 2048
# seen in training, repeats included; the CUDA figures are a guess at half an hour, not yet tried
IMAGES = {
    "cpu": {"autoencoder": 240_000, "finishing": 80_000, "judge": 500_000},
    "cuda": {"autoencoder": 3_000_000, "finishing": 1_000_000, "judge": 3_000_000},
}
RECIPES = {
    "autoencoder": (
        "benchmarks/frozen/train_autoencoder.py, train_autoencoder: per-image log MSE, Muon and "
        "AdamW, warm-up and cosine, bfloat16 autocast; every sixth batch at 32 px, noise on the "
        "latents of every fourth image; then trained on with a perceptual loss "
        "(benchmarks/frozen/perceptual.py) added"
    ),
    "codebook": (
        "benchmarks/frozen/train_autoencoder.py, fit_codebook: k-means (k-means++ start, dead "
        "entries re-seeded) on latent vectors of 64 and 32 px training images, half each"
    ),
    "projection": (
        "benchmarks/frozen/train_extractor.py, fit_projection: the first 128 principal components "
        "of EfficientNet-Lite0's 1,280 features, without procedural images"
    ),
    "judge": (
        "benchmarks/frozen/train_extractor.py, train_judge: cross-entropy with smoothed labels "
        "over all classes, AdamW, warm-up and cosine, bfloat16 autocast; mirrored, shifted, zoomed "
        "and mixed images; every third batch has been through 32 px"
    ),
}
STAGES = tuple(RECIPES)
KID = "kid_efficientnet_lite0"  # of half of the images, reconstructed, against the other half
LICENCE = (
    "Made from scratch; no other network's weights were used. Where the images are ImageNet's "
    "(Tiny-ImageNet's are), their terms allow non-commercial research and education only: treat "
    "the file accordingly. The code that made it is Apache-2.0."
)
Save = Callable[[Path], None]
Scored = tuple[np.ndarray, np.ndarray, Split | None]  # images, labels, training images of a probe


@dataclass(frozen=True)
class Material:
    """What to train on, real and procedural images mixed, and what to score with."""

    train: np.ndarray  # uint8 (N, 3, 64, 64)
    labels: np.ndarray  # (N,)
    scored: dict[str, Scored]  # by what they are
    classes: list[str]  # the names of all


def folder_data(folder: str, cache: str, held_out: int) -> Dataset:
    """An image folder, `held_out` of its validation images as its reference split."""
    cfg = OmegaConf.create(
        {
            "source": "imagefolder",
            "name": "imagefolder",
            "path": folder,
            "image_size": SIZE,
            "reference_images": held_out,
        }
    )
    return load_dataset(cfg, num_samples=2, cache=cache)


def load_material(folder: str, unseen: str | None, cache: str, held_out: int = 2000) -> Material:
    """Everything to train on and to score with. Raises BadInput for folders that cannot be used."""
    real = folder_data(folder, cache, held_out)
    seed = procedural.WEIGHTS_SEED
    made, made_labels = procedural.generate(len(real.train) // 10, SIZE, seed=seed)
    held, held_labels = procedural.generate(held_out // 2, SIZE, seed=seed, stream="reference")
    first = len(real.classes)  # procedural classes come after the real ones
    scored: dict[str, Scored] = {
        "held-out images of the training classes": (
            real.reference[:],
            real.reference.labels,
            None,
        ),
        "procedural images": (held, held_labels + first, None),
    }
    if unseen:
        other = folder_data(unseen, cache, held_out // 2)
        overlap = sorted(set(other.classes) & set(real.classes))
        if overlap:
            raise BadInput(
                f"--unseen {unseen}: {len(overlap)} of its classes are trained on, "
                f"e.g. {overlap[0]}"
            )
        images, labels = other.reference[:], other.reference.labels
        scored["validation images of unseen classes"] = (images, labels, other.train)
    return Material(
        train=np.concatenate([real.train[:], made]),
        labels=np.concatenate([real.train.labels, made_labels + first]),
        scored=scored,
        classes=real.classes + procedural.CLASS_NAMES,
    )


def make_autoencoder(material: Material, out: Path, count: int, device: str) -> Save:
    """The autoencoder: `count` images for PSNR alone, then more with a perceptual loss, too."""
    train = train_autoencoder.train_autoencoder
    model = train(material.train, count=count, device=device)
    return finished(material, model.requires_grad_(True), count, device).save


def finished(material: Material, model: nn.Module, count: int, device: str) -> nn.Module:
    """An autoencoder trained for PSNR on `count` images, trained on for what networks see, too."""
    share = IMAGES[device]["finishing"] / IMAGES[device]["autoencoder"]
    return train_autoencoder.train_autoencoder(
        material.train,
        count=int(share * count),
        device=device,
        seed=1,
        model=model.train(),
        peak_rate=train_autoencoder.FINISHING_RATE,
        perceptual=PerceptualLoss(installed_weights("lite1")).to(device),
    )


def make_codebook(material: Material, out: Path, count: int, device: str) -> Save:
    """The codebook of the autoencoder that lies in `out`."""
    path = out / "autoencoder.safetensors"
    model = load_weights(Autoencoder(), path, "autoencoder").to(device)
    return train_autoencoder.fit_codebook(
        model, material.train, CODEBOOK_SIZE, device=device, both_sizes=True
    ).save


def make_judge(material: Material, out: Path, count: int, device: str) -> Save:
    """The judge, after `count` images, its weights in half precision."""
    classes = len(material.classes)
    judge = train_extractor.train_judge(
        material.train, material.labels, classes, count=count, device=device
    )
    state = {}
    for name, tensor in judge.state_dict().items():
        half = tensor.half() if tensor.is_floating_point() else tensor
        state[name] = half.contiguous().cpu()
    return lambda path: save_file(state, str(path), metadata={"kind": "latentbench-judge"})


def make_projection(material: Material, out: Path, count: int, device: str) -> Save:
    """The projection of EfficientNet-Lite0's features, from real training images alone."""
    net = EfficientNetFeatures(installed_weights("lite0"), projection=None).to(device)
    real = material.train[material.labels < len(material.classes) - len(procedural.CLASS_NAMES)]
    fitted = train_extractor.fit_projection(net, real, device=device)
    return lambda path: save_file(fitted, str(path), metadata={"kind": "latentbench-projection"})


MAKE = {
    "autoencoder": make_autoencoder,
    "codebook": make_codebook,
    "projection": make_projection,
    "judge": make_judge,
}
# where the files of the suite lie
SHIPPED = {
    "autoencoder": SHIPPED_FOLDER,
    "codebook": SHIPPED_FOLDER,
    "projection": PROJECTION.parent,
    "judge": JUDGE_WEIGHTS.parent,
}


def latent_scores(material: Material, folder: Path, device: str, *, coded: bool) -> dict[str, Any]:
    """Of each scored set at 64 and 32 px: PSNR; with the codebook also through it, its usage and
    perplexity.
    """
    path = folder / "autoencoder.safetensors"
    model = load_weights(Autoencoder(), path, "autoencoder").to(device)
    codebook = load_codebook(folder / "codebook.safetensors") if coded else Codebook(2)
    codebook = codebook.to(device)
    scores: dict[str, Any] = {}
    net = EfficientNetFeatures(installed_weights("lite0"), projection=None).to(device)
    for name, (images, _, train) in material.scored.items():
        for size in (SIZE, 32):
            sized = images
            if size != SIZE:
                sized = train_autoencoder.shrunk(torch.from_numpy(images), size).numpy()
            measured = train_autoencoder.reconstruction_scores(model, codebook, sized, device)
            scores[f"{name}, {size} px"] = {
                measure: round(value, 3)
                for measure, value in measured.items()
                if coded or measure == "psnr"
            }
            if train is None:  # classes that were trained on
                continue
            book = codebook if coded else None
            distance = train_autoencoder.reconstruction_kid(model, net, sized, device, book)
            scores[f"{name}, {size} px"][KID] = round(distance, 4)
    return scores


def judge_scores(material: Material, folder: Path, device: str) -> dict[str, Any]:
    """Top-1 on held-out images, a linear probe on unseen classes, images per second."""
    network, path = LocalFeatures(len(material.classes)), folder / "judge.safetensors"
    judge = load_weights(network, path, "judge").to(device)
    speed = train_extractor.images_per_second(judge, SIZE, device)
    scores: dict[str, Any] = {"dim": judge.dim, "images_per_second": round(speed)}
    for name, (images, labels, train) in material.scored.items():
        if train is None:
            accuracy = train_extractor.top1(judge, images, labels, device)
            what = f"{name}: top-1 of {len(material.classes)}"
        else:
            classes = len(set(labels.tolist()))
            accuracy = train_extractor.probe_accuracy(
                judge, train, (images, labels), classes, device
            )
            what = f"{name}: linear probe of {classes}, fitted on {len(train)} training images"
        scores[what] = round(accuracy, 4)
    return scores


def projection_scores(material: Material, folder: Path, device: str) -> dict[str, Any]:
    """Of each scored set, how much of the features' variance the projection keeps."""
    weights = installed_weights("lite0")
    net = EfficientNetFeatures(weights, folder / "projection.safetensors").to(device)
    scores: dict[str, Any] = {"dim": net.frechet_dim}
    for name, (images, _, _) in material.scored.items():
        features = extract(net, images, device=device)
        kept = net.project(features).var(0).sum() / features.var(0).sum()
        scores[f"{name}: variance kept"] = round(kept.item(), 4)
    return scores


def scores_of(stage: str, material: Material, folder: Path, device: str) -> dict[str, Any]:
    """What a card says of a stage's file, which lies in `folder`."""
    if stage == "judge":
        return judge_scores(material, folder, device)
    if stage == "projection":
        return projection_scores(material, folder, device)
    return latent_scores(material, folder, device, coded=stage == "codebook")


def card_of(
    path: Path, stage: str, seconds: float, seen: int, material: Material, about: str, device: str
) -> dict[str, Any]:
    """The model card of a file, without its scores."""
    real = len(material.classes) - len(procedural.CLASS_NAMES)
    card = {
        "name": stage,
        "file": path.name,
        "sha256": file_digest(path),
        "bytes": path.stat().st_size,
        "data": (
            f"{len(material.train)} training images of {SIZE} px: {about}, {real} classes "
            "(listed in models/weights/data.json), and procedural ones "
            f"(benchmarks/images/procedural.py, seed {procedural.WEIGHTS_SEED}), one in eleven"
        ),
        "images_seen": seen or "at most 10000 at each size",
        "recipe": RECIPES[stage],
        "command": (
            f"python -m benchmarks train-frozen <those classes> --unseen <others> --only {stage}"
        ),
        "seed": 0,
        "hardware": device_name(torch.device(device)),
        "seconds": round(seconds),
        "torch": torch.__version__,
        **git_state(),
    }
    return card


def write_card(path: Path, card: dict[str, Any]) -> None:
    """The card as JSON beside the weights (their hash is checked against it), and as Markdown."""
    write_json(path.with_suffix(".json"), card)
    lines = [f"# {card['name']}", ""]
    for key, value in card.items():
        if isinstance(value, dict):
            lines.append(f"- **{key}**")
            lines += [f"  - {name}: {json.dumps(score)}" for name, score in value.items()]
        else:
            lines.append(f"- **{key}**: {value}")
    with atomic_file(path.with_suffix(".md")) as temporary:
        temporary.write_text("\n".join(lines) + "\n")


def run_stage(
    stage: str, material: Material, out: Path, args: argparse.Namespace, device: str
) -> None:
    """One file, its scores and its card, made and checked aside: what is there already is replaced
    by something whole, or not at all.

    Raises Diverged for weights that are not finite.
    """
    count, began = int(IMAGES[device].get(stage, 0) * args.scale), time.perf_counter()
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out, prefix=".") as folder:
        path = Path(folder) / f"{stage}.safetensors"
        MAKE[stage](material, out, count, device)(path)
        seconds = time.perf_counter() - began
        if not all(tensor.isfinite().all() for tensor in load_file(path).values()):
            raise Diverged(f"{stage}: the weights are not finite; those in {out} stay as they were")
        card = card_of(path, stage, seconds, count, material, args.about, device)
        if stage == "codebook":  # it is scored, and only fits, with its own autoencoder
            shutil.copy(out / "autoencoder.safetensors", folder)
        scores = scores_of(stage, material, path.parent, device)
        card |= {"scores": scores, "licence": LICENCE}
        if stage == "codebook":
            card["autoencoder_sha256"] = file_digest(path.with_name("autoencoder.safetensors"))
        write_card(path, card)
        (out / f"{stage}.json").unlink(missing_ok=True)  # no card may describe another's file
        for suffix in (".safetensors", ".md", ".json"):
            os.replace(path.with_suffix(suffix), out / f"{stage}{suffix}")
    classes = (args.out or SHIPPED_FOLDER) / "data.json"
    write_json(classes, {"classes": material.classes})
    line = {"stage": stage, "seconds": round(seconds), "scores": scores}
    print(json.dumps(line), flush=True)


def arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = cli.parser("train-frozen", __doc__)
    parser.add_argument("folder")
    parser.add_argument("--unseen", help="an image folder of other classes, to score with")
    what = "what the images are, for the model cards"
    parser.add_argument("--about", default="an image folder", help=what)
    parser.add_argument("--only", nargs="+", choices=STAGES, default=STAGES)
    scale = "fraction of the full recipe's images (for trials)"
    parser.add_argument("--scale", type=float, default=1.0, help=scale)
    out = "write all files there instead of over the shipped ones"
    parser.add_argument("--out", type=Path, help=out)
    held_out = "validation images to score with; half as many of other kinds"
    parser.add_argument("--held-out", type=int, default=2000, help=held_out)
    parser.add_argument("--cache", default=".cache")
    return parser.parse_args(argv)


def main(argv: Sequence[str]) -> None:
    args = arguments(argv)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        material = load_material(args.folder, args.unseen, args.cache, args.held_out)
        count, classes = len(material.train), len(material.classes)
        print(f"{count} training images, {classes} classes, device {device}", flush=True)
        for stage in args.only:
            run_stage(stage, material, args.out or SHIPPED[stage], args, device)
    except (BadInput, Diverged, ValueError) as error:
        sys.exit(f"latentbench: {error}")
