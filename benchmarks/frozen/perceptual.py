"""What a reconstruction loses in the eyes of a network that measures nothing in this suite."""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metrics import speed
from metrics.efficientnet import EfficientNetLite

SIDE = 96  # px that images are shown at: more is slower, fewer leaves little to see


class PerceptualLoss(nn.Module):
    """Distance of images in the feature maps of EfficientNet-Lite1 (as arXiv 1801.03924, without
    its fitted weights).

    EfficientNet-Lite1 and not Lite0, which measures samples: an autoencoder must not be trained to
    please what it is measured by. The two share their data and their design, so the gain on Lite0
    overstates the gain on a network of another kind.
    """

    def __init__(self, weights: str | Path):
        super().__init__()
        self.net = EfficientNetLite("lite1", weights)

    def forward(self, out: Tensor, target: Tensor) -> Tensor:
        """Mean over images of the log of the distance, of images (B, 3, H, W) in [-1, 1].

        A log, as in the loss that it is added to: its weight does not depend on its scale.
        """
        with torch.no_grad():
            wanted = self.maps(target)
        distances = [
            (unit(a) - unit(b)).square().sum(1).mean((1, 2))
            for a, b in zip(self.maps(out), wanted, strict=True)
        ]
        # 1e-3 keeps the slope finite where both are equal
        return (torch.stack(distances).sum(0) + 1e-3).log().mean()

    def maps(self, images: Tensor) -> list[Tensor]:
        """The network's feature maps, one for each size."""
        size = (SIDE, SIDE)
        x = F.interpolate(images.float(), size=size, mode="bilinear", align_corners=False)
        bf16 = speed.faster_in_bf16(x.device)
        with torch.autocast(x.device.type, torch.bfloat16, enabled=bf16):
            return self.net.maps(x * 127.5 / 128 + 0.5 / 128)  # (pixels - 127) / 128


def unit(features: Tensor) -> Tensor:
    """Feature vectors (B, C, h, w), each of length 1."""
    features = features.float()
    return features / (features.square().sum(1, keepdim=True) + 1e-6).sqrt()
