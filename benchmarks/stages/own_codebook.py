"""The floors of a model whose tokens are of a codebook of its own, not of the one all share."""

from functools import partial

from benchmarks.core.locks import load_or_make
from benchmarks.core.store import read_json, write_json
from benchmarks.frozen.latents import reconstruct
from benchmarks.stages.cell import Cell
from benchmarks.stages.floors import CODEBOOK_FLOORS, codebook_floors
from benchmarks.stages.score import Evaluator


def own_codebook(cell: Cell) -> str | None:
    """What a model's own codebook is called, of which the shared one's floors say nothing."""
    return getattr(cell.model, "own_codebook", None)


def own_floors(cell: Cell, evaluator: Evaluator) -> dict[str, float | None]:
    """What real images get through the model's own codebook, by the names of their columns.

    It is fitted as the model is trained, so `floors.prepare_evaluator` cannot know it. Computed
    once for each training and evaluator: trained anew from the same key, it is the same codebook.
    Empty for a model that shares a codebook, or has none. None each, unknown, where a user's own
    codebook has no `quantise`, as `Codebook` has: the shared one's would be wrong.
    """
    if own_codebook(cell) is None:
        return {}
    if not hasattr(getattr(cell.model, "codebook", None), "quantise"):
        return dict.fromkeys(CODEBOOK_FLOORS)
    path = cell.work / f"floors-{evaluator.key}.json"

    def make() -> dict[str, float]:
        rebuilt = reconstruct(
            cell.dataset.holdout,
            space=cell.latent_space,
            data=cell.latents,
            device=cell.device,
            codebook=cell.model.codebook,
        )
        floors = codebook_floors(evaluator, evaluator.features(rebuilt["codebook"].numpy()))
        write_json(path, floors)
        return floors

    return load_or_make(path, partial(read_json, path), make)
