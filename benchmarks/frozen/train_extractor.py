"""How the shipped feature extractor is made and examined: train the classifier behind FD[local]
(the file metrics/weights/judge.safetensors), fit linear probes, measure its speed.
"""

import time
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.core.store import seeded
from benchmarks.frozen.train_autoencoder import batches, learning_rate, shrunk
from metrics import speed
from metrics.features import IMAGE_SIZE, LocalFeatures, extract
from metrics.probe import fit_probe
from models.autoencoder import to_float, to_uint8

BATCH = 64
PEAK_RATE = 3e-3
MOST_SHIFT = 6  # pixels
LEAST_ZOOM = 0.6  # of the image's side
SMOOTHING = 0.1  # of the labels
MOST_MIXED = 0.5  # of another image in each
PRINT_EVERY = 200  # steps


def shifted(x: Tensor, rng: torch.Generator) -> Tensor:
    """The whole batch moved by up to 6 pixels, reflected at the edges."""
    top, left = torch.randint(0, 2 * MOST_SHIFT + 1, (2,), generator=rng).tolist()
    height, width = x.shape[-2:]
    padded = F.pad(x, (MOST_SHIFT,) * 4, mode="reflect")
    return padded[:, :, top : top + height, left : left + width]


def zoomed(x: Tensor, rng: torch.Generator) -> Tensor:
    """Each image through a window of its own, 0.6 to 1 of its side."""
    scale = LEAST_ZOOM + (1 - LEAST_ZOOM) * torch.rand(len(x), generator=rng)
    theta = torch.zeros(len(x), 2, 3)
    theta[:, 0, 0] = theta[:, 1, 1] = scale
    # the centre, so far from the middle at most that the window stays inside
    theta[:, :, 2] = (1 - scale)[:, None] * (2 * torch.rand(len(x), 2, generator=rng) - 1)
    grid = F.affine_grid(theta.to(x), list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, mode="bilinear", padding_mode="reflection", align_corners=False)


def train_judge(
    images: np.ndarray, labels: np.ndarray, classes: int, *, count: int, device: str, seed: int = 0
) -> LocalFeatures:
    """From scratch on `count` of the uint8 images (N, 3, H, W), repeats included.

    Images are shifted or zoomed, every third batch has been through half its size, and each image
    carries up to half of another (mixup, arXiv 1710.09412). In bfloat16 where that is the faster.
    Returns the classifier frozen.
    """
    torch.manual_seed(seed)
    rng = torch.Generator().manual_seed(seed + 4)
    judge = LocalFeatures(classes).to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(judge.parameters(), lr=PEAK_RATE, weight_decay=0.05)
    steps, started = max(1, count // BATCH), time.perf_counter()
    bf16 = speed.faster_in_bf16(torch.device(device))
    for step, x, y in batches(images, labels, steps, BATCH, rng, device):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps, PEAK_RATE)
        x = shifted(to_float(x), rng) if step % 2 else zoomed(to_float(x), rng)
        if step % 3 == 2:  # 32 px images are asked about as well
            x = to_float(shrunk(to_uint8(x), IMAGE_SIZE // 2))
        mixed = MOST_MIXED * torch.rand(1, generator=rng).item() ** 2  # squared: mostly small
        x, other = x.lerp(x.roll(1, 0), mixed), y.roll(1, 0)
        with torch.autocast(device, torch.bfloat16, enabled=bf16):
            scores = judge.head(judge.trunk(x)).float()
        loss_own = F.cross_entropy(scores, y, label_smoothing=SMOOTHING)
        loss_other = F.cross_entropy(scores, other, label_smoothing=SMOOTHING)
        loss = (1 - mixed) * loss_own + mixed * loss_other
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % PRINT_EVERY == PRINT_EVERY - 1 or step == steps - 1:
            hits = (scores.argmax(1) == y).float().mean().item()
            rate = (step + 1) * BATCH / (time.perf_counter() - started)
            line = f"judge {step}/{steps} loss {loss.item():.3f} hits {hits:.2f}"
            print(f"{line} {rate:.0f} images/s", flush=True)
    return judge.eval().requires_grad_(False)


@torch.inference_mode()
def top1(judge: LocalFeatures, images: np.ndarray, labels: np.ndarray, device: str) -> float:
    """Fraction of uint8 images (N, 3, H, W) whose class the judge itself names, 0 to 1."""
    scores = judge.head(extract(judge, images, device=device).to(device)).cpu()
    return (scores.argmax(1) == torch.from_numpy(labels.copy())).float().mean().item()


def probe_accuracy(
    net: nn.Module, train: Any, held_out: tuple[Any, np.ndarray], classes: int, device: str
) -> float:
    """Accuracy, 0 to 1, on held-out (images, labels) of a linear probe fitted on the features of
    `train`, a split with labels.
    """
    train_labels = torch.from_numpy(train.labels.copy())
    probe = fit_probe(extract(net, train, device=device), train_labels, classes)
    images, labels = held_out
    return probe.accuracy(extract(net, images, device=device), torch.from_numpy(labels.copy()))


@torch.inference_mode()
def images_per_second(net: nn.Module, size: int, device: str, *, batch: int = 128) -> float:
    """Images of `size` px per second through a feature extractor in float32, the median of five
    batches.
    """
    shape = (batch, 3, size, size)
    images = torch.randint(256, shape, generator=seeded("speed"), dtype=torch.uint8).to(device)
    return batch / speed.median_seconds(lambda: net(images), torch.device(device), repeats=5)


PRINCIPAL_IMAGES = 10_000


@torch.inference_mode()
def fit_projection(net: nn.Module, images: Any, *, device: str) -> dict[str, Tensor]:
    """The first `net.frechet_dim` principal components of a network's features on at most 10,000
    random images (uint8, (N, 3, H, W)): `mean` (d,) and orthonormal `basis` (d, k).
    """
    chosen = torch.randperm(len(images), generator=seeded("projection"))[:PRINCIPAL_IMAGES]
    features = extract(net, images[chosen.numpy()], device=device).double()
    mean = features.mean(0)
    covariance = (features - mean).T @ (features - mean)
    _, vectors = torch.linalg.eigh(covariance)  # from the smallest up
    return {
        "mean": mean.float(),
        "basis": vectors[:, -net.frechet_dim :].flip(1).float().contiguous(),
    }
