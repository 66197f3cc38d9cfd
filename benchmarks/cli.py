"""How a command ends: bad input and failures become one line on stderr and a non-zero exit."""

import os
import sys
from collections.abc import Callable

import torch
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from benchmarks.store import BadInput

ERRORS: list[str] = []  # one line for each thing that ended badly


def complain(line: str) -> None:
    """One line on stderr, once, and a non-zero exit at the end."""
    if line not in ERRORS:
        ERRORS.append(line)
        print(f"latentbench: {line}", file=sys.stderr, flush=True)


def guarded(task: Callable[[DictConfig], None], cfg: DictConfig) -> None:
    """`task(cfg)`, its errors as one line each, so that what comes after still runs."""
    try:
        task(cfg)
    except BadInput as error:
        complain(str(error))
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


def finish() -> None:
    """Exit with 1 if anything ended badly."""
    sys.exit(1 if ERRORS else 0)
