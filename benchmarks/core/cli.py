"""How a command reads its arguments: Hydra's overrides, or argparse with the command's own page as
its help.
"""

import argparse
import sys
from collections.abc import Callable, Sequence

import hydra
from omegaconf import DictConfig

from benchmarks.core.session import session
from benchmarks.core.settings import CONF


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

    @hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
    def job(cfg: DictConfig) -> None:
        session.guard(task, cfg)

    sys.argv = [f"python -m benchmarks {name}", *argv]
    job()


def parser(name: str, page: str | None) -> argparse.ArgumentParser:
    """A parser of a command's arguments, whose `--help` shows the command's docstring `page`."""
    layout = argparse.RawDescriptionHelpFormatter
    prog = f"python -m benchmarks {name}"
    return argparse.ArgumentParser(prog=prog, description=page, formatter_class=layout)
