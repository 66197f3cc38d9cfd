"""`python -m <module> ...` in a process that has imported the large libraries already.

Importing torch, diffusers and scipy takes five to six seconds of a core, which a rehearsal of ten
commands would pay ten times.
"""

import multiprocessing
import os
import runpy
import sys
from pathlib import Path

IMPORTED = ["benchmarks.run", "benchmarks.perf.command"]  # and, through these, the libraries
LONGEST = 600  # seconds of a command


def run_preloaded(call: list[str], log: Path) -> int:
    """The exit code of the command line `call`, `python -m <module> ...`; its output is added to
    the file `log`.
    """
    # a server that imports once and has no thread: a fork of this process might have half of one
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(IMPORTED)
    _, _, *arguments = call
    process = context.Process(target=_run_module, args=(arguments, log))
    process.start()
    process.join(LONGEST)
    if process.is_alive():
        process.kill()
        raise TimeoutError(f"still running after {LONGEST} s: {' '.join(call)}")
    return process.exitcode


def _run_module(arguments: list[str], log: Path) -> None:
    """In the new process: what `python -m` does with these arguments."""
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(file, stream)
    print("\n==", *arguments, flush=True)
    sys.argv = arguments
    runpy.run_module(arguments[0], run_name="__main__", alter_sys=True)
