"""What a study found: rules that were fixed beforehand, what weighs how much, and the figures."""

import itertools
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.ticker import LogLocator, NullFormatter

from benchmarks.analysis.curves import distance_name
from benchmarks.analysis.differences import LEAST_RECALL
from benchmarks.core.files import atomic_file
from benchmarks.core.text import safe_markdown
from benchmarks.results.tables import markdown
from benchmarks.studies.degradations import DEGRADATIONS, NO_GAIN, RISES, UNSEEN
from benchmarks.studies.material import REAL, REBUILT

LEADING = {REAL: "fd", REBUILT: "fd_generator"}  # the distance that has a bootstrap
WORSE = {  # measure -> the sign of its change when it gets worse
    "fd": 1,
    "fd_generator": 1,
    "fd_pixels": 1,
    "kid": 1,
    "kid_generator": 1,
    "precision": -1,
    "recall": -1,
    "label_accuracy": -1,
}
ERRORS = {"kid": "kid_error", "kid_generator": "kid_generator_error"}
NUMBERS = [*WORSE, "fd_std", "fd_generator_std", "fd_generator_change_std", *ERRORS.values()]
DEMANDS = {degradation.name: degradation.demand for degradation in DEGRADATIONS}
STEPS = 5  # from level 0 to the worst
ACROSS = 7  # panels in a row


class Setting(NamedTuple):
    """What was measured."""

    data: str
    image_size: int
    num_samples: int
    reference_images: int
    features: str
    weights: str  # sha256
    autoencoder: str

    @property
    def name(self) -> str:
        """Of the folder of its results."""
        name = f"{self.data}-{self.image_size}-{self.features}"
        return name if self.autoencoder == "shipped" else f"{name}-{self.autoencoder}"


class Finding(NamedTuple):
    """Whether a rule holds, and the numbers that say so."""

    passed: bool
    found: str


def ladders(table: pd.DataFrame, kind: str, *demands: str) -> list[tuple[str, pd.DataFrame]]:
    """Name and rows, by level, of each degradation of real or reconstructed images; only of those
    of which one of the `demands` is made, if any is given.
    """
    rows = table[table["images"] == kind]
    if demands:
        rows = rows[rows["degradation"].map(DEMANDS).isin(demands)]
    return list(rows.groupby("degradation", sort=False))


def classes_outweigh_blur(table: pd.DataFrame, measure: str = "fd_generator") -> Finding:
    rows = table[table["images"] == REBUILT].set_index(["degradation", "amount"])[measure]
    missing, blur = rows["missing classes", 0.5], rows["Gaussian blur", 0.75]
    return Finding(bool(missing > blur), f"{missing:.3g} against {blur:.3g}")


def nothing_gains(table: pd.DataFrame) -> Finding:
    gains = []
    for name, rows in ladders(table, REBUILT, NO_GAIN):
        changes = rows["fd_generator"] - rows["fd_generator"].iloc[0]
        errors = rows["fd_generator_change_std"]
        for amount, change, error in zip(rows["amount"], changes, errors, strict=True):
            if change < -2 * error:
                gains.append(f"{name} {amount:g} by {-change:.3g} ({-change / error:.1f} SD)")
    return Finding(not gains, "lowered by " + ", ".join(gains) if gains else "none lowers it")


def others_rise(table: pd.DataFrame) -> Finding:
    failed = []
    for name, rows in ladders(table, REBUILT, RISES):
        steps = worse_steps(rows, "fd_generator")
        if steps < STEPS:
            failed.append(f"{name} ({steps} of {STEPS})")
    return Finding(not failed, "not at every level: " + ", ".join(failed) if failed else "all rise")


def labels_are_watched(table: pd.DataFrame) -> Finding:
    ((_, rows),) = ladders(table, REBUILT, UNSEEN)
    steps, accuracy = worse_steps(rows, "label_accuracy"), rows["label_accuracy"]
    found = f"{accuracy.iloc[0]:.3g} to {accuracy.iloc[-1]:.3g}, {steps} of {STEPS} steps down"
    return Finding(steps == STEPS, found)


def recall_suffices(table: pd.DataFrame) -> Finding:
    rows = table[(table["images"] == REBUILT) & (table["level"] == 0)]
    recall = rows["recall"].iloc[0]
    passed = bool(recall >= LEAST_RECALL)
    return Finding(
        passed, f"{recall:.3g}" + ("" if passed else ": **quality verdicts are refused here**")
    )


# fixed before anything was measured; distances are of reconstructed images, and fd_generator where
# none is named
RULES: list[tuple[str, Callable[[pd.DataFrame], Finding]]] = [
    ("half of the classes missing costs more than a blur of sigma 0.75", classes_outweigh_blur),
    ("so it does by KID", partial(classes_outweigh_blur, measure="kid_generator")),
    (
        "no sharpening, saturation or contrast lowers the distance by more than two bootstrap SD",
        nothing_gains,
    ),
    ("every other degradation of the images raises it at each level", others_rise),
    ("label swaps, which no distance sees, lower label accuracy at each level", labels_are_watched),
    (
        f"recall of real images through the autoencoder is at least {LEAST_RECALL}",
        recall_suffices,
    ),
]


def rules_as_table(table: pd.DataFrame) -> list[str]:
    """The rules, which of them hold, and the numbers."""
    rows = []
    for says, check in RULES:
        finding = check(table)
        rows.append([says, "pass" if finding.passed else "FAIL", finding.found])
    return markdown(["rule, fixed beforehand", "verdict", "found"], rows)


def worse_steps(rows: pd.DataFrame, measure: str) -> int:
    """The steps from one level to the next at which a measure gets strictly worse."""
    return int((WORSE[measure] * np.diff(rows[measure]) > 0).sum())


def measures_of(table: pd.DataFrame, kind: str) -> list[str]:
    """The measures that a kind of images has."""
    has = table[table["images"] == kind].notna().any()
    return [measure for measure in WORSE if has[measure]]


def label(measure: str, setting: Setting) -> str:
    """What a page calls a measure."""
    name, kernel = distance_name(setting.features), f"KID[{setting.features}]"
    names = {
        "fd": name,
        "fd_generator": f"generator-only {name}",
        "fd_pixels": "FD[pixels]",
        "kid": kernel,
        "kid_generator": f"generator-only {kernel}",
    }
    return names.get(measure, measure.replace("_", " "))


def steps_as_table(table: pd.DataFrame, kind: str, setting: Setting) -> list[str]:
    """Per degradation and measure, the steps at which it gets strictly worse."""
    chosen = measures_of(table, kind)
    rows = [
        [name, DEMANDS[name], *(worse_steps(of_it, measure) for measure in chosen)]
        for name, of_it in ladders(table, kind)
    ]
    header = ["degradation", "demanded", *(label(measure, setting) for measure in chosen)]
    return markdown(header, rows)


def in_units(rows: pd.DataFrame, measure: str) -> pd.Series:
    """A distance at each level of one degradation, in units of what undegraded images have.

    FD is divided by theirs. KID is 0 or less for equal distributions, and nothing to divide by: its
    rise above theirs is given in their standard errors.
    """
    if measure in ERRORS:
        return (rows[measure] - rows[measure].iloc[0]) / rows[ERRORS[measure]].iloc[0]
    return rows[measure] / rows[measure].iloc[0]


def weights_as_table(table: pd.DataFrame, setting: Setting) -> list[str]:
    """Each degradation's levels in units of the undegraded images' distance."""
    columns = [
        (kind, measure)
        for kind in LEADING
        for measure in ("fd", "kid", "fd_generator", "kid_generator")
        if measure in measures_of(table, kind)
    ]
    units, rows = ["one unit is", ""], []
    first = table[table["level"] == 0].drop_duplicates("images").set_index("images")
    for kind, measure in columns:
        units.append(first.loc[kind, ERRORS.get(measure, measure)])
    of_kind = {kind: dict(ladders(table, kind, RISES, NO_GAIN)) for kind in LEADING}
    for name in of_kind[REBUILT]:
        for level in range(1, STEPS + 1):
            amount = of_kind[REBUILT][name]["amount"].iloc[level]
            values = [in_units(of_kind[kind][name], m).iloc[level] for kind, m in columns]
            rows.append([name, amount, *values])
    header = [f"{label(measure, setting)}, {kind}" for kind, measure in columns]
    return markdown(["degradation", "amount", *header], [units, *rows])


def weak_steps(table: pd.DataFrame, kind: str) -> list[str]:
    """Steps that are to raise the leading distance, but by less than two standard deviations of
    both levels together.
    """
    weak, leading = [], LEADING[kind]
    for name, rows in ladders(table, kind, RISES):
        for before, after in itertools.pairwise(rows.to_dict("records")):
            rise = after[leading] - before[leading]
            error = math.hypot(after[f"{leading}_std"], before[f"{leading}_std"])
            if rise < 2 * error:
                step = f"{before['amount']:g} to {after['amount']:g}"
                weak.append(f"{name} {step} ({rise / error:.1f})")
    return weak


def page(table: pd.DataFrame, setting: Setting) -> list[str]:
    """study.md: the rules, what weighs how much, where each measure gets worse, every number."""
    name, n, reference = (
        distance_name(setting.features),
        setting.num_samples,
        setting.reference_images,
    )
    lines = [
        f"# Is {name} worth listening to? {safe_markdown(setting.data)}, {setting.image_size} px",
        "",
        f"{n} training images, degraded, against {reference} reference images; weights "
        f"{setting.weights[:12]}. Autoencoder: {setting.autoencoder}.",
        "Reconstructed images are the same after encoding and decoding, degraded after that. "
        f"Generator-only {name} compares them with reconstructed reference images. Precision and "
        "recall are of the real reference images throughout. Label accuracy is a linear probe's.",
        "",
        f"Made by `python -m benchmarks study data=... data.image_size={setting.image_size} "
        f"num_samples={n} data.reference_images={reference} features={setting.features}`.",
        "",
        "## The rules",
        "",
        f"Of generator-only {name} and of reconstructed images:",
        "",
        *rules_as_table(table),
        "",
        "## What weighs how much, in units of the floor",
        "",
        "The floor is what undegraded images have, and FD is divided by it. KID may be 0 or less "
        "there: its rise above that is given in its standard errors there.",
        "",
        *weights_as_table(table, setting),
        "",
        "![distances and other measures](study.png)",
        "",
        "![degraded images](degradations.png)",
    ]
    for kind in LEADING:
        lines += _of_kind(table, kind, setting)
    return lines


def _of_kind(table: pd.DataFrame, kind: str, setting: Setting) -> list[str]:
    """Steps and every number of the real or of the reconstructed images."""
    rows = table[table["images"] == kind]
    columns = ["degradation", "unit", "amount"]
    columns += [name for name in NUMBERS if rows[name].notna().any()]
    weak = ", ".join(weak_steps(table, kind)) or "none"
    return [
        "",
        f"## {kind.capitalize()} images, degraded",
        "",
        f"Steps, of {STEPS}, at which a measure gets strictly worse:",
        "",
        *steps_as_table(table, kind, setting),
        "",
        f"Steps that are to raise {label(LEADING[kind], setting)}, but by less than two joint "
        f"bootstrap SD: {weak}.",
        "",
        *markdown(columns, rows[columns].values.tolist()),
    ]


def plot(table: pd.DataFrame, setting: Setting, path: Path) -> None:
    """A panel per degradation with the FDs in units of their floors; below, in the same order, one
    each with precision, recall and label accuracy of reconstructed images.
    """
    names = list(dict.fromkeys(table["degradation"]))
    down = len(names) // ACROSS + 1  # with a free place for the legend
    figure, axes = plt.subplots(2 * down, ACROSS, figsize=(16, 5 * down), squeeze=False)
    of_kind = {kind: dict(ladders(table, kind)) for kind in LEADING}
    for axis in (*axes[:down].flat[len(names) :], *axes[down:].flat[len(names) :]):
        axis.axis("off")
    for i, name in enumerate(names):
        upper, lower = axes[i // ACROSS, i % ACROSS], axes[down + i // ACROSS, i % ACROSS]
        for kind, measure in ((REAL, "fd"), (REBUILT, "fd"), (REBUILT, "fd_generator")):
            rows = of_kind[kind][name]
            legend = f"{label(measure, setting)},\n{kind}"
            upper.plot(rows["level"], in_units(rows, measure), marker="o", ms=3, label=legend)
        upper.set_yscale("log")
        # plain numbers, also where an axis spans less than a decade
        upper.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        upper.yaxis.set_major_formatter("{x:g}")
        upper.yaxis.set_minor_formatter(NullFormatter())
        for measure, style in (("precision", "-"), ("recall", "--"), ("label_accuracy", ":")):
            lower.plot(rows["level"], rows[measure], style, label=label(measure, setting))
        lower.set_ylim(-0.03, 1.03)
        amounts = ", ".join(f"{amount:g}" for amount in rows["amount"][1:])
        for axis in (upper, lower):
            axis.set_title(name, fontsize=10)
            axis.set_xlabel(f"{rows['unit'].iloc[0]}\n{amounts}", fontsize=7)
            axis.tick_params(labelsize=7)
    # in the last place of either block, which no degradation takes
    for block in (axes[:down], axes[down:]):
        block[-1, -1].legend(handles=block[0, 0].get_lines(), loc="center", fontsize=7)
    for row in range(2 * down):
        axes[row, 0].set_ylabel("FD / its floor" if row < down else "fraction, reconstructed")
    _save(figure, path, dpi=100)


def show(examples: list[tuple[str, np.ndarray]], path: Path) -> None:
    """A sheet of titled tiles uint8 (3, H, W), eight in a row: two degradations of four."""
    across = 8
    down = -(-len(examples) // across)
    figure, axes = plt.subplots(down, across, figsize=(1.1 * across, 1.3 * down), squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for axis, (title, tile) in zip(axes.flat, examples, strict=False):
        axis.imshow(tile.transpose(1, 2, 0))
        axis.set_title(title, fontsize=6)
    _save(figure, path, dpi=90)


def _save(figure: plt.Figure, path: Path, dpi: int) -> None:
    figure.tight_layout()
    with atomic_file(path) as temporary:
        figure.savefig(temporary, format="png", dpi=dpi)
    plt.close(figure)
