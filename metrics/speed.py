"""Seconds and bytes: synchronised clocks, medians, peak memory, and the machine's own ceiling."""

import ctypes
import gc
import os
import resource
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

LONG_PRODUCT = 0.5  # seconds: a larger one is not tried
OVERHEAD = 2 * 2**30  # bytes of a GPU's memory for contexts, kernels and workspaces: a guess
LEAST_WATCHED = 0.5  # seconds: the system counts in hundredths
LEAST_REPEATS = 4  # fewer say nothing about how far repeats lie apart


def keep_memory() -> None:
    """Let glibc keep freed memory, of large arrays too, for the next step. Elsewhere: nothing.

    Else each step's memory goes back to the kernel and comes zeroed again. 128 guided samples of
    `masked` at size xs in 8 steps took 7.7 ms an image on two cores with the second and third
    setting (the latter at 2 GiB then), 14.5 ms without (medians of two runs in turns), for 26 to
    31% more memory at the peak. Other models and training gain little.
    """
    try:
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(-2, 2**28)  # M_TOP_PAD: ask for much at once
        libc.mallopt(-4, 0)  # M_MMAP_MAX: no mapping of its own for a large array
        libc.mallopt(-1, -1)  # M_TRIM_THRESHOLD: give nothing back
    except (OSError, AttributeError):
        pass


def free_memory() -> None:
    """Give back what the last cell of a sweep held, compiled code too: cells share a process."""
    if "torch._dynamo" in sys.modules:
        torch.compiler.reset()
    gc.collect()
    with suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)  # what `keep_memory` kept
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def synchronise(device: torch.device) -> None:
    """Wait until the device has done what it was given, so that a clock read next counts it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def timed(call: Callable[[], Any], device: torch.device) -> tuple[Any, float]:
    """The call's result and its wall seconds."""
    synchronise(device)
    started = time.perf_counter()
    result = call()
    synchronise(device)
    return result, time.perf_counter() - started


class Laps:
    """Seconds between marks. On CUDA a mark is an event among the device's work, so that nobody
    waits for it.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self.marks: list[Any] = []
        self.mark()

    def mark(self) -> None:
        """The end of a lap: what the device has been given so far belongs to it."""
        if self.device.type == "cuda":
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self.marks.append(event)
        else:
            self.marks.append(time.perf_counter())

    def seconds(self) -> list[float]:
        """Of each lap; waits for the device."""
        synchronise(self.device)
        if self.device.type == "cuda":
            return [a.elapsed_time(b) / 1e3 for a, b in pairwise(self.marks)]
        return [b - a for a, b in pairwise(self.marks)]


class OtherPrograms:
    """What other programs take of the CPU cores that this process may use, while it is timed.

    On CUDA it says nothing: the CPU is not what is timed there.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self.began, self.busy, self.own = _cpu_seconds()

    def own_seconds(self) -> float:
        """CPU seconds of this process since it was made."""
        return _cpu_seconds()[2] - self.own

    def share(self, own: float | None = None) -> float | None:
        """Of the cores' time since it was made, 0 to 1; None where the system does not say.

        `own`: CPU seconds of what is no other program; default: those of this process.
        """
        now, busy, _ = _cpu_seconds()
        own = self.own_seconds() if own is None else own
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
        if self.device.type != "cpu" or busy is None or self.busy is None:
            return None
        if now - self.began < LEAST_WATCHED:
            return None
        others = (busy - self.busy) - own
        return min(1.0, max(0.0, others / (cores * (now - self.began))))


def others_gpu(device: torch.device) -> float | None:
    """The share of a GPU's memory that other programs hold, 0 to 1; None on a CPU.

    Whoever holds memory there is likely to compute there, too. What CUDA itself takes for this
    process is about as much as OVERHEAD.
    """
    if device.type != "cuda":
        return None
    free, whole = torch.cuda.mem_get_info(device)
    others = whole - free - torch.cuda.memory_reserved(device) - OVERHEAD
    return max(0.0, others / whole)


def _cpu_seconds() -> tuple[float, float | None, float]:
    """A clock, and the CPU seconds of all programs on this process's cores and of its own."""
    now, times = time.perf_counter(), os.times()
    own = times.user + times.system + times.children_user + times.children_system
    try:
        lines = Path("/proc/stat").read_text(encoding="utf-8").splitlines()
        cores = {f"cpu{core}" for core in os.sched_getaffinity(0)}
    except (OSError, AttributeError):  # not Linux
        return now, None, own
    ticks = 0
    for name, *counts in map(str.split, lines):
        if name in cores:
            user, nice, system, _idle, _waiting, interrupts, soft, stolen = map(int, counts[:8])
            ticks += user + nice + system + interrupts + soft + stolen
    return now, ticks / os.sysconf("SC_CLK_TCK"), own


def median_seconds(
    call: Callable[[], Any], device: torch.device, *, repeats: int = 3, warmup: int = 1
) -> float:
    """Median wall seconds of `repeats` calls, after `warmup` unmeasured ones."""
    for _ in range(warmup):
        call()
    return statistics.median(timed(call, device)[1] for _ in range(repeats))


def spread(seconds: list[float]) -> float | None:
    """By how much the median of repeats exceeds the fastest, as a fraction of it; None of few.

    Nothing makes a repeat faster than the machine is; other programs, and other guests of one
    computer, whom no clock of this system counts, make some slower.
    """
    if len(seconds) < LEAST_REPEATS:
        return None
    return statistics.median(seconds) / min(seconds) - 1


def ceiling_flops(device: torch.device) -> float:
    """FLOP/s of the fastest square matrix product, in bfloat16 or float32: what a utilisation of 1
    means on this machine.
    """
    return max(product_flops(device).values())


@lru_cache(maxsize=4)
def product_flops(device: torch.device) -> dict[torch.dtype, float]:
    """FLOP/s of square matrix products by type, the best of a few.

    Measured once per process and device, in seconds on any machine: some would take minutes for a
    large product in bfloat16.
    """
    rates = {}
    for dtype in (torch.float32, torch.bfloat16):
        # On a large GPU a small product is mostly launch time.
        for size in (1024, 2048) if device.type == "cpu" else (8192,):
            a = torch.randn(size, size, device=device).to(dtype)
            first = timed(lambda a=a: a @ a, device)[1]  # a warm-up, too
            repeats = 5 if first < LONG_PRODUCT else 1
            seconds = min(timed(lambda a=a: a @ a, device)[1] for _ in range(repeats))
            rates[dtype] = max(rates.get(dtype, 0.0), 2 * size**3 / seconds)
            if first > LONG_PRODUCT:
                break
    return rates


def faster_in_bf16(device: torch.device) -> bool:
    """Whether matrix products in bfloat16 are the faster ones, as on most GPUs and some CPUs.

    Where a processor has instructions for them they take half as long or less, elsewhere several
    times as long, so that two calls on one machine do not disagree.
    """
    rates = product_flops(device)
    return rates[torch.bfloat16] > rates[torch.float32]


def reset_peak_memory(device: torch.device) -> None:
    """Start a new high-water mark (on Linux; elsewhere the process's own is kept)."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    except OSError:
        pass


def peak_memory_mb(device: torch.device) -> float:
    """The most memory held since the last reset, in MiB.

    Device memory on CUDA; on a CPU the process's resident memory.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    try:
        status = Path("/proc/self/status").read_text(encoding="utf-8")
        return int(status.split("VmHWM:")[1].split()[0]) / 1024  # given in KiB
    except (OSError, IndexError):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
