"""The U-Net denoiser: `diffusers.UNet2DModel` with a class embedding, attention at the lower
resolutions or nowhere.
"""

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import UNet2DModel
from diffusers.models.attention_processor import Attention, AttnProcessor, AttnProcessor2_0
from torch import LongTensor, Tensor, nn

from models.layers import Conditions, plain_is_faster


class QuickAttention:
    """diffusers' plain attention where it is faster than its fused one; contiguous (NCHW) output.

    diffusers leaves channels-last strides, which spread to every later convolution, and torch then
    reorders their weights and gradients.
    """

    def __init__(self) -> None:
        self.plain, self.fused = AttnProcessor(), AttnProcessor2_0()

    def attend(
        self,
        attention: Attention,
        x: Tensor,
        encoder_hidden_states: Any = None,
        attention_mask: Any = None,
        temb: Any = None,
    ) -> Tensor:
        """The output (B, C, H, W) with the strides that diffusers leaves."""
        pairs = x[0, 0].numel() ** 2
        processor = self.plain if plain_is_faster(x, pairs) else self.fused
        return processor(attention, x, encoder_hidden_states, attention_mask, temb)

    def __call__(
        self,
        attention: Attention,
        x: Tensor,
        encoder_hidden_states: Any = None,
        attention_mask: Any = None,
        temb: Any = None,
    ) -> Tensor:
        """Self-attention of x (B, C, H, W). diffusers asks for arguments of these names."""
        # On CUDA cuDNN's convolutions want channels-last anyway.
        attended = self.attend(attention, x, encoder_hidden_states, attention_mask, temb)
        return attended if x.is_cuda else attended.contiguous()


def _attend_quickly(net: UNet2DModel) -> None:
    """Our choice of attention in each of its layers."""
    for module in net.modules():
        if isinstance(module, Attention):
            module.set_processor(QuickAttention())


class ConditionedLabels(nn.Module):
    """In the place of diffusers' embedding of labels: further numbers are added to it.

    It takes labels (B,) and numbers (B,) each as one tuple, which diffusers passes on as it is.
    """

    def __init__(self, labels: nn.Embedding, count: int):
        super().__init__()
        self.labels, self.conditions = labels, Conditions(count, labels.embedding_dim)

    def forward(self, inputs: tuple[Tensor, ...]) -> Tensor:
        labels, *numbers = inputs
        return self.conditions(self.labels(labels), numbers)


def _check_halving(height: int, width: int, levels: int) -> None:
    """Raise ValueError where a U-Net of so many levels cannot halve latents of this size."""
    factor = 2 ** (levels - 1)  # all but the lowest level halve
    if height % factor or width % factor:
        raise ValueError(
            f"a U-Net of {levels} levels halves {levels - 1} times: {height}x{width} latents cannot"
        )


class UNet(nn.Module):
    """Denoiser: latents (B, C, H, W), t (B,) in [0, 1000], labels (B,) -> (B, C, H, W).

    `channels` per resolution, highest first, each level halving H and W. Levels from
    `attention_from` on have attention, whose cost is the square of their pixels, and the middle
    has; with None there is none at all. Label `num_classes` is the null label. Scale-shift
    conditioning and a zero-initialised output follow ADM (arXiv 2105.05233). `conditions` further
    numbers (B,) follow the labels, each in [0, 1000]; untrained they change nothing. Raises
    ValueError where the latents cannot be halved that often.
    """

    bf16_safe = True  # bf16 weights give what autocast gives
    channels_last = True  # the convolutions' memory format on CUDA, as cuDNN wants it

    def __init__(
        self,
        latent_shape: tuple[int, int, int],
        num_classes: int,
        *,
        channels: Sequence[int],
        layers: int,
        attention_from: int | None = 1,
        head_dim: int = 32,
        groups: int = 32,
        conditions: int = 0,
    ):
        super().__init__()
        latent_channels, height, width = latent_shape
        levels = len(channels)
        _check_halving(height, width, levels)
        plain = levels if attention_from is None else attention_from
        down = ["DownBlock2D" if n < plain else "AttnDownBlock2D" for n in range(levels)]
        up = ["UpBlock2D" if n < plain else "AttnUpBlock2D" for n in range(levels)]
        self.net = UNet2DModel(
            sample_size=height,
            in_channels=latent_channels,
            out_channels=latent_channels,
            num_class_embeds=num_classes + 1,  # the last is the null label's
            block_out_channels=tuple(channels),
            layers_per_block=layers,
            down_block_types=tuple(down),
            up_block_types=tuple(reversed(up)),
            add_attention=attention_from is not None,  # in the middle
            attention_head_dim=head_dim,
            norm_num_groups=groups,
            resnet_time_scale_shift="scale_shift",
            freq_shift=0,  # of the timestep's sines, as in ADM
        )
        if conditions:
            self.net.class_embedding = ConditionedLabels(self.net.class_embedding, conditions)
        _attend_quickly(self.net)
        # A zero-initialised output, which diffusers leaves to the user (arXiv 2105.05233's code).
        nn.init.zeros_(self.net.conv_out.weight)
        nn.init.zeros_(self.net.conv_out.bias)

    def layout(self, x: Tensor) -> Tensor:
        """Channels-last on CUDA, where what it gains has not been measured; a CPU gains nothing."""
        return x.contiguous(memory_format=torch.channels_last) if x.is_cuda else x

    def forward(self, x: Tensor, t: Tensor, labels: LongTensor, *conditions: Tensor) -> Tensor:
        named = (labels, *conditions) if conditions else labels
        # Contiguous: the samplers' arithmetic goes on in NCHW.
        return self.net(self.layout(x), t, class_labels=named).sample.contiguous()
