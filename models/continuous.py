"""Autoregression without a codebook: transformers that predict the next latent vectors themselves.

A token is the vector of channels at one place of the whitened latents. `ContinuousRaster` is the
transformer of `ar` (GIVT, arXiv 2312.02116), `ContinuousMasked` that of `masked`, in random order
(MAR, arXiv 2406.11838). What a hidden state says of a token is its head's to learn: a mixture of
Gaussians, or a small flow (`models/heads.py`). So beside `ar` the tokens differ
and what predicts them, no more; beside `masked` too, where that also samples in random order
(`sampler=random`). By itself it keeps what it is surest of, and vectors have no such confidence.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import LongTensor, Tensor, nn

from models.decoding import Cache, Window
from models.generator import Batch
from models.heads import FlowHead, MixtureHead
from models.layers import Block, SelfAttention, grid_angles, initialise, rotation_of
from models.randomness import random_orders, spawn, to_device
from models.tokens import SCHEDULES, SequenceModel, random_mask, schedule, with_null_labels

LLAMA_BASE = 10_000.0  # of rotary positions in one dimension, as transformers' Llama


class ContinuousTokens(SequenceModel):
    """What both orders share: latents as tokens, the head, guidance by the tokens that are there.

    `head` is `gmm`, of `components` Gaussians, or `flow`, of width `head_width`. A token enters as
    a matrix product and a norm, at one size whatever guidance made of it. Inputs alone are
    normalised: what is sampled is not. `flow` has one more option of sampling: `head_steps`, the
    Euler steps of a token. `nfe` counts the transformer alone; what the head adds is in the FLOPs
    and in the seconds.

    Raises ValueError for an unknown head.
    """

    uses_tokens = False
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
        head: str = "gmm",
        components: int = 16,
        head_width: int = 64,
        head_repeats: int = 2,
        label_dropout: float = 0.1,
        codebook: nn.Module | None = None,
    ):
        super().__init__(latent_shape, num_classes, label_dropout=label_dropout)
        if head not in ("gmm", "flow"):
            raise ValueError(f"model.head={head}: one of gmm, flow")
        if width % heads:
            raise ValueError(f"width {width} is not a multiple of heads {heads}")
        channels = latent_shape[0]
        self.embed = nn.Sequential(nn.Linear(channels, width), nn.RMSNorm(width, eps=1e-6))
        self.positions = nn.Parameter(torch.zeros(self.tokens, width))
        self.classes = nn.Embedding(num_classes + 1, width)  # the last is the null label's
        self.blocks = nn.ModuleList(
            Block(SelfAttention(width, heads), width, mlp) for _ in range(depth)
        )
        self.norm = nn.RMSNorm(width, eps=1e-6)
        initialise(self)
        # as large as the entries of a table of tokens begin, or classes would be next to nothing
        nn.init.constant_(self.embed[1].weight, 0.02)
        if head == "gmm":
            self.head: nn.Module = MixtureHead(width, channels, components)
        else:
            self.head = FlowHead(width, channels, head_width, repeats=head_repeats)
        self.objective, self.inner_steps = self.head.objective, self.head.inner_steps
        self.sampler_defaults = self.sampler_defaults | self.head.sampler_defaults
        self.set_sampler()  # again: the options depend on the head

    def as_tokens(self, latents: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, H*W, C), float32, in raster order."""
        return latents.float().flatten(2).transpose(1, 2)

    def as_latents(self, tokens: Tensor) -> Tensor:
        """(B, H*W, C) -> (B, C, H, W)."""
        return tokens.transpose(1, 2).unflatten(2, self.latent_shape[1:]).contiguous()

    def check_options(self, sampler: str, options: dict[str, Any]) -> None:
        super().check_options(sampler, options)
        if options.get("head_steps", 1) < 1:
            raise ValueError(f"sampler.head_steps={options['head_steps']}: 1 or more")

    def sample_head(
        self, hidden: Tensor, noise: Iterable[Tensor], scales: list[float] | None, done: int
    ) -> Tensor:
        """Tokens (B, n, C) by the head, `done` tokens being there after them."""
        scale = None if scales is None else scales[done]
        return self.head.sample(hidden, tuple(noise), scale=scale, options=self.sampler_options)


class ContinuousRaster(ContinuousTokens):
    """The next token in raster order, cached; as many steps as tokens."""

    samplers = ("raster",)

    def __init__(self, latent_shape: tuple[int, int, int], num_classes: int, **settings: Any):
        super().__init__(latent_shape, num_classes, **settings)
        head_dim = settings["width"] // settings["heads"]
        if head_dim % 2:
            raise ValueError(f"width / heads is {head_dim}: rotary positions need a multiple of 2")
        omega = LLAMA_BASE ** -(torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)
        angles = torch.arange(self.tokens)[:, None] * omega
        self.register_buffer("angles", angles, persistent=False)

    def hidden(self, tokens: Tensor, labels: LongTensor) -> Tensor:
        """Hidden states (B, T, width), each of the tokens (B, T, C) before its own."""
        # The first has nothing before it: zeros stand there.
        earlier = nn.functional.pad(self.embed(tokens[:, :-1]), (0, 0, 1, 0))
        x = earlier + self.positions + self.classes(labels)[:, None]
        rotation = rotation_of(self.angles[None])
        for block in self.blocks:
            x = block(x, rotation, causal=True)
        return self.norm(x)

    def inputs(self, batch: Batch, *, rng: torch.Generator) -> tuple[Tensor, ...]:
        """Tokens (B, T, C), labels (B,), and what the head's loss needs."""
        tokens = self.as_tokens(batch.latents)
        random = self.head.inputs(len(tokens), self.tokens, rng=rng)
        return tokens, batch.labels, *(to_device(each, tokens.device) for each in random)

    def error(self, tokens: Tensor, labels: LongTensor, *random: Tensor) -> Tensor:
        """The head's loss, a mean over tokens."""
        return self.head.error(self.hidden(tokens, labels), tokens, *random).mean()

    @torch.inference_mode()
    def sample(
        self, labels: LongTensor, *, steps: int, guidance: float, rng: torch.Generator
    ) -> Tensor:
        self.nfe(steps, guidance)  # raises for a step count that is not supported
        rngs, device = spawn(rng, len(labels)), labels.device
        noise = self.head.noise(self.tokens, rngs, device)
        classes = self.classes(with_null_labels(labels, self.num_classes, guidance))[:, None]
        scales, rotation = self.guidance_scales(guidance), rotation_of(self.angles[None])
        caches = [Cache(self.tokens) for _ in self.blocks]
        tokens: list[Tensor] = []
        for place in range(self.tokens):
            now = slice(place, place + 1)
            x = classes + self.positions[now]
            if tokens:
                x = x + self.embed(tokens[-1]).repeat(len(classes) // len(labels), 1, 1)
            for block, cache in zip(self.blocks, caches, strict=True):
                window = Window(now, place + 1, None)
                x = block(x, rotation.at(now), causal=False, cache=cache, window=window)
            own = [each[:, now] for each in noise]
            tokens.append(self.sample_head(self.norm(x), own, scales, place + 1))
        return self.as_latents(torch.cat(tokens, dim=1))

    def supported_steps(self, requested: Iterable[int]) -> list[int]:
        """One step a token, where it was asked for."""
        return [n for n in requested if n == self.tokens]

    def supported_steps_text(self) -> str:
        return f"this model samples one token a step, {self.tokens} steps in all"


class ContinuousMasked(ContinuousTokens):
    """Masked tokens in random order, any number a step; every step looks at the whole image again.

    One more option of sampling: `schedule`, how many tokens a step fixes (`tokens.SCHEDULES`).
    """

    samplers = ("random",)
    sampler_defaults = ContinuousTokens.sampler_defaults | {
        "guidance_schedule": "linear",
        "schedule": "cosine",
    }

    def __init__(
        self,
        latent_shape: tuple[int, int, int],
        num_classes: int,
        *,
        mask_schedule: str = "cosine",
        **settings: Any,
    ):
        super().__init__(latent_shape, num_classes, **settings)
        if mask_schedule not in SCHEDULES:
            raise ValueError(f"mask_schedule={mask_schedule}: {' or '.join(SCHEDULES)}")
        self.mask_schedule = mask_schedule
        width = settings["width"]
        angles = grid_angles(*self.latent_shape[1:], width // settings["heads"])
        self.register_buffer("angles", angles, persistent=False)
        self.mask = nn.Parameter(torch.empty(width).normal_(std=0.02))

    def hidden(self, tokens: Tensor, masked: Tensor, labels: LongTensor) -> Tensor:
        """Hidden states (B, T, width) of all places; `masked` (B, T) bool hides tokens."""
        classes = self.classes(labels)[:, None]
        known = torch.where(masked[..., None], self.mask, self.embed(tokens))
        x = torch.cat([classes, known + self.positions + classes], dim=1)
        rotation = rotation_of(self.angles[None])
        for block in self.blocks:
            x = block(x, rotation, causal=False)
        return self.norm(x[:, 1:])  # the class token predicts nothing

    def inputs(self, batch: Batch, *, rng: torch.Generator) -> tuple[Tensor, ...]:
        """Tokens (B, T, C), labels (B,), which are masked (B, T), how many of an image on average
        (B,), and what the head's loss needs.
        """
        tokens = self.as_tokens(batch.latents)
        count, device = len(tokens), tokens.device
        masked = random_mask(count, self.tokens, self.mask_schedule, rng=rng)
        average = (masked.sum() / count).repeat(count)
        random = (masked, average, *self.head.inputs(count, self.tokens, rng=rng))
        return tokens, batch.labels, *(to_device(each, device) for each in random)

    def error(
        self,
        tokens: Tensor,
        labels: LongTensor,
        masked: Tensor,
        average: Tensor,
        *random: Tensor,
    ) -> Tensor:
        """The head's loss, a mean over masked tokens."""
        losses = self.head.error(self.hidden(tokens, masked, labels), tokens, *random)
        # of the whole batch, also where these are a part of it with more or fewer masked tokens
        return (losses * masked).sum() / average.sum()

    @torch.inference_mode()
    def sample(
        self, labels: LongTensor, *, steps: int, guidance: float, rng: torch.Generator
    ) -> Tensor:
        self.nfe(steps, guidance)  # raises for a step count that is not supported
        rngs, count, device = spawn(rng, len(labels)), len(labels), labels.device
        order = random_orders(self.tokens, rngs, device)  # each image's own
        noise = self.head.noise(self.tokens, rngs, device)
        labels = with_null_labels(labels, self.num_classes, guidance)
        halves, scales = len(labels) // count, self.guidance_scales(guidance)
        tokens = torch.zeros(count, self.tokens, self.latent_shape[0], device=device)
        masked = torch.ones(count, self.tokens, dtype=torch.bool, device=device)
        done = 0
        for fixed in schedule(self.sampler_options["schedule"], self.tokens, steps):
            hidden = self.hidden(tokens.repeat(halves, 1, 1), masked.repeat(halves, 1), labels)
            places = order[:, done : done + fixed]
            own = hidden.gather(1, _along(places.repeat(halves, 1), hidden))
            of_these = [each[:, done : done + fixed] for each in noise]
            done += fixed
            values = self.sample_head(own, of_these, scales, done)
            tokens = tokens.scatter(1, _along(places, values), values)
            masked = masked.scatter(1, places, False)
        return self.as_latents(tokens)

    def supported_steps(self, requested: Iterable[int]) -> list[int]:
        """1 to H * W."""
        return [n for n in requested if 1 <= n <= self.tokens]

    def supported_steps_text(self) -> str:
        return f"this model takes 1 to {self.tokens} steps"


def _along(places: LongTensor, vectors: Tensor) -> LongTensor:
    """Places (B, n) as an index of whole vectors (B, ..., D): (B, n, D)."""
    return places[..., None].expand(-1, -1, vectors.shape[-1])
