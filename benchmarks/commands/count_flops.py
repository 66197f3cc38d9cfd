"""Count what one forward pass of every model and size costs, without training anything.

    python -m benchmarks cost
    python -m benchmarks cost --out results/cost-again

Writes results/cost/cost.csv: every model x size at 4x16x16 latents (xs at 4x8x8) on 1000 classes,
then the twelve DiT models of the paper (arXiv 2212.09748, table 1) at 4x32x32 with learned sigma.
MACs include the head; the papers' "Gflops" are MACs. Then resolution.csv and
gflops_vs_resolution.png: a whole image's GFLOPs, decoder left out, at 8x8 to 64x64 latents.
"""

from collections.abc import Iterator, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from omegaconf import DictConfig

from benchmarks.analysis.panel import MARKERS
from benchmarks.core import cli
from benchmarks.core.files import atomic_file, check_writable
from benchmarks.core.settings import compose, config_names, trained_models
from benchmarks.frozen.autoencoder import shipped_codebook_size
from benchmarks.reports import plots
from benchmarks.results.tables import markdown
from benchmarks.stages.model import build_model, forward_macs, latents_of, sampling_macs
from metrics import flops
from models.codebook import Codebook
from models.diffusion import Diffusion
from models.dit import PAPER_SIZES, DiT
from models.generator import GenerativeModel

COLUMNS = ["model", "family", "size", "patch", "latent_shape", "num_classes", "params_m", "gmacs"]
GROWTH = ["model", "family", "size", "side", "steps", "gflops_per_image", "forward_passes"]
NUM_CLASSES = 1000
SIDES = (8, 16, 32, 64)
STEPS = 16
ORDER = ["xs", "xs16", "s", "b", "l", "xl"]


@cache
def settings_of(name: str, size: str) -> DictConfig:
    """The configuration of a model, which several counts need."""
    return compose(f"model={name}", f"size={size}")


def on_meta(name: str, size: str, shape: Sequence[int], codebook_size: int) -> GenerativeModel:
    """A model of conf/ without data: only its shapes, which are all that is counted.

    `codebook_size` is of sizes that have none of their own.
    """
    cfg = settings_of(name, size)
    codebook = Codebook(cfg.size.get("codebook_size") or codebook_size)
    with torch.device("meta"):
        model = build_model(cfg.model, shape, NUM_CLASSES, codebook)
    return model.to("meta").eval()


def side_of(size: str) -> int:
    """Of the latents at which a size is counted: those its presets train on."""
    return 8 if size == "xs" else 16


def row(name: str, family: str, size: str, model: GenerativeModel) -> list[object]:
    """One line of the table, of a model on the meta device."""
    patch = getattr(getattr(model, "denoiser", None), "patch", None)
    shape = "x".join(map(str, model.latent_shape))
    params, gmacs = flops.params(model) / 1e6, forward_macs(model) / 1e9
    return [name, family, size, patch, shape, model.num_classes, params, gmacs]


def configured(codebook_size: int, wanted: Sequence[str] | None = None) -> Iterator[list[object]]:
    """Every model x size of conf/, smallest first, or of the sizes that are wanted."""
    place = {size: i for i, size in enumerate(ORDER)}
    sizes = wanted or config_names("size")
    for size in sorted(sizes, key=lambda size: (place.get(size, len(ORDER)), size)):
        for name in trained_models():
            family = settings_of(name, size).model.family
            model = on_meta(name, size, latents_of(name, side_of(size)), codebook_size)
            yield row(name, family, size, model)


def resolutions(
    size: str, codebook_size: int, sides: Sequence[int] = SIDES
) -> Iterator[list[object]]:
    """What an image of every model costs at growing latents: in 16 steps where the model has a
    choice, else in its own number.
    """
    for side in sides:
        for name in trained_models():
            model = on_meta(name, size, latents_of(name, side), codebook_size)
            cfg = settings_of(name, size).model
            forward = forward_macs(model)
            has_choice = len(model.supported_steps([1, STEPS])) == 2
            steps = STEPS if has_choice else model.supported_steps(range(1, side**2 + 1))[0]
            if steps <= STEPS:
                macs = sampling_macs(model, steps, 1.0)
            else:  # the sum of a raster model's cached steps: to count each would take long
                macs = forward - later_macs(cfg, side**2)
            yield [name, cfg.family, size, side, steps, 2 * macs / 1e9, macs / forward]


def later_macs(shape: Any, tokens: int) -> int:
    """What of a raster model's forward pass is attention to keys of later blocks, which cached
    sampling never meets. `shape` is the model's configuration.
    """
    return shape.depth * shape.width * tokens * (tokens - shape.get("block", 1))


def resolution_plot(table: pd.DataFrame, path: Path) -> None:
    """GFLOPs per image against latent positions, log-log, a family beside another, with lines of
    slope 1 and 2.
    """
    families = table["family"].unique()
    shape = {"figsize": (3.6 * len(families), 4.8), "sharey": True, "squeeze": False}
    figure, axes = plt.subplots(1, len(families), **shape, layout="constrained")
    ends, least = np.array([SIDES[0] ** 2, SIDES[-1] ** 2]), table["gflops_per_image"].min()
    for axis, family in zip(axes[0], families, strict=True):
        _plot_family(axis, table[table["family"] == family])
        for slope, line in ((1, ":"), (2, "--")):
            height = least / 2 * (ends / ends[0]) ** slope
            axis.plot(ends, height, color="0.5", linestyle=line, label=f"slope {slope}")
        axis.set(xscale="log", yscale="log", xlabel="latent positions (side squared)")
        axis.grid(alpha=0.3, which="both", linewidth=0.5)
        axis.legend(fontsize=7, loc="upper left")
    axes[0][0].set_ylabel("GFLOPs per image (generator)")
    figure.suptitle(f"size {table['size'].iloc[0]}: attention's quadratic term", fontsize=9)
    plots.save(figure, path)


def _plot_family(axis: Axes, table: pd.DataFrame) -> None:
    """The models of a family; those that cost about the same lie on top of each other."""
    for i, (name, rows) in enumerate(table.groupby("model", sort=False)):
        counts = sorted({rows["steps"].min(), rows["steps"].max()})
        label = f"{name}, {'-'.join(str(n) for n in counts)} steps"
        look = {"marker": MARKERS[i % len(MARKERS)], "linestyle": "-" if i % 2 else "--"}
        axis.plot(rows["side"] ** 2, rows["gflops_per_image"], **look, alpha=0.8, label=label)


def discounted(size: str, codebook_size: int) -> str:
    """The AR model's GMACs with causal attention counted as the triangle it needs, n (n + 1) / 2
    pairs for n^2.
    """
    side = side_of(size)
    model = on_meta("ar", size, latents_of("ar", side), codebook_size)
    macs = forward_macs(model) - later_macs(settings_of("ar", size).model, side**2)
    return f"ar {size} {macs / 1e9:.4g}"


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
        times = torch.zeros(len(batch.labels), device=batch.latents.device)
        prediction = self.denoiser(batch.latents, times, batch.labels)
        return prediction[:, : self.latent_shape[0]].square().mean()


def write_costs(rows: list[list[object]], path: Path) -> None:
    """cost.csv, and the same as Markdown on stdout."""
    table = pd.DataFrame(rows, columns=COLUMNS)
    table["patch"] = table["patch"].astype("Int64")
    with atomic_file(path) as temporary:
        table.to_csv(temporary, index=False)
    cells = table.astype(object).where(table.notna(), None)
    print("\n".join(markdown(COLUMNS, cells.values.tolist())))


def main(argv: Sequence[str]) -> None:
    parser = cli.parser("cost", __doc__)
    parser.add_argument("--out", type=cli.path, default=Path("results/cost"))
    small = "the smallest size only, to see that it runs"
    parser.add_argument("--rehearse", action="store_true", help=small)
    args = parser.parse_args(argv)
    check_writable(args.out, "--out")
    entries = shipped_codebook_size()
    if args.rehearse:
        sizes = ["xs"]
        rows = list(configured(entries, sizes))
        grown = resolutions("xs", entries, SIDES[:2])
    else:
        sizes = ORDER
        rows = [*configured(entries), *paper()]
        grown = resolutions("s", entries)
    write_costs(rows, args.out / "cost.csv")
    causal = ", ".join(discounted(size, entries) for size in sizes)
    print("\ncausal attention is counted in full;")
    print(f"discounted to the pairs it needs, GMACs are: {causal}")

    growth = pd.DataFrame(grown, columns=GROWTH)
    with atomic_file(args.out / "resolution.csv") as path:
        growth.to_csv(path, index=False)
    resolution_plot(growth, args.out / "gflops_vs_resolution.png")
    print(f"autoregressive heads have {entries} codebook entries")
    for name in ("cost.csv", "resolution.csv", "gflops_vs_resolution.png"):
        print(args.out / name)
