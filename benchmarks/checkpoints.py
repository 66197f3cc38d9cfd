"""What a training keeps on disk: a checkpoint to go on from, weights on the way, and at last its weights and their summary.

Everything carries the key of the configuration that made it, and nothing that is damaged or another's is taken for its own.
"""

import pickle
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from diffusers.training_utils import EMAModel

from benchmarks.store import BadInput, atomic_file, file_digest, read_json, read_tensors, write_json, write_tensors
from models.generator import Generator


@dataclass
class Progress:
    """How far a training is: what a checkpoint holds beside the tensors."""

    step: int = 0
    seconds: float = 0.0
    log: list[list[float]] = field(default_factory=list)  # images, training FLOPs, mean loss, learning rate, seconds
    snapshots: dict[str, dict] = field(default_factory=dict)  # share of the budget -> images, flops, seconds, weights


@dataclass(frozen=True)
class Checkpoints:
    """The files of one training: `folder` holds them, `key` says whose they are, `shares` after which shares of the budget to keep weights."""

    folder: Path
    key: str
    shares: tuple[float, ...] = ()

    def weights(self, share: float = 1.0) -> Path:
        """The EMA weights after a share of the budget."""
        return self.folder / ("weights.safetensors" if share == 1 else f"weights-{share:g}.safetensors")

    def save(self, generator: Generator, ema: EMAModel, optimizer: Any, progress: Progress) -> None:
        """A checkpoint, over the last one."""
        state = {"key": self.key, "shares": self.shares, "progress": asdict(progress), "model": generator.state_dict()}
        with atomic_file(self.folder / "checkpoint.pt") as path:
            torch.save(state | {"ema": ema.state_dict(), "optimizer": optimizer.state_dict()}, path)

    def resume(self, generator: Generator, ema: EMAModel, optimizer: Any, device: torch.device) -> Progress:
        """Load the checkpoint where there is a whole one of this very configuration; else start from nothing."""
        path = self.folder / "checkpoint.pt"
        if not path.exists():
            return Progress()
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
            if state["key"] != self.key:
                raise ValueError("another configuration's")
            if not set(self.shares) <= set(state["shares"]):
                raise ValueError(f"it was to keep weights at {list(state['shares'])} of the budget, not at {list(self.shares)}")
            progress = Progress(**state["progress"])
            averaged, moments = state["ema"], state["optimizer"]
            fits = load(generator, state["model"])
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
        print(f"train: resuming {self.folder.name} at step {progress.step}")
        return progress

    def keep(self, generator: Generator, ema: EMAModel, share: float, spent: dict[str, float], progress: Progress) -> None:
        """The EMA weights after a share of the budget; the learning rate is still high then, as a longer run's would be."""
        ema.store(generator.parameters())
        ema.copy_to(generator.parameters())
        write_tensors(self.weights(share), self.key, generator.state_dict())
        ema.restore(generator.parameters())
        progress.snapshots[f"{share:g}"] = spent | {"weights": file_digest(self.weights(share))[:16]}

    def finish(self, generator: Generator, summary: dict) -> dict:
        """Write the weights, then the summary that says they are whole; the checkpoint has served."""
        write_tensors(self.weights(), self.key, generator.state_dict())
        summary = summary | {"key": self.key, "weights": file_digest(self.weights())[:16]}
        write_json(self.folder / "train.json", summary)
        (self.folder / "checkpoint.pt").unlink(missing_ok=True)
        return summary

    def finished(self, generator: Generator) -> dict | None:
        """The summary of a finished training, its weights loaded; None where none is whole, this one's, and kept these shares."""
        summary = read_json(self.folder / "train.json")
        if not isinstance(summary, dict) or summary.get("key") != self.key:
            return None
        if not {f"{share:g}" for share in self.shares} <= set(summary.get("snapshots", {})):
            return None
        ready = read_tensors(self.weights(), self.key)
        return summary if ready and load(generator, ready[0]) else None

    def at_share(self, generator: Generator, trained: dict, share: float) -> dict:
        """Load the weights kept after a share of the budget; returns the training's summary as it stood there.

        Raises BadInput where they are gone.
        """
        ready = read_tensors(self.weights(share), self.key)
        if not ready or not load(generator, ready[0]):
            raise BadInput(f"{self.weights(share)} is gone or damaged; remove {self.folder / 'train.json'} to train again")
        return trained | trained["snapshots"][f"{share:g}"]


def load(generator: Generator, state: dict[str, torch.Tensor]) -> bool:
    """Load a state that fits; leave the generator as it was, and say so, where one does not."""
    own = generator.state_dict()
    if own.keys() != state.keys() or any(own[k].shape != state[k].shape for k in own):
        return False
    generator.load_state_dict(state)
    return True
