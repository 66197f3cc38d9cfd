"""Autoguidance: the weights of an earlier moment of the same training, which guide its sampling."""

import copy
from typing import Any

from benchmarks.core.errors import BadInput
from benchmarks.core.settings import many
from benchmarks.stages.cell import Cell
from benchmarks.stages.checkpoint import Checkpoints
from models.options import snapshot_of


def refuse_missing_snapshot(options: dict[str, Any], cfg: Any) -> None:
    """Raises BadInput where `options` of sampling ask for weights that the training does not keep.

    `cfg` is the whole configuration.
    """
    fraction = snapshot_of(options)
    kept = [float(one) for one in many(cfg.train.snapshots)]
    if fraction is not None and fraction not in kept:
        raise BadInput(
            f"sampler.guide={options['guide']}: the training keeps no weights there; "
            f"add train.snapshots=[{fraction:g}]"
        )


def set_guide(cell: Cell) -> None:
    """Give a trained model the weights that guide it, where the sampler that is set asks for them.

    Raises BadInput where there are none.
    """
    cell.model.guide_with(None)
    options = cell.model.sampler_options
    fraction = snapshot_of(options)
    if fraction is None:
        return
    refuse_missing_snapshot(options, cell.cfg)
    twin = copy.deepcopy(cell.model)
    Checkpoints(cell.work, cell.key).load_weights(twin, fraction)
    cell.model.guide_with(twin)
