"""The stages of an image's way: a training step, drawing, encoding, scoring, each against what a
user would otherwise run.
"""

import io
from collections.abc import Iterator

import numpy as np
import torch
from PIL import Image
from torchmetrics.image.fid import FrechetInceptionDistance

from benchmarks.core.store import seeded
from benchmarks.frozen.autoencoder import load_latent_space, shipped_codebook_size
from benchmarks.images import procedural
from benchmarks.images.decode import to_pixels
from benchmarks.perf import baselines, bounds
from benchmarks.perf.bench import (
    CLASSES,
    Bench,
    batch_by_batch,
    batches,
    compose,
    drawing,
    generator,
    random_latents,
)
from benchmarks.stages.model import forward_macs, on_meta, sampling_macs
from benchmarks.stages.train import build_train_state
from metrics import speed
from metrics.frechet import frechet_distance
from models.autoregressive import Autoregressive
from models.generator import Batch


def training(bench: Bench, name: str, size: str, side: int, batch: int, *, compiled: bool) -> None:
    """Whole training steps, batch included, `compiled` ones too, against eager float32 of the same
    network and, for DiT, diffusers' own.
    """
    mine, cfg = generator(name, size, side, bench.device)
    data = random_latents(mine.latent_shape, shipped_codebook_size(), bench.device)
    state, steps = build_train_state(mine, cfg.train, 1e-4, bench.device), batches(data, batch)
    calls = {"ours": lambda: state.step(next(steps), seeded("noise", 0))}
    plain, _ = generator(name, size, side, bench.device)
    calls["eager float32"] = baselines.eager_step(plain.train(), batches(data, batch))
    if name == "dit":
        shape = {k: cfg.model.denoiser[k] for k in ("width", "depth", "heads")}
        theirs = baselines.DiffusersDiT(mine.latent_shape, CLASSES, **shape).to(bench.device)
        calls["diffusers DiT, bf16 autocast"] = baselines.eager_step(
            theirs.train(), batches(data, batch), autocast=True
        )
        eager, _ = generator(name, size, side, bench.device)
        calls["eager float32, DataLoader that decodes and encodes"] = baselines.eager_step(
            eager.train(), _decoding(side, batch, bench.device)
        )
    if compiled:
        quicker = build_train_state(
            generator(name, size, side, bench.device)[0],
            compose("train.compile=true").train,
            1e-4,
            bench.device,
        )
        calls["ours, compiled"] = lambda: quicker.step(next(steps), seeded("noise", 0))
    flops = 3 * 2 * forward_macs(on_meta(mine)) * batch
    named = dict(model=name, family=cfg.model.family, size=size, batch=batch, dtype="bf16")
    step = bench.compare(f"train {side}x{side}", calls, batch, flops, **named).get(
        "ours", float("nan")
    )
    fetch = speed.median_seconds(lambda: next(steps), bench.device, repeats=20)
    bench.rows.append(
        {
            "stage": f"input path {side}x{side}",
            "role": "ours",
            **named,
            "images_per_second": batch / fetch,
        }
    )
    print(f"  the input path takes {fetch / step:.2%} of a step", flush=True)


def _decoding(side: int, batch: int, device: torch.device) -> Iterator[Batch]:
    """Baseline (a2)'s input: PNGs of the pictures whose latents are side x side, through the
    shipped autoencoder each time.
    """
    pictures, _ = procedural.generate(4 * batch, 32, seed=0)
    files = []
    for picture in pictures:
        file = io.BytesIO()
        Image.fromarray(picture.transpose(1, 2, 0)).resize((4 * side, 4 * side)).save(
            file, format="PNG"
        )
        files.append(file.getvalue())
    shipped = load_latent_space(compose().autoencoder, None, cache=".cache", device=device).to(
        device
    )

    @torch.inference_mode()
    def encode(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        latents = shipped.autoencoder.encode(images.to(device))
        return latents.clone(), shipped.codebook.tokenize(latents).clone()

    return baselines.decoding_batches(
        files, lambda file: to_pixels(Image.open(io.BytesIO(file)), 4 * side), encode, batch, device
    )


def sampling_tokens(bench: Bench, size: str, side: int, batch: int) -> None:
    """The raster model's cached sampling against `generate()` of transformers' model of the same
    shape; any-order at fewer steps.
    """
    mine, cfg = generator("ar", size, side, bench.device)
    labels = torch.arange(batch, device=bench.device) % CLASSES
    shape = {k: cfg.model[k] for k in ("width", "depth", "heads", "mlp")}
    theirs = baselines.llama(mine.tokens, shipped_codebook_size(), **shape).to(bench.device)

    def generate() -> None:
        with torch.autocast(bench.device.type, torch.bfloat16):
            baselines.generate(theirs, labels, mine.tokens)

    named = dict(family="ar", size=size, batch=batch, dtype="bf16")
    flops = 2 * sampling_macs(on_meta(mine), mine.tokens, 1.0) * batch
    stage = f"sample {mine.tokens} tokens"
    with batch_by_batch(mine.eval(), labels, bench.device) as draw:
        calls = {"ours": lambda: draw(mine.tokens), "generate()": generate}
        seconds = bench.compare(stage, calls, batch, flops, model="ar", **named)
        held_against_bounds(bench, mine, f"ar {size} {batch}", batch, seconds)
    anyhow, _ = generator("ar_any", size, side, bench.device)
    few = min(32, mine.tokens // 2)
    with batch_by_batch(anyhow.eval(), labels, bench.device) as draw_any:
        calls = {
            f"ours, {few} steps": lambda: draw_any(few),
            f"{mine.tokens} steps": lambda: draw_any(mine.tokens),
        }
        bench.compare(stage, calls, batch, model="ar_any", **named)


def held_against_bounds(
    bench: Bench, model: Autoregressive, about: str, batch: int, seconds: dict[str, float]
) -> None:
    """What share of the memory's speed a raster model's decoding has, on CUDA; see `bounds.py`."""
    if "ours" not in seconds:
        return
    if "generate()" in seconds:
        bench.figures[f"{about} times generate()"] = seconds["generate()"] / seconds["ours"]
    if bench.device.type != "cuda" and not bench.rehearse:  # a CPU has neither bound in this form
        return
    numbers = 2**20 if bench.rehearse else bounds.COPIED
    bench.figures["bytes per second of a copy"] = speed_of_memory = bounds.bandwidth(
        bench.device, numbers
    )
    bench.figures["seconds per launch"] = bounds.launch_seconds(bench.device)
    bench.figures[f"{about} share of memory bound"] = (
        bounds.decoding_bytes(model, batch) / speed_of_memory / seconds["ours"]
    )
    bench.figures[f"{about} seconds"] = seconds["ours"]


def launch_bounds(bench: Bench, size: str, side: int, batch: int) -> None:
    """What share of the launches' speed that decoding has. Last of all: a profiler may slow down
    what is timed after it.
    """
    model, _ = generator("ar", size, side, bench.device)
    about, labels = f"ar {size} {batch}", torch.arange(batch, device=bench.device) % CLASSES
    if f"{about} seconds" not in bench.figures:
        return
    draw = drawing(
        model.eval(), labels, bench.device
    )  # not kept, so that every kernel is launched by itself
    draw(model.tokens)
    bench.figures[f"{about} kernels"] = count = bounds.kernels(
        lambda: draw(model.tokens), bench.device
    )
    seconds, launch = bench.figures[f"{about} seconds"], bench.figures["seconds per launch"]
    bench.figures[f"{about} share of launch bound"] = count * launch / seconds


def sampling_diffusion(
    bench: Bench, name: str, size: str, side: int, batch: int, steps: int = 8
) -> None:
    """Diffusion sampling against the bare network calls it makes and, for DiT, diffusers' network
    in its pipelines' loop.
    """
    mine, cfg = generator(name, size, side, bench.device)
    labels = torch.arange(batch, device=bench.device) % CLASSES
    x, t = (
        torch.randn(batch, *mine.latent_shape, device=bench.device),
        torch.full((batch,), 500.0, device=bench.device),
    )

    @torch.inference_mode()
    def bare() -> None:
        with torch.autocast(bench.device.type, torch.bfloat16):  # its weights are cast, as ours
            for _ in range(steps):
                mine.denoiser(x, t, labels)

    calls = {"bare network calls": bare}
    if name == "dit":
        shape = {k: cfg.model.denoiser[k] for k in ("width", "depth", "heads")}
        theirs = baselines.DiffusersDiT(mine.latent_shape, CLASSES, **shape).to(bench.device).eval()

        def pipeline() -> None:
            with torch.autocast(bench.device.type, torch.bfloat16):
                baselines.pipeline_loop(theirs.denoise, mine.latent_shape, labels, steps)

        calls["diffusers' loop and DiT"] = pipeline
    flops = 2 * sampling_macs(on_meta(mine), steps, 1.0) * batch
    named = dict(model=name, family=cfg.model.family, size=size, batch=batch, dtype="bf16")
    with batch_by_batch(mine.eval(), labels, bench.device) as draw:
        calls = {"ours": lambda: draw(steps)} | calls
        bench.compare(f"sample {steps} steps", calls, batch, flops, **named)


def encoding(bench: Bench, count: int) -> None:
    """Pictures at 64 px to latents and tokens, mirror images included."""
    pictures = torch.from_numpy(procedural.generate(count, 64, seed=0)[0]).to(bench.device)
    shipped = load_latent_space(
        compose().autoencoder, None, cache=".cache", device=bench.device
    ).to(bench.device)

    @torch.inference_mode()
    def encode() -> None:
        for part in pictures.split(shipped.at_once(64)):
            shipped.codebook.tokenize(shipped.autoencoder.encode(torch.cat([part, part.flip(3)])))

    bench.compare(
        "encode 64 px",
        {"ours": encode},
        count,
        model="autoencoder",
        family=None,
        size=None,
        batch=count,
        dtype="fp32",
    )


class _AsFeatures(torch.nn.Module):
    """Lets torchmetrics' FID take (N, d, 1, 1) 'pictures' as features."""

    def __init__(self, dim: int):
        super().__init__()
        self.num_features = dim

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(1).float()


def scoring(bench: Bench, n: int, d: int = 2048) -> None:
    """The Fréchet distance of two sets of features, covariances included, against a matrix square
    root and torchmetrics.
    """
    rng = np.random.default_rng(0)
    real, fake = (
        np.maximum(rng.standard_normal((n, d), dtype=np.float32) + shift, 0) for shift in (0, 0.1)
    )
    tensors = [torch.from_numpy(x) for x in (real, fake)]

    def theirs() -> None:
        metric = FrechetInceptionDistance(
            feature=_AsFeatures(d), normalize=True, input_img_size=(d, 1, 1)
        )
        for x, is_real in zip(tensors, (True, False), strict=True):
            metric.update(x[:, :, None, None], real=is_real)
        metric.compute()

    calls = {"ours": lambda: frechet_distance(*tensors), "torchmetrics FID": theirs}
    calls["scipy.linalg.sqrtm"] = lambda: baselines.sqrtm_distance(
        real.astype(float), fake.astype(float)
    )
    bench.compare(
        f"fd N={n} d={d}", calls, n, model="features", family=None, size=None, batch=n, dtype="fp64"
    )
