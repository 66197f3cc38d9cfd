"""How many images to sample at once: what this device is fastest at, found once for each network
and kept.

Image i depends on (seed, i) alone, so that the batch decides about seconds and memory, and about
rounding, but not about what is sampled.
"""

from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.core.locks import load_or_make
from benchmarks.core.store import read_sealed, write_sealed
from benchmarks.frozen.autoencoder import LatentSpace
from benchmarks.frozen.latents import LatentSet
from benchmarks.stages.sample import SamplingConfig, seconds_of_a_batch
from metrics import speed
from models.generator import GenerativeModel

ON_A_CPU = 128  # fixed, for rows that compare; 512 gains some (results/reference/performance.md)
CANDIDATES = (32, 64, 128, 256, 512, 1024)
ENOUGH = 1.05  # a batch twice as large must be this much faster, in images per second, to be taken
TRIAL_STEPS = 8


def best_batch(
    generator: GenerativeModel,
    space: LatentSpace,
    data: LatentSet,
    device: torch.device,
    *,
    precision: str,
    file: Path,
) -> int:
    """Images at once for `generator`, which lies on `device`.

    `file` keeps what was found, with the seconds per image of every batch that was tried.
    """
    if device.type == "cpu":
        return ON_A_CPU

    def measure() -> dict[str, Any]:
        seconds = _tried(generator, space, data, device, precision)
        of_batch = {str(batch): value for batch, value in seconds.items()}
        measured = {"seconds_per_image": of_batch, "batch": chosen_batch(seconds)}
        write_sealed(file, measured)
        return measured

    return load_or_make(file, partial(read_sealed, file), measure)["batch"]


def trial_steps(generator: GenerativeModel) -> int:
    """The steps of a trial; a model that cannot take so few takes the most it can."""
    if generator.supported_steps([TRIAL_STEPS]):
        return TRIAL_STEPS
    tokens = generator.latent_shape[1] * generator.latent_shape[2]
    return max(generator.supported_steps(range(1, tokens + 1)))


def chosen_batch(seconds: dict[int, float]) -> int:
    """The largest batch up to which each was faster than the one before it by ENOUGH."""
    batches = sorted(seconds)
    taken = batches[0]
    for batch in batches[1:]:
        if seconds[taken] / seconds[batch] < ENOUGH:
            break
        taken = batch
    return taken


def _tried(
    generator: GenerativeModel,
    space: LatentSpace,
    data: LatentSet,
    device: torch.device,
    precision: str,
) -> dict[int, float]:
    """Seconds per image by batch, up to where memory ends or larger ones gain nothing."""
    seconds: dict[int, float] = {}
    steps = trial_steps(generator)
    for batch in CANDIDATES:
        config = SamplingConfig(
            steps=steps, guidance=1.0, count=batch, batch=batch, seed=0, precision=precision
        )
        whole = _seconds(generator, space, data, config, device)
        if whole is None:  # larger ones fit even less
            speed.free_memory()
            break
        seconds[batch] = whole / batch
        if chosen_batch(seconds) != batch:
            break
    return seconds


def _seconds(
    generator: GenerativeModel,
    space: LatentSpace,
    data: LatentSet,
    config: SamplingConfig,
    device: torch.device,
) -> float | None:
    """Of one batch; None where it does not fit into memory."""
    try:
        return seconds_of_a_batch(generator.eval(), space, data, config, device)
    except torch.cuda.OutOfMemoryError:
        return None
