"""Does training on a million images take the memory and the time of training on ten thousand?

    python -m benchmarks.perf.many_images
    python -m benchmarks.perf.many_images --images 10000 200000 --steps 50

Latents of 4x32x32 and their tokens are made up and written as shards, 41 KB an image: 53 GB for the
1.28 million of ImageNet, which are removed at the end. Then `dit` is trained on them by the
suite's own training loop, each count in a process of its own, in turns. Writes many_images.csv:
images per second of each turn, and the most memory that the process held. What the operating system
keeps of the files beside that is not counted: it gives it back when asked.
"""

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import torch

from benchmarks.core import cli
from benchmarks.core.environment import device_name
from benchmarks.core.files import atomic_file
from benchmarks.core.settings import compose
from benchmarks.core.store import ROOT, seeded, write_tensors
from benchmarks.frozen.latents import LatentSet
from benchmarks.frozen.shards import IMAGES, Rows, Shards, moments
from benchmarks.results.tables import markdown
from benchmarks.stages.model import build_model, forward_macs, on_meta
from benchmarks.stages.train import train
from metrics import speed
from models.codebook import Codebook

SHAPE = (4, 32, 32)  # of ImageNet at 256 px, through an autoencoder of factor 8
ENTRIES, CLASSES = 2048, 1000
COUNTS = (10_000, 1_280_000)
TURNS = 3
CPU = torch.device("cpu")
ONE = "import sys; from benchmarks.perf.many_images import alone; alone(*sys.argv[1:])"


def make_shards(shards: Shards) -> None:
    """Random latents and tokens in every file; only the first is made, the others are copies."""
    rng = seeded("many images")
    for number in range(len(shards)):
        count, first = len(shards.images(number)), shards.path(0)
        shards.folder.mkdir(parents=True, exist_ok=True)
        if number and count == IMAGES:  # bytes of its own, so that the disk has to read them
            shutil.copyfile(first, shards.path(number))
            continue
        latents = torch.randn(2, count, *SHAPE, generator=rng)
        tokens = torch.randint(ENTRIES, (2, count, SHAPE[1] * SHAPE[2]), generator=rng).int()
        tensors = {"latents": latents, "tokens": tokens, "moments": moments(latents)}
        write_tensors(shards.path(number), shards.key_of(number), tensors)


def measure(folder: Path, count: int, steps: int) -> dict[str, float]:
    """In a process of its own: train `dit` for so many steps; the speed and the most memory."""
    shards = Shards(folder, "many", count)
    labels = torch.arange(count) % CLASSES
    zeros, ones = torch.zeros(SHAPE[0]), torch.ones(SHAPE[0])
    latents = Rows(shards.paths(), "latents", zeros, ones)
    data = LatentSet(latents, Rows(shards.paths(), "tokens"), labels, zeros, ones, "many")
    budget = [f"train.budget={steps}", "train.unit=steps", "train.batch=32"]
    cfg = compose("model=dit", "model.denoiser.patch=2", "size=xs", "train.precision=fp32", *budget)
    model = build_model(cfg.model, SHAPE, CLASSES, Codebook(ENTRIES))
    with tempfile.TemporaryDirectory() as work:
        summary = train(
            model,
            data,
            cfg.train,
            lr=cfg.model.lr,
            seed=0,
            forward_macs=forward_macs(on_meta(model)),
            folder=Path(work),
            key="many",
            device=CPU,
        )
    # not `resource`: a process begins with the peak of the one that started it there
    peak = speed.peak_memory_mb(CPU)
    return {"images_per_second": summary["images"] / summary["seconds"], "peak_mib": peak}


def alone(folder: str, count: str, steps: str) -> None:
    """`measure` as its process is called, printed as JSON on the last line."""
    print(json.dumps(measure(Path(folder), int(count), int(steps))))


def compare(counts: Sequence[int], steps: int, turns: int, folder: Path) -> pd.DataFrame:
    """One row a training: images, turn, images_per_second, peak_mib."""
    make_shards(Shards(folder, "many", max(counts)))
    rows = []
    for turn in range(turns):
        for count in counts:
            call = [sys.executable, "-c", ONE, str(folder), str(count), str(steps)]
            done = subprocess.run(call, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
            rows.append({"images": count, "turn": turn} | json.loads(done.stdout.splitlines()[-1]))
            print(rows[-1], flush=True)
    return pd.DataFrame(rows)


def main(argv: Sequence[str]) -> None:
    arguments = cli.parser("perf.many_images", __doc__)
    add = arguments.add_argument
    add("--images", type=cli.whole, nargs="+", default=COUNTS, help="counts to compare")
    add("--steps", type=cli.whole, default=100, help="of each training, of 32 images")
    add("--turns", type=cli.whole, default=3, help="trainings of each count")
    add("--shards", type=cli.path, default=Path(".cache"), help="folder on a disk with room")
    add("--out", type=cli.path, default=Path("results/perf"), help="results folder")
    args = arguments.parse_args(argv)
    args.shards.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=args.shards) as folder:  # of what is there none is removed
        table = compare(args.images, args.steps, args.turns, Path(folder).absolute())
    with atomic_file(args.out / "many_images.csv") as path:
        table.assign(device=device_name(CPU)).to_csv(path, index=False)
    best = table.groupby("images").agg({"images_per_second": "max", "peak_mib": "max"})
    print("\n".join(markdown(["images", *best.columns], best.reset_index().values.tolist())))


if __name__ == "__main__":
    main(sys.argv[1:])
