"""Autoregression over scales: a whole map of tokens a step, from coarse to fine, as VAR (arXiv
2404.02905).

The transformer sees the class and, at each token, what the coarser scales make of its area. It
predicts all tokens of a scale at once, from these and from the scales before. So an image takes as
many steps as there are scales.
"""

from collections.abc import Iterable, Sequence
from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import LongTensor, Tensor, nn

from models.decoding import Cache, Window
from models.generator import Batch
from models.layers import Block, SelfAttention, angles_of, initialise, rotation_of
from models.options import GUIDE
from models.randomness import rand, spawn
from models.scales import ScaleCodebooks
from models.tokens import TokenModel


class AutoregressiveScales(TokenModel):
    """Next-scale prediction with codebooks of its own, fitted on the training latents.

    `entries` is the size of each scale's codebook, `sides` its places a side (None: 1, 2, 4, ...).
    `width`, `depth`, `heads` and `mlp` are the transformer's, as of `ar`. The codebook that other
    families share is not looked at. Raises ValueError for sides that do not tile the latents.
    """

    objective = "next-scale"
    uses_tokens = False  # it makes its own
    samplers = ("scales",)
    bf16_safe = True  # bf16 weights give what autocast gives
    fits_on = 10_000
    sampler_defaults = TokenModel.sampler_defaults | GUIDE

    def __init__(
        self,
        latent_shape: tuple[int, int, int],
        num_classes: int,
        *,
        entries: int,
        width: int,
        depth: int,
        heads: int,
        mlp: int,
        sides: Sequence[int] | None = None,
        label_dropout: float = 0.1,
        codebook: nn.Module | None = None,
    ):
        books = ScaleCodebooks(entries, latent_shape, sides)
        super().__init__(latent_shape, num_classes, codebook=books, label_dropout=label_dropout)
        self.tokens = books.tokens
        self.own_codebook = f"scales {entries}"
        angles = torch.cat([_angles(books.side, side, width // heads) for side in books.sides])
        self.register_buffer("angles", angles, persistent=False)
        scale_of = [n for n, (a, b) in enumerate(books.spans()) for _ in range(a, b)]
        self.register_buffer("scale_of", torch.tensor(scale_of), persistent=False)
        self.enter = nn.Linear(latent_shape[0], width, bias=False)
        self.positions = nn.Parameter(torch.zeros(self.tokens, width))
        self.classes = nn.Embedding(num_classes + 1, width)  # the last is the null label's
        self.blocks = nn.ModuleList(
            Block(SelfAttention(width, heads), width, mlp) for _ in range(depth)
        )
        self.norm = nn.RMSNorm(width, eps=1e-6)
        self.head = nn.Linear(width, entries, bias=False)
        initialise(self)
        nn.init.normal_(self.head.weight, std=0.02)  # the first predictions are all but uniform

    def fit(self, latents: Tensor) -> None:
        self.codebook.fit(latents)

    def logits(self, before: Tensor, labels: LongTensor) -> Tensor:
        """Teacher-forced logits (B, T, K) of all scales. `before` (B, T, C) is what the coarser
        scales make of each token's area.
        """
        x = self.enter(before) + self.positions + self.classes(labels)[:, None]
        # a token (row) sees its own scale and those before: its inputs hold nothing of its own
        seen = self.scale_of[:, None] >= self.scale_of
        window = Window(slice(0, self.tokens), self.tokens, seen)
        rotation = rotation_of(self.angles[None])
        for block in self.blocks:
            x = block(x, rotation, causal=False, window=window)
        return self.head(self.norm(x))

    def inputs(self, batch: Batch, *, rng: torch.Generator) -> tuple[Tensor, ...]:
        """Ids (B, T), what the coarser scales make of each token's area (B, T, C), labels (B,)."""
        kind = batch.latents.device.type
        # In float32: bf16 would round the distances to entries. The meta device knows no autocast.
        plain = nullcontext() if kind == "meta" else torch.autocast(kind, enabled=False)
        with torch.no_grad(), plain:
            return *self.codebook.tokenize(batch.latents.float()), batch.labels

    def error(self, ids: LongTensor, before: Tensor, labels: LongTensor) -> Tensor:
        """Mean cross-entropy per token, in nats."""
        logits = self.logits(before, labels).float()
        return F.cross_entropy(logits.flatten(0, 1), ids.flatten())

    @torch.inference_mode()
    def sample_tokens(
        self, labels: LongTensor, *, steps: int, guidance: float, rng: torch.Generator
    ) -> LongTensor:
        """Ids (B, T), a scale a step. Each inverts its distribution at a uniform number."""
        count, device, books = len(labels), labels.device, self.codebook
        uniform = rand((self.tokens,), spawn(rng, count), device)
        networks = [_Cached(net, own) for net, own in self.networks(labels, guidance)]
        scales = self.guidance_scales(guidance)
        total, sampled = torch.zeros(count, *self.latent_shape, device=device), []
        for scale, (start, end) in enumerate(books.spans()):
            before = books.shrunk(total, books.sides[scale])
            logits = torch.cat([net.logits(before, start, end) for net in networks]).float()
            logits = self.apply_cfg(logits, None if scales is None else scales[end])
            sampled.append(self.sample_ids(logits, uniform[:, start:end]))
            total = total + books.enlarged(scale, sampled[-1])
        return torch.cat(sampled, dim=1)

    def supported_steps(self, requested: Iterable[int]) -> list[int]:
        """As many as there are scales, where it was asked for."""
        return [n for n in requested if n == len(self.codebook.sides)]

    def supported_steps_text(self) -> str:
        count = len(self.codebook.sides)
        return f"this model samples a scale a step, {count} steps in all; ask for steps={count}"


class _Cached:
    """One network's share of a decoding: its keys and values of the scales so far, with the class
    labels (B,), or (2B,), that it is shown.
    """

    def __init__(self, model: AutoregressiveScales, labels: LongTensor):
        self.model, self.classes = model, model.classes(labels)[:, None]
        self.rotation = rotation_of(model.angles[None])
        self.caches = [Cache(model.tokens) for _ in model.blocks]

    def logits(self, before: Tensor, start: int, end: int) -> Tensor:
        """Of one scale's tokens, (B or 2B, end - start, K); `before` (B, end - start, C)."""
        model, now = self.model, slice(start, end)
        x = model.enter(before.repeat(len(self.classes) // len(before), 1, 1))
        x = x + model.positions[now] + self.classes
        for block, cache in zip(model.blocks, self.caches, strict=True):
            window = Window(now, end, None)
            x = block(x, self.rotation.at(now), causal=False, cache=cache, window=window)
        return model.head(model.norm(x))


def _angles(whole: int, side: int, head_dim: int) -> Tensor:
    """Rotary angles (side^2, head_dim / 2) of the middles of a scale's areas, in units of places
    of the finest one, of `whole` a side.
    """
    middles = (torch.arange(side) + 0.5) * whole / side + 0.5
    y, x = torch.meshgrid(middles, middles, indexing="ij")
    return angles_of(torch.stack([y.flatten(), x.flatten()], dim=1), head_dim)
