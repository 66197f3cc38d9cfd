"""Panels to plots: distance against what it costs, precision against recall, and loss against
training FLOPs, with floors and errors beside them.

At most eight curves share a pair of axes; where there are more, each model has its own.
"""

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.text import Text
from PIL import Image

from benchmarks.analysis import choices, verdicts
from benchmarks.analysis.curves import distance_label, in_order, names_without_seeds
from benchmarks.analysis.differences import LEAST_TRAININGS
from benchmarks.analysis.panel import Look, Panel, facets, look
from benchmarks.core.files import atomic_file
from benchmarks.reports.axes import (
    SMALL,
    Facet,
    blocks,
    cost_axis,
    distance_axis,
    finish,
    plain_log_ticks,
)
from benchmarks.reports.notes import refused
from benchmarks.results.columns import leading

# of the leading distance: generator-only, or of images that came through no autoencoder of ours
GENERATOR, CODEBOOK = "fd_generator", "fd_generator_floor_codebook"
FLOORS = {
    GENERATOR: [("fd_generator_floor_real", "real images", "-")],
    "fd": [
        ("fd_floor_real", "real images", "-"),
        ("fd_floor_analytic", "N and M alone", (0, (1, 4))),
    ],
}
TICK = "\\mathdefault"  # in the text of a tick, which is a formula
MADE_BY = "latentbench"  # what a PNG says of itself
FAR_BELOW = 4  # a floor lower by more is left off the axis
# what names a training in a plot of losses, and how it is written
TRAINING = {
    "model": "{}",
    "size": "{}",
    "data": "{}",
    "seed": "seed {}",
    "train_flops": "{:.2g} FLOPs",
    "variant": "{}",
}
AXES = {
    "steps": ("sampling steps", "fd_vs_steps"),
    "gflops_per_image": ("GFLOPs per image (generator + decoder)", "fd_vs_gflops"),
    "seconds_per_image": ("seconds per image", "fd_vs_seconds"),
    "latency_seconds": ("latency of one image (s)", "fd_vs_latency"),
}


def save(figure: Any, path: Path) -> Path:
    """Write a PNG, atomically."""
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            axis.get_ticklabels(which="both")  # has them written, so that they are seen below
    for text in figure.findobj(Text):
        if TICK not in text.get_text():
            text.set_parse_math(False)  # a dollar in a name begins no formula
    with atomic_file(path) as temporary:
        made_by = {"Software": MADE_BY}
        figure.savefig(temporary, dpi=130, bbox_inches="tight", format="png", metadata=made_by)
    plt.close(figure)
    return path


def is_ours(path: Path) -> bool:
    """Whether `save` wrote a PNG, so that it may be removed."""
    try:
        with Image.open(path, formats=["PNG"]) as image:
            return image.info.get("Software") == MADE_BY
    except Exception:  # whatever bytes that are no PNG lead its reader to
        return False


def distance_plot(panels: list[Panel], x: str, folder: Path) -> Path:
    """Distance against the column `x`: a curve per network and choice, the frontier of all, and the
    floors as lines.
    """
    figure, places = blocks([panel.facets() for panel in panels])
    for panel, block in zip(panels, places, strict=True):
        limits, floors = _limits(panel), _floors(panel)
        for axis, (title, names) in zip(block.axes, panel.facets(), strict=True):
            for name in names:
                curve = panel.curve(name).sort_values(x)
                with_errors(axis, curve[x], curve, name, panel.looks[name])
            if not refused(panel):
                _frontier(axis, panel.shown, x)
            for label, (value, line) in floors.items():
                axis.axhline(value, color="0.45", linewidth=1, linestyle=line, label=label)
            distance_axis(axis, limits)
            cost_axis(axis, x, panel.shown["steps"])
            axis.set_title(title, fontsize=SMALL + 1)
        finish(
            block, panel.title, AXES[x][0], distance_label(panel.first, panel.distance), panel.looks
        )
    return save(figure, folder / f"{AXES[x][1]}.png")


def training_plot(panels: list[Panel], folder: Path) -> Path | None:
    """Distance against training FLOPs, from weights kept on the way; None where none were.

    At the model's most steps without guidance; means over trainings.
    """
    kept = [panel for panel in panels if (panel.with_kept["train_fraction"] < 1).any()]
    if not kept:
        return None
    tables = [_on_the_way(panel.with_kept) for panel in kept]
    groups = [facets_of(table) for table in tables]
    figure, places = blocks(groups)
    for panel, table, group, block in zip(kept, tables, groups, places, strict=True):
        looks = plain_looks(table)
        for axis, (title, names) in zip(block.axes, group, strict=True):
            for name in names:
                curve = table[table["curve"] == name].sort_values("train_flops")
                label = f"{name} ({curve['steps'].iloc[0]:.0f} steps)"
                with_errors(axis, curve["train_flops"], curve, label, looks[name])
            axis.set(xscale="log", yscale="log")
            axis.set_title(title, fontsize=SMALL + 1)
            plain_log_ticks(axis)
            axis.yaxis.set_major_formatter("{x:g}")
            axis.yaxis.set_minor_formatter("{x:g}")
        warning = (
            "before its last point a run's learning rate has not yet decayed:\n"
            "a training of that length alone would end elsewhere"
        )
        label = distance_label(panel.first, panel.distance)
        finish(block, f"{panel.title}\n{warning}", "training FLOPs (3 x forward)", label, looks)
    return save(figure, folder / "fd_vs_training.png")


def guidance_plot(panels: list[Panel], folder: Path) -> Path | None:
    """Precision against recall as guidance grows, of settings as configured; None without a sweep.

    Each model at its most steps, with the first sampler of its rows.
    """
    configured = [panel.rows[~panel.rows["chosen"]] for panel in panels]
    swept = [
        (panel, rows)
        for panel, rows in zip(panels, configured, strict=True)
        if rows["guidance"].nunique() > 1 and rows["recall"].notna().any()
    ]
    if not swept:
        return None
    tables = [_by_guidance(rows) for _, rows in swept]
    groups = [facets_of(table) for table in tables]
    figure, places = blocks(groups)
    for (panel, _), table, group, block in zip(swept, tables, groups, places, strict=True):
        looks = plain_looks(table)
        for axis, (title, names) in zip(block.axes, group, strict=True):
            for name in names:
                curve = table[table["curve"] == name].sort_values("guidance")
                axis.plot(curve["recall"], curve["precision"], label=name, **looks[name].style())
                _mark_scales(axis, curve)
            axis.set_title(title, fontsize=SMALL + 1)
        title = f"{panel.title}\nnumbers are guidance scales"
        finish(block, title, "recall (higher is better)", "precision (higher is better)", looks)
    return save(figure, folder / "precision_recall.png")


def loss_plot(records: list[dict[str, Any]], variants: list[str], folder: Path) -> Path | None:
    """Training loss against training FLOPs, of finished trainings, a block per kind of loss.

    `variants` tells records of one model apart. Kinds do not compare with each other.
    """
    trainings = _finished(records, variants)
    if trainings.empty:
        return None
    kinds = [(kind, part, *_told_apart(part)) for kind, part in trainings.groupby("kind")]
    groups = [facets(dict(zip(labels, part["model"], strict=True))) for _, part, _, labels in kinds]
    figure, places = blocks(groups)
    for (kind, part, common, labels), group, block in zip(kinds, groups, places, strict=True):
        logs = dict(zip(labels, part["log"], strict=True))
        for axis, (title, names) in zip(block.axes, group, strict=True):
            for place, name in enumerate(names):
                flops, loss = logs[name][:, 1], logs[name][:, 2]
                point = "." if len(loss) == 1 else None  # a line of one point is none
                axis.plot(flops, loss, label=name, linewidth=1, color=f"C{place}", marker=point)
            axis.set(xscale="log")
            axis.set_title(title, fontsize=SMALL + 1)
            plain_log_ticks(axis)
        finish(block, common, "training FLOPs (3 x forward)", kind, {})
    return save(figure, folder / "loss_vs_flops.png")


def _finished(records: list[dict[str, Any]], variants: list[str]) -> pd.DataFrame:
    """The trainings that came to their end, each once: its TRAINING, kind and log of loss."""
    rows = []
    for record, variant in zip(records, variants, strict=True):
        row, log = record["row"], record.get("train_log")
        if not log or row.get("train_fraction") != 1:
            continue
        named = {
            **{name: row[name] for name in ("model", "size", "seed")},
            "data": f"{row['data']} {row['image_size']} px",
            "train_flops": float(f"{row['train_flops']:.2g}"),  # equal as they are written
            "variant": variant,
        }
        rows.append({**named, "kind": _kind_of_loss(row), "log": np.array(log, dtype=float)})
    table = pd.DataFrame(rows, columns=[*TRAINING, "kind", "log"])
    return table.drop_duplicates([*TRAINING, "kind"], keep="last").sort_values([*TRAINING])


def _told_apart(trainings: pd.DataFrame) -> tuple[str, list[str]]:
    """What all of them have in common, and the name of each, which is the rest."""
    differs = [name for name in TRAINING if name == "model" or trainings[name].nunique() > 1]
    common = [name for name in TRAINING if name not in differs]
    names = [_in_words(row[differs]) for _, row in trainings.iterrows()]
    return _in_words(trainings.iloc[0][common]), names


def _in_words(values: pd.Series) -> str:
    words = [TRAINING[str(name)].format(value) for name, value in values.items()]
    return ", ".join(word for word in words if word)


def _kind_of_loss(row: dict[str, Any]) -> str:
    if row["family"] == "ar":
        return f"{row['objective']} cross-entropy (nats)"
    return f"{row['objective']} mean squared error"


def _on_the_way(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows of weights kept on the way, and those they led to, means over trainings."""
    kept = rows[rows["train_fraction"] < 1]
    setting = ["training", "steps", "guidance", "sampler"]
    rows = rows.merge(kept[setting].drop_duplicates("training"), on=setting)
    rows = choices.over_samplings(rows)
    rows = rows.assign(curve=names_without_seeds(rows))
    parts = [choices.over_trainings(part) for _, part in rows.groupby("train_fraction")]
    return pd.concat(parts, ignore_index=True)


def _by_guidance(rows: pd.DataFrame) -> pd.DataFrame:
    """Each model at its most steps, one sampler, means over trainings."""
    rows = rows[(rows["steps"] == rows.groupby("training")["steps"].transform("max"))]
    rows = rows[rows["sampler"] == rows.groupby("training")["sampler"].transform("first")]
    rows = choices.over_samplings(rows)
    # one name for all scales of a network
    rows = rows.assign(curve=names_without_seeds(rows.assign(guidance=1.0)))
    parts = [choices.over_trainings(part) for _, part in rows.groupby("guidance")]
    return pd.concat(parts, ignore_index=True)


def facets_of(table: pd.DataFrame) -> list[Facet]:
    """The curves of a table of means that share a pair of axes, each group with its title."""
    models = table.drop_duplicates("curve").set_index("curve")["model"]
    return facets({name: str(models[name]) for name in in_order(table)})


def plain_looks(table: pd.DataFrame) -> dict[str, Look]:
    """A look for each curve of a table of means, by its place alone."""
    return {name: look(place) for place, name in enumerate(in_order(table))}


def with_errors(axis: Any, x: pd.Series, curve: pd.DataFrame, label: str, of: Look) -> None:
    """A curve of distances over `x`, with their errors."""
    errors = curve["distance_std"].fillna(0)
    axis.errorbar(x, curve["distance"], yerr=errors, label=label, capsize=2, **of.style())


def _frontier(axis: Any, means: pd.DataFrame, x: str) -> None:
    """What no curve of the panel beats, as a wide grey line."""
    best = means[verdicts.frontier(means[x], means["distance"])].sort_values(x)
    look_of_it = {"color": "k", "linewidth": 4, "alpha": 0.12}
    single = (means["trainings"] < LEAST_TRAININGS).any()  # which may lie elsewhere another time
    label = "Pareto frontier of single trainings" if single else "Pareto frontier of all"
    axis.step(best[x], best["distance"], where="post", label=label, **look_of_it)


def _mark_scales(axis: Any, curve: pd.DataFrame) -> None:
    for _, row in curve.iterrows():
        place = (row["recall"], row["precision"])
        offset = {"textcoords": "offset points", "xytext": (4, 4)}
        axis.annotate(f"{row['guidance']:g}", place, fontsize=SMALL - 1, **offset)


def _floors(panel: Panel) -> dict[str, tuple[float, Any]]:
    """The floors and the anchor by their labels, with their values: height and line."""
    low, _ = _limits(panel)
    values = [
        (f"floor: {name}", panel.rows[column].median(), line)
        for column, name, line in FLOORS[leading(panel.first)]
        if panel.rows[column].notna().any()
    ]
    through = panel.floors_through_codebooks(CODEBOOK) if leading(panel.first) == GENERATOR else {}
    values += [(f"floor: codebook {name}".strip(), value, ":") for name, value in through.items()]
    if (anchor := _anchor(panel)) is not None:
        values.append(("mean colours only", anchor, "-."))
    lines = {}
    for name, value, line in values:
        # an axis that reaches a line far below the curves would flatten them
        off = " (off the axis)" if value < low else ""
        lines[f"{name}, {value:.3g}{off}"] = (value, line)
    return lines


def _anchor(panel: Panel) -> float | None:
    """The leading distance of images that keep only their mean colour."""
    name = "fd_anchor" if leading(panel.first) == "fd" else "fd_generator_anchor"
    anchors = [diagnostics.get(name) for diagnostics in panel.rows["diagnostics"]]
    return next((anchor for anchor in anchors if anchor), None)


def _limits(panel: Panel) -> tuple[float, float]:
    """The distance's axis: from below the floor of real images, but not far below every curve, to
    above everything.
    """
    least = panel.shown["distance"].min()
    floor = panel.rows[FLOORS[leading(panel.first)][0][0]].median()
    if floor > least / FAR_BELOW:
        least = min(least, floor)
    highest = [panel.shown["distance"].max(), 1.3 * least]
    if (anchor := _anchor(panel)) is not None:
        highest.append(anchor)
    return 0.85 * least, 1.1 * max(highest)
