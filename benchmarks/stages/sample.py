"""Sample the images of one sampling config, on the clock: labels -> latents -> uint8, the decoder
included.
"""

import json
import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.core import team
from benchmarks.core.environment import device_name, now, provenance
from benchmarks.core.errors import Diverged
from benchmarks.core.files import check_writable
from benchmarks.core.locks import load_or_make
from benchmarks.core.store import read_tensors, seeded, write_tensors
from benchmarks.frozen.autoencoder import LatentSpace
from benchmarks.frozen.latents import LatentSet, decode
from benchmarks.stages.precision import bf16_weights
from metrics import speed
from models.generator import GenerativeModel
from models.image_model import ImageModel
from models.randomness import spawn, to_device

ABSURD = 1e3  # whitened latents have unit variance; quantising would hide that these do not
# batches of a shape on CUDA: kernels are chosen in the first, graphs captured in the second
UNTIMED = 2


class Samples(NamedTuple):
    """Images of one sampling config and what they cost.

    Labels are 0, 1, ..., K-1, 0, 1, ...: class-balanced, the same for all.
    """

    images: Tensor  # (N, 3, H, W) uint8, on the CPU
    seconds_per_image: float  # median over the full batches
    latency_seconds: float  # one image alone, median of three
    peak_memory_mb: float
    # when, by which code and on which device: stays with the images when they are scored again
    made: dict[str, Any]


class SamplingConfig(NamedTuple):
    """Everything about sampling that is not the trained model."""

    steps: int
    guidance: float
    count: int
    batch: int
    seed: int  # of the sampling
    precision: str
    training_seed: int = 0  # trainings are sampled from noise of their own: see `noise`
    train_fraction: float = 1.0  # of the training budget behind the weights
    sampler: str | None = None  # one of the model's; None is its own
    options: tuple[tuple[str, Any], ...] = ()  # of the sampler, with their values, sorted by name


def noise(config: SamplingConfig) -> torch.Generator:
    """The stream that all samples' noise comes from.

    Another training is sampled from other noise. So the spread between trainings holds that between
    samplings, too, and what a mean over trainings is off by is measured, not only a part of it.
    """
    return seeded("sample", config.training_seed, config.seed)


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
            # into pinned memory, which alone is copied to without waiting
            self.images = torch.empty_like(images, device="cpu", pin_memory=True)
            self.absurd = torch.empty_like(absurd, device="cpu", pin_memory=True)
            self.images.copy_(images, non_blocking=True)
            self.absurd.copy_(absurd, non_blocking=True)
            self.event = torch.cuda.Event()
            self.event.record()

    def arrived(self) -> Tensor:
        """The images, uint8 (n, 3, H, W).

        Raises Diverged where their latents were not finite, or absurdly large.
        """
        if self.event:
            self.event.synchronize()
        if self.absurd:
            raise Diverged(f"samples are not finite or beyond {ABSURD:g} standard deviations")
        return self.images.clone() if self.event else self.images  # pinned memory is scarce


# images of these labels, with this generator of random numbers
Sampler = Callable[[Tensor, torch.Generator], Arriving]


@contextmanager
def sampler(
    generator: GenerativeModel,
    space: LatentSpace,
    data: LatentSet,
    config: SamplingConfig,
    device: torch.device,
) -> Iterator[Sampler]:
    """Within, a function of labels (n,) and a torch.Generator that gives images of one sampling
    config, still on their way from the device.

    Weights do not change meanwhile.
    """
    # else every batch would copy them
    data = replace(data, mean=data.mean.to(device), std=data.std.to(device))
    bf16 = config.precision == "bf16"

    def sampled(labels: Tensor, rng: torch.Generator) -> Arriving:
        labels = to_device(labels, device)
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            latents = generator.sample(
                labels, steps=config.steps, guidance=config.guidance, rng=rng
            )
        return Arriving(decode(space, data, latents), latents)

    guide = generator.guide()
    with ExitStack() as stack:
        for network in [generator] if guide in (None, generator) else [generator, guide]:
            stack.enter_context(bf16_weights(network, config.precision))
        stack.enter_context(torch.inference_mode())
        stack.enter_context(generator.fixed_weights())
        yield sampled


def image_sampler(model: ImageModel, config: SamplingConfig, device: torch.device) -> Sampler:
    """As `sampler` gives it, of a model that was trained elsewhere: it decodes images itself."""

    @torch.inference_mode()
    def sampled(labels: Tensor, rng: torch.Generator) -> Arriving:
        labels = to_device(labels, device)
        images = model.sample(labels, steps=config.steps, guidance=config.guidance, rng=rng)
        wanted = (len(labels), 3, model.image_size, model.image_size)
        if images.dtype != torch.uint8 or tuple(images.shape) != wanted:
            raise TypeError(
                f"{type(model).__name__}.sample gave {images.dtype} {tuple(images.shape)}, where "
                f"uint8 {wanted} is needed"
            )
        return Arriving(images, torch.zeros(1, device=images.device))

    return sampled


def sample_images(
    generator: GenerativeModel | ImageModel,
    space: LatentSpace | None,
    data: LatentSet | None,
    config: SamplingConfig,
    device: torch.device,
) -> Samples:
    """Sample `config.count` images in batches, timing each; image i depends on (seed, i) alone.

    Every process of a team calls this, and the leader has all images at the end. Raises Diverged
    where latents are not finite, or absurdly large.
    """
    labels = labels_for(config.count, generator.num_classes)
    try:
        if isinstance(generator, ImageModel):
            return _on_the_clock(image_sampler(generator, config, device), labels, config, device)
        with sampler(generator, space, data, config, device) as sampled:
            return _on_the_clock(sampled, labels, config, device)
    except Diverged as error:
        where = f"at {config.steps} steps, guidance {config.guidance:g}"
        raise Diverged(f"{error}, {where}") from None


def seconds_of_a_batch(
    generator: GenerativeModel,
    space: LatentSpace,
    data: LatentSet,
    config: SamplingConfig,
    device: torch.device,
) -> float:
    """Seconds of one warmed-up batch, decoding included."""
    labels = labels_for(config.batch, generator.num_classes)
    untimed = UNTIMED if device.type == "cuda" else 1
    with sampler(generator, space, data, config, device) as sampled:

        def once() -> Tensor:
            return sampled(labels, seeded("batch", config.seed)).arrived()

        return speed.median_seconds(once, device, repeats=1, warmup=untimed)


def _on_the_clock(
    sampled: Sampler, labels: Tensor, config: SamplingConfig, device: torch.device
) -> Samples:
    """`sampled` of all labels in batches; its latency is measured first, on one."""
    began, untimed = now(), UNTIMED if device.type == "cuda" else 0
    others = speed.OtherPrograms(device)
    latency = _latency(sampled, labels[:1], config, device, warmup=max(1, untimed))
    # of a team, each process samples every so many batches
    batch = min(config.batch, math.ceil(config.count / team.size()))
    batches = labels.split(batch)
    full = max(1, config.count // batch // team.size())  # that every process has
    # before graphs are captured: what they keep is no new memory when they run
    speed.reset_peak_memory(device)
    if full <= untimed:  # too few to leave any out
        for _ in range(untimed):
            sampled(labels[:batch], seeded("latency", config.seed)).arrived()
        untimed = 0
    laps = speed.Laps(device)
    images = _share(sampled, batches, noise(config), laps)
    timed = laps.seconds()[untimed:full]  # a shorter last batch does not count
    seconds = statistics.median(timed) / batch if timed else math.nan
    return Samples(
        images=images,
        seconds_per_image=seconds,
        latency_seconds=latency,
        peak_memory_mb=speed.peak_memory_mb(device),
        made=provenance(device)
        | {
            "started_at": began,
            "batch_seconds_spread": speed.spread(timed),
            "others_cpu": team.of_others(others),
            "others_gpu": speed.others_gpu(device),
            "device": team.on(device_name(device)),
            "sample_batch": batch,
            "sample_processes": team.size(),
        },
    )


def _latency(
    sampled: Sampler, label: Tensor, config: SamplingConfig, device: torch.device, *, warmup: int
) -> float:
    """Seconds of one image, of `label` (1,); in a team the leader's, and the others wait."""

    def alone() -> Tensor:
        return sampled(label, seeded("latency", config.seed)).arrived()

    if team.size() > 1:
        alone()  # what diverges does so in every process
        team.wait()
    seconds = math.nan
    if team.leads():
        seconds = speed.median_seconds(alone, device, warmup=warmup)
    team.wait()
    return seconds


def _share(
    sampled: Sampler, batches: Sequence[Tensor], rng: torch.Generator, laps: speed.Laps
) -> Tensor:
    """The images of all batches, of which each process of a team samples its own; they come
    together in the leader. Raises Diverged, in all of them.
    """
    images, under_way, diverged = [], [], None
    try:
        for i, labels in enumerate(batches):
            if i % team.size() != team.rank():
                spawn(rng, len(labels))  # as many seeds as whoever samples these takes
                continue
            # two batches are under way at a time: one arrives while the next is sampled
            under_way.append(sampled(labels, rng))
            laps.mark()
            if len(under_way) == 2:
                images.append(under_way.pop(0).arrived())
        images += [arriving.arrived() for arriving in under_way]
    except Diverged as error:
        diverged = error
    if team.anywhere(diverged is not None):
        raise diverged or Diverged("samples of another process are not finite")
    shares = team.gathered(images)
    if not team.leads():
        return torch.empty(0)
    return torch.cat([shares[i % team.size()][i // team.size()] for i in range(len(batches))])


def load_or_sample(path: Path, key: str, sample: Callable[[], Samples]) -> Samples:
    """`sample()`, unless `path` already holds these images, with the costs measured when they were
    sampled.
    """
    costs = Samples._fields[1:]

    def load() -> Samples | None:
        tensors, texts = read_tensors(path, key) or (None, {})
        if tensors is None:
            return None
        return Samples(tensors["images"], *(json.loads(texts[name]) for name in costs))

    def make() -> Samples:
        samples = sample()
        texts = {name: json.dumps(getattr(samples, name)) for name in costs}
        write_tensors(path, key, {"images": samples.images}, **texts)
        return samples

    ready = load()
    if ready is not None:
        return ready
    check_writable(path.parent, "cache_dir")
    return load_or_make(path, load, make)
