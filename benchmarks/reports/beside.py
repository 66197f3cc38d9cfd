"""Ours beside models that were trained elsewhere, by what both have: the distance to the reference
images as they are, decoder included, and what an image costs.

Their training is unknown, so that nothing here says which family is better.
"""

from pathlib import Path
from typing import Any

import pandas as pd

from benchmarks.analysis.curves import distance_label, distance_name
from benchmarks.analysis.panel import Panel, look
from benchmarks.reports.axes import blocks, cost_axis, distance_axis, finish
from benchmarks.reports.plots import AXES, FAR_BELOW, save
from benchmarks.reports.rows import cell, heading
from benchmarks.results.records import ELSEWHERE

MARK = " (trained elsewhere)"  # in the name of a curve
SHARED = ["data", "image_size", "features", "num_samples", "reference_images"]
SHARED += ["device", "reference"]
COLUMNS = ["steps", "nfe", "guidance", "fd", "kid", "label_accuracy"]
COLUMNS += ["gmacs_generator", "gmacs_decoder", "gflops_per_image"]
COLUMNS += ["seconds_per_image", "latency_seconds"]
PLOTTED = {"gflops_per_image": "system_vs_gflops", "latency_seconds": "system_vs_latency"}
ALONE = [
    "No model that was trained here has the same images, size, N, M, feature extractor and machine "
    "in this folder. So nothing stands beside the models that were trained elsewhere."
]
EXPLAINED = [
    "Models that were trained elsewhere make their images with a decoder of their own, so they are "
    "compared by the whole system. **Their training budget and their training images are "
    "unknown**: a lower distance here says nothing of a family."
]


def together(panels: list[Panel]) -> list[pd.DataFrame]:
    """The curves of panels that differ in the autoencoder alone, of which some were trained
    elsewhere and some here; a table for each such group.
    """
    groups: dict[tuple, list[pd.DataFrame]] = {}
    for panel in panels:
        key = tuple(panel.first[name] for name in SHARED)
        shown = panel.shown
        ours = shown["curve"].isin(panel.leading["curve"].unique())
        # ours may have the same name
        named = [f"{row['curve']}{MARK}" for _, row in shown.iterrows()]
        shown = shown.assign(curve=shown["curve"].where(~is_elsewhere(shown), named))
        groups.setdefault(key, []).append(shown[ours | is_elsewhere(shown)])
    tables = [pd.concat(parts, ignore_index=True) for parts in groups.values()]
    return [table for table in tables if is_elsewhere(table).nunique() == 2]


def alone(panels: list[Panel]) -> bool:
    """Whether some model was trained elsewhere, and none of ours can stand beside it."""
    return any(is_elsewhere(panel.rows).any() for panel in panels) and not together(panels)


def is_elsewhere(rows: pd.DataFrame) -> pd.Series:
    """Which rows are of models that were trained elsewhere."""
    return rows["family"] == ELSEWHERE


def title_of(table: pd.DataFrame) -> str:
    """What all rows of a table share."""
    row = table.iloc[0]
    sizes = f"N={row['num_samples']:.0f}, M={row['reference_images']:.0f}"
    return f"{row['data']} {row['image_size']:.0f} px, {sizes}, {row['features']}"


def section(panels: list[Panel]) -> list[tuple[str, list[str], list[list[object]]]]:
    """A title, a header and rows for each group; ours first."""
    sections = []
    for table in together(panels):
        columns = [name for name in COLUMNS if table[name].notna().any()]
        features = table["features"].iloc[0]
        header = ["model", "trained", *(heading(name, features) for name in columns)]
        rows = []
        for (elsewhere, name), curve in table.groupby([is_elsewhere(table), "curve"], sort=True):
            trained = "elsewhere: budget unknown" if elsewhere else "here"
            name = name.removesuffix(MARK)
            for _, row in curve.sort_values("steps").iterrows():
                rows.append([name, trained, *(cell(row, column) for column in columns)])
        sections.append((title_of(table), header, rows))
    return sections


def plots(panels: list[Panel], folder: Path) -> list[Path]:
    """The distance of the whole system against GFLOPs and latency; nothing where there is nothing
    to put side by side.
    """
    tables = together(panels)
    return [_plot(tables, x, folder) for x in PLOTTED] if tables else []


def _floor_and_limits(axis: Any, table: pd.DataFrame) -> None:
    """The floor of real images, and the distance's axis, which it does not stretch."""
    floor, least = table["fd_floor_real"].median(), table["fd"].min()
    off = floor < least / FAR_BELOW
    label = f"floor: real images, {floor:.3g}" + (" (off the axis)" if off else "")
    axis.axhline(floor, color="0.45", linewidth=1, label=label)
    low = least if off else min(floor, least)
    distance_axis(axis, (0.85 * low, max(1.1 * table["fd"].max(), 1.3 * low)))


def _plot(tables: list[pd.DataFrame], x: str, folder: Path) -> Path:
    """A block of axes for each group; what was trained elsewhere is dashed and hollow."""
    names = [sorted(table["curve"].unique()) for table in tables]
    figure, places = blocks([[("", some)] for some in names])
    for table, some, block in zip(tables, names, places, strict=True):
        axis, foreign = block.axes[0], set(table.loc[is_elsewhere(table), "curve"])
        for place, name in enumerate(some):
            curve = table[table["curve"] == name].sort_values(x)
            line = ("--", True) if name in foreign else ("-", False)
            style = look(place, *line).style()
            errors = curve["fd_std"].fillna(0)
            axis.errorbar(curve[x], curve["fd"], yerr=errors, label=name, capsize=2, **style)
        _floor_and_limits(axis, table)
        cost_axis(axis, x, table["steps"])
        named = f"{distance_name(table['features'].iloc[0])}, decoder included"
        label = distance_label(table.iloc[0], named)
        finish(block, title_of(table), AXES[x][0], label, {})
    return save(figure, folder / f"{PLOTTED[x]}.png")
