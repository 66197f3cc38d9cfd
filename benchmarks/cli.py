"""How a command begins and ends: its settings checked, its failures one line on stderr each and a non-zero exit."""

import os
import sys
from collections.abc import Callable
from typing import Any

import torch
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from benchmarks.pictures.exchange import KINDS
from benchmarks.store import BadInput, OutOfTime

ERRORS: list[str] = []  # one line for each thing that ended badly
UNFINISHED: list[str] = []  # one line for each thing that the next run has to go on with
DIVERGED: list[str] = []  # one line for each training that diverged, which is a result
TO_BE_CONTINUED = 75  # exit code of a run whose time was up: EX_TEMPFAIL of sysexits.h
ONLY_DIVERGED = 4  # exit code of a run of which nothing failed, but some training diverged


def complain(line: str, *, diverged: bool = False) -> None:
    """One line on stderr, once, and a non-zero exit at the end."""
    lines = DIVERGED if diverged else ERRORS
    if line not in lines:
        lines.append(line)
        print(f"latentbench: {line}", file=sys.stderr, flush=True)


def guarded(task: Callable[[DictConfig], None], cfg: DictConfig) -> None:
    """`task(cfg)`, its errors as one line each, so that what comes after still runs."""
    try:
        task(cfg)
    except BadInput as error:
        complain(str(error))
    except OutOfTime as error:
        UNFINISHED.append(str(error))
        print(f"out of time: {error}", flush=True)
    except OmegaConfBaseException as error:
        complain(f"configuration: {str(error).splitlines()[0]}")
    except Exception as error:
        if os.environ.get("HYDRA_FULL_ERROR") == "1":
            raise
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        complain(f"{reason} (not foreseen; HYDRA_FULL_ERROR=1 shows where)")


def pick_device(wanted: str) -> torch.device:
    """`auto` is CUDA where there is one. Raises BadInput for a device that is not there."""
    if wanted not in ("auto", "cpu", "cuda"):
        raise BadInput(f"device={wanted}: one of auto, cpu, cuda")
    if wanted == "cuda" and not torch.cuda.is_available():
        raise BadInput("device=cuda: no CUDA device found; use device=cpu or device=auto")
    torch.backends.cudnn.allow_tf32 = False  # else a U-Net in fp32, and the judge, would be less exact than they say
    return torch.device("cuda" if wanted != "cpu" and torch.cuda.is_available() else "cpu")


def check(cfg: DictConfig) -> None:
    """Types and ranges of what a user sets, before anything is computed. Raises BadInput naming the key."""
    whole = {"seed": 0, "num_samples": 2, "data.image_size": 8, "data.reference_images": 2, "train.batch": 1}
    for key, least in whole.items():
        value = OmegaConf.select(cfg, key)
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise BadInput(f"{key}={value}: a whole number from {least} up")
    if cfg.sample_batch != "auto" and (not isinstance(cfg.sample_batch, int) or cfg.sample_batch < 1):
        raise BadInput(f"sample_batch={cfg.sample_batch}: a whole number from 1 up, or auto")
    if cfg.stop_at is not None and not isinstance(cfg.stop_at, int | float):
        raise BadInput(f"stop_at={cfg.stop_at}: seconds since the epoch, or null")
    for key in ("train.budget", "model.lr", "train.grad_clip"):
        value = OmegaConf.select(cfg, key)
        if not isinstance(value, int | float) or not 0 < value < float("inf"):
            raise BadInput(f"{key}={value}: a number above 0")
    if not all(isinstance(s, float) and 0 < s < 1 for s in cfg.train.snapshots):
        raise BadInput(f"train.snapshots={cfg.train.snapshots}: shares of the budget, above 0 and below 1")
    if cfg.train.precision not in ("bf16", "fp32"):
        raise BadInput(f"train.precision={cfg.train.precision}: one of bf16, fp32")
    if not all(isinstance(n, int) and not isinstance(n, bool) for n in many(cfg.steps)) or not many(cfg.steps):
        raise BadInput(f"steps={cfg.steps}: a list of whole numbers, such as steps=[4,16,64]")
    if not all(isinstance(s, int) and not isinstance(s, bool) and s >= 0 for s in many(cfg.sampling_seeds)) or not many(cfg.sampling_seeds):
        raise BadInput(f"sampling_seeds={cfg.sampling_seeds}: a list of whole numbers from 0 up, such as sampling_seeds=[0,1,2]")
    if not set(many(cfg.export)) <= set(KINDS):
        raise BadInput(f"export={cfg.export}: a list of {', '.join(KINDS)}, or []")
    if not all(isinstance(g, int | float) for g in many(cfg.guidance)) or not many(cfg.guidance):
        raise BadInput(f"guidance={cfg.guidance}: a list of numbers, such as guidance=[1,2]; 1 is none")


def many(value: Any) -> list[Any]:
    """A list of settings, or a list of the one that was given."""
    return list(value) if isinstance(value, ListConfig) else [value]


def finish() -> None:
    """Exit with 1 if anything ended badly, 75 if anything is left for the next run, 4 if a training diverged."""
    sys.exit(1 if ERRORS else TO_BE_CONTINUED if UNFINISHED else ONLY_DIVERGED if DIVERGED else 0)
