"""A masked transformer over codebook tokens: MaskGIT (arXiv 2202.04200), any number of steps, no
cache.

Every step looks at the whole picture again: what is still masked is predicted at once, and what the
model is surest of stays. The class is a token of its own, as there, and is added to every other
one.
"""

import math
from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import LongTensor, Tensor, nn

from models.codebook import Codebook
from models.generator import Batch, rand, spawn, to_device
from models.layers import Block, SelfAttention, grid_angles, initialise, turns
from models.tokens import TokenModel, schedule, with_null_labels


class Masked(TokenModel):
    """Bidirectional prediction of masked tokens, 1 to H * W steps.

    Besides the token models' options: `schedule`, how many tokens a step fixes;
    `choice_temperature`, the scale of the Gumbel noise on the confidences, annealed to zero over
    the steps.
    """

    samplers = ("confidence",)
    bf16_safe = True  # bf16 weights give what autocast gives
    objective = "masked-token"
    sampler_defaults = TokenModel.sampler_defaults | {
        "guidance_schedule": "linear",
        "schedule": "arccos",
        "choice_temperature": 4.5,
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
        if width % heads:
            raise ValueError(f"width {width} is not a multiple of heads {heads}")
        self.register_buffer(
            "angles", grid_angles(*latent_shape[1:], width // heads), persistent=False
        )
        self.embed = nn.Embedding(codebook.size + 1, width)  # the last is [MASK]
        self.positions = nn.Parameter(torch.zeros(self.tokens, width))
        self.classes = nn.Embedding(num_classes + 1, width)
        self.blocks = nn.ModuleList(
            Block(SelfAttention(width, heads), width, mlp) for _ in range(depth)
        )
        self.norm = nn.RMSNorm(width, eps=1e-6)
        self.head = nn.Linear(width, codebook.size, bias=False)
        initialise(self)
        nn.init.zeros_(self.head.weight)

    def check_options(self, sampler: str, options: dict[str, Any]) -> None:
        """Raises ValueError for a value out of range."""
        super().check_options(sampler, options)
        if options["choice_temperature"] < 0:
            raise ValueError(
                f"sampler.choice_temperature={options['choice_temperature']}: at least 0"
            )

    def logits(self, tokens: LongTensor, labels: LongTensor) -> Tensor:
        """Scores (B, H*W, K) of all tokens (B, H*W), of which those to predict are masked (id K)."""
        classes = self.classes(labels)[:, None]
        x = torch.cat([classes, self.embed(tokens) + self.positions + classes], dim=1)
        turn = turns(self.angles[None])
        for block in self.blocks:
            x = block(x, turn, causal=False)
        return self.head(self.norm(x[:, 1:]))

    def inputs(self, batch: Batch, *, rng: torch.Generator) -> tuple[Tensor, ...]:
        """Tokens, labels and which tokens are masked: a share arccos(u) * 2 / pi of each image, u
        uniform.
        """
        masked = to_device(self._to_predict(len(batch.tokens), rng), batch.tokens.device)
        return batch.tokens, batch.labels, masked

    def error(self, tokens: LongTensor, labels: LongTensor, masked: Tensor) -> Tensor:
        """Mean cross-entropy per masked token, in nats."""
        scores = self.logits(tokens.masked_fill(masked, self.codebook.size), labels).float()
        each = F.cross_entropy(scores.flatten(0, 1), tokens.flatten(), reduction="none").view(
            masked.shape
        )
        return (each * masked).sum() / masked.sum()

    def _to_predict(self, count: int, rng: torch.Generator) -> Tensor:
        """Which tokens (count, H * W) of a training batch are masked."""
        share = torch.arccos(torch.rand(count, 1, generator=rng)) * 2 / math.pi
        least = (share * self.tokens).round().clamp(min=1)
        rank = torch.rand(count, self.tokens, generator=rng).argsort(dim=1).argsort(dim=1)
        return rank < least

    @torch.inference_mode()
    def evaluation(self, labels: LongTensor) -> Tensor:
        """One evaluation, of nothing: all cost the same."""
        return self.logits(
            torch.zeros(len(labels), self.tokens, dtype=torch.long, device=labels.device), labels
        )

    @torch.inference_mode()
    def sample_tokens(
        self, labels: LongTensor, *, steps: int, guidance: float, rng: torch.Generator
    ) -> LongTensor:
        """Token ids (B, H*W): a step draws every masked token, then keeps its share, the surest
        under annealed noise.
        """
        rngs, count = spawn(rng, len(labels)), len(labels)
        labels = with_null_labels(labels, self.num_classes, guidance)
        ids = torch.full((count, self.tokens), self.codebook.size, device=labels.device)
        fixed, done, scales = torch.zeros_like(ids, dtype=torch.bool), 0, self.scales(guidance)
        for step, share in enumerate(
            schedule(self.sampler_options["schedule"], self.tokens, steps), start=1
        ):
            done += share
            noise = rand((2, self.tokens), rngs, labels.device)
            logits = self.logits(ids if guidance == 1 else ids.repeat(2, 1), labels).float()
            logits = self.apply_cfg(logits, scales[done] if scales else None)
            proposed = self.sample_ids(logits, noise[:, 0])
            sure = logits.log_softmax(-1).gather(2, proposed[..., None])[..., 0]
            sure = (
                sure
                - self.sampler_options["choice_temperature"]
                * (1 - step / steps)
                * (-noise[:, 1].clamp(1e-9, 1 - 1e-7).log()).log()
            )
            best = sure.masked_fill(fixed, -math.inf).topk(share, dim=1).indices
            ids = ids.scatter(1, best, proposed.gather(1, best))
            fixed = fixed.scatter(1, best, True)
        return ids

    def supported_steps(self, requested: Iterable[int]) -> list[int]:
        """1 to H * W."""
        return [n for n in requested if 1 <= n <= self.tokens]

    def supported_steps_text(self) -> str:
        return f"this model takes 1 to {self.tokens} steps"
