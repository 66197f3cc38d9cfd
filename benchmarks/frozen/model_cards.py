"""The model cards of the shared networks: what each is made of and how, and the scores written
there, measured from its file.
"""

import json
from pathlib import Path
from typing import Any

import torch

from benchmarks.core.environment import device_name, git_state
from benchmarks.core.files import atomic_file
from benchmarks.core.store import file_digest, load_weights, write_json
from benchmarks.core.text import safe_markdown
from benchmarks.frozen import train_autoencoder, train_extractor
from benchmarks.frozen.autoencoder import load_codebook
from benchmarks.frozen.training_material import SIZE, Material
from benchmarks.images import procedural
from metrics.efficientnet import EfficientNetFeatures, installed_weights
from metrics.features import LocalFeatures, extract
from models.autoencoder import Autoencoder
from models.codebook import Codebook

RECIPES = {
    "autoencoder": (
        "benchmarks/frozen/train_autoencoder.py, train_autoencoder: per-image log MSE, Muon and "
        "AdamW, warm-up and cosine, bfloat16 autocast where that is the faster; every sixth batch "
        "at 32 px, noise on the latents of every fourth image; then trained on with a perceptual "
        "loss (benchmarks/frozen/perceptual.py) added"
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
        "over all classes, AdamW, warm-up and cosine, bfloat16 autocast where that is the faster; "
        "mirrored, shifted, zoomed and mixed images; every third batch has been through 32 px"
    ),
}
KID = "kid_efficientnet_lite0"  # of half of the images, reconstructed, against the other half
# the networks of others that a file was made with; its own weights were made from scratch
HELPERS = {
    "autoencoder": "EfficientNet-Lite1 (Apache-2.0, trained on ImageNet) is in its training loss",
    "codebook": "it is fitted on latents of the autoencoder, whose loss has EfficientNet-Lite1",
    "projection": "it projects features of EfficientNet-Lite0 (Apache-2.0, trained on ImageNet)",
    "judge": "no other network's weights were used",
}


def licence(stage: str) -> str:
    """What a file of this stage may be used for, and what it was made with."""
    return (
        f"Made from scratch; {HELPERS[stage]}. Where the images are ImageNet's (Tiny-ImageNet's "
        "are), their terms allow non-commercial research and education only: treat the file "
        "accordingly. The code that made it is Apache-2.0."
    )


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
        temporary.write_text("\n".join(map(safe_markdown, lines)) + "\n", encoding="utf-8")
