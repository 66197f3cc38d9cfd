"""What a machine's memory and launches allow at best: the bounds that cached decoding is held
against.

A step of a raster model reads every weight once and, for each sample, the keys and values so far;
it runs a few hundred kernels one after the other. The larger of both times is a floor: at batch 64
it is memory's, at batch 1 the launches'.
"""

from collections.abc import Callable
from typing import Any

import torch

from metrics import speed
from models.autoregressive import Autoregressive
from models.decoding import capture

# numbers of float32 in the array whose copy is timed: 1 GiB, many times what caches hold
COPIED = 2**28
LAUNCHES = 2000  # in the row that is timed, so that starting and ending it do not count


def bandwidth(device: torch.device, numbers: int = COPIED) -> float:
    """Bytes per second of a large copy on the device, read and written bytes counted."""
    source = torch.empty(numbers, device=device)
    target = torch.empty_like(source)

    def copy() -> None:
        target.copy_(source)

    seconds = speed.median_seconds(copy, device, repeats=5, warmup=2)
    return 2 * 4 * numbers / seconds  # read and written, four bytes each


def launch_seconds(device: torch.device) -> float:
    """Seconds that the smallest kernel takes of a long row of them: on CUDA as one graph, which is
    how decoding launches its own.
    """
    x = torch.zeros(1, device=device)

    def row() -> None:
        for _ in range(LAUNCHES):
            x.add_(1)

    call = row
    if device.type == "cuda":
        row()
        call = capture(row, torch.cuda.graph_pool_handle()).replay
    return speed.median_seconds(call, device, repeats=5) / LAUNCHES


def kernels(call: Callable[[], Any], device: torch.device) -> int:
    """Kernels that a call launches one by one: CUDA's own count there, elsewhere the operators that
    would each be one.

    Raises RuntimeError where the profiler saw none.
    """
    activities = [torch.profiler.ProfilerActivity.CPU]
    counted = torch.autograd.DeviceType.CPU
    if device.type == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
        counted = torch.autograd.DeviceType.CUDA
    with torch.profiler.profile(activities=activities) as profiled:
        call()
        speed.synchronise(device)
    launched = [event for event in profiled.events() if event.device_type == counted]
    # copies and fills, `Memcpy` and `Memset`, are no kernels
    count = sum(not event.name.startswith("Mem") for event in launched)
    if not count:
        raise RuntimeError("the profiler saw no kernel")
    return count


def decoding_bytes(model: Autoregressive, batch: int, bytes_each: int = 2) -> int:
    """Bytes that decoding `batch` samples reads at least: weights once a step, each key and value
    once for every later step.

    `bytes_each` are those of a number: 2 in bf16.
    """
    layers, head = model.transformer.layers, model.head
    weights = sum(p.numel() for p in layers.parameters()) + head.weight.numel()
    steps, config = model.tokens // model.block, model.transformer.config
    # step s looks at s blocks of keys: 1 + 2 + ... + steps of them in all
    keys = model.block * steps * (steps + 1) // 2
    cache = 2 * config.num_hidden_layers * config.hidden_size * keys * batch  # keys and values
    return bytes_each * (steps * weights + cache)
