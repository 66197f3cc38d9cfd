"""What a result was made by: the code's commit, the libraries' versions and the machine."""

import os
import platform
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from benchmarks.core.errors import BadInput
from benchmarks.core.session import session
from benchmarks.core.store import ROOT, digest, file_digest

# the libraries a number may depend on
PACKAGES = (
    "torch",
    "diffusers",
    "transformers",
    "accelerate",
    "numpy",
    "scipy",
    "pillow",
    "safetensors",
    "datasets",
    "hydra-core",
)


# of accelerate and torchrun: settings that would change a training, or make it wait for others
OF_LAUNCHERS = ("ACCELERATE_", "FSDP_")
RANKS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")
COUNTS = ("WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE")
# of accelerate: each process would hold a part of the model
SHARDED = ("ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED", "ACCELERATE_USE_MEGATRON_LM")
# name -> the value that leaves float32 as it is
CHANGE_NUMBERS = {
    "NVIDIA_TF32_OVERRIDE": "0",
    "ONEDNN_DEFAULT_FPMATH_MODE": "STRICT",
    "DNNL_DEFAULT_FPMATH_MODE": "STRICT",
}


def own_cores() -> list[int]:
    """The CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


@contextmanager
def variable(name: str, value: str) -> Iterator[None]:
    """Within, an environment variable has this value."""
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


@lru_cache(maxsize=1)
def git_state() -> dict[str, Any]:
    """The columns `git_sha` and `git_dirty`; None where neither can be known.

    Changes in results/ do not count: results are not code. Where the code lies without its
    repository, the commit travels with it, as LATENTBENCH_COMMIT or in a file `.commit` beside it
    (`make commit-file`): the commit and, where the code had been changed, `-dirty`.
    """
    sha = _git("rev-parse", "--short=12", "HEAD")
    if sha is None:
        carried = os.environ.get("LATENTBENCH_COMMIT") or _carried_commit()
        if carried:
            sha = carried.removesuffix("-dirty")
            return {"git_sha": sha, "git_dirty": carried.endswith("-dirty")}
    changes = _git("status", "--porcelain", "--", ".", ":!results")
    return {"git_sha": sha, "git_dirty": None if changes is None else bool(changes)}


@lru_cache(maxsize=1)
def code_digest() -> str:
    """sha256 of the suite's own code, committed or not, when first asked. Configurations are not
    part of it: every record holds its own.
    """
    folders = [ROOT / name for name in ("benchmarks", "metrics", "models")]
    return file_digest(*sorted(path for folder in folders for path in folder.rglob("*.py")))


def conf_digest() -> str:
    """Names the suite's configurations as they are now: each cell of a sweep is composed from them
    when its turn comes.
    """
    files = sorted((ROOT / "conf").rglob("*.yaml"))
    return digest([(path.relative_to(ROOT), file_digest(path)) for path in files])


def _git(*args: str) -> str | None:
    """What git prints; None where there is no git, no repository or no answer."""
    call = ["git", *args]
    try:
        done = subprocess.run(call, cwd=ROOT, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _carried_commit() -> str:
    """What the file `.commit` says; empty where there is none."""
    try:
        return (ROOT / ".commit").read_text(encoding="utf-8").strip()
    except OSError:
        return ""


@lru_cache(maxsize=4)
def device_name(device: torch.device) -> str:
    """The GPU's name, or the CPU's with its thread count."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
        name = models[0]
    except (OSError, IndexError):  # not Linux, or a processor that does not say
        name = platform.processor() or platform.machine()
    return f"{name} ({torch.get_num_threads()} threads)"


def machine(row: dict[str, Any]) -> str:
    """The column `device` of a row without its threads and processes; empty where it has none."""
    return (row.get("device") or "").split(" (")[0].split(", ")[0]


def refuse_foreign_settings() -> None:
    """Keep variables of the environment from changing what is computed: no key holds them.

    Those of a launcher are taken out, with a printed line. Raises BadInput for several processes,
    and for what libraries read behind our back.
    """
    for name in COUNTS:
        if os.environ.get(name, "1") not in ("", "1"):  # before it waits for the others
            raise BadInput(
                f"{name} is set: a launcher started several processes; only `run` takes them, "
                "and only from torchrun or accelerate launch"
            )
    for name, harmless in CHANGE_NUMBERS.items():
        if os.environ.get(name, harmless) not in ("", harmless):
            raise BadInput(f"{name} is set: it changes the precision of float32; unset it")
    for name in SHARDED:
        if os.environ.get(name, "").lower() in ("1", "true"):
            raise BadInput(
                f"{name} is set: models that are divided among GPUs are not supported; each "
                "process holds the whole model, so launch without it"
            )
    launched = [name for name in os.environ if name in RANKS or name.startswith(OF_LAUNCHERS)]
    by_accelerate = {"MASTER_PORT", "ACCELERATE_MIXED_PRECISION"} <= set(os.environ)
    if by_accelerate and "WORLD_SIZE" not in os.environ:
        raise BadInput(
            "accelerate launch was asked for several processes and started one, as it does on "
            "fewer than two GPUs: add --multi_gpu, or start them with torchrun; or unset "
            "MASTER_PORT, if it is left from something else"
        )
    for name in launched:
        del os.environ[name]
    if launched:
        session.print_once(f"not used, from the environment: {', '.join(sorted(launched))}")


def pick_device(wanted: str) -> torch.device:
    """The device of a setting `device`; `auto` is CUDA where there is one, `cuda:N` its card N.

    Raises BadInput for a device that is not there.
    """
    kind, _, card = wanted.partition(":")
    is_card = kind == "cuda" and card.isdecimal()
    if kind not in ("auto", "cpu", "cuda") or (card and not is_card):
        raise BadInput(f"device={wanted}: one of auto, cpu, cuda, cuda:N")
    if kind == "cuda" and not torch.cuda.is_available():
        raise BadInput(f"device={wanted}: no CUDA device found; use device=cpu or device=auto")
    if card:
        count = torch.cuda.device_count()
        if int(card) >= count:
            raise BadInput(f"device={wanted}: this machine has {count}, from cuda:0 up")
        # of this process from now on, so that `cuda` means this card to every library
        torch.cuda.set_device(int(card))
    # else float32 convolutions, of a U-Net and of the feature extractors, would be less exact
    torch.backends.cudnn.allow_tf32 = False
    torch.set_float32_matmul_precision("highest")
    return torch.device("cuda" if kind != "cpu" and torch.cuda.is_available() else "cpu")


@lru_cache(maxsize=1)
def library_versions() -> dict[str, str]:
    """Versions of Python and of those of `PACKAGES` that are installed."""
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return versions


def now() -> str:
    """UTC, to the second, ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def provenance(device: torch.device) -> dict[str, Any]:
    """The columns that say by which code, library and machine something was made."""
    own = git_state() | {"code_digest": code_digest()[:12]}
    return own | {"torch": torch.__version__, "device": device_name(device)}
