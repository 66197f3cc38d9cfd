"""What a training keeps on disk: a checkpoint to go on from, weights on the way, and at last its
weights and their summary.

Everything carries the key of the configuration that made it, and nothing that is damaged or
another's is taken for its own.
"""

import time
import zipfile
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from diffusers.training_utils import EMAModel

from benchmarks.core.errors import BadInput, raise_if_stopped
from benchmarks.core.files import atomic_file
from benchmarks.core.store import (
    file_digest,
    first_line,
    read_sealed,
    read_tensors,
    write_sealed,
    write_tensors,
)
from models.generator import GenerativeModel


@dataclass
class Progress:
    """How far a training is: what a checkpoint holds beside the tensors."""

    step: int = 0
    seconds: float = 0.0
    process_seconds: float = 0.0  # of all processes, whose number may have changed on the way
    # rows of images, training FLOPs, mean loss, learning rate, seconds
    log: list[list[float]] = field(default_factory=list)
    # fraction of the budget -> images, flops, seconds, weights
    snapshots: dict[str, dict] = field(default_factory=dict)

    def take(self, seconds: float, processes: int) -> None:
        """The clock stands at `seconds`, and as many processes trained since it was last read."""
        self.process_seconds += processes * (seconds - self.seconds)
        self.seconds = seconds


@dataclass(frozen=True)
class Checkpoints:
    """The files of one training.

    `folder` holds them, `key` says whose they are, `fractions` after which fractions of the budget
    to keep weights.
    """

    folder: Path
    key: str
    fractions: tuple[float, ...] = ()

    def weights(self, fraction: float = 1.0) -> Path:
        """The EMA weights after a fraction of the budget."""
        name = "weights" if fraction == 1 else f"weights-{fraction:g}"
        return self.folder / f"{name}.safetensors"

    def save(
        self, generator: GenerativeModel, ema: EMAModel, optimizer: Any, progress: Progress
    ) -> None:
        """A checkpoint, over the last one."""
        state = {
            "key": self.key,
            "fractions": self.fractions,
            "progress": asdict(progress),
            "model": generator.state_dict(),
            "ema": ema.state_dict(),
            "optimizer": optimizer.state_dict(),
        }
        with atomic_file(self.folder / "checkpoint.pt") as path:
            torch.save(state, path)

    def resume(
        self, generator: GenerativeModel, ema: EMAModel, optimizer: Any, device: torch.device
    ) -> Progress:
        """Load the checkpoint where there is a whole one of this very configuration; else start
        from nothing.
        """
        path = self.folder / "checkpoint.pt"
        if not path.exists():
            return Progress()
        try:
            _check_bytes(path)
            state = torch.load(path, map_location="cpu", weights_only=True)
            self._check(state)
            # a checkpoint of an earlier version does not say how many processes there were
            one_process = {"process_seconds": state["progress"]["seconds"]}
            progress = Progress(**one_process | state["progress"])
            self._check_kept(progress)
            average, moments = state["ema"], state["optimizer"]
            fits, reason = load(generator, state["model"]), "its tensors are another network's"
        except Exception as error:  # whatever a damaged or foreign file leads its reader to
            raise_if_stopped(error)
            fits, reason = False, f"{type(error).__name__} {first_line(error)}"
        if not fits:
            print(f"train: {path} cannot be used ({reason}); starting over")
            return Progress()
        ema.load_state_dict(average)
        ema.to(device)
        optimizer.load_state_dict(moments)
        print(f"train: resuming {self.folder.name} at step {progress.step}")
        return progress

    def _check(self, state: dict[str, Any]) -> None:
        """Raises ValueError for another configuration's state, and for one too far on."""
        if state["key"] != self.key:
            raise ValueError("another configuration's")
        if not set(self.fractions) <= set(state["fractions"]):
            planned, wanted = list(state["fractions"]), list(self.fractions)
            raise ValueError(f"it was to keep weights at {planned} of the budget, not at {wanted}")

    def _check_kept(self, progress: Progress) -> None:
        """Raises ValueError where weights that were kept on the way are gone or damaged."""
        for fraction in self.fractions:
            if f"{fraction:g}" not in progress.snapshots:
                continue
            if not read_tensors(self.weights(fraction), self.key):
                raise ValueError(f"the weights kept at {fraction:.0%} of the budget are damaged")

    def keep(
        self,
        generator: GenerativeModel,
        ema: EMAModel,
        fraction: float,
        spent: dict[str, float],
        progress: Progress,
    ) -> None:
        """The EMA weights after a fraction of the budget; the learning rate is still high then, as
        a longer run's would be.
        """
        path = self.weights(fraction)
        ema.store(generator.parameters())
        ema.copy_to(generator.parameters())
        write_tensors(path, self.key, generator.state_dict())
        ema.restore(generator.parameters())
        progress.snapshots[f"{fraction:g}"] = spent | {"weights": file_digest(path)[:16]}

    def finish(self, generator: GenerativeModel, summary: dict) -> dict:
        """Write the weights, then the summary that says they are whole; the checkpoint has
        served.
        """
        write_tensors(self.weights(), self.key, generator.state_dict())
        summary = summary | {"key": self.key, "weights": file_digest(self.weights())[:16]}
        write_sealed(self.folder / "train.json", summary)
        (self.folder / "checkpoint.pt").unlink(missing_ok=True)
        return summary

    def finished(self, generator: GenerativeModel) -> dict | None:
        """The summary of a finished training, its weights loaded; None where none is whole, this
        one's, and kept these fractions. Weights kept on the way must be whole, too.
        """
        summary = read_sealed(self.folder / "train.json")
        if summary is None or summary.get("key") != self.key:
            return None
        wanted = {f"{fraction:g}" for fraction in self.fractions}
        if not wanted <= set(summary.get("snapshots", {})):
            return None
        if not all(read_tensors(self.weights(f), self.key) for f in self.fractions):
            return None
        ready = read_tensors(self.weights(), self.key)
        return summary if ready and load(generator, ready[0]) else None

    def load_at_fraction(self, generator: GenerativeModel, trained: dict, fraction: float) -> dict:
        """Load the weights kept after a fraction of the budget; returns the training's summary as
        it stood there.

        Raises BadInput where they are gone.
        """
        self.load_weights(generator, fraction)
        return trained | trained["snapshots"][f"{fraction:g}"]

    def load_weights(self, generator: GenerativeModel, fraction: float) -> None:
        """Load the weights kept after a fraction of the budget. Raises BadInput where they are
        gone.
        """
        path = self.weights(fraction)
        ready = read_tensors(path, self.key)
        if not ready or not load(generator, ready[0]):
            raise BadInput(f"{path} is gone or damaged; remove {self.folder} to train again")


@dataclass
class Saver:
    """Saves checkpoints every so many seconds of training; where one takes over a second, a
    twentieth of the time at most.
    """

    files: Checkpoints
    every: float
    last: float  # seconds of training at the last checkpoint
    log_every: int  # steps
    took: float = 0.0

    def due(self, progress: Progress) -> bool:
        """Only where the loss log is whole: a resumed training then has the log of one that was not
        interrupted.
        """
        pause = max(self.every, 20 * self.took if self.took > 1 else 0)
        return progress.step % self.log_every == 0 and progress.seconds - self.last > pause

    def save(
        self, generator: GenerativeModel, ema: EMAModel, optimizer: Any, progress: Progress
    ) -> float:
        """Returns the seconds it took, which are not training."""
        began = time.perf_counter()
        self.files.save(generator, ema, optimizer, progress)
        self.last, self.took = progress.seconds, time.perf_counter() - began
        return self.took


def _check_bytes(path: Path) -> None:
    """Raises ValueError where torch's file, a zip archive, does not fit its own checksums."""
    with zipfile.ZipFile(path) as archive:
        if archive.testzip() is not None:
            raise ValueError("its bytes were changed")


def load(generator: GenerativeModel, state: dict[str, torch.Tensor]) -> bool:
    """Load a state that fits; leave the model as it was, and say so, where one does not."""
    own = generator.state_dict()
    if own.keys() != state.keys() or any(own[k].shape != state[k].shape for k in own):
        return False
    generator.load_state_dict(state)
    return True
