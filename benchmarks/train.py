"""One training loop for every family: the same latents, batches, schedule and budget; only the network differs."""

import math
import pickle
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from diffusers.training_utils import EMAModel
from tqdm import tqdm

from benchmarks import records
from benchmarks.latents import LatentSet
from benchmarks.store import BadInput, Diverged, atomic_file, file_digest, read_json, read_tensors, seeded, write_json, write_tensors
from metrics import speed
from models.generator import Generator

UNITS = ("flops", "images", "steps", "minutes")
LOG_EVERY = 20  # steps; reading the loss more often would make an accelerator wait


@dataclass
class Progress:
    """How far a training is: what a checkpoint holds beside the tensors."""

    step: int = 0
    seconds: float = 0.0
    log: list[list[float]] = field(default_factory=list)  # images, training FLOPs, mean loss, learning rate, seconds
    snapshots: dict[str, dict] = field(default_factory=dict)  # share of the budget -> images, flops, seconds, weights


@dataclass(frozen=True)
class Plan:
    """A budget made concrete for one family. `steps` is None for a budget in minutes."""

    batch: int
    steps: int | None
    seconds: float | None
    flops_per_image: float  # 3 x forward: the usual account of forward + backward (Kaplan et al. 2020)

    def done(self, progress: Progress) -> float:
        """0 to 1."""
        if self.steps is not None:
            return progress.step / self.steps
        return progress.seconds / self.seconds


def plan(cfg: Any, forward_macs: int) -> Plan:
    """`train.budget` in `train.unit` as steps of `train.batch` pictures. Raises BadInput for what makes no step."""
    budget, batch, per_image = float(cfg.budget), int(cfg.batch), 3 * 2 * forward_macs
    if cfg.unit not in UNITS:
        raise BadInput(f"train.unit={cfg.unit}: one of {', '.join(UNITS)}")
    if batch < 1 or not 0 < budget < math.inf:
        raise BadInput(f"train.budget={cfg.budget}, train.batch={cfg.batch}: both must be positive")
    if cfg.unit == "minutes":
        return Plan(batch, None, 60 * budget, per_image)
    images = {"flops": budget / per_image, "images": budget, "steps": budget * batch}[cfg.unit]
    return Plan(batch, max(1, round(images / batch)), None, per_image)


def learning_rate(done: float, cfg: Any, peak: float) -> float:
    """Linear warm-up over `train.warmup` of the budget, then a cosine to zero."""
    if done < cfg.warmup:
        return peak * (done + 1e-3) / (cfg.warmup + 1e-3)
    return peak * 0.5 * (1 + math.cos(math.pi * (done - cfg.warmup) / (1 - cfg.warmup)))


def train(
    generator: Generator,
    data: LatentSet,
    cfg: Any,
    *,
    lr: float,
    seed: int,
    forward_macs: int,
    folder: Path,
    key: str,
    device: torch.device,
) -> dict:
    """Train to the budget, or go on from a checkpoint, or load what is finished; `generator` ends with its EMA weights.

    Returns the summary also written to `folder/train.json`: images, flops, seconds, images_per_second and the loss log.
    Raises Diverged where the loss is not finite.
    """
    shares = [float(share) for share in cfg.snapshots]
    finished = _load_finished(generator, folder, key, shares)
    if finished:
        return finished
    schedule = plan(cfg, forward_macs)
    accelerator, model, optimizer = _accelerate(generator, cfg, lr, device)
    ema = EMAModel(generator.parameters(), decay=cfg.ema_decay, foreach=True)  # its decay ramps up as (1 + s) / (10 + s)
    progress = _resume(generator, ema, optimizer, folder, key, device, lambda reached: _unkept(reached, schedule, shares))

    bar = _bar(schedule, progress, folder.name)
    clock, saved, losses = time.perf_counter() - progress.seconds, progress.seconds, []
    while (done := schedule.done(progress)) < 1:
        rate = _set_rate(optimizer, learning_rate(done, cfg, lr))
        batch = data.batch(seed, progress.step, schedule.batch)
        loss = model(batch, rng=seeded("noise", seed, progress.step))
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(model.parameters(), cfg.grad_clip)
        optimizer.step()
        optimizer.zero_grad()
        ema.step(generator.parameters())
        losses.append(loss.detach())
        progress.step += 1
        progress.seconds = time.perf_counter() - clock
        bar.update(schedule.batch)
        for share in [s for s in shares if done < s <= schedule.done(progress)]:
            _snapshot(generator, ema, share, progress, schedule, folder, key)
        if progress.step % LOG_EVERY == 0 or schedule.done(progress) >= 1:
            _log(progress, schedule, losses, rate, bar)
            losses = []
            if progress.seconds - saved > cfg.checkpoint_seconds:
                _checkpoint(generator, ema, optimizer, progress, folder, key)
                saved = progress.seconds
    speed.synchronise(device)
    progress.seconds = time.perf_counter() - clock
    bar.close()
    ema.copy_to(generator.parameters())
    return _finish(generator, progress, schedule, folder, key, device)


def _accelerate(generator: Generator, cfg: Any, lr: float, device: torch.device) -> tuple[Accelerator, torch.nn.Module, Any]:
    """Accelerate's device and precision around the generator, and AdamW."""
    AcceleratorState._reset_state(reset_partial_state=True)  # cells of one process may differ in device and precision
    accelerator = Accelerator(mixed_precision="bf16" if cfg.precision == "bf16" else "no", cpu=device.type == "cpu")
    if accelerator.num_processes > 1:
        raise BadInput("accelerate launched several processes: a cell trains in one; run cells side by side instead")
    optimizer = torch.optim.AdamW(generator.parameters(), lr=lr, betas=tuple(cfg.betas), weight_decay=cfg.weight_decay, fused=True)
    return accelerator, *accelerator.prepare(generator.train(), optimizer)


def _set_rate(optimizer: Any, rate: float) -> float:
    for group in optimizer.param_groups:
        group["lr"] = rate
    return rate


def _bar(schedule: Plan, progress: Progress, name: str) -> tqdm:
    total = None if schedule.steps is None else schedule.steps * schedule.batch
    pause = 0.5 if sys.stderr.isatty() else 20
    return tqdm(total=total, initial=progress.step * schedule.batch, desc=name, unit="images", mininterval=pause, dynamic_ncols=True)


def _log(progress: Progress, schedule: Plan, losses: list[torch.Tensor], rate: float, bar: tqdm) -> None:
    """Add a row to the loss log; the one place where the host waits for the device."""
    loss = torch.stack(losses).mean().item() if losses else math.nan
    images = progress.step * schedule.batch
    if not math.isfinite(loss):
        raise Diverged(f"the loss was {loss} after {images} images")
    progress.log.append([images, images * schedule.flops_per_image, loss, rate, progress.seconds])
    bar.set_postfix(loss=f"{loss:.4f}", refresh=False)


def _snapshot(generator: Generator, ema: EMAModel, share: float, progress: Progress, schedule: Plan, folder: Path, key: str) -> None:
    """Keep the EMA weights after a share of the budget; the learning rate was still high then, as a longer run's would be."""
    path = folder / f"weights-{share:g}.safetensors"
    ema.store(generator.parameters())
    ema.copy_to(generator.parameters())
    write_tensors(path, key, generator.state_dict())
    ema.restore(generator.parameters())
    progress.snapshots[f"{share:g}"] = _spent(progress, schedule) | {"weights": file_digest(path)[:16]}


def _spent(progress: Progress, schedule: Plan) -> dict[str, float]:
    images = progress.step * schedule.batch
    return {"images": images, "flops": images * schedule.flops_per_image, "seconds": progress.seconds}


def at_share(generator: Generator, trained: dict, share: float, folder: Path) -> dict:
    """Load the weights kept after a share of the budget; returns the training's summary as it stood there.

    Raises BadInput where they are gone.
    """
    path = folder / f"weights-{share:g}.safetensors"
    ready = read_tensors(path, trained["key"])
    if not ready or not _load(generator, ready[0]):
        raise BadInput(f"{path} is gone or damaged; remove {folder / 'train.json'} to train again")
    return trained | trained["snapshots"][f"{share:g}"]


def _checkpoint(generator: Generator, ema: EMAModel, optimizer: Any, progress: Progress, folder: Path, key: str) -> None:
    state = {"key": key, "progress": asdict(progress), "model": generator.state_dict()}
    with atomic_file(folder / "checkpoint.pt") as path:
        torch.save(state | {"ema": ema.state_dict(), "optimizer": optimizer.state_dict()}, path)


def _unkept(progress: Progress, schedule: Plan, shares: list[float]) -> list[float]:
    """Shares of the budget already passed whose weights nobody asked to keep then."""
    return [share for share in shares if share <= schedule.done(progress) and f"{share:g}" not in progress.snapshots]


def _resume(
    generator: Generator, ema: EMAModel, optimizer: Any, folder: Path, key: str, device: torch.device, unkept: Callable
) -> Progress:
    """Load the checkpoint where there is a whole one of this very configuration; else start from nothing."""
    path = folder / "checkpoint.pt"
    if not path.exists():
        return Progress()
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        if state["key"] != key:
            raise ValueError("another configuration's")
        progress = Progress(**state["progress"])
        if unkept(progress):
            raise ValueError(f"it did not keep the weights at {unkept(progress)} of the budget")
        averaged, moments = state["ema"], state["optimizer"]
        fits = _load(generator, state["model"])
    except (RuntimeError, OSError, EOFError, ValueError, KeyError, TypeError, pickle.UnpicklingError) as error:
        fits, reason = False, f"{type(error).__name__} {error}".splitlines()[0]
    else:
        reason = "its tensors are another network's"
    if not fits:
        print(f"train: {path} cannot be used ({reason}); starting over")
        return Progress()
    ema.load_state_dict(averaged)
    ema.to(device)
    optimizer.load_state_dict(moments)
    print(f"train: resuming {folder.name} at step {progress.step}")
    return progress


def _load(generator: Generator, state: dict[str, torch.Tensor]) -> bool:
    """Load a state that fits; leave the generator as it was, and say so, where one does not."""
    own = generator.state_dict()
    if own.keys() != state.keys() or any(own[k].shape != state[k].shape for k in own):
        return False
    generator.load_state_dict(state)
    return True


def _finish(generator: Generator, progress: Progress, schedule: Plan, folder: Path, key: str, device: torch.device) -> dict:
    """Write the EMA weights, then the summary that says they are whole; the checkpoint has served."""
    if not all(p.isfinite().all() for p in generator.parameters()):
        raise Diverged(f"the weights were not finite after {progress.step} steps")
    write_tensors(folder / "weights.safetensors", key, generator.state_dict())
    spent = _spent(progress, schedule)
    summary = spent | {
        "key": key,
        "steps": progress.step,
        "images_per_second": spent["images"] / spent["seconds"],
        "utilisation": spent["flops"] / spent["seconds"] / speed.ceiling_flops(device),
        "log": progress.log,
        "snapshots": progress.snapshots,
        "weights": file_digest(folder / "weights.safetensors")[:16],
        "trained_by": records.provenance(device),
    }
    write_json(folder / "train.json", summary)
    (folder / "checkpoint.pt").unlink(missing_ok=True)
    generator.eval()
    return summary


def _load_finished(generator: Generator, folder: Path, key: str, shares: list[float]) -> dict | None:
    """The summary of a finished training, its weights loaded; None where there is none that is whole, this one's and kept these shares."""
    summary = read_json(folder / "train.json")
    if not isinstance(summary, dict) or summary.get("key") != key:
        return None
    if not {f"{share:g}" for share in shares} <= set(summary.get("snapshots", {})):
        return None
    ready = read_tensors(folder / "weights.safetensors", key)
    if not ready or not _load(generator, ready[0]):
        return None
    generator.eval()
    return summary
