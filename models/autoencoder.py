"""The frozen autoencoder that every family shares: uint8 pictures <-> continuous latents."""

from pathlib import Path

import torch
from diffusers import AutoencoderTiny
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

# 4x downsampling, no norms and no attention: 370 GFLOP/s in bf16 on two cores, where AutoencoderKL reached 200.
ARCHITECTURE = dict(
    encoder_block_out_channels=(64, 64, 64),
    decoder_block_out_channels=(64, 64, 64),
    num_encoder_blocks=(0, 1, 4),
    num_decoder_blocks=(4, 2, 0),
    latent_channels=4,
    upsampling_scaling_factor=2,
)


def to_float(images: Tensor) -> Tensor:
    """uint8 (B, 3, H, W) -> float32 in [-1, 1]."""
    return images.float() / 127.5 - 1


def to_uint8(images: Tensor) -> Tensor:
    """Float in [-1, 1] -> uint8, the one place where pictures are quantised: clamp, scale, round."""
    return ((images.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


class Autoencoder(nn.Module):
    """Convolutional autoencoder, `factor` = 4 pixels a latent, `channels` = 4.

    Works on any size divisible by 4. Trained by `benchmarks/weights.py`; frozen ever after.
    """

    factor = 4
    channels = 4

    def __init__(self):
        super().__init__()
        self.net = AutoencoderTiny(**ARCHITECTURE)

    def latent_shape(self, image_size: int) -> tuple[int, int, int]:
        """(C, H, W) of the latents of square pictures. Raises ValueError for a size that is no multiple of `factor`."""
        if image_size < 16 or image_size % self.factor:
            raise ValueError(f"data.image_size={image_size}: the autoencoder takes multiples of {self.factor} from 16 px up")
        return self.channels, image_size // self.factor, image_size // self.factor

    def encode(self, images: Tensor) -> Tensor:
        """uint8 (B, 3, H, W) -> raw latents (B, 4, H/4, W/4), float32."""
        return self.net.encoder(to_float(images).to(memory_format=torch.channels_last)).float().contiguous()

    def decode(self, latents: Tensor) -> Tensor:
        """Raw latents (B, 4, h, w) -> uint8 (B, 3, 4h, 4w)."""
        return to_uint8(self.net.decoder(latents.to(memory_format=torch.channels_last))).contiguous()

    def save(self, path: str | Path) -> None:
        """Write float16 safetensors."""
        state = {k: v.detach().half().contiguous().cpu() for k, v in self.state_dict().items()}
        save_file(state, str(path), metadata={"kind": "latentbench-autoencoder"})


def load_weights(module: nn.Module, path: str | Path, what: str) -> nn.Module:
    """Fill `module` from a safetensors file and freeze it. Raises ValueError, in one line, for a file that does not fit."""
    try:
        state = load_file(str(path))
        module.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in state.items()})
    except FileNotFoundError:
        raise ValueError(f"{what}: no file {path}; `make weights WEIGHTS_DATA=<folder>` writes it") from None
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{what}: {path} is not a whole safetensors file ({error})") from None
    except RuntimeError:
        raise ValueError(f"{what}: {path} holds another network's weights") from None
    return module.eval().requires_grad_(False)
