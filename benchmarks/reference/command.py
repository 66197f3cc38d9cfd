"""Make what is missing or out of date of results/reference, most valuable first, and stop before
the minutes are up.

    python -m benchmarks reference --list                     the plan and its state
    python -m benchmarks reference --minutes 9 --only gpu     go on making it
    python -m benchmarks reference --rehearse --only gpu      in miniature, on any machine
    python -m benchmarks reference --out /kept                pack it for another machine
    python -m benchmarks reference --unpack /kept             there, put it in its place

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
from typing import Any

import torch
from filelock import FileLock, Timeout

from benchmarks.core import cli
from benchmarks.core.errors import BadInput
from benchmarks.core.files import check_writable
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
TERMINATED = 143  # exit code of a process that SIGTERM ended: 128 + 15


@dataclass
class Outcome:
    """What became of the entries of a call, by name."""

    made: list[str] = field(default_factory=list)
    begun: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    waiting: list[str] = field(default_factory=list)  # no time was left

    def add(self, name: str, became: str) -> None:
        """`became` is what `make` returns."""
        names = {"made": self.made, "begun": self.begun, "failed": self.failed}
        names[became].append(name)


def complain(line: str) -> None:
    """One line on stderr, as `session.complain` prints it; the exit code is `verdict`'s."""
    print(f"latentbench: {line}", file=sys.stderr, flush=True)


def run_until(call: list[str], deadline: float | None) -> int:
    """The exit code of a command, which is stopped at the deadline.

    It has a process group of its own, all of which ends with it: a data loader's workers too.
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
    latest = None if deadline is None else deadline - FINAL
    became = "made"
    for line in entry.runs:
        if stop_at is not None and time.time() > stop_at:
            return "begun"
        call = commands.command(entry, line, places, stop_at)
        print(f"\n== {entry.name}: {shlex.join(call)}", flush=True)
        code = run_until(call, latest)
        if code == TO_BE_CONTINUED:
            return "begun"
        if code not in (0, ONLY_DIVERGED):  # a training that diverged is a result
            complain(f"{entry.name}: exit code {code}; a later call tries it again, after all else")
            became = "failed"
    return became


def fits(entry: Entry, deadline: float | None) -> bool:
    """Whether an entry can be begun: in the time that is left it ends, or can be left and gone on
    with.
    """
    if deadline is None:
        return True
    left = deadline - MARGIN - time.time()
    return left > least_seconds(entry)


def least_seconds(entry: Entry) -> float:
    """Seconds in which it is worth beginning an entry."""
    return LEAST if commands.stoppable(entry.kinds) else 60 * entry.minutes


def make_all(
    entries: list[Entry],
    places: Places,
    deadline: float | None,
    keep: Callable[[Entry, str, float], None],
) -> Outcome:
    """Every entry that fits, in order.

    `keep` is told what became of each, and in how many minutes.
    """
    outcome = Outcome()
    for entry in entries:
        if not fits(entry, deadline):
            outcome.waiting.append(entry.name)
            continue
        check_writable(places.out(entry), "results")
        began = time.time()
        became = make(entry, places, deadline)
        try:
            keep(entry, became, (time.time() - began) / 60)
        except (BadInput, OSError) as error:  # of one entry; the others are still worth making
            complain(f"{entry.name}: {error}")
            became = "failed"
        outcome.add(entry.name, became)
    return outcome


def show(entries: list[Entry], device: torch.device, published: Path, work: Path) -> None:
    """The plan with its state, as a table, and what this machine would have to make."""
    columns = ["study", "device", "state", "minutes", "data", "answers"]
    rows, missing = [], []
    for entry in entries:
        here = packing.state(work, entry.name)
        states = [entry.state(published)]
        if "minutes" in here:
            states.append(f"{here['minutes']} minutes begun here")
        if "failed_by" in here:
            states.append("failed here")
        if not entry.suits(device):
            states.append("not for this machine")
        elif entry.by_name:
            states.append("only where it is named")
        elif states[0] != "made":
            missing.append(entry)
        state = "; ".join(states)
        rows.append([entry.name, entry.device, state, entry.minutes, entry.data, entry.answers])
    print("\n".join(markdown(columns, rows)))
    names = ", ".join(entry.name for entry in missing) or "nothing"
    total = sum(entry.minutes for entry in missing)
    about = f"about {total:g} minutes on the plan's own machine"
    print(f"\nto be made on this machine: {names}: {about}")


def report(outcome: Outcome, entries: list[Entry], places: Places) -> None:
    """What is made and where it lies, what is left, and how long that will take."""
    print(f"\nmade: {', '.join(outcome.made) or 'nothing'}")
    if outcome.made:
        print(f"published in {places.published}/<study>, worked on in {places.work}/<study>")
    left = [entry for entry in entries if entry.name not in outcome.made]
    if not left:
        return
    names = []
    for entry in left:
        mark = ""
        if entry.name in outcome.begun:
            mark = " (begun)"
        elif entry.name in outcome.failed:
            mark = " (failed)"
        names.append(entry.name + mark)
    about = f"about {sum(entry.minutes for entry in left):g} minutes"
    print(f"left: {', '.join(names)}: {about}, what is begun counted from its beginning")


def arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = cli.parser("reference", __doc__)
    add = parser.add_argument
    add("--minutes", help="stop by itself before these are up; default: when all is made")
    add("--only", default="", help="cpu, gpu, or names of the plan, separated by commas")
    add("--data", default="", help="image folder or tar for the entries that need one")
    add("--list", action="store_true", help="print the plan with its state")
    add("--rehearse", action="store_true", help="every command in miniature")
    add("--out", type=cli.path, help="pack what is made here: at most eight files of under 16 MB")
    add("--unpack", type=cli.path, help="put what --out packed where it belongs")
    add("--cache", type=cli.path, default=ROOT / ".cache", help="folder of caches")
    return parser.parse_args(argv)


def minutes(text: str | None) -> float | None:
    """The minutes of a call; None for any number. Raises BadInput for what is no time."""
    if text is None:
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise BadInput(f"MINUTES={text}: a number above 0, such as MINUTES=9")
    return value


def selected(entries: list[Entry], only: str) -> list[Entry]:
    """Entries of a kind of device, all, or those named, whatever this machine is and their state.

    Raises BadInput for a name that the plan does not have.
    """
    if only not in plan.KINDS:
        return plan.named(entries, only)
    kind = plan.KINDS[only]
    return [entry for entry in entries if kind in ("", entry.device)]


def _terminate(*_: Any) -> None:
    sys.exit(TERMINATED)


def main(argv: Sequence[str]) -> None:
    """Ends the process with the exit code that the head of this file describes."""
    signal.signal(signal.SIGTERM, _terminate)  # an exception, so that `run_until` stops its command
    args = arguments(argv)
    lock: Any = FileLock(ROOT / "results" / ".reference.lock", timeout=0)
    if args.list or args.rehearse:  # these write nothing that another call could be writing
        lock = contextlib.nullcontext()
    try:
        with lock:
            sys.exit(go(args))
    except Timeout:
        complain("another `make reference` runs in this folder; wait for it")
    except BadInput as error:
        complain(str(error))
    sys.exit(2)


def go(args: argparse.Namespace) -> int:
    """The exit code of a call; see the head of this file."""
    allowed = minutes(args.minutes)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    entries, published, work = plan.load(), plan.PLAN.parent, ROOT / "results"
    if args.list:
        show(selected(entries, args.only), device, published, work)
        return 0
    if args.unpack:
        print("\n".join(packing.unpack(args.unpack, entries, published, work, plan.PLAN)))
        return 0
    cache = args.cache.absolute()
    if args.rehearse:
        wanted = selected(entries, args.only)
        if args.only in plan.KINDS:
            wanted = [entry for entry in wanted if not entry.by_name]
        places = rehearsal_places(args.data, cache / "rehearsal")
    else:
        wanted = plan.chosen(entries, args.only, device, published)
        images = commands.images(args.data, cache) if args.data else None
        places = Places(work=work, cache=cache, published=published, images=images)
    keeper = Keeper(places, device, args.out and args.out.absolute())
    by_name = args.only not in plan.KINDS  # these are made in any case
    return make_wanted(wanted, places, keeper, allowed, by_name=by_name)


def rehearsal_places(data: str, cache: Path) -> Places:
    """All of a rehearsal's places, within `cache`, which is emptied: what is there would not be
    made again.
    """
    shutil.rmtree(cache, ignore_errors=True)
    images = commands.images(data, cache) if data else commands.stand_in(cache / "images")
    return Places(
        work=cache / "results",
        cache=cache,
        published=cache / "reference",
        images=images,
        rehearse=True,
    )


def make_wanted(
    wanted: list[Entry], places: Places, keeper: Keeper, allowed: float | None, *, by_name: bool
) -> int:
    """Make entries in the minutes allowed, print the report, and return the exit code."""
    # the minutes are counted from the start of the process: imports take some seconds of them
    deadline = None if allowed is None else session.started + 60 * allowed
    able = [entry for entry in wanted if places.images or not entry.needs_images]
    waiting = able if by_name else keeper.restore(able)
    outcome = make_all(waiting, places, deadline, keeper)
    outcome.made += [entry.name for entry in able if entry not in waiting]
    report(outcome, wanted, places)
    return verdict(outcome, wanted, able, allowed)


def verdict(outcome: Outcome, wanted: list[Entry], able: list[Entry], allowed: float | None) -> int:
    """The exit code. Raises BadInput where nothing could be begun, or data is missing."""
    if outcome.failed:
        return 1
    if able and not outcome.made and not outcome.begun:
        # start-up, the margin at the end, and what the shortest of them needs between
        seconds = time.time() - session.started + MARGIN + min(map(least_seconds, able))
        enough = math.ceil(10 * seconds / 60 + 1) / 10  # rounded up, and six seconds more
        raise BadInput(
            f"MINUTES={allowed:g}: too few to begin any of {', '.join(outcome.waiting)}; "
            f"give {enough:g} or more"
        )
    without = [entry.name for entry in wanted if entry not in able]
    if without:
        raise BadInput(
            f"DATA is missing for {', '.join(without)}; "
            "give DATA=<folder with train/<class>/* and val/<class>/*, or a tar of one>"
        )
    return 0
