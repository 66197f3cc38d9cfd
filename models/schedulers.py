"""The diffusers scheduler for an objective, a sampler's name and a number of steps, with the
settings each of them needs.

Latents are never clipped; every grid begins at pure noise (at 0.999 of it for the flow's dpmpp and
unipc) and ends at data.
"""

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

from models.generator import to_device

CHAIN = 1000  # training timesteps of eps, v, x0; also the scale of the denoiser's time input
BETAS = {
    "num_train_timesteps": CHAIN,
    "beta_start": 1e-4,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "timestep_spacing": "trailing",
}
PREDICTION = {"eps": "epsilon", "v": "v_prediction", "x0": "sample"}
CHAINED = {
    "ddim": lambda **k: DDIMScheduler(clip_sample=False, **k),
    "ddpm": lambda **k: DDPMScheduler(clip_sample=False, **k),
    "euler": lambda **k: EulerDiscreteScheduler(**k),
    "heun": lambda **k: HeunDiscreteScheduler(**k),
    "dpmpp": lambda **k: DPMSolverMultistepScheduler(
        algorithm_type="dpmsolver++", solver_order=2, **k
    ),
    "unipc": lambda **k: UniPCMultistepScheduler(**k),
}
STRAIGHT = ("euler", "heun", "dpmpp", "unipc")


def samplers(objective: str) -> tuple[str, ...]:
    """What an objective can be sampled with, its own first; diffusers' Euler does not take x0
    predictions.
    """
    if objective == "flow":
        return STRAIGHT
    return tuple(name for name in CHAINED if (objective, name) != ("x0", "euler"))


def scheduler(objective: str, name: str, steps: int, shift: float = 1.0) -> Any:
    """A scheduler, its timesteps set. `shift` s moves the flow's times to s t / (1 + (s - 1) t)
    (arXiv 2403.03206, equation 23).
    """
    if objective != "flow":
        made = CHAINED[name](prediction_type=PREDICTION[objective], **BETAS)
    elif name == "euler":
        made = FlowMatchEulerDiscreteScheduler(num_train_timesteps=CHAIN, shift=shift)
        made.set_timesteps(
            sigmas=np.linspace(1, 1 / steps, steps)
        )  # the default grid ends at .001 and so wastes its last evaluation
        return made
    elif name == "heun":
        # 2n - 1 evaluations at n times from 1 to .001: of two steps the second is spent near data,
        # which is hardly more than one
        made = FlowMatchHeunDiscreteScheduler(num_train_timesteps=CHAIN)
    else:
        kind = {"dpmpp": DPMSolverMultistepScheduler, "unipc": UniPCMultistepScheduler}[name]
        made = kind(
            num_train_timesteps=CHAIN,
            prediction_type="flow_prediction",
            use_flow_sigmas=True,
            flow_shift=shift,
        )
    made.set_timesteps(steps)
    if hasattr(made, "set_begin_index"):
        made.set_begin_index(
            0
        )  # else the place is looked up by time, and rounded times can occur twice
    return made


def times(made: Any) -> list[float]:
    """When the denoiser is asked, in [0, 1000]; the flow's dpmpp and unipc round their own
    timesteps to whole numbers.
    """
    if made.config.get("use_flow_sigmas"):
        return [float(sigma) * CHAIN for sigma in made.sigmas[:-1]]
    return [float(t) for t in made.timesteps]


def honours(objective: str, name: str, steps: int) -> bool:
    """Whether the sampler's grid has as many steps as are asked for: DDIM steps by 1000 // n, and
    `trailing` grids count in floats.
    """
    if objective == "flow":
        return True
    return (
        CHAIN % steps == 0 if name == "ddim" else len(np.arange(CHAIN, 0, -CHAIN / steps)) == steps
    )


class WithoutWaiting(TorchFunctionMode):
    """Within, what a scheduler copies from the host does not make the host wait for the device.

    diffusers keeps sigmas on the host, where arithmetic with them costs nothing, but `unipc` moves
    some of them at each step, as `ddpm` does its noise; and `unipc` solves two equations, which
    torch then waits for to see whether they could be solved.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.Tensor.to and args[0].device.type == "cpu":
            device, dtype, _, _ = torch._C._nn._parse_to(*args[1:], **kwargs)
            if device is not None and device.type != "cpu":
                return to_device(args[0] if dtype is None else args[0].to(dtype), device)
        if func is torch.linalg.solve:
            return torch.linalg.solve_ex(*args, **kwargs).result
        return func(*args, **kwargs)
