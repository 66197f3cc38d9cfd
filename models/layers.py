"""Parts of the models written here: attention (`attend`, of every family), rotary positions on a
grid, attention with a cache, gated MLPs.

The block is Llama's (arXiv 2302.13971): RMSNorm first, no biases, SwiGLU. Positions are rotary in
two dimensions (arXiv 2104.09864, as used on images in arXiv 2406.06525), so that a token says where
it is whatever the order it comes in.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.decoding import Cache, Places, Window, take

PLAIN = (
    512**2
)  # of pairs of a query and a key, up to which `attend` takes the plain way; beyond it the scores take much memory
FEW = 8  # queries, up to which `attend` on a CPU works in float32: for one, at 64 keys, 1.5 to 2.7 times as fast as torch's kernel in bf16
ROTARY_BASE = 100.0  # for grids of tens of tokens a side (arXiv 2403.13298), where 10,000 leaves most frequencies all but still


def grid_angles(height: int, columns: int, head_dim: int) -> Tensor:
    """Angles (1 + height * columns, head_dim / 2): row 0 is the class token's, at (0, 0); tokens
    stand at (1.., 1..) in raster order.

    The first half of the frequencies turns with the row, the second with the column. Raises
    ValueError where they do not halve.
    """
    if head_dim % 4:
        raise ValueError(
            f"width / heads is {head_dim}: two-dimensional rotary positions need a multiple of 4"
        )
    omega = ROTARY_BASE ** -(torch.arange(head_dim // 4, dtype=torch.float32) / (head_dim // 4))
    y, x = torch.meshgrid(
        torch.arange(1.0, height + 1), torch.arange(1.0, columns + 1), indexing="ij"
    )
    places = torch.cat([torch.zeros(1, 2), torch.stack([y.flatten(), x.flatten()], dim=1)])
    return (places[:, :, None] * omega).flatten(1)


class Turn(NamedTuple):
    """What `rotate` multiplies by, (B or 1, 1, T, head_dim) each: computed once for all layers."""

    cos: Tensor
    sin: Tensor  # negative in the first half

    def at(self, places: Places) -> "Turn":
        """Of these T only."""
        return Turn(take(self.cos, places, 2), take(self.sin, places, 2))


def turns(angles: Tensor) -> Turn:
    """Of angles (B or 1, T, head_dim / 2)."""
    cos, sin = angles.cos()[:, None], angles.sin()[:, None]
    return Turn(torch.cat([cos, cos], dim=-1), torch.cat([-sin, sin], dim=-1))


def rotate(x: Tensor, turn: Turn) -> Tensor:
    """x (..., B, heads, T, head_dim), of each pair (i, i + head_dim / 2) turned by its angle, as
    Llama does.
    """
    cos, sin = turn.cos.to(x), turn.sin.to(x)
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, dims=-1), sin)


def plainly(x: Tensor, pairs: int) -> bool:
    """Whether attention over so many pairs of a query and a key is faster written out: in bf16 on a
    CPU, where torch's fused kernel trails.
    """
    return x.device.type == "cpu" and torch.is_autocast_enabled("cpu") and pairs <= PLAIN


def attend(
    q: Tensor, k: Tensor, v: Tensor, *, causal: bool = False, seen: Tensor | None = None
) -> Tensor:
    """Attention of q (B, heads, T, d) to k and v (B, heads, T', d); `causal`, or `seen` (T, T')
    bool, says which keys a query sees.

    torch's own, but for bf16 on a CPU: two batched products around a softmax. Scores and shares are
    rounded to bf16 there, which the fused kernel does not do, and summed in float32. 16 pictures of
    256 tokens, 6 heads of 64, forward and backward, on two cores of an AMD EPYC: 11.4 ms for 32.9;
    32 of 64 tokens, 4 heads of 32: 0.8 for 7.3.
    """
    if not plainly(q, q.shape[2] * k.shape[2]):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=seen, is_causal=causal)
    if q.shape[2] <= FEW and not causal:  # a step of a cached drawing
        with torch.autocast("cpu", enabled=False):
            return F.scaled_dot_product_attention(q.float(), k.float(), v.float(), attn_mask=seen)
    if causal:
        seen = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool).tril()
    bias = (
        torch.zeros(1, 1) if seen is None else torch.zeros(seen.shape).masked_fill(~seen, -math.inf)
    )
    scores = torch.baddbmm(
        bias,
        q.flatten(0, 1),
        k.flatten(0, 1).transpose(1, 2),
        beta=float(seen is not None),
        alpha=q.shape[3] ** -0.5,
    )
    return (scores.softmax(-1) @ v.flatten(0, 1)).unflatten(0, q.shape[:2])


def heads_first(x: Tensor, heads: int) -> Tensor:
    """(B, T, d) -> (B, heads, T, d / heads)."""
    return x.unflatten(2, (heads, -1)).transpose(1, 2)


class SelfAttention(nn.Module):
    """Rotary multi-head self-attention over (B, T, d). `causal` is an argument and never read off
    the training mode.
    """

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)

    def forward(
        self,
        x: Tensor,
        turn: Turn,
        *,
        causal: bool,
        cache: Cache | None = None,
        window: Window | None = None,
    ) -> Tensor:
        """With a `cache`, its `window` says where x's own keys go and which keys are looked at."""
        qkv = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        (q, k), v = rotate(qkv[:2], turn), qkv[2]
        if cache is not None and window is not None:
            k, v = cache.extend(k, v, window)
        seen = window.seen if window else None
        return self.out(attend(q, k, v, causal=causal, seen=seen).transpose(1, 2).flatten(2))


class CrossAttention(nn.Module):
    """Rotary queries from (B, T, d) at keys and values that are given, already turned."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width, bias=False)
        self.out = nn.Linear(width, width, bias=False)

    def forward(
        self,
        x: Tensor,
        turn: Turn,
        keys: Tensor,
        values: Tensor,
        *,
        causal: bool,
        seen: Tensor | None = None,
    ) -> Tensor:
        q = rotate(heads_first(self.query(x), self.heads), turn)
        return self.out(
            attend(q, keys, values, causal=causal, seen=seen).transpose(1, 2).flatten(2)
        )


class Block(nn.Module):
    """x + attention(norm(x)), then x + SwiGLU(norm(x)); the attention's further arguments are
    passed on.
    """

    def __init__(self, attention: nn.Module, width: int, mlp: int):
        super().__init__()
        self.norm1, self.attention = nn.RMSNorm(width, eps=1e-6), attention
        self.norm2 = nn.RMSNorm(width, eps=1e-6)
        self.gate_up = nn.Linear(width, 2 * mlp, bias=False)
        self.down = nn.Linear(mlp, width, bias=False)

    def forward(self, x: Tensor, *args: Tensor | Turn, **kwargs) -> Tensor:
        x = x + self.attention(self.norm1(x), *args, **kwargs)
        gate, up = self.gate_up(self.norm2(x)).chunk(2, dim=2)
        return x + self.down(F.silu(gate) * up)


def initialise(module: nn.Module) -> None:
    """Matrices normal with variance 1 / fan-in, embeddings with standard deviation 0.02.

    Llama's 0.02 for matrices, too, is right for widths in the thousands; at a width of 96 it makes
    every branch begin as next to nothing.
    """
    for part in module.modules():
        if isinstance(part, nn.Linear | nn.Embedding):
            nn.init.normal_(
                part.weight, std=0.02 if isinstance(part, nn.Embedding) else part.in_features**-0.5
            )
