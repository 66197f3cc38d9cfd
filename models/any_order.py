"""One autoregressive checkpoint, any number of steps: the two-pass decoder of ARPG (arXiv
2503.10568).

Pass 1 is causal self-attention over the class token and the tokens in a random order. Its output
gives one shared set of keys and values. Pass 2 starts every target as [MASK], rotated to the
target's position, and reads them by cross-attention. Targets do not see each other, so any number
of them can be sampled in one step, and everything sampled already stays in the cache.

Here the class and a learned position are added to [MASK], which the paper leaves out: a brief
training learns sooner what is wanted and where to look.
"""

from collections.abc import Iterable
from functools import partial

import torch
import torch.nn.functional as F
from torch import LongTensor, Tensor, nn

from models.codebook import Codebook
from models.decoding import Cache, Window, put, take
from models.generator import Batch
from models.layers import (
    Block,
    CrossAttention,
    SelfAttention,
    grid_angles,
    heads_first,
    initialise,
    rotate,
    rotation_of,
)
from models.randomness import rand, random_orders, spawn, to_device
from models.tokens import TokenModel, schedule, with_null_labels


class AnyOrder(TokenModel):
    """Any-order prediction in 1 to H * W steps.

    `depth` blocks: half of them self-attention (pass 1), half cross-attention (pass 2). An *order*
    (B, H*W) lists the raster places of an image's tokens in the order of sampling. One more option
    of sampling than the token models': `schedule`, how many tokens a step samples (`SCHEDULES`).
    Raises ValueError for an odd depth, and for a width that `heads` does not divide into multiples
    of 4.
    """

    samplers = ("random-order",)
    bf16_safe = True  # bf16 weights give what autocast gives
    objective = "any-order"
    sampler_defaults = TokenModel.sampler_defaults | {
        "guidance_schedule": "linear",
        # What a step loses by not seeing its own tokens can be computed for a random field, and is
        # less with cosine from eight steps on (tests/test_schedule.py). The distances published
        # with ARPG's code are of cosine, though its README came to suggest arccos.
        "schedule": "cosine",
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
        angles = grid_angles(*latent_shape[1:], width // heads)
        self.register_buffer("angles", angles, persistent=False)
        self.embed = nn.Embedding(codebook.size, width)
        self.classes = nn.Embedding(num_classes + 1, width)  # the last is the null label's
        # pass 1
        self.remember = nn.ModuleList(
            Block(SelfAttention(width, heads), width, mlp) for _ in range(depth // 2)
        )
        self.norm_memory = nn.RMSNorm(width, eps=1e-6)
        self.keys_values = nn.Linear(width, 2 * width, bias=False)
        # pass 2
        self.mask = nn.Parameter(torch.empty(width).normal_(std=0.02))
        self.positions = nn.Parameter(torch.zeros(self.tokens, width))
        self.predict = nn.ModuleList(
            Block(CrossAttention(width, heads), width, mlp) for _ in range(depth // 2)
        )
        self.norm = nn.RMSNorm(width, eps=1e-6)
        self.head = nn.Linear(width, codebook.size, bias=False)
        initialise(self)
        nn.init.zeros_(self.head.weight)  # the first predictions are uniform

    def memory(
        self,
        x: Tensor,
        angles: Tensor,
        *,
        causal: bool,
        caches: list[Cache | None],
        window: Window | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Pass 1: inputs (B, t, width) at angles (B or 1, t, head_dim / 2) -> shared keys, values.

        Both (B, heads, t, head_dim), the keys rotated.
        """
        rotation = rotation_of(angles)
        for block, cache in zip(self.remember, caches, strict=True):
            x = block(x, rotation, causal=causal, cache=cache, window=window)
        keys, values = self.keys_values(self.norm_memory(x)).chunk(2, dim=2)
        keys, values = heads_first(keys, self.heads), heads_first(values, self.heads)
        return rotate(keys, rotation), values

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
        """Pass 2: logits (B, t, K) of targets at raster places (B, t), of images of labels (B,).

        `causal`: target i reads the first i + 1 keys, which are the class and i tokens.
        """
        # All targets start alike, but for what tells their places and their class.
        # An embedding, not an index: the gradient of an index is summed by several threads of a CPU
        # in whatever order they come, so that no two trainings of a seed would be alike.
        positions = F.embedding(places, self.positions)
        x = self.mask + positions + self.classes(labels)[:, None]
        rotation = rotation_of(self.angles[1 + places])  # angle 0 is the class token's
        for block in self.predict:
            x = block(x, rotation, keys, values, causal=causal, seen=seen)
        return self.head(self.norm(x))

    def logits(self, tokens: LongTensor, labels: LongTensor, order: LongTensor) -> Tensor:
        """Teacher-forced logits (B, H*W, K) of tokens (B, H*W) in raster order.

        Entry i is of token order[:, i], given the class and the i tokens before it in that order.
        """
        earlier = order[:, :-1]  # the last token of an order is nobody's context
        classes = self.classes(labels)[:, None]
        x = torch.cat([classes, self.embed(tokens.gather(1, earlier))], dim=1)
        class_angle = self.angles[:1].expand(len(tokens), 1, -1)
        angles = torch.cat([class_angle, self.angles[1 + earlier]], dim=1)
        keys, values = self.memory(x, angles, causal=True, caches=[None] * len(self.remember))
        return self.scores(order, labels, keys, values, causal=True)

    def inputs(self, batch: Batch, *, rng: torch.Generator) -> tuple[Tensor, ...]:
        """Tokens (B, H*W), labels (B,) and a random order of each image (B, H*W)."""
        order = torch.rand(batch.tokens.shape, generator=rng).argsort(dim=1)
        return batch.tokens, batch.labels, to_device(order, batch.tokens.device)

    def error(self, tokens: LongTensor, labels: LongTensor, order: LongTensor) -> Tensor:
        """Mean cross-entropy per token in that order, in nats."""
        logits = self.logits(tokens, labels, order).float()
        return F.cross_entropy(logits.flatten(0, 1), tokens.gather(1, order).flatten())

    @torch.inference_mode()
    def sample_tokens(
        self, labels: LongTensor, *, steps: int, guidance: float, rng: torch.Generator
    ) -> LongTensor:
        """Ids (B, H*W) in raster order. Each image has a random order of its own."""
        rngs, count, device = spawn(rng, len(labels)), len(labels), labels.device
        # Of each image's numbers the first H * W make its order, the rest choose its ids.
        order = random_orders(self.tokens, rngs, device)
        uniform = rand((self.tokens,), rngs, device)
        name = ("any order", count, guidance, device)
        decoding = self.kept(name, partial(_Decoding, self, count, guidance, device))
        counts = schedule(self.sampler_options["schedule"], self.tokens, steps)
        labels = with_null_labels(labels, self.num_classes, guidance)
        return decoding.run(labels, order, uniform, counts)

    def supported_steps(self, requested: Iterable[int]) -> list[int]:
        """1 to H * W."""
        return [n for n in requested if 1 <= n <= self.tokens]

    def supported_steps_text(self) -> str:
        return f"this model takes 1 to {self.tokens} steps"


class _Decoding:
    """Cached any-order decoding of one batch size: the caches, and a step's buffers.

    The buffers stay where they are, so that a step can be replayed as a CUDA graph (see
    `decoding.py`). Their columns are in the order of sampling. Under guidance `labels` and `order`
    hold both halves, 2B rows.
    """

    def __init__(self, model: AnyOrder, count: int, guidance: float, device: torch.device):
        self.model, self.steps = model, model.new_steps(device)
        self.caches = [Cache(model.tokens) for _ in model.remember]
        self.shared = Cache(model.tokens)  # of the keys and values that pass 2 reads
        scales = model.guidance_scales(guidance)
        self.scales = None if scales is None else self.steps.table(scales)
        rows = count if scales is None else 2 * count
        self.labels = torch.empty(rows, dtype=torch.long, device=device)
        self.order = torch.empty(rows, model.tokens, dtype=torch.long, device=device)
        self.uniform = torch.empty(count, model.tokens, device=device)
        self.ids = torch.zeros(count, model.tokens, dtype=torch.long, device=device)

    def run(
        self, labels: LongTensor, order: LongTensor, uniform: Tensor, counts: list[int]
    ) -> LongTensor:
        """Ids (B, H*W) in raster order, `counts` of them a step.

        `labels` is (B,), or (2B,) under guidance; `order` and `uniform` are (B, H*W).
        """
        self.labels.copy_(labels)
        self.order.copy_(order if self.scales is None else order.repeat(2, 1))
        self.uniform.copy_(uniform)
        self.steps.begin()
        first, fed = True, 1  # the first step feeds the class token
        for count in counts:
            # All that a graph's kernels depend on; their numbers of keys are rounded.
            shape = (first, fed, count, self.steps.rounded(self.steps.start + 1))
            self.steps.run(partial(self.step, first, fed, count), count, shape)
            first, fed = False, count
        return torch.empty_like(order).scatter(1, order, self.ids)  # from order to raster

    def step(self, first: bool, fed: int, count: int) -> None:
        """Feed the class token or the `fed` tokens sampled last, then sample the next `count`."""
        model, steps = self.model, self.steps
        if first:
            x, angles = model.classes(self.labels)[:, None], model.angles[:1][None]
        else:
            last = steps.places(-fed, fed)
            ids = take(self.ids, last, 1)
            if self.scales is not None:
                ids = ids.repeat(2, 1)
            x, angles = model.embed(ids), model.angles[1 + take(self.order, last, 1)]
        # The class token is the cache's first, so that the tokens before place n end at n.
        window, now = steps.window(1 - fed, fed), steps.places(0, count)
        keys, values = model.memory(x, angles, causal=False, caches=self.caches, window=window)
        keys, values = self.shared.extend(keys, values, window)
        targets = take(self.order, now, 1)
        logits = model.scores(targets, self.labels, keys, values, causal=False, seen=window.seen)
        scale = None if self.scales is None else steps.of_step(self.scales, count)
        logits = model.apply_cfg(logits.float(), scale)
        put(self.ids, now, 1, model.sample_ids(logits, take(self.uniform, now, 1)))
