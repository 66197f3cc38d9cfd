"""Images as they are in the place of latents: an autoencoder that loses and computes nothing."""

import torch.nn.functional as F
from torch import Tensor, nn

from models.autoencoder import to_float, to_uint8


class Pixels(nn.Module):
    """The contract of `models.autoencoder.Autoencoder`: a latent is the numbers of a square patch.

    So a network sees as many places as it does behind an autoencoder of that `factor`, of 3 x
    patch^2 channels each.
    """

    def __init__(self, patch: int):
        super().__init__()
        self.factor, self.channels = patch, 3 * patch**2

    def encode(self, images: Tensor) -> Tensor:
        """uint8 (B, 3, H, W) -> (B, 3 p^2, H/p, W/p), float32 in [-1, 1]."""
        return F.pixel_unshuffle(to_float(images), self.factor).contiguous()

    def decode(self, latents: Tensor) -> Tensor:
        """(B, 3 p^2, h, w) -> uint8 (B, 3, p h, p w)."""
        return to_uint8(F.pixel_shuffle(latents, self.factor)).contiguous()
