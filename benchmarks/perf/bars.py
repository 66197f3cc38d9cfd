"""What the suite promises of its speed on one H100 or H200, held against what `perf` measured:
bars.csv.
"""

from dataclasses import dataclass

import pandas as pd

from benchmarks.perf.bench import Bench


@dataclass(frozen=True)
class TrainingBar:
    """A fraction of the ceiling (`bench.ceiling`) that training is to reach."""

    what: str
    least: float
    model: str
    size: str
    goal: float | None = None

    def measured(self, rows: pd.DataFrame, figures: dict[str, float]) -> float | None:
        """The best fraction, compiled or not; None where it was not measured."""
        # other stages of the same network, such as sampling, have a utilisation too
        training = rows["stage"].astype(str).str.startswith("train ")
        network = (rows["model"] == self.model) & (rows["size"] == self.size)
        ours = rows["role"] == "ours"
        fractions = rows.loc[training & network & ours, "utilisation"].dropna()
        return None if fractions.empty else float(fractions.max())


@dataclass(frozen=True)
class FigureBar:
    """The least that a figure of `Bench.figures` is to be."""

    what: str
    least: float
    figure: str
    goal: float | None = None

    def measured(self, rows: pd.DataFrame, figures: dict[str, float]) -> float | None:
        """The figure; None where it was not measured."""
        return figures.get(self.figure)


# of a GPU alone: what was reached on two cores is in results/reference/performance.md
BARS: list[TrainingBar | FigureBar] = [
    TrainingBar("training DiT-B at 256 tokens, fraction of the ceiling", 0.45, "dit", "b", 0.5),
    TrainingBar("training AR-B at 256 tokens, fraction of the ceiling", 0.45, "ar", "b", 0.5),
    TrainingBar("training U-Net-B at 256 positions, fraction of the ceiling", 0.35, "unet", "b"),
    TrainingBar("training DiT-S at 256 tokens, fraction of the ceiling", 0.25, "dit", "s"),
    # of `comparisons.held_against_bounds` and `launch_bounds`
    FigureBar(
        "decoding AR-B at batch 64, fraction of the memory's speed",
        0.5,
        "ar b 64 fraction of memory bound",
    ),
    FigureBar(
        "decoding AR-B at batch 1, fraction of the launches' speed",
        0.5,
        "ar b 1 fraction of launch bound",
    ),
    FigureBar("decoding AR-B at batch 64, times generate()", 10, "ar b 64 times generate()"),
    FigureBar("decoding AR-B at batch 1, times generate()", 10, "ar b 1 times generate()"),
]


def table(bench: Bench, rows: pd.DataFrame) -> pd.DataFrame:
    """Every bar with what was measured and whether it is met; empty where it was not measured.

    `rows` are those of perf.csv.
    """
    held = []
    for bar in BARS:
        measured = bar.measured(rows, bench.figures)
        held.append(
            {
                "what": bar.what,
                "bar": bar.least,
                "goal": bar.goal,
                "measured": measured,
                # an empty cell, not a False, where nothing was measured
                "met": None if measured is None else measured >= bar.least,
            }
        )
    return pd.DataFrame(held)
