"""What a judge is worth on some data: one JSON line for each feature network.

    python -m benchmarks.studies.probe_extractor [features=local|inception|dinov2|[local,inception]] [data=...]

`images_per_second` is inference in float32 at the data's picture size; `probe_accuracy` a linear
probe's on the reference split, fitted on `probe_images` pictures, the same for all networks of a
call, and none that one of them may have trained on.
"""

import json
from collections.abc import Sequence

from omegaconf import DictConfig

from benchmarks.core.cli import run_hydra
from benchmarks.core.environment import pick_device
from benchmarks.core.settings import check
from benchmarks.frozen import train_extractor
from benchmarks.frozen.extractors import load_extractors, probe_split
from benchmarks.images.dataset import load_dataset
from benchmarks.stages.floors import probe_images


def examine(cfg: DictConfig) -> None:
    check(cfg)
    device = pick_device(cfg.device)
    judges = load_extractors(cfg.features)
    dataset = load_dataset(cfg.data, num_samples=cfg.num_samples, cache=cfg.cache_dir)
    held_out = (dataset.reference, dataset.reference.labels)
    splits = {probe_split(cfg.data, features, dataset.classes) for features in judges}
    fitted_on = probe_images(
        dataset, "holdout" if "holdout" in splits else "train"
    )  # the same for all, so that they compare
    for features in judges:
        net = features.net.to(device)
        line = {
            "features": features.name,
            "dim": net.dim,
            "images_per_second": train_extractor.images_per_second(
                net, dataset.image_size, device.type
            ),
            "probe_images": len(fitted_on),
            "probe_accuracy": train_extractor.probe_accuracy(
                net, fitted_on, held_out, len(dataset.classes), device.type
            ),
        }
        print(json.dumps(line), flush=True)


def main(argv: Sequence[str]) -> None:
    run_hydra("probe", __doc__, examine, argv)
