"""The U-Net denoiser: `diffusers.UNet2DModel` with a class embedding, attention at the lower
resolutions.
"""

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import UNet2DModel
from diffusers.models.attention_processor import Attention, AttnProcessor, AttnProcessor2_0
from torch import LongTensor, Tensor, nn

from models.layers import plainly


class QuickAttention:
    """diffusers' plain attention where that is faster than its fused one; contiguous (NCHW)
    pictures come out.

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
    ):
        """As diffusers leaves it."""
        how = self.plain if plainly(x, x[0, 0].numel() ** 2) else self.fused
        return how(attention, x, encoder_hidden_states, attention_mask, temb)

    def __call__(
        self,
        attention: Attention,
        x: Tensor,
        encoder_hidden_states: Any = None,
        attention_mask: Any = None,
        temb: Any = None,
    ):
        """`x` (B, C, H, W) looks at itself; the names are diffusers', which looks them up."""
        seen = self.attend(attention, x, encoder_hidden_states, attention_mask, temb)
        return seen if x.is_cuda else seen.contiguous()


class UNet(nn.Module):
    """Denoiser: latents (B, C, H, W), t (B,) in [0, 1000], labels (B,) -> (B, C, H, W).

    `channels` per resolution, highest first, each level halving H and W; levels from
    `attention_from` on have attention. Scale-shift conditioning and a zero-initialised output
    follow ADM (arXiv 2105.05233). Raises ValueError where the latents cannot be halved that often.
    """

    bf16_safe = True  # bf16 weights give what autocast gives
    channels_last = True  # on CUDA: `benchmarks.build.place`

    def __init__(
        self,
        latent_shape: tuple[int, int, int],
        num_classes: int,
        *,
        channels: Sequence[int],
        layers: int,
        attention_from: int = 1,
        head_dim: int = 32,
        groups: int = 32,
    ):
        super().__init__()
        depth, factor = len(channels), 2 ** (len(channels) - 1)
        if latent_shape[1] % factor or latent_shape[2] % factor:
            raise ValueError(
                f"a U-Net of {depth} levels halves {depth - 1} times: {latent_shape[1]}x{latent_shape[2]} latents cannot"
            )
        attends = [level >= attention_from for level in range(depth)]
        self.net = UNet2DModel(
            sample_size=latent_shape[1],
            in_channels=latent_shape[0],
            out_channels=latent_shape[0],
            num_class_embeds=num_classes + 1,
            block_out_channels=tuple(channels),
            layers_per_block=layers,
            down_block_types=tuple("AttnDownBlock2D" if a else "DownBlock2D" for a in attends),
            up_block_types=tuple("AttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attends)),
            attention_head_dim=head_dim,
            norm_num_groups=groups,
            resnet_time_scale_shift="scale_shift",
            freq_shift=0,
        )
        for part in self.net.modules():
            if isinstance(part, Attention):
                part.set_processor(QuickAttention())
        nn.init.zeros_(self.net.conv_out.weight)
        nn.init.zeros_(self.net.conv_out.bias)

    def layout(self, x: Tensor) -> Tensor:
        """Channels-last on CUDA (not measured); on a CPU it gains nothing."""
        return x.contiguous(memory_format=torch.channels_last) if x.is_cuda else x

    def forward(self, x: Tensor, t: Tensor, labels: LongTensor) -> Tensor:
        return self.net(self.layout(x), t, class_labels=labels).sample.contiguous()
