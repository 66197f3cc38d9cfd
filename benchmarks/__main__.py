"""python -m benchmarks <command> [arguments]: every command of the suite."""

import os
import signal
import sys
from importlib import import_module
from io import TextIOWrapper
from typing import Any, NoReturn

from benchmarks.core.errors import NobodyReads, PeerLost

# command -> the module whose `main(arguments)` it is, what it does
COMMANDS = {
    "run": ("run", "train, sample, score and report: a cell or a Hydra sweep"),
    "report": ("commands.report", "rebuild tables and plots from the records of a results folder"),
    "compare": ("commands.compare", "two results folders, or two settings of one, row by row"),
    "score": ("commands.score_images", "score images made elsewhere"),
    "doctor": ("commands.doctor", "what a bench will make of this machine and of your images"),
    "cost": ("commands.count_flops", "count what every model and size costs, untrained"),
    "perf": ("perf.command", "every stage against the machine's ceiling and common baselines"),
    "reference": ("reference.command", "make the studies of results/reference"),
    "publish": ("commands.publish", "a small copy of a results folder, to commit"),
    "study": ("studies.degradation", "do the distances rise as real images are degraded?"),
    "reconstruct": ("studies.reconstruct", "what the latents lose"),
    "probe": ("studies.probe_extractor", "speed and linear-probe accuracy of feature extractors"),
    "train-frozen": ("commands.train_frozen", "train the shared autoencoder, codebook and judge"),
}


def usage() -> str:
    """All commands and presets, one line each."""
    from benchmarks.core.settings import presets

    lines = ["usage: python -m benchmarks <command> [arguments]", "", "commands:"]
    lines += [f"  {name:13} {about}" for name, (_, about) in COMMANDS.items()]
    lines += ["", "presets, as in `python -m benchmarks run experiment=cpu`:"]
    lines += [f"  {name:13} {about}" for name, about in presets().items()]
    lines += [
        "",
        "`python -m benchmarks <command> --help` shows a command's arguments and examples.",
    ]
    return "\n".join(lines)


def main() -> None:
    listen()  # before anything that takes long to import
    try:
        try:
            run(sys.argv[1:])
        finally:
            if sys.stdout is not None:  # None: closed, as by `>&-`
                sys.stdout.flush()
    except (NobodyReads, BrokenPipeError):
        # silently, as the shell's own programs end; or Python would complain at its last flush
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.exit(128 + signal.SIGPIPE)
    except (KeyboardInterrupt, Terminated) as error:
        signal.setitimer(signal.ITIMER_REAL, 0)  # it was heard
        name, number = ("SIGTERM", 15) if isinstance(error, Terminated) else ("Ctrl-C", 2)
        print(f"\nlatentbench: stopped by {name}; the same command goes on", file=sys.stderr)
        sys.exit(128 + number)  # as a shell counts it
    except PeerLost as error:
        said = "the connection to another process of this run broke"
        print(f"\nlatentbench: {said} ({error}); the same command goes on", file=sys.stderr)
        sys.exit(1)


def run(arguments: list[str]) -> None:
    """The command that the arguments begin with."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage())
        return
    if arguments[0] not in COMMANDS:
        wrong = f"latentbench: no command {arguments[0]}; there are {', '.join(COMMANDS)}"
        sys.exit(wrong)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # a terminal may lack letters that a class has
            stream.reconfigure(errors="backslashreplace")
    from benchmarks.core.session import session  # begins to count the seconds of this call

    module, _ = COMMANDS[arguments[0]]
    session.guard(import_module(f"benchmarks.{module}").main, arguments[1:])
    session.finish()


AGAIN = 5.0  # seconds until a signal that was not heard is repeated


class Terminated(BaseException):
    """The process was asked to end. No Exception: nothing may take it for a failed cell."""


def listen() -> None:
    """From now on SIGTERM and Ctrl-C are exceptions, which let every `finally` remove what is
    unfinished.
    """
    signal.signal(signal.SIGTERM, _stop)
    signal.signal(signal.SIGINT, _stop)
    sys.unraisablehook = _unheard


def _stop(number: int, _: Any) -> NoReturn:
    """Raise; and again later, because Python ignores what is raised in a destructor."""
    signal.signal(signal.SIGALRM, lambda *_: _stop(number, None))
    signal.setitimer(signal.ITIMER_REAL, AGAIN)
    raise Terminated if number == signal.SIGTERM else KeyboardInterrupt


def _unheard(unraisable: Any) -> None:
    """Python's own words about an exception that it ignores, unless it comes again."""
    if not issubclass(unraisable.exc_type, (KeyboardInterrupt, Terminated)):
        sys.__unraisablehook__(unraisable)


if __name__ == "__main__":
    main()
