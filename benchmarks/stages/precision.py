"""Weights in bfloat16 while a model samples."""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice

import torch
from torch import nn


@contextmanager
def bf16_weights(model: nn.Module, precision: str) -> Iterator[None]:
    """For bf16: the weights of linear layers and convolutions in bfloat16 within, and as they were
    afterwards.

    Only in modules whose class says `bf16_safe`. Autocast rounds theirs to the very same numbers,
    but anew for every batch; weights that are joined for sampling (`ar`) at every call; and in
    inference mode, which convolutions on a CPU pay for (below).
    """
    weights = _weights(model) if precision == "bf16" else []
    originals = [parameter.data for parameter in weights]
    try:
        # convolutions whose weights were made in inference mode are much slower on a CPU
        with torch.inference_mode(False):
            for parameter in weights:
                parameter.data = parameter.data.bfloat16()
        yield
    finally:
        for parameter, original in zip(weights, originals, strict=True):
            parameter.data = original


def _weights(model: nn.Module) -> list[nn.Parameter]:
    """What autocast would cast: of linear layers and convolutions, in modules that are safe."""
    layers = (nn.Linear, nn.Conv2d)
    safe = [module for module in model.modules() if getattr(type(module), "bf16_safe", False)]
    inside = [module for root in safe for module in root.modules()]
    # what other layers hold stays: autocast computes it in float32
    whole = set()
    for module in model.modules():
        if not isinstance(module, layers):
            whole |= {id(parameter) for parameter in module.parameters(recurse=False)}
    # diffusers' and transformers' modules take the type of their first parameter for their own
    for module in inside:
        if hasattr(type(module), "dtype"):
            whole |= {id(parameter) for parameter in islice(module.parameters(), 1)}
    weights = {}
    for module in inside:
        if isinstance(module, layers):
            for parameter in module.parameters(recurse=False):
                if id(parameter) not in whole:
                    weights[id(parameter)] = parameter
    return list(weights.values())
