"""What `make perf` measures with: calls in turns on one machine, models of a configuration, latents
of nothing.
"""

import math
import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from benchmarks.core.settings import compose
from benchmarks.frozen.autoencoder import SHIPPED_FOLDER, load_codebook
from benchmarks.frozen.latents import LatentSet
from benchmarks.stages.model import build_model, place_on
from benchmarks.stages.sample import bf16_weights
from metrics import speed
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
    "utilisation",
    "baseline",
    "ratio",
]
COLUMNS += ["peak_memory_mb"]
CLASSES = 100
LEAST = 0.3  # seconds of a turn; shorter calls are repeated


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
    ratios: dict[str, list[float]] = field(
        default_factory=dict
    )  # least and most of the turns, by what is compared
    figures: dict[str, float] = field(
        default_factory=dict
    )  # what is no row: bandwidth, launches, shares of bounds

    def compare(
        self,
        stage: str,
        calls: dict[str, Callable[[], Any]],
        images: int,
        flops: float = 0,
        **named: Any,
    ) -> dict[str, float]:
        """Rows of calls measured in turns: `ours...`, and what they are compared with; returns
        median seconds. `images` and `flops` are of one call.
        """
        speed.free_memory()
        about = " ".join(str(named[key]) for key in ("model", "size", "batch") if named.get(key))
        seconds, peaks, tops = self._in_turns(calls, bool(flops))
        if flops and tops:
            self.ceilings[f"{stage} {about}"] = [min(tops), max(tops)]
            print(
                f"{stage} {about}: ceiling {min(tops) / 1e9:.4g} to {max(tops) / 1e9:.4g} GFLOP/s",
                flush=True,
            )
        medians = {name: statistics.median(found) for name, found in seconds.items()}
        for name, median in medians.items():
            row = named | {
                "stage": stage,
                "images_per_second": images / median,
                "peak_memory_mb": peaks.get(name),
            }
            row["utilisation"] = flops / median / max(tops) if flops else None
            ratios = {
                other: [b / a for a, b in zip(seconds[name], seconds[other], strict=True)]
                for other in medians
                if other != name
            }
            self._add(name, row, ratios, about)
        return medians

    def _in_turns(
        self, calls: dict[str, Callable[[], Any]], with_ceiling: bool
    ) -> tuple[dict[str, list[float]], dict[str, float], list[float]]:
        """Seconds of a call, a figure a turn; on CUDA its peak memory beside all that is compared;
        the turns' ceilings.

        The order rotates; short calls are repeated, unless `quick`; calls of over a second have
        three turns.
        """
        names, turns, warming, least = list(calls), *((3, 1, 0.0) if self.quick else (7, 2, LEAST))
        peaks, tops = {}, []
        tried = {name: self._warm(name, call, warming) for name, call in calls.items()}
        warm = {
            name: least_seconds
            for name, least_seconds in tried.items()
            if least_seconds is not None
        }
        names = list(warm)
        seconds = {name: [] for name in names}
        turns = min(turns, 3) if self.device.type == "cuda" and sum(warm.values()) > 1 else turns
        for turn in range(turns if warm else 0):
            tops += [self.ceiling()] if with_ceiling else []
            for name in names[turn % len(names) :] + names[: turn % len(names)]:
                times = max(1, math.ceil(least / warm[name]))
                speed.reset_peak_memory(self.device)
                seconds[name].append(
                    speed.timed(
                        lambda call=calls[name], times=times: [call() for _ in range(times)],
                        self.device,
                    )[1]
                    / times
                )
                if (
                    self.device.type == "cuda"
                ):  # elsewhere it is the process's, which holds all of them
                    peaks[name] = max(peaks.get(name, 0), speed.peak_memory_mb(self.device))
        return seconds, peaks, tops

    def _warm(self, name: str, call: Callable[[], Any], times: int) -> float | None:
        """Least seconds of a few calls; None, and a line, for one that fails, for want of memory or
        a compiler say: others still count.
        """
        try:
            return min(speed.timed(call, self.device)[1] for _ in range(times))
        except Exception as error:
            reason = f"{name}: {type(error).__name__}: {str(error).strip().splitlines()[0][:200] if str(error).strip() else ''}"
        print(f"left out: {reason}", flush=True)
        self.failed.append(reason)
        speed.free_memory()
        return None

    def _add(
        self, name: str, row: dict[str, Any], ratios: dict[str, list[float]], about: str
    ) -> None:
        """The rows of a call: of ours one for each baseline, of a baseline one. What is compiled,
        or float32, says so in its dtype.
        """
        ours = name.startswith("ours")
        kind = "fp32" if name.startswith("eager float32") else row["dtype"]
        row |= {
            "role": "ours" if ours else "baseline",
            "dtype": kind + ", compiled" * name.endswith(", compiled"),
        }
        others = (
            {n: r for n, r in ratios.items() if n == "ours" or not n.startswith("ours")}
            if ours
            else {name: None}
        )
        for baseline, turns in (others or {None: None}).items():
            self.rows.append(
                row | {"baseline": baseline, "ratio": statistics.median(turns) if turns else None}
            )
            compared = (
                f", {statistics.median(turns):.3g} times {baseline} ({min(turns):.3g} to {max(turns):.3g})"
                if turns
                else ""
            )
            print(
                f"{row['stage']} {about} {row['role']} {name}: {row['images_per_second']:.4g} images/s{compared}",
                flush=True,
            )
            if turns:
                self.ratios[f"{row['stage']} {about}: {name} / {baseline}"] = [
                    min(turns),
                    max(turns),
                ]


def ceiling(device: torch.device) -> float:
    """FLOP/s of the better of two square bf16 matrix products, each the better of two; larger ones
    where launches would weigh.
    """
    found = []
    for size in (4096, 8192) if device.type == "cuda" else (2048, 4096):
        a = torch.randn(size, size, device=device).bfloat16()
        a @ a
        found.append(2 * size**3 / min(speed.timed(lambda a=a: a @ a, device)[1] for _ in range(2)))
    return max(found)


def random_latents(
    shape: tuple[int, int, int], codebook_size: int, device: torch.device, count: int = 2048
) -> LatentSet:
    """Latents and tokens of nothing: speed does not depend on their values."""
    rng = torch.Generator().manual_seed(0)
    tokens = torch.randint(
        codebook_size, (2, count, shape[1] * shape[2]), generator=rng, dtype=torch.int32
    )
    latents, labels = torch.randn(2, count, *shape, generator=rng), torch.arange(count) % CLASSES
    return LatentSet(latents, tokens, labels, torch.zeros(shape[0]), torch.ones(shape[0]), "").to(
        device
    )


def generator(name: str, size: str, side: int, device: torch.device) -> tuple[GenerativeModel, Any]:
    """An untrained model of a configuration on 4 x side x side latents, with that configuration."""
    cfg = compose(f"model={name}", f"size={size}")
    book = load_codebook(SHIPPED_FOLDER / "codebook.safetensors")
    return place_on(build_model(cfg.model, (4, side, side), CLASSES, book), device), cfg


def batches(data: LatentSet, size: int) -> Iterator[Batch]:
    step = 0
    while True:
        yield data.batch(0, step, size)
        step += 1


def drawing(
    model: GenerativeModel, labels: torch.Tensor, device: torch.device
) -> Callable[[int], Any]:
    """A batch as `sample.draw` makes it, but for weights that are cast within each call and nothing
    that is kept between calls.
    """

    def draw(steps: int) -> None:
        with bf16_weights(model, "bf16"), torch.autocast(device.type, torch.bfloat16):
            model.sample(labels, steps=steps, guidance=1.0, rng=torch.Generator())

    return draw


@contextmanager
def batch_by_batch(
    model: GenerativeModel, labels: torch.Tensor, device: torch.device
) -> Iterator[Callable[[int], Any]]:
    """One batch of many as `sample.draw` makes them: what it prepares once, casts, buffers and
    graphs, is prepared before.
    """

    def draw(steps: int) -> None:
        with torch.autocast(device.type, torch.bfloat16):
            model.sample(labels, steps=steps, guidance=1.0, rng=torch.Generator())

    with bf16_weights(model, "bf16"), model.fixed_weights():
        yield draw
