"""What a training keeps on disk: a checkpoint to go on from, weights on the way, and at last its
weights and their summary.

Everything carries the key of the configuration that made it, and nothing that is damaged or
another's is taken for its own.
"""

import pickle
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from diffusers.training_utils import EMAModel

from benchmarks.core.errors import BadInput
from benchmarks.core.store import (
    atomic_file,
    file_digest,
    read_json,
    read_tensors,
    write_json,
    write_tensors,
)
from models.generator import GenerativeModel


@dataclass
class Progress:
    """How far a training is: what a checkpoint holds beside the tensors."""

    step: int = 0
    seconds: float = 0.0
    log: list[list[float]] = field(
        default_factory=list
    )  # images, training FLOPs, mean loss, learning rate, seconds
    snapshots: dict[str, dict] = field(
        default_factory=dict
    )  # fraction of the budget -> images, flops, seconds, weights


@dataclass(frozen=True)
class Checkpoints:
    """The files of one training: `folder` holds them, `key` says whose they are, `fractions` after
    which fractions of the budget to keep weights.
    """

    folder: Path
    key: str
    fractions: tuple[float, ...] = ()

    def weights(self, fraction: float = 1.0) -> Path:
        """The EMA weights after a fraction of the budget."""
        return self.folder / (
            "weights.safetensors" if fraction == 1 else f"weights-{fraction:g}.safetensors"
        )

    def save(
        self, generator: GenerativeModel, ema: EMAModel, optimizer: Any, progress: Progress
    ) -> None:
        """A checkpoint, over the last one."""
        state = {
            "key": self.key,
            "fractions": self.fractions,
            "progress": asdict(progress),
            "model": generator.state_dict(),
        }
        with atomic_file(self.folder / "checkpoint.pt") as path:
            torch.save(state | {"ema": ema.state_dict(), "optimizer": optimizer.state_dict()}, path)

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
            state = torch.load(path, map_location="cpu", weights_only=True)
            if state["key"] != self.key:
                raise ValueError("another configuration's")
            if not set(self.fractions) <= set(state["fractions"]):
                raise ValueError(
                    f"it was to keep weights at {list(state['fractions'])} of the budget, not at {list(self.fractions)}"
                )
            progress = Progress(**state["progress"])
            averaged, moments = state["ema"], state["optimizer"]
            fits = load(generator, state["model"])
        except (
            RuntimeError,
            OSError,
            EOFError,
            ValueError,
            KeyError,
            TypeError,
            pickle.UnpicklingError,
        ) as error:
            fits, reason = False, f"{type(error).__name__} {error}".splitlines()[0]
        else:
            reason = "its tensors are another network's"
        if not fits:
            print(f"train: {path} cannot be used ({reason}); starting over")
            return Progress()
        ema.load_state_dict(averaged)
        ema.to(device)
        optimizer.load_state_dict(moments)
        print(f"train: resuming {self.folder.name} at step {progress.step}")
        return progress

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
        ema.store(generator.parameters())
        ema.copy_to(generator.parameters())
        write_tensors(self.weights(fraction), self.key, generator.state_dict())
        ema.restore(generator.parameters())
        progress.snapshots[f"{fraction:g}"] = spent | {
            "weights": file_digest(self.weights(fraction))[:16]
        }

    def finish(self, generator: GenerativeModel, summary: dict) -> dict:
        """Write the weights, then the summary that says they are whole; the checkpoint has served."""
        write_tensors(self.weights(), self.key, generator.state_dict())
        summary = summary | {"key": self.key, "weights": file_digest(self.weights())[:16]}
        write_json(self.folder / "train.json", summary)
        (self.folder / "checkpoint.pt").unlink(missing_ok=True)
        return summary

    def finished(self, generator: GenerativeModel) -> dict | None:
        """The summary of a finished training, its weights loaded; None where none is whole, this
        one's, and kept these fractions.
        """
        summary = read_json(self.folder / "train.json")
        if not isinstance(summary, dict) or summary.get("key") != self.key:
            return None
        if not {f"{fraction:g}" for fraction in self.fractions} <= set(
            summary.get("snapshots", {})
        ):
            return None
        ready = read_tensors(self.weights(), self.key)
        return summary if ready and load(generator, ready[0]) else None

    def load_at_fraction(self, generator: GenerativeModel, trained: dict, fraction: float) -> dict:
        """Load the weights kept after a fraction of the budget; returns the training's summary as
        it stood there.

        Raises BadInput where they are gone.
        """
        ready = read_tensors(self.weights(fraction), self.key)
        if not ready or not load(generator, ready[0]):
            raise BadInput(
                f"{self.weights(fraction)} is gone or damaged; remove {self.folder / 'train.json'} to train again"
            )
        return trained | trained["snapshots"][f"{fraction:g}"]


def load(generator: GenerativeModel, state: dict[str, torch.Tensor]) -> bool:
    """Load a state that fits; leave the generator as it was, and say so, where one does not."""
    own = generator.state_dict()
    if own.keys() != state.keys() or any(own[k].shape != state[k].shape for k in own):
        return False
    generator.load_state_dict(state)
    return True
