"""The contract of every family: `forward` is the training loss, `sample` draws in a chosen number
of steps.
"""

from collections.abc import Callable, Hashable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import LongTensor, Tensor, nn


class Batch(NamedTuple):
    """One training batch; both descriptions of the same pictures, so that each family takes the one
    it models.
    """

    latents: Tensor  # (B, C, H, W) float, whitened; what diffusion learns
    tokens: LongTensor  # (B, H*W) codebook ids of the same latents; what AR learns
    labels: LongTensor  # (B,) in 0..num_classes-1


def drop_labels(
    labels: LongTensor, null_label: int, rate: float, *, rng: torch.Generator
) -> LongTensor:
    """Each label becomes `null_label` with probability `rate`: what classifier-free guidance needs
    (arXiv 2207.12598).

    Called once per training batch, by `GenerativeModel.forward`, and nowhere else.
    """
    dropped = to_device(torch.rand(labels.shape, generator=rng) < rate, labels.device)
    return labels.masked_fill(
        dropped, null_label
    )  # `where` would copy the number to the device, and wait


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor on `device`; one of the host is copied from pinned memory, and the host goes on
    without waiting for CUDA.

    All random numbers of training and sampling are drawn on the host and come this way, so that
    they are the same on every kind of device. That costs no time while the host is ahead of the
    device, which is still busy with the last step.
    """
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def spawn(rng: torch.Generator, count: int) -> list[torch.Generator]:
    """One generator per sample, seeded from `rng` in order: sample i's noise is the same whatever
    the batch it is drawn in.
    """
    seeds = torch.randint(2**62, (count,), generator=rng)
    return [torch.Generator().manual_seed(seed) for seed in seeds.tolist()]


def randn(shape: Iterable[int], rngs: list[torch.Generator], device: torch.device) -> Tensor:
    """Standard normal noise (B, *shape), sample i drawn on the CPU from its own generator."""
    return to_device(
        torch.stack([torch.randn(tuple(shape), generator=rng) for rng in rngs]), device
    )


def rand(shape: Iterable[int], rngs: list[torch.Generator], device: torch.device) -> Tensor:
    """Uniform numbers in [0, 1), (B, *shape), likewise."""
    return to_device(torch.stack([torch.rand(tuple(shape), generator=rng) for rng in rngs]), device)


def _like(usual: Any, name: str, value: Any) -> Any:
    """`value` in the type of the usual one, so that 3 and 3.0 are one choice. Raises ValueError
    where that would change it.
    """
    try:
        same = tuple(map(float, value)) if isinstance(usual, tuple) else type(usual)(value)
    except (TypeError, ValueError):
        raise ValueError(f"sampler.{name}={value}: something like {usual}") from None
    if not isinstance(usual, tuple) and same != value:
        raise ValueError(f"sampler.{name}={value}: something like {usual}")
    return same


class GenerativeModel(nn.Module):
    """One family: learns p(latents | label) and draws from it in a chosen number of steps.

    Subclasses write `inputs` and `error` (or `loss`), `sample`, `supported_steps` and `nfe`. The
    null label, for guidance, is `num_classes`.
    """

    samplers: tuple[str, ...] = ("default",)  # the first is the family's own
    sampler_defaults: dict[
        str, Any
    ] = {}  # what else about sampling can be chosen, and what it is unless it is

    def __init__(
        self, latent_shape: tuple[int, int, int], num_classes: int, *, label_dropout: float = 0.1
    ):
        super().__init__()
        if not 0 <= label_dropout < 1:
            raise ValueError(f"label_dropout={label_dropout}: at least 0 and below 1")
        self.latent_shape = tuple(latent_shape)
        self.num_classes = num_classes
        self.label_dropout = label_dropout
        self._kept: dict[Hashable, Any] | None = None
        self.set_sampler()

    def set_sampler(self, sampler: str | None = None, **choice: Any) -> None:
        """Draw with one of `samplers` (None: the family's own) and this choice of `options` from
        now on.

        Raises ValueError for a sampler or an option the family does not have, and for a value out
        of range.
        """
        if sampler is not None and sampler not in self.samplers:
            raise ValueError(f"sampler={sampler}: one of {', '.join(self.samplers)}")
        foreign = set(choice) - set(self.sampler_defaults)
        if foreign:
            raise ValueError(
                f"sampler.{min(foreign)}: this model has {', '.join(self.sampler_defaults) or 'no options'}"
            )
        whole = self.sampler_defaults | {
            name: _like(self.sampler_defaults[name], name, value) for name, value in choice.items()
        }
        self.check_options(sampler or self.samplers[0], whole)
        self.sampler, self.sampler_options = sampler or self.samplers[0], whole

    def check_options(self, sampler: str, options: dict[str, Any]) -> None:
        """Raises ValueError for a value out of range."""

    def sampling_key(self) -> list[Any]:
        """The sampler and all options with their values: what names samples, so that a changed
        default names others.
        """
        return [self.sampler, *sorted(self.sampler_options.items())]

    def sampler_label(self) -> str:
        """The sampler and every option that is not the usual one, in words: `euler`, `raster, top_k
        100`.
        """
        unusual = [
            f"{name} {value}"
            for name, value in self.sampler_options.items()
            if value != self.sampler_defaults[name]
        ]
        return ", ".join([self.sampler, *unusual])

    @contextmanager
    def fixed_weights(self) -> Iterator[None]:
        """Within, weights do not change, so what `sample` prepares from them is kept from one batch
        to the next.
        """
        self._kept = {}
        try:
            yield
        finally:
            self._kept = None

    def kept(self, name: Hashable, make: Callable[[], Any]) -> Any:
        """What `make` gives; within `fixed_weights` made once for each name, way of sampling and
        precision.
        """
        if self._kept is None:
            return make()
        kinds = [
            (kind, torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind))
            for kind in ("cpu", "cuda")
        ]
        key = (name, *kinds, *map(str, self.sampling_key()))
        if key not in self._kept:
            self._kept[key] = make()
        return self._kept[key]

    def forward(self, batch: Batch, *, rng: torch.Generator) -> Tensor:
        """The training loss of a batch, scalar float32. Labels are dropped here, in training mode
        only.
        """
        if self.training and self.label_dropout:
            batch = batch._replace(
                labels=drop_labels(batch.labels, self.num_classes, self.label_dropout, rng=rng)
            )
        return self.loss(batch, rng=rng)

    def loss(self, batch: Batch, *, rng: torch.Generator) -> Tensor:
        """The loss of a batch whose labels are final: `error` of what `inputs` makes of it. A
        family may also write this itself.
        """
        return self.error(*self.inputs(batch, rng=rng))

    def inputs(self, batch: Batch, *, rng: torch.Generator) -> tuple[Tensor, ...]:
        """What the loss is computed from, on the batch's device; `rng` draws noise, timesteps and
        orders on the CPU.
        """
        raise NotImplementedError

    def error(self, *inputs: Tensor) -> Tensor:
        """The loss, scalar float32: a function of tensors and weights alone, so that it compiles as
        one graph.
        """
        raise NotImplementedError

    def compile_error(self) -> None:
        """Compile `error`, network included. Sampling, of many shapes, uses the network as it is."""
        self.error = torch.compile(type(self).error.__get__(self))

    def uncompile_error(self) -> None:
        """`error` as it was."""
        self.__dict__.pop("error", None)

    def sample(
        self, labels: LongTensor, *, steps: int, guidance: float, rng: torch.Generator
    ) -> Tensor:
        """Whitened latents (B, C, H, W), float32, on the labels' device.

        `guidance` 1 is none; w extrapolates from the unconditional prediction, u + w (c - u). `rng`
        is a CPU generator: two calls on it draw what one call of both batches would. Raises
        ValueError for a step count the family cannot honour.
        """
        raise NotImplementedError

    def evaluation(self, labels: LongTensor) -> Tensor | None:
        """One network evaluation for these labels, to be counted, where every one of `sample` costs
        the same; None where not.
        """
        return None

    def supported_steps(self, requested: Iterable[int]) -> list[int]:
        """Those of a sweep's list that `sample` can honour, in the order given."""
        raise NotImplementedError

    def nfe(self, steps: int, guidance: float) -> int:
        """Network evaluations per image; a guided step evaluates the network twice."""
        raise NotImplementedError
