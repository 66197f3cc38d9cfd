"""How a command reads its arguments: Hydra's overrides, or argparse with the command's own page as
its help.
"""

import argparse
import math
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

import hydra
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from benchmarks.core.environment import refuse_foreign_settings, variable
from benchmarks.core.errors import BadInput
from benchmarks.core.jobs import Job, merge_outcomes
from benchmarks.core.session import session
from benchmarks.core.settings import CONF, PATHS, in_home, model_settings

# what the launchers' libraries raise where a process was killed; they need not be installed
PROCESS_ENDED = {"TerminatedWorkerError", "BrokenProcessPool", "UncompletedJobError"}
JOB_FAILED = "FailedJobError"  # of submitit, whose message is the traceback


def run_hydra(
    name: str,
    page: str | None,
    task: Callable[[DictConfig], None],
    argv: Sequence[str],
) -> None:
    """`task` of every configuration that the overrides compose; errors become lines of the session.

    `page` is the docstring of the command `name`, which --help prints instead of Hydra's own page.
    """
    if {"-h", "--help"} & set(argv):
        print(f"usage: python -m benchmarks {name} [-m] [Hydra overrides]\n\n{page}")
        print("`--cfg job` prints every setting; conf/ explains them. -m runs a sweep.")
        sys.exit(0)

    refuse_foreign_settings()
    asked = os.environ.get("HYDRA_FULL_ERROR", "0")  # a traceback, of a cell too

    job = Job(task, full_error=asked)
    session.job_name = job.name
    composed = hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")(job)
    # Hydra's own parser, too, says in one line what it does not take
    argparse.ArgumentParser.error = Parser.error  # type: ignore[assignment,method-assign]
    sys.argv = [f"python -m benchmarks {name}", *map(quoted_path, argv)]
    session.guard(_raising, composed)
    merge_outcomes(job)


def _raising(composed: Callable[[], None]) -> None:
    """`composed()`, with errors outside of cells raised, of which Hydra would print a traceback."""
    try:
        with variable("HYDRA_FULL_ERROR", "1"):
            composed()
    except (HydraException, OmegaConfBaseException) as error:
        refuse_setting_of_another_model(error)
        raise
    except ValueError as error:  # of `model=null`, say, where Hydra wants a name
        raise HydraException(str(error)) from error
    except OSError as error:  # of a sweep's folder, see conf/config.yaml
        if error.filename is None:  # a full disk
            raise OSError(error.errno, error.strerror, "results_dir") from error
        reason = f"{error.filename} cannot be written ({error.strerror})"
        raise BadInput(f"results_dir: {reason}; give a folder that can") from error
    except Exception as error:
        # submitit's FailedJobError is one, too: what broke outside of a cell's own work
        if not {kind.__name__ for kind in type(error).__mro__} & PROCESS_ENDED:
            raise
        session.cells_left = True
        failed = type(error).__name__ == JOB_FAILED
        why = _of_a_job(error) if failed else "for want of memory perhaps"
        mended = "once that is mended, " if failed else ""
        raise BadInput(
            f"a process of the sweep ended before its cell did ({why}); {mended}the same command "
            "goes on"
        ) from error


def _of_a_job(error: Exception) -> str:
    """What submitit says of a job that failed: the error that ends the traceback between two rules,
    and the first of the files that it names below them, where the job wrote its errors.
    """
    message = str(error)
    between = re.split(r"^-+$", message, flags=re.MULTILINE)
    trace = (between[1] if len(between) > 1 else message).split("\n")
    lines = [line.rstrip() for line in trace if line.strip()]
    # an error's own text may go on over further lines
    named = [line for line in lines if re.match(r"[A-Za-z_][\w.]*(: |$)", line)]
    log = re.findall(r"^\s*- (\S.*)$", between[-1], flags=re.MULTILINE)
    return "; ".join([*(named or lines)[-1:], *(f"its errors are in {path}" for path in log[:1])])


def refuse_setting_of_another_model(error: Exception) -> None:
    """Raise BadInput for `model.block=4`, say, where only the default model was given, which has no
    such setting: Hydra reads it before it looks at the models that a preset sweeps over.
    """
    found = re.search(r"override 'model\.([\w.]+)'", str(error))
    if not found:
        return
    setting = found[1]
    if models := [name for name, settings in model_settings().items() if setting in settings]:
        raise BadInput(
            f"model.{setting}: the model of this command line has no such setting; "
            f"give model= as well, of {', '.join(models)}"
        ) from error


def quoted_path(word: str) -> str:
    """An override of a path in quotes, without which Hydra reads few characters beyond ASCII.

    What is a list, an interpolation, `null` or in quotes already is left to Hydra. So is a comma:
    it may be a sweep's.
    """
    key, equals, value = word.partition("=")
    is_path = key.lstrip("+").rpartition(".")[2] in PATHS
    for_hydra = not value or value[0] in "\"'[{" or value == "null" or re.search(r",|\$\{", value)
    if not equals or for_hydra or not (is_path or value.startswith("~")):
        return word
    return f"{key}={quoted(value)}"


def quoted(path: str) -> str:
    """A path as a value of a Hydra override, whatever characters it has."""
    if re.fullmatch(r"[\w./@%+-]+", path, re.ASCII):
        return path
    escaped = path.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


class Parser(argparse.ArgumentParser):
    """argparse's, whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        line = " ".join(message.split())
        self.exit(2, f"latentbench: {line}; `{self.prog} --help` shows what it takes\n")


def parser(name: str, page: str | None) -> Parser:
    """A parser of a command's arguments, whose `--help` shows the command's docstring `page`."""
    layout = argparse.RawDescriptionHelpFormatter
    prog = f"python -m benchmarks {name}"
    return Parser(prog=prog, description=page, formatter_class=layout)


def whole(text: str) -> int:
    """An argument that is a whole number from 1 up."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 1 up")
    return int(text)


def positive(text: str) -> float:
    """An argument that is a number above 0, and finite."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is no number above 0")
    return number


def path(text: str) -> Path:
    """An argument that is a path, `~` being the home folder. Raises BadInput."""
    if not text.strip():
        raise BadInput("a path is empty; `.` is the folder that you are in")
    return Path(in_home(text, text))
