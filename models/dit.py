"""The Diffusion Transformer of Peebles & Xie, "Scalable Diffusion Models with Transformers" (arXiv
2212.09748).

Faithful to the paper's released form: patches, fixed 2-D sine positions, one timestep and one label
embedding shared by all blocks, adaLN-Zero conditioning (section 3.2), zero-initialised output. One
exception, in bf16 on a CPU only: `GELU`.
"""

import torch
import torch.nn.functional as F
from torch import LongTensor, Tensor, nn

from models.layers import Conditions, TimestepEmbedder, attend

# width, depth and heads of the paper's models (table 1)
PAPER_SIZES = {"s": (384, 12, 6), "b": (768, 12, 12), "l": (1024, 24, 16), "xl": (1152, 28, 16)}


def sine_positions(width: int, height: int, columns: int) -> Tensor:
    """Fixed 2-D sine-cosine embedding (height * columns, width), in raster order.

    The first half encodes x, the second y. Raises ValueError for a width that is no multiple of 4.
    """
    if width % 4:
        raise ValueError(f"width {width}: sine positions need a multiple of 4")
    # In float64, as the released code's numpy.
    omega = 10000.0 ** -(torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    rows = torch.arange(height, dtype=torch.float64)
    across = torch.arange(columns, dtype=torch.float64)
    y, x = torch.meshgrid(rows, across, indexing="ij")
    angle_x, angle_y = torch.outer(x.flatten(), omega), torch.outer(y.flatten(), omega)
    quarters = [angle_x.sin(), angle_x.cos(), angle_y.sin(), angle_y.cos()]
    return torch.cat(quarters, dim=1).float()


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """adaLN: x (B, T, width) scaled by 1 + `scale` and shifted, per sample: both (B, width)."""
    return torch.addcmul(shift[:, None], x, 1 + scale[:, None])


class GELU(nn.Module):
    """The released code's tanh form of GELU; in bf16 on a CPU the GELU that it approximates.

    There torch's tanh form is 3 to 6 times slower. They differ by 5e-4 at most, at |x| = 2.7. Below
    -2, where either is under 0.05, that is many of bf16's steps.
    """

    def forward(self, x: Tensor) -> Tensor:
        exact_is_faster = x.device.type == "cpu" and x.dtype == torch.bfloat16
        return F.gelu(x, approximate="none" if exact_is_faster else "tanh")


class Attention(nn.Module):
    """Multi-head self-attention over (B, T, width). Raises ValueError for uneven heads."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        if width % heads:
            raise ValueError(f"width {width} is not a multiple of heads {heads}")
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        # (B, T, 3 * width) -> three of (B, heads, T, width / heads)
        q, k, v = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return self.out(attend(q, k, v).transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Attention and MLP, each shifted, scaled and gated by the conditioning.

    adaLN-Zero (figure 3): gates begin at zero, so that a new block is the identity.
    """

    def __init__(self, width: int, heads: int):
        super().__init__()
        # Scale and shift come from the conditioning, so the norms have none of their own.
        self.norm1 = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.attention = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), GELU(), nn.Linear(4 * width, width))
        self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """x (B, T, width), conditioned on c (B, width)."""
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(c).chunk(6, dim=1)
        x = x + gate1[:, None] * self.attention(modulate(self.norm1(x), shift1, scale1))
        return x + gate2[:, None] * self.mlp(modulate(self.norm2(x), shift2, scale2))


class DiT(nn.Module):
    """Denoiser: latents (B, C, H, W), t (B,) in [0, 1000], labels (B,) -> (B, out_channels, H, W).

    Label `num_classes` is the null label. `out_channels` is C by default; the paper's own models
    also predict a variance and have 2 C. With a `bottleneck` a patch enters through so many numbers
    (JiT, arXiv 2511.13720). `conditions` further numbers (B,) follow the labels, each
    in [0, 1000]; untrained they change nothing. Raises ValueError where the patch does not tile the
    latents.
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
        patch: int = 1,
        out_channels: int | None = None,
        bottleneck: int | None = None,
        conditions: int = 0,
    ):
        super().__init__()
        channels, height, columns = latent_shape
        if height % patch or columns % patch:
            grid = f"{height}x{columns}"
            raise ValueError(f"model.denoiser.patch={patch} does not tile latents of {grid}")
        self.patch, self.grid = patch, (height // patch, columns // patch)
        self.out_channels = out_channels or channels
        self.patches = nn.Conv2d(channels, bottleneck or width, patch, patch)
        self.widen = nn.Conv2d(bottleneck, width, 1) if bottleneck else nn.Identity()
        # Not saved: they are a function of the shape.
        self.register_buffer("positions", sine_positions(width, *self.grid), persistent=False)
        self.timesteps = TimestepEmbedder(width)
        self.labels = nn.Embedding(num_classes + 1, width)  # the last is the null label's
        self.conditions = Conditions(conditions, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))
        self.out = nn.Linear(width, patch * patch * self.out_channels)
        self._initialise()

    def _initialise(self) -> None:
        """As the released code: Xavier's uniform for matrices, with the zeros of adaLN-Zero."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        # The convolutions over patches as the matrices that they are.
        for layer in (self.patches, self.widen):
            if isinstance(layer, nn.Conv2d):
                nn.init.xavier_uniform_(layer.weight.view(layer.weight.shape[0], -1))
                nn.init.zeros_(layer.bias)
        for embedding in (self.labels, self.timesteps.mlp[0], self.timesteps.mlp[2]):
            nn.init.normal_(embedding.weight, std=0.02)
        modulations = [block.modulation[1] for block in self.blocks]
        for layer in (*modulations, self.modulation[1], self.out):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        self.conditions.initialise()

    def embed(self, x: Tensor) -> Tensor:
        """Patches (B, T, width) of x (B, C, H, W), with their positions."""
        # Contiguous, or every norm behind would copy.
        return self.widen(self.patches(x)).flatten(2).transpose(1, 2).contiguous() + self.positions

    def forward(self, x: Tensor, t: Tensor, labels: LongTensor, *conditions: Tensor) -> Tensor:
        x = self.embed(x)
        c = self.timesteps(t) + self.conditions(
            self.labels(labels), conditions
        )  # (B, width), the same for all blocks
        for block in self.blocks:
            x = block(x, c)
        # The last layer: adaLN without a gate, then tokens back to patches.
        shift, scale = self.modulation(c).chunk(2, dim=1)
        x = self.out(modulate(self.norm(x), shift, scale))
        return F.pixel_shuffle(self._channels_first(x), self.patch)

    def _channels_first(self, x: Tensor) -> Tensor:
        """(B, T, p*p*C) -> (B, C*p*p, H/p, W/p).

        The released code orders a patch's numbers (row, column, channel), `pixel_shuffle` (channel,
        row, column).
        """
        x = x.unflatten(2, (self.patch * self.patch, self.out_channels)).transpose(2, 3).flatten(2)
        return x.transpose(1, 2).unflatten(2, self.grid)
