"""What does it take to read a folder of images and encode it?

    python -m benchmarks.perf.encoding --data /images --image-size 64

Reads the images and makes the latents and tokens of the training split, and of its mirror image, as
a bench does before it trains, in a cache of its own that is removed at the end. Writes
encoding.csv: for each of the two stages its seconds, the share of the cores that it kept busy, and
the most memory that the process held.
"""

import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from benchmarks.core import cli
from benchmarks.core.environment import device_name, own_cores
from benchmarks.core.files import atomic_file
from benchmarks.core.settings import compose
from benchmarks.frozen.autoencoder import load_latent_space
from benchmarks.frozen.latents import prepare_latents
from benchmarks.images.dataset import load_dataset
from benchmarks.results.tables import markdown
from metrics import speed

CPU = torch.device("cpu")


def watched(stage: str, make: Callable[[], Any]) -> tuple[Any, dict[str, Any]]:
    """What `make` gives, and a row about how long it took and how busy the cores were."""
    speed.reset_peak_memory(CPU)
    wall, busy = time.perf_counter(), sum(os.times()[:4])
    made = make()
    seconds = time.perf_counter() - wall
    share = (sum(os.times()[:4]) - busy) / seconds / len(own_cores())
    peak = speed.peak_memory_mb(CPU)
    return made, {"stage": stage, "seconds": seconds, "cores_busy": share, "peak_mib": peak}


def measure(data: str, image_size: int, reference: int, cache: Path) -> pd.DataFrame:
    """A row for each stage: images, stage, seconds, cores_busy (fraction), peak_mib."""
    folder = [f"data.path={cli.quoted(data)}", "data.name=encoding", "data.classes=null"]
    sizes = [f"data.image_size={image_size}", f"data.reference_images={reference}"]
    cfg = compose("data=imagefolder", *folder, *sizes, f"num_samples={min(512, reference)}")
    read = partial(load_dataset, cfg.data, num_samples=cfg.num_samples, cache=cache)
    dataset, reading = watched("read", read)
    space = load_latent_space(cfg.autoencoder, dataset, cache=cache, device=CPU)
    encode = partial(prepare_latents, dataset, space, cache=cache, device=CPU)
    _, encoding = watched("encode", encode)
    images = sum(len(split) for split in (dataset.train, dataset.reference, dataset.holdout))
    rows = [{"images": images} | reading, {"images": 2 * len(dataset.train)} | encoding]
    return pd.DataFrame(rows)


def main(argv: Sequence[str]) -> None:
    arguments = cli.parser("perf.encoding", __doc__)
    add = arguments.add_argument
    add("--data", required=True, help="folder of images, as data.path of a bench")
    add("--image-size", type=cli.whole, default=64, help="pixels a side")
    add("--reference", type=cli.whole, default=1000, help="images that are not trained on")
    add("--cache", type=cli.path, default=Path(".cache"), help="folder on a disk with room")
    add("--out", type=cli.path, default=Path("results/perf"), help="results folder")
    args = arguments.parse_args(argv)
    args.cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=args.cache) as cache:  # of what is there none is removed
        table = measure(args.data, args.image_size, args.reference, Path(cache))
    with atomic_file(args.out / "encoding.csv") as path:
        table.assign(device=device_name(CPU)).to_csv(path, index=False)
    print("\n".join(markdown(list(table.columns), table.values.tolist())))


if __name__ == "__main__":
    main(sys.argv[1:])
