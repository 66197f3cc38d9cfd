"""How cost grows: time and memory against tokens, batch, width and samples, per model, beside the
counted FLOPs (part of `perf`).

Writes growth.csv and growth.png. An exponent is the slope between two neighbouring points on
logarithmic axes: 1 is proportional, 2 is attention in long sequences, and near 0 is a machine that
waits for something other than arithmetic.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from omegaconf import DictConfig

from benchmarks.analysis.panel import MARKERS
from benchmarks.core.files import atomic_file
from benchmarks.core.settings import compose
from benchmarks.core.store import seeded
from benchmarks.frozen.autoencoder import SHIPPED_FOLDER, load_codebook
from benchmarks.perf.bench import (
    CLASSES,
    PRECISION,
    Bench,
    random_latents,
    repeating_labels,
    single_batch_sampler,
)
from benchmarks.perf.comparisons import LR
from benchmarks.reports import plots
from benchmarks.results.tables import markdown
from benchmarks.stages.model import build_model, forward_macs, on_meta, place_on, sampling_macs
from benchmarks.stages.train_state import build_train_state
from metrics import speed
from models.generator import Batch, GenerativeModel

MODELS = ("unet", "dit", "ar", "ar_any", "masked")
AXES = {  # what grows, from where, and what is timed
    "tokens": ((64, 256, 1024), "training step, batch 4"),
    "batch": ((1, 2, 4, 8, 16, 32), "training step, 64 tokens"),
    "width": ((1, 2, 4), "training step, batch 16, 64 tokens; times size xs"),
    "samples": ((1, 4, 16, 64), "sampling, 64 tokens; 8 steps, or as many as tokens"),
}
COLUMNS = ["model", "grows", "value", "seconds", "memory_mb", "gflops"]
MEASURED = ["seconds", "memory_mb", "gflops"]
REHEARSED = ("unet", "ar")  # they are widened, and sample, in every way that there is
NEAR = 0.25  # exponents of time and FLOPs this close: time follows the FLOPs


def widened(cfg: DictConfig, times: int) -> None:
    """In place: widths, channels and heads `times` as large, depth as it is."""
    shape = cfg.model if cfg.model.family == "ar" else cfg.model.denoiser
    # as many heads more as channels: a head's width stays as it is
    for key in ("width", "heads", "mlp"):
        if key in shape:
            shape[key] = times * shape[key]
    if "channels" in shape:
        shape.channels = [times * channels for channels in shape.channels]


def saved_mb(call: Callable[[], Any]) -> float:
    """MiB of the tensors that a forward pass `call()` keeps for its backward pass, parameters
    included, each storage once: the same on any device.
    """
    sizes: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    def unpack(tensor: torch.Tensor) -> torch.Tensor:
        return tensor

    # views share a storage, and a parameter is saved by every layer that uses it
    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        call()
    return sum(sizes.values()) / 2**20


def points(
    device: torch.device,
    repeats: int,
    models: Sequence[str] = MODELS,
    most: int | None = None,
) -> Iterator[list[object]]:
    """Rows of COLUMNS, medians of `repeats` calls; of each axis the first `most` values."""
    book = load_codebook(SHIPPED_FOLDER / "codebook.safetensors")
    for name in models:
        for grows, (values, _) in AXES.items():
            macs = None  # of a sample; counted anew only where the network grows
            for value in values[:most]:
                cfg = compose(f"model={name}", "size=xs", f"train.precision={PRECISION}")
                side, batch = 8, value
                if grows == "tokens":
                    side, batch = round(value**0.5), 4
                elif grows == "width":
                    widened(cfg, value)
                    batch = 16
                model = place_on(build_model(cfg.model, (4, side, side), CLASSES, book), device)
                steps = _sampling_steps(model) if grows == "samples" else None
                if macs is None or grows in ("tokens", "width"):
                    macs = _macs(model, steps)
                if steps is None:
                    data = random_latents(model.latent_shape, book.size, device, 64)
                    same_batch = data.batch(0, 0, batch)
                    seconds, memory = _training(model, cfg.train, same_batch, device, repeats)
                else:
                    seconds, memory = _sampling(model, steps, batch, device, repeats)
                yield [name, grows, value, seconds, memory, 2 * macs * batch / 1e9]


def _sampling_steps(model: GenerativeModel) -> int:
    """Eight, or as many as tokens, which is all that a raster model has."""
    if model.supported_steps([8]):
        return 8
    _, side, _ = model.latent_shape
    return max(model.supported_steps(range(1, side**2 + 1)))


def _macs(model: GenerativeModel, steps: int | None) -> float:
    """Of sampling one image in `steps`, or, where these are None, of training on one."""
    if steps is not None:
        return sampling_macs(on_meta(model), steps, 1.0)
    return 3 * forward_macs(on_meta(model))  # a backward pass costs two forward passes


def _training(
    model: GenerativeModel, cfg: DictConfig, batch: Batch, device: torch.device, repeats: int
) -> tuple[float, float]:
    """Seconds of a training step, and MiB kept for the backward pass."""
    state = build_train_state(model, cfg, LR, device)
    seconds = speed.median_seconds(
        lambda: state.step(batch, seeded("noise", 0)), device, repeats=repeats, warmup=2
    )
    return seconds, saved_mb(lambda: state.model(batch, rng=seeded("noise", 0)))


def _sampling(
    model: GenerativeModel, steps: int, batch: int, device: torch.device, repeats: int
) -> tuple[float, float]:
    """Seconds of a batch of samples, and peak MiB (of the whole process on a CPU)."""
    sample = single_batch_sampler(model.eval(), repeating_labels(batch, device), device)
    speed.reset_peak_memory(device)  # building and counting may have needed more
    seconds = speed.median_seconds(lambda: sample(steps), device, repeats=repeats)
    return seconds, speed.peak_memory_mb(device)


def exponents(table: pd.DataFrame) -> pd.DataFrame:
    """Per model and what grows: first and last local exponent of seconds, memory and FLOPs, and
    from where on time follows the FLOPs.
    """
    rows = []
    for (model, grows), curve in table.groupby(["model", "grows"], sort=False):
        curve = curve.sort_values("value")
        logs = np.log(curve[["value", *MEASURED]].to_numpy(float))
        # d log y / d log x between neighbours: rows are intervals, columns are MEASURED
        slopes = np.diff(logs[:, 1:], axis=0) / np.diff(logs[:, :1], axis=0)
        of_time, _, of_flops = slopes.T
        local = [f"{slope[0]:.2f} to {slope[-1]:.2f}" for slope in slopes.T]
        # one exponent for the whole curve, by least squares
        whole = np.polyfit(logs[:, 0], logs[:, 1], 1)[0]
        start = _followed_from(np.abs(of_time - of_flops) < NEAR)
        follows = "nowhere here" if start is None else curve["value"].iloc[start]
        rows.append([model, grows, whole, *local, follows])
    columns = [
        "model",
        "grows",
        "exponent of time",
        "local: time",
        "local: memory",
        "local: FLOPs",
        "time follows the FLOPs from",
    ]
    return pd.DataFrame(rows, columns=columns)


def _followed_from(near: np.ndarray) -> int | None:
    """The first index from which on all are true; None where the last is not."""
    for start in range(len(near)):
        if near[start:].all():
            return start
    return None


def plot(table: pd.DataFrame, path: Path) -> Path:
    """Seconds over each axis, a curve per model, beside the counted FLOPs."""
    figure, axes = plt.subplots(1, len(AXES), figsize=(4.6 * len(AXES), 4.2), squeeze=False)
    for axis, (grows, (_, what)) in zip(axes[0], AXES.items(), strict=True):
        for i, name in enumerate(MODELS):
            of_model = (table["model"] == name) & (table["grows"] == grows)
            _plot_curve(axis, table[of_model].sort_values("value"), name, i)
        axis.set(xscale="log", yscale="log", xlabel=grows, ylabel="seconds")
        axis.set_title(f"{what}\ndotted: counted FLOPs, meeting at the last point", fontsize=8)
        axis.grid(alpha=0.3, which="both", linewidth=0.5)
        axis.legend(fontsize=7)
    return plots.save(figure, path)


def _plot_curve(axis: Axes, curve: pd.DataFrame, name: str, number: int) -> None:
    """A model's seconds, and dotted its FLOPs, scaled to meet them at the last point."""
    if curve.empty:
        return
    color = f"C{number}"
    axis.plot(
        curve["value"],
        curve["seconds"],
        label=name,
        color=color,
        marker=MARKERS[number],
        markersize=4,
    )
    scale = curve["seconds"].iloc[-1] / curve["gflops"].iloc[-1]
    axis.plot(curve["value"], curve["gflops"] * scale, ":", color=color, linewidth=1)


def measure(bench: Bench, repeats: int, out: Path) -> None:
    """All points, written to `out` and printed as exponents."""
    rows = points(bench.device, repeats)
    if bench.rehearse:
        rows = points(bench.device, repeats, REHEARSED, most=2)
    grown = write(rows, out)
    print("\n".join(["", *markdown(grown.columns, grown.values.tolist())]))


def write(rows: Iterator[list[object]], folder: Path) -> pd.DataFrame:
    """growth.csv and growth.png of these points; returns their exponents."""
    table = pd.DataFrame(rows, columns=COLUMNS)
    with atomic_file(folder / "growth.csv") as path:
        table.to_csv(path, index=False)
    plot(table, folder / "growth.png")
    return exponents(table)
