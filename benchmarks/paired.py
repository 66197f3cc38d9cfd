"""Two measurements compared: their difference, its error, and "tie" where that is what it is.

Samples of one sampling seed share labels, and noise where the models allow; what they share cancels in a paired bootstrap. Features of
every measurement are kept for that in `results/<name>/features/`; without them errors are taken for independent.
"""

import math
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from benchmarks.store import read_tensors, seeded, write_tensors
from metrics.frechet import paired_sd


class Difference(NamedTuple):
    """`value` is second minus first; `verdict` is better, worse or tie for the second; `paired` says how `error` was had."""

    value: float
    error: float
    paired: bool

    @property
    def verdict(self) -> str:
        """A tie within two standard deviations, or where the error is unknown."""
        if not abs(self.value) > 2 * self.error:
            return "tie"
        return "better" if self.value < 0 else "worse"


def _path(folder: Path, name: str) -> Path:
    return folder / "features" / f"{name}.safetensors"


def keep(folder: Path, run_id: str, features: Tensor, reference: Tensor, key: str) -> None:
    """The features of a measurement, and once those of the reference it is compared with, which `key` names."""
    write_tensors(_path(folder, run_id), key, {"features": features})
    if not _path(folder, f"reference-{key}").exists():
        write_tensors(_path(folder, f"reference-{key}"), key, {"features": reference})


def _kept(folder: Path, name: str, key: str | None) -> Tensor | None:
    found = read_tensors(_path(folder, name), key) if key else None
    return found[0]["features"] if found else None


def difference(first: tuple[Path, dict[str, Any]], second: tuple[Path, dict[str, Any]]) -> Difference:
    """Of two (results folder, record), the difference in fd; paired where both kept features of equally many samples of one seed."""
    rows, keys = [record["row"] for _, record in (first, second)], [record.get("judge") for _, record in (first, second)]
    value = rows[1]["fd"] - rows[0]["fd"]
    comparable = keys[0] == keys[1] and first[1].get("sampling_seed") == second[1].get("sampling_seed")
    if comparable:
        sets = [_kept(folder, record["row"]["run_id"], key) for (folder, record), key in zip((first, second), keys, strict=True)]
        reference = _kept(first[0], f"reference-{keys[0]}", keys[0])
        if reference is not None and all(x is not None for x in sets) and len(sets[0]) == len(sets[1]):
            return Difference(value, paired_sd(reference, *sets, rng=seeded("paired")), True)
    return Difference(value, math.hypot(*(row.get("fd_sd") or math.nan for row in rows)), False)
