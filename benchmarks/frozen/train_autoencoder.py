"""How the shared latent space is made: train the autoencoder, fit a codebook on its latents, and
measure what either loses.
"""

import math
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.core.errors import Diverged
from metrics import speed
from metrics.features import extract
from metrics.kid import kid
from models import codebook
from models.autoencoder import Autoencoder, to_float, to_uint8

CROP = 64  # larger images are trained on in crops of this side
BATCH = 16
PEAK_RATE = 2e-3
FINISHING_RATE = 5e-4  # of the training that follows with the perceptual loss
PERCEPTUAL = 5.0  # weight of that loss; both are logs, so it trades their ratios
FEATURES = 32  # convolutions with at least as many channels on both sides are between feature maps
HALVED = 6  # every sixth batch is of images at half their size
NOISED = 4  # every fourth image's latents get noise,
NOISE = 0.2  # of about the error that 2,048 codebook entries make
LEAST_VECTORS = 100_000  # latent vectors that a codebook is fitted on, and at least
VECTORS_PER_ENTRY = 32  # for each of its entries
VECTORS_PER_IMAGE = 64
MOST_IMAGES = 10_000


def learning_rate(step: int, steps: int, peak: float) -> float:
    """At step 0..steps-1: linear warm-up over 2%, then a cosine to zero."""
    warm = max(1, steps // 50)
    return peak * min(1, (step + 1) / warm) * 0.5 * (1 + math.cos(math.pi * step / steps))


def places(count: int, wanted: int, rng: torch.Generator) -> Tensor:
    """`wanted` indices below `count`: shuffled epoch after shuffled epoch."""
    # whole epochs, so that every image is seen equally often up to one
    epochs = [torch.randperm(count, generator=rng) for _ in range(math.ceil(wanted / count))]
    return torch.cat(epochs)[:wanted]


def batches(
    images: Any, labels: np.ndarray, steps: int, size: int, rng: torch.Generator, device: str
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """`steps` times (step, images, labels) of a shuffled and randomly mirrored batch of `size`.

    `images` is anything that indexes to uint8 (n, 3, H, W) arrays; what comes is uint8 on `device`.
    """
    order = places(len(images), steps * size, rng)
    for step in range(steps):
        at = order[step * size : (step + 1) * size].numpy()
        x = torch.from_numpy(np.ascontiguousarray(images[at])).to(device)
        mirror = torch.rand(size, generator=rng) < 0.5
        x[mirror] = x[mirror].flip(3)
        yield step, x, torch.from_numpy(labels[at]).to(device)


def shrunk(images: Tensor, size: int) -> Tensor:
    """uint8 images (B, 3, H, W), bilinear and antialiased, to (B, 3, size, size)."""
    x = F.interpolate(
        to_float(images), size=(size, size), mode="bilinear", antialias=True, align_corners=False
    )
    return to_uint8(x)


def cropped(images: Tensor, size: int, rng: torch.Generator) -> Tensor:
    """One random window for the whole batch; smaller images stay as they are."""
    height, width = images.shape[-2:]
    top = int(torch.randint(max(1, height - size + 1), (1,), generator=rng))
    left = int(torch.randint(max(1, width - size + 1), (1,), generator=rng))
    return images[..., top : top + size, left : left + size]


def training_target(images: Tensor, step: int, rng: torch.Generator) -> Tensor:
    """What a batch of uint8 images (B, 3, H, W) is to be rebuilt as at a step: a random window, in
    every sixth step at half its size; floats, channels last.
    """
    x = cropped(images, CROP, rng)
    if step % HALVED == HALVED - 1 and x.shape[-1] >= CROP:
        x = shrunk(x, x.shape[-1] // 2)  # a data set may be of 32 px
    return to_float(x).contiguous(memory_format=torch.channels_last)


def reconstruction_loss(out: Tensor, target: Tensor) -> Tensor:
    """Mean over images of log MSE, which is minus PSNR up to a factor.

    So flat images count as much as busy ones. 1e-4 keeps the slope finite where both are equal.
    """
    mse = (out.float() - target).square().mean(dim=(1, 2, 3))
    return (mse + 1e-4).log().mean()


def noised(z: Tensor, rng: torch.Generator) -> Tensor:
    """Noise on every fourth image's latents, relative to their root mean square.

    A decoder that bears noise loses less to a codebook, whose error looks like it.
    """
    noise = torch.zeros(z.shape)
    noise[::NOISED] = torch.randn(noise[::NOISED].shape, generator=rng)
    scale = NOISE * z.float().square().mean().sqrt()
    return (z + scale * noise.to(z.device)).contiguous(memory_format=torch.channels_last)


class Optimizer:
    """Muon (K. Jordan et al. 2024, torch.optim.Muon) for the convolutions between feature maps, as
    matrices; AdamW for all else.
    """

    def __init__(self, model: nn.Module, peak: float):
        convolutions = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
        self.inner = [
            m.weight for m in convolutions if min(m.in_channels, m.out_channels) >= FEATURES
        ]
        # Muon takes matrices only: (outputs, inputs * height * width), copies of the weights
        self.flat = [nn.Parameter(weight.detach().flatten(1).clone()) for weight in self.inner]
        inner = {id(weight) for weight in self.inner}
        rest = [p for p in model.parameters() if id(p) not in inner]
        adamw = torch.optim.AdamW(rest, lr=peak, betas=(0.9, 0.99), weight_decay=1e-3)
        self.optimizers: list[torch.optim.Optimizer] = [adamw]
        if self.flat:
            # updates of AdamW's size, so that one learning rate serves both
            muon = torch.optim.Muon(
                self.flat, lr=peak, weight_decay=0.0, adjust_lr_fn="match_rms_adamw"
            )
            self.optimizers.append(muon)

    def step(self, rate: float) -> None:
        """One update from the parameters' gradients, at this learning rate."""
        for weight, flat in zip(self.inner, self.flat, strict=True):
            flat.grad = weight.grad.flatten(1)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
        with torch.no_grad():
            for weight, flat in zip(self.inner, self.flat, strict=True):
                weight.copy_(flat.view_as(weight))


def train_autoencoder(
    images: Any,
    *,
    count: int,
    device: str,
    seed: int = 0,
    model: nn.Module | None = None,
    peak_rate: float = PEAK_RATE,
    perceptual: nn.Module | None = None,
) -> nn.Module:
    """On `count` images (of anything that indexes to uint8 (n, 3, H, W) arrays), repeats included.

    `model` is a network to go on with; `perceptual(out, target)` a loss that is added. In bfloat16
    where that is faster. Returns the network frozen; nothing checks that its weights are finite.
    """
    torch.manual_seed(seed)
    rng = torch.Generator().manual_seed(seed + 1)
    model = (model or Autoencoder()).to(device, memory_format=torch.channels_last)
    optimizer = Optimizer(model, peak_rate)
    steps, started = max(1, count // BATCH), time.perf_counter()
    no_labels = np.zeros(len(images), np.int64)
    bf16 = speed.faster_in_bf16(torch.device(device))
    for step, x, _ in batches(images, no_labels, steps, BATCH, rng, device):
        target = training_target(x, step, rng)
        with torch.autocast(device, torch.bfloat16, enabled=bf16):
            z = model.encoder(target)
            out = model.decoder(noised(z, rng))
        loss = reconstruction_loss(out, target)
        if perceptual:
            loss = loss + PERCEPTUAL * perceptual(out, target)
        model.zero_grad()
        (loss + scale_loss(z)).backward()
        # a log's slope is steep where images are nearly right, as flat ones soon are
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step(learning_rate(step, steps, peak_rate))
        if step % 200 == 0 or step == steps - 1:
            rate = (step + 1) * BATCH / (time.perf_counter() - started)
            line = f"autoencoder {step}/{steps} loss {loss.item():.3f} {rate:.0f} images/s"
            print(line, flush=True)
    return model.eval().requires_grad_(False)


def scale_loss(z: Tensor) -> Tensor:
    """Keeps the latents' scale, which a reconstruction leaves free, from drifting."""
    return 1e-3 * z.float().square().mean()


@torch.inference_mode()
def latent_vectors(
    model: nn.Module,
    images: Any,
    wanted: int,
    *,
    rng: torch.Generator,
    device: str,
    halved: bool = False,
) -> Tensor:
    """About `wanted` raw latent vectors (n, C), at most 64 of an image, of at most 10,000 random
    images, at half their size or not.
    """
    count = min(MOST_IMAGES, len(images), math.ceil(wanted / VECTORS_PER_IMAGE))
    chosen = torch.randperm(len(images), generator=rng)[:count]
    side = images[:1].shape[-1]
    # as many pixels together as 100 images of 64 px have
    batch = max(1, min(100, 100 * CROP**2 // side**2))
    vectors = []
    for at in chosen.split(batch):
        x = torch.from_numpy(np.ascontiguousarray(images[at.numpy()])).to(device)
        if halved:
            x = shrunk(x, x.shape[-1] // 2)
        z = model.encode(x).flatten(2)
        # the same places of each image of a batch
        positions = torch.randperm(z.shape[2], generator=rng)[:VECTORS_PER_IMAGE].to(device)
        vectors.append(z[:, :, positions].transpose(1, 2).flatten(0, 1))
    return torch.cat(vectors)


def fit_codebook(
    model: nn.Module,
    images: Any,
    size: int,
    *,
    device: str,
    seed: int = 0,
    both_sizes: bool = False,
) -> codebook.Codebook:
    """k-means with `size` entries on 32 latent vectors an entry (100,000 at least); `both_sizes`:
    half of them of images at half size.

    Raises ValueError where the images hold fewer vectors than entries, Diverged where latents are
    not finite.
    """
    rng = torch.Generator().manual_seed(seed + 3)
    wanted = max(LEAST_VECTORS, size * VECTORS_PER_ENTRY)
    halvings = [False, True] if both_sizes else [False]
    vectors = []
    for halved in halvings:
        count = wanted // len(halvings)
        vectors.append(latent_vectors(model, images, count, rng=rng, device=device, halved=halved))
    points = torch.cat(vectors)
    if not points.isfinite().all():
        raise Diverged(
            "the autoencoder's latents of training images are not finite, "
            "so no codebook can be fitted to them"
        )
    return codebook.fit(points, size, rng=rng)


def psnr(a: Tensor, b: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each pair of uint8 images (B, 3, H, W), in dB, (B,)."""
    # the least error keeps equal images finite: they have 78 dB
    mse = (a.float() - b.float()).square().mean(dim=(1, 2, 3)).clamp(min=1e-3)
    return 10 * (255**2 / mse).log10()


@torch.inference_mode()
def round_trip(
    model: nn.Module, book: codebook.Codebook, x: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """uint8 images (B, 3, H, W) through the autoencoder and through the codebook, both uint8 (B, 3,
    H, W), and their tokens (B, h*w).
    """
    # raw latents: a codebook speaks those until it is told how they were whitened
    z = model.encode(x)
    ids = book.tokenize(z)
    return model.decode(z), model.decode(book.detokenize(ids)), ids


def reconstruction_scores(
    model: nn.Module, book: codebook.Codebook, images: Any, device: str, *, batch: int = 100
) -> dict[str, float]:
    """Of images that slice to uint8 (n, 3, H, W): mean PSNR in dB both ways, and how much of the
    codebook they use.
    """
    autoencoder_psnr, codebook_psnr, tokens = [], [], []
    for start in range(0, len(images), batch):
        x = torch.from_numpy(np.ascontiguousarray(images[start : start + batch])).to(device)
        rebuilt, quantised, ids = round_trip(model, book, x)
        autoencoder_psnr.append(psnr(x, rebuilt))
        codebook_psnr.append(psnr(x, quantised))
        tokens.append(ids)
    scores = {
        "psnr": torch.cat(autoencoder_psnr).mean().item(),
        "psnr_codebook": torch.cat(codebook_psnr).mean().item(),
        "codebook_size": book.size,
    }
    return scores | book.statistics(torch.cat(tokens))


@torch.inference_mode()
def reconstruction_kid(
    model: nn.Module,
    net: nn.Module,
    images: np.ndarray,
    device: str,
    book: codebook.Codebook | None = None,
) -> float:
    """KID over the features of `net` between a random half of the images (uint8, (N, 3, H, W)),
    reconstructed, and the other half as they are: what the decoder costs.

    Through the codebook where one is given.
    """
    # at random: every other image of a balanced set may be of every other class
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0)).numpy()
    half, rebuilt = len(images) // 2, []
    for x in torch.from_numpy(np.ascontiguousarray(images[order[:half]])).split(100):
        z = model.encode(x.to(device))
        rebuilt.append(model.decode(z if book is None else book.detokenize(book.tokenize(z))).cpu())
    real = extract(net, images[order[half:]], device=device)
    return kid(real, extract(net, torch.cat(rebuilt).numpy(), device=device)).distance
