"""Records to pictures: distance against what it costs, loss against training FLOPs, floors and
errors beside them.
"""

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.ticker import LogLocator, NullFormatter

from benchmarks.analysis import verdicts
from benchmarks.analysis.curves import curve_names, distance_label, groups, in_order
from benchmarks.core.store import atomic_file

FLOORS = [
    ("fd_floor_real", "real vs real", "-"),
    ("fd_floor_analytic", "N and M alone", (0, (1, 4))),
    ("fd_floor_autoencoder", "autoencoder", "--"),
    ("fd_floor_codebook", "codebook (AR's)", ":"),
]
AXES = {
    "steps": ("sampling steps", "fd_vs_steps"),
    "gflops_per_image": ("GFLOPs per image (generator + decoder)", "fd_vs_gflops"),
    "seconds_per_image": ("seconds per image", "fd_vs_seconds"),
    "latency_seconds": ("latency of one image (s)", "fd_vs_latency"),
}
MARKERS = "osD^vPX"
PICKED = {
    "no guidance": {"linestyle": "--", "alpha": 0.5},
    "heun": {"linestyle": ":"},
}  # of one network's curves


def save(figure: Any, path: Path) -> Path:
    """Write a PNG, atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as temporary:
        figure.savefig(temporary, dpi=130, bbox_inches="tight", format="png")
    plt.close(figure)
    return path


def _panels(count: int) -> tuple[Any, list[Any]]:
    figure, axes = plt.subplots(1, count, figsize=(6.4 * count, 4.8), squeeze=False)
    return figure, list(axes[0])


def _plain_log_ticks(axis: Any) -> None:
    """1, 2, 5, 10, ... along a logarithmic x axis, and no labels between them."""
    axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.xaxis.set_major_formatter("{x:g}")
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.tick_params(axis="x", labelsize=8)


def _style(i: int) -> dict[str, Any]:
    return dict(color=f"C{i % 10}", marker=MARKERS[i % len(MARKERS)], markersize=5)


def _floor_lines(axis: Any, part: pd.DataFrame) -> None:
    """The floors and the anchor as lines, their values in the legend, and the distance's axis from
    a little below the latents' own floors.

    A line beyond that is named only: an axis that reaches it would flatten the curves.
    """
    lines = {
        f"floor: {name}": (part[column].median(), style)
        for column, name, style in FLOORS
        if part[column].notna().any()
    }
    anchor = [found["fd_anchor"] for found in part["diagnostics"] if found.get("fd_anchor")]
    if anchor:
        lines["anchor: mean colour only"] = (anchor[0], "-.")
    least = part[["fd", "fd_floor_autoencoder", "fd_floor_codebook"]].min().min()
    axis.set_yscale("log")
    axis.set_ylim(
        0.85 * least, 1.1 * max(part["fd"].max(), *([anchor[0]] if anchor else []), 1.3 * least)
    )
    for name, (value, style) in lines.items():
        off = " (off the axis)" * bool(value < 0.85 * least)
        axis.axhline(
            value, color="0.45", linewidth=1, linestyle=style, label=f"{name}, {value:.3g}{off}"
        )
    axis.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 4, 5, 7)))
    axis.yaxis.set_major_formatter("{x:g}")
    axis.yaxis.set_minor_formatter(NullFormatter())


def distance_plot(rows: pd.DataFrame, x: str, folder: Path) -> Path:
    """Distance against `x`, a curve per model and setting, their Pareto frontier, the floors as
    lines, one panel per comparable group.
    """
    panels = groups(rows)
    figure, axes = _panels(len(panels))
    for axis, (title, part) in zip(axes, panels, strict=True):
        part = verdicts.rows_to_show(part)
        part = part.assign(curve=curve_names(part))
        part["network"] = [
            name.removesuffix(f", {pick}")
            for name, pick in zip(part["curve"], part["pick"], strict=True)
        ]
        names = in_order(part)
        networks = list(
            dict.fromkeys(part.loc[part["curve"] == name, "network"].iat[0] for name in names)
        )
        for name in names:
            curve = part[part["curve"] == name].sort_values(x)
            style = _style(networks.index(curve["network"].iloc[0]))
            for pick in curve["pick"].iloc[0].split(", "):
                style |= PICKED.get(pick, {})
            axis.errorbar(
                curve[x],
                curve["fd"],
                yerr=curve["fd_std"].fillna(0),
                label=name,
                capsize=2,
                **style,
            )
        means = verdicts.averaged(part.assign(curve=curve_names(part.assign(seed=0))))
        best = means[verdicts.frontier(means[x], means["fd"])].sort_values(x)
        axis.step(
            best[x],
            best["fd"],
            where="post",
            color="k",
            linewidth=4,
            alpha=0.12,
            label="Pareto frontier",
        )
        _floor_lines(axis, part)
        axis.set(xscale="log", xlabel=AXES[x][0], ylabel=distance_label(part))
        axis.set_title(title, fontsize=9)
        axis.grid(alpha=0.3, which="both", linewidth=0.5)
        if x == "steps":
            ticks = sorted(part["steps"].unique())
            axis.set_xticks(ticks, [f"{t:.0f}" for t in ticks])
            axis.xaxis.minorticks_off()
        else:
            _plain_log_ticks(axis)
        axis.legend(
            fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.13), ncol=3
        )  # below: floors and curves fill the axes
    return save(figure, folder / f"{AXES[x][1]}.png")


def training_plot(rows: pd.DataFrame, folder: Path) -> Path | None:
    """Distance against training FLOPs, from weights kept on the way, at the model's most steps
    without guidance; None where none were.
    """
    panels = [(title, part) for title, part in groups(rows) if (part["train_fraction"] < 1).any()]
    if not panels:
        return None
    figure, axes = _panels(len(panels))
    for axis, (title, part) in zip(axes, panels, strict=True):
        kept = part[part["train_fraction"] < 1]
        setting = ["training", "steps", "guidance", "sampler"]
        part = verdicts.over_drawings(
            part.merge(kept[setting].drop_duplicates("training"), on=setting)
        )
        part = part.assign(curve=curve_names(part))
        for i, name in enumerate(in_order(part)):
            curve = part[part["curve"] == name].sort_values("train_flops")
            steps = f" ({curve['steps'].iloc[0]:.0f} steps)"
            axis.errorbar(
                curve["train_flops"],
                curve["fd"],
                yerr=curve["fd_std"].fillna(0),
                label=name + steps,
                capsize=2,
                **_style(i),
            )
        axis.set(
            xscale="log",
            yscale="log",
            xlabel="training FLOPs (3 x forward)",
            ylabel=distance_label(part),
        )
        axis.set_title(
            f"before its last point a run's learning rate has not yet decayed: a training of that length alone would end elsewhere\n{title}",
            fontsize=8,
        )
        _plain_log_ticks(axis)
        axis.yaxis.set_major_formatter("{x:g}")
        axis.yaxis.set_minor_formatter("{x:g}")
        axis.grid(alpha=0.3, which="both", linewidth=0.5)
        axis.legend(fontsize=7)
    return save(figure, folder / "fd_vs_training.png")


def guidance_plot(rows: pd.DataFrame, folder: Path) -> Path | None:
    """Precision against recall as guidance grows, each model at its most steps, each scale at its
    best sampler; None without a sweep.
    """
    panels = [
        (title, part)
        for title, part in groups(rows)
        if part["guidance"].nunique() > 1 and part["recall"].notna().any()
    ]
    if not panels:
        return None
    figure, axes = _panels(len(panels))
    for axis, (title, part) in zip(axes, panels, strict=True):
        part = part[part["steps"] == part.groupby("training")["steps"].transform("max")]
        part = verdicts.over_drawings(verdicts.own_best(part, within=("guidance",)))
        part = part.assign(curve=curve_names(part))
        for i, name in enumerate(in_order(part)):
            curve = part[part["curve"] == name].sort_values("guidance")
            axis.plot(curve["recall"], curve["precision"], label=name, **_style(i))
            for _, row in curve.iterrows():
                place = (row["recall"], row["precision"])
                axis.annotate(
                    f"{row['guidance']:g}",
                    place,
                    textcoords="offset points",
                    xytext=(4, 4),
                    fontsize=7,
                )
        axis.set(xlabel="recall (higher is better)", ylabel="precision (higher is better)")
        axis.set_title(f"numbers are guidance scales\n{title}", fontsize=9)
        axis.grid(alpha=0.3, linewidth=0.5)
        axis.legend(fontsize=7)
    return save(figure, folder / "precision_recall.png")


def loss_plot(found: list[tuple[dict[str, Any], str]], folder: Path) -> Path | None:
    """Of records of whole trainings, each with what tells it from others of its model: training
    loss against training FLOPs; one panel per kind of loss, since they do not compare with each
    other.
    """
    logs: dict[str, dict[str, np.ndarray]] = {}
    for record, variant in found:
        row, log = record["row"], record.get("train_log")
        if log:
            kind = (
                f"{row['objective']} cross-entropy (nats)"
                if row["family"] == "ar"
                else f"{row['objective']} mean squared error"
            )
            name = f"{row['model']} {row['size']}, {row['data']} {row['image_size']} px, seed {row['seed']}, {row['train_flops']:.2g} FLOPs"
            name += f", {variant}" * bool(variant)
            logs.setdefault(kind, {})[name] = np.array(log, dtype=float)
    if not logs:
        return None
    figure, axes = _panels(len(logs))
    for axis, (kind, curves) in zip(axes, sorted(logs.items()), strict=True):
        for name, log in sorted(curves.items()):
            axis.plot(log[:, 1], log[:, 2], label=name, linewidth=1)
        axis.set(xscale="log", xlabel="training FLOPs (3 x forward)", ylabel=kind)
        _plain_log_ticks(axis)
        axis.grid(alpha=0.3, which="both", linewidth=0.5)
        axis.legend(fontsize=7)
    return save(figure, folder / "loss_vs_flops.png")
