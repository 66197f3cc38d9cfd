"""The stages of an image's way: a training step, sampling, encoding, scoring, each against what a
user would otherwise run.
"""

import io
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image
from torchmetrics.image.fid import FrechetInceptionDistance

from benchmarks.core.settings import compose
from benchmarks.core.store import seeded
from benchmarks.frozen.autoencoder import LatentSpace, load_latent_space
from benchmarks.frozen.latents import LatentSet
from benchmarks.images import procedural
from benchmarks.images.decode import decode
from benchmarks.perf import baselines, bounds
from benchmarks.perf.bench import (
    CLASSES,
    Bench,
    batches,
    codebook_size,
    generator,
    many_batch_sampler,
    network_columns,
    random_latents,
    repeating_labels,
    single_batch_sampler,
)
from benchmarks.stages.model import forward_macs, on_meta, sampling_macs
from benchmarks.stages.train_state import TrainState, build_train_state
from metrics import speed
from metrics.frechet import frechet_distance
from models.autoregressive import Autoregressive
from models.generator import Batch, GenerativeModel

HEAD = "its head alone"
LR = 1e-4  # of every training here; speed does not depend on it
PIXELS_PER_LATENT = 4  # the shipped autoencoder's factor from latents to images, of each side


def train_step(state: TrainState, steps: Iterator[Batch]) -> None:
    """A whole step of the suite's own training: the next batch, loss, gradient, AdamW, EMA."""
    state.step(next(steps), seeded("noise", 0))


def training(
    bench: Bench,
    name: str,
    size: str,
    side: int,
    batch: int,
    *,
    compiled: bool,
    overrides: Sequence[str] = (),
) -> None:
    """Whole training steps, batch included, `compiled` ones too, against eager float32 of the same
    network and, for DiT, diffusers' own; of a head that is integrated also a step of it alone.

    In the precision that this machine multiplies faster in. `overrides` are of the configuration.
    """
    precision = "bf16" if speed.faster_in_bf16(bench.device) else "fp32"
    fresh = partial(generator, name, size, side, bench.device)
    overrides = [f"train.precision={precision}", *overrides]
    mine, cfg = fresh(overrides)
    data = random_latents(mine.latent_shape, codebook_size(cfg), bench.device)
    steps = batches(data, batch)
    state = build_train_state(mine, cfg.train, LR, bench.device)
    calls: dict[str, Callable[[], Any]] = {"ours": partial(train_step, state, steps)}
    calls["eager float32"] = baselines.eager_step(fresh(overrides)[0].train(), batches(data, batch))
    if name == "dit":
        calls |= _other_dits(mine, cfg, data, batch, bench.device)
    if compiled:
        twin, twin_cfg = fresh([*overrides, "train.compile=true"])
        twin_state = build_train_state(twin, twin_cfg.train, LR, bench.device)
        calls["ours, compiled"] = partial(train_step, twin_state, steps)
    if cfg.model.get("head") == "flow":
        calls[HEAD] = _head_step(mine, cfg, batch, bench.device)
    # 2 FLOPs a MAC; a backward pass costs two forward passes
    flops = 2 * (3 + mine.extra_passes) * forward_macs(on_meta(mine)) * batch
    columns = network_columns(cfg, batch)
    medians = bench.compare(f"train {side}x{side}", calls, batch, flops, **columns)
    for row in bench.rows:  # the FLOPs are of whole steps
        if (row["role"], row.get("baseline")) == ("baseline", HEAD):
            row["utilisation"] = None
    _input_path(bench, side, steps, columns, medians.get("ours", float("nan")))


def _other_dits(
    mine: GenerativeModel, cfg: Any, data: LatentSet, batch: int, device: torch.device
) -> dict[str, Callable[[], Any]]:
    """Steps of diffusers' own DiT, and of one whose images are decoded and encoded each time."""
    shape = {key: cfg.model.denoiser[key] for key in ("width", "depth", "heads")}
    theirs = baselines.DiffusersDiT(mine.latent_shape, CLASSES, **shape).to(device)
    in_bf16 = cfg.train.precision == "bf16"
    name = "diffusers DiT, bf16 autocast" if in_bf16 else "diffusers DiT, float32"
    side = mine.latent_shape[1]
    eager, _ = generator("dit", cfg.size.name, side, device)
    return {
        name: baselines.eager_step(theirs.train(), batches(data, batch), autocast=in_bf16),
        "eager float32, DataLoader that decodes and encodes": baselines.eager_step(
            eager.train(), _decoded_batches(side, batch, device)
        ),
    }


def _head_step(
    model: GenerativeModel, cfg: Any, batch: int, device: torch.device
) -> Callable[[], Any]:
    """The loss and the gradient of the head alone, on hidden states of nothing."""
    head, tokens = model.head, model.tokens
    hidden = torch.randn(batch, tokens, cfg.model.width, device=device, requires_grad=True)
    values = torch.randn(batch, tokens, head.channels, device=device)
    inputs = [each.to(device) for each in head.inputs(batch, tokens, rng=seeded("noise", 0))]
    in_bf16 = cfg.train.precision == "bf16"

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=in_bf16):
            loss = head.error(hidden, values, *inputs).mean()
        torch.autograd.grad(loss, [hidden, *head.parameters()])

    return step


def _input_path(
    bench: Bench, side: int, steps: Iterator[Batch], columns: dict[str, Any], step_seconds: float
) -> None:
    """A row of what making batches takes by itself."""
    seconds = speed.median_seconds(lambda: next(steps), bench.device, repeats=20)
    row = {"stage": f"input path {side}x{side}", "role": "ours"} | columns
    bench.rows.append(row | {"images_per_second": columns["batch"] / seconds})
    print(f"  the input path takes {seconds / step_seconds:.2%} of a step", flush=True)


def shipped_latent_space(device: torch.device) -> LatentSpace:
    """The autoencoder and codebook that come with the suite."""
    cfg = compose("autoencoder.codebook_size=null").autoencoder
    space = load_latent_space(cfg, None, cache=".cache", device=device)
    return space.to(device)


def _decoded_batches(side: int, batch: int, device: torch.device) -> Iterator[Batch]:
    """What a training without cached latents waits for: PNG files decoded, and encoded to
    side x side latents by the shipped autoencoder, each time anew.
    """
    pixels = PIXELS_PER_LATENT * side
    images, _ = procedural.generate(4 * batch, 32, seed=0)
    files = []
    for image in images:
        file = io.BytesIO()
        resized = Image.fromarray(image.transpose(1, 2, 0)).resize((pixels, pixels))
        resized.save(file, format="PNG")
        files.append(file.getvalue())
    space = shipped_latent_space(device)

    def decode_one(file: bytes) -> np.ndarray:
        return decode(io.BytesIO(file), pixels)

    @torch.inference_mode()
    def encode(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        latents = space.autoencoder.encode(images.to(device))
        # clones are ordinary tensors where these are inference ones, which autograd refuses
        return latents.clone(), space.codebook.tokenize(latents).clone()

    return baselines.decoding_batches(files, decode_one, encode, batch, device)


def sampling_tokens(bench: Bench, size: str, side: int, batch: int) -> None:
    """The raster model's cached sampling against `generate()` of transformers' model of the same
    shape; any-order at fewer steps.
    """
    mine, cfg = generator("ar", size, side, bench.device)
    labels = repeating_labels(batch, bench.device)
    shape = {key: cfg.model[key] for key in ("width", "depth", "heads", "mlp")}
    theirs = baselines.llama(mine.tokens, codebook_size(cfg), **shape).to(bench.device)

    def generate() -> None:
        with torch.autocast(bench.device.type, torch.bfloat16):
            baselines.generate(theirs, labels, mine.tokens)

    stage = f"sample {mine.tokens} tokens"
    flops = 2 * sampling_macs(on_meta(mine), mine.tokens, 1.0) * batch
    with many_batch_sampler(mine.eval(), labels, bench.device) as sample:
        calls = {"ours": partial(sample, mine.tokens), "generate()": generate}
        medians = bench.compare(stage, calls, batch, flops, **network_columns(cfg, batch))
        held_against_bounds(bench, mine, f"ar {size} {batch}", batch, medians)

    any_order, any_cfg = generator("ar_any", size, side, bench.device)
    few = min(32, mine.tokens // 2)
    with many_batch_sampler(any_order.eval(), labels, bench.device) as sample:
        calls = {
            f"ours, {few} steps": partial(sample, few),
            f"{mine.tokens} steps": partial(sample, mine.tokens),
        }
        bench.compare(stage, calls, batch, **network_columns(any_cfg, batch))


def held_against_bounds(
    bench: Bench, model: Autoregressive, about: str, batch: int, medians: dict[str, float]
) -> None:
    """What fraction of the memory's speed raster decoding has, on CUDA; see `bounds.py`."""
    if "ours" not in medians:
        return
    seconds = medians["ours"]
    if "generate()" in medians:
        bench.figures[f"{about} times generate()"] = medians["generate()"] / seconds
    if bench.device.type != "cuda" and not bench.rehearse:  # a CPU has neither bound in this form
        return
    numbers = 2**20 if bench.rehearse else bounds.COPIED
    bandwidth = bounds.bandwidth(bench.device, numbers)
    least_seconds = bounds.decoding_bytes(model, batch) / bandwidth
    bench.figures["bytes per second of a copy"] = bandwidth
    bench.figures["seconds per launch"] = bounds.launch_seconds(bench.device)
    bench.figures[f"{about} fraction of memory bound"] = least_seconds / seconds
    bench.figures[f"{about} seconds"] = seconds


def launch_bounds(bench: Bench, size: str, side: int, batch: int) -> None:
    """What fraction of the launches' speed that decoding has.

    The last stage of all: a profiler may slow down what is timed after it.
    """
    about = f"ar {size} {batch}"
    if f"{about} seconds" not in bench.figures:
        return
    model, _ = generator("ar", size, side, bench.device)
    labels = repeating_labels(batch, bench.device)
    # keeps no graph between calls, so that every kernel is launched by itself and can be counted
    sample = single_batch_sampler(model.eval(), labels, bench.device)
    sample(model.tokens)
    count = bounds.kernels(partial(sample, model.tokens), bench.device)
    least_seconds = count * bench.figures["seconds per launch"]
    bench.figures[f"{about} kernels"] = count
    bench.figures[f"{about} fraction of launch bound"] = (
        least_seconds / bench.figures[f"{about} seconds"]
    )


def sampling_diffusion(
    bench: Bench, name: str, size: str, side: int, batch: int, steps: int = 8
) -> None:
    """Diffusion sampling against the bare network calls it makes and, for DiT, diffusers' network
    in its pipelines' loop.
    """
    mine, cfg = generator(name, size, side, bench.device)
    labels = repeating_labels(batch, bench.device)
    x = torch.randn(batch, *mine.latent_shape, device=bench.device)
    t = torch.full((batch,), 500.0, device=bench.device)

    @torch.inference_mode()
    def bare() -> None:
        with torch.autocast(bench.device.type, torch.bfloat16):  # its weights are cast, as ours
            for _ in range(steps):
                mine.denoiser(x, t, labels)

    against: dict[str, Callable[[], Any]] = {"bare network calls": bare}
    if name == "dit":
        shape = {key: cfg.model.denoiser[key] for key in ("width", "depth", "heads")}
        theirs = baselines.DiffusersDiT(mine.latent_shape, CLASSES, **shape).to(bench.device).eval()

        def pipeline() -> None:
            with torch.autocast(bench.device.type, torch.bfloat16):
                baselines.pipeline_loop(theirs.denoise, mine.latent_shape, labels, steps)

        against["diffusers' loop and DiT"] = pipeline
    flops = 2 * sampling_macs(on_meta(mine), steps, 1.0) * batch
    with many_batch_sampler(mine.eval(), labels, bench.device) as sample:
        calls = {"ours": partial(sample, steps)} | against
        stage = f"sample {steps} steps"
        bench.compare(stage, calls, batch, flops, **network_columns(cfg, batch))


def encoding(bench: Bench, count: int) -> None:
    """Images at 64 px to latents and tokens, mirror images included."""
    pixels, _ = procedural.generate(count, 64, seed=0)
    images = torch.from_numpy(pixels).to(bench.device)
    space = shipped_latent_space(bench.device)

    @torch.inference_mode()
    def encode() -> None:
        for batch in images.split(space.at_once(64)):
            both = torch.cat([batch, batch.flip(3)])
            space.codebook.tokenize(space.autoencoder.encode(both))

    columns = {"model": "autoencoder", "family": None, "size": None, "batch": count}
    bench.compare("encode 64 px", {"ours": encode}, count, dtype="fp32", **columns)


class _AsFeatures(torch.nn.Module):
    """Lets torchmetrics' FID take (N, d, 1, 1) 'images' as features."""

    def __init__(self, dim: int):
        super().__init__()
        self.num_features = dim

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(1).float()


def scoring(bench: Bench, n: int, d: int = 2048) -> None:
    """The Fréchet distance of two sets of n features of d numbers, covariances included, against a
    matrix square root and torchmetrics.
    """
    rng = np.random.default_rng(0)
    # clipped at zero, as features behind a ReLU are
    real, fake = (
        np.maximum(rng.standard_normal((n, d), dtype=np.float32) + shift, 0) for shift in (0, 0.1)
    )
    real_features, fake_features = torch.from_numpy(real), torch.from_numpy(fake)

    def theirs() -> None:
        metric = FrechetInceptionDistance(
            feature=_AsFeatures(d), normalize=True, input_img_size=(d, 1, 1)
        )
        metric.update(real_features[:, :, None, None], real=True)
        metric.update(fake_features[:, :, None, None], real=False)
        metric.compute()

    def square_root() -> None:
        baselines.sqrtm_distance(real.astype(float), fake.astype(float))

    calls = {
        "ours": lambda: frechet_distance(real_features, fake_features),
        "torchmetrics FID": theirs,
        "scipy.linalg.sqrtm": square_root,
    }
    columns = {"model": "features", "family": None, "size": None, "batch": n, "dtype": "fp64"}
    bench.compare(f"fd N={n} d={d}", calls, n, **columns)
