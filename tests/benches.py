"""Whole benches for the tests: in a process of their own, as a user runs them, or in this one,
which saves the seconds that importing the libraries takes.
"""

import os
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import NamedTuple
from unittest import mock

from benchmarks.__main__ import main
from benchmarks.core.session import session
from benchmarks.core.store import ROOT

# the smallest that every stage can do: a cell takes two seconds
TINY = [
    "features=local",  # the other judge is slow, and runs in the smoke bench
    "data.image_size=16",
    "data.train_images=64",
    "data.reference_images=20",
    "num_samples=20",
    "sample_batch=16",
    "train.unit=steps",
    "train.batch=8",
    "train.precision=fp32",  # as fast everywhere, and not what a busy machine happens to find
]


class Ended(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str


def start(folder: Path, *overrides: str) -> subprocess.Popen:
    """A bench on the CPU, in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "benchmarks", *_bench(folder, overrides)],
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
    )


def run(folder: Path, *overrides: str) -> Ended:
    """A bench on the CPU, in this process."""
    return command(*_bench(folder, overrides))


def command(*arguments: str) -> Ended:
    """`python -m benchmarks <arguments>`, in this process."""
    session.__init__()  # as a process begins
    out, err, code = StringIO(), StringIO(), 0
    with (
        mock.patch.object(sys, "argv", ["python -m benchmarks", *arguments]),
        redirect_stdout(out),
        redirect_stderr(err),
    ):
        try:
            main()
        except SystemExit as ended:
            code = ended.code
    return Ended(code or 0, out.getvalue(), err.getvalue())


def _bench(folder: Path, overrides: tuple[str, ...]) -> list[str]:
    """The arguments of a bench: flags first, then where it runs, which `overrides` may change."""
    flags = [argument for argument in overrides if argument.startswith("-")]
    settings = [argument for argument in overrides if not argument.startswith("-")]
    places = [f"cache_dir={folder}/cache", f"results_dir={folder}/results", "device=cpu"]
    return ["run", *flags, *places, *settings]
