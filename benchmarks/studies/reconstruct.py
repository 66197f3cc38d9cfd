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
from benchmarks.frozen.autoencoder import LatentSpace, latent_shape, load_latent_space
from benchmarks.frozen.latents import batch_indices
from benchmarks.frozen.train_autoencoder import psnr, reconstruction_scores, round_trip
from benchmarks.images.dataset import load_dataset
from benchmarks.images.stored import Dataset
from benchmarks.stages.model import decoder_macs, encoder_macs
from models.scales import ScaleCodebooks

SHOWN = 12  # images
FIT_IMAGES = 5000  # at most, that codebooks by scale are fitted on
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


@torch.inference_mode()
def through_scales(
    space: LatentSpace, dataset: Dataset, shape: tuple[int, int, int], device: torch.device
) -> dict[str, float]:
    """The mean PSNR of the reference images through codebooks by scale, as `ar_scale` fits them,
    each of as many entries as the codebook; empty where scales do not tile the latents.
    """
    try:
        books = ScaleCodebooks(space.codebook.size, shape).to(device)
    except ValueError:
        return {}
    batch = space.at_once(dataset.image_size)

    def encoded(images: np.ndarray) -> torch.Tensor:
        chunks = torch.from_numpy(np.ascontiguousarray(images)).split(batch)
        return torch.cat([space.autoencoder.encode(chunk.to(device)) for chunk in chunks])

    count = len(dataset.train)
    fitted_on = encoded(dataset.train[batch_indices(count, min(count, FIT_IMAGES), 0, 0).numpy()])
    std, mean = torch.std_mean(fitted_on, (0, 2, 3), keepdim=True)
    std = std.clamp(min=1e-6)
    books.fit((fitted_on - mean) / std)
    found = []
    for start in range(0, len(dataset.reference), batch):
        images = dataset.reference[start : start + batch]
        ids, _ = books.tokenize((encoded(images) - mean) / std)
        rebuilt = space.autoencoder.decode(books.detokenize(ids) * std + mean).cpu()
        found.append(psnr(torch.from_numpy(np.ascontiguousarray(images)), rebuilt))
    return {"psnr_scales": torch.cat(found).mean().item(), "scale_tokens": books.tokens}


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
    line |= through_scales(space, dataset, shape, device)
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
