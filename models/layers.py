"""Parts of the token models written here: rotary positions on a grid, attention with a cache, gated MLPs.

The block is Llama's (arXiv 2302.13971): RMSNorm first, no biases, SwiGLU. Positions are rotary in two dimensions (arXiv 2104.09864,
as used on images in arXiv 2406.06525), so that a token says where it is whatever the order it comes in.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ROTARY_BASE = 100.0  # for grids of tens of tokens a side (arXiv 2403.13298), where 10,000 leaves most frequencies all but still


def grid_angles(height: int, columns: int, head_dim: int) -> Tensor:
    """Angles (1 + height * columns, head_dim / 2): row 0 is the class token's, at (0, 0); tokens stand at (1.., 1..) in raster order.

    The first half of the frequencies turns with the row, the second with the column. Raises ValueError where they do not halve.
    """
    if head_dim % 4:
        raise ValueError(f"width / heads is {head_dim}: two-dimensional rotary positions need a multiple of 4")
    omega = ROTARY_BASE ** -(torch.arange(head_dim // 4, dtype=torch.float32) / (head_dim // 4))
    y, x = torch.meshgrid(torch.arange(1.0, height + 1), torch.arange(1.0, columns + 1), indexing="ij")
    places = torch.cat([torch.zeros(1, 2), torch.stack([y.flatten(), x.flatten()], dim=1)])
    return (places[:, :, None] * omega).flatten(1)


def rotate(x: Tensor, angles: Tensor) -> Tensor:
    """x (B, heads, T, head_dim) turned by angles (B or 1, T, head_dim / 2), pair by pair."""
    cos, sin = angles.cos()[:, None].to(x), angles.sin()[:, None].to(x)
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1)


class Cache:
    """Keys and values of one attention layer, room for `length` of them, filled block by block."""

    def __init__(self, length: int):
        self.length, self.filled = length, 0
        self.keys: Tensor | None = None
        self.values: Tensor | None = None

    def extend(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Append (B, heads, t, head_dim) and return all so far."""
        if self.keys is None or self.values is None:
            shape = (*keys.shape[:2], self.length, keys.shape[3])
            self.keys, self.values = keys.new_empty(shape), values.new_empty(shape)
        start, self.filled = self.filled, self.filled + keys.shape[2]
        self.keys[:, :, start : self.filled] = keys
        self.values[:, :, start : self.filled] = values
        return self.keys[:, :, : self.filled], self.values[:, :, : self.filled]


def heads_first(x: Tensor, heads: int) -> Tensor:
    """(B, T, d) -> (B, heads, T, d / heads)."""
    return x.unflatten(2, (heads, -1)).transpose(1, 2)


class SelfAttention(nn.Module):
    """Rotary multi-head self-attention over (B, T, d). `causal` is an argument and never read off the training mode."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor, angles: Tensor, *, causal: bool, cache: Cache | None = None) -> Tensor:
        q, k, v = (heads_first(part, self.heads) for part in self.qkv(x).chunk(3, dim=2))
        q, k = rotate(q, angles), rotate(k, angles)
        if cache is not None:
            k, v = cache.extend(k, v)
        return self.out(F.scaled_dot_product_attention(q, k, v, is_causal=causal).transpose(1, 2).flatten(2))


class CrossAttention(nn.Module):
    """Rotary queries from (B, T, d) at keys and values that are given, already turned."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width, bias=False)
        self.out = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor, angles: Tensor, keys: Tensor, values: Tensor, *, causal: bool) -> Tensor:
        q = rotate(heads_first(self.query(x), self.heads), angles)
        return self.out(F.scaled_dot_product_attention(q, keys, values, is_causal=causal).transpose(1, 2).flatten(2))


class Block(nn.Module):
    """x + attention(norm(x)), then x + SwiGLU(norm(x)); the attention's further arguments are passed on."""

    def __init__(self, attention: nn.Module, width: int, mlp: int):
        super().__init__()
        self.norm1, self.attention = nn.RMSNorm(width, eps=1e-6), attention
        self.norm2 = nn.RMSNorm(width, eps=1e-6)
        self.gate_up = nn.Linear(width, 2 * mlp, bias=False)
        self.down = nn.Linear(mlp, width, bias=False)

    def forward(self, x: Tensor, *args: Tensor, **kwargs) -> Tensor:
        x = x + self.attention(self.norm1(x), *args, **kwargs)
        gate, up = self.gate_up(self.norm2(x)).chunk(2, dim=2)
        return x + self.down(F.silu(gate) * up)


def initialise(module: nn.Module) -> None:
    """Matrices normal with variance 1 / fan-in, embeddings with standard deviation 0.02.

    Llama's 0.02 for matrices, too, is right for widths in the thousands; at a width of 96 it makes every branch begin as next to nothing.
    """
    for part in module.modules():
        if isinstance(part, nn.Linear | nn.Embedding):
            nn.init.normal_(part.weight, std=0.02 if isinstance(part, nn.Embedding) else part.in_features**-0.5)
