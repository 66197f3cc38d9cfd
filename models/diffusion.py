"""The two diffusion families: one training objective and one sampling loop around a denoiser (U-Net
or DiT).

Time runs from data (0) to noise (1). Flow matching (arXiv 2210.02747, 2209.03003): x_t = (1 - t) x
+ t e, target e - x, t logit-normal (arXiv 2403.03206). The others share a variance-preserving chain
of 1000 steps (arXiv 2006.11239), with target e (eps), x (x0) or sqrt(a) e - sqrt(1 - a) x (v, arXiv
2202.00512).
"""

import inspect
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import LongTensor, Tensor, nn

from models import schedulers
from models.generator import Batch, GenerativeModel, randn, spawn, to_device
from models.schedulers import CHAIN, PREDICTION


class Diffusion(GenerativeModel):
    """A diffusion model over whitened latents.

    `denoiser(latent_shape, num_classes)` builds a network that maps (x, t in [0, 1000], labels) to
    a tensor like x. `objective` is flow, eps, v or x0; `models/schedulers.py` says which samplers
    each can be drawn with. `choice` holds `guidance_interval`, the times (1 noise, 0 data) between
    which guidance acts (arXiv 2404.07724), and for flow `shift` (of its times).
    """

    sampler_defaults = {"guidance_interval": (0.0, 1.0)}

    def __init__(
        self,
        latent_shape: tuple[int, int, int],
        num_classes: int,
        *,
        denoiser: Callable[..., nn.Module],
        objective: str = "flow",
        label_dropout: float = 0.1,
        codebook: nn.Module | None = None,
    ):
        super().__init__(latent_shape, num_classes, label_dropout=label_dropout)
        if objective not in ("flow", *PREDICTION):
            raise ValueError(f"model.objective={objective}: one of flow, {', '.join(PREDICTION)}")
        self.objective = objective
        self.samplers = schedulers.samplers(objective)
        if objective == "flow":
            self.sampler_defaults = self.sampler_defaults | {"shift": 1.0}
        self.set_sampler()
        self.denoiser = denoiser(self.latent_shape, num_classes)
        alphas = torch.cumprod(1 - torch.linspace(1e-4, 0.02, CHAIN, dtype=torch.float64), 0)
        self.register_buffer("alphas", alphas.float(), persistent=False)

    def inputs(self, batch: Batch, *, rng: torch.Generator) -> tuple[Tensor, ...]:
        """Latents, as much noise, times (B,) and labels. The latents' own tokens are not looked at."""
        x, count = batch.latents.float(), len(batch.latents)
        noise = to_device(torch.randn(x.shape, generator=rng), x.device)
        if self.objective == "flow":
            time = to_device(torch.sigmoid(torch.randn(count, generator=rng)), x.device)
        else:
            time = to_device(torch.randint(CHAIN, (count,), generator=rng), x.device)
        return x, noise, time, batch.labels

    def error(self, x: Tensor, noise: Tensor, time: Tensor, labels: LongTensor) -> Tensor:
        """Mean squared error of the objective's target."""
        if self.objective == "flow":
            mixed = torch.lerp(x, noise, time[:, None, None, None])
            target, time = noise - x, time * CHAIN
        else:
            a = self.alphas[time][:, None, None, None]
            mixed = a.sqrt() * x + (1 - a).sqrt() * noise
            target = {"eps": noise, "x0": x, "v": a.sqrt() * noise - (1 - a).sqrt() * x}[
                self.objective
            ]
        return F.mse_loss(self.denoiser(mixed, time, labels).float(), target)

    def check_options(self, sampler: str, options: dict[str, Any]) -> None:
        """Raises ValueError for a value out of range."""
        low, high = (
            options["guidance_interval"] if len(options["guidance_interval"]) == 2 else (1, 0)
        )
        if not 0 <= low < high <= 1:
            raise ValueError(
                f"sampler.guidance_interval={list(options['guidance_interval'])}: two numbers, 0 <= low < high <= 1"
            )
        if options.get("shift", 1.0) <= 0:
            raise ValueError(f"sampler.shift={options['shift']}: above 0")
        if sampler == "heun" and options.get("shift", 1.0) != 1:
            raise ValueError(
                f"sampler.shift={options['shift']}: not with heun, whose tail diffusers would shift twice; euler, dpmpp, unipc"
            )

    def _scheduler(self, steps: int) -> Any:
        """The diffusers scheduler of this objective and sampler, its timesteps set."""
        return schedulers.scheduler(
            self.objective, self.sampler, steps, self.sampler_options.get("shift", 1.0)
        )

    def _scale(self, t: float, guidance: float) -> float:
        """The guidance that acts at time t in [0, 1000]: all of it inside the interval, none
        outside.
        """
        low, high = self.sampler_options["guidance_interval"]
        return guidance if low <= t / CHAIN <= high else 1.0

    def _predict(self, x: Tensor, t: float, labels: LongTensor, guidance: float) -> Tensor:
        """One guided evaluation, the conditional and unconditional halves in one batch."""
        if guidance == 1:
            return self.denoiser(x, x.new_full((len(x),), t), labels).float()
        both = torch.cat([labels, torch.full_like(labels, self.num_classes)])
        conditional, unconditional = (
            self.denoiser(torch.cat([x, x]), x.new_full((2 * len(x),), t), both).float().chunk(2)
        )
        return torch.lerp(unconditional, conditional, guidance)

    @torch.inference_mode()
    def evaluation(self, labels: LongTensor) -> Tensor:
        """One evaluation, of nothing: all cost the same."""
        x = torch.zeros(len(labels), *self.latent_shape, device=labels.device)
        return self._predict(x, 0.0, labels, 1.0)

    @torch.inference_mode()
    def sample(
        self, labels: LongTensor, *, steps: int, guidance: float, rng: torch.Generator
    ) -> Tensor:
        self.nfe(steps, guidance)  # refuses what cannot be honoured
        rngs = spawn(rng, len(labels))
        scheduler = self._scheduler(steps)
        x = randn(self.latent_shape, rngs, labels.device) * float(
            getattr(scheduler, "init_noise_sigma", 1)
        )
        noise = (
            {"generator": rngs}
            if "generator" in inspect.signature(scheduler.step).parameters
            else {}
        )
        for step, t in zip(scheduler.timesteps, schedulers.times(scheduler), strict=True):
            scaled = (
                scheduler.scale_model_input(x, step)
                if hasattr(scheduler, "scale_model_input")
                else x
            )
            prediction = self._predict(scaled, t, labels, self._scale(t, guidance))
            with schedulers.WithoutWaiting():
                x = scheduler.step(prediction, step, x, **noise).prev_sample
        return x

    def supported_steps(self, requested: Iterable[int]) -> list[int]:
        """1 to 1000, but for the few of which diffusers makes one more in eps, v and x0 (61 is the
        first); for DDIM divisors of 1000.
        """
        return [
            n
            for n in requested
            if 1 <= n <= CHAIN and schedulers.honours(self.objective, self.sampler, n)
        ]

    def nfe(self, steps: int, guidance: float) -> int:
        """The scheduler's own evaluations (2n - 1 for Heun, n for the others), twice where guidance
        acts.
        """
        if not self.supported_steps([steps]):
            some = (
                " that divide 1000"
                if self.sampler == "ddim"
                else f"; of {steps} its grid would be one longer" * (1 <= steps <= CHAIN)
            )
            raise ValueError(f"steps={steps}: {self.sampler} takes 1 to {CHAIN} steps{some}")
        return sum(
            1 if self._scale(t, guidance) == 1 else 2
            for t in schedulers.times(self._scheduler(steps))
        )
