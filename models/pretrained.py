"""The field's autoencoders in place of our own: diffusers' AutoencoderKL (sd-vae-ft-mse) and
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

    `factor` pixels a latent along each side, `channels` a latent. Latents are the network's own:
    `scaling_factor` is left aside, because whitening is measured on each data set. Of a KL
    autoencoder's posterior the mode is taken, so that encoding is deterministic.
    """

    def __init__(self, net: AutoencoderKL | AutoencoderTiny):
        super().__init__()
        self.net = net
        # Every level but the last halves the resolution.
        levels = net.config.get("block_out_channels") or net.config["encoder_block_out_channels"]
        self.factor = 2 ** (len(levels) - 1)
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
    """A frozen autoencoder from a folder with config.json and safetensors.

    `kind` names one of CLASSES. Raises ValueError for another name, and for a folder that does not
    hold a whole network of that kind.
    """
    if kind not in CLASSES:
        raise ValueError(f"no such autoencoder; one of {', '.join(CLASSES)}")
    logging.set_verbosity_error()  # what it would warn of is an error below
    try:
        net, info = CLASSES[kind].from_pretrained(
            folder, use_safetensors=True, local_files_only=True, output_loading_info=True
        )
    except Exception as error:  # diffusers raises many kinds for a damaged folder
        raise ValueError(" ".join(str(error).split())) from None
    # diffusers would go on with random weights for these.
    misfits = [*info["missing_keys"], *info["unexpected_keys"], *info["mismatched_keys"]]
    if misfits:
        count, example = len(misfits), misfits[0]
        raise ValueError(
            f"its weights are another network's ({count} names do not fit, e.g. {example})"
        )
    return PretrainedAutoencoder(net.float().eval().requires_grad_(False))
