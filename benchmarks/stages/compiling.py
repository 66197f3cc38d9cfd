"""When the training step is compiled: where what is left of the budget pays back what compiling
costs at its start.

`train.compile=auto` begins with the step as it is, times some, and decides once. What compiling
then took and gave is measured and kept for the next training of the same network on the same
machine, whose decision rests on it.
"""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks.core import team
from benchmarks.core.errors import raise_if_stopped
from benchmarks.core.store import read_sealed, write_sealed
from metrics import speed
from models.generator import Batch

WARMUP = 5  # steps before any timing: kernels are chosen in the first ones
TIMED = 10  # steps behind one figure


class Payback(NamedTuple):
    """What compiling costs and gives."""

    startup_seconds: float  # before the first compiled step is done
    gain: float  # fraction of a step's time that it saves, below 1

    def pays(self, steps: int, step_seconds: float) -> bool:
        """Whether so many steps, each of so many seconds uncompiled, are sooner done compiled."""
        return steps * step_seconds * self.gain > self.startup_seconds


# until this machine has measured: on a CPU compiling took up to a minute and saved up to a third
GUESS = Payback(startup_seconds=60.0, gain=0.2)


@dataclass
class Compiler:
    """Watches a training's steps and says when to go on compiled."""

    auto: bool  # decide by timing; else `compiled` stays as it is
    steps: int | None  # of the training; None for a budget in minutes, which is never compiled
    device: torch.device
    file: Path | None = None  # where this network's measurement on this machine is kept
    compiled: bool = False
    step_seconds: float | None = None  # as it is
    startup_seconds: float | None = None
    compiled_step_seconds: float | None = None
    _first: int | None = None  # the step after which a timing began
    _started: float = 0.0

    @classmethod
    def of(
        cls, wanted: bool | str, steps: int | None, device: torch.device, file: Path | None
    ) -> "Compiler":
        """As `train.compile` wants it; `auto` is for CUDA, since on a CPU compiling has paid for
        some models only, and for one process, since several would decide differently.
        """
        auto = wanted == "auto" and device.type == "cuda" and team.size() == 1
        return cls(auto, steps, device, file, compiled=wanted is True)

    def after(self, state: Any, step: int, batch: Batch) -> None:
        """Called after every step of a train state; from some step on its loss is compiled."""
        if not self.auto or self.steps is None:
            return
        if self.compiled and self.compiled_step_seconds is None:
            self._measure(step)
            compiled_seconds = self.compiled_step_seconds
            if compiled_seconds is not None and compiled_seconds >= self.step_seconds:
                self.compiled = False
                state.generator.uncompile_error()
        elif self.step_seconds is None:
            self.step_seconds = self._timed(step)
            if self.step_seconds is None:
                return
            left = self.steps - step
            if self.payback().pays(left, self.step_seconds):
                self._try(state, batch)

    def payback(self) -> Payback:
        """As measured on this machine, else the guess."""
        measured = read_sealed(self.file) if self.file else None
        if measured is None:
            return GUESS
        return Payback(measured["startup_seconds"], measured["gain"])

    def summary(self) -> dict[str, float | bool | None]:
        """For the record: whether it was compiled, and the seconds behind that."""
        numbers = ("compiled", "step_seconds", "startup_seconds", "compiled_step_seconds")
        return {name: getattr(self, name) for name in numbers}

    def _try(self, state: Any, batch: Batch) -> None:
        """Compile, and throw the first gradients away; where that fails, the loss is again as it
        was.
        """
        started = self._now()
        state.generator.compile_error()
        try:
            state.backward(batch, torch.Generator())
        # a compiler fails in many ways, and none of them is worth a training
        except Exception as error:
            raise_if_stopped(error)
            self.auto = False
            state.generator.uncompile_error()
            reason = f"{type(error).__name__}: {str(error).strip()[:200]}"
            print(f"train.compile=auto: going on uncompiled ({reason})", flush=True)
        else:
            self.compiled, self.startup_seconds = True, self._now() - started
        # the trial is no step: its gradients go, and its random numbers were its own
        state.optimizer.zero_grad()

    def _now(self) -> float:
        speed.synchronise(self.device)
        return time.perf_counter()

    def _timed(self, step: int) -> float | None:
        """Seconds of a step, over TIMED of them behind WARMUP others; None until they are done."""
        if self._first is None:
            self._first = step + WARMUP - 1
        if step == self._first:
            self._started = self._now()
        if step < self._first + TIMED:
            return None
        self._first = None  # the next timing begins anew
        return (self._now() - self._started) / TIMED

    def _measure(self, step: int) -> None:
        """What a compiled step takes, kept in `file` for the next training."""
        self.compiled_step_seconds = self._timed(step)
        if self.compiled_step_seconds is not None and self.file is not None:
            gain = 1 - self.compiled_step_seconds / self.step_seconds
            write_sealed(self.file, {"startup_seconds": self.startup_seconds, "gain": gain})
