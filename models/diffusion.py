"""The two diffusion families: one training objective and one sampling loop around a denoiser (U-Net or DiT).

Time runs from data (0) to noise (1). Flow matching (arXiv 2210.02747, 2209.03003): x_t = (1 - t) x + t e, target e - x, t
logit-normal (arXiv 2403.03206). The others share a variance-preserving chain of 1000 steps (arXiv 2006.11239), with target
e (eps), x (x0) or sqrt(a) e - sqrt(1 - a) x (v, arXiv 2202.00512).
"""

from collections.abc import Callable, Iterable

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler, FlowMatchHeunDiscreteScheduler
from torch import LongTensor, Tensor, nn

from models.generator import Batch, Generator, randn, spawn

CHAIN = 1000  # training timesteps of eps, v, x0; also the scale of the denoiser's time input
PREDICTION = {"eps": "epsilon", "v": "v_prediction", "x0": "sample"}


class Diffusion(Generator):
    """A diffusion model over whitened latents.

    `denoiser(latent_shape, num_classes)` builds a network that maps (x, t in [0, 1000], labels) to a tensor like x.
    `objective` is flow, eps, v or x0; `sampler` is euler or heun for flow, ddim for the others.
    """

    samplers = ("euler", "heun", "ddim")

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
        self.samplers = ("euler", "heun") if objective == "flow" else ("ddim",)
        self.sampler = self.samplers[0]
        self.denoiser = denoiser(self.latent_shape, num_classes)
        alphas = torch.cumprod(1 - torch.linspace(1e-4, 0.02, CHAIN, dtype=torch.float64), 0)
        self.register_buffer("alphas", alphas.float(), persistent=False)

    def loss(self, batch: Batch, *, rng: torch.Generator) -> Tensor:
        """Mean squared error of the objective's target. The latents' own tokens are not looked at."""
        x = batch.latents.float()
        noise = torch.randn(x.shape, generator=rng).to(x.device)
        if self.objective == "flow":
            t = torch.sigmoid(torch.randn(len(x), generator=rng)).to(x.device)
            mixed = torch.lerp(x, noise, t[:, None, None, None])
            target, time = noise - x, t * CHAIN
        else:
            time = torch.randint(CHAIN, (len(x),), generator=rng).to(x.device)
            a = self.alphas[time][:, None, None, None]
            mixed = a.sqrt() * x + (1 - a).sqrt() * noise
            target = {"eps": noise, "x0": x, "v": a.sqrt() * noise - (1 - a).sqrt() * x}[self.objective]
        return F.mse_loss(self.denoiser(mixed, time, batch.labels).float(), target)

    def _scheduler(self, steps: int):
        """The diffusers scheduler of `self.sampler`, its timesteps set."""
        if self.sampler == "euler":
            scheduler = FlowMatchEulerDiscreteScheduler()
            # the default grid ends at sigma .001 and so wastes its last evaluation
            scheduler.set_timesteps(sigmas=np.linspace(1, 1 / steps, steps))
        elif self.sampler == "heun":
            scheduler = FlowMatchHeunDiscreteScheduler()  # its grid is fixed: sigmas linspace(1, .001, n), 2n-1 evaluations
            scheduler.set_timesteps(steps)
        else:
            scheduler = DDIMScheduler(
                CHAIN,
                beta_start=1e-4,
                beta_end=0.02,
                prediction_type=PREDICTION[self.objective],
                clip_sample=False,
                timestep_spacing="trailing",  # the default grid starts short of pure noise
            )
            scheduler.set_timesteps(steps)
        return scheduler

    def _predict(self, x: Tensor, t: Tensor, labels: LongTensor, guidance: float) -> Tensor:
        """One guided evaluation, the conditional and unconditional halves in one batch."""
        if guidance == 1:
            return self.denoiser(x, t.expand(len(x)), labels).float()
        both = torch.cat([labels, torch.full_like(labels, self.num_classes)])
        conditional, unconditional = self.denoiser(torch.cat([x, x]), t.expand(2 * len(x)), both).float().chunk(2)
        return torch.lerp(unconditional, conditional, guidance)

    @torch.inference_mode()
    def sample(self, labels: LongTensor, *, steps: int, guidance: float, rng: torch.Generator) -> Tensor:
        self.nfe(steps, guidance)  # refuses what cannot be honoured
        x = randn(self.latent_shape, spawn(rng, len(labels)), labels.device)
        scheduler = self._scheduler(steps)
        for t in scheduler.timesteps:
            prediction = self._predict(x, t.to(labels.device), labels, guidance)
            x = scheduler.step(prediction, t, x).prev_sample
        return x

    def step_counts(self, requested: Iterable[int]) -> list[int]:
        """1 to 1000; for DDIM its divisors only, because the scheduler steps by 1000 // n."""
        return [n for n in requested if 1 <= n <= CHAIN and (self.sampler != "ddim" or CHAIN % n == 0)]

    def nfe(self, steps: int, guidance: float) -> int:
        """n for Euler and DDIM, 2n - 1 for Heun; doubled under guidance."""
        if not self.step_counts([steps]):
            raise ValueError(f"steps={steps}: {self.sampler} takes 1 to {CHAIN} steps" + (" that divide 1000" * (self.sampler == "ddim")))
        return (2 * steps - 1 if self.sampler == "heun" else steps) * (1 if guidance == 1 else 2)
