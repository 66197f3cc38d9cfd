"""Draw the pictures of one setting, on the clock: labels -> latents -> uint8, the decoder included."""

import json
import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from benchmarks.core.environment import now, provenance
from benchmarks.core.errors import Diverged
from benchmarks.core.store import read_tensors, seeded, write_tensors
from benchmarks.frozen.autoencoder import LatentSpace
from benchmarks.frozen.latents import LatentSet, decode
from metrics import speed
from models.generator import GenerativeModel, to_device

ABSURD = 1e3  # whitened latents have unit variance; quantising would hide that these do not


class Samples(NamedTuple):
    """Pictures of one setting and what they cost. Labels are 0, 1, ..., K-1, 0, 1, ...:
    class-balanced, the same for all.
    """

    images: Tensor  # (N, 3, H, W) uint8, on the CPU
    seconds_per_image: float  # median over the full batches
    latency_seconds: float  # one picture alone, median of three
    peak_memory_mb: float
    made: dict[
        str, Any
    ]  # when, by which code and on which device: these stay with the pictures when they are scored again


class SamplingConfig(NamedTuple):
    """A point of the sweep: everything about sampling that is not the trained model."""

    steps: int
    guidance: float
    count: int
    batch: int
    seed: int
    precision: str
    train_fraction: float = 1.0  # of the training budget behind the weights


def labels_for(count: int, num_classes: int) -> Tensor:
    """0, 1, ..., K-1, 0, 1, ...: any prefix is class-balanced."""
    return torch.arange(count) % num_classes


class Arriving:
    """A batch of images on its way from the device to the host, which meanwhile gives the device
    the next one.
    """

    def __init__(self, images: Tensor, latents: Tensor):
        absurd = ~(latents.abs().max() <= ABSURD)  # so written, NaN counts
        self.images, self.absurd, self.event = images, absurd, None
        if images.is_cuda:
            self.images, self.absurd = (
                torch.empty_like(x, device="cpu", pin_memory=True) for x in (images, absurd)
            )
            self.images.copy_(images, non_blocking=True)
            self.absurd.copy_(absurd, non_blocking=True)
            self.event = torch.cuda.Event()
            self.event.record()

    def arrived(self) -> Tensor:
        """The images, uint8 (n, 3, H, W). Raises Diverged where their latents were not finite, or
        absurdly large.
        """
        if self.event:
            self.event.synchronize()
        if self.absurd:
            raise Diverged(f"samples are not finite or beyond {ABSURD:g} standard deviations")
        return self.images.clone() if self.event else self.images  # pinned memory is scarce


@contextmanager
def bf16_weights(model: nn.Module, precision: str) -> Iterator[None]:
    """For bf16: the weights of linear layers and convolutions in bfloat16 within, and as they were
    afterwards.

    Only in modules whose class says `bf16_safe`: autocast rounds theirs to the very same numbers,
    but anew for every batch, weights joined for drawing (`ar`) at every call, and in inference
    mode, which convolutions on a CPU pay for (below).
    """
    kinds = (nn.Linear, nn.Conv2d) if precision == "bf16" else ()
    roots = [m for m in model.modules() if getattr(type(m), "bf16_safe", False)]
    inside = [m for root in roots for m in root.modules()]
    typed = [
        m for m in inside if hasattr(type(m), "dtype")
    ]  # diffusers' and transformers': the type of their first parameter
    whole = {id(p) for m in typed for p in islice(m.parameters(), 1)}
    whole |= {
        id(p)
        for m in model.modules()
        if not isinstance(m, nn.Linear | nn.Conv2d)
        for p in m.parameters(recurse=False)
    }
    weights = {
        id(p): p
        for m in inside
        if isinstance(m, kinds)
        for p in m.parameters(recurse=False)
        if id(p) not in whole
    }
    kept = {key: p.data for key, p in weights.items()}
    try:
        with torch.inference_mode(
            False
        ):  # convolutions with weights made in inference mode are slower by two thirds on a CPU
            for p in weights.values():
                p.data = p.data.bfloat16()
        yield
    finally:
        for key, p in weights.items():
            p.data = kept[key]


@contextmanager
def sampler(
    generator: GenerativeModel,
    space: LatentSpace,
    data: LatentSet,
    setting: SamplingConfig,
    device: torch.device,
) -> Iterator[Callable[[Tensor, torch.Generator], Arriving]]:
    """Within, a function of labels (n,) and a generator that gives images of one setting, still on
    their way from the device.

    Weights do not change meanwhile.
    """
    data = replace(
        data, mean=data.mean.to(device), std=data.std.to(device)
    )  # else every batch would copy them

    def sampled(labels: Tensor, rng: torch.Generator) -> Arriving:
        with torch.autocast(device.type, torch.bfloat16, enabled=setting.precision == "bf16"):
            latents = generator.sample(
                to_device(labels, device), steps=setting.steps, guidance=setting.guidance, rng=rng
            )
        return Arriving(decode(space, data, latents), latents)

    with (
        torch.inference_mode(),
        bf16_weights(generator, setting.precision),
        generator.fixed_weights(),
    ):
        yield sampled


def sample_images(
    generator: GenerativeModel,
    space: LatentSpace,
    data: LatentSet,
    setting: SamplingConfig,
    device: torch.device,
) -> Samples:
    """Sample `setting.count` images in batches, timing each; image i depends on (seed, i) alone.

    Raises Diverged where latents are not finite, or absurdly large.
    """
    try:
        with sampler(generator, space, data, setting, device) as sampled:
            return _on_the_clock(
                sampled, labels_for(setting.count, generator.num_classes), setting, device
            )
    except Diverged as error:
        raise Diverged(
            f"{error}, at {setting.steps} steps, guidance {setting.guidance:g}"
        ) from None


def seconds_of_a_batch(
    generator: GenerativeModel,
    space: LatentSpace,
    data: LatentSet,
    setting: SamplingConfig,
    device: torch.device,
) -> float:
    """Seconds of one warmed-up batch of a setting, decoding included."""
    labels, untimed = (
        labels_for(setting.batch, generator.num_classes),
        UNTIMED if device.type == "cuda" else 1,
    )
    with sampler(generator, space, data, setting, device) as sampled:
        return speed.median_seconds(
            lambda: sampled(labels, seeded("batch", setting.seed)).arrived(),
            device,
            repeats=1,
            warmup=untimed,
        )


UNTIMED = (
    2  # batches of a shape on CUDA: kernels are chosen in the first, graphs captured in the second
)


def _on_the_clock(
    sampled: Callable[[Tensor, torch.Generator], Arriving],
    labels: Tensor,
    setting: SamplingConfig,
    device: torch.device,
) -> Samples:
    """`sampled` of all labels in batches; its latency is measured first, on one."""
    started, untimed = now(), UNTIMED if device.type == "cuda" else 0
    alone = lambda: sampled(labels[:1], seeded("latency", setting.seed)).arrived()  # noqa: E731
    latency = speed.median_seconds(alone, device, warmup=max(1, untimed))
    batch = min(setting.batch, setting.count)
    full = setting.count // batch
    speed.reset_peak_memory(
        device
    )  # before graphs are captured: what they keep is no new memory when they run
    if full <= untimed:  # too few to leave any out
        for _ in range(untimed):
            sampled(labels[:batch], seeded("latency", setting.seed)).arrived()
        untimed = 0
    rng, laps, images, under_way = seeded("sample", setting.seed), speed.Laps(device), [], []
    for part in labels.split(batch):
        under_way.append(sampled(part, rng))
        laps.mark()
        if len(under_way) == 2:
            images.append(under_way.pop(0).arrived())
    images += [arriving.arrived() for arriving in under_way]
    seconds = (
        statistics.median(laps.seconds()[untimed:full]) / batch
    )  # a shorter last batch does not count
    made = provenance(device) | {"started_at": started}
    return Samples(torch.cat(images), seconds, latency, speed.peak_memory_mb(device), made)


def load_or_sample(path: Path, key: str, *args: Any) -> Samples:
    """`draw`, unless `path` already holds this setting's pictures, with the costs measured when
    they were drawn.
    """
    ready = read_tensors(path, key)
    if ready:
        tensors, costs = ready
        return Samples(
            tensors["images"], *(json.loads(costs[name]) for name in Samples._fields[1:])
        )
    samples = sample_images(*args)
    costs = {
        name: json.dumps(value)
        for name, value in zip(Samples._fields[1:], samples[1:], strict=True)
    }
    write_tensors(path, key, {"images": samples.images}, **costs)
    return samples
