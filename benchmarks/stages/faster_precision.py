"""Which precision this machine trains a network faster in.

Some CPUs multiply bfloat16 several times as fast as float32, others half as fast. So one real step
of the network itself is timed in each.
"""

import copy
import time
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from benchmarks.core.session import session
from benchmarks.core.store import read_sealed, seeded, write_sealed
from benchmarks.frozen.latents import LatentSet
from benchmarks.stages.train_state import TrainState, build_train_state
from metrics import speed
from models.generator import GenerativeModel

PRECISIONS = ("bf16", "fp32")
STEP_SECONDS = 1.0  # of a timed step, about: a slow machine times fewer images
FEW = 2  # images of the first step, which tells how many a timed one may have
TIMED = 3  # steps of each precision, in turns; the fastest counts
# float32 must be faster by this, or two calls on one machine might choose differently
CLEARLY = 1.1


def faster_precision(
    model: GenerativeModel, data: LatentSet, cfg: DictConfig, device: torch.device, file: Path
) -> str:
    """`bf16` or `fp32`; `file` keeps what was found. `model` and `data` lie on the CPU."""
    measured = read_sealed(file)
    if measured is None:
        measured = _measure(model, data, cfg, device)
        write_sealed(file, measured)
        bf16, fp32 = (measured["seconds"][name] for name in PRECISIONS)
        session.print_once(
            f"{cfg.model.name} {cfg.size.name}: train.precision={measured['precision']} "
            f"(a step of {measured['images']} images takes {bf16:.2g} s in bf16, "
            f"{fp32:.2g} s in fp32)"
        )
    return measured["precision"]


def _measure(
    model: GenerativeModel, data: LatentSet, cfg: DictConfig, device: torch.device
) -> dict[str, Any]:
    """Seconds of a training step in each precision, and the faster."""
    data = data.to(device)
    states = {name: _state(model, cfg, name, device) for name in PRECISIONS}
    first = {name: _seconds(state, data, FEW, device) for name, state in states.items()}
    # the first step is slow for other reasons, too, so that this errs towards few images
    images = int(FEW * STEP_SECONDS / max(first.values()))
    images = max(FEW, min(images, cfg.train.batch))
    seconds = dict.fromkeys(PRECISIONS, float("inf"))
    for _ in range(TIMED):
        for name, state in states.items():
            seconds[name] = min(seconds[name], _seconds(state, data, images, device))
    faster = "fp32" if seconds["bf16"] > CLEARLY * seconds["fp32"] else "bf16"
    return {"precision": faster, "images": images, "seconds": seconds}


def _state(
    model: GenerativeModel, cfg: DictConfig, precision: str, device: torch.device
) -> TrainState:
    """A copy of the model with all that trains it."""
    train = OmegaConf.merge(cfg.train, {"precision": precision, "compile": False})
    return build_train_state(copy.deepcopy(model).to(device), train, cfg.model.lr, device)


def _seconds(state: TrainState, data: LatentSet, images: int, device: torch.device) -> float:
    """Wall seconds of one training step."""
    batch = data.batch(0, 0, images)
    speed.synchronise(device)
    began = time.perf_counter()
    state.step(batch, seeded("precision"))
    speed.synchronise(device)
    return time.perf_counter() - began
