"""What the latent space loses: a picture of originals, reconstructions and codebook
reconstructions, and one JSON line.

    python -m benchmarks.studies.reconstruct [data=...] [autoencoder=...] [autoencoder.codebook_size=...]

Scored are the data's `reference` pictures, which nothing trained on this data has seen; the line
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
from benchmarks.core.settings import check
from benchmarks.core.store import atomic_file, write_json
from benchmarks.frozen import train_autoencoder
from benchmarks.frozen.autoencoder import latent_shape, load_latent_space
from benchmarks.images.dataset import load_dataset
from benchmarks.stages.model import decoder_macs, encoder_macs

COLUMNS = 12  # pictures shown


def picture(rows: list[torch.Tensor], path: Path) -> None:
    """Rows of uint8 pictures (n, 3, H, W), one below the other, small ones enlarged without
    smoothing.
    """
    sheet = np.concatenate(
        [np.concatenate(list(row.permute(0, 2, 3, 1).cpu().numpy()), axis=1) for row in rows]
    )
    zoom = max(1, 96 // rows[0].shape[-1])
    with atomic_file(path) as temporary:
        Image.fromarray(sheet.repeat(zoom, axis=0).repeat(zoom, axis=1)).save(
            temporary, format="png"
        )


def reconstruct(cfg: DictConfig) -> None:
    check(cfg)
    device = pick_device(cfg.device)
    shape = latent_shape(cfg.autoencoder, cfg.data.image_size)
    dataset = load_dataset(cfg.data, num_samples=cfg.num_samples, cache=cfg.cache_dir)
    latents = load_latent_space(cfg.autoencoder, dataset, cache=cfg.cache_dir, device=device).to(
        device
    )
    model, book, held_out = latents.autoencoder, latents.codebook, dataset.reference
    scores = train_autoencoder.reconstruction_scores(
        model, book, held_out, device.type, batch=latents.at_once(dataset.image_size)
    )
    shown = torch.from_numpy(held_out[:COLUMNS]).to(device)
    path = (
        Path(cfg.results_dir)
        / "reconstruct"
        / f"{dataset.name}-{dataset.image_size}-{latents.name}-{book.size}.png"
    )
    rebuilt = [
        train_autoencoder.round_trip(model, book, part)[:2]
        for part in shown.split(latents.at_once(dataset.image_size))
    ]
    picture([shown, *(torch.cat(both) for both in zip(*rebuilt, strict=True))], path)
    macs = {
        "encoder_gmacs": encoder_macs(model, dataset.image_size) / 1e9,
        "decoder_gmacs": decoder_macs(model, shape) / 1e9,
    }
    print(f"{path}: originals, through the autoencoder, through the codebook")
    write_json(path.with_suffix(".json"), {"images": len(held_out), **scores, **macs})
    print(json.dumps({"images": len(held_out), **scores, **macs}))


def main(argv: Sequence[str]) -> None:
    run_hydra("reconstruct", __doc__, reconstruct, argv)
