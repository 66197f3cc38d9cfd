"""What this machine has, and what the suite makes of it: in lines."""

import os
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import huggingface_hub
import torch

from benchmarks.core.environment import device_name, git_state, own_cores, pick_device
from metrics import speed

GIB = 2**30
LITTLE_MEMORY = 4 * GIB  # the presets for a CPU take about 2
LITTLE_DISK = 2 * GIB  # the caches of one preset take about 1
HUB_SECONDS = 3.0  # to wait for an answer
WATCHED = 1.0  # seconds, for the load of other programs
CGROUP = Path("/sys/fs/cgroup")


class Finding(NamedTuple):
    """One thing that was looked at."""

    topic: str
    found: str
    consequence: str = ""  # what the suite does with it, or the mend
    bad: bool = False  # whether a bench would fail, or its numbers mislead


def as_lines(findings: Sequence[Finding]) -> list[str]:
    """One line for each finding; what is bad is marked."""
    lines = []
    for finding in findings:
        mark = "!" if finding.bad else " "
        consequence = f" -> {finding.consequence}" if finding.consequence else ""
        lines.append(f"{mark} {finding.topic:10} {finding.found}{consequence}")
    return lines


def headlines(cache: Path, results: Path) -> list[Finding]:
    """The three findings that matter most to a bench, in a moment."""
    return [processor(), disk(cache, results), code()]


def everything(cache: Path, results: Path) -> list[Finding]:
    """All findings on the machine; takes some seconds."""
    return [
        *headlines(cache, results),
        load(),
        precision(),
        compiler(),
        hub(),
    ]


def processor() -> Finding:
    """Cores or GPU, and memory."""
    device = pick_device("auto")
    if device.type == "cuda":
        total = torch.cuda.get_device_properties(device).total_memory
        found = f"{device_name(device)}, {total / GIB:.0f} GiB; {len(own_cores())} CPU cores"
        return Finding("device", found, "the default preset is gpu")
    memory = _free_memory()
    found = f"{device_name(device)}, {len(own_cores())} cores, no CUDA"
    if memory is None:
        return Finding("device", found, "the default preset is cpu")
    found += f"; {memory / GIB:.1f} GiB of memory free"
    if memory < LITTLE_MEMORY:
        return Finding("device", found, "less than the 4 GiB that presets for a CPU need", bad=True)
    return Finding("device", found, "the default preset is cpu")


def disk(cache: Path, results: Path) -> Finding:
    """Room for the caches and the results, and whether they can be written."""
    if not os.access(_nearest(results), os.W_OK):
        mend = "make it writable, or give another results_dir="
        return Finding("disk", f"results_dir={results} cannot be written", mend, bad=True)
    if not os.access(_nearest(cache), os.W_OK):
        found = f"cache_dir={cache} cannot be written"
        return Finding("disk", found, "a bench ends where it lacks anything")
    free = shutil.disk_usage(_nearest(cache)).free
    found = f"{free / GIB:.1f} GiB free for {cache}"
    if free < LITTLE_DISK:
        return Finding("disk", found, "caches take about 1 GiB a preset, more on a GPU", bad=True)
    return Finding("disk", found)


def code() -> Finding:
    """The commit that records will name."""
    state = git_state()
    if state["git_sha"] is None:
        mend = "records will name no commit; `make commit-file` before the code is carried here"
        return Finding("code", "no git, or no repository", mend)
    if state["git_dirty"]:
        return Finding("code", f"{state['git_sha']}, changed", "records will say so")
    return Finding("code", state["git_sha"])


def load() -> Finding:
    """What other programs take of the CPU."""
    watch = speed.OtherPrograms(torch.device("cpu"))
    time.sleep(WATCHED)
    share = watch.share()
    if share is None:
        return Finding("load", "unknown on this system", "do not run other programs meanwhile")
    found = f"other programs take {share:.0%} of the CPU"
    if share > 0.1:
        return Finding("load", found, "seconds will be too high, and marked as such", bad=True)
    return Finding("load", found)


def precision() -> Finding:
    """How fast each type multiplies."""
    rates = speed.product_flops(pick_device("auto"))
    bf16, fp32 = rates[torch.bfloat16], rates[torch.float32]
    found = f"products run at {bf16 / 1e9:.0f} GFLOP/s in bf16, {fp32 / 1e9:.0f} in float32"
    return Finding("precision", found, "train.precision=auto times each network in both")


def compiler() -> Finding:
    """Whether torch.compile can work."""
    names = ("c++", "g++", "clang++")
    there = next((name for name in names if shutil.which(name)), None)
    if there:
        return Finding("compiler", there, "train.compile works")
    return Finding("compiler", "none", "train.compile=true fails; auto goes on without")


def hub() -> Finding:
    """Whether data and networks can be downloaded."""
    try:
        session = huggingface_hub.get_session()
        session.head(huggingface_hub.constants.ENDPOINT, timeout=HUB_SECONDS)
    except Exception as error:  # whatever the client's network layers raise
        mend = "data=imagefolder and local folders work; names on the hub do not"
        return Finding("hub", f"no answer ({type(error).__name__})", mend)
    return Finding("hub", "answers", "tiny_imagenet, imagenette and networks by name can be had")


def _free_memory() -> int | None:
    """Bytes that this process may still take: of the machine, or of its container if less."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
        amounts = dict(line.split(":") for line in lines)
        free = int(amounts["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return None
    try:
        limit = int((CGROUP / "memory.max").read_text(encoding="utf-8"))
        used = int((CGROUP / "memory.current").read_text(encoding="utf-8"))
        lines = (CGROUP / "memory.stat").read_text(encoding="utf-8").splitlines()
        used -= int(dict(line.split() for line in lines)["inactive_file"])  # given back on demand
    except (OSError, ValueError, KeyError):  # "max": no limit
        return free
    return min(free, limit - used)


def _nearest(folder: Path) -> Path:
    """The folder, or the nearest one above it that is there."""
    folder = folder.expanduser().absolute()
    return next(path for path in (folder, *folder.parents) if path.exists())
