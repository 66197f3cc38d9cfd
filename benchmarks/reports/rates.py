"""A sweep of learning rates as a plot: distance against the rate, a curve for each network."""

from dataclasses import replace
from pathlib import Path

import pandas as pd

from benchmarks.analysis import choices
from benchmarks.analysis.curves import distance_label, names_without_seeds
from benchmarks.analysis.panel import Panel
from benchmarks.reports import plots
from benchmarks.reports.axes import SMALL, blocks, distance_axis, finish, rate_axis

NAME = "fd_vs_lr"
WORD = "lr "  # begins what a variant says of the rate


def rate_plot(panels: list[Panel], folder: Path) -> Path | None:
    """Distance against learning rate, of networks that were trained at several; None without any.

    At the most steps that a network has at all its rates; means over trainings. A network's lowest
    is filled, the others are hollow: a lowest at the end of its curve asks for more rates.
    """
    tables = [(panel, table) for panel in panels if len(table := swept(panel))]
    if not tables:
        return None
    groups = [plots.facets_of(table) for _, table in tables]
    figure, places = blocks(groups)
    for (panel, table), group, block in zip(tables, groups, places, strict=True):
        looks = plots.plain_looks(table)
        limits = (0.85 * table["distance"].min(), 1.15 * table["distance"].max())
        for axis, (title, names) in zip(block.axes, group, strict=True):
            for name in names:
                curve = table[table["curve"] == name].sort_values("lr")
                label = f"{name} ({curve['steps'].iloc[0]:.0f} steps)"
                hollow = replace(looks[name], hollow=True)
                plots.with_errors(axis, curve["lr"], curve, label, hollow)
                best = curve.loc[curve["distance"].idxmin()]
                axis.plot(best["lr"], best["distance"], zorder=3, **looks[name].style())
            distance_axis(axis, limits)
            rate_axis(axis, sorted(table["lr"].unique()))
            axis.set_title(title, fontsize=SMALL + 1)
        once = "; one training each" if table["trainings"].max() == 1 else ""
        title = f"{panel.title}\nfilled: the lowest of its curve{once}"
        finish(block, title, "learning rate", distance_label(panel.first, panel.distance), looks)
    return plots.save(figure, folder / f"{NAME}.png")


def swept(panel: Panel) -> pd.DataFrame:
    """One row for each network and rate, of networks with several rates, at the most steps that
    all of these have.

    `curve` names the network whatever its rate.
    """
    rows = panel.leading[panel.leading["lr"].notna()]
    if rows.empty:
        return rows
    rows = rows.assign(variant=[_without_rate(variant) for variant in rows["variant"]])
    rows = rows.assign(curve=names_without_seeds(rows))
    # only steps that a network has at all of its rates
    of_curve = rows.groupby("curve")["lr"].transform("nunique")
    rows = rows[rows.groupby(["curve", "steps"])["lr"].transform("nunique") == of_curve]
    rows = rows[of_curve.loc[rows.index] > 1]
    rows = rows[rows["steps"] == rows.groupby("curve")["steps"].transform("max")]
    means = [choices.over_trainings(same) for _, same in rows.groupby("lr")]
    return pd.concat(means, ignore_index=True) if means else rows


def _without_rate(variant: str) -> str:
    return ", ".join(word for word in variant.split(", ") if not word.startswith(WORD))
