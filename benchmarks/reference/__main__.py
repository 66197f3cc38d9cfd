"""Make what is missing or out of date of results/reference, most valuable first, and stop before the minutes are up.

    python -m benchmarks.reference --list                                    what there is, and its state
    python -m benchmarks.reference --minutes 9 --only gpu --data /images     go on making it for nine minutes
    python -m benchmarks.reference --rehearse --only cuda                    every command in miniature, on any machine
    python -m benchmarks.reference --out /kept                               and pack what was made for another machine
    python -m benchmarks.reference --unpack /kept                            there, put it where it belongs

A training that does not fit leaves its checkpoint, and the next call goes on with it. Exit code 0: all that could be made in the time is
made; 1: a command failed; 2: nothing could be begun, or data is missing.
"""

import argparse
import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks import records
from benchmarks.cli import TO_BE_CONTINUED
from benchmarks.reference import commands, packing, plan
from benchmarks.reference.commands import Places
from benchmarks.reference.plan import Entry
from benchmarks.report import markdown
from benchmarks.store import BadInput

MARGIN = 25  # seconds before the end, for the report and for packing
LEAST = 20  # seconds in which it is worth beginning anything that can be interrupted
FINAL = 3  # seconds before the end at which a command that has not stopped is stopped


@dataclass
class Outcome:
    """What became of the entries of a call."""

    made: list[str]
    begun: list[str]
    failed: list[str]
    waiting: list[str]  # not begun: no time left


def run_until(call: list[str], deadline: float | None) -> int:
    """The exit code of a command in a process group of its own, which is ended at the deadline (a whole artefact or none is left)."""
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(call, cwd=records.ROOT, env=environment, process_group=0)
    try:
        return process.wait(None if deadline is None else max(1.0, deadline - time.time()))
    except subprocess.TimeoutExpired:
        print("out of time: the command is stopped; what it had written stays", flush=True)
        return TO_BE_CONTINUED
    finally:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def make(entry: Entry, places: Places, deadline: float | None) -> str:
    """`made`, `begun` or `failed`: all commands of an entry, one after the other."""
    try:
        places.out(entry).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInput(f"{places.out(entry)}: cannot be written ({error.strerror}); make room there, or run from another folder") from None
    stop_at = None if deadline is None else deadline - MARGIN
    outcome = "made"
    for line in entry.runs:
        call = commands.command(entry, line, places, stop_at)
        print(f"\n== {entry.name}: {shlex.join(call)}", flush=True)
        code = run_until(call, None if deadline is None else deadline - FINAL)
        if code == TO_BE_CONTINUED:
            return "begun"
        if code:
            print(f"latentbench: {entry.name}: exit code {code}; the next call tries again", file=sys.stderr, flush=True)
            outcome = "failed"
    return outcome


def fits(entry: Entry, deadline: float | None) -> bool:
    """Whether an entry can be begun: in the time that is left it ends, or can be left and gone on with."""
    if deadline is None:
        return True
    left = deadline - MARGIN - time.time()
    return left > (LEAST if commands.stoppable(entry.kinds) else 60 * entry.minutes)


def make_all(entries: list[Entry], places: Places, deadline: float | None, keep: Callable[[Entry, bool], None]) -> Outcome:
    """Every entry that fits, in order; `keep` is told of each whether it is whole."""
    outcome = Outcome([], [], [], [])
    for entry in entries:
        if not fits(entry, deadline):
            outcome.waiting.append(entry.name)
            continue
        became = make(entry, places, deadline)
        getattr(outcome, became).append(entry.name)
        try:
            keep(entry, became == "made")
        except BadInput as error:  # of one entry; the others are still worth making
            print(f"latentbench: {entry.name}: {error}", file=sys.stderr, flush=True)
            if entry.name in outcome.made:
                outcome.made.remove(entry.name)
                outcome.failed.append(entry.name)
    return outcome


class Keeper:
    """Publishes each entry as soon as its commands end, marks it in the plan, and packs all of this call's."""

    def __init__(self, places: Places, device: torch.device, out: Path | None):
        self.places, self.device, self.out = places, device, out
        self.made: dict[str, dict | None] = {}
        if out is not None:
            packing.pack(places.published, {}, out)  # before any work: can it be written?

    def __call__(self, entry: Entry, whole: bool) -> None:
        """A study that is not whole takes the place of none that is."""
        if not whole and entry.made is not None and (self.places.published / entry.name).is_dir():
            return
        if not whole and not packing.anything(entry, self.places.out(entry)):
            return
        packing.put_in_place(entry, self.places.out(entry), self.places.published)
        self.made[entry.name] = plan.made_now(self.device) if whole else None
        if whole and not self.places.rehearse:
            plan.mark(entry.name, self.made[entry.name])
        if self.out is not None:
            print("packed: " + ", ".join(map(str, packing.pack(self.places.published, self.made, self.out))), flush=True)


def show(entries: list[Entry], device: torch.device, folder: Path) -> None:
    """The plan with its state, as a table."""
    rows = []
    for entry in entries:
        state = entry.state(folder)
        state += "" if entry.suits(device) else ", not for this machine"
        rows.append([entry.priority, entry.name, entry.device, state, entry.minutes, entry.data, entry.answers])
    print("\n".join(markdown(["", "study", "device", "state", "minutes", "data", "answers"], rows)))


def report(outcome: Outcome, entries: list[Entry]) -> None:
    """What is made, what is left, and how long that will take."""
    left = [entry for entry in entries if entry.name not in outcome.made]
    print(f"\nmade: {', '.join(outcome.made) or 'nothing'}")
    if left:
        said = dict.fromkeys(outcome.begun, " (begun)") | dict.fromkeys(outcome.failed, " (failed)")
        names = ", ".join(entry.name + said.get(entry.name, "") for entry in left)
        print(f"left: {names}: about {sum(entry.minutes for entry in left):g} minutes from their beginning")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks.reference", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", help="stop by itself before these are up; default: when all is made")
    parser.add_argument("--only", default="", help="cpu, gpu, or names of the plan, separated by commas")
    parser.add_argument("--data", default="", help="image folder or tar for the entries that need one")
    parser.add_argument("--list", action="store_true", help="print the plan with its state")
    parser.add_argument("--rehearse", action="store_true", help="every command in miniature")
    parser.add_argument("--out", type=Path, help="pack what is made into this folder: eight files of under 16 MB at most")
    parser.add_argument("--unpack", type=Path, help="put what --out packed where it belongs")
    parser.add_argument("--cache", type=Path, default=Path(".cache"))
    return parser.parse_args()


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
    return plan.named(entries, only) if kind is None else [entry for entry in entries if kind in ("", entry.device)]


def main() -> None:
    args = arguments()
    try:
        sys.exit(go(args))
    except BadInput as error:
        print(f"latentbench: {error}", file=sys.stderr)
        sys.exit(2)


def go(args: argparse.Namespace) -> int:
    """The exit code of a call; see the head of this file."""
    started, allowed = time.time(), minutes(args.minutes)
    entries, device = plan.load(), torch.device("cuda" if torch.cuda.is_available() else "cpu")
    reference = plan.PLAN.parent
    if args.list:
        show(entries, device, reference)
        return 0
    if args.unpack:
        print("\n".join(packing.unpack(args.unpack, entries, reference, plan.PLAN)))
        return 0
    deadline = None if allowed is None else started + 60 * allowed
    if args.rehearse:
        home = args.cache / "rehearsal"
        shutil.rmtree(home, ignore_errors=True)  # what is there already would not be made again
        images = commands.images(args.data, home) if args.data else commands.stand_in(home.absolute() / "images")
        places = Places(home / "results", home, home / "reference", images, rehearse=True)
        wanted = rehearsal(entries, args.only)
    else:
        images = commands.images(args.data, args.cache) if args.data else None
        places = Places(Path("results"), args.cache, reference, images)
        wanted = plan.chosen(entries, args.only, device, reference)
    able = [entry for entry in wanted if places.images or not entry.needs_images]
    outcome = make_all(able, places, deadline, Keeper(places, device, args.out))
    report(outcome, wanted)
    return verdict(outcome, wanted, able, allowed)


def verdict(outcome: Outcome, wanted: list[Entry], able: list[Entry], allowed: float | None) -> int:
    """The exit code. Raises BadInput where nothing could be begun, or data is missing."""
    if outcome.failed:
        return 1
    if without := [entry.name for entry in wanted if entry not in able]:
        raise BadInput(f"DATA is missing: {', '.join(without)} need it; give DATA=<folder with train/<class>/*, or a tar of one>")
    if able and not outcome.made and not outcome.begun:
        shortest = min(MARGIN / 60 + (LEAST / 60 if commands.stoppable(entry.kinds) else entry.minutes) for entry in able)
        raise BadInput(f"MINUTES={allowed:g}: too few to begin any of {', '.join(outcome.waiting)}; the shortest takes {shortest:.1f}")
    return 0


if __name__ == "__main__":
    main()
