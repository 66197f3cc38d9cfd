"""What all processes of a team do of a cell at once: train it, and sample it.

Each makes the leader's cell for itself, from the caches that the leader has filled by then. Where
there is one process, it is the leader.
"""

from collections.abc import Callable
from typing import Any, TypeVar

from omegaconf import DictConfig

from benchmarks.core import team
from benchmarks.core.environment import refuse_foreign_settings
from benchmarks.core.session import session
from benchmarks.core.store import digest
from benchmarks.stages.cell import Cell
from benchmarks.stages.checkpoint import Checkpoints
from benchmarks.stages.guide import set_guide
from benchmarks.stages.model import forward_macs, place_on
from benchmarks.stages.prepare import prepare
from benchmarks.stages.sample import Samples, SamplingConfig, sample_images
from benchmarks.stages.train import train as train_model
from metrics import speed

Value = TypeVar("Value")


def train(cell: Cell) -> dict[str, Any]:
    """Train the cell's model to the budget, or load what is trained: `stages.train.train`."""
    return _jointly(cell, _train)


def sample(cell: Cell, config: SamplingConfig) -> Samples:
    """Sample the trained model: `stages.sample.sample_images`."""
    return _jointly(cell, _sample, config)


def load_at_fraction(cell: Cell, trained: dict[str, Any], fraction: float) -> dict[str, Any]:
    """Load weights kept on the way: `Checkpoints.load_at_fraction`."""
    return _jointly(cell, _load_at_fraction, trained, fraction)


def _jointly(cell: Cell, task: Callable[..., Value], *args: Any) -> Value:
    return team.together(cell, _of_cell, cell.cfg, task, args)


def _of_cell(cell: Cell | None, cfg: DictConfig, task: Callable[..., Value], args: Any) -> Value:
    """`task(cell, *args)`, of the leader's cell or of one that is made like it."""
    cell = team.alike(_like_the_leaders, cell, cfg)
    team.same([cell.key, cell.dataset.key, cell.work.name], "images or latents")
    return task(cell, *args)


def _like_the_leaders(cell: Cell | None, cfg: DictConfig) -> Cell:
    """The leader's cell, or that of a process that follows, made once."""
    if cell is not None:
        return cell
    refuse_foreign_settings()  # here, or it would be in the middle of building a train state
    key = digest("cell", cfg)
    if key not in session.from_leader:
        for old in [name for name, kept in session.from_leader.items() if isinstance(kept, Cell)]:
            del session.from_leader[old]  # one fits into memory, two may not
            speed.free_memory()
        session.from_leader[key] = prepare(cfg)
    return session.from_leader[key]


def _train(cell: Cell) -> dict[str, Any]:
    cfg = cell.cfg
    return train_model(
        place_on(cell.model, cell.device),
        cell.latents.to(cell.device),
        cfg.train,
        lr=cfg.model.lr,
        seed=cfg.seed,
        forward_macs=forward_macs(cell.meta_model),
        folder=cell.work,
        key=cell.key,
        device=cell.device,
        compile_file=cell.compile_file,
        stop_at=cfg.stop_at,
    )


def _sample(cell: Cell, config: SamplingConfig) -> Samples:
    cell.set_sampler(config)
    if not cell.trained_elsewhere:
        team.alike(set_guide, cell)
        if guide := cell.model.guide():
            team.same_weights(guide)
    return sample_images(cell.model, cell.latent_space, cell.latents, config, cell.device)


def _load_at_fraction(cell: Cell, trained: dict[str, Any], fraction: float) -> dict[str, Any]:
    files = Checkpoints(cell.work, cell.key)
    loaded = team.alike(files.load_at_fraction, cell.model, trained, fraction)
    team.same_weights(cell.model)
    return loaded
