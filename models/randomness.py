"""Random numbers of training and sampling, which are drawn on the host from a stream of each
sample's own, and how they reach the device.
"""

from collections.abc import Iterable

import torch
from torch import LongTensor, Tensor


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor on `device`. From the host to CUDA it is copied without the host waiting.

    All random numbers of training and sampling are drawn on the host and come this way, so that
    they are the same on every kind of device. That costs no time as long as the host is ahead of
    the device, which is still busy with the last step.
    """
    # Only copies from pinned memory are asynchronous, and only memory of the host can be pinned.
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def spawn(rng: torch.Generator, count: int) -> list[torch.Generator]:
    """One CPU generator per sample, seeded from `rng` in order.

    So sample i's noise is the same whatever batch it is sampled in.
    """
    seeds = torch.randint(2**62, (count,), generator=rng)
    return [torch.Generator().manual_seed(seed) for seed in seeds.tolist()]


def randn(shape: Iterable[int], rngs: list[torch.Generator], device: torch.device) -> Tensor:
    """Standard normal noise (B, *shape), float32. Sample i's is drawn from `rngs[i]`."""
    shape = tuple(shape)
    return to_device(torch.stack([torch.randn(shape, generator=rng) for rng in rngs]), device)


def rand(shape: Iterable[int], rngs: list[torch.Generator], device: torch.device) -> Tensor:
    """Uniform numbers in [0, 1), (B, *shape), float32. Sample i's are drawn from `rngs[i]`."""
    shape = tuple(shape)
    return to_device(torch.stack([torch.rand(shape, generator=rng) for rng in rngs]), device)


def random_orders(places: int, rngs: list[torch.Generator], device: torch.device) -> LongTensor:
    """An order of all places for each sample, (B, places). Sample i's is drawn from `rngs[i]`."""
    orders = [torch.rand(places, generator=rng).argsort() for rng in rngs]
    return to_device(torch.stack(orders), device)
