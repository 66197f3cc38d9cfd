"""The frozen autoencoder that every family shares: uint8 images <-> continuous latents."""

from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

CHANNELS = 4  # of the latents
FINE, COARSE = 64, 128  # feature channels at half and at a quarter of the images' side


def to_float(images: Tensor) -> Tensor:
    """uint8 (B, 3, H, W) -> float32 in [-1, 1]."""
    return images.float() / 127.5 - 1


def to_uint8(images: Tensor) -> Tensor:
    """Float (B, 3, H, W), clamped to [-1, 1] -> uint8. The one place where images are quantised."""
    return ((images.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def conv(inputs: int, outputs: int) -> nn.Conv2d:
    """3 x 3, of the same size."""
    return nn.Conv2d(inputs, outputs, 3, padding=1)


class Residual(nn.Module):
    """x + conv(relu(conv(relu(x)))) on (B, width, H, W).

    It begins as the identity, so that no normalisation is needed (as in Fixup, arXiv 1901.09321).
    """

    def __init__(self, width: int):
        super().__init__()
        self.first, self.second = conv(width, width), conv(width, width)
        # The branch begins as zero.
        nn.init.zeros_(self.second.weight)
        nn.init.zeros_(self.second.bias)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(F.relu(self.first(F.relu(x))))


class Autoencoder(nn.Module):
    """Convolutional autoencoder: a latent of 4 channels for each 4 x 4 pixels.

    Pixels are folded two by two into channels first and unfolded last (as ESPCN, arXiv 1609.05158).
    Two thirds of the work is at half resolution, the rest on the latents' grid. Trials of this and
    other networks: results/reference/latents/README.md. Works on any size divisible by 4. Trained
    by `python -m benchmarks train-frozen`, and frozen ever after.
    """

    factor = 4  # pixels a latent, along each side
    channels = CHANNELS

    def __init__(self):
        super().__init__()
        # The first layers see 12 channels at half resolution: as many numbers, fewer positions.
        self.encoder = nn.Sequential(
            nn.PixelUnshuffle(2),
            conv(12, FINE),
            *(Residual(FINE) for _ in range(2)),
            nn.Conv2d(FINE, COARSE, 2, stride=2),
            Residual(COARSE),
            nn.ReLU(),
            conv(COARSE, CHANNELS),
        )
        # Deeper than the encoder: what the codes leave out is put back here.
        self.decoder = nn.Sequential(
            conv(CHANNELS, COARSE),
            *(Residual(COARSE) for _ in range(2)),
            nn.Conv2d(COARSE, 4 * FINE, 1),
            nn.PixelShuffle(2),
            *(Residual(FINE) for _ in range(4)),
            nn.ReLU(),
            conv(FINE, 12),
            nn.PixelShuffle(2),
        )

    def encode(self, images: Tensor) -> Tensor:
        """uint8 (B, 3, H, W) -> raw latents (B, 4, H/4, W/4), float32."""
        pixels = to_float(images).to(memory_format=torch.channels_last)
        return self.encoder(pixels).float().contiguous()

    def decode(self, latents: Tensor) -> Tensor:
        """Raw latents (B, 4, h, w) -> uint8 (B, 3, 4h, 4w)."""
        return to_uint8(self.decoder(latents.to(memory_format=torch.channels_last))).contiguous()

    def save(self, path: str | Path) -> None:
        """Write float16 safetensors."""
        state = {k: v.detach().half().contiguous().cpu() for k, v in self.state_dict().items()}
        save_file(state, str(path), metadata={"kind": "latentbench-autoencoder"})
