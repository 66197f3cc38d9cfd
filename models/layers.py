"""Parts of the models written here: attention (`attend`, of every family), rotary positions on a
grid, attention with a cache, gated MLPs, embeddings of times.

The block is Llama's (arXiv 2302.13971): RMSNorm first, no biases, SwiGLU. Positions are rotary in
two dimensions (arXiv 2104.09864, as used on images in arXiv 2406.06525), so that a token knows
where it is whatever the order it comes in.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.decoding import Cache, Places, Window, take

# Pairs of a query and a key up to which attention is written out (see `attend`). Beyond it the
# matrix of scores takes too much memory.
PLAIN = 512**2
# Queries up to which `attend` works in float32 in bf16 on a CPU: for one query and 64 keys 1.5 to
# 2.7 times as fast as torch's kernel in bf16.
FEW = 8
# Grids have tens of tokens a side (arXiv 2403.13298 has 100 too). With Llama's 10,000 most
# frequencies would all but stand still.
ROTARY_BASE = 100.0


def angles_of(places: Tensor, head_dim: int) -> Tensor:
    """Rotary angles (T, head_dim / 2), in radians, of places (T, 2): rows and columns.

    The first half of the frequencies turns with the row, the second with the column. Raises
    ValueError where head_dim is no multiple of 4.
    """
    if head_dim % 4:
        raise ValueError(
            f"width / heads is {head_dim}: two-dimensional rotary positions need a multiple of 4"
        )
    # A quarter of the head's dimensions each: pairs of them turn, and there are two axes.
    omega = ROTARY_BASE ** -(torch.arange(head_dim // 4, dtype=torch.float32) / (head_dim // 4))
    return (places[:, :, None] * omega).flatten(1)


def grid_angles(height: int, columns: int, head_dim: int) -> Tensor:
    """`angles_of` a grid, (1 + height * columns, head_dim / 2).

    Row 0 is the class token's, at (0, 0). The tokens follow in raster order, the first at (1, 1).
    """
    rows, across = torch.arange(1.0, height + 1), torch.arange(1.0, columns + 1)
    y, x = torch.meshgrid(rows, across, indexing="ij")
    places = torch.cat([torch.zeros(1, 2), torch.stack([y.flatten(), x.flatten()], dim=1)])
    return angles_of(places, head_dim)


class Rotation(NamedTuple):
    """What `rotate` multiplies by, each (B or 1, 1, T, head_dim). Made once for all layers."""

    cos: Tensor
    sin: Tensor  # negative in the first half

    def at(self, places: Places) -> "Rotation":
        """The rotation of these of the T places only."""
        return Rotation(take(self.cos, places, 2), take(self.sin, places, 2))


def rotation_of(angles: Tensor) -> Rotation:
    """Of angles (B or 1, T, head_dim / 2), for any number of heads."""
    cos, sin = angles.cos()[:, None], angles.sin()[:, None]
    return Rotation(torch.cat([cos, cos], dim=-1), torch.cat([-sin, sin], dim=-1))


def rotate(x: Tensor, rotation: Rotation) -> Tensor:
    """x (..., B, heads, T, head_dim) with each pair (i, i + head_dim / 2) turned by its angle.

    Halves are paired as in Llama, not neighbours as in the paper.
    """
    # (a cos - b sin, b cos + a sin) of halves a, b: rolled to (b, a), with the minus in `sin`.
    cos, sin = rotation.cos.to(x), rotation.sin.to(x)
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, dims=-1), sin)


def plain_is_faster(x: Tensor, pairs: int) -> bool:
    """Whether attention over so many pairs of a query and a key is faster written out.

    It is in bf16 on a CPU, where torch's fused kernel is slow.
    """
    return x.device.type == "cpu" and torch.is_autocast_enabled("cpu") and pairs <= PLAIN


def attend(
    q: Tensor, k: Tensor, v: Tensor, *, causal: bool = False, seen: Tensor | None = None
) -> Tensor:
    """Attention of q (B, heads, T, d) to k and v (B, heads, T', d) -> (B, heads, T, d).

    `seen` (T, T') bool says which keys (column) a query (row) sees; `causal`: the first T keys in
    order. Give one of them at most.

    torch's own, but for bf16 on a CPU: there it is two batched products around a softmax. Scores
    and weights are rounded to bf16, which the fused kernel does not do, and summed in float32. 16
    images of 256 tokens, 6 heads of 64, forward and backward, on two cores of an AMD EPYC: 11.4 ms
    instead of 32.9; 32 images of 64 tokens, 4 heads of 32: 0.8 instead of 7.3.
    """
    if not plain_is_faster(q, q.shape[2] * k.shape[2]):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=seen, is_causal=causal)
    if q.shape[2] <= FEW and not causal:  # a step of cached sampling
        with torch.autocast("cpu", enabled=False):
            return F.scaled_dot_product_attention(q.float(), k.float(), v.float(), attn_mask=seen)
    # What is not seen gets a score of minus infinity, and so a weight of exactly zero.
    if causal:
        seen = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool).tril()
    if seen is None:
        bias, bias_weight = torch.zeros(1, 1), 0.0
    else:
        bias, bias_weight = torch.zeros(seen.shape).masked_fill(~seen, -math.inf), 1.0
    # Mask and 1 / sqrt(d) are part of the one product: no further pass over the scores.
    scores = torch.baddbmm(
        bias,
        q.flatten(0, 1),
        k.flatten(0, 1).transpose(1, 2),
        beta=bias_weight,
        alpha=q.shape[3] ** -0.5,
    )
    return (scores.softmax(-1) @ v.flatten(0, 1)).unflatten(0, q.shape[:2])


def heads_first(x: Tensor, heads: int) -> Tensor:
    """(B, T, width) -> (B, heads, T, width / heads)."""
    return x.unflatten(2, (heads, -1)).transpose(1, 2)


class SelfAttention(nn.Module):
    """Rotary multi-head self-attention over (B, T, width).

    `causal` is an argument and never taken from the training mode: validation must mask as well.
    """

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)

    def forward(
        self,
        x: Tensor,
        rotation: Rotation,
        *,
        causal: bool,
        cache: Cache | None = None,
        window: Window | None = None,
    ) -> Tensor:
        """With a `cache`, its `window` says where x's own keys go and which keys are looked at."""
        # (3, B, heads, T, head_dim): queries and keys are rotated together.
        qkv = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        (q, k), v = rotate(qkv[:2], rotation), qkv[2]
        if cache is not None and window is not None:
            k, v = cache.extend(k, v, window)
        seen = window.seen if window else None
        return self.out(attend(q, k, v, causal=causal, seen=seen).transpose(1, 2).flatten(2))


class CrossAttention(nn.Module):
    """Rotary queries from (B, T, width) at given keys and values, the keys rotated already."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width, bias=False)
        self.out = nn.Linear(width, width, bias=False)

    def forward(
        self,
        x: Tensor,
        rotation: Rotation,
        keys: Tensor,
        values: Tensor,
        *,
        causal: bool,
        seen: Tensor | None = None,
    ) -> Tensor:
        q = rotate(heads_first(self.query(x), self.heads), rotation)
        attended = attend(q, keys, values, causal=causal, seen=seen)
        return self.out(attended.transpose(1, 2).flatten(2))


class Block(nn.Module):
    """x + attention(norm(x)), then x + SwiGLU(norm(x)), on (B, T, width).

    Further arguments of `forward` are the attention's. `mlp` is the width inside SwiGLU (arXiv
    2002.05202).
    """

    def __init__(self, attention: nn.Module, width: int, mlp: int):
        super().__init__()
        self.norm1, self.attention = nn.RMSNorm(width, eps=1e-6), attention
        self.norm2 = nn.RMSNorm(width, eps=1e-6)
        self.gate_up = nn.Linear(width, 2 * mlp, bias=False)  # both matrices as one product
        self.down = nn.Linear(mlp, width, bias=False)

    def forward(self, x: Tensor, *args: Tensor | Rotation, **kwargs) -> Tensor:
        x = x + self.attention(self.norm1(x), *args, **kwargs)
        gate, up = self.gate_up(self.norm2(x)).chunk(2, dim=2)
        return x + self.down(F.silu(gate) * up)


class TimestepEmbedder(nn.Module):
    """Sine features of t (B,) in [0, 1000], then a two-layer MLP -> (B, width)."""

    def __init__(self, width: int, frequencies: int = 256):
        super().__init__()
        self.frequencies = frequencies
        self.mlp = nn.Sequential(nn.Linear(frequencies, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, t: Tensor) -> Tensor:
        half = self.frequencies // 2  # cosines, then as many sines, as in the released code
        exponents = torch.arange(half, dtype=torch.float32, device=t.device)
        omega = torch.exp(-math.log(10000) * exponents / half)
        angle = t.float()[:, None] * omega
        return self.mlp(torch.cat([angle.cos(), angle.sin()], dim=1))


class Conditions(nn.Module):
    """Adds embeddings of `count` further numbers (B,) in [0, 1000] to another (B, width).

    Their last layers begin at zero: what was not trained with them yet is as it is without.
    """

    def __init__(self, count: int, width: int):
        super().__init__()
        self.embedders = nn.ModuleList(TimestepEmbedder(width) for _ in range(count))
        self.initialise()

    def initialise(self) -> None:
        """Zero the last layers."""
        for embedder in self.embedders:
            nn.init.zeros_(embedder.mlp[2].weight)
            nn.init.zeros_(embedder.mlp[2].bias)

    def forward(self, embedding: Tensor, numbers: Sequence[Tensor]) -> Tensor:
        for embedder, number in zip(self.embedders, numbers, strict=True):
            embedding = embedding + embedder(number)
        return embedding


def initialise(module: nn.Module) -> None:
    """Matrices normal with variance 1 / fan-in, embeddings with standard deviation 0.02.

    Llama's 0.02 for matrices, too, is right for widths in the thousands. At a width of 96 it makes
    every branch begin as next to nothing.
    """
    for layer in module.modules():
        if isinstance(layer, nn.Embedding):
            nn.init.normal_(layer.weight, std=0.02)
        elif isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, std=layer.in_features**-0.5)
