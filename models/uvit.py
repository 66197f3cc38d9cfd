"""The U-ViT of Bao et al., "All are Worth Words" (arXiv 2209.12152): a transformer with the long
skips of a U-Net.

Time, label and patches are all tokens. The blocks of the first half hand what they made to those of
the second, the last to the first, as a U-Net's levels do. There is no adaLN, positions are learned,
and norms have weights: what the skips alone are worth is told by the same network without them.

Positions begin as DiT's sines, and matrices by their shape, as those of DiT's blocks. In the
released code both are normal, 0.02, for widths of 512 and more. Here, at a width of 128, one brief
training each (size xs, 7.4e12 FLOPs) ended at a loss of 1.00 with both as released, at 0.90 with
the positions changed, and at 0.83 as it is now.
"""

import torch
import torch.nn.functional as F
from torch import LongTensor, Tensor, nn

from models.dit import GELU, Attention, sine_positions
from models.layers import Conditions, TimestepEmbedder


class Block(nn.Module):
    """Attention and MLP, each after a norm, on (B, T, width). Where it `skips`, a matrix joins
    what an earlier block made first.
    """

    def __init__(self, width: int, heads: int, mlp: int, *, skips: bool):
        super().__init__()
        self.skip = nn.Linear(2 * width, width) if skips else None
        self.norm1, self.attention = nn.LayerNorm(width), Attention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, mlp), GELU(), nn.Linear(mlp, width))

    def forward(self, x: Tensor, earlier: Tensor | None = None) -> Tensor:
        if self.skip is not None:
            x = self.skip(torch.cat([x, earlier], dim=-1))
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class UViT(nn.Module):
    """Denoiser: latents (B, C, H, W), t (B,) in [0, 1000], labels (B,) -> (B, C, H, W).

    Label `num_classes` is the null label. `mlp` is the width inside the MLPs. With `skips` `depth`
    is odd and 3 or more: a block in the middle, and as many with skips behind it as before. Without
    them the blocks are all alike, and any number will do. `conditions` further numbers (B,) follow
    the labels, each in [0, 1000]; untrained they change nothing. Raises ValueError for another
    depth, and where the patch does not tile the latents.
    """

    bf16_safe = True  # bf16 weights give what autocast gives

    def __init__(
        self,
        latent_shape: tuple[int, int, int],
        num_classes: int,
        *,
        width: int,
        depth: int,
        heads: int,
        mlp: int,
        skips: bool = True,
        patch: int = 1,
        conditions: int = 0,
    ):
        super().__init__()
        channels, height, columns = latent_shape
        if skips and (depth < 3 or depth % 2 == 0):
            reason = "an odd number from 3 up, or skips have no partner; or skips=false"
            raise ValueError(f"model.denoiser.depth={depth}: {reason}")
        if height % patch or columns % patch:
            grid = f"{height}x{columns}"
            raise ValueError(f"model.denoiser.patch={patch} does not tile latents of {grid}")
        self.patch, self.grid = patch, (height // patch, columns // patch)
        self.patches = nn.Conv2d(channels, width, patch, patch)
        self.timesteps = TimestepEmbedder(width)
        self.labels = nn.Embedding(num_classes + 1, width)  # the last is the null label's
        self.conditions = Conditions(conditions, width)
        # of time, label and patches
        self.positions = nn.Parameter(torch.zeros(2 + self.grid[0] * self.grid[1], width))
        self.first = nn.ModuleList(
            Block(width, heads, mlp, skips=False) for _ in range(depth // 2 + 1)
        )
        later = (Block(width, heads, mlp, skips=skips) for _ in range(depth - len(self.first)))
        self.second = nn.ModuleList(later)
        self.norm = nn.LayerNorm(width)
        self.out = nn.Linear(width, patch * patch * channels)
        self.smooth = nn.Conv2d(channels, channels, 3, padding=1)  # over the borders of patches
        self._initialise()

    def _initialise(self) -> None:
        """Xavier's for matrices, normal with 0.02 for tables, and a zero output."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        for table in (self.labels.weight, self.positions):
            nn.init.trunc_normal_(table, std=0.02)
        with torch.no_grad():
            self.positions[2:] = sine_positions(self.positions.shape[1], *self.grid)
        self.conditions.initialise()
        nn.init.zeros_(self.smooth.weight)
        nn.init.zeros_(self.smooth.bias)

    def forward(self, x: Tensor, t: Tensor, labels: LongTensor, *conditions: Tensor) -> Tensor:
        patches = self.patches(x).flatten(2).transpose(1, 2)
        time, label = self.timesteps(t), self.conditions(self.labels(labels), conditions)
        x = torch.cat([time[:, None], label[:, None], patches], dim=1) + self.positions
        made = []
        for block in self.first:
            x = block(x)
            made.append(x)
        made.pop()  # the middle block's own
        for block in self.second:
            x = block(x, made.pop())
        x = self.out(self.norm(x[:, 2:]))  # (B, T, C*p*p)
        x = F.pixel_shuffle(x.transpose(1, 2).unflatten(2, self.grid), self.patch)
        return self.smooth(x)
