"""What the latents lose: originals, reconstructions and codebook reconstructions side by side, and
one JSON line.

    python -m benchmarks reconstruct
    python -m benchmarks reconstruct data.image_size=64 autoencoder.codebook_size=512

Scored are the data's `reference` images, which nothing trained on this data has seen; the line
comes last.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from omegaconf import DictConfig
from PIL import Image

from benchmarks.core.cli import run_hydra
from benchmarks.core.environment import pick_device
from benchmarks.core.files import atomic_file, check_writable
from benchmarks.core.settings import check
from benchmarks.core.store import write_json
from benchmarks.frozen.autoencoder import latent_shape, load_latent_space
from benchmarks.frozen.train_autoencoder import reconstruction_scores, round_trip
from benchmarks.images.dataset import load_dataset
from benchmarks.stages.model import decoder_macs, encoder_macs

SHOWN = 12  # images
LEAST_SIDE = 96  # px: smaller images are enlarged, without smoothing


def write_sheet(rows: list[torch.Tensor], path: Path) -> None:
    """Rows of uint8 images (n, 3, H, W), one below the other, as one PNG."""
    strips = []
    for row in rows:
        images = row.permute(0, 2, 3, 1).cpu().numpy()
        strips.append(np.concatenate(list(images), axis=1))
    zoom = max(1, LEAST_SIDE // rows[0].shape[-1])
    sheet = np.concatenate(strips).repeat(zoom, axis=0).repeat(zoom, axis=1)
    with atomic_file(path) as temporary:
        Image.fromarray(sheet).save(temporary, format="png")


def reconstruct(cfg: DictConfig) -> None:
    """Score the reconstructions of one latent space, and show the first ones."""
    check(cfg)
    folder = Path(cfg.results_dir) / "reconstruct"
    check_writable(folder, "results_dir")
    device, size = pick_device(cfg.device), cfg.data.image_size
    shape = latent_shape(cfg.autoencoder, size)
    dataset = load_dataset(cfg.data, num_samples=cfg.num_samples, cache=cfg.cache_dir)
    space = load_latent_space(cfg.autoencoder, dataset, cache=cfg.cache_dir, device=device)
    space = space.to(device)
    model, codebook, real = space.autoencoder, space.codebook, dataset.reference
    batch = space.at_once(dataset.image_size)
    line = {"images": len(real)}
    line |= reconstruction_scores(model, codebook, real, device.type, batch=batch)
    line["encoder_gmacs"] = encoder_macs(model, dataset.image_size) / 1e9
    line["decoder_gmacs"] = decoder_macs(model, shape) / 1e9

    originals = torch.from_numpy(real[:SHOWN]).to(device)
    through_both = [round_trip(model, codebook, images)[:2] for images in originals.split(batch)]
    through_autoencoder = torch.cat([images for images, _ in through_both])
    through_codebook = torch.cat([images for _, images in through_both])
    name = f"{dataset.name}-{dataset.image_size}-{space.name}-{codebook.size}.png"
    path = folder / name
    write_sheet([originals, through_autoencoder, through_codebook], path)
    print(f"{path}: originals, through the autoencoder, through the codebook")
    write_json(path.with_suffix(".json"), line)
    print(json.dumps(line))


def main(argv: Sequence[str]) -> None:
    run_hydra("reconstruct", __doc__, reconstruct, argv)
