"""One training loop for every family: the same latents, batches, schedule and budget; only the
network differs.
"""

import math
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from diffusers.training_utils import EMAModel
from tqdm import tqdm

from benchmarks.core.environment import provenance
from benchmarks.core.errors import BadInput, Diverged, OutOfTime
from benchmarks.core.store import seeded
from benchmarks.frozen.latents import LatentSet
from benchmarks.stages.checkpoint import Checkpoints, Progress
from benchmarks.stages.compiling import Compiler
from metrics import speed
from models.generator import Batch, GenerativeModel

UNITS = ("flops", "images", "steps", "minutes")
LOG_EVERY = 20  # steps; reading the loss more often would make an accelerator wait


@dataclass(frozen=True)
class Budget:
    """A budget made concrete for one family. `steps` is None for a budget in minutes."""

    batch: int
    steps: int | None
    seconds: float | None
    flops_per_image: (
        float  # 3 x forward: the usual account of forward + backward (Kaplan et al. 2020)
    )

    def done(self, progress: Progress) -> float:
        """0 to 1."""
        if self.steps is not None:
            return progress.step / self.steps
        return progress.seconds / self.seconds

    def spent(self, progress: Progress) -> dict[str, float]:
        """Pictures seen, FLOPs and seconds so far."""
        images = progress.step * self.batch
        return {
            "images": images,
            "flops": images * self.flops_per_image,
            "seconds": progress.seconds,
        }


def make_budget(cfg: Any, forward_macs: int) -> Budget:
    """`train.budget` in `train.unit` as steps of `train.batch` pictures. Raises BadInput for what
    makes no step.
    """
    budget, batch, per_image = float(cfg.budget), int(cfg.batch), 3 * 2 * forward_macs
    if cfg.unit not in UNITS:
        raise BadInput(f"train.unit={cfg.unit}: one of {', '.join(UNITS)}")
    if batch < 1 or not 0 < budget < math.inf:
        raise BadInput(f"train.budget={cfg.budget}, train.batch={cfg.batch}: both must be positive")
    if cfg.compile not in (True, False, "auto"):
        raise BadInput(f"train.compile={cfg.compile}: one of true, false, auto")
    if cfg.unit == "minutes" and cfg.compile is True:
        raise BadInput(
            "train.compile=true with a budget in minutes: compiling would eat of it; give train.unit=flops, images or steps"
        )
    if cfg.unit == "minutes":
        return Budget(batch, None, 60 * budget, per_image)
    images = {"flops": budget / per_image, "images": budget, "steps": budget * batch}[cfg.unit]
    return Budget(batch, max(1, round(images / batch)), None, per_image)


def learning_rate(done: float, cfg: Any, peak: float) -> float:
    """Linear warm-up over `train.warmup` of the budget, then a cosine to zero."""
    if done < cfg.warmup:
        return peak * (done + 1e-3) / (cfg.warmup + 1e-3)
    return peak * 0.5 * (1 + math.cos(math.pi * (done - cfg.warmup) / (1 - cfg.warmup)))


def train(
    generator: GenerativeModel,
    data: LatentSet,
    cfg: Any,
    *,
    lr: float,
    seed: int,
    forward_macs: int,
    folder: Path,
    key: str,
    device: torch.device,
    compile_file: Path | None = None,
    stop_at: float | None = None,
) -> dict:
    """Train to the budget, or go on from a checkpoint, or load what is finished; `generator` ends
    with its EMA weights.

    Returns the summary also written to `folder/train.json`: images, flops, seconds,
    images_per_second and the loss log. `compile_file` keeps what compiling this network took and
    gave. Raises Diverged where the loss is not finite, and OutOfTime, with a checkpoint left, where
    it is not done at `stop_at` (seconds since the epoch).
    """
    files = Checkpoints(folder, key, tuple(map(float, cfg.snapshots)))
    finished = files.finished(generator.eval())
    if finished:
        return finished
    schedule, state = make_budget(cfg, forward_macs), build_train_state(generator, cfg, lr, device)
    progress = files.resume(generator, state.ema, state.optimizer, device)
    compiler = Compiler.of(cfg.compile, schedule.steps, device, compile_file)
    bar = _bar(schedule, progress, folder.name)
    saver = Saver(files, cfg.checkpoint_seconds, progress.seconds)
    clock, losses = time.perf_counter() - progress.seconds, []
    while (done := schedule.done(progress)) < 1:
        rate = _set_rate(state.optimizer, learning_rate(done, cfg, lr))
        batch = data.batch(seed, progress.step, schedule.batch)
        losses.append(state.step(batch, seeded("noise", seed, progress.step)))
        progress.step += 1
        compiler.after(state, progress.step, batch)
        progress.seconds = time.perf_counter() - clock
        bar.update(schedule.batch)
        for share in [s for s in files.fractions if done < s <= schedule.done(progress)]:
            files.keep(generator, state.ema, share, schedule.spent(progress), progress)
        late = stop_at is not None and time.time() > stop_at and schedule.done(progress) < 1
        if progress.step % LOG_EVERY == 0 or schedule.done(progress) >= 1 or late:
            _log(progress, schedule, losses, rate, bar)
            losses = []
        if late or saver.due(progress):
            clock += saver.save(generator, state, progress)
        if late:
            raise OutOfTime(f"{folder.name} is trained to {schedule.done(progress):.0%}")
    speed.synchronise(device)
    progress.seconds = time.perf_counter() - clock
    bar.close()
    generator.uncompile_error()
    state.ema.copy_to(generator.parameters())
    return files.finish(
        generator.eval(),
        _summary(generator, progress, schedule, device) | {"compile": compiler.summary()},
    )


class InPlaceEMA(EMAModel):
    """diffusers' EMA, its step in place: the library's makes a second set of weights each time
    (U-Net-S, two cores: 34 ms for 15).
    """

    @torch.no_grad()
    def step(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        self.optimization_step += 1
        self.cur_decay_value = self.get_decay(self.optimization_step)
        pairs = list(zip(self.shadow_params, parameters, strict=True))
        trained = [(mean, p) for mean, p in pairs if p.requires_grad]
        torch._foreach_lerp_(*map(list, zip(*trained, strict=True)), 1 - self.cur_decay_value)
        for mean, p in pairs:
            if not p.requires_grad:
                mean.copy_(p)


class TrainState(NamedTuple):
    """What a training step needs around a generator."""

    generator: GenerativeModel
    accelerator: Accelerator
    model: Any  # the generator in Accelerate's wrapping
    optimizer: Any
    ema: EMAModel
    grad_clip: float

    def step(self, batch: Batch, rng: torch.Generator) -> torch.Tensor:
        """One update of the weights and of their average; returns the loss, still on the device."""
        loss = self.model(batch, rng=rng)
        self.accelerator.backward(loss)
        self.accelerator.clip_grad_norm_(self.model.parameters(), self.grad_clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.ema.step(self.generator.parameters())
        return loss.detach()


def build_train_state(
    generator: GenerativeModel, cfg: Any, lr: float, device: torch.device
) -> TrainState:
    """Accelerate's device and precision around the generator, AdamW, and an EMA whose decay ramps
    up as (1 + s) / (10 + s).

    With `cfg.compile` true the loss is compiled, for training only: sampling, of many shapes, uses
    the generator as it is. With `auto` it begins as it is, and `Compiler` decides.
    """
    AcceleratorState._reset_state(
        reset_partial_state=True
    )  # cells of one process may differ in device and precision
    accelerator = Accelerator(
        mixed_precision="bf16" if cfg.precision == "bf16" else "no", cpu=device.type == "cpu"
    )
    if accelerator.num_processes > 1:
        raise BadInput(
            "accelerate launched several processes: a cell trains in one; run cells side by side instead"
        )
    optimizer = torch.optim.AdamW(
        generator.parameters(),
        lr=lr,
        betas=tuple(cfg.betas),
        weight_decay=cfg.weight_decay,
        fused=True,
    )
    ema = InPlaceEMA(generator.parameters(), decay=cfg.ema_decay, foreach=True)
    model, optimizer = accelerator.prepare(generator.train(), optimizer)
    if cfg.compile is True:
        generator.compile_error()
    return TrainState(generator, accelerator, model, optimizer, ema, cfg.grad_clip)


@dataclass
class Saver:
    """Saves checkpoints every so many seconds of training; where one takes over a second, a
    twentieth of the time at most.
    """

    files: Checkpoints
    every: float
    last: float  # seconds of training at the last checkpoint
    took: float = 0.0

    def due(self, progress: Progress) -> bool:
        """Only where the loss log is whole: a resumed training then has the log of one that was not
        interrupted.
        """
        pause = max(self.every, 20 * self.took if self.took > 1 else 0)
        return progress.step % LOG_EVERY == 0 and progress.seconds - self.last > pause

    def save(self, generator: GenerativeModel, state: TrainState, progress: Progress) -> float:
        """Returns the seconds it took, which are not training."""
        started = time.perf_counter()
        self.files.save(generator, state.ema, state.optimizer, progress)
        self.last, self.took = progress.seconds, time.perf_counter() - started
        return self.took


def _set_rate(optimizer: Any, rate: float) -> float:
    for group in optimizer.param_groups:
        group["lr"] = rate
    return rate


def _bar(schedule: Budget, progress: Progress, name: str) -> tqdm:
    total = None if schedule.steps is None else schedule.steps * schedule.batch
    pause = 0.5 if sys.stderr.isatty() else 20
    return tqdm(
        total=total,
        initial=progress.step * schedule.batch,
        desc=name,
        unit="images",
        mininterval=pause,
        dynamic_ncols=True,
    )


def _log(
    progress: Progress, schedule: Budget, losses: list[torch.Tensor], rate: float, bar: tqdm
) -> None:
    """Add a row to the loss log; the one place where the host waits for the device."""
    loss = torch.stack(losses).mean().item() if losses else math.nan
    images = progress.step * schedule.batch
    if not math.isfinite(loss):
        raise Diverged(f"the loss was {loss} after {images} images")
    progress.log.append([images, images * schedule.flops_per_image, loss, rate, progress.seconds])
    bar.set_postfix(loss=f"{loss:.4f}", refresh=False)


def _summary(
    generator: GenerativeModel, progress: Progress, schedule: Budget, device: torch.device
) -> dict:
    """What the training took and made. Raises Diverged where the weights are not finite."""
    if not all(p.isfinite().all() for p in generator.parameters()):
        raise Diverged(f"the weights were not finite after {progress.step} steps")
    spent = schedule.spent(progress)
    return spent | {
        "steps": progress.step,
        "images_per_second": spent["images"] / spent["seconds"],
        "utilisation": spent["flops"] / spent["seconds"] / speed.ceiling_flops(device),
        "log": progress.log,
        "snapshots": progress.snapshots,
        "trained_by": provenance(device),
    }
