"""What a judge is worth on some data: one JSON line for each feature network.

    python -m benchmarks.judge [features=local|inception|dinov2|[local,inception]] [data=...]

`images_per_second` is inference in float32 at the data's picture size; `probe_accuracy` a linear probe's on the reference split, fitted on
`probe_images` pictures, the same for all networks of a call, and none that one of them may have trained on.
"""

import json

import hydra
from omegaconf import DictConfig

from benchmarks import data, networks, records, score
from benchmarks.cli import check, finish, guarded, pick_device
from benchmarks.recipes import judging


def examine(cfg: DictConfig) -> None:
    check(cfg)
    device = pick_device(cfg.device)
    judges = networks.load_features(cfg.features)
    dataset = data.load(cfg.data, num_samples=cfg.num_samples, cache=cfg.cache_dir)
    held_out = (dataset.reference, dataset.reference.labels)
    splits = {networks.probe_split(cfg, features, dataset.classes) for features in judges}
    fitted_on = score.probe_pictures(dataset, "floor" if "floor" in splits else "train")  # the same for all, so that they compare
    for features in judges:
        net = features.net.to(device)
        line = {
            "features": features.name,
            "dim": net.dim,
            "images_per_second": judging.images_per_second(net, dataset.image_size, device.type),
            "probe_images": len(fitted_on),
            "probe_accuracy": judging.probe_accuracy(net, fitted_on, held_out, len(dataset.classes), device.type),
        }
        print(json.dumps(line), flush=True)


@hydra.main(version_base="1.3", config_path=str(records.ROOT / "conf"), config_name="config")
def job(cfg: DictConfig) -> None:
    guarded(examine, cfg)


if __name__ == "__main__":
    job()
    finish()
