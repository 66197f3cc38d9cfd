"""The diffusers scheduler for an objective, a sampler's name and a number of steps, with the
settings each of them needs.

Latents are never clipped. Every grid begins at pure noise (at 0.999 of it for the flow's dpmpp and
unipc) and ends at data.
"""

from functools import partial
from typing import Any

import numpy as np
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    HeunDiscreteScheduler,
    UniPCMultistepScheduler,
)
from torch.overrides import TorchFunctionMode

from models.randomness import to_device

CHAIN = 1000  # training timesteps of eps, v, x0; also the scale of the denoiser's time input

# The chain of DDPM (arXiv 2006.11239, section 4). Only `trailing` grids begin at its last step,
# which is pure noise (arXiv 2305.08891, section 3.3).
BETAS = {
    "num_train_timesteps": CHAIN,
    "beta_start": 1e-4,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "timestep_spacing": "trailing",
}
# objectives of the chain, in diffusers' words
PREDICTION = {"eps": "epsilon", "v": "v_prediction", "x0": "sample"}
# Samplers of the chain. diffusers clips to [-1, 1] by default, which is for pixels: latents go on.
CHAINED = {
    "ddim": partial(DDIMScheduler, clip_sample=False),
    "ddpm": partial(DDPMScheduler, clip_sample=False),
    "euler": EulerDiscreteScheduler,
    "heun": HeunDiscreteScheduler,
    "dpmpp": partial(DPMSolverMultistepScheduler, algorithm_type="dpmsolver++", solver_order=2),
    "unipc": UniPCMultistepScheduler,
}
FLOWS = ("flow", "flow_x0")  # objectives of the flow, whose samplers take velocities
STRAIGHT = ("euler", "heun", "dpmpp", "unipc")  # samplers of the flow


def samplers(objective: str) -> tuple[str, ...]:
    """The names of the samplers for an objective of `FLOWS` or `PREDICTION`, its own first."""
    if objective in FLOWS:
        return STRAIGHT
    # diffusers' Euler does not take predictions of x0.
    return tuple(name for name in CHAINED if (objective, name) != ("x0", "euler"))


def scheduler(objective: str, name: str, steps: int, shift: float = 1.0) -> Any:
    """A diffusers scheduler, its timesteps set.

    `name` is one of `samplers(objective)`. `shift` s moves the flow's times to s t / (1 + (s - 1)
    t) (arXiv 2403.03206, equation 23).
    """
    if objective in FLOWS:
        return _flow_scheduler(name, steps, shift)
    return _set_timesteps(CHAINED[name](prediction_type=PREDICTION[objective], **BETAS), steps)


def _flow_scheduler(name: str, steps: int, shift: float) -> Any:
    if name == "euler":
        euler = FlowMatchEulerDiscreteScheduler(num_train_timesteps=CHAIN, shift=shift)
        # The grid 1, (n-1)/n, ..., 1/n, 0. The default one wastes its last evaluation, at .001.
        euler.set_timesteps(sigmas=np.linspace(1, 1 / steps, steps))
        return euler
    if name == "heun":
        heun = FlowMatchHeunDiscreteScheduler(num_train_timesteps=CHAIN, shift=shift)
        # `set_timesteps` spaces its n times evenly between these two, shifts them and appends 0.
        # The default ends at .001 like Euler's, and so wastes an evaluation, too. The last step,
        # to 0, is an Euler step, of one evaluation where the others have two: half as long, it
        # covers as much time for each of the 2n - 1 evaluations as they do.
        heun.sigma_max, heun.sigma_min = 1.0, 1 / (2 * steps - 1)
        return _set_timesteps(heun, steps)
    solvers = {"dpmpp": DPMSolverMultistepScheduler, "unipc": UniPCMultistepScheduler}
    solver = solvers[name](
        num_train_timesteps=CHAIN,
        prediction_type="flow_prediction",
        use_flow_sigmas=True,
        flow_shift=shift,
    )
    return _set_timesteps(solver, steps)


def _set_timesteps(made: Any, steps: int) -> Any:
    made.set_timesteps(steps)
    # Else diffusers looks its place up by the time, and rounded times can occur twice.
    if hasattr(made, "set_begin_index"):
        made.set_begin_index(0)
    return made


def times(made: Any) -> list[float]:
    """The times in [0, 1000] at which a scheduler evaluates the denoiser, in order."""
    # The flow's dpmpp and unipc round their own timesteps to whole numbers; their sigmas are exact.
    if made.config.get("use_flow_sigmas"):
        return [float(sigma) * CHAIN for sigma in made.sigmas[:-1]]
    # Rounding after a shift can leave pure noise a hair above 1000, where no guidance would act.
    return [min(float(t), float(CHAIN)) for t in made.timesteps]


def supports(objective: str, name: str, steps: int) -> bool:
    """Whether the sampler's grid has as many steps as are asked for; `steps` is at least 1."""
    if objective in FLOWS:
        return True
    # DDIM goes down by 1000 // n, while its grid is spaced by 1000 / n: these must be the same.
    if name == "ddim":
        return CHAIN % steps == 0
    # The others' `trailing` grids count down in floats, whose rounding may add a step at the end.
    return len(np.arange(CHAIN, 0, -CHAIN / steps)) == steps


class WithoutWaiting(TorchFunctionMode):
    """Within, what a scheduler copies from the host does not make the host wait for the device.

    diffusers keeps sigmas on the host, where arithmetic with them costs nothing, but `unipc` moves
    some of them at each step, as `ddpm` does its noise. `unipc` also solves two equations, and
    torch waits for the device to say whether they could be solved.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.Tensor.to and args[0].device.type == "cpu":
            device, dtype, _, _ = torch._C._nn._parse_to(*args[1:], **kwargs)
            if device is not None and device.type != "cpu":
                return to_device(args[0] if dtype is None else args[0].to(dtype), device)
        if func is torch.linalg.solve:
            return torch.linalg.solve_ex(*args, **kwargs).result  # does not check
        return func(*args, **kwargs)
