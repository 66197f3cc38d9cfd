"""What becomes of a study once its commands have ended: published, marked in the plan, packed."""

from pathlib import Path
from typing import Any

import torch

from benchmarks.core.files import check_writable
from benchmarks.core.store import write_json
from benchmarks.reference import packing, plan
from benchmarks.reference.commands import Places
from benchmarks.reference.plan import Entry


class Keeper:
    """Publishes each study as soon as it is whole, marks it in the plan, and packs all that was
    made.

    Its state lies beside its results too (`results/<name>/made.json`): the plan is part of the
    code, and where that is laid anew before every call its marks are gone.
    """

    def __init__(self, places: Places, device: torch.device, out: Path | None):
        """`out` is where studies are packed, if anywhere. Raises BadInput for a folder that cannot
        be written, before anything is made.
        """
        self.places, self.device, self.out = places, device, out
        if not places.rehearse:
            check_writable(places.published, "results/reference")
        self.made: packing.Made = {}
        if out is not None:
            check_writable(out, "OUT")
            self.made = packing.packed(out)  # an earlier call's studies stay in the pack

    def __call__(self, entry: Entry, became: str, minutes: float) -> None:
        """Keep what an entry `became`: `made`, `begun` or `failed`, in so many minutes.

        A study that is not whole changes nothing that is published.
        """
        state = packing.state(self.places.work, entry.name)
        total = round(state.get("minutes", 0) + minutes, 1)
        made = plan.made_now(self.device) | {"minutes": total}
        if became == "made":
            packing.put_in_place(entry, self.places.out(entry), self.places.published)
            state = {"made": made}  # minutes and failures of what led to it are history
        else:
            state["minutes"] = total
        if became == "failed":  # another commit may have mended it, and tries it in its turn
            state["failed_by"] = made["commit"]
        write_json(self.places.out(entry) / packing.INDEX, state)
        self.pack(entry, made if became == "made" else None)

    def pack(self, entry: Entry, made: dict[str, Any] | None) -> None:
        """Into `out`, with all that was packed before; and into the plan what is made."""
        self.made[entry.name] = made
        if self.out is not None:
            # what an earlier call packed may lie on another machine only
            kept = {name: made for name, made in self.made.items() if self.is_here(name, made)}
            paths = packing.pack(
                kept,
                self.places.published,
                self.places.work,
                self.out,
                rehearsed=self.places.rehearse,
            )
            print("packed: " + ", ".join(str(path) for path in paths), flush=True)
        if made is not None and not self.places.rehearse:
            plan.mark(entry.name, made)

    def is_here(self, name: str, made: dict[str, Any] | None) -> bool:
        """Whether there is a folder to pack: of a study that is not finished, its work."""
        folder = self.places.work if made is None else self.places.published
        return (folder / name).is_dir()

    def restore(self, entries: list[Entry]) -> list[Entry]:
        """The entries that are still to be made, those that failed by this very code last.

        What an earlier call made, and the plan has forgotten, is published, packed and marked
        again.
        """
        # one entry that always fails must not take the minutes of all others, call after call
        waiting, failed = [], []
        commit = plan.made_now(self.device)["commit"]
        for entry in entries:
            state = packing.state(self.places.work, entry.name)
            if entry.is_todays(state.get("made")):
                packing.put_in_place(entry, self.places.out(entry), self.places.published)
                self.pack(entry, state["made"])
            elif state.get("failed_by") == commit:
                failed.append(entry)
            else:
                waiting.append(entry)
        return waiting + failed
