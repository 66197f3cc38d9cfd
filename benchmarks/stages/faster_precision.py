"""Which precision this machine trains a network faster in, and which it samples faster in.

Some CPUs multiply bfloat16 several times as fast as float32, others half as fast. So one real step
of the network itself is timed in each, and one real batch of samples.
"""

import copy
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from benchmarks.core import team
from benchmarks.core.locks import load_or_make
from benchmarks.core.session import session
from benchmarks.core.store import read_sealed, seeded, write_sealed
from benchmarks.frozen.autoencoder import LatentSpace
from benchmarks.frozen.latents import LatentSet
from benchmarks.stages.sample import SamplingConfig, seconds_of_a_batch
from benchmarks.stages.sample_batch import trial_steps
from benchmarks.stages.train_state import TrainState, build_train_state
from metrics import speed
from models.generator import GenerativeModel

PRECISIONS = ("bf16", "fp32")
STEP_SECONDS = 1.0  # of a timed step, about: a slow machine times fewer images
FEW = 2  # images of the first step, which tells how many a timed one may have
TIMED = 3  # steps of each precision, in turns; the fastest counts
# float32 must be faster by this, or two calls on one machine might choose differently
CLEARLY = 1.1
SAMPLED = 16  # images of a batch of samples
LONGEST = 8.0  # seconds of such a batch, about: above it a smaller one decides
MUCH_SLOWER = 3  # a first step in bf16 that is slower by this settles it
HOPELESS = 10  # matrix products slower by this settle it without any step, which may take minutes


def faster_precision(
    model: GenerativeModel, data: LatentSet, cfg: DictConfig, device: torch.device, file: Path
) -> str:
    """`bf16` or `fp32`; `file` keeps what was found. `model` and `data` lie on the CPU."""
    measured = _kept(file, partial(_measure, model, data, cfg, device))
    line = (
        f"train.precision={measured['precision']} ({_why(measured, 'a step of {images} images')})"
    )
    session.print_once(f"{cfg.model.name} {cfg.size.name}: {line}")
    return measured["precision"]


def _kept(file: Path, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What `file` has, measured and written first where it has nothing; of runs begun together one
    measures, or they might choose differently.
    """

    def make() -> dict[str, Any]:
        measured = measure()
        with suppress(OSError):  # a cache that cannot be written may hold all else
            write_sealed(file, measured)
        return measured

    try:
        return load_or_make(file, partial(read_sealed, file), make)
    except OSError:  # not even a lock can be made there
        return make()


def faster_sampling(
    model: GenerativeModel, space: LatentSpace, data: LatentSet, device: torch.device, file: Path
) -> tuple[str, str]:
    """`bf16` or `fp32` to sample in, and a line about it; `file` keeps what was found. `model` lies
    on `device`.
    """

    measured = _kept(file, partial(_measure_sampling, model, space, data, device))
    why = _why(measured, "{images} images in {steps} steps")
    return measured["precision"], f"sample_precision={measured['precision']} ({why})"


def _why(measured: dict[str, Any], timed: str) -> str:
    """What was found, in words."""
    bf16, fp32 = (measured["seconds"][precision] for precision in PRECISIONS)
    if not measured["images"]:
        return f"a matrix product takes {bf16 / fp32:.2g} times as long in bf16 as in fp32"
    return f"{timed.format(**measured)}: {bf16:.2g} s in bf16, {fp32:.2g} s in fp32"


def _hopeless(device: torch.device) -> dict[str, Any] | None:
    """float32, where even a matrix product says so; None where the network has to be asked.

    Its seconds are of as many FLOPs as float32 does in one.
    """
    rates = speed.product_flops(device)
    slower = rates[torch.float32] / rates[torch.bfloat16]
    if slower < HOPELESS:
        return None
    return {"precision": "fp32", "images": 0, "steps": 0, "seconds": {"bf16": slower, "fp32": 1.0}}


def _measure_sampling(
    model: GenerativeModel, space: LatentSpace, data: LatentSet, device: torch.device
) -> dict[str, Any]:
    """Seconds of a batch in each precision, and the faster."""
    if hopeless := _hopeless(device):
        return hopeless
    steps = trial_steps(model)
    seconds = dict.fromkeys(PRECISIONS, float("inf"))
    images = FEW
    for batch in (FEW, SAMPLED):
        images = batch
        for name in reversed(PRECISIONS):  # float32 first, as above
            config = SamplingConfig(steps, 1.0, batch, batch, 0, name)
            seconds[name] = seconds_of_a_batch(model.eval(), space, data, config, device)
        if max(seconds.values()) * SAMPLED / FEW > LONGEST:  # a slow machine has seen enough
            break
    faster = "fp32" if seconds["bf16"] > CLEARLY * seconds["fp32"] else "bf16"
    return {"precision": faster, "images": images, "steps": steps, "seconds": seconds}


def _measure(
    model: GenerativeModel, data: LatentSet, cfg: DictConfig, device: torch.device
) -> dict[str, Any]:
    """Seconds of a training step in each precision, and the faster."""
    if hopeless := _hopeless(device):
        return hopeless
    data = data.to(device)
    states = {name: _state(model, cfg, name, device) for name in PRECISIONS}
    # float32 first: on some machines a step in bf16 takes minutes
    first = {name: _seconds(states[name], data, FEW, device) for name in reversed(PRECISIONS)}
    if first["bf16"] > STEP_SECONDS and first["bf16"] > MUCH_SLOWER * first["fp32"]:
        return {"precision": "fp32", "images": FEW, "seconds": first}
    # the first step is slow for other reasons, too, so that this errs towards few images
    images = int(FEW * STEP_SECONDS / max(first.values()))
    most = cfg.train.batch // (cfg.train.accumulate * team.size())  # of a pass
    images = max(FEW, min(images, most))
    seconds = dict.fromkeys(PRECISIONS, float("inf"))
    for _ in range(TIMED):
        for name, state in states.items():
            seconds[name] = min(seconds[name], _seconds(state, data, images, device))
    faster = "fp32" if seconds["bf16"] > CLEARLY * seconds["fp32"] else "bf16"
    return {"precision": faster, "images": images, "seconds": seconds}


def _state(
    model: GenerativeModel, cfg: DictConfig, precision: str, device: torch.device
) -> TrainState:
    """A copy of the model with all that trains it, by this process, a batch in one pass."""
    settings = {"precision": precision, "compile": False, "accumulate": 1}
    train, copied = OmegaConf.merge(cfg.train, settings), copy.deepcopy(model).to(device)
    return build_train_state(copied, train, cfg.model.lr, device, alone=True)


def _seconds(state: TrainState, data: LatentSet, images: int, device: torch.device) -> float:
    """Wall seconds of one training step."""
    batch = data.batch(0, 0, images)
    speed.synchronise(device)
    began = time.perf_counter()
    state.step(batch, seeded("precision"))
    speed.synchronise(device)
    return time.perf_counter() - began
