"""A masked transformer over codebook tokens: MaskGIT (arXiv 2202.04200), any number of steps, no
cache.

Every step looks at the whole image again. What is still masked is predicted at once, and the ids
that the model is surest of stay, or those at random places. The class is a token of its own, as
there, and is also added to every other one.
"""

import math
from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import LongTensor, Tensor, nn

from models.codebook import Codebook
from models.generator import Batch
from models.layers import Block, SelfAttention, grid_angles, initialise, rotation_of
from models.options import GUIDE
from models.randomness import rand, random_orders, spawn, to_device
from models.tokens import SCHEDULES, TokenModel, random_mask, schedule


class Masked(TokenModel):
    """Bidirectional prediction of masked tokens in 1 to H * W steps.

    Samplers: `confidence` keeps the ids that the model is surest of; `random` fixes tokens in a
    random order of each image's own, as `masked_continuous` does, whose vectors have no confidence.
    Two more options of sampling than the token models': `schedule`, how many tokens a step fixes
    (`SCHEDULES`); and `choice_temperature`, at least 0, of `confidence` alone, the scale of the
    Gumbel noise on the confidences, annealed to zero over the steps. Raises ValueError for a width
    that `heads` does not divide into multiples of 4.
    """

    samplers = ("confidence", "random")
    bf16_safe = True  # bf16 weights give what autocast gives
    objective = "masked-token"
    sampler_defaults = (
        TokenModel.sampler_defaults
        | GUIDE
        | {
            "guidance_schedule": "linear",
            "schedule": "cosine",  # the best of those that MaskGIT's authors tried
            "choice_temperature": 4.5,
        }
    )

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
        mask_schedule: str = "cosine",
        label_dropout: float = 0.1,
    ):
        super().__init__(latent_shape, num_classes, codebook=codebook, label_dropout=label_dropout)
        if mask_schedule not in SCHEDULES:
            raise ValueError(f"mask_schedule={mask_schedule}: {' or '.join(SCHEDULES)}")
        self.mask_schedule = mask_schedule
        if width % heads:
            raise ValueError(f"width {width} is not a multiple of heads {heads}")
        angles = grid_angles(*latent_shape[1:], width // heads)
        self.register_buffer("angles", angles, persistent=False)
        self.embed = nn.Embedding(codebook.size + 1, width)  # the last is [MASK]
        self.positions = nn.Parameter(torch.zeros(self.tokens, width))
        self.classes = nn.Embedding(num_classes + 1, width)  # the last is the null label's
        self.blocks = nn.ModuleList(
            Block(SelfAttention(width, heads), width, mlp) for _ in range(depth)
        )
        self.norm = nn.RMSNorm(width, eps=1e-6)
        self.head = nn.Linear(width, codebook.size, bias=False)
        initialise(self)
        nn.init.zeros_(self.head.weight)  # the first predictions are uniform

    def check_options(self, sampler: str, options: dict[str, Any]) -> None:
        super().check_options(sampler, options)
        noise_scale = options["choice_temperature"]
        if noise_scale < 0:
            raise ValueError(f"sampler.choice_temperature={noise_scale}: at least 0")

    def logits(self, tokens: LongTensor, labels: LongTensor) -> Tensor:
        """Logits (B, H*W, K) of all tokens (B, H*W). Those to predict are masked, with id K."""
        classes = self.classes(labels)[:, None]
        x = torch.cat([classes, self.embed(tokens) + self.positions + classes], dim=1)
        rotation = rotation_of(self.angles[None])
        for block in self.blocks:
            x = block(x, rotation, causal=False)
        return self.head(self.norm(x[:, 1:]))  # the class token predicts nothing

    def inputs(self, batch: Batch, *, rng: torch.Generator) -> tuple[Tensor, ...]:
        """Tokens (B, H*W), labels (B,), which tokens are masked (B, H*W) bool, and (B,) how many of
        an image are on average.
        """
        device, count = batch.tokens.device, len(batch.tokens)
        masked = random_mask(count, self.tokens, self.mask_schedule, rng=rng)
        average = (masked.sum() / count).repeat(count)
        return batch.tokens, batch.labels, to_device(masked, device), to_device(average, device)

    def error(
        self, tokens: LongTensor, labels: LongTensor, masked: Tensor, average: Tensor
    ) -> Tensor:
        """Mean cross-entropy per masked token, in nats (arXiv 2202.04200, equation 1)."""
        logits = self.logits(tokens.masked_fill(masked, self.codebook.size), labels).float()
        losses = F.cross_entropy(logits.flatten(0, 1), tokens.flatten(), reduction="none")
        # of the whole batch, also where these are a part of it with more or fewer masked tokens
        return (losses.view(masked.shape) * masked).sum() / average.sum()

    @torch.inference_mode()
    def evaluation(self, labels: LongTensor) -> Tensor:
        tokens = torch.zeros(len(labels), self.tokens, dtype=torch.long, device=labels.device)
        return self.logits(tokens, labels)

    @torch.inference_mode()
    def sample_tokens(
        self, labels: LongTensor, *, steps: int, guidance: float, rng: torch.Generator
    ) -> LongTensor:
        """Ids (B, H*W): each step samples all masked tokens, and keeps those it is surest of, or
        the next ones of a random order.
        """
        rngs, count, device = spawn(rng, len(labels)), len(labels), labels.device
        is_random = self.sampler == "random"
        order = random_orders(self.tokens, rngs, device) if is_random else None
        networks = self.networks(labels, guidance)
        scales = self.guidance_scales(guidance)
        ids = torch.full((count, self.tokens), self.codebook.size, device=device)  # all [MASK]
        fixed = torch.zeros_like(ids, dtype=torch.bool)
        done = 0
        counts = schedule(self.sampler_options["schedule"], self.tokens, steps)
        for step, kept_count in enumerate(counts, start=1):
            done += kept_count
            uniform = rand((2, self.tokens), rngs, device)  # for the ids, and for the confidences
            logits = torch.cat(
                [net.logits(ids.repeat(len(own) // count, 1), own) for net, own in networks]
            ).float()
            logits = self.apply_cfg(logits, None if scales is None else scales[done])
            proposed = self.sample_ids(logits, uniform[:, 0])
            if order is not None:
                places = order[:, done - kept_count : done]
            else:
                confidence = self._confidence(logits, proposed, uniform[:, 1], step / steps)
                # What is fixed already must not be chosen again.
                places = confidence.masked_fill(fixed, -math.inf).topk(kept_count, dim=1).indices
            ids = ids.scatter(1, places, proposed.gather(1, places))
            fixed = fixed.scatter(1, places, True)
        return ids

    def _confidence(
        self, logits: Tensor, proposed: LongTensor, uniform: Tensor, progress: float
    ) -> Tensor:
        """How sure the model is of the proposed ids (B, H*W): log-probability plus Gumbel noise.

        The noise is annealed to zero over the steps, as in MaskGIT's code: without it the first
        steps would keep the likeliest ids only.
        """
        log_probability = logits.log_softmax(-1).gather(2, proposed[..., None])[..., 0]
        # -log(-log u) is Gumbel noise; u is kept away from 0 and 1, where it is infinite.
        negative_gumbel = (-uniform.clamp(1e-9, 1 - 1e-7).log()).log()
        noise_scale = self.sampler_options["choice_temperature"] * (1 - progress)
        return log_probability - noise_scale * negative_gumbel

    def supported_steps(self, requested: Iterable[int]) -> list[int]:
        """1 to H * W."""
        return [n for n in requested if 1 <= n <= self.tokens]

    def supported_steps_text(self) -> str:
        return f"this model takes 1 to {self.tokens} steps"
