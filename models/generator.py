"""The contract of every family of image generators, and how to write one of your own.

A family is a subclass of `GenerativeModel`: a network, its training loss, and a way of sampling in
a chosen number of steps. All families learn the same whitened latents of the same images.

What a family writes:

1. `inputs(batch, rng=...)`: the tensors that the loss of one batch is computed from. Here, and only
   here, random numbers of training are drawn.
2. `error(*inputs)`: the loss, a scalar float32. (Or, in place of both, `loss(batch, rng=...)`.)
3. `supported_steps(requested)`: those of a list of step counts that `sample` can honour.
4. `nfe(steps, guidance)`: how often `sample` evaluates the network, per image.
5. `sample(labels, steps=..., guidance=..., rng=...)`: whitened latents of these labels.
6. Where it applies: `evaluation`, by which FLOPs are counted faster; `samplers`,
   `sampler_defaults` and `check_options`, for what else about sampling can be chosen; `objective`,
   the name of the loss in the reports; `uses_tokens`; `bf16_safe`; `supports_guidance`, of a family
   that learns guidance; `extra_passes`, of a loss that needs more than one pass.

The smallest family there is, each class's mean with a little noise around it:

>>> from models.randomness import randn, spawn
>>> class ClassMeans(GenerativeModel):
...     objective = "mean"
...
...     def __init__(self, latent_shape, num_classes, *, codebook, label_dropout=0.1):
...         super().__init__(latent_shape, num_classes, label_dropout=label_dropout)
...         self.means = nn.Parameter(torch.zeros(num_classes + 1, *latent_shape))
...
...     def inputs(self, batch, *, rng):
...         return batch.latents, batch.labels  # of these some are the null label by now
...
...     def error(self, latents, labels):
...         return (self.means[labels] - latents).square().mean()
...
...     def supported_steps(self, requested):
...         return [steps for steps in requested if steps == 1]
...
...     def nfe(self, steps, guidance):
...         if not self.supported_steps([steps]):
...             raise ValueError(f"steps={steps}: this model takes one step")
...         return 1 if guidance == 1 else 2
...
...     @torch.inference_mode()
...     def sample(self, labels, *, steps, guidance, rng):
...         self.nfe(steps, guidance)  # raises for a step count that is not supported
...         means = torch.lerp(self.means[self.num_classes], self.means[labels], guidance)
...         return means + 0.1 * randn(self.latent_shape, spawn(rng, len(labels)), labels.device)

To benchmark it, name it in a file of `conf/model`: `_target_` is the class, `name` and `family` are
what the reports call it, `lr` is its learning rate. Every other entry becomes an argument of the
class, beside `latent_shape`, `num_classes`, `codebook` and `label_dropout`, which every family is
given. A ValueError of the constructor is shown to the user as one line.
"""

from collections.abc import Callable, Hashable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import LongTensor, Tensor, nn

from models.options import converted, snapshot_of
from models.randomness import to_device


class Batch(NamedTuple):
    """One training batch: the same images as latents and as tokens. A family takes its own kind."""

    latents: Tensor  # (B, C, H, W) float, whitened: mean 0 and variance 1 in each channel
    tokens: LongTensor  # (B, H*W) codebook ids of the same latents, in raster order
    labels: LongTensor  # (B,) in 0..num_classes-1


def drop_labels(
    labels: LongTensor, null_label: int, rate: float, *, rng: torch.Generator
) -> LongTensor:
    """Each label (B,) becomes `null_label` with probability `rate`, in [0, 1).

    So one network learns the conditional and the unconditional distribution, as classifier-free
    guidance needs (arXiv 2207.12598, algorithm 1). Called once per training batch, by
    `GenerativeModel.forward`, and nowhere else.
    """
    dropped = to_device(torch.rand(labels.shape, generator=rng) < rate, labels.device)
    # Not `torch.where`: that would copy the number to the device, and wait for it.
    return labels.masked_fill(dropped, null_label)


class GenerativeModel(nn.Module):
    """One family: learns p(latents | label) and samples from it in a chosen number of steps.

    The module's docstring lists what a subclass writes. `num_classes` is the null label, which
    stands for "no class": an embedding of labels needs num_classes + 1 rows. Raises ValueError for
    a `label_dropout` outside [0, 1).

    A class may set `bf16_safe = True` on itself or on its network. It then promises that bfloat16
    weights of its linear layers and convolutions give what autocast gives with float32 ones, and
    these are cast once before sampling.
    """

    # Whether it looks at tokens or the codebook. A model that does not is not trained again for
    # another codebook.
    uses_tokens = True
    objective: str | None = None  # what the network is trained to predict, as the reports say
    samplers: tuple[str, ...] = ("default",)  # names of its ways of sampling; the first is its own
    # Forward passes without gradient for each training image, beside the one with: the budget pays
    # for them. Where they vary in a training, their mean over its images, and the fraction of the
    # budget after which they begin.
    extra_passes: float = 0.0
    extra_after: float = 0.0
    # The option of sampling that is a number of inner evaluations of equal cost, if there is one:
    # FLOPs are then counted at 1 and 2 of them, and the rest follows.
    inner_steps: str | None = None
    # Training images whose latents `fit` wants; 0: nothing is fitted.
    fits_on: int = 0
    # Whose codebook the reports name, where it is not the one that token families share. Its floors
    # are measured where `self.codebook` has `quantise`, as `Codebook` does.
    own_codebook: str | None = None
    # Fraction of the training budget that is spent; the training loop sets it before each step.
    progress: float = 0.0
    # Options of sampling and their defaults: a number, a string or a tuple of floats each. A user
    # sets them as `sampler.<name>=...`.
    sampler_defaults: dict[str, Any] = {}

    def __init__(
        self, latent_shape: tuple[int, int, int], num_classes: int, *, label_dropout: float = 0.1
    ):
        super().__init__()
        # At 1 no label would ever be learned.
        if not 0 <= label_dropout < 1:
            raise ValueError(f"label_dropout={label_dropout}: at least 0 and below 1")
        self.latent_shape = tuple(latent_shape)  # (C, H, W)
        self.num_classes = num_classes
        self.label_dropout = label_dropout
        self._kept: dict[Hashable, Any] | None = None  # see `fixed_weights`
        self._guide: tuple[GenerativeModel, ...] = ()  # a tuple, or it would be part of the weights
        self.set_sampler()

    # --- how to sample

    def set_sampler(self, sampler: str | None = None, **options: Any) -> None:
        """From now on sample with one of `samplers` (None: the family's own) and these options.

        Options that are not given are at their defaults. Raises ValueError for a sampler or an
        option that the family does not have, and for a value out of range.
        """
        if sampler is not None and sampler not in self.samplers:
            raise ValueError(f"sampler={sampler}: one of {', '.join(self.samplers)}")
        # An option of another family would change nothing, and yet name other samples.
        foreign = set(options) - set(self.sampler_defaults)
        if foreign:
            own = ", ".join(self.sampler_defaults) or "no options"
            raise ValueError(f"sampler.{min(foreign)}: this model has {own}")
        sampler = sampler or self.samplers[0]
        whole = dict(self.sampler_defaults)
        for name, value in options.items():
            whole[name] = converted(name, value, self.sampler_defaults[name])
        snapshot_of(whole)
        self.check_options(sampler, whole)
        self.sampler, self.sampler_options = sampler, whole

    def check_options(self, sampler: str, options: dict[str, Any]) -> None:
        """Raise ValueError for a value out of range. `options` holds every option of the family."""

    def guide_with(self, guide: "GenerativeModel | None") -> None:
        """Earlier weights of the same training, which guide where the option `guide` says so."""
        self._guide = () if guide is None else (guide,)

    def guide(self) -> "GenerativeModel | None":
        """The network that stands for u in guidance: a worse one that is told the label
        (autoguidance, arXiv 2406.02507); None is this one without the label.

        Raises RuntimeError where `guide_with` has not said which one it is.
        """
        if snapshot_of(self.sampler_options) is None:
            return None
        if not self._guide:
            raise RuntimeError("guide_with: no weights were given that guide")
        return self._guide[0]

    def sampling_key(self) -> list[Any]:
        """The sampler and all options with their values, sorted by name.

        Samples are stored under it. It holds the defaults too, so that a default that changes
        changes the key.
        """
        return [self.sampler, *sorted(self.sampler_options.items())]

    def sampler_label(self) -> str:
        """For people: the sampler and all options not at their default, as `raster, top_k 100`."""
        # Defaults are left out: a table's rows should differ by what was asked for.
        changed = [
            f"{name} {value}"
            for name, value in self.sampler_options.items()
            if value != self.sampler_defaults[name]
        ]
        return ", ".join([self.sampler, *changed])

    # --- training

    def fit(self, latents: Tensor) -> None:
        """Fit what is not trained on whitened latents (N, C, H, W), N at most `fits_on`, before the
        first step: buffers, which are part of the weights.
        """

    def forward(self, batch: Batch, *, rng: torch.Generator, rows: slice | None = None) -> Tensor:
        """The training loss of a batch, scalar float32; `rng` is a CPU generator.

        With `rows`, of these images of the batch alone. Random numbers are drawn for all of it, so
        that parts of equal size, on whatever devices, have the mean loss of the whole.

        Labels are dropped here, in training mode only. The loss is `forward`, because that is the
        one method whose gradients distributed training synchronises. Raises ValueError for `rows`
        of a family with a `loss` of its own.
        """
        if self.training and self.label_dropout:
            labels = drop_labels(batch.labels, self.num_classes, self.label_dropout, rng=rng)
            batch = batch._replace(labels=labels)
        if rows is None:
            return self.loss(batch, rng=rng)
        if type(self).loss is not GenerativeModel.loss:
            raise ValueError("a family that overrides `loss` trains on whole batches only")
        return self.error(*(each[rows] for each in self.inputs(batch, rng=rng)))

    def loss(self, batch: Batch, *, rng: torch.Generator) -> Tensor:
        """The loss of a batch whose labels are final: `error` of its `inputs`.

        A family may override this in place of the two. Its loss is then not compiled.
        """
        # Apart, because only `error` can be compiled: random numbers come from the host.
        return self.error(*self.inputs(batch, rng=rng))

    def inputs(self, batch: Batch, *, rng: torch.Generator) -> tuple[Tensor, ...]:
        """What the loss is computed from: the arguments of `error`, on the batch's device, each
        with a row for every image. A row may depend on no other image: of several processes each
        has its own images, and zeros in place of the others.

        Noise, timesteps and orders are drawn from `rng` on the CPU and moved by `to_device`. So a
        batch has the same loss on every kind of device, and nothing waits.
        """
        raise NotImplementedError

    def error(self, *inputs: Tensor) -> Tensor:
        """The loss, scalar float32, a mean over the batch.

        A function of its arguments and the weights alone: no random numbers, no values read on the
        host, so that it compiles as one graph. It must be the same in training mode and in
        evaluation mode, because the validation loss is compared with the training loss.
        """
        raise NotImplementedError

    def compile_error(self) -> None:
        """Compile `error`, the network with it. Sampling, with its many shapes, stays as it is."""
        # Bound to the instance: the class, and other models of it, are as they were.
        self.error = torch.compile(type(self).error.__get__(self))

    def uncompile_error(self) -> None:
        """Undo `compile_error`."""
        self.__dict__.pop("error", None)

    # --- sampling

    def sample(
        self, labels: LongTensor, *, steps: int, guidance: float, rng: torch.Generator
    ) -> Tensor:
        """Whitened latents (B, C, H, W), float32, of labels (B,), on the labels' device.

        `guidance` w acts as u + w (c - u) on the predictions c with and u without the label, in
        whatever space the family predicts. 1 is no guidance and costs one evaluation a step. (The
        w of arXiv 2207.12598 is one less.) `rng` is a CPU generator: seed one generator per sample
        with `spawn`, so that two calls give what one call of both batches would. Raises ValueError
        for a step count that is not supported.
        """
        raise NotImplementedError

    def supported_steps(self, requested: Iterable[int]) -> list[int]:
        """Those of the requested step counts that `sample` can honour, in the order given.

        Any integer may be asked for; with the sampler that is set.
        """
        raise NotImplementedError

    def supports_guidance(self, guidance: float) -> bool:
        """Whether `sample` can honour this scale. A family that learns guidance has a range."""
        return True

    def nfe(self, steps: int, guidance: float) -> int:
        """Network evaluations per image of `sample`. A guided step evaluates the network twice, but
        where guidance is learned.

        Raises ValueError for a step count or a guidance that is not supported.
        """
        raise NotImplementedError

    def evaluation(self, labels: LongTensor) -> Tensor | None:
        """One unguided network evaluation for labels (B,), of any input; it is run to be counted.

        Only where every evaluation of `sample` costs the same: the FLOPs of an image are then
        those of this one times `nfe`. None where they differ (caches that grow): the whole of
        `sample` is then run to be counted, on the meta device.
        """
        return None

    @contextmanager
    def fixed_weights(self) -> Iterator[None]:
        """Within, weights do not change: what `kept` makes from them serves all calls of `sample`.

        Everything is forgotten at the end.
        """
        self._kept = {}
        try:
            yield
        finally:
            self._kept = None

    def kept(self, name: Hashable, make: Callable[[], Any]) -> Any:
        """What `make` gives: fused weights, caches, CUDA graphs.

        Within `fixed_weights` it is made once for each name, sampling key and autocast precision;
        elsewhere at each call.
        """
        if self._kept is None:
            return make()
        precision = [
            (kind, torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind))
            for kind in ("cpu", "cuda")
        ]
        # Casts of the weights are of one precision, and tables and graphs of one sampler's options.
        key = (name, *precision, *map(str, self.sampling_key()))
        if key not in self._kept:
            self._kept[key] = make()
        return self._kept[key]
