"""What a training step needs around a model: precision, optimizer, the average of weights, and the
other processes that train it.
"""

import warnings
from collections.abc import Iterable
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from diffusers.training_utils import EMAModel
from torch.nn.parallel import DistributedDataParallel

from benchmarks.core import team
from benchmarks.core.environment import refuse_foreign_settings
from models.generator import Batch, GenerativeModel


class InPlaceEMA(EMAModel):
    """diffusers' EMA, its step in place: the library's makes a second set of weights each time."""

    @torch.no_grad()
    def step(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        self.optimization_step += 1
        self.cur_decay_value = self.get_decay(self.optimization_step)
        means, trained = [], []
        for mean, parameter in zip(self.shadow_params, parameters, strict=True):
            if parameter.requires_grad:
                means.append(mean)
                trained.append(parameter)
            else:
                mean.copy_(parameter)
        # mean += (1 - decay) (parameter - mean), all at once
        torch._foreach_lerp_(means, trained, 1 - self.cur_decay_value)


class TrainState(NamedTuple):
    """A model and what trains it."""

    generator: GenerativeModel
    accelerator: Accelerator
    model: Any  # the generator as it is called: its gradients are the mean of all processes'
    optimizer: Any
    ema: EMAModel
    grad_clip: float
    accumulate: int  # passes that a batch is divided into
    alone: bool  # whether this process trains without the others of its team

    def step(self, batch: Batch, rng: torch.Generator) -> torch.Tensor:
        """One update of the weights and of their average; returns the loss, still on the device.

        Of several processes each has its part of the batch, and the loss of this part.
        """
        loss = self.backward(batch, rng)
        self.accelerator.clip_grad_norm_(self.model.parameters(), self.grad_clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.ema.step(self.generator.parameters())
        return loss

    def backward(self, batch: Batch, rng: torch.Generator) -> torch.Tensor:
        """The gradients of a batch, in one pass or several; returns the loss."""
        if self.alone and self.accumulate == 1:
            loss = self.model(batch, rng=rng)
            self.accelerator.backward(loss)
            return loss.detach()
        losses, drawn = [], rng.get_state()
        for part in range(self.accumulate):
            rows = team.rows(len(batch.labels), part, self.accumulate)
            # gradients are averaged over the processes once, in the last pass
            last = part == self.accumulate - 1 or self.alone
            with nullcontext() if last else self.model.no_sync():
                loss = self.model(batch, rng=rng.set_state(drawn), rows=rows)
                self.accelerator.backward(loss / self.accumulate)
            losses.append(loss.detach())
        return torch.stack(losses).mean()

    def begin_step(self, done: float, rate: float) -> None:
        """The fraction of the budget that is spent, and the learning rate of the next step."""
        self.generator.progress = done
        for group in self.optimizer.param_groups:
            group["lr"] = rate


def build_train_state(
    generator: GenerativeModel, cfg: Any, lr: float, device: torch.device, *, alone: bool = False
) -> TrainState:
    """Accelerate's device and precision around the model, AdamW, and an EMA whose decay ramps up as
    (1 + s) / (10 + s).

    With `cfg.compile` true the loss is compiled, but not sampling, of many shapes. With `auto` it
    begins as it is, and `Compiler` decides. `alone`: of a team, only this process trains it.
    """
    alone = alone or team.size() == 1
    if not alone or cfg.accumulate > 1:
        team.rows(cfg.batch, parts=cfg.accumulate)  # raises where a batch cannot be divided
    # cells of one process may differ in device and precision
    AcceleratorState._reset_state(reset_partial_state=True)
    precision = {"bf16": "bf16", "fp32": "no"}[cfg.precision]  # `auto` is settled before
    refuse_foreign_settings()
    accelerator = Accelerator(mixed_precision=precision, cpu=device.type == "cpu")
    optimizer = torch.optim.AdamW(
        generator.parameters(),
        lr=lr,
        betas=tuple(cfg.betas),
        weight_decay=cfg.weight_decay,
        fused=True,
    )
    ema = InPlaceEMA(generator.parameters(), decay=cfg.ema_decay, foreach=True)
    model, optimizer = accelerator.prepare(generator.train(), optimizer)
    if not alone:
        model = _of_all_processes(model)
    if cfg.compile is True:
        generator.compile_error()
    return TrainState(
        generator=generator,
        accelerator=accelerator,
        model=model,
        optimizer=optimizer,
        ema=ema,
        grad_clip=cfg.grad_clip,
        accumulate=cfg.accumulate,
        alone=alone,
    )


def _of_all_processes(model: torch.nn.Module) -> DistributedDataParallel:
    """The model with gradients that are the mean of all processes'; buffers are equal constants."""
    # torch 2.13 has another name for this setting, 2.11 only this one
    with warnings.catch_warnings(action="ignore", category=FutureWarning):
        return DistributedDataParallel(model, broadcast_buffers=False)
