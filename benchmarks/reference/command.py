"""Make what is missing or out of date of results/reference, most valuable first, and stop before
the minutes are up.

    python -m benchmarks.reference --list                                  what there is, and its state
    python -m benchmarks.reference --minutes 9 --only gpu --data /images   go on making it
    python -m benchmarks.reference --rehearse --only gpu                   in miniature, on any machine
    python -m benchmarks.reference --out /kept                             pack it for another machine
    python -m benchmarks.reference --unpack /kept                          there, put it in its place

A training that does not fit leaves its checkpoint, and the next call goes on with it. What failed
is tried again after all else. Exit code 0: all that could be made in the time is made; 1: a command
failed; 2: nothing could be begun, or data is missing.
"""

import argparse
import contextlib
import math
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from filelock import FileLock, Timeout

from benchmarks.core import cli
from benchmarks.core.errors import BadInput
from benchmarks.core.session import ONLY_DIVERGED, TO_BE_CONTINUED, session
from benchmarks.core.store import ROOT
from benchmarks.reference import commands, packing, plan
from benchmarks.reference.commands import Places
from benchmarks.reference.keeping import Keeper
from benchmarks.reference.plan import Entry
from benchmarks.results.tables import markdown

MARGIN = 30  # seconds before the end, for the report and for packing
LEAST = 20  # seconds in which it is worth beginning anything that can be interrupted
FINAL = 8  # seconds before the end at which a command that has not stopped is stopped


@dataclass
class Outcome:
    """What became of the entries of a call, by name."""

    made: list[str] = field(default_factory=list)
    begun: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    waiting: list[str] = field(default_factory=list)  # no time was left


def run_until(call: list[str], deadline: float | None) -> int:
    """The exit code of a command in a process group of its own, which ends with it, or at the
    deadline.
    """
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(call, cwd=ROOT, env=environment, process_group=0)
    try:
        return process.wait(None if deadline is None else max(0.1, deadline - time.time()))
    except subprocess.TimeoutExpired:
        print("out of time: the command is stopped; what it had written stays", flush=True)
        return TO_BE_CONTINUED
    finally:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def make(entry: Entry, places: Places, deadline: float | None) -> str:
    """`made`, `begun` or `failed`: all commands of an entry, one after the other."""
    stop_at = None if deadline is None else deadline - MARGIN
    outcome = "made"
    for line in entry.runs:
        if stop_at is not None and time.time() > stop_at:
            return "begun"
        call = commands.command(entry, line, places, stop_at)
        print(f"\n== {entry.name}: {shlex.join(call)}", flush=True)
        code = run_until(call, None if deadline is None else deadline - FINAL)
        if code == TO_BE_CONTINUED:
            return "begun"
        if code not in (0, ONLY_DIVERGED):  # a training that diverged is a result
            print(
                f"latentbench: {entry.name}: exit code {code}; a later call tries it again, after all else",
                file=sys.stderr,
                flush=True,
            )
            outcome = "failed"
    return outcome


def fits(entry: Entry, deadline: float | None) -> bool:
    """Whether an entry can be begun: in the time that is left it ends, or can be left and gone on
    with.
    """
    if deadline is None:
        return True
    left = deadline - MARGIN - time.time()
    return left > (LEAST if commands.stoppable(entry.kinds) else 60 * entry.minutes)


def make_all(
    entries: list[Entry],
    places: Places,
    deadline: float | None,
    keep: Callable[[Entry, str, float], None],
) -> Outcome:
    """Every entry that fits, in order; `keep` is told what became of each, and in how many minutes."""
    outcome = Outcome()
    for entry in entries:
        if not fits(entry, deadline):
            outcome.waiting.append(entry.name)
            continue
        packing.check_writable(places.out(entry), "results")
        began = time.time()
        became = make(entry, places, deadline)
        try:
            keep(entry, became, (time.time() - began) / 60)
        except (BadInput, OSError) as error:  # of one entry; the others are still worth making
            print(f"latentbench: {entry.name}: {error}", file=sys.stderr, flush=True)
            became = "failed"
        getattr(outcome, became).append(entry.name)
    return outcome


def show(entries: list[Entry], device: torch.device, published: Path, work: Path) -> None:
    """The plan with its state, as a table, and what this machine would have to make."""
    rows = []
    for entry in entries:
        known, state = packing.state(work, entry.name), [entry.state(published)]
        state += [f"{known['minutes']} minutes begun here"] if "minutes" in known else []
        state += ["failed here"] if "failed_by" in known else []
        state += [] if entry.suits(device) else ["not for this machine"]
        rows.append(
            [entry.name, entry.device, "; ".join(state), entry.minutes, entry.data, entry.answers]
        )
    print("\n".join(markdown(["study", "device", "state", "minutes", "data", "answers"], rows)))
    todo = [entry for entry in entries if entry.suits(device) and entry.state(published) != "made"]
    total = sum(entry.minutes for entry in todo)
    names = ", ".join(entry.name for entry in todo) or "nothing"
    print(
        f"\nto be made on this machine: {names}: about {total:g} minutes on the plan's own machine"
    )


def report(outcome: Outcome, entries: list[Entry], places: Places) -> None:
    """What is made and where it lies, what is left, and how long that will take."""
    print(f"\nmade: {', '.join(outcome.made) or 'nothing'}")
    if outcome.made:
        print(f"published in {places.published}/<study>, worked on in {places.work}/<study>")
    if left := [entry for entry in entries if entry.name not in outcome.made]:
        marks = dict.fromkeys(outcome.begun, "begun") | dict.fromkeys(outcome.failed, "failed")
        names = ", ".join(
            f"{e.name} ({marks[e.name]})" if e.name in marks else e.name for e in left
        )
        minutes = sum(entry.minutes for entry in left)
        print(f"left: {names}: about {minutes:g} minutes, what is begun counted from its beginning")


def arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = cli.parser("reference", __doc__)
    parser.add_argument(
        "--minutes", help="stop by itself before these are up; default: when all is made"
    )
    parser.add_argument(
        "--only", default="", help="cpu, gpu, or names of the plan, separated by commas"
    )
    parser.add_argument(
        "--data", default="", help="image folder or tar for the entries that need one"
    )
    parser.add_argument("--list", action="store_true", help="print the plan with its state")
    parser.add_argument("--rehearse", action="store_true", help="every command in miniature")
    parser.add_argument(
        "--out", type=Path, help="pack what is made here: at most eight files of under 16 MB"
    )
    parser.add_argument("--unpack", type=Path, help="put what --out packed where it belongs")
    parser.add_argument("--cache", type=Path, default=ROOT / ".cache")
    return parser.parse_args(argv)


def minutes(given: str | None) -> float | None:
    """Raises BadInput for what is no time."""
    try:
        value = None if given is None else float(given)
    except ValueError:
        value = -1.0
    if value is not None and not 0 < value < float("inf"):
        raise BadInput(f"MINUTES={given}: a number above 0, such as MINUTES=9")
    return value


def rehearsal(entries: list[Entry], only: str) -> list[Entry]:
    """What to rehearse: all, those of a kind of device, or those named, whatever this machine is."""
    kind = plan.KINDS.get(only)
    return (
        plan.named(entries, only)
        if kind is None
        else [entry for entry in entries if kind in ("", entry.device)]
    )


def main(argv: Sequence[str]) -> None:
    signal.signal(
        signal.SIGTERM, lambda *_: sys.exit(143)
    )  # so that what it has started ends with it
    args = arguments(argv)
    lock = FileLock(ROOT / "results" / ".reference.lock", timeout=0)
    try:
        with contextlib.nullcontext() if args.list or args.rehearse else lock:
            sys.exit(go(args))
    except Timeout:
        print(
            "latentbench: another `make reference` runs in this folder; wait for it",
            file=sys.stderr,
        )
    except BadInput as error:
        print(f"latentbench: {error}", file=sys.stderr)
    sys.exit(2)


def go(args: argparse.Namespace) -> int:
    """The exit code of a call; see the head of this file."""
    allowed, device = (
        minutes(args.minutes),
        torch.device("cuda" if torch.cuda.is_available() else "cpu"),
    )
    entries, published, work = plan.load(), plan.PLAN.parent, ROOT / "results"
    cache, out = args.cache.absolute(), args.out and args.out.absolute()
    if args.list:
        show(rehearsal(entries, args.only), device, published, work)
        return 0
    if args.unpack:
        print("\n".join(packing.unpack(args.unpack, entries, published, work, plan.PLAN)))
        return 0
    if args.rehearse:
        cache = cache / "rehearsal"
        shutil.rmtree(cache, ignore_errors=True)  # what is there already would not be made again
        wanted, published, work = (
            rehearsal(entries, args.only),
            cache / "reference",
            cache / "results",
        )
        images = (
            commands.images(args.data, cache) if args.data else commands.stand_in(cache / "images")
        )
    else:
        wanted = plan.chosen(entries, args.only, device, published)
        images = commands.images(args.data, cache) if args.data else None
    places = Places(work, cache, published, images, args.rehearse)
    able = [entry for entry in wanted if images or not entry.needs_images]
    keeper = Keeper(places, device, out)
    deadline = None if allowed is None else session.started + 60 * allowed
    todo = able if args.only and plan.KINDS.get(args.only) is None else keeper.restore(able)
    outcome = make_all(todo, places, deadline, keeper)
    outcome.made += [entry.name for entry in able if entry not in todo]
    report(outcome, wanted, places)
    return verdict(outcome, wanted, able, allowed)


def verdict(outcome: Outcome, wanted: list[Entry], able: list[Entry], allowed: float | None) -> int:
    """The exit code. Raises BadInput where nothing could be begun, or data is missing."""
    if outcome.failed:
        return 1
    if able and not outcome.made and not outcome.begun:
        # start-up, the margin at the end, and what the shortest of them needs between
        edges = (time.time() - session.started + MARGIN) / 60
        least = [LEAST / 60 if commands.stoppable(e.kinds) else e.minutes for e in able]
        raise BadInput(
            f"MINUTES={allowed:g}: too few to begin any of {', '.join(outcome.waiting)}; "
            f"give {math.ceil(10 * (edges + min(least)) + 1) / 10:g} or more"
        )
    if without := [entry.name for entry in wanted if entry not in able]:
        raise BadInput(
            f"DATA is missing for {', '.join(without)}; "
            "give DATA=<folder with train/<class>/* and val/<class>/*, or a tar of one>"
        )
    return 0
