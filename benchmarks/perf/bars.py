"""What the suite promises of its speed on one H100 or H200, held against what `make perf` measured:
bars.csv.
"""

from collections.abc import Callable
from typing import NamedTuple

import pandas as pd

from benchmarks.perf.bench import Bench


class Bar(NamedTuple):
    """`measured` takes the table of `make perf` and what was measured beside it; None where it was
    not measured.
    """

    what: str
    least: float
    goal: float | None
    measured: Callable[[pd.DataFrame, dict[str, float]], float | None]


def share(model: str, size: str) -> Callable[[pd.DataFrame, dict[str, float]], float | None]:
    """The best share of the ceiling, compiled or not, that training this model at this size
    reached.
    """

    def best(table: pd.DataFrame, _: dict[str, float]) -> float | None:
        training = table["stage"].astype(str).str.startswith("train ")
        rows = table[training & (table["role"] == "ours") & (table["model"] == model)]
        found = rows[rows["size"] == size]["utilisation"].dropna()
        return None if found.empty else float(found.max())

    return best


def beside(name: str) -> Callable[[pd.DataFrame, dict[str, float]], float | None]:
    """A figure that is no row of the table."""
    return lambda _, figures: figures.get(name)


BARS = [
    Bar("training DiT-B at 256 tokens, share of the ceiling", 0.45, 0.5, share("dit", "b")),
    Bar("training AR-B at 256 tokens, share of the ceiling", 0.45, 0.5, share("ar", "b")),
    Bar("training U-Net-B at 256 positions, share of the ceiling", 0.35, None, share("unet", "b")),
    Bar("training DiT-S at 256 tokens, share of the ceiling", 0.25, None, share("dit", "s")),
    Bar(
        "decoding AR-B at batch 64, share of the memory's speed",
        0.5,
        None,
        beside("ar b 64 share of memory bound"),
    ),
    Bar(
        "decoding AR-B at batch 1, share of the launches' speed",
        0.5,
        None,
        beside("ar b 1 share of launch bound"),
    ),
    Bar(
        "decoding AR-B at batch 64, times generate()", 10, None, beside("ar b 64 times generate()")
    ),
    Bar("decoding AR-B at batch 1, times generate()", 10, None, beside("ar b 1 times generate()")),
]


def table(bench: Bench, rows: pd.DataFrame) -> pd.DataFrame:
    """Every bar with what was measured and whether it is met; empty where it was not measured."""
    found = [(bar, bar.measured(rows, bench.figures)) for bar in BARS]
    return pd.DataFrame(
        {
            "what": [bar.what for bar, _ in found],
            "bar": [bar.least for bar, _ in found],
            "goal": [bar.goal for bar, _ in found],
            "measured": [value for _, value in found],
            "met": [None if value is None else value >= bar.least for bar, value in found],
        }
    )
