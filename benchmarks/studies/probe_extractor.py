"""What a feature extractor is worth on some data: one JSON line for each.

    python -m benchmarks probe
    python -m benchmarks probe data=imagefolder data.path=/images features=[local,inception]
    python -m benchmarks probe features=efficientnet_lite0 +sides=[96,128,160,192,224]

`images_per_second` is inference in float32 at the data's image size. `probe_accuracy` is a linear
probe's on the reference split, fitted on `probe_images` images: the same for all extractors of a
call, and none that one of them may have trained on. `+sides` shows the images to efficientnet_lite0
at other sizes than its own, in pixels.
"""

import json
from collections.abc import Sequence

from omegaconf import DictConfig

from benchmarks.core.cli import run_hydra
from benchmarks.core.environment import pick_device
from benchmarks.core.settings import check
from benchmarks.frozen.extractors import load_extractors, probe_split
from benchmarks.frozen.train_extractor import images_per_second, probe_accuracy
from benchmarks.images.dataset import load_dataset
from benchmarks.stages.floors import probe_images


def examine(cfg: DictConfig) -> None:
    """Probe every feature extractor that is asked for."""
    check(cfg)
    device = pick_device(cfg.device)
    extractors = load_extractors(cfg.features)
    dataset = load_dataset(cfg.data, num_samples=cfg.num_samples, cache=cfg.cache_dir)
    # the same images for all, so that they compare
    splits = {probe_split(cfg.data, extractor, dataset.classes) for extractor in extractors}
    fitted_on = probe_images(dataset, "train" if splits == {"train"} else "holdout")
    tested_on = (dataset.reference, dataset.reference.labels)
    classes, size = len(dataset.classes), dataset.image_size
    for extractor in extractors:
        net = extractor.net.to(device)
        for side in cfg.get("sides") or [getattr(net, "side", size)]:
            if hasattr(net, "side"):
                net.side = side
            line = {
                "features": extractor.name,
                "dim": net.dim,
                "shown_at": side,
                "images_per_second": images_per_second(net, size, device.type),
                "probe_images": len(fitted_on),
                "probe_accuracy": probe_accuracy(net, fitted_on, tested_on, classes, device.type),
            }
            print(json.dumps(line), flush=True)


def main(argv: Sequence[str]) -> None:
    run_hydra("probe", __doc__, examine, argv)
