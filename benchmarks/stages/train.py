"""One training loop for every family: the same latents, batches, schedule and budget; only the
network differs.
"""

import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from benchmarks.core import team
from benchmarks.core.environment import provenance
from benchmarks.core.errors import Diverged, OutOfTime
from benchmarks.core.files import check_writable
from benchmarks.core.store import seeded
from benchmarks.frozen.latents import LatentSet, batch_indices
from benchmarks.stages.budget import Budget, make_budget
from benchmarks.stages.checkpoint import Checkpoints, Progress, Saver
from benchmarks.stages.compiling import Compiler
from benchmarks.stages.train_state import TrainState, build_train_state
from metrics import speed
from models.generator import Batch, GenerativeModel

CHECKED_BATCHES = 4  # whose loss, before and after, says whether trained weights are any use
WORSE = 1.2  # times the untrained loss: diverged
LOG_EVERY = 20  # steps; reading the loss more often would make an accelerator wait


@dataclass
class Run:
    """A training under way."""

    files: Checkpoints
    budget: Budget
    state: TrainState
    progress: Progress
    compiler: Compiler
    saver: Saver
    device: torch.device
    others: speed.OtherPrograms


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
    """Train to the budget, or load what is trained; `generator` ends with its EMA weights.

    Every process of a team calls this; the leader writes. `cfg` is conf/train. Returns what is in
    `folder/train.json`. `compile_file` keeps what compiling took. Raises Diverged where the loss is
    not finite or ends above untrained weights', and OutOfTime after `stop_at`, at a checkpoint.
    """
    files = Checkpoints(folder, key, tuple(map(float, cfg.snapshots)))
    finished = files.finished(generator.eval())
    if team.same(bool(finished), "trained weights"):
        team.same_weights(generator)
        return finished or {}
    team.alike(check_writable, folder, "cache_dir")
    budget = make_budget(cfg, forward_macs, generator.extra_passes, generator.extra_after)
    _fit(generator, data)
    checked = [data.batch(seed, i, budget.batch) for i in range(CHECKED_BATCHES)]
    loss = partial(_loss, generator, checked, cfg, device)
    untrained = loss()
    state = build_train_state(generator, cfg, lr, device)
    progress = files.resume(generator, state.ema, state.optimizer, device)
    team.same(progress.step, "checkpoints")
    compiler = Compiler.of(cfg.compile, budget.steps, device, compile_file)
    saver = Saver(files, cfg.checkpoint_seconds, progress.seconds, LOG_EVERY)
    run = Run(files, budget, state, progress, compiler, saver, device, speed.OtherPrograms(device))
    loop(run, data, rate=partial(learning_rate, cfg=cfg, peak=lr), seed=seed, stop_at=stop_at)
    _take_average(run, loss, untrained)
    return _finish(run)


def _fit(generator: GenerativeModel, data: LatentSet) -> None:
    """What a family fits on the training latents before it trains."""
    if generator.fits_on:
        count = min(generator.fits_on, len(data.labels))
        generator.fit(data.latents[0, batch_indices(len(data.labels), count, 0, 0)])


def loop(
    run: Run,
    data: LatentSet,
    *,
    rate: Callable[[float], float],
    seed: int,
    stop_at: float | None,
) -> None:
    """Batch, step, log, checkpoint, until the budget is spent; `rate` of the fraction spent is the
    learning rate.
    """
    budget, state, progress, bar = run.budget, run.state, run.progress, _bar(run)
    began, losses = time.perf_counter() - progress.seconds, []
    while (done := budget.done(progress)) < 1:
        state.begin_step(done, rate(done))
        batch = data.batch(seed, progress.step, budget.batch, team.own_rows(budget.batch))
        losses.append(state.step(batch, seeded("noise", seed, progress.step)))
        progress.step += 1
        run.compiler.after(state, progress.step, batch)
        progress.take(team.agreed(time.perf_counter() - began), team.size())
        bar.update(budget.batch)

        # weights kept on the way, for distance against training FLOPs
        for fraction in run.files.fractions:
            if done < fraction <= budget.done(progress) and team.leads():
                spent = budget.spent(progress)
                run.files.keep(state.generator, state.ema, fraction, spent, progress)

        finished = budget.done(progress) >= 1
        late = not finished and stop_at is not None and team.agreed(time.time()) > stop_at
        if finished or late or progress.step % LOG_EVERY == 0:
            _log(run, losses, rate(done), bar)
            losses = []
        if team.leads() and (late or run.saver.due(progress)):  # no training: the clock stands
            began += run.saver.save(state.generator, state.ema, state.optimizer, progress)
        if late:
            raise OutOfTime(f"{run.files.folder.name} is trained to {budget.done(progress):.0%}")
    speed.synchronise(run.device)
    progress.take(time.perf_counter() - began, team.size())
    bar.close()


def learning_rate(done: float, cfg: Any, peak: float) -> float:
    """Linear warm-up over `train.warmup` of the budget, then a cosine to zero."""
    if done < cfg.warmup:
        # a little above 0 at once, or the first step would do nothing
        return peak * (done + 1e-3) / (cfg.warmup + 1e-3)
    return peak * 0.5 * (1 + math.cos(math.pi * (done - cfg.warmup) / (1 - cfg.warmup)))


def _bar(run: Run) -> tqdm:
    """Progress in images; a log file gets a line every 20 seconds only."""
    budget = run.budget
    return tqdm(
        total=None if budget.steps is None else budget.steps * budget.batch,
        initial=run.progress.step * budget.batch,
        desc=run.files.folder.name,
        unit="images",
        mininterval=0.5 if sys.stderr.isatty() else 20,
        dynamic_ncols=True,
        disable=not team.leads(),
    )


def _log(run: Run, losses: list[torch.Tensor], rate: float, bar: tqdm) -> None:
    """Add a row to the loss log; the one place where the host waits for the device.

    Raises Diverged where the loss is not finite.
    """
    loss = team.mean(torch.stack(losses).mean()).item() if losses else math.nan
    spent = run.budget.spent(run.progress)
    if not math.isfinite(loss):
        raise Diverged(f"the loss was {loss} after {spent['images']} images")
    row = [spent["images"], spent["flops"], loss, rate, run.progress.seconds]
    run.progress.log.append(row)
    bar.set_postfix(loss=f"{loss:.4f}", refresh=False)


@torch.no_grad()
def _loss(
    generator: GenerativeModel,
    batches: list[Batch],
    cfg: Any,
    device: torch.device,
) -> float:
    """The mean loss of some training batches, no label dropped, always with the same noise; a batch
    in as many parts as a step takes it, for it may not fit into memory whole.
    """
    generator.eval()
    losses, parts = [], cfg.accumulate
    with torch.autocast(device.type, torch.bfloat16, enabled=cfg.precision == "bf16"):
        for i, batch in enumerate(batches):
            each = len(batch.labels) // parts
            for part in range(parts):
                rows = slice(part * each, (part + 1) * each) if parts > 1 else None
                losses.append(generator(batch, rng=seeded("check", i), rows=rows))
    return team.agreed(torch.stack(losses).mean().item())


def _take_average(run: Run, loss: Callable[[], float], untrained: float) -> None:
    """The averaged weights into the model. Those that were kept on the way pass through it before,
    to be judged as well.

    Raises Diverged where any are not finite, or have a clearly higher loss than untrained ones.
    Samples would not tell: tokens of any logits decode to images like any others.
    """
    generator = run.state.generator
    generator.uncompile_error()
    for fraction in (*run.files.fractions, 1.0):
        if fraction == 1:
            run.state.ema.copy_to(generator.parameters())
        else:
            team.alike(_load_kept, run, fraction)
        where = f"the weights at {fraction:.0%} of the budget"
        finite = all(p.isfinite().all() for p in generator.parameters())
        if not team.agreed(finite):
            raise Diverged(f"{where} are not finite")
        trained = loss()
        if not trained <= WORSE * untrained:  # so written, NaN counts
            raise Diverged(f"{where} have a loss of {trained:.3g}, untrained ones {untrained:.3g}")


def _load_kept(run: Run, fraction: float) -> None:
    """The weights kept after a fraction of the budget into the model of the leader, who has them
    and whose loss counts.
    """
    if team.leads():
        run.files.load_weights(run.state.generator, fraction)


def _finish(run: Run) -> dict:
    """The weights to disk, by the leader, with what the training took and made."""
    generator, progress = run.state.generator.eval(), run.progress
    others = team.of_others(run.others)
    if not team.leads():
        return {}
    spent = run.budget.spent(progress)
    processes = progress.process_seconds / progress.seconds  # their mean, where it changed
    flops_per_second = spent["flops"] / spent["seconds"]
    summary = spent | {
        "steps": progress.step,
        "images_per_second": spent["images"] / spent["seconds"],
        "others_cpu": others,
        "utilisation": flops_per_second / (speed.ceiling_flops(run.device) * processes),
        "processes": round(processes, 3),
        "log": progress.log,
        "snapshots": progress.snapshots,
        "trained_by": provenance(run.device),
        "compile": run.compiler.summary(),
    }
    return run.files.finish(generator, summary)
