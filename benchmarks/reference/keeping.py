"""What becomes of a study once its commands have ended: published, marked in the plan, packed."""

from pathlib import Path

import torch

from benchmarks.core.store import write_json
from benchmarks.reference import packing, plan
from benchmarks.reference.commands import Places
from benchmarks.reference.plan import Entry


class Keeper:
    """Publishes each study as soon as it is whole, marks it in the plan, and packs all that was
    made.

    What is known of a study lies beside its results too (`results/<name>/made.json`): the plan is
    part of the code, and where that is laid anew before every call its marks are gone.
    """

    def __init__(self, places: Places, device: torch.device, out: Path | None):
        self.places, self.device, self.out = places, device, out
        if not places.rehearse:
            packing.check_writable(places.published, "results/reference")
        self.made: packing.Made = {}
        if out is not None:
            packing.check_writable(out, "OUT")
            self.made = packing.packed(out)

    def __call__(self, entry: Entry, became: str, minutes: float) -> None:
        """A study that is not whole changes nothing that is published."""
        known = packing.state(self.places.work, entry.name)
        known["minutes"] = round(known.get("minutes", 0) + minutes, 1)
        made = plan.made_now(self.device) | {"minutes": known["minutes"]}
        if became == "made":
            packing.put_in_place(entry, self.places.out(entry), self.places.published)
            known = {"made": made}
        elif became == "failed":
            known["failed_by"] = made["commit"]
        write_json(self.places.out(entry) / packing.INDEX, known)
        self.pack(entry, made if became == "made" else None)

    def pack(self, entry: Entry, made: dict | None) -> None:
        """Into `out`, with all that was packed before; and into the plan what is made."""
        self.made[entry.name] = made
        if self.out is not None:
            kept = {name: state for name, state in self.made.items() if self.is_here(name, state)}
            paths = packing.pack(
                kept,
                self.places.published,
                self.places.work,
                self.out,
                rehearsed=self.places.rehearse,
            )
            print("packed: " + ", ".join(map(str, paths)), flush=True)
        if made is not None and not self.places.rehearse:
            plan.mark(entry.name, made)

    def is_here(self, name: str, made: dict | None) -> bool:
        folder = self.places.work if made is None else self.places.published
        return (folder / name).is_dir()

    def restore(self, entries: list[Entry]) -> list[Entry]:
        """The entries that are still to be made, those that failed by this very code last.

        What an earlier call made, and the plan has forgotten, is published, packed and marked
        again.
        """
        waiting, failed = [], []
        for entry in entries:
            known = packing.state(self.places.work, entry.name)
            if entry.is_todays(known.get("made")):
                packing.put_in_place(entry, self.places.out(entry), self.places.published)
                self.pack(entry, known["made"])
            elif known.get("failed_by") == plan.made_now(self.device)["commit"]:
                failed.append(entry)
            else:
                waiting.append(entry)
        return waiting + failed
