"""Axes, legends and the layout of a figure: what all plots have in common."""

import textwrap
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullFormatter

from benchmarks.analysis.panel import Look

ACROSS = 3  # axes side by side
SMALL = 9  # points: still legible where a page shows the figure 800 px wide
MOST_RATES = 5  # written side by side in a third of a figure
LETTERS = 38  # of a line beside an axis

Facet = tuple[str, list[str]]  # title, curve names


def distance_axis(axis: Any, limits: tuple[float, float]) -> None:
    axis.set_yscale("log")
    axis.set_ylim(*limits)
    axis.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 4, 5, 7)))
    axis.yaxis.set_major_formatter("{x:g}")
    axis.yaxis.set_minor_formatter(NullFormatter())


def cost_axis(axis: Any, x: str, steps: pd.Series) -> None:
    axis.set_xscale("log")
    if x == "steps":
        ticks = sorted(steps.unique())
        axis.set_xticks(ticks, [f"{tick:.0f}" for tick in ticks])
        axis.xaxis.minorticks_off()
    else:
        plain_log_ticks(axis)


def rate_axis(axis: Any, rates: list[float]) -> None:
    """A logarithmic axis with a tick at each rate that was tried, of many at every other one."""
    ticks = rates if len(rates) <= MOST_RATES else rates[::2]
    axis.set_xscale("log")
    axis.set_xticks(ticks, [f"{rate:g}" for rate in ticks])
    axis.minorticks_off()


def plain_log_ticks(axis: Any) -> None:
    """1, 2, 5, 10, ... along a logarithmic x axis, and no labels between them.

    Over more than three decades 1, 10, 100, ... only, else the labels would run into each other.
    """
    low, high = axis.get_xlim()
    wide = high / max(low, 1e-30) > 1e3
    axis.xaxis.set_major_locator(LogLocator(subs=(1,) if wide else (1, 2, 5)))
    axis.xaxis.set_major_formatter("{x:g}")
    axis.xaxis.set_minor_formatter(NullFormatter())


def blocks(groups: list[list[Facet]]) -> tuple[Any, list[Any]]:
    """A figure with a block of axes for each group of facets, one block below the other."""
    most = max(len(group) for group in groups)
    alone = 5.5 if len(groups) == 1 else 4.0  # inches of a block of one pair of axes
    heights = [alone if len(group) == 1 else _height(len(group)) for group in groups]
    width = 8.0 if most == 1 else 10.0
    figure = plt.figure(figsize=(width, sum(heights)), layout="constrained")
    blocks = figure.subfigures(len(groups), 1, height_ratios=heights, squeeze=False)[:, 0]
    for block, group in zip(blocks, groups, strict=True):
        across = min(ACROSS, len(group))
        down = -(-len(group) // across)
        grid = block.subplots(down, across, sharex=True, sharey=True, squeeze=False)
        for unused in list(grid.flat)[len(group) :]:
            unused.remove()
    return figure, list(blocks)


def _height(count: int) -> float:
    """Inches of a block of several axes, its legend included."""
    return 2.6 * -(-count // ACROSS) + 1.8


def finish(block: Any, title: str, x: str, y: str, looks: dict[str, Look]) -> None:
    """Titles, labels, grid lines and legends of a block."""
    for axis in block.axes:
        axis.grid(alpha=0.3, which="both", linewidth=0.5)
        axis.tick_params(labelsize=SMALL)
    block.suptitle(title, fontsize=SMALL)
    for axis in _lowest(block.axes):
        axis.set_xlabel(x, fontsize=SMALL)
        axis.tick_params(labelbottom=True)
    # a longer line would run into the legend below the axes
    lines = [part for line in y.splitlines() for part in textwrap.wrap(line, LETTERS)]
    block.supylabel("\n".join(lines), fontsize=SMALL)
    if len(block.axes) == 1:
        handles, labels = block.axes[0].get_legend_handles_labels()
    else:
        handles, labels = _shared_legend(block.axes, looks)
    if handles:  # else it would be a small empty frame
        place = {"loc": "outside lower center", "ncols": 3, "handlelength": 3.5}
        block.legend(handles, labels, fontsize=SMALL, **place)


def _lowest(axes: list[Any]) -> list[Any]:
    """The lowest axes of every column of a grid."""
    across = min(ACROSS, len(axes))
    return axes[-across:]


def _shared_legend(axes: list[Any], looks: dict[str, Look]) -> tuple[list[Any], list[str]]:
    """The legend of several axes: what they have in common once; the rest in each of them.

    Where curves differ within their axes by the line alone, their common legend says what lines
    mean, and colours need no explanation: they are the axes' own.
    """
    choices = {name: name.split(", ", 1)[-1] for name in looks}
    per_axis = [axis.get_legend_handles_labels() for axis in axes]
    lines_only = all(len(_colours(labels, looks)) <= 1 for _, labels in per_axis) and looks
    # beside tuned curves, those that are not
    plain = "as configured" if "tuned" in choices.values() else ""
    handles, texts = [], []
    for axis, (own_handles, labels) in zip(axes, per_axis, strict=True):
        inside = []
        for handle, label in zip(own_handles, labels, strict=True):
            if label not in looks and looks and _is_common(label, per_axis):
                if label not in texts:
                    handles.append(handle)
                    texts.append(label)
            elif lines_only and label in looks:
                text = choices[label] if ", " in label else plain or label
                if text not in texts:
                    handles.append(_line_of(looks[label]))
                    texts.append(text)
            else:
                inside.append((handle, label))
        if inside:
            shown = [handle for handle, _ in inside]
            model = f"{axis.get_title()}, "  # the title of the axis says it
            names = [label.removeprefix(model) for _, label in inside]
            own = axis.legend(shown, names, fontsize=SMALL - 3, framealpha=0.6)
            own.set_in_layout(False)  # long names would leave the axes no width
    return handles, texts


def _colours(labels: list[str], looks: dict[str, Look]) -> set[str]:
    return {looks[label].colour for label in labels if label in looks}


def _is_common(label: str, per_axis: list[tuple[list[Any], list[str]]]) -> bool:
    return all(label in labels for _, labels in per_axis)


def _line_of(of: Look) -> Line2D:
    """A sample of a line and its marker, in grey."""
    style = of.style() | {"color": "0.3", "marker": "o"}
    style["markerfacecolor"] = "white" if of.hollow else "0.3"
    return Line2D([], [], **style)
