"""What `perf` measures with: calls in turns on one machine, models of a configuration, latents of
nothing.
"""

import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch

from benchmarks.core.settings import compose
from benchmarks.frozen.autoencoder import shipped_codebook_size
from benchmarks.frozen.latents import LatentSet
from benchmarks.stages.model import build_model, latents_of, place_on
from benchmarks.stages.precision import bf16_weights
from metrics import speed
from models.codebook import Codebook
from models.generator import Batch, GenerativeModel

COLUMNS = [
    "stage",
    "role",
    "model",
    "family",
    "size",
    "batch",
    "dtype",
    "images_per_second",
    "utilisation",  # of `ceiling` below, not of metrics.speed.ceiling_flops as in results.csv
    "baseline",
    "ratio",
    "peak_memory_mb",
]
PRECISION = "bf16"  # of our own networks
CLASSES = 100
LEAST = 0.3  # seconds of a turn; shorter calls are repeated
TURNS, QUICK_TURNS = 7, 3
WARMUPS, QUICK_WARMUPS = 2, 1


@dataclass
class Timings:
    """Calls measured in turns."""

    seconds: dict[str, list[float]]  # of one call, by its name: a figure a turn
    peaks: dict[str, float]  # MiB, by name; on CUDA only
    ceilings: list[float]  # FLOP/s, a figure a turn; empty where nobody asked

    def ratios(self, name: str) -> dict[str, list[float]]:
        """How many times as fast `name` is as each other call, a figure a turn."""
        own = self.seconds[name]
        return {
            other: [theirs / ours for ours, theirs in zip(own, seconds, strict=True)]
            for other, seconds in self.seconds.items()
            if other != name
        }


@dataclass
class Bench:
    """The machine, how long to measure, and the rows so far."""

    device: torch.device
    quick: bool
    ceiling: Callable[[], float]  # FLOP/s, measured now
    failed: list[str] = field(default_factory=list)  # calls that could not be measured, and why
    rehearse: bool = False  # everything as small as it can be, to see that it runs
    rows: list[dict[str, Any]] = field(default_factory=list)
    ceilings: dict[str, list[float]] = field(default_factory=dict)  # least and most FLOP/s by stage
    # least and most of the turns, by what is compared
    ratios: dict[str, list[float]] = field(default_factory=dict)
    # what is no row: bandwidth, launches, fractions of bounds
    figures: dict[str, float] = field(default_factory=dict)

    def compare(
        self,
        stage: str,
        calls: dict[str, Callable[[], Any]],
        images: int,
        flops: float = 0,
        **columns: Any,
    ) -> dict[str, float]:
        """Measure calls in turns, `ours...` and what they are compared with, and add their rows.

        Returns median seconds by name, without calls that failed. `images` and `flops` are of one
        call; without `flops` there is no utilisation. `columns` are the same in every row.
        """
        speed.free_memory()
        described = [columns.get(key) for key in ("model", "size", "batch")]
        about = " ".join(str(value) for value in described if value)
        timings = self._in_turns(calls, with_ceiling=bool(flops))
        best = None  # FLOP/s of the machine at its best within these turns
        if timings.ceilings:
            least, best = min(timings.ceilings), max(timings.ceilings)
            self.ceilings[f"{stage} {about}"] = [least, best]
            line = f"{stage} {about}: ceiling {least / 1e9:.4g} to {best / 1e9:.4g} GFLOP/s"
            print(line, flush=True)
        medians = {name: statistics.median(turns) for name, turns in timings.seconds.items()}
        for name, seconds in medians.items():
            row = columns | {
                "stage": stage,
                "images_per_second": images / seconds,
                "peak_memory_mb": timings.peaks.get(name),
                "utilisation": flops / seconds / best if best else None,
            }
            self._add(name, row, timings.ratios(name), about)
        return medians

    def _in_turns(self, calls: dict[str, Callable[[], Any]], *, with_ceiling: bool) -> Timings:
        """Every call once a turn, a short one several times, so that a drifting clock hits all.

        The order rotates: what comes after a large call finds other caches than what comes first.
        """
        warm = self._warm_up(calls)
        names = list(warm)
        turns = QUICK_TURNS if self.quick else TURNS
        if self.device.type == "cuda" and sum(warm.values()) > 1:
            turns = QUICK_TURNS  # a GPU's clock is steady, and its minutes are dear
        timings = Timings({name: [] for name in names}, {}, [])
        for turn in range(turns if names else 0):
            if with_ceiling:
                timings.ceilings.append(self.ceiling())
            first = turn % len(names)
            for name in names[first:] + names[:first]:
                times = 1 if self.quick else max(1, math.ceil(LEAST / warm[name]))
                speed.reset_peak_memory(self.device)
                timings.seconds[name].append(self._seconds(calls[name], times))
                # elsewhere it is the process's, which holds all that is compared
                if self.device.type == "cuda":
                    peak = speed.peak_memory_mb(self.device)
                    timings.peaks[name] = max(timings.peaks.get(name, 0), peak)
        return timings

    def _seconds(self, call: Callable[[], Any], times: int) -> float:
        """Mean seconds of a call that is made `times` times without waiting in between."""

        def repeated() -> None:
            for _ in range(times):
                call()

        return speed.timed(repeated, self.device)[1] / times

    def _warm_up(self, calls: dict[str, Callable[[], Any]]) -> dict[str, float]:
        """Least seconds of a few calls, by name.

        One that fails, for want of memory or a compiler say, is left out, with a line: the others
        still count.
        """
        warmups = QUICK_WARMUPS if self.quick else WARMUPS
        least = {}
        for name, call in calls.items():
            try:
                least[name] = min(self._seconds(call, 1) for _ in range(warmups))
            except Exception as error:
                lines = str(error).strip().splitlines() or [""]
                reason = f"{name}: {type(error).__name__}: {lines[0][:200]}"
                print(f"left out: {reason}", flush=True)
                self.failed.append(reason)
                speed.free_memory()
        return least

    def _add(
        self, name: str, row: dict[str, Any], ratios: dict[str, list[float]], about: str
    ) -> None:
        """The rows of a call: of ours one for each baseline, of a baseline one.

        What is compiled, or float32, says so in its dtype.
        """
        ours = name.startswith("ours")
        row["role"] = "ours" if ours else "baseline"
        if name.startswith("eager float32"):
            row["dtype"] = "fp32"
        if name.endswith(", compiled"):
            row["dtype"] += ", compiled"
        line = (
            f"{row['stage']} {about} {row['role']} {name}: {row['images_per_second']:.4g} images/s"
        )

        # a second way of ours is compared with the first, but the first not with the second
        others = {
            other: turns
            for other, turns in ratios.items()
            if other == "ours" or not other.startswith("ours")
        }
        if not ours or not others:
            self.rows.append(row | {"baseline": None if ours else name, "ratio": None})
            print(line, flush=True)
            return
        for baseline, turns in others.items():
            ratio, least, most = statistics.median(turns), min(turns), max(turns)
            self.rows.append(row | {"baseline": baseline, "ratio": ratio})
            self.ratios[f"{row['stage']} {about}: {name} / {baseline}"] = [least, most]
            compared = f"{ratio:.3g} times {baseline} ({least:.3g} to {most:.3g})"
            print(f"{line}, {compared}", flush=True)


def ceiling(device: torch.device, *, rehearse: bool = False) -> float:
    """FLOP/s of the better of two square matrix products, each the better of two, in the type that
    this machine multiplies fastest.

    Taken anew in every turn, unlike `metrics.speed.ceiling_flops`, which is taken once a process:
    a machine's clock drifts by more than what is compared here. On CUDA the products are larger,
    as launches would weigh in small ones; in a rehearsal they are small, and mean nothing.
    """
    sides = (2048, 4096)
    if device.type == "cuda":
        sides = (4096, 8192)
    if rehearse:
        sides = (128, 256)
    rates = speed.product_flops(device)
    fastest = max(rates, key=lambda dtype: rates[dtype])
    # a product of over a second would make a slow machine seem to hang
    short = [side for side in sides if 2 * side**3 / rates[fastest] < 1] or [512]
    reached = []
    for side in short:
        a = torch.randn(side, side, device=device).to(fastest)
        a @ a  # the first product of a shape chooses a kernel
        seconds = min(speed.timed(lambda a=a: a @ a, device)[1] for _ in range(2))
        reached.append(2 * side**3 / seconds)
    return max(reached)


def random_latents(
    shape: tuple[int, int, int], codebook_size: int, device: torch.device, count: int = 2048
) -> LatentSet:
    """`count` latents (C, H, W) and tokens of nothing: speed does not depend on their values."""
    rng = torch.Generator().manual_seed(0)
    token_shape = (2, count, shape[1] * shape[2])  # two: the images and their mirror images
    tokens = torch.randint(codebook_size, token_shape, generator=rng, dtype=torch.int32)
    latents = torch.randn(2, count, *shape, generator=rng)
    labels = torch.arange(count) % CLASSES
    mean, std = torch.zeros(shape[0]), torch.ones(shape[0])
    return LatentSet(latents, tokens, labels, mean, std, "").to(device)


def generator(
    name: str, size: str, side: int, device: torch.device, overrides: Sequence[str] = ()
) -> tuple[GenerativeModel, Any]:
    """An untrained model of a configuration on side x side latents of those that it is for, with
    that configuration.
    """
    cfg = compose(f"model={name}", f"size={size}", f"train.precision={PRECISION}", *overrides)
    shape = latents_of(name, side)
    model = build_model(cfg.model, shape, CLASSES, Codebook(codebook_size(cfg)))
    return place_on(model, device), cfg


def codebook_size(cfg: Any) -> int:
    """Entries of the codebook that a configuration of the shipped autoencoder has."""
    return cfg.autoencoder.codebook_size or shipped_codebook_size()


def network_columns(cfg: Any, batch: int) -> dict[str, Any]:
    """The columns of a network of configuration `cfg` at a batch."""
    head = cfg.model.get("head")
    return {
        "model": f"{cfg.model.name}, head {head}" if head else cfg.model.name,
        "family": cfg.model.family,
        "size": cfg.size.name,
        "batch": batch,
        "dtype": cfg.train.precision,
    }


def repeating_labels(batch: int, device: torch.device) -> torch.Tensor:
    """(batch,) labels, one class after the other."""
    return torch.arange(batch, device=device) % CLASSES


def batches(data: LatentSet, size: int) -> Iterator[Batch]:
    """Training batches without end, as a training with seed 0 takes them."""
    step = 0
    while True:
        yield data.batch(0, step, size)
        step += 1


def single_batch_sampler(
    model: GenerativeModel, labels: torch.Tensor, device: torch.device, *, cast: bool = True
) -> Callable[[int], None]:
    """Samples a batch in the given number of steps, as `stages.sample` does for one batch alone.

    Nothing is kept between calls. Weights are cast once within each, or, with `cast` false, by
    autocast wherever they are used.
    """

    def sample(steps: int) -> None:
        weights = bf16_weights(model, "bf16") if cast else nullcontext()
        with weights, torch.autocast(device.type, torch.bfloat16):
            model.sample(labels, steps=steps, guidance=1.0, rng=torch.Generator())

    return sample


@contextmanager
def many_batch_sampler(
    model: GenerativeModel, labels: torch.Tensor, device: torch.device
) -> Iterator[Callable[[int], None]]:
    """Samples one batch of many, as `stages.sample` does.

    What it prepares once for all of them (cast weights, buffers, graphs) is kept between calls.
    """

    def sample(steps: int) -> None:
        with torch.autocast(device.type, torch.bfloat16):
            model.sample(labels, steps=steps, guidance=1.0, rng=torch.Generator())

    with bf16_weights(model, "bf16"), model.fixed_weights():
        yield sample
