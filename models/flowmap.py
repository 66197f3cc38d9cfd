"""A diffusion model trained for few steps: the average velocity between any two times.

With data x, noise e and times t, 1 noise and 0 data, x_t = (1 - t) x + t e moves with v = e - x.
One network u(x_t, r, t) learns the average velocity of the flow from t down to r, so that x_t - (t
- r) u is where the flow leads, in one evaluation (MeanFlow, arXiv 2505.13447). Its target is made
of two points of the path (alpha-Flow, arXiv 2510.20771, equation 7; SoFlow, arXiv 2512.15657):

    alpha v + (1 - alpha) u(x_s, r, s),  s = t - alpha (t - r),  x_s = x_t - (t - s) v

without gradient through the second u. At alpha = 1 this is flow matching, at 1/2 much like the
shortcut models of arXiv 2410.12557, towards 0 MeanFlow. Where guidance is learned, x_s lies in the
direction of the network's own guided velocity, which is evaluated anyway, in place of v. No
derivative is taken forwards, so that attention, precision and compilation are those of the other
objectives.

Guided samples take u with and without the label, two evaluations a step, as those of `flow` do. Or
guidance is learned: an input w in [1, `most_guidance`], whose velocity is that of classifier-free
guidance, v + (w - 1) (u(x_t, t, t | label) - u(x_t, t, t)). A guided sample then costs one
evaluation a step, as any other.
"""

import itertools
import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import LongTensor, Tensor, nn

from models.generator import Batch, GenerativeModel
from models.randomness import randn, spawn, to_device
from models.schedulers import CHAIN


class FlowMap(GenerativeModel):
    """A flow map over whitened latents.

    `denoiser(latent_shape, num_classes, conditions=2)` builds a network that maps x (B, C, H, W), t
    (B,) in [0, 1000], labels (B,) and two more numbers (B,) to a tensor like x; untrained, those
    two are to change nothing. The codebook is not looked at.

    - `time_mean`: the mean of the logarithmic odds of the times; above 0 nearer noise.
    - `flow_first`: the fraction of the budget that is flow matching alone, t = r.
    - `same_time`: of the later batches, the fraction that stays flow matching.
    - `ends`: of the pairs of times, the fraction that begins at noise or ends at data, as the first
      and the last step of sampling do.
    - `least_alpha`: what alpha falls to, from 1, over the first half of the later batches.
    - `most_guidance`: the highest guidance that can be sampled with; 1 learns none, so that guided
      samples take two evaluations a step, as those of `flow` do.
    - `guided`: of the later batches, the fraction that learns guidance.

    Options of sampling: `shift` above 1 makes the steps near noise shorter (arXiv 2403.03206,
    equation 23). Samplers: `map` goes from time to time; `renoise` goes to data in each step and
    adds fresh noise for the next time, as consistency models do (arXiv 2303.01469, algorithm 1);
    `euler` takes the velocity of each time, u from t to t, as `flow` does.

    Raises ValueError for numbers out of range.
    """

    objective = "flowmap"
    uses_tokens = False
    samplers = ("map", "renoise", "euler")
    sampler_defaults = {"shift": 1.0}

    def __init__(
        self,
        latent_shape: tuple[int, int, int],
        num_classes: int,
        *,
        denoiser: Callable[..., nn.Module],
        objective: str = "flowmap",
        time_mean: float = 0.0,
        flow_first: float = 0.25,
        same_time: float = 0.75,
        ends: float = 0.5,
        least_alpha: float = 0.1,
        most_guidance: float = 1.0,
        guided: float = 0.25,
        label_dropout: float = 0.1,
        codebook: nn.Module | None = None,
    ):
        super().__init__(latent_shape, num_classes, label_dropout=label_dropout)
        if objective != self.objective:
            raise ValueError(f"model.objective={objective}: this class has flowmap only")
        fractions = dict(flow_first=flow_first, same_time=same_time, ends=ends, guided=guided)
        for name, value in fractions.items():
            if not 0 <= value <= 1:
                raise ValueError(f"model.{name}={value}: from 0 to 1")
        if not 0 < least_alpha <= 1:
            raise ValueError(f"model.least_alpha={least_alpha}: above 0, at most 1")
        if most_guidance < 1:
            raise ValueError(f"model.most_guidance={most_guidance}: 1 or more")
        if most_guidance > 1 and not label_dropout:
            raise ValueError("model.most_guidance: guidance needs train.label_dropout above 0")
        self.time_mean = time_mean
        self.flow_first, self.same_time, self.ends = flow_first, same_time, ends
        self.least_alpha, self.most_guidance = least_alpha, most_guidance
        self.guided = guided if most_guidance > 1 else 0.0
        self.denoiser = denoiser(self.latent_shape, num_classes, conditions=2)
        self.extra_after = flow_first
        # u of the second point; for guidance, u with and without the label at the first.
        self.extra_passes = (1 - flow_first) * (1 - same_time + 2 * self.guided)

    def inputs(self, batch: Batch, *, rng: torch.Generator) -> tuple[Tensor, ...]:
        """Latents, as much noise, times t (B,) in (0, 1] and labels (B,).

        After `flow_first`, in training mode, also r (B,) and alpha (B,) of a batch of pairs, and
        guidance (B,) of a batch that learns it.
        """
        x, count = batch.latents.float(), len(batch.latents)
        noise = torch.randn(x.shape, generator=rng)
        # Logit-normal, as of `flow` (arXiv 2403.03206).
        time = torch.sigmoid(torch.randn(count, generator=rng) + self.time_mean)
        more: list[Tensor] = []
        if self.training and self.progress >= self.flow_first:
            is_pairs, is_guided = torch.rand(2, generator=rng).tolist()
            if is_pairs >= self.same_time:
                time, until = self._pairs(time, rng)
                more = [until, torch.full((count,), self._alpha())]
            if is_guided < self.guided:
                # By the logarithm: from 1 to 1.5 guidance changes as much as from 4 to 6.
                more += [self.most_guidance ** torch.rand(count, generator=rng)]
        noise, time, *more = (to_device(each, x.device) for each in (noise, time, *more))
        return x, noise, time, batch.labels, *more

    def _pairs(self, time: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """Times t and r <= t (B,): of two such times the later and the earlier; of the fraction
        `ends`, one half has t = 1 and the other r = 0, and a uniform time beside it.
        """
        count = len(time)
        other = torch.sigmoid(torch.randn(count, generator=rng) + self.time_mean)
        time, until = torch.maximum(time, other), torch.minimum(time, other)
        uniform, kind = torch.rand(2, count, generator=rng)
        at_noise, at_data = kind < self.ends / 2, (kind >= self.ends / 2) & (kind < self.ends)
        time = torch.where(at_noise, 1.0, torch.where(at_data, uniform, time))
        until = torch.where(at_data, 0.0, torch.where(at_noise, uniform, until))
        return time, until

    def _alpha(self) -> float:
        """Of this moment of the training: geometric, from 1 to `least_alpha`."""
        done = (self.progress - self.flow_first) / max(1 - self.flow_first, 1e-9)
        return self.least_alpha ** min(1.0, 2 * done)

    def error(
        self, x: Tensor, noise: Tensor, time: Tensor, labels: LongTensor, *more: Tensor
    ) -> Tensor:
        """Mean squared error of the velocity; its gradient, of pairs and of guidance, weighted."""
        noisy = torch.lerp(x, noise, time[:, None, None, None])
        velocity = noise - x
        is_pairs, is_guided = len(more) >= 2, len(more) in (1, 3)
        until, alpha = more[:2] if is_pairs else (time, torch.ones_like(time))
        log_guidance, moving = torch.zeros_like(time), velocity
        if is_guided:  # of no label there is none
            log_guidance = torch.where(labels == self.num_classes, 0.0, more[-1].log())
            with torch.no_grad():
                conditional, added = self._guiding(noisy, time, labels, log_guidance)
                velocity, moving = velocity + added, conditional + added
        target = velocity
        if is_pairs:
            ahead = alpha * (time - until)
            with torch.no_grad():
                second = noisy - ahead[:, None, None, None] * moving
                after = self._average(second, time - ahead, labels, until, log_guidance)
                target = torch.lerp(after, velocity, alpha[:, None, None, None])
        average = self._average(noisy, time, labels, until, log_guidance)
        if not more:
            return F.mse_loss(average, target)
        squares = (average - target).square().mean((1, 2, 3))
        # alpha / (error + c), arXiv 2510.20771: the error of a pair is proportional to alpha.
        weighted = (squares * alpha / (squares.detach() + 1e-3)).mean()
        # The gradient is the weighted error's, whose value would say nothing; the value the error.
        return weighted + (squares.mean() - weighted).detach()

    def _guiding(
        self, x: Tensor, time: Tensor, labels: LongTensor, log_guidance: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The velocity at x of the label, and what guidance adds: (w - 1) (u(label) - u(none))."""
        conditional, unconditional = self._with_and_without(x, time, labels, time)
        scale = (log_guidance.exp() - 1)[:, None, None, None]
        return conditional, scale * (conditional - unconditional)

    def _with_and_without(
        self, x: Tensor, time: Tensor, labels: LongTensor, until: Tensor
    ) -> tuple[Tensor, Tensor]:
        """u(x, until, time) of the labels and of no label, in one batch."""
        both = torch.cat([labels, torch.full_like(labels, self.num_classes)])
        x, time, until = (torch.cat([each, each]) for each in (x, time, until))
        conditional, unconditional = self._average(
            x, time, both, until, torch.zeros_like(time)
        ).chunk(2)
        return conditional, unconditional

    def _average(
        self, x: Tensor, time: Tensor, labels: LongTensor, until: Tensor, log_guidance: Tensor
    ) -> Tensor:
        """u(x, until, time), float32, of times (B,) in [0, 1]."""
        # All numbers in [0, 1000], as the denoiser embeds them.
        conditions = ((time - until) * CHAIN, log_guidance * (CHAIN / 4))
        return self.denoiser(x, time * CHAIN, labels, *conditions).float()

    def check_options(self, sampler: str, options: dict[str, Any]) -> None:
        if options["shift"] <= 0:
            raise ValueError(f"sampler.shift={options['shift']}: above 0")

    @torch.inference_mode()
    def evaluation(self, labels: LongTensor) -> Tensor:
        x = torch.zeros(len(labels), *self.latent_shape, device=labels.device)
        zeros = x.new_zeros(len(x))
        return self._average(x, zeros, labels, zeros, zeros)

    @torch.inference_mode()
    def sample(
        self, labels: LongTensor, *, steps: int, guidance: float, rng: torch.Generator
    ) -> Tensor:
        self.nfe(steps, guidance)  # raises for what is not supported
        rngs = spawn(rng, len(labels))
        x = randn(self.latent_shape, rngs, labels.device)
        times = self._times(steps)
        for time, until in itertools.pairwise(times):
            to = 0.0 if self.sampler == "renoise" else until
            of = time if self.sampler == "euler" else to
            x = x - (time - to) * self._guided(x, time, labels, of, guidance)
            if self.sampler == "renoise" and until > 0:
                x = torch.lerp(x, randn(self.latent_shape, rngs, labels.device), until)
        return x

    def _guided(
        self, x: Tensor, time: float, labels: LongTensor, until: float, guidance: float
    ) -> Tensor:
        """u(x, until, time), guided as it was learned, else by u(label) and u(no label)."""
        t, r = x.new_full((len(x),), time), x.new_full((len(x),), until)
        if guidance == 1 or self.most_guidance > 1:
            return self._average(x, t, labels, r, torch.full_like(t, math.log(guidance)))
        conditional, unconditional = self._with_and_without(x, t, labels, r)
        return torch.lerp(unconditional, conditional, guidance)

    def _times(self, steps: int) -> list[float]:
        """From 1 to 0, evenly spaced, then shifted to s t / (1 + (s - 1) t)."""
        shift = self.sampler_options["shift"]
        even = [1 - step / steps for step in range(steps + 1)]
        return [shift * time / (1 + (shift - 1) * time) for time in even]

    def supported_steps(self, requested: Iterable[int]) -> list[int]:
        """1 to 1000, as of the other objectives."""
        return [n for n in requested if 1 <= n <= CHAIN]

    def supports_guidance(self, guidance: float) -> bool:
        """What it was trained for: 1 to `most_guidance`; any, where none was learned."""
        if self.most_guidance == 1 and self.label_dropout:
            return True
        return 1 <= guidance <= self.most_guidance

    def nfe(self, steps: int, guidance: float) -> int:
        """One evaluation a step; two of a guided one whose guidance was not learned."""
        if not self.supported_steps([steps]):
            raise ValueError(f"steps={steps}: a flow map takes 1 to {CHAIN} steps")
        if not self.supports_guidance(guidance):
            reason = f"this flow map learned 1 to {self.most_guidance:g} (model.most_guidance)"
            if not self.label_dropout:
                reason = "it was trained with train.label_dropout=0, without which there is none"
            raise ValueError(f"guidance={guidance:g}: {reason}")
        return steps * (1 if guidance == 1 or self.most_guidance > 1 else 2)
