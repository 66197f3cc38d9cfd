"""The two diffusion families: one training objective and one sampling loop around a denoiser (U-Net
or DiT).

Time runs from data (0) to noise (1). With data x and noise e the objectives are

- `flow`: flow matching on straight lines, as rectified flow (arXiv 2210.02747, 2209.03003). x_t =
  (1 - t) x + t e, target e - x, t logit-normal (arXiv 2403.03206).
- `flow_x0`: the same loss of a network that predicts x, from which the velocity is (x_t - x) / t
  (JiT, arXiv 2511.13720): for data of many numbers a place, such as patches of pixels.
- `eps`, `x0`, `v`: a variance-preserving chain of 1000 steps (arXiv 2006.11239). x_t = sqrt(a_t) x
  + sqrt(1 - a_t) e, with target e (eps), x (x0) or sqrt(a_t) e - sqrt(1 - a_t) x (v, arXiv
  2202.00512).
"""

import inspect
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import LongTensor, Tensor, nn

from models import schedulers
from models.generator import Batch, GenerativeModel
from models.options import GUIDE
from models.randomness import randn, spawn, to_device
from models.schedulers import CHAIN, FLOWS, PREDICTION

LEAST_TIME = 0.05  # in training velocities are made by dividing by the time, but never by less


class Diffusion(GenerativeModel):
    """A diffusion model over whitened latents.

    `denoiser(latent_shape, num_classes)` builds a network that maps x (B, C, H, W), t (B,) in [0,
    1000] and labels (B,), of which `num_classes` is the null label, to a tensor like x. `objective`
    is flow, flow_x0, eps, v or x0; `schedulers.samplers` says with which samplers each can be
    sampled. `time_mean` and `time_std` are of the logarithmic odds of flow's and flow_x0's training
    times: a mean above 0 is nearer noise. The codebook is not looked at. Options of sampling:

    - `guidance_interval`: the times (low, high), 1 noise and 0 data, between which guidance acts
      (arXiv 2404.07724). Outside the network is evaluated once a step, not twice.
    - `guide`: `unconditional`, the network without the label, or `snapshot:0.25`, the weights kept
      after that fraction of the training (arXiv 2406.02507).
    - `shift` (flow only): above 1 spends more steps near noise (arXiv 2403.03206, equation 23).

    Raises ValueError for an unknown objective, and for times of the chain's.
    """

    uses_tokens = False
    sampler_defaults = {"guidance_interval": (0.0, 1.0)} | GUIDE

    def __init__(
        self,
        latent_shape: tuple[int, int, int],
        num_classes: int,
        *,
        denoiser: Callable[..., nn.Module],
        objective: str = "flow",
        time_mean: float = 0.0,
        time_std: float = 1.0,
        label_dropout: float = 0.1,
        codebook: nn.Module | None = None,
    ):
        super().__init__(latent_shape, num_classes, label_dropout=label_dropout)
        if objective not in (*FLOWS, *PREDICTION):
            known = ", ".join([*FLOWS, *PREDICTION])
            raise ValueError(f"model.objective={objective}: one of {known}")
        self.is_flow = objective in FLOWS
        for name, value, usual in (("time_mean", time_mean, 0.0), ("time_std", time_std, 1.0)):
            if value != usual and not self.is_flow:
                raise ValueError(f"model.{name}={value}: only of objectives {', '.join(FLOWS)}")
        self.objective, self.time_mean, self.time_std = objective, time_mean, time_std
        self.samplers = schedulers.samplers(objective)
        # The chain has no shift: its times are those it was trained at.
        if self.is_flow:
            self.sampler_defaults = self.sampler_defaults | {"shift": 1.0}
        self.set_sampler()  # again: the samplers depend on the objective
        self.denoiser = denoiser(self.latent_shape, num_classes)
        # a_t of the chain: DDPM's linear betas, as diffusers has them (`schedulers.BETAS`).
        alphas = torch.cumprod(1 - torch.linspace(1e-4, 0.02, CHAIN, dtype=torch.float64), 0)
        self.register_buffer("alphas", alphas.float(), persistent=False)

    def inputs(self, batch: Batch, *, rng: torch.Generator) -> tuple[Tensor, ...]:
        """Latents, as much noise, times (B,) and labels (B,). The tokens are not looked at.

        Times are float in (0, 1) for flow, and whole numbers in 0..999 for the chain.
        """
        x, count = batch.latents.float(), len(batch.latents)
        noise = torch.randn(x.shape, generator=rng)
        if self.is_flow:
            # Logit-normal: most training goes to the middle, where the target is hardest.
            odds = self.time_std * torch.randn(count, generator=rng) + self.time_mean
            time = torch.sigmoid(odds)
        else:
            time = torch.randint(CHAIN, (count,), generator=rng)
        return x, to_device(noise, x.device), to_device(time, x.device), batch.labels

    def error(self, x: Tensor, noise: Tensor, time: Tensor, labels: LongTensor) -> Tensor:
        """Mean squared error of the objective's target."""
        if self.is_flow:
            noisy = torch.lerp(x, noise, time[:, None, None, None])
            target, time = noise - x, time * CHAIN  # the denoiser takes times in [0, 1000]
            if self.objective == "flow_x0":
                target = self._velocity(noisy, x, time, LEAST_TIME)
        else:
            a = self.alphas[time][:, None, None, None]
            noisy = a.sqrt() * x + (1 - a).sqrt() * noise
            if self.objective == "eps":
                target = noise
            elif self.objective == "x0":
                target = x
            else:
                target = a.sqrt() * noise - (1 - a).sqrt() * x
        predicted = self._output(noisy, time, labels, least_time=LEAST_TIME)
        return F.mse_loss(predicted, target)

    def _output(
        self, x: Tensor, time: Tensor, labels: LongTensor, *, least_time: float = 1e-4
    ) -> Tensor:
        """The prediction at times (B,) in [0, 1000], float32; of flow_x0 as a velocity."""
        predicted = self.denoiser(x, time, labels).float()
        if self.objective != "flow_x0":
            return predicted
        return self._velocity(x, predicted, time, least_time)

    @staticmethod
    def _velocity(noisy: Tensor, x: Tensor, time: Tensor, least_time: float) -> Tensor:
        """(x_t - x) / t for times (B,) in [0, 1000], divided by `least_time` at least."""
        return (noisy - x) / (time / CHAIN).clamp(min=least_time)[:, None, None, None]

    def check_options(self, sampler: str, options: dict[str, Any]) -> None:
        interval, shift = options["guidance_interval"], options.get("shift", 1.0)
        if len(interval) != 2 or not 0 <= interval[0] < interval[1] <= 1:
            raise ValueError(
                f"sampler.guidance_interval={list(interval)}: two numbers, 0 <= low < high <= 1"
            )
        if shift <= 0:
            raise ValueError(f"sampler.shift={shift}: above 0")

    def _scheduler(self, steps: int) -> Any:
        """The diffusers scheduler of this objective and sampler, its timesteps set."""
        shift = self.sampler_options.get("shift", 1.0)
        return schedulers.scheduler(self.objective, self.sampler, steps, shift)

    def _guidance_at(self, t: float, guidance: float) -> float:
        """The guidance that acts at time t in [0, 1000]: all of it in the interval, 1 outside."""
        low, high = self.sampler_options["guidance_interval"]
        return guidance if low <= t / CHAIN <= high else 1.0

    def _predict(self, x: Tensor, t: float, labels: LongTensor, guidance: float) -> Tensor:
        """The network's prediction at time t, guided by u + w (c - u), float32.

        The conditional and the unconditional half are one batch.
        """
        if guidance == 1:
            # The unconditional half would have no weight: half of the evaluations are saved.
            return self._output(x, x.new_full((len(x),), t), labels)
        guide = self.guide()
        if guide is not None:
            times = x.new_full((len(x),), t)
            strong, weak = (model._output(x, times, labels) for model in (self, guide))
            return torch.lerp(weak, strong, guidance)
        both_labels = torch.cat([labels, torch.full_like(labels, self.num_classes)])
        times = x.new_full((2 * len(x),), t)
        prediction = self._output(torch.cat([x, x]), times, both_labels)
        conditional, unconditional = prediction.chunk(2)
        return torch.lerp(unconditional, conditional, guidance)

    @torch.inference_mode()
    def evaluation(self, labels: LongTensor) -> Tensor:
        x = torch.zeros(len(labels), *self.latent_shape, device=labels.device)
        return self._predict(x, 0.0, labels, 1.0)

    @torch.inference_mode()
    def sample(
        self, labels: LongTensor, *, steps: int, guidance: float, rng: torch.Generator
    ) -> Tensor:
        self.nfe(steps, guidance)  # raises for a step count that is not supported
        rngs = spawn(rng, len(labels))
        scheduler = self._scheduler(steps)
        # Schedulers that work with sigmas start from noise of their largest sigma, and ask for
        # their x scaled back.
        x = randn(self.latent_shape, rngs, labels.device)
        x = x * float(getattr(scheduler, "init_noise_sigma", 1))
        # Those that add noise at each step take it from the samples' own generators.
        step_options: dict[str, Any] = {}
        if "generator" in inspect.signature(scheduler.step).parameters:
            step_options["generator"] = rngs
        for step, t in zip(scheduler.timesteps, schedulers.times(scheduler), strict=True):
            scaled = x
            if hasattr(scheduler, "scale_model_input"):
                scaled = scheduler.scale_model_input(x, step)
            prediction = self._predict(scaled, t, labels, self._guidance_at(t, guidance))
            # One step against `prediction`, on the scheduler's own grid.
            with schedulers.WithoutWaiting():
                x = scheduler.step(prediction, step, x, **step_options).prev_sample
        return x

    def supported_steps(self, requested: Iterable[int]) -> list[int]:
        """1 to 1000.

        Without the few of which diffusers makes one more in eps, v and x0 (61 is the first); for
        DDIM only the divisors of 1000.
        """
        return [
            n
            for n in requested
            if 1 <= n <= CHAIN and schedulers.supports(self.objective, self.sampler, n)
        ]

    def nfe(self, steps: int, guidance: float) -> int:
        """The scheduler's own evaluations: 2n - 1 for Heun, n for the others.

        Those in the guidance interval count twice under guidance.
        """
        if not self.supported_steps([steps]):
            raise ValueError(f"steps={steps}: {self.sampler} takes {self._supported_text(steps)}")
        # The scheduler's own times, so that what is counted is what `sample` does.
        guided = [
            self._guidance_at(t, guidance) != 1 for t in schedulers.times(self._scheduler(steps))
        ]
        return len(guided) + sum(guided)

    def _supported_text(self, steps: int) -> str:
        """Which step counts the sampler takes, and why this one is none of them."""
        if self.sampler == "ddim":
            return f"1 to {CHAIN} steps that divide 1000"
        if 1 <= steps <= CHAIN:
            return f"1 to {CHAIN} steps; of {steps} its grid would be one longer"
        return f"1 to {CHAIN} steps"
