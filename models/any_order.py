"""One autoregressive checkpoint, any number of steps: the two-pass decoder of ARPG (arXiv
2503.10568).

Pass 1 is causal self-attention over the class token and the tokens in a random order; its output
gives one shared set of keys and values. Pass 2 starts every target as [MASK], turned to the
target's position, and reads them by cross-attention. Here the class and a learned position are
added to [MASK], which the paper leaves out: a brief training learns sooner what is wanted and where
to look. Targets do not see each other, so any number of them can be drawn in one step; everything
already drawn stays in the cache.
"""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import LongTensor, Tensor, nn

from models.codebook import Codebook
from models.decoding import Cache, Window, put, take
from models.generator import Batch, rand, spawn, to_device
from models.layers import (
    Block,
    CrossAttention,
    SelfAttention,
    grid_angles,
    heads_first,
    initialise,
    rotate,
    turns,
)
from models.tokens import TokenModel, schedule, with_null_labels


class AnyOrder(TokenModel):
    """Any-order prediction, 1 to H * W steps; `depth` blocks, half of them self-attention, half
    cross-attention.

    Raises ValueError for an odd depth, or a width that `heads` does not divide into multiples of 4.
    """

    samplers = ("random-order",)
    bf16_safe = True  # bf16 weights give what autocast gives
    objective = "any-order"
    sampler_defaults = TokenModel.sampler_defaults | {
        "guidance_schedule": "linear",
        "schedule": "arccos",
    }

    def __init__(
        self,
        latent_shape: tuple[int, int, int],
        num_classes: int,
        *,
        codebook: Codebook,
        width: int,
        depth: int,
        heads: int,
        mlp: int,
        label_dropout: float = 0.1,
    ):
        super().__init__(latent_shape, num_classes, codebook=codebook, label_dropout=label_dropout)
        if depth % 2 or width % heads:
            raise ValueError(
                f"depth {depth} must be even and width {width} a multiple of heads {heads}"
            )
        self.heads = heads
        self.register_buffer(
            "angles", grid_angles(*latent_shape[1:], width // heads), persistent=False
        )
        self.embed = nn.Embedding(codebook.size, width)
        self.classes = nn.Embedding(num_classes + 1, width)
        self.remember = nn.ModuleList(
            Block(SelfAttention(width, heads), width, mlp) for _ in range(depth // 2)
        )
        self.norm_memory = nn.RMSNorm(width, eps=1e-6)
        self.keys_values = nn.Linear(width, 2 * width, bias=False)
        self.mask = nn.Parameter(torch.empty(width).normal_(std=0.02))
        self.positions = nn.Parameter(torch.zeros(self.tokens, width))
        self.predict = nn.ModuleList(
            Block(CrossAttention(width, heads), width, mlp) for _ in range(depth // 2)
        )
        self.norm = nn.RMSNorm(width, eps=1e-6)
        self.head = nn.Linear(width, codebook.size, bias=False)
        initialise(self)
        nn.init.zeros_(self.head.weight)

    def memory(
        self,
        x: Tensor,
        angles: Tensor,
        *,
        causal: bool,
        caches: list[Cache | None],
        window: Window | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Pass 1: inputs (B, t, d) at these angles -> keys and values (B, heads, t, d / heads) for
        every target.
        """
        turn = turns(angles)
        for block, cache in zip(self.remember, caches, strict=True):
            x = block(x, turn, causal=causal, cache=cache, window=window)
        keys, values = (
            heads_first(part, self.heads)
            for part in self.keys_values(self.norm_memory(x)).chunk(2, dim=2)
        )
        return rotate(keys, turn), values

    def scores(
        self,
        places: LongTensor,
        labels: LongTensor,
        keys: Tensor,
        values: Tensor,
        *,
        causal: bool,
        seen: Tensor | None = None,
    ) -> Tensor:
        """Pass 2: targets of these labels (B,) at these places (B, t) of the raster -> logits (B,
        t, K).
        """
        x, turn = (
            self.mask + self.positions[places] + self.classes(labels)[:, None],
            turns(self.angles[1 + places]),
        )
        for block in self.predict:
            x = block(x, turn, keys, values, causal=causal, seen=seen)
        return self.head(self.norm(x))

    def logits(self, tokens: LongTensor, labels: LongTensor, order: LongTensor) -> Tensor:
        """Teacher-forced scores (B, H*W, K): entry i is of token order[:, i], given the class and
        the i tokens before it in that order.
        """
        x = torch.cat(
            [self.classes(labels)[:, None], self.embed(tokens.gather(1, order[:, :-1]))], dim=1
        )
        first = self.angles[:1].expand(len(tokens), 1, -1)
        angles = torch.cat([first, self.angles[1 + order[:, :-1]]], dim=1)
        keys, values = self.memory(x, angles, causal=True, caches=[None] * len(self.remember))
        return self.scores(order, labels, keys, values, causal=True)

    def inputs(self, batch: Batch, *, rng: torch.Generator) -> tuple[Tensor, ...]:
        """Tokens, labels and a random order of each image, (B, H*W)."""
        order = to_device(
            torch.rand(batch.tokens.shape, generator=rng).argsort(dim=1), batch.tokens.device
        )
        return batch.tokens, batch.labels, order

    def error(self, tokens: LongTensor, labels: LongTensor, order: LongTensor) -> Tensor:
        """Mean cross-entropy per token in that order, in nats."""
        scores = self.logits(tokens, labels, order).float()
        return F.cross_entropy(scores.flatten(0, 1), tokens.gather(1, order).flatten())

    @torch.inference_mode()
    def sample_tokens(
        self, labels: LongTensor, *, steps: int, guidance: float, rng: torch.Generator
    ) -> LongTensor:
        """Token ids (B, H*W): one random order an image; each step feeds what the last one sampled
        and samples the next few together.
        """
        rngs, count, device = spawn(rng, len(labels)), len(labels), labels.device
        order = to_device(
            torch.stack([torch.rand(self.tokens, generator=g).argsort() for g in rngs]), device
        )
        uniform = rand((self.tokens,), rngs, device)
        decoding = self.kept(
            ("any order", count, guidance, device), lambda: _Decoding(self, count, guidance, device)
        )
        counts = schedule(self.sampler_options["schedule"], self.tokens, steps)
        return decoding.run(
            with_null_labels(labels, self.num_classes, guidance), order, uniform, counts
        )

    def supported_steps(self, requested: Iterable[int]) -> list[int]:
        """1 to H * W."""
        return [n for n in requested if 1 <= n <= self.tokens]

    def supported_steps_text(self) -> str:
        return f"this model takes 1 to {self.tokens} steps"


class _Decoding:
    """One batch size of any-order decoding: the caches, and what a step reads and writes; places
    are in the order of sampling.
    """

    def __init__(self, model: AnyOrder, count: int, guidance: float, device: torch.device):
        self.model, self.steps = model, model.new_steps(device)
        self.caches, self.shared = (
            [Cache(model.tokens) for _ in model.remember],
            Cache(model.tokens),
        )
        scales = model.scales(guidance)
        self.scales = None if scales is None else self.steps.table(scales)
        self.uniform = torch.empty(count, model.tokens, device=device)
        self.labels = torch.empty(
            count if scales is None else 2 * count, dtype=torch.long, device=device
        )
        self.order = torch.empty(len(self.labels), model.tokens, dtype=torch.long, device=device)
        self.ids = torch.zeros(count, model.tokens, dtype=torch.long, device=device)

    def run(
        self, labels: LongTensor, order: LongTensor, uniform: Tensor, counts: list[int]
    ) -> LongTensor:
        """Ids (B, H*W) in raster order, `counts` of them a step, for labels (B,) or both halves of
        guidance (2B,).
        """
        self.labels.copy_(labels)
        self.order.copy_(order if self.scales is None else order.repeat(2, 1))
        self.uniform.copy_(uniform)
        self.steps.begin()
        fed = 1  # the class token
        for i, count in enumerate(counts):
            shape = (i == 0, fed, count, self.steps.rounded(self.steps.start + 1))
            self.steps.run(
                lambda first=i == 0, fed=fed, count=count: self.step(first, fed, count),
                count,
                shape,
            )
            fed = count
        return torch.empty_like(order).scatter(1, order, self.ids)

    def step(self, first: bool, fed: int, count: int) -> None:
        """Feed the class token or the `fed` tokens sampled last, then sample the next `count`."""
        model, steps = self.model, self.steps
        if first:
            x, angles = model.classes(self.labels)[:, None], model.angles[:1][None]
        else:
            last = steps.places(-fed, fed)
            ids = take(self.ids, last, 1)
            x = model.embed(ids if self.scales is None else ids.repeat(2, 1))
            angles = model.angles[1 + take(self.order, last, 1)]
        # The class token is the cache's first, so that the tokens before place n end at n.
        window, now = steps.window(1 - fed, fed), steps.places(0, count)
        keys, values = model.memory(x, angles, causal=False, caches=self.caches, window=window)
        keys, values = self.shared.extend(keys, values, window)
        places = take(self.order, now, 1)
        scores = model.scores(places, self.labels, keys, values, causal=False, seen=window.seen)
        scale = None if self.scales is None else steps.of_step(self.scales, count)
        put(
            self.ids,
            now,
            1,
            model.sample_ids(model.apply_cfg(scores.float(), scale), take(self.uniform, now, 1)),
        )
