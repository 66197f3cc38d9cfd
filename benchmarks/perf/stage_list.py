"""Which stages `perf` measures on a machine, and how much of each."""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.perf import ablations, comparisons, growth
from benchmarks.perf.bench import Bench

Stage = Callable[[Bench], Any]
# every step of a flow map is of the costly kind: a median of two kinds would be of one of them
PAIRS = ["model.flow_first=0", "model.same_time=0"]
HEADS = {f"head {head}": [f"model.head={head}"] for head in ("gmm", "flow")}
VARIANTS: dict[str, dict[str, list[str]]] = {
    "dit_flowmap": {"": PAIRS},
    "unet_flowmap": {"": PAIRS},
    "ar_continuous": HEADS,
    "masked_continuous": HEADS,
}
GROWTH_REPEATS, QUICK_GROWTH_REPEATS = 5, 2


@dataclass(frozen=True)
class Extent:
    """How much is measured of what."""

    trained: list[tuple[str, int, int]]  # size, side of the latents, batch
    compiled: bool  # whether compiled training steps are compared too
    size: str  # of the networks that sample
    side: int  # of their latents
    token_batches: tuple[int, ...]  # of the raster model
    diffusion_batch: int
    encoded_images: int
    scored: list[tuple[int, int]]  # N and d of the features
    growth_repeats: int
    ablation_batch: int | None = None  # None: no ablations
    launch_batch: int | None = None  # None: launches are not counted


def rehearsed() -> Extent:
    """Every kind of stage but the ablations once, as small as it can be."""
    return Extent(
        trained=[("xs", 4, 2)],
        compiled=False,
        size="xs",
        side=4,
        token_batches=(2,),
        diffusion_batch=2,
        encoded_images=4,
        scored=[(40, 16)],
        growth_repeats=1,
        launch_batch=2,
    )


def on_cuda(size: str, side: int, batch: int | None, *, quick: bool) -> Extent:
    """Of a GPU: no scoring, which is the host's, and no ablations, of which hardly any changes
    anything there.
    """
    trained = [(size, side, batch or 128)]
    if size != "s":
        trained.append(("s", side, 256))
    return Extent(
        trained=trained,
        compiled=not quick,
        size=size,
        side=side,
        token_batches=(1, 64),  # bound by launches, and by memory
        diffusion_batch=32,
        encoded_images=500 if quick else 2000,
        scored=[],
        growth_repeats=QUICK_GROWTH_REPEATS if quick else GROWTH_REPEATS,
        launch_batch=1,
    )


def on_cpu(size: str, side: int, batch: int | None, *, quick: bool) -> Extent:
    """Of a CPU; `quick` is for two cores, samples smaller latents and compiles nothing."""
    batch = batch or 16
    return Extent(
        trained=[(size, side, batch), ("xs", 8, 32)],
        compiled=not quick and shutil.which("g++") is not None,  # which torch.compile needs there
        size=size,
        side=max(4, side // 2) if quick else side,
        token_batches=(1, 32),
        diffusion_batch=32,
        encoded_images=500 if quick else 2000,
        scored=[(1000, 2048)] if quick else [(1000, 2048), (5000, 2048)],
        growth_repeats=QUICK_GROWTH_REPEATS if quick else GROWTH_REPEATS,
        ablation_batch=batch,
    )


def extent_on(
    device: torch.device,
    size: str,
    side: int,
    batch: int | None,
    *,
    quick: bool = False,
    rehearse: bool = False,
) -> Extent:
    """What is measured on a device; `batch` is training's, None for the device's own."""
    if rehearse:
        return rehearsed()
    extent = on_cuda if device.type == "cuda" else on_cpu
    return extent(size, side, batch, quick=quick)


def training_stages(extent: Extent, models: Sequence[str]) -> dict[str, Stage]:
    """A stage for each of these models, and for each head that one may have."""
    by_name: dict[str, Stage] = {}
    for size, side, batch in extent.trained:
        for name in models:
            settings = {"size": size, "side": side, "batch": batch, "compiled": extent.compiled}
            for variant, overrides in VARIANTS.get(name, {"": []}).items():
                by_name[f"train {name} {size} {side} {variant}".strip()] = partial(
                    comparisons.training, name=name, overrides=overrides, **settings
                )
    return by_name


def stage_list(
    extent: Extent, ablation_side: int, out: Path, models: Sequence[str] | None = None
) -> dict[str, Stage]:
    """The stages by name, most valuable first; `out` is where growth writes its table and plot.

    With `models` the training of these, and nothing else.
    """
    by_name = training_stages(extent, models or ("dit", "ar", "unet"))
    if models:
        return by_name
    sampled = {"size": extent.size, "side": extent.side}
    for batch in extent.token_batches:
        by_name[f"tokens {batch}"] = partial(comparisons.sampling_tokens, batch=batch, **sampled)
    for name in ("dit", "unet"):
        by_name[f"diffusion {name}"] = partial(
            comparisons.sampling_diffusion, name=name, batch=extent.diffusion_batch, **sampled
        )
    by_name["encode"] = partial(comparisons.encoding, count=extent.encoded_images)
    for n, d in extent.scored:
        by_name[f"score {n}"] = partial(comparisons.scoring, n=n, d=d)
    if extent.ablation_batch is not None:
        by_name["choices"] = partial(
            ablations.measure, size=extent.size, side=ablation_side, batch=extent.ablation_batch
        )
    by_name["growth"] = partial(growth.measure, repeats=extent.growth_repeats, out=out)
    if extent.launch_batch is not None:
        by_name["launches"] = partial(
            comparisons.launch_bounds, batch=extent.launch_batch, **sampled
        )
    return by_name
