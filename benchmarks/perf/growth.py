"""How cost grows: time and memory against tokens, batch, width and samples, per model, beside the
counted FLOPs (part of `make perf`).

Writes growth.csv and growth.png. An exponent is the slope between two neighbouring points on
logarithmic axes: 1 is proportional, 2 is attention's share of long sequences, and near 0 is a
machine that waits for something other than arithmetic.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from omegaconf import DictConfig

from benchmarks.core.store import atomic_file, seeded
from benchmarks.frozen.autoencoder import SHIPPED_FOLDER, load_codebook
from benchmarks.frozen.latents import LatentSet
from benchmarks.perf.bench import CLASSES, Bench, compose, drawing, random_latents
from benchmarks.reports import plots
from benchmarks.results.tables import markdown
from benchmarks.stages.model import build_model, forward_macs, on_meta, place_on, sampling_macs
from benchmarks.stages.train import build_train_state
from metrics import speed
from models.generator import GenerativeModel

MODELS = ("unet", "dit", "ar", "ar_any", "masked")
AXES = {  # what grows, from where, and what is timed
    "tokens": ((64, 256, 1024), "training step, batch 4"),
    "batch": ((1, 2, 4, 8, 16, 32), "training step, 64 tokens"),
    "width": ((1, 2, 4), "training step, batch 16, 64 tokens; times size xs"),
    "samples": ((1, 4, 16, 64), "drawing, 64 tokens; 8 steps, or as many as tokens"),
}
COLUMNS = ["model", "grows", "value", "seconds", "memory_mb", "gflops"]
NEAR = 0.25  # exponents of time and FLOPs this close: time follows the FLOPs


def widened(cfg: DictConfig, times: int) -> None:
    """In place: widths, channels and heads `times` as large, depth as it is."""
    shape = cfg.model if cfg.model.family == "ar" else cfg.model.denoiser
    for key in ("channels", "width", "heads", "mlp"):
        if key in shape:
            shape[key] = (
                [times * v for v in shape[key]] if key == "channels" else times * shape[key]
            )


def saved_mb(call: Callable[[], Any]) -> float:
    """MiB of the tensors that a forward pass keeps for its backward pass, parameters included, each
    storage once: the same on any device.
    """
    sizes: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        call()
    return sum(sizes.values()) / 2**20


def points(device: torch.device, repeats: int, most: int | None = None) -> Iterator[list[object]]:
    """Rows of COLUMNS; of each axis the first `most` values."""
    book = load_codebook(SHIPPED_FOLDER / "codebook.safetensors")
    for name in MODELS:
        for grows, (values, _) in AXES.items():
            for value in values[:most]:
                cfg = compose(f"model={name}", "size=xs")
                if grows == "width":
                    widened(cfg, value)
                side = round(value**0.5) if grows == "tokens" else 8
                model = place_on(build_model(cfg.model, (4, side, side), CLASSES, book), device)
                measure = _sampling if grows == "samples" else _training
                batch = {"tokens": 4, "width": 16}.get(grows, value)
                yield [
                    name,
                    grows,
                    value,
                    *measure(
                        model,
                        cfg,
                        random_latents((4, side, side), book.size, device, 64),
                        batch,
                        device,
                        repeats,
                    ),
                ]


def _training(
    model: GenerativeModel,
    cfg: Any,
    data: LatentSet,
    batch: int,
    device: torch.device,
    repeats: int,
) -> tuple[float, float, float]:
    """Seconds, MiB kept for the backward pass, and GFLOPs of a training step."""
    state, picked = build_train_state(model, cfg.train, 1e-4, device), data.batch(0, 0, batch)
    seconds = speed.median_seconds(
        lambda: state.step(picked, seeded("noise", 0)), device, repeats=repeats, warmup=2
    )
    memory = saved_mb(lambda: state.model(picked, rng=seeded("noise", 0)))
    return seconds, memory, 6 * forward_macs(on_meta(model)) * batch / 1e9


def _sampling(
    model: GenerativeModel,
    cfg: Any,
    data: LatentSet,
    batch: int,
    device: torch.device,
    repeats: int,
) -> tuple[float, float, float]:
    """Seconds, peak MiB (of the whole process on a CPU), and GFLOPs of drawing `batch` samples."""
    labels = torch.arange(batch, device=device) % CLASSES
    steps = (
        8
        if model.supported_steps([8])
        else max(model.supported_steps(range(1, model.latent_shape[1] ** 2 + 1)))
    )
    draw = drawing(model.eval(), labels, device)
    speed.reset_peak_memory(device)
    seconds = speed.median_seconds(lambda: draw(steps), device, repeats=repeats)
    return (
        seconds,
        speed.peak_memory_mb(device),
        2 * sampling_macs(on_meta(model), steps, 1.0) * batch / 1e9,
    )


def exponents(table: pd.DataFrame) -> pd.DataFrame:
    """Per model and what grows: first and last local exponent of seconds, memory and FLOPs, and
    from where on time follows the FLOPs.
    """
    rows = []
    for (model, grows), part in table.groupby(["model", "grows"], sort=False):
        part = part.sort_values("value")
        logs = np.log(part[["value", "seconds", "memory_mb", "gflops"]].to_numpy(float))
        slopes = np.diff(logs[:, 1:], axis=0) / np.diff(logs[:, :1], axis=0)
        follows = np.abs(slopes[:, 0] - slopes[:, 2]) < NEAR
        start = next((i for i in range(len(follows)) if follows[i:].all()), None)
        said = "nowhere here" if start is None else part["value"].iloc[start]
        whole = np.polyfit(logs[:, 0], logs[:, 1], 1)[0]
        rows.append([model, grows, whole, *(f"{s[0]:.2f} to {s[-1]:.2f}" for s in slopes.T), said])
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


def plot(table: pd.DataFrame, path: Path) -> Path:
    """Seconds over each axis, a curve per model; the counted FLOPs, scaled to meet the last point,
    dotted.
    """
    figure, axes = plt.subplots(1, len(AXES), figsize=(4.6 * len(AXES), 4.2), squeeze=False)
    for axis, (grows, (_, what)) in zip(axes[0], AXES.items(), strict=True):
        for i, name in enumerate(MODELS):
            part = table[(table["model"] == name) & (table["grows"] == grows)].sort_values("value")
            if part.empty:
                continue
            axis.plot(
                part["value"],
                part["seconds"],
                label=name,
                color=f"C{i}",
                marker=plots.MARKERS[i],
                markersize=4,
            )
            axis.plot(
                part["value"],
                part["gflops"] * part["seconds"].iloc[-1] / part["gflops"].iloc[-1],
                ":",
                color=f"C{i}",
                linewidth=1,
            )
        axis.set(xscale="log", yscale="log", xlabel=grows, ylabel="seconds")
        axis.set_title(f"{what}\ndotted: counted FLOPs, meeting at the last point", fontsize=8)
        axis.grid(alpha=0.3, which="both", linewidth=0.5)
        axis.legend(fontsize=7)
    return plots.save(figure, path)


def measure(bench: Bench, repeats: int, out: Path) -> None:
    """All points, written to `out` and printed as exponents."""
    grown = write(points(bench.device, repeats, 2 if bench.rehearse else None), out)
    print("\n".join(["", *markdown(grown.columns, grown.values.tolist())]))


def write(rows: Iterator[list[object]], folder: Path) -> pd.DataFrame:
    """growth.csv and growth.png of these points; returns their exponents."""
    table = pd.DataFrame(rows, columns=COLUMNS)
    with atomic_file(folder / "growth.csv") as path:
        table.to_csv(path, index=False)
    plot(table, folder / "growth.png")
    return exponents(table)
