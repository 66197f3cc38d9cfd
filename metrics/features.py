"""Features: images to vectors, between which distances are measured.

A feature extractor is a module that maps uint8 images (B, 3, H, W) to float32 (B, d), with `dim`
and, in words, `resize`. `LocalFeatures` is the shipped one, a small classifier trained by `python
-m benchmarks train-frozen` on ImageNet images of 80 classes and the procedural ones. Distances over
it are `FD[local]`. They compare with each other, never with published FIDs.
"""

from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

IMAGE_SIZE = 64  # that the network sees
WIDTHS = (32, 64, 128, 256)  # at 32, 16, 8 and 4 px
WEIGHTS = Path(__file__).parent / "weights" / "judge.safetensors"


class _Block(nn.Module):
    """Basic residual block (arXiv 1512.03385), (B, inputs, H, W) -> (B, outputs, H/s, W/s)."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.skip: nn.Module = nn.Identity()
        if stride > 1 or inputs != outputs:
            self.skip = nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(h)) + self.skip(x))


class LocalFeatures(nn.Module):
    """uint8 (B, 3, H, W) of any size -> float32 (B, 128), each of about unit variance.

    Resized to 64 px, bilinear and antialiased. A residual network of 0.12 GMACs. The features are a
    batch-normalised linear map of its pooled last layer, and the class scores it was trained by are
    a linear map of them.
    """

    dim = 128
    resize = f"bilinear-antialias-{IMAGE_SIZE}"

    def __init__(self, num_classes: int):
        super().__init__()
        # Half resolution at once: three quarters of the work would be at full resolution.
        self.stem = nn.Sequential(
            nn.Conv2d(3, WIDTHS[0], 3, 2, 1, bias=False), nn.BatchNorm2d(WIDTHS[0]), nn.ReLU()
        )
        # One block at 32 px; then two a level, of which the first halves the resolution.
        blocks = [_Block(WIDTHS[0], WIDTHS[0], 1)]
        for inputs, outputs in pairwise(WIDTHS):
            blocks += [_Block(inputs, outputs, 2), _Block(outputs, outputs, 1)]
        self.blocks = nn.Sequential(*blocks)
        self.neck = nn.Sequential(
            nn.Linear(WIDTHS[-1], self.dim, bias=False), nn.BatchNorm1d(self.dim)
        )
        self.head = nn.Linear(self.dim, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.trunk(images.float() / 127.5 - 1)

    def trunk(self, x: Tensor) -> Tensor:
        """Features (B, 128) of images (B, 3, H, W) in [-1, 1], with gradients."""
        if x.shape[-2:] != (IMAGE_SIZE, IMAGE_SIZE):
            x = F.interpolate(
                x,
                size=(IMAGE_SIZE, IMAGE_SIZE),
                mode="bilinear",
                antialias=True,
                align_corners=False,
            )
        # channels-last convolutions are faster on CPUs and GPUs alike
        x = self.blocks(self.stem(x.to(memory_format=torch.channels_last)))
        return self.neck(x.float().mean(dim=(2, 3))).float()


@torch.inference_mode()
def extract(
    features: nn.Module, images, *, batch: int = 256, device: str | torch.device = "cpu"
) -> Tensor:
    """Features (N, d), float32 on the CPU, of anything that slices to uint8 (n, 3, H, W) arrays.

    Always in float32, whatever precision is on around it. The host prepares the next batch while a
    GPU works on this one.
    """
    device, batches = torch.device(device), []
    features = features.to(device)
    with torch.autocast(device.type, enabled=False):
        for start in range(0, len(images), batch):
            # Contiguous: what is sliced may be memory-mapped, or in an order of its own.
            chunk = torch.from_numpy(np.ascontiguousarray(images[start : start + batch]))
            if device.type == "cuda":
                chunk = chunk.pin_memory()
            batches.append(features(chunk.to(device, non_blocking=True)).float())
    return torch.cat(batches).cpu()


def frechet_features(features: nn.Module, values: Tensor) -> Tensor:
    """Of a network's features (N, d) what its Fréchet distance is taken over, (N, k).

    A network of many dimensions has a `project`, fixed once and for all, to fewer: the covariance
    of d dimensions needs several times d images. Kernel distances and neighbourhoods do not.
    """
    project = getattr(features, "project", None)
    return values if project is None else project(values)
