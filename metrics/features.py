"""The judge's features: pictures to vectors, between which distances are measured.

`LocalFeatures` is a small classifier trained by `benchmarks/weights.py` on ImageNet pictures of 80
classes and the procedural ones. Distances over it are `FD[local]`; they compare with each other,
never with published FIDs.
"""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

IMAGE_SIZE = 64
WIDTHS = (32, 64, 128, 256)  # at 32, 16, 8 and 4 px
WEIGHTS = Path(__file__).parent / "weights" / "judge.safetensors"


class _Block(nn.Module):
    """Basic residual block (He et al. 2015, arXiv 1512.03385)."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.skip = (
            nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            if stride > 1 or inputs != outputs
            else nn.Identity()
        )

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(h)) + self.skip(x))


class LocalFeatures(nn.Module):
    """uint8 (B, 3, H, W) of any size -> float32 (B, 128), each about unit variance. Resized to 64
    px, bilinear and antialiased.

    A residual network of 0.12 GMACs; the features are a batch-normalised linear map of its pooled
    last layer, and what the classifier it was trained as is linear in.
    """

    dim = 128
    resize = f"bilinear-antialias-{IMAGE_SIZE}"

    def __init__(self, num_classes: int):
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, WIDTHS[0], 3, 2, 1, bias=False), nn.BatchNorm2d(WIDTHS[0]), nn.ReLU()
        )
        pairs = [
            (a, b, stride)
            for a, b in zip(WIDTHS[:1] + WIDTHS, WIDTHS, strict=False)
            for stride in ((2, 1) if a != b else (1,))
        ]
        self.blocks = nn.Sequential(
            *(_Block(a if stride == 2 else b, b, stride) for a, b, stride in pairs)
        )
        self.neck = nn.Sequential(
            nn.Linear(WIDTHS[-1], self.dim, bias=False), nn.BatchNorm1d(self.dim)
        )
        self.head = nn.Linear(self.dim, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.trunk(images.float() / 127.5 - 1)

    def trunk(self, x: Tensor) -> Tensor:
        """Features of pictures in [-1, 1]."""
        if x.shape[-2:] != (IMAGE_SIZE, IMAGE_SIZE):
            x = F.interpolate(
                x,
                size=(IMAGE_SIZE, IMAGE_SIZE),
                mode="bilinear",
                antialias=True,
                align_corners=False,
            )
        x = self.blocks(self.stem(x.to(memory_format=torch.channels_last)))
        return self.neck(x.float().mean(dim=(2, 3))).float()


@torch.inference_mode()
def extract(
    features: nn.Module, images, *, batch: int = 256, device: str | torch.device = "cpu"
) -> Tensor:
    """Features of anything that slices to uint8 (n, 3, H, W) arrays: (N, d) float32 on the CPU, in
    order.

    Always in float32, whatever precision is on around it. The host prepares the next batch while a
    GPU works on this one.
    """
    device, parts = torch.device(device), []
    features = features.to(device)
    with torch.autocast(device.type, enabled=False):
        for start in range(0, len(images), batch):
            chunk = torch.from_numpy(np.ascontiguousarray(images[start : start + batch]))
            if device.type == "cuda":
                chunk = chunk.pin_memory()
            parts.append(features(chunk.to(device, non_blocking=True)).float())
    return torch.cat(parts).cpu()
