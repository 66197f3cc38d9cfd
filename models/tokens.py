"""What every token model shares: how logits become ids, how guidance acts on them, and how many
tokens a step samples.
"""

import math
from itertools import pairwise
from typing import Any

import torch
from torch import LongTensor, Tensor

from models.codebook import Codebook
from models.decoding import Steps
from models.generator import GenerativeModel


def arccos_schedule(progress: float) -> float:
    """Few tokens early; a large part of them in the last step, 21 of 64 where there are eight."""
    return math.acos(progress) * 2 / math.pi


def cosine_schedule(progress: float) -> float:
    """Still fewer early, and no such leap at the end: of 64 tokens the last of eight steps has 12.

    The best of those that MaskGIT's authors tried, and the default of both models that have one.
    """
    return math.cos(progress * math.pi / 2)


# From the fraction of steps that are done to the fraction of tokens still to come, both in [0, 1].
# Both are concave, which MaskGIT's authors found best (arXiv 2202.04200, section 3.3).
SCHEDULES = {"arccos": arccos_schedule, "cosine": cosine_schedule}


class SequenceModel(GenerativeModel):
    """A family that samples an image in tokens, one for each place of the latents, some in a step.

    `self.tokens` is H * W. A subclass writes `supported_steps_text`. Options of sampling:

    - `temperature`: above 0.
    - `guidance_schedule`: `constant`; or `linear`, where the scale grows from 1 to the guidance
      asked for with the fraction of tokens that are there after the step, as in ARPG's code (arXiv
      2503.10568).
    """

    sampler_defaults: dict[str, Any] = {"temperature": 1.0, "guidance_schedule": "constant"}

    def __init__(
        self, latent_shape: tuple[int, int, int], num_classes: int, *, label_dropout: float = 0.1
    ):
        super().__init__(latent_shape, num_classes, label_dropout=label_dropout)
        self.tokens = latent_shape[1] * latent_shape[2]

    def nfe(self, steps: int, guidance: float) -> int:
        if not self.supported_steps([steps]):
            raise ValueError(f"steps={steps}: {self.supported_steps_text()}")
        return steps if guidance == 1 else 2 * steps  # with and without the label

    def supported_steps_text(self) -> str:
        """Which step counts `sample` takes, in words for an error message."""
        raise NotImplementedError

    def check_options(self, sampler: str, options: dict[str, Any]) -> None:
        if options["temperature"] <= 0:
            raise ValueError(f"sampler.temperature={options['temperature']}: above 0")
        guidance_schedule = options["guidance_schedule"]
        if guidance_schedule not in ("constant", "linear"):
            raise ValueError(f"sampler.guidance_schedule={guidance_schedule}: constant or linear")
        if options.get("schedule", "arccos") not in SCHEDULES:
            raise ValueError(f"sampler.schedule={options['schedule']}: {' or '.join(SCHEDULES)}")

    def guidance_scales(self, guidance: float) -> list[float] | None:
        """The guidance of a step by the number of tokens that are there after it, 0 to H * W.

        None where there is no guidance.
        """
        if guidance == 1:
            return None
        if self.sampler_options["guidance_schedule"] == "linear":
            return [1 + (guidance - 1) * n / self.tokens for n in range(self.tokens + 1)]
        return [guidance] * (self.tokens + 1)


class TokenModel(SequenceModel):
    """A family that samples codebook ids (B, H * W), which `codebook` turns into whitened latents.

    A subclass writes `sample_tokens`, not `sample`. Logits are divided by the temperature. Two more
    options of sampling:

    - `top_k`: only so many of the likeliest ids can be sampled; 0 is all.
    - `top_p`: only the likeliest ids of this total probability can be; in (0, 1], 1 is all.
    """

    objective = "next-token"
    static_decoding: bool | None = None  # None: on CUDA only; tests set it elsewhere
    # At the defaults ids have the very distribution that was learned.
    sampler_defaults = SequenceModel.sampler_defaults | {"top_k": 0, "top_p": 1.0}

    def __init__(
        self,
        latent_shape: tuple[int, int, int],
        num_classes: int,
        *,
        codebook: Codebook,
        label_dropout: float = 0.1,
    ):
        super().__init__(latent_shape, num_classes, label_dropout=label_dropout)
        self.codebook = codebook  # of whitened latents: see `Codebook.whitened`
        # Whether any logits of this sampling were not finite, on the device: nobody waits for it.
        self.register_buffer("not_finite", torch.tensor(False), persistent=False)

    def sample_tokens(
        self, labels: LongTensor, *, steps: int, guidance: float, rng: torch.Generator
    ) -> LongTensor:
        """Ids (B, H * W) in raster order, for labels (B,). The arguments are those of `sample`."""
        raise NotImplementedError

    def sample(
        self, labels: LongTensor, *, steps: int, guidance: float, rng: torch.Generator
    ) -> Tensor:
        self.nfe(steps, guidance)  # raises for a step count that is not supported
        self.not_finite.fill_(False)
        ids = self.sample_tokens(labels, steps=steps, guidance=guidance, rng=rng)
        # Ids of any logits would be an image like any other; latents that are not finite are none.
        return self.codebook.detokenize(ids).masked_fill(self.not_finite, math.nan)

    def check_options(self, sampler: str, options: dict[str, Any]) -> None:
        super().check_options(sampler, options)
        if options["top_k"] < 0:
            raise ValueError(f"sampler.top_k={options['top_k']}: a whole number, 0 for all")
        if not 0 < options["top_p"] <= 1:
            raise ValueError(f"sampler.top_p={options['top_p']}: above 0, at most 1")

    def networks(
        self, labels: LongTensor, guidance: float
    ) -> "list[tuple[TokenModel, LongTensor]]":
        """What a step evaluates, each network with the labels that it is shown: together (2B,)
        under guidance, conditional first, as `apply_cfg` takes their logits.
        """
        guide: Any = self.guide() if guidance != 1 else None
        if guide is None:
            return [(self, with_null_labels(labels, self.num_classes, guidance))]
        return [(self, labels), (guide, labels)]

    def apply_cfg(self, logits: Tensor, scale: float | Tensor | None) -> Tensor:
        """Classifier-free guidance on logits: (2B, ..., K), conditional half first -> (B, ..., K).

        Logits are log-probabilities up to a constant, so that this is u + w (c - u) of the log
        densities, as in arXiv 2207.12598. With a scale of None the logits come back as they are.
        """
        if scale is None:
            return logits
        conditional, unconditional = logits.chunk(2)
        return torch.lerp(unconditional, conditional, scale)

    def new_steps(self, device: torch.device) -> Steps:
        """The steps of one decoding: static on CUDA, and captured where weights are fixed.

        Capturing pays only where the graphs are kept for another batch.
        """
        on_cuda = device.type == "cuda"
        # Elsewhere slices are faster than places on the device.
        static = on_cuda if self.static_decoding is None else self.static_decoding
        captured = on_cuda and self._kept is not None
        return Steps(self.tokens, device, static=static, captured=captured)

    def sample_ids(self, logits: Tensor, uniform: Tensor) -> LongTensor:
        """Ids (...) from logits (..., K) and uniform numbers (...) in [0, 1).

        By the temperature, top-k and top-p that are set.
        """
        options = self.sampler_options
        self.not_finite.logical_or_(~logits.isfinite().all())
        # The temperature comes first: `top_p` is a probability of what it leaves.
        logits = logits / options["temperature"]
        logits = filter_logits(logits, options["top_k"], options["top_p"])
        ids = inverse_cdf(logits.reshape(-1, logits.shape[-1]), uniform.reshape(-1))
        return ids.view(uniform.shape)


def with_null_labels(labels: LongTensor, null_label: int, guidance: float) -> LongTensor:
    """Under guidance labels (B,) and then B null labels, (2B,); else the labels as they are.

    Both halves go through the network as one batch, and `TokenModel.apply_cfg` joins them again.
    """
    if guidance == 1:
        return labels
    return torch.cat([labels, torch.full_like(labels, null_label)])


def filter_logits(logits: Tensor, top_k: int, top_p: float) -> Tensor:
    """Top-k, then top-p filtering: minus infinity in logits (..., K) for all ids that are left out.

    Kept are the `top_k` likeliest ids (0: all), and of these the smallest set whose probability is
    at least `top_p` (nucleus sampling, arXiv 1904.09751).
    """
    if 0 < top_k < logits.shape[-1]:
        least = logits.topk(top_k, dim=-1).values[..., -1:]
        logits = logits.masked_fill(logits < least, -math.inf)
    if top_p < 1:
        ordered, order = logits.sort(dim=-1, descending=True)
        probability = ordered.softmax(-1)
        # An id is left out where those before it suffice. So the likeliest always stays.
        beyond = probability.cumsum(-1) - probability >= top_p
        logits = logits.masked_fill(torch.zeros_like(beyond).scatter(-1, order, beyond), -math.inf)
    return logits


def inverse_cdf(logits: Tensor, uniform: Tensor) -> LongTensor:
    """Inverse-transform sampling: ids (B,) from logits (B, K) and uniform numbers (B,) in [0, 1).

    The random numbers come from outside, one per sample and token, where `torch.multinomial` would
    draw from one generator for the whole batch.
    """
    cumulative = logits.softmax(-1).cumsum(-1)
    # Scaled by the last entry, which rounding leaves a little beside 1.
    threshold = (uniform[:, None] * cumulative[:, -1:]).contiguous()
    ids = torch.searchsorted(cumulative, threshold, right=True)
    return ids[:, 0].clamp(max=logits.shape[-1] - 1)  # a number next to 1 may round past the end


def random_mask(count: int, tokens: int, kind: str, *, rng: torch.Generator) -> Tensor:
    """Which tokens (count, tokens) of a training batch are masked: at least one of each image.

    The fractions are those that sampling with the schedule `kind` meets, at a uniform progress
    (arXiv 2202.04200, section 3.1).
    """
    progress = torch.rand(count, generator=rng).tolist()
    fraction = torch.tensor([[SCHEDULES[kind](p)] for p in progress])
    # At least one, or an image would have no loss.
    masked_count = (fraction * tokens).round().clamp(min=1)
    # argsort of an argsort is the rank of each number, a random permutation.
    random_rank = torch.rand(count, tokens, generator=rng).argsort(dim=1).argsort(dim=1)
    return random_rank < masked_count


def schedule(kind: str, tokens: int, steps: int) -> list[int]:
    """How many tokens each of `steps` steps samples: few at first, at least one, `tokens` in all.

    `kind` names one of SCHEDULES. `steps` is 1 to `tokens`.
    """
    done = [0]
    for step in range(1, steps + 1):
        wanted = round(tokens * (1 - SCHEDULES[kind](step / steps)))
        most = tokens - (steps - step)  # leaves one token to each step that follows
        # At least one token a step: an empty step would be counted and do nothing.
        done.append(min(max(wanted, done[-1] + 1), most))
    return [after - before for before, after in pairwise(done)]
