"""`make perf`: how near each stage comes to the machine's ceiling, and how it compares with what a user would otherwise run.

Writes results/perf/perf.csv, and perf.json: machine, versions, each stage's ceiling. A row of role `ours` is the suite's own code;
`baseline` names what `ratio` (ours over baseline, in speed) compares it with, measured in turns with it; rows of role `baseline` are those.
`utilisation` is counted FLOP/s over the ceiling: the better of 2048 and 4096 square bf16 matrix products, the best of those taken in turns
with the stage, because a machine's clock drifts. `--quick` is shorter in every stage, for two cores, and compiles nothing. How cost grows is
`benchmarks/growth.py`: growth.csv and growth.png.
"""

import argparse
import io
import shutil
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from hydra import compose, initialize_config_dir
from PIL import Image
from torchmetrics.image.fid import FrechetInceptionDistance

from benchmarks import baselines, build, growth, records, sample, space, train
from benchmarks.latents import LatentSet
from benchmarks.pictures import procedural
from benchmarks.pictures.decoding import to_pixels
from benchmarks.report import markdown
from benchmarks.store import atomic_file, seeded, write_json
from metrics import speed
from metrics.frechet import frechet_distance
from models.generator import Batch, Generator

COLUMNS = ["stage", "role", "model", "family", "size", "batch", "dtype", "images_per_second", "utilisation", "baseline", "ratio"]
COLUMNS += ["peak_memory_mb"]
CLASSES = 100


@dataclass
class Bench:
    """The machine, how long to measure, and the rows so far."""

    device: torch.device
    quick: bool
    ceiling: Callable[[], float]  # FLOP/s, measured now
    rows: list[dict[str, Any]] = field(default_factory=list)
    ceilings: dict[str, list[float]] = field(default_factory=dict)  # least and most FLOP/s by stage

    def compare(self, stage: str, calls: dict[str, Callable[[], Any]], images: int, flops: float = 0, **named: Any) -> None:
        """Rows of calls measured in turns: `ours...`, and what they are compared with. `images` and `flops` are of one call."""
        speed.free_memory()
        repeats, seconds, peaks, tops = 3 if self.quick else 7, {name: [] for name in calls}, {}, []
        for call in calls.values():
            call()
        for _ in range(repeats):
            tops += [self.ceiling()] if flops else []
            for name, call in calls.items():
                speed.reset_peak_memory(self.device)
                seconds[name].append(speed.timed(call, self.device)[1])
                peaks[name] = max(peaks.get(name, 0), speed.peak_memory_mb(self.device))
        if flops:
            self.ceilings[f"{stage} {named.get('model', '')}"] = [min(tops), max(tops)]
            print(f"{stage} {named.get('model', '')}: ceiling {min(tops) / 1e9:.4g} to {max(tops) / 1e9:.4g} GFLOP/s", flush=True)
        median = {name: statistics.median(found) for name, found in seconds.items()}
        for name in calls:
            row = named | {"images_per_second": images / median[name], "peak_memory_mb": peaks[name]}
            row |= {"stage": stage, "utilisation": flops / median[name] / max(tops) if flops else None}
            self._add(name, row, {other: median[other] / median[name] for other in calls if other != name})

    def _add(self, name: str, row: dict[str, Any], ratios: dict[str, float]) -> None:
        """The rows of a call: of ours one for each baseline, of a baseline one. What is compiled says so beside its dtype."""
        ours = name.startswith("ours")
        row |= {"role": "ours" if ours else "baseline", "dtype": row["dtype"] + ", compiled" * name.endswith(", compiled")}
        others = {n: r for n, r in ratios.items() if n == "ours" or not n.startswith("ours")} if ours else {name: None}
        for baseline, ratio in (others or {None: None}).items():
            self.rows.append(row | {"baseline": baseline, "ratio": ratio})
            compared = f", {ratio:.2f} times {baseline}" if ratio else ""
            print(
                f"{row['stage']} {row.get('model', '')} {row['role']} {name}: {row['images_per_second']:.4g} images/s{compared}", flush=True
            )


def ceiling(device: torch.device) -> float:
    """FLOP/s of the better of two square bf16 matrix products, each the better of two."""
    found = []
    for size in (2048, 4096):
        a = torch.randn(size, size, device=device).bfloat16()
        a @ a
        found.append(2 * size**3 / min(speed.timed(lambda a=a: a @ a, device)[1] for _ in range(2)))
    return max(found)


def config(*overrides: str) -> Any:
    with initialize_config_dir(str(records.ROOT / "conf"), version_base="1.3"):
        return compose("config", list(overrides))


def made_up(shape: tuple[int, int, int], codebook_size: int, device: torch.device, count: int = 2048) -> LatentSet:
    """Latents and tokens of nothing: speed does not depend on their values."""
    rng = torch.Generator().manual_seed(0)
    tokens = torch.randint(codebook_size, (2, count, shape[1] * shape[2]), generator=rng, dtype=torch.int32)
    latents, labels = torch.randn(2, count, *shape, generator=rng), torch.arange(count) % CLASSES
    return LatentSet(latents, tokens, labels, torch.zeros(shape[0]), torch.ones(shape[0]), "").to(device)


def generator(name: str, size: str, side: int, device: torch.device) -> tuple[Generator, Any]:
    """An untrained model of a configuration on 4 x side x side latents, with that configuration."""
    cfg = config(f"model={name}", f"size={size}")
    book = space.load_codebook(space.SHIPPED / "codebook.safetensors")
    return build.generator(cfg.model, (4, side, side), CLASSES, book).to(device), cfg


def batches(data: LatentSet, size: int) -> Iterator[Batch]:
    step = 0
    while True:
        yield data.batch(0, step, size)
        step += 1


def training(bench: Bench, name: str, size: str, side: int, batch: int, *, compiled: bool) -> None:
    """Whole training steps, batch included, `compiled` ones too, against eager float32 of the same network and, for DiT, diffusers' own."""
    mine, cfg = generator(name, size, side, bench.device)
    data = made_up(mine.latent_shape, space.shipped_codebook_size(), bench.device)
    kit, steps = train.equip(mine, cfg.train, 1e-4, bench.device), batches(data, batch)
    calls = {"ours": lambda: kit.step(next(steps), seeded("noise", 0))}
    plain, _ = generator(name, size, side, bench.device)
    calls["eager float32"] = baselines.eager_step(plain.train(), batches(data, batch))
    if name == "dit":
        shape = {k: cfg.model.denoiser[k] for k in ("width", "depth", "heads")}
        theirs = baselines.DiffusersDiT(mine.latent_shape, CLASSES, **shape).to(bench.device)
        calls["diffusers DiT, bf16 autocast"] = baselines.eager_step(theirs.train(), batches(data, batch), autocast=True)
        eager, _ = generator(name, size, side, bench.device)
        calls["eager float32, DataLoader that decodes and encodes"] = baselines.eager_step(
            eager.train(), _decoding(side, batch, bench.device)
        )
    if compiled:
        quicker = train.equip(generator(name, size, side, bench.device)[0], config("train.compile=true").train, 1e-4, bench.device)
        calls["ours, compiled"] = lambda: quicker.step(next(steps), seeded("noise", 0))
    flops = 3 * 2 * build.forward_macs(build.on_meta(mine)) * batch
    named = dict(model=name, family=cfg.model.family, size=size, batch=batch, dtype="bf16")
    bench.compare(f"train {side}x{side}", calls, batch, flops, **named)
    fetch = speed.median_seconds(lambda: next(steps), bench.device, repeats=20)
    step = batch / next(
        row["images_per_second"]
        for row in bench.rows
        if row["stage"] == f"train {side}x{side}" and (row["model"], row["size"]) == (name, size)
    )
    bench.rows.append({"stage": f"input path {side}x{side}", "role": "ours", **named, "images_per_second": batch / fetch})
    print(f"  the input path takes {fetch / step:.2%} of a step", flush=True)


def _decoding(side: int, batch: int, device: torch.device) -> Iterator[Batch]:
    """Baseline (a2)'s input: PNGs of the pictures whose latents are side x side, through the shipped autoencoder each time."""
    pictures, _ = procedural.draw(4 * batch, 32, seed=0)
    files = []
    for picture in pictures:
        file = io.BytesIO()
        Image.fromarray(picture.transpose(1, 2, 0)).resize((4 * side, 4 * side)).save(file, format="PNG")
        files.append(file.getvalue())
    shipped = space.load(config().autoencoder, None, cache=".cache", device=device)

    @torch.inference_mode()
    def encode(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        latents = shipped.autoencoder.encode(images.to(device))
        return latents.clone(), shipped.codebook.tokenize(latents).clone()

    return baselines.decoding_batches(files, lambda file: to_pixels(Image.open(io.BytesIO(file)), 4 * side), encode, batch, device)


def sampling_tokens(bench: Bench, size: str, side: int, batch: int) -> None:
    """The raster model's cached sampling against `generate()` of transformers' model of the same shape; any-order at fewer steps."""
    mine, cfg = generator("ar", size, side, bench.device)
    labels = torch.arange(batch, device=bench.device) % CLASSES
    shape = {k: cfg.model[k] for k in ("width", "depth", "heads", "mlp")}
    theirs = baselines.llama(mine.tokens, space.shipped_codebook_size(), **shape).to(bench.device)
    draw = _drawing(mine.eval(), labels, bench.device)

    def generate() -> None:
        with torch.autocast(bench.device.type, torch.bfloat16):
            baselines.generate(theirs, labels, mine.tokens)

    named = dict(family="ar", size=size, batch=batch, dtype="bf16")
    flops = 2 * build.sampling_macs(build.on_meta(mine), mine.tokens, 1.0) * batch
    stage = f"sample {mine.tokens} tokens"
    bench.compare(stage, {"ours": lambda: draw(mine.tokens), "generate()": generate}, batch, flops, model="ar", **named)
    anyhow, _ = generator("ar_any", size, side, bench.device)
    draw_any, few = _drawing(anyhow.eval(), labels, bench.device), min(32, mine.tokens // 2)
    calls = {f"ours, {few} steps": lambda: draw_any(few), f"{mine.tokens} steps": lambda: draw_any(mine.tokens)}
    bench.compare(stage, calls, batch, model="ar_any", **named)


def _drawing(model: Generator, labels: torch.Tensor, device: torch.device) -> Callable[[int], Any]:
    """As `sample.draw` does; weights are cast within each call, not once for all batches."""

    def draw(steps: int) -> None:
        with sample.cast_once(model, "bf16"), torch.autocast(device.type, torch.bfloat16):
            model.sample(labels, steps=steps, guidance=1.0, rng=torch.Generator())

    return draw


def sampling_diffusion(bench: Bench, name: str, size: str, side: int, batch: int, steps: int = 8) -> None:
    """Diffusion sampling against the bare network calls it makes and, for DiT, diffusers' network in its pipelines' loop."""
    mine, cfg = generator(name, size, side, bench.device)
    labels = torch.arange(batch, device=bench.device) % CLASSES
    draw = _drawing(mine.eval(), labels, bench.device)
    x, t = torch.randn(batch, *mine.latent_shape, device=bench.device), torch.full((batch,), 500.0, device=bench.device)

    @torch.inference_mode()
    def bare() -> None:
        with sample.cast_once(mine, "bf16"), torch.autocast(bench.device.type, torch.bfloat16):
            for _ in range(steps):
                mine.denoiser(x, t, labels)

    calls = {"ours": lambda: draw(steps), "bare network calls": bare}
    if name == "dit":
        shape = {k: cfg.model.denoiser[k] for k in ("width", "depth", "heads")}
        theirs = baselines.DiffusersDiT(mine.latent_shape, CLASSES, **shape).to(bench.device).eval()

        def pipeline() -> None:
            with torch.autocast(bench.device.type, torch.bfloat16):
                baselines.pipeline_loop(theirs.denoise, mine.latent_shape, labels, steps)

        calls["diffusers' loop and DiT"] = pipeline
    flops = 2 * build.sampling_macs(build.on_meta(mine), steps, 1.0) * batch
    named = dict(model=name, family=cfg.model.family, size=size, batch=batch, dtype="bf16")
    bench.compare(f"sample {steps} steps", calls, batch, flops, **named)


def encoding(bench: Bench, count: int) -> None:
    """Pictures at 64 px to latents and tokens, mirror images included."""
    pictures = torch.from_numpy(procedural.draw(count, 64, seed=0)[0]).to(bench.device)
    shipped = space.load(config().autoencoder, None, cache=".cache", device=bench.device)

    @torch.inference_mode()
    def encode() -> None:
        for part in pictures.split(shipped.at_once(64)):
            shipped.codebook.tokenize(shipped.autoencoder.encode(torch.cat([part, part.flip(3)])))

    bench.compare("encode 64 px", {"ours": encode}, count, model="autoencoder", family=None, size=None, batch=count, dtype="fp32")


class _AsFeatures(torch.nn.Module):
    """Lets torchmetrics' FID take (N, d, 1, 1) 'pictures' as features."""

    def __init__(self, dim: int):
        super().__init__()
        self.num_features = dim

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(1).float()


def scoring(bench: Bench, n: int, d: int = 2048) -> None:
    """The Fréchet distance of two sets of features, covariances included, against a matrix square root and torchmetrics."""
    rng = np.random.default_rng(0)
    real, fake = (np.maximum(rng.standard_normal((n, d), dtype=np.float32) + shift, 0) for shift in (0, 0.1))
    tensors = [torch.from_numpy(x) for x in (real, fake)]

    def theirs() -> None:
        metric = FrechetInceptionDistance(feature=_AsFeatures(d), normalize=True, input_img_size=(d, 1, 1))
        for x, is_real in zip(tensors, (True, False), strict=True):
            metric.update(x[:, :, None, None], real=is_real)
        metric.compute()

    calls = {"ours": lambda: frechet_distance(*tensors), "torchmetrics FID": theirs}
    calls["scipy.linalg.sqrtm"] = lambda: baselines.sqrtm_distance(real.astype(float), fake.astype(float))
    bench.compare(f"fd N={n} d={d}", calls, n, model="features", family=None, size=None, batch=n, dtype="fp64")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--size", default="s")
    parser.add_argument("--side", type=int, default=16, help="of the latents")
    parser.add_argument("--batch", type=int, help="of training; 16 on a CPU, 256 on CUDA")
    parser.add_argument("--out", type=Path, default=Path("results/perf"))
    args = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    speed.keep_memory()
    bench = Bench(device, args.quick, partial(ceiling, device))
    print(f"{records.device_name(device)}, torch {torch.__version__}: ceiling {bench.ceiling() / 1e9:.4g} GFLOP/s in bf16", flush=True)
    batch = args.batch or (16 if device.type == "cpu" else 256)
    short = max(4, args.side // 2) if args.quick else args.side
    compiled = not args.quick and (device.type == "cuda" or shutil.which("g++") is not None)
    for name in ("dit", "ar", "unet"):
        training(bench, name, args.size, args.side, batch, compiled=compiled)
        training(bench, name, "xs", 8, 32, compiled=compiled)
    for many in (1, 32):
        sampling_tokens(bench, args.size, short, many)
    for name in ("dit", "unet"):
        sampling_diffusion(bench, name, args.size, short, 32)
    encoding(bench, 500 if args.quick else 2000)
    for n in (1000,) if args.quick else (1000, 5000):
        scoring(bench, n)
    table = pd.DataFrame(bench.rows)[COLUMNS]
    with atomic_file(args.out / "perf.csv") as path:
        table.to_csv(path, index=False)
    write_json(args.out / "perf.json", records.provenance(device) | {"versions": records.versions(), "ceilings_flops": bench.ceilings})
    print("\n".join(markdown(COLUMNS, table.astype(object).where(table.notna(), None).values.tolist())))
    grown = growth.write(growth.points(config, made_up, device, 2 if args.quick else 5), args.out)
    print("\n".join(["", *markdown(grown.columns, grown.values.tolist())]))
    print("\n".join(str(args.out / name) for name in ("perf.csv", "perf.json", "growth.csv", "growth.png")))


if __name__ == "__main__":
    main()
