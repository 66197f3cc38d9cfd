"""Decoding token by token in buffers that stay where they are, so that CUDA can replay a step as
one graph.

A step of a cached model is a few hundred small kernels; launching them one by one takes longer than
running them. On CUDA each shape of step is therefore captured once (`torch.cuda.graph`) and
replayed. A graph is only its kernels and their addresses: where a step reads and writes must come
from a tensor on the device, and a cache cannot grow. Elsewhere the very same step runs uncaptured,
and the host says where it is by slices.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from models.generator import to_device

ROUNDED = 32  # a static step looks at a multiple of so many keys, the rest masked: 8 graphs for 256 tokens, not 256

Places = slice | Tensor  # of one dimension: known to the host, or (t,) int64 on the device


def take(x: Tensor, places: Places, dim: int) -> Tensor:
    """These places of `x` along `dim`."""
    if isinstance(places, slice):
        return x.narrow(dim, places.start, places.stop - places.start)
    return x.index_select(dim, places)


def put(x: Tensor, places: Places, dim: int, values: Tensor) -> None:
    """`x` at these places along `dim` becomes `values`, in place."""
    if isinstance(places, slice):
        x.narrow(dim, places.start, places.stop - places.start).copy_(values)
    else:
        x.index_copy_(dim, places, values.to(x.dtype))


class Window(NamedTuple):
    """The part of a cache that a step writes and the part it looks at."""

    places: Places  # of the step's own keys
    length: int  # keys looked at, from the first on
    seen: Tensor | None  # (1, length) bool, those of them that are filled; None: all


class Cache:
    """Keys and values of one attention layer, room for `length` of them, filled step by step."""

    def __init__(self, length: int):
        self.length = length
        self.keys: Tensor | None = None
        self.values: Tensor | None = None

    def extend(self, keys: Tensor, values: Tensor, window: Window) -> tuple[Tensor, Tensor]:
        """Write (B, heads, t, head_dim) at the window's places and return all that it looks at."""
        if self.keys is None or self.values is None:
            # Zeros, not empty: a masked key weighs nothing, but nothing times a NaN is NaN.
            room = torch.empty if window.seen is None else torch.zeros
            shape = (*keys.shape[:2], self.length, keys.shape[3])
            self.keys = room(shape, dtype=keys.dtype, device=keys.device)
            self.values = room(shape, dtype=values.dtype, device=values.device)
        put(self.keys, window.places, 2, keys)
        put(self.values, window.places, 2, values)
        return self.keys[:, :, : window.length], self.values[:, :, : window.length]


class Steps:
    """How far a decoding of `tokens` tokens is, and the graphs of its steps.

    `static`: places are tensors on the device, and lengths are rounded up, as capturing needs;
    `captured`: steps are graphs from their second run on (CUDA only). The first run of a shape is
    the warm-up that a capture asks for.
    """

    def __init__(self, tokens: int, device: torch.device, *, static: bool, captured: bool):
        self.tokens, self.static, self.captured = tokens, static, captured
        self.start = 0  # tokens decoded, as the host knows
        self.at = torch.zeros(1, dtype=torch.long, device=device)  # the same on the device
        self.ahead = torch.arange(tokens, device=device)
        self.graphs: dict[tuple, torch.cuda.CUDAGraph | None] = {}  # by shape; None: has run once
        self.pool = torch.cuda.graph_pool_handle() if captured else (0, 0)

    def begin(self) -> None:
        """Back to the first token."""
        self.start = 0
        self.at.zero_()

    def places(self, first: int, count: int) -> Places:
        """`count` places, the first of them `first` behind the tokens decoded so far (before them
        where negative).
        """
        if self.static:
            return self.at + (self.ahead[:count] + first)
        return slice(self.start + first, self.start + first + count)

    def window(self, first: int, count: int) -> Window:
        """Of a cache whose `count` new keys go to `places(first, count)`; all before them are
        filled.
        """
        places, end = self.places(first, count), self.start + first + count
        if not self.static:
            return Window(places, end, None)
        length = self.rounded(end)
        return Window(places, length, (self.ahead[:length] < self.at + (first + count))[None])

    def rounded(self, length: int) -> int:
        """The multiple of ROUNDED that holds `length` keys, at most all."""
        return min(self.tokens, -(-length // ROUNDED) * ROUNDED)

    def table(self, values: list[float]) -> list[float] | Tensor:
        """One number for each count of decoded tokens, 0 to all, to be read by `of_step`."""
        return to_device(torch.tensor(values), self.at.device) if self.static else values

    def of_step(self, table: list[float] | Tensor, count: int) -> float | Tensor:
        """The table's number for the tokens that are there after this step of `count`."""
        return table[self.at + count] if self.static else table[self.start + count]

    def run(self, step: Callable[[], None], count: int, shape: tuple) -> None:
        """A step that decodes `count` tokens; `shape` names what its kernels' shapes depend on."""

        def whole() -> None:
            step()
            self.at.add_(count)

        if not self.captured or shape not in self.graphs:
            self.graphs[shape] = None
            whole()
        elif self.graph(shape, whole) is None:
            whole()
        else:
            self.graphs[shape].replay()
        self.start += count

    def graph(self, shape: tuple, step: Callable[[], None]) -> torch.cuda.CUDAGraph | None:
        """The step's graph, captured where it is not yet; None, and from then on none at all, where
        that fails.
        """
        if self.graphs[shape] is None:
            try:
                self.graphs[shape] = capture(step, self.pool)
            except RuntimeError as error:
                self.captured = False
                print(
                    f"decoding without CUDA graphs: {str(error).strip().splitlines()[0][:200]}",
                    flush=True,
                )
        return self.graphs[shape]


def capture(step: Callable[[], None], pool: tuple[int, int]) -> torch.cuda.CUDAGraph:
    """The kernels of a step as a graph; nothing is run. Graphs of one pool share memory, so they
    may not run side by side.

    Autocast keeps no cast of a weight meanwhile: it would be gone at the replay.
    """
    graph, caching = torch.cuda.CUDAGraph(), torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        with torch.cuda.graph(graph, pool=pool):
            step()
    finally:
        torch.set_autocast_cache_enabled(caching)
    return graph
