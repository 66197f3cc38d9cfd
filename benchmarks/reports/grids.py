"""Grids of samples: strips of the first of each measurement, all curves of a panel, and samples
beside what they may copy.
"""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from PIL import Image

from benchmarks.analysis.curves import in_order
from benchmarks.analysis.panel import Panel
from benchmarks.core.files import atomic_file
from benchmarks.reports.plots import save

LEAST_SIDE = 64  # px: smaller samples are enlarged, without smoothing


def strip(images: np.ndarray, path: Path, count: int = 8) -> None:
    """The first `count` images (N, 3, H, W) side by side, lossless: what the grid is made from."""
    row = images[:count].transpose(2, 0, 3, 1)
    with atomic_file(path) as temporary:
        Image.fromarray(row.reshape(row.shape[0], -1, 3)).save(temporary, format="PNG")


def pairs_strip(samples: np.ndarray, nearest: np.ndarray, path: Path) -> None:
    """Samples (n, 3, H, W) side by side, each over the training image it is closest to."""
    strip(np.concatenate([samples, nearest], axis=2), path, len(samples))


def _read(path: Path) -> np.ndarray | None:
    """The pixels of a strip (H, W, 3); None, with a printed line, where it cannot be read."""
    try:
        with Image.open(path, formats=["PNG"]) as image:
            return np.asarray(image.convert("RGB"))
    except Exception as error:  # whatever a damaged file leads its decoder to
        why = type(error).__name__
        print(f"plots: {path} cannot be read ({why}); its place in the grid stays empty")
        return None


def _tile(path: Path, size: int, across: int = 4) -> np.ndarray | None:
    """A strip folded into rows of `across` images; None if it is not readable."""
    row = _read(path)
    if row is None or row.shape[0] != size or row.shape[1] % size:
        return None
    images = row.reshape(size, -1, size, 3).transpose(1, 0, 2, 3)
    across = min(across, len(images))
    images = images[: len(images) // across * across]
    tile = images.reshape(-1, across, size, size, 3).transpose(0, 2, 1, 3, 4)
    tile = tile.reshape(-1, across * size, 3)
    zoom = max(1, LEAST_SIDE // size)
    return tile.repeat(zoom, axis=0).repeat(zoom, axis=1)


def sample_grids(panels: list[Panel], strips: Path, folder: Path) -> list[Path]:
    """Rows are curves, columns step counts; every tile shows the same labels, from the same noise
    where the family allows.
    """
    paths: list[Path] = []
    for panel in panels:
        rows = panel.shown
        rows = rows[[(strips / f"{run}.png").exists() for run in rows["run_id"]]]
        if rows.empty:
            continue
        words = (panel.first[name] for name in ("data", "image_size", "features"))
        stem = "-".join(str(word) for word in words)
        same = sum(path.stem.startswith(stem) for path in paths)  # of another machine, say
        name = f"{stem}-{same + 1}" if same else stem
        paths.append(save(_sample_grid(panel.title, rows, strips), folder / f"{name}.png"))
    return paths


def _sample_grid(title: str, rows: pd.DataFrame, strips: Path) -> plt.Figure:
    names, steps = in_order(rows), sorted(rows["steps"].unique())
    shape = (len(names), len(steps))
    size = (2.6 * shape[1], 1.35 * shape[0] + 0.5)
    figure, axes = plt.subplots(*shape, figsize=size, squeeze=False, layout="constrained")
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[], xlim=(0, 1), ylim=(0, 1), box_aspect=0.5)
        axis.set_frame_on(False)
    for j, step in enumerate(steps):
        axes[0][j].set_title("1 step" if step == 1 else f"{step:.0f} steps", fontsize=9)
    for i, name in enumerate(names):
        axes[i][0].set_ylabel("\n".join(name.split(", ")), fontsize=8)
        for j, step in enumerate(steps):
            cell = rows[(rows["curve"] == name) & (rows["steps"] == step)]
            if cell.empty:
                continue
            first = cell.iloc[0]
            tile = _tile(strips / f"{first['run_id']}.png", int(first["image_size"]))
            if tile is not None:
                whole = (0, 1, 0, 1)
                axes[i][j].imshow(tile, extent=whole, aspect="auto", interpolation="none")
    figure.suptitle(title, fontsize=8)
    return figure


def pairs_grids(panels: list[Panel], strips: Path, folder: Path) -> list[Path]:
    """Per curve, at its most steps, the samples closest to training images, each over its nearest
    one.
    """
    paths: list[Path] = []
    for panel in panels:
        rows = panel.shown.sort_values("steps").drop_duplicates("curve", keep="last")
        rows = rows[[(strips / f"{run}-nearest.png").exists() for run in rows["run_id"]]]
        if rows.empty:
            continue
        name = f"nearest-{len(paths) + 1}" if paths else "nearest"
        paths.append(save(_pairs_grid(panel.title, rows, strips), folder / f"{name}.png"))
    return paths


def _pairs_grid(title: str, rows: pd.DataFrame, strips: Path) -> plt.Figure:
    names = in_order(rows)
    size = (7.5, 2.0 * len(names) + 0.6)
    figure, axes = plt.subplots(len(names), 1, figsize=size, squeeze=False, layout="constrained")
    for axis, name in zip(axes[:, 0], names, strict=True):
        row = rows[rows["curve"] == name].iloc[0]
        image = _read(strips / f"{row['run_id']}-nearest.png")
        if image is not None:
            axis.imshow(image, interpolation="none")
        axis.set(xticks=[], yticks=[], ylabel="\n".join(name.split(", ")))
        copies = f"memorised fraction {row['memorised_fraction']:.3g}"
        axis.set_title(f"{row['steps']:.0f} steps, {copies}", fontsize=8)
    figure.suptitle(f"samples (above) closest to training images (below)\n{title}", fontsize=8)
    return figure
