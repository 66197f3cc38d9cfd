"""What some choices of ours give: a call as it is, in turns with the same call but for one thing
(part of `make perf`; stages `choice: ...`).
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.training_utils import EMAModel
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from benchmarks.core.store import seeded
from benchmarks.frozen.autoencoder import shipped_codebook_size
from benchmarks.perf.bench import CLASSES, Bench, batches, drawing, generator, random_latents
from benchmarks.stages import sample
from benchmarks.stages.sample import bf16_weights
from benchmarks.stages.train import InPlaceEMA, build_train_state
from models import layers
from models.autoregressive import Rotary
from models.dit import GELU, DiT
from models.unet import QuickAttention, UNet

Variant = Callable[[], AbstractContextManager[Any]]


@contextmanager
def swapped(owner: Any, name: str, value: Any) -> Iterator[None]:
    """`owner.name` is `value` within."""
    kept = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, kept)


# On CUDA none of these but the rotation changes anything.
TORCH_ATTENTION = {"torch's fused attention": partial(swapped, layers, "PLAIN", 0)}
MODEL_VARIANTS: dict[str, dict[str, Variant]] = {
    "dit": {
        "tanh form of GELU": partial(
            swapped, GELU, "forward", lambda self, x: F.gelu(x, approximate="tanh")
        ),
        "patches left transposed": partial(
            swapped,
            DiT,
            "embed",
            lambda self, x: self.patches(x).flatten(2).transpose(1, 2) + self.positions,
        ),
    },
    "ar": {
        "rotation in float32": partial(swapped, Rotary, "forward", LlamaRotaryEmbedding.forward)
    },
    "unet": {
        "attention's output left channels-last": partial(
            swapped, QuickAttention, "__call__", QuickAttention.attend
        ),
        "input channels-last": partial(
            swapped, UNet, "layout", lambda self, x: x.contiguous(memory_format=torch.channels_last)
        ),
    },
}


def under(variant: Variant, call: Callable[[], Any]) -> Callable[[], None]:
    """The call with one thing changed."""

    def changed() -> None:
        with variant():
            call()

    return changed


def training(bench: Bench, name: str, size: str, side: int, batch: int) -> None:
    """A training step as it is, and without each of the choices made for it."""
    model, cfg = generator(name, size, side, bench.device)
    plain = build_train_state(
        generator(name, size, side, bench.device)[0], cfg.train, 1e-4, bench.device
    )
    for group in plain.optimizer.param_groups:
        group["fused"] = None
    state = build_train_state(model, cfg.train, 1e-4, bench.device)
    steps = batches(
        random_latents(model.latent_shape, shipped_codebook_size(), bench.device), batch
    )
    ours = lambda: state.step(next(steps), seeded("noise", 0))  # noqa: E731
    variants = (
        MODEL_VARIANTS[name]
        | TORCH_ATTENTION
        | {"diffusers' EMA step": partial(swapped, InPlaceEMA, "step", EMAModel.step)}
    )
    calls = {"ours": ours} | {label: under(variant, ours) for label, variant in variants.items()}
    calls["AdamW without fused"] = lambda: plain.step(next(steps), seeded("noise", 0))
    named = dict(model=name, family=cfg.model.family, size=size, batch=batch, dtype="bf16")
    bench.compare(f"choice: train {side}x{side}", calls, batch, **named)


def drawn(bench: Bench, name: str, size: str, side: int, batch: int) -> None:
    """Drawing in 8 steps, or one a token, as it is, and without each of the choices made for it."""
    model, cfg = generator(name, size, side, bench.device)
    labels = torch.arange(batch, device=bench.device) % CLASSES
    draw, steps = (
        drawing(model.eval(), labels, bench.device),
        8 if model.supported_steps([8]) else side * side,
    )
    ours = lambda: draw(steps)  # noqa: E731
    variants = (
        {} if name == "ar" else MODEL_VARIANTS.get(name, {})
    )  # `ar` draws through blocks of its own
    variants = (
        variants
        | TORCH_ATTENTION
        | {
            "weights cast by autocast": partial(
                swapped, sample, "bf16_weights", lambda *_: nullcontext()
            )
        }
    )
    calls = {"ours": ours} | {label: under(variant, ours) for label, variant in variants.items()}
    named = dict(model=name, family=cfg.model.family, size=size, batch=batch, dtype="bf16")
    bench.compare(f"choice: sample {side}x{side}", calls, batch, **named)


def guidance_halves(bench: Bench, name: str, size: str, side: int, batch: int) -> None:
    """Both halves of guidance in one call of the network, against one call each."""
    model, cfg = generator(name, size, side, bench.device)
    x, t = (
        torch.randn(batch, *model.latent_shape, device=bench.device),
        torch.full((batch,), 500.0, device=bench.device),
    )
    labels = torch.arange(batch, device=bench.device) % CLASSES
    both = [torch.cat([part, part]) for part in (x, t, labels)]

    @torch.inference_mode()
    def evaluate(*given: torch.Tensor, times: int) -> None:
        with torch.autocast(bench.device.type, torch.bfloat16):
            for _ in range(times):
                model.eval().denoiser(*given)

    with bf16_weights(model, "bf16"):
        calls = {
            "ours": lambda: evaluate(*both, times=1),
            "a call for each half of guidance": lambda: evaluate(x, t, labels, times=2),
        }
        named = dict(model=name, family=cfg.model.family, size=size, batch=batch, dtype="bf16")
        bench.compare(f"choice: one guided evaluation {side}x{side}", calls, batch, **named)


def measure(bench: Bench, size: str, side: int, batch: int) -> None:
    """All of them: training at `size` and at xs, drawing at xs; `bench.quick` leaves all out but
    training at xs.
    """
    for name in ("dit", "ar", "unet"):
        if not bench.quick:
            training(bench, name, size, side, batch)
        training(bench, name, "xs", 8, 32)
    if bench.quick:
        return
    for name in ("dit", "ar", "unet", "masked"):
        drawn(bench, name, "xs", 8, 32)
    for name in ("dit", "unet"):
        for many in (1, 32):
            guidance_halves(bench, name, "xs", 8, many)
