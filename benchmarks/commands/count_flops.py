"""`make cost`: what one forward pass of every model and size costs, counted, without training
anything.

Writes results/cost/cost.csv: every model x size at 4x16x16 latents (xs at 4x8x8) on 1000 classes,
then the twelve DiT models of the paper (arXiv 2212.09748, table 1) at 4x32x32 with learned sigma.
MACs include the head; the papers' "Gflops" are MACs. Then resolution.csv and
gflops_vs_resolution.png: a whole image's GFLOPs, decoder left out, at 8x8 to 64x64 latents.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch

from benchmarks.analysis.panel import MARKERS
from benchmarks.core import cli
from benchmarks.core.settings import compose, config_names
from benchmarks.core.store import atomic_file
from benchmarks.frozen.autoencoder import shipped_codebook_size
from benchmarks.reports import plots
from benchmarks.results.tables import markdown
from benchmarks.stages.model import build_model, forward_macs, sampling_macs
from metrics import flops
from models.codebook import Codebook
from models.diffusion import Diffusion
from models.dit import PAPER_SIZES, DiT
from models.generator import GenerativeModel

COLUMNS = ["model", "family", "size", "patch", "latent_shape", "num_classes", "params_m", "gmacs"]
GROWTH = ["model", "size", "side", "steps", "gflops_per_image", "forward_passes"]
NUM_CLASSES = 1000
SIDES = (8, 16, 32, 64)
STEPS = 16
ORDER = ["xs", "s", "b", "l", "xl"]


def row(name: str, family: str, size: str, model: GenerativeModel) -> list[object]:
    """One line of the table, of a model on the meta device."""
    patch = getattr(getattr(model, "denoiser", None), "patch", None)
    shape = "x".join(map(str, model.latent_shape))
    return [
        name,
        family,
        size,
        patch,
        shape,
        model.num_classes,
        flops.params(model) / 1e6,
        forward_macs(model) / 1e9,
    ]


def configured(codebook_size: int, wanted: Sequence[str] | None = None) -> Iterator[list[object]]:
    """Every model x size of conf/, smallest first, or of the sizes that are wanted."""
    sizes = sorted(
        wanted or config_names("size"),
        key=lambda size: (ORDER.index(size) if size in ORDER else len(ORDER), size),
    )
    for size in sizes:
        shape = (4, 8, 8) if size == "xs" else (4, 16, 16)
        for name in config_names("model"):
            cfg = compose(f"model={name}", f"size={size}")
            with torch.device("meta"):
                model = build_model(cfg.model, shape, NUM_CLASSES, Codebook(codebook_size))
            yield row(name, cfg.model.family, size, model.to("meta"))


def resolutions(
    size: str, codebook_size: int, sides: Sequence[int] = SIDES
) -> Iterator[list[object]]:
    """What an image of every model costs at growing latents: in 16 steps where the model has a
    choice, else in its own number.
    """
    for side in sides:
        for name in config_names("model"):
            cfg = compose(f"model={name}", f"size={size}")
            with torch.device("meta"):
                model = (
                    build_model(cfg.model, (4, side, side), NUM_CLASSES, Codebook(codebook_size))
                    .to("meta")
                    .eval()
                )
            free = len(model.supported_steps([1, STEPS])) == 2
            steps = STEPS if free else model.supported_steps(range(1, side**2 + 1))[0]
            # for a raster model the sum of its cached steps (tests/test_flops.py), of which each
            # would take long to count
            macs = (
                sampling_macs(model, STEPS, 1.0)
                if free
                else forward_macs(model) - later_macs(cfg.model, side**2)
            )
            yield [name, size, side, steps, 2 * macs / 1e9, macs / forward_macs(model)]


def resolution_plot(table: pd.DataFrame, path: Path) -> None:
    """GFLOPs per image against latent positions, log-log, with lines of slope 1 and 2."""
    figure, axis = plt.subplots(figsize=(6.4, 4.8))
    for i, (name, rows) in enumerate(table.groupby("model", sort=False)):
        counts = "-".join(f"{n}" for n in sorted({rows["steps"].min(), rows["steps"].max()}))
        line = "--" if name == "ar_block" else "-"  # on top of ar
        axis.plot(
            rows["side"] ** 2,
            rows["gflops_per_image"],
            line,
            marker=MARKERS[i % len(MARKERS)],
            label=f"{name}, {counts} steps",
        )
    ends, least = np.array([SIDES[0] ** 2, SIDES[-1] ** 2]), table["gflops_per_image"].min()
    for slope, line in ((1, ":"), (2, "--")):
        axis.plot(
            ends,
            least / 2 * (ends / ends[0]) ** slope,
            color="0.5",
            linestyle=line,
            label=f"slope {slope}",
        )
    axis.set(
        xscale="log",
        yscale="log",
        xlabel="latent positions (side squared)",
        ylabel="GFLOPs per image (generator)",
    )
    axis.set_title(f"size {table['size'].iloc[0]}: attention's quadratic term", fontsize=9)
    axis.grid(alpha=0.3, which="both", linewidth=0.5)
    axis.legend(fontsize=7)
    plots.save(figure, path)


def later_macs(shape: Any, tokens: int) -> int:
    """What of a raster model's forward pass is attention to keys of later blocks, which a cached
    drawing never meets.
    """
    return shape.depth * shape.width * tokens * (tokens - shape.get("block", 1))


def discounted(size: str, codebook_size: int) -> str:
    """The AR model's GMACs with causal attention counted as the triangle it needs, n (n + 1) / 2
    pairs for n^2.
    """
    side = 8 if size == "xs" else 16
    tokens = side * side
    cfg = compose("model=ar", f"size={size}")
    with torch.device("meta"):
        model = build_model(cfg.model, (4, side, side), NUM_CLASSES, Codebook(codebook_size)).to(
            "meta"
        )
    return f"ar {size} {(forward_macs(model) - later_macs(cfg.model, tokens)) / 1e9:.4g}"


def paper(shape: Sequence[int] = (4, 32, 32)) -> Iterator[list[object]]:
    """The twelve DiT models of the paper, with its eight output channels."""
    for size, (width, depth, heads) in PAPER_SIZES.items():
        for patch in (8, 4, 2):
            net = partial(DiT, width=width, depth=depth, heads=heads, patch=patch, out_channels=8)
            with torch.device("meta"):
                model = PaperDiT(shape, NUM_CLASSES, denoiser=net)
            yield row("dit", "dit", size, model.to("meta"))


class PaperDiT(Diffusion):
    """Only to be counted: the paper's denoisers also predict a variance, which the loss here leaves
    aside.
    """

    def loss(self, batch, *, rng):
        prediction = self.denoiser(
            batch.latents, torch.zeros(len(batch.labels), device=batch.latents.device), batch.labels
        )
        return prediction[:, : self.latent_shape[0]].square().mean()


def main(argv: Sequence[str]) -> None:
    parser = cli.parser("cost", __doc__)
    parser.add_argument("--out", type=Path, default=Path("results/cost"))
    parser.add_argument(
        "--rehearse", action="store_true", help="the smallest size only, to see that it runs"
    )
    args = parser.parse_args(argv)
    out = args.out
    codebook_size = shipped_codebook_size()
    rows = (
        [*configured(codebook_size, ["xs"])]
        if args.rehearse
        else [*configured(codebook_size), *paper()]
    )
    table = pd.DataFrame(rows, columns=COLUMNS)
    table["patch"] = table["patch"].astype("Int64")
    with atomic_file(out / "cost.csv") as path:
        table.to_csv(path, index=False)
    print(
        "\n".join(
            markdown(COLUMNS, table.astype(object).where(table.notna(), None).values.tolist())
        )
    )
    causal = ", ".join(discounted(size, codebook_size) for size in ORDER)
    print(
        f"\ncausal attention is counted in full; discounted to the pairs it needs, GMACs are: {causal}"
    )
    grown = (
        resolutions("xs", codebook_size, SIDES[:2])
        if args.rehearse
        else resolutions("s", codebook_size)
    )
    growth = pd.DataFrame(grown, columns=GROWTH)
    with atomic_file(out / "resolution.csv") as path:
        growth.to_csv(path, index=False)
    resolution_plot(growth, out / "gflops_vs_resolution.png")
    print(f"autoregressive heads have {codebook_size} codebook entries")
    print(
        "\n".join(
            str(out / name) for name in ("cost.csv", "resolution.csv", "gflops_vs_resolution.png")
        )
    )
