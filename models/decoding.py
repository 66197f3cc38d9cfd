"""Decoding token by token in buffers that stay where they are, so that CUDA can replay a step as
one graph.

A step of a cached model is a few hundred small kernels. Launching them one by one takes longer than
running them. On CUDA each shape of step is therefore captured once (`torch.cuda.graph`) and
replayed. A graph is only its kernels and their addresses: where a step reads and writes must come
from a tensor on the device, and a cache cannot grow. Such steps are called static. Elsewhere the
very same step runs uncaptured, and the host says by slices where it reads and writes.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from models.randomness import to_device

# A static step looks at a multiple of so many keys, of which those not yet written are masked. So
# 256 tokens need 8 graphs, not 256.
ROUNDED = 32

# Places along one dimension: a slice known to the host, or (t,) int64 on the device.
Places = slice | Tensor


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
    """Which places of a cache a step writes, and which it looks at."""

    places: Places  # of the step's own keys
    length: int  # keys looked at, from the first on
    seen: Tensor | None  # (1, length) bool: which of these are filled; None: all of them


class Cache:
    """Keys and values of one attention layer, room for `length` of them, filled step by step."""

    def __init__(self, length: int):
        self.length = length
        self.keys: Tensor | None = None  # (B, heads, length, head_dim), made by the first step
        self.values: Tensor | None = None

    def extend(self, keys: Tensor, values: Tensor, window: Window) -> tuple[Tensor, Tensor]:
        """Write keys and values (B, heads, t, head_dim) at the window's places.

        Returns all keys and values that the window looks at, (B, heads, window.length, head_dim).
        """
        if self.keys is None or self.values is None:
            # Where unwritten keys are looked at they must be zeros: attention gives them a weight
            # of zero, and zero times whatever NaN the memory held is NaN.
            room = torch.empty if window.seen is None else torch.zeros
            shape = (*keys.shape[:2], self.length, keys.shape[3])
            self.keys = room(shape, dtype=keys.dtype, device=keys.device)
            self.values = room(shape, dtype=values.dtype, device=values.device)
        put(self.keys, window.places, 2, keys)
        put(self.values, window.places, 2, values)
        return self.keys[:, :, : window.length], self.values[:, :, : window.length]


class Steps:
    """How far the decoding of a sequence of `tokens` is, and the graphs of its steps.

    `static`: places are tensors on the device and lengths are rounded up, as capturing needs.
    `captured`: a step of a shape seen before is a graph (CUDA only). The first step of a shape
    always runs as it is, which is the warm-up that a capture asks for.
    """

    def __init__(self, tokens: int, device: torch.device, *, static: bool, captured: bool):
        self.tokens, self.static, self.captured = tokens, static, captured
        self.start = 0  # tokens decoded so far, as the host knows
        self.at = torch.zeros(1, dtype=torch.long, device=device)  # the same, on the device
        self.ahead = torch.arange(tokens, device=device)
        self.graphs: dict[tuple, torch.cuda.CUDAGraph | None] = {}  # by shape; None: ran once
        self.pool = torch.cuda.graph_pool_handle() if captured else (0, 0)

    def begin(self) -> None:
        """Back to the first token."""
        self.start = 0
        self.at.zero_()

    def places(self, first: int, count: int) -> Places:
        """`count` places, the first of them `first` after the tokens decoded so far.

        `first` is negative for tokens decoded already.
        """
        if self.static:
            return self.at + (self.ahead[:count] + first)
        return slice(self.start + first, self.start + first + count)

    def window(self, first: int, count: int) -> Window:
        """Of a cache whose `count` new keys go to `places(first, count)`, behind filled ones."""
        places, end = self.places(first, count), self.start + first + count
        if not self.static:
            return Window(places, end, None)
        length = self.rounded(end)
        filled = self.ahead[:length] < self.at + (first + count)
        return Window(places, length, filled[None])

    def rounded(self, length: int) -> int:
        """The next multiple of ROUNDED, at most all tokens."""
        return min(self.tokens, -(-length // ROUNDED) * ROUNDED)

    def table(self, values: list[float]) -> list[float] | Tensor:
        """One number for each count of decoded tokens, 0 to all, where `of_step` can read it."""
        return to_device(torch.tensor(values), self.at.device) if self.static else values

    def of_step(self, table: list[float] | Tensor, count: int) -> float | Tensor:
        """The table's number for the tokens that are there after this step of `count`."""
        return table[self.at + count] if self.static else table[self.start + count]

    def run(self, step: Callable[[], None], count: int, shape: tuple) -> None:
        """Run a step that decodes `count` tokens. `shape` names all that its kernels depend on."""

        def counted_step() -> None:
            step()
            self.at.add_(count)

        graph = None
        if self.captured and shape in self.graphs:
            graph = self._graph(shape, counted_step)
        else:
            self.graphs[shape] = None
        if graph is None:
            counted_step()
        else:
            graph.replay()
        self.start += count

    def _graph(self, shape: tuple, step: Callable[[], None]) -> torch.cuda.CUDAGraph | None:
        """The step's graph, captured if it is not yet.

        None where capturing fails. No step is captured from then on.
        """
        if self.graphs[shape] is None:
            try:
                self.graphs[shape] = capture(step, self.pool)
            except RuntimeError as error:
                self.captured = False
                reason = str(error).strip().splitlines()[0][:200]
                print(f"decoding without CUDA graphs: {reason}", flush=True)
        return self.graphs[shape]


def capture(step: Callable[[], None], pool: tuple[int, int]) -> torch.cuda.CUDAGraph:
    """The kernels of a step as a graph. Nothing is run.

    Graphs of one pool share memory, so they may not run side by side.
    """
    graph, caching = torch.cuda.CUDAGraph(), torch.is_autocast_cache_enabled()
    # Else autocast would keep its cast of a weight in the graph's memory, gone at the replay.
    torch.set_autocast_cache_enabled(False)
    try:
        with torch.cuda.graph(graph, pool=pool):
            step()
    finally:
        torch.set_autocast_cache_enabled(caching)
    return graph
