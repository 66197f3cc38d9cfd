"""What every token model shares: how logits become ids, how guidance acts on them, how many tokens
a step takes.
"""

import math
from itertools import pairwise
from typing import Any

import torch
from torch import LongTensor, Tensor

from models.codebook import Codebook
from models.decoding import Steps
from models.generator import GenerativeModel

# share of the steps -> share of the tokens still to come; both concave, as MaskGIT (arXiv
# 2202.04200) found best
SCHEDULES = {
    "arccos": lambda r: math.acos(r) * 2 / math.pi,
    "cosine": lambda r: math.cos(r * math.pi / 2),
}


class TokenModel(GenerativeModel):
    """A family that draws codebook ids (B, H * W); `codebook` speaks whitened latents
    (`Codebook.whitened`).

    `choice` holds `temperature` above 0; `top_k`, the likeliest ids kept, 0 for all; `top_p` in (0,
    1], the probability kept; and `guidance_schedule`: constant, or linear: 1 + (w - 1) x the share
    of tokens drawn after the step (as ARPG, arXiv 2503.10568).
    """

    objective = "next-token"
    static_decoding: bool | None = None  # None: on CUDA only (tests ask for it elsewhere)
    sampler_defaults = {
        "temperature": 1.0,
        "top_k": 0,
        "top_p": 1.0,
        "guidance_schedule": "constant",
    }

    def __init__(
        self,
        latent_shape: tuple[int, int, int],
        num_classes: int,
        *,
        codebook: Codebook,
        label_dropout: float = 0.1,
    ):
        super().__init__(latent_shape, num_classes, label_dropout=label_dropout)
        self.tokens = latent_shape[1] * latent_shape[2]
        self.codebook = codebook

    def sample_tokens(
        self, labels: LongTensor, *, steps: int, guidance: float, rng: torch.Generator
    ) -> LongTensor:
        """Ids (B, H * W) in raster order."""
        raise NotImplementedError

    def sample(
        self, labels: LongTensor, *, steps: int, guidance: float, rng: torch.Generator
    ) -> Tensor:
        self.nfe(steps, guidance)  # refuses what cannot be honoured
        return self.codebook.detokenize(
            self.sample_tokens(labels, steps=steps, guidance=guidance, rng=rng)
        )

    def nfe(self, steps: int, guidance: float) -> int:
        if not self.supported_steps([steps]):
            raise ValueError(f"steps={steps}: {self.supported_steps_text()}")
        return steps * (1 if guidance == 1 else 2)

    def supported_steps_text(self) -> str:
        """Which step counts `sample` takes, in words."""
        raise NotImplementedError

    def check_options(self, sampler: str, options: dict[str, Any]) -> None:
        """Raises ValueError for a value out of range."""
        if options["temperature"] <= 0:
            raise ValueError(f"sampler.temperature={options['temperature']}: above 0")
        if options["top_k"] < 0:
            raise ValueError(f"sampler.top_k={options['top_k']}: a whole number, 0 for all")
        if not 0 < options["top_p"] <= 1:
            raise ValueError(f"sampler.top_p={options['top_p']}: above 0, at most 1")
        if options["guidance_schedule"] not in ("constant", "linear"):
            raise ValueError(
                f"sampler.guidance_schedule={options['guidance_schedule']}: constant or linear"
            )
        if options.get("schedule", "arccos") not in SCHEDULES:
            raise ValueError(f"sampler.schedule={options['schedule']}: {' or '.join(SCHEDULES)}")

    def scales(self, guidance: float) -> list[float] | None:
        """The guidance that acts on a step, by how many tokens are there after it, 0 to all; None
        where there is none.
        """
        if guidance == 1:
            return None
        linear = self.sampler_options["guidance_schedule"] == "linear"
        return [
            1 + (guidance - 1) * n / self.tokens if linear else guidance
            for n in range(self.tokens + 1)
        ]

    def apply_cfg(self, logits: Tensor, scale: float | Tensor | None) -> Tensor:
        """Conditional and unconditional halves (2B, ..., K) -> (B, ..., K); without a scale, logits
        as they are.
        """
        if scale is None:
            return logits
        conditional, unconditional = logits.chunk(2)
        return torch.lerp(unconditional, conditional, scale)

    def new_steps(self, device: torch.device) -> Steps:
        """The steps of one decoding: static on CUDA, captured where they are kept for another
        batch.
        """
        static = device.type == "cuda" if self.static_decoding is None else self.static_decoding
        return Steps(
            self.tokens,
            device,
            static=static,
            captured=device.type == "cuda" and self._kept is not None,
        )

    def sample_ids(self, logits: Tensor, uniform: Tensor) -> LongTensor:
        """Ids (...) from logits (..., K) and uniform numbers (...) in [0, 1), by temperature, top-k
        and top-p.
        """
        shape = uniform.shape
        logits = filter_logits(
            logits / self.sampler_options["temperature"],
            self.sampler_options["top_k"],
            self.sampler_options["top_p"],
        )
        return inverse_cdf(logits.reshape(-1, logits.shape[-1]), uniform.reshape(-1)).view(shape)


def with_null_labels(labels: LongTensor, null_label: int, guidance: float) -> LongTensor:
    """Under guidance the labels, then as many null labels: both halves go through the network in
    one batch.
    """
    return labels if guidance == 1 else torch.cat([labels, torch.full_like(labels, null_label)])


def filter_logits(logits: Tensor, top_k: int, top_p: float) -> Tensor:
    """Minus infinity for all but the `top_k` likeliest ids, then for those beyond the smallest set
    of probability `top_p`.
    """
    if 0 < top_k < logits.shape[-1]:
        logits = logits.masked_fill(logits < logits.topk(top_k, dim=-1).values[..., -1:], -math.inf)
    if top_p < 1:
        ordered, order = logits.sort(dim=-1, descending=True)
        share = ordered.softmax(-1)
        beyond = (
            share.cumsum(-1) - share >= top_p
        )  # what came before already suffices; the likeliest always stays
        logits = logits.masked_fill(torch.zeros_like(beyond).scatter(-1, order, beyond), -math.inf)
    return logits


def inverse_cdf(logits: Tensor, uniform: Tensor) -> LongTensor:
    """Inverse-transform sampling: ids (B,) from logits (B, K) and uniform numbers (B,) in [0, 1)."""
    cumulative = logits.softmax(-1).cumsum(-1)
    ids = torch.searchsorted(
        cumulative, (uniform[:, None] * cumulative[:, -1:]).contiguous(), right=True
    )
    return ids[:, 0].clamp(max=logits.shape[-1] - 1)


def schedule(kind: str, tokens: int, steps: int) -> list[int]:
    """How many tokens each of `steps` steps draws: few at first, at least one each, `tokens` in
    all.

    `kind` names one of SCHEDULES; arccos leaves much to the last step, cosine draws fewer early.
    """
    done = [0]
    for step in range(1, steps + 1):
        wanted = round(tokens * (1 - SCHEDULES[kind](step / steps)))
        done.append(min(max(wanted, done[-1] + 1), tokens - (steps - step)))
    return [after - before for before, after in pairwise(done)]
