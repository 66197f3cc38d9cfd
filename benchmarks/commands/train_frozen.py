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
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from benchmarks.core import cli
from benchmarks.core.environment import refuse_foreign_settings
from benchmarks.core.errors import BadInput, Diverged
from benchmarks.core.files import check_writable
from benchmarks.core.store import file_digest, load_weights, write_json
from benchmarks.frozen import train_autoencoder, train_extractor
from benchmarks.frozen.autoencoder import SHIPPED_FOLDER
from benchmarks.frozen.model_cards import card_of, licence, scores_of, write_card
from benchmarks.frozen.perceptual import PerceptualLoss
from benchmarks.frozen.training_material import Material, load_material
from benchmarks.images import procedural
from metrics.efficientnet import PROJECTION, EfficientNetFeatures, installed_weights
from metrics.features import WEIGHTS as JUDGE_WEIGHTS
from models.autoencoder import Autoencoder

CODEBOOK_SIZE = 2048
# seen in training, repeats included; the CUDA figures are a guess at half an hour, not yet tried
IMAGES = {
    "cpu": {"autoencoder": 240_000, "finishing": 80_000, "judge": 500_000},
    "cuda": {"autoencoder": 3_000_000, "finishing": 1_000_000, "judge": 3_000_000},
}
Save = Callable[[Path], None]


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
STAGES = tuple(MAKE)
# where the files of the suite lie
SHIPPED = {
    "autoencoder": SHIPPED_FOLDER,
    "codebook": SHIPPED_FOLDER,
    "projection": PROJECTION.parent,
    "judge": JUDGE_WEIGHTS.parent,
}


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
        card |= {"scores": scores, "licence": licence(stage)}
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
    parser.add_argument("folder", type=cli.path)
    parser.add_argument(
        "--unseen", type=cli.path, help="an image folder of other classes, to score with"
    )
    what = "what the images are, for the model cards"
    parser.add_argument("--about", default="an image folder", help=what)
    parser.add_argument("--only", nargs="+", choices=STAGES, default=STAGES)
    scale = "fraction of the full recipe's images (for trials)"
    parser.add_argument("--scale", type=cli.positive, default=1.0, help=scale)
    out = "write all files there instead of over the shipped ones"
    parser.add_argument("--out", type=cli.path, help=out)
    held_out = "validation images to score with; half as many of other kinds"
    parser.add_argument("--held-out", type=cli.whole, default=2000, help=held_out)
    parser.add_argument("--cache", type=cli.path, default=".cache")
    return parser.parse_args(argv)


def main(argv: Sequence[str]) -> None:
    args = arguments(argv)
    refuse_foreign_settings()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        for stage in args.only:
            check_writable(args.out or SHIPPED[stage], "--out")
        unseen = str(args.unseen) if args.unseen else None
        material = load_material(str(args.folder), unseen, args.cache, args.held_out)
        count, classes = len(material.train), len(material.classes)
        print(f"{count} training images, {classes} classes, device {device}", flush=True)
        for stage in args.only:
            run_stage(stage, material, args.out or SHIPPED[stage], args, device)
    except (BadInput, Diverged, ValueError) as error:
        sys.exit(f"latentbench: {error}")
