"""What some choices of ours give: a call as it is, in turns with the same call but for one thing.

Part of `perf`; the stages are called `choice: ...`.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.training_utils import EMAModel
from torch import Tensor
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from benchmarks.perf.bench import (
    Bench,
    batches,
    codebook_size,
    generator,
    network_columns,
    random_latents,
    repeating_labels,
    single_batch_sampler,
)
from benchmarks.perf.comparisons import LR, train_step
from benchmarks.stages.precision import bf16_weights
from benchmarks.stages.train_state import InPlaceEMA, build_train_state
from models import layers
from models.autoregressive import Rotary
from models.dit import GELU, DiT
from models.unet import QuickAttention, UNet

# within one, a choice is undone
Variant = Callable[[], AbstractContextManager[Any]]


@contextmanager
def swapped(owner: Any, name: str, value: Any) -> Iterator[None]:
    """`owner.name` is `value` within."""
    # set on the class or module, so that networks which are built already use it too
    kept = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, kept)


def tanh_gelu(gelu: GELU, x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


def transposed_patches(dit: DiT, x: Tensor) -> Tensor:
    return dit.patches(x).flatten(2).transpose(1, 2) + dit.positions


def channels_last(unet: UNet, x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


# On CUDA none of these but the rotation changes anything: the choices are of a CPU's kernels.
TORCH_ATTENTION: dict[str, Variant] = {
    "torch's fused attention": partial(swapped, layers, "PLAIN", 0),
}
MODEL_VARIANTS: dict[str, dict[str, Variant]] = {
    "dit": {
        # in bf16 torch's tanh is slow on a CPU
        "tanh form of GELU": partial(swapped, GELU, "forward", tanh_gelu),
        # a transposed view is copied by every norm behind it
        "patches left transposed": partial(swapped, DiT, "embed", transposed_patches),
    },
    "ar": {
        # transformers rotates in float32, and attention then runs in it too
        "rotation in float32": partial(swapped, Rotary, "forward", LlamaRotaryEmbedding.forward),
    },
    "unet": {
        # strides spread from one convolution to the next
        "attention's output left channels-last": partial(
            swapped, QuickAttention, "__call__", QuickAttention.attend
        ),
        "input channels-last": partial(swapped, UNet, "layout", channels_last),
    },
}
EMA_STEP: dict[str, Variant] = {
    "diffusers' EMA step": partial(swapped, InPlaceEMA, "step", EMAModel.step),
}


def under(variant: Variant, call: Callable[[], Any]) -> Callable[[], None]:
    """The call with one thing changed."""

    def changed() -> None:
        with variant():
            call()

    return changed


def with_variants(
    call: Callable[[], Any], variants: dict[str, Variant]
) -> dict[str, Callable[[], Any]]:
    """The call as it is, `ours`, and under each of the variants."""
    changed = {name: under(variant, call) for name, variant in variants.items()}
    return {"ours": call} | changed


def training(bench: Bench, name: str, size: str, side: int, batch: int) -> None:
    """A training step as it is, and without each of the choices made for it."""
    model, cfg = generator(name, size, side, bench.device)
    twin, _ = generator(name, size, side, bench.device)
    unfused = build_train_state(twin, cfg.train, LR, bench.device)
    for group in unfused.optimizer.param_groups:
        group["fused"] = None  # torch's own choice, which is not the fused kernel on a CPU
    state = build_train_state(model, cfg.train, LR, bench.device)
    data = random_latents(model.latent_shape, codebook_size(cfg), bench.device)
    steps = batches(data, batch)
    variants = MODEL_VARIANTS[name] | TORCH_ATTENTION | EMA_STEP
    calls = with_variants(partial(train_step, state, steps), variants)
    calls["AdamW without fused"] = partial(train_step, unfused, steps)
    columns = network_columns(cfg, batch)
    bench.compare(f"choice: train {side}x{side}", calls, batch, **columns)


def sampling(bench: Bench, name: str, size: str, side: int, batch: int) -> None:
    """Sampling in 8 steps, or one a token, as it is, and without each choice made for it."""
    model, cfg = generator(name, size, side, bench.device)
    labels = repeating_labels(batch, bench.device)
    sample = single_batch_sampler(model.eval(), labels, bench.device)
    steps = 8 if model.supported_steps([8]) else side * side
    # `ar` samples through blocks of its own, which its variant does not reach
    variants = {} if name == "ar" else MODEL_VARIANTS.get(name, {})
    calls = with_variants(partial(sample, steps), variants | TORCH_ATTENTION)
    # not a variant of `ours`: what is left out there is done before the network is called
    uncast = single_batch_sampler(model, labels, bench.device, cast=False)
    calls["weights cast by autocast"] = partial(uncast, steps)
    columns = network_columns(cfg, batch)
    bench.compare(f"choice: sample {side}x{side}", calls, batch, **columns)


def guidance_halves(bench: Bench, name: str, size: str, side: int, batch: int) -> None:
    """Both halves of guidance in one call of the network, against one call each."""
    model, cfg = generator(name, size, side, bench.device)
    x = torch.randn(batch, *model.latent_shape, device=bench.device)
    t = torch.full((batch,), 500.0, device=bench.device)
    labels = repeating_labels(batch, bench.device)
    # with and without labels, as guidance evaluates them; the values do not matter here
    both = [torch.cat([half, half]) for half in (x, t, labels)]

    @torch.inference_mode()
    def evaluate(*inputs: Tensor, times: int) -> None:
        with torch.autocast(bench.device.type, torch.bfloat16):
            for _ in range(times):
                model.eval().denoiser(*inputs)

    with bf16_weights(model, "bf16"):
        calls = {
            "ours": partial(evaluate, *both, times=1),
            "a call for each half of guidance": partial(evaluate, x, t, labels, times=2),
        }
        columns = network_columns(cfg, batch)
        bench.compare(f"choice: one guided evaluation {side}x{side}", calls, batch, **columns)


def measure(bench: Bench, size: str, side: int, batch: int) -> None:
    """All of them: training at `size` and at xs, sampling at xs.

    `bench.quick` leaves all out but training at xs.
    """
    for name in ("dit", "ar", "unet"):
        if not bench.quick:
            training(bench, name, size, side, batch)
        training(bench, name, "xs", 8, 32)
    if bench.quick:
        return
    # at xs, where a step is many short operations, choices weigh most
    for name in ("dit", "ar", "unet", "masked"):
        sampling(bench, name, "xs", 8, 32)
    for name in ("dit", "unet"):
        for many in (1, 32):
            guidance_halves(bench, name, "xs", 8, many)
