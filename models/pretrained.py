"""The field's autoencoders as drop-ins: diffusers' AutoencoderKL (sd-vae-ft-mse) and
AutoencoderTiny (taesd).
"""

from pathlib import Path

from diffusers import AutoencoderKL, AutoencoderTiny
from diffusers.utils import logging
from torch import Tensor, nn

from models.autoencoder import to_float, to_uint8

CLASSES = {"AutoencoderKL": AutoencoderKL, "AutoencoderTiny": AutoencoderTiny}


class PretrainedAutoencoder(nn.Module):
    """The contract of `models.autoencoder.Autoencoder` around a diffusers network of the same task.

    Latents are the network's own: `scaling_factor` is left aside, because whitening is measured on
    each data set. Of a KL autoencoder's posterior the mode is taken, so that encoding is
    deterministic.
    """

    def __init__(self, net: AutoencoderKL | AutoencoderTiny):
        super().__init__()
        self.net = net
        blocks = net.config.get("block_out_channels") or net.config["encoder_block_out_channels"]
        self.factor = 2 ** (len(blocks) - 1)
        self.channels = net.config["latent_channels"]

    def encode(self, images: Tensor) -> Tensor:
        """uint8 (B, 3, H, W) -> raw latents (B, C, H/f, W/f), float32."""
        encoded = self.net.encode(to_float(images))
        latents = encoded.latents if hasattr(encoded, "latents") else encoded.latent_dist.mode()
        return latents.float().contiguous()

    def decode(self, latents: Tensor) -> Tensor:
        """Raw latents (B, C, h, w) -> uint8 (B, 3, f h, f w)."""
        return to_uint8(self.net.decode(latents).sample).contiguous()


def load_pretrained(kind: str, folder: str | Path) -> PretrainedAutoencoder:
    """From a folder with config.json and safetensors. Raises ValueError for a folder that does not
    hold a whole `kind`.
    """
    if kind not in CLASSES:
        raise ValueError(f"no such autoencoder; one of {', '.join(CLASSES)}")
    logging.set_verbosity_error()  # its warnings are errors here, and said in one line
    try:
        net, info = CLASSES[kind].from_pretrained(
            folder, use_safetensors=True, local_files_only=True, output_loading_info=True
        )
    except Exception as error:  # diffusers raises many kinds for a damaged folder
        raise ValueError(" ".join(str(error).split())) from None
    wrong = [
        key for name in ("missing_keys", "unexpected_keys", "mismatched_keys") for key in info[name]
    ]
    if wrong:  # diffusers would go on with random weights
        raise ValueError(
            f"its weights are another network's ({len(wrong)} names do not fit, e.g. {wrong[0]})"
        )
    return PretrainedAutoencoder(net.float().eval().requires_grad_(False))
