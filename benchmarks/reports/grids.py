"""Samples as pictures: strips of the first of each measurement, the grid of all curves, and samples
beside what they may copy.
"""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from PIL import Image

from benchmarks.analysis import verdicts
from benchmarks.analysis.curves import curve_names, groups, in_order
from benchmarks.core.store import atomic_file
from benchmarks.reports.plots import save


def strip(images: np.ndarray, path: Path, count: int = 8) -> None:
    """The first `count` pictures (N, 3, H, W) side by side, lossless: what the sample grid is made
    from.
    """
    row = images[:count].transpose(2, 0, 3, 1)
    with atomic_file(path) as temporary:
        Image.fromarray(row.reshape(row.shape[0], -1, 3)).save(temporary, format="PNG")


def pairs_strip(samples: np.ndarray, nearest: np.ndarray, path: Path) -> None:
    """Samples (n, 3, H, W) side by side, each over the training picture it is closest to."""
    strip(np.concatenate([samples, nearest], axis=2), path, len(samples))


def _tile(path: Path, size: int, across: int = 4) -> np.ndarray | None:
    """A strip folded into rows of `across` pictures, enlarged to at least 64 px each without
    smoothing; None if it does not read.
    """
    try:
        row = np.asarray(Image.open(path).convert("RGB"))
    except (OSError, SyntaxError) as error:
        print(
            f"plots: {path} cannot be read ({type(error).__name__}); its place in the grid stays empty"
        )
        return None
    pictures = row.reshape(size, -1, size, 3).transpose(1, 0, 2, 3)
    across = min(across, len(pictures))
    pictures = pictures[: len(pictures) // across * across]
    tile = (
        pictures.reshape(-1, across, size, size, 3)
        .transpose(0, 2, 1, 3, 4)
        .reshape(-1, across * size, 3)
    )
    zoom = max(1, 64 // size)
    return tile.repeat(zoom, axis=0).repeat(zoom, axis=1)


def sample_grids(rows: pd.DataFrame, strips: Path, folder: Path) -> list[Path]:
    """Rows are curves, columns step counts; every tile shows the same labels, from the same noise
    where the family allows.
    """
    paths = []
    for title, part in groups(rows):
        part = verdicts.rows_to_show(part)
        part = part.assign(curve=curve_names(part))
        part = part[[(strips / f"{run}.png").exists() for run in part["run_id"]]]
        if part.empty:
            continue
        names, steps = in_order(part), sorted(part["steps"].unique())
        shape = (len(names), len(steps))
        figure, axes = plt.subplots(
            *shape,
            figsize=(2.6 * shape[1], 1.35 * shape[0] + 0.5),
            squeeze=False,
            layout="constrained",
        )
        for axis in axes.flat:
            axis.set(xticks=[], yticks=[], xlim=(0, 1), ylim=(0, 1), box_aspect=0.5)
            axis.set_frame_on(False)
        for i, name in enumerate(names):
            axes[i][0].set_ylabel("\n".join(name.split(", ")), fontsize=8)
            for j, step in enumerate(steps):
                cell = part[(part["curve"] == name) & (part["steps"] == step)]
                tile = None
                if len(cell):
                    tile = _tile(
                        strips / f"{cell['run_id'].iloc[0]}.png", int(cell["image_size"].iloc[0])
                    )
                if tile is not None:
                    axes[i][j].imshow(
                        tile, extent=(0, 1, 0, 1), aspect="auto", interpolation="none"
                    )
                if i == 0:
                    axes[i][j].set_title(f"{step:.0f} steps", fontsize=9)
        figure.suptitle(title, fontsize=8)
        stem = "-".join(str(part[c].iloc[0]) for c in ("data", "image_size", "features"))
        taken = sum(path.stem.startswith(stem) for path in paths)
        paths.append(save(figure, folder / f"{stem}{f'-{taken + 1}' if taken else ''}.png"))
    return paths


def pairs_grid(rows: pd.DataFrame, strips: Path, folder: Path) -> list[Path]:
    """Per curve, at its most steps, the samples closest to training pictures, each over its nearest
    one.
    """
    paths = []
    for title, part in groups(rows):
        part = verdicts.own_best(part)
        part = (
            part.assign(curve=curve_names(part))
            .sort_values("steps")
            .drop_duplicates("curve", keep="last")
        )
        part = part[[(strips / f"{run}-nearest.png").exists() for run in part["run_id"]]]
        if part.empty:
            continue
        names = in_order(part)
        figure, axes = plt.subplots(
            len(names),
            1,
            figsize=(7.5, 2.0 * len(names) + 0.6),
            squeeze=False,
            layout="constrained",
        )
        for axis, name in zip(axes[:, 0], names, strict=True):
            row = part[part["curve"] == name].iloc[0]
            axis.imshow(
                Image.open(strips / f"{row['run_id']}-nearest.png").convert("RGB"),
                interpolation="none",
            )
            axis.set(xticks=[], yticks=[], ylabel="\n".join(name.split(", ")))
            axis.set_title(
                f"{row['steps']:.0f} steps, memorised share {row['memorised_fraction']:.3g}",
                fontsize=8,
            )
        figure.suptitle(
            f"samples (above) closest to training pictures (below)\n{title}", fontsize=8
        )
        paths.append(save(figure, folder / f"nearest{f'-{len(paths) + 1}' if paths else ''}.png"))
    return paths
