"""Plans, and studies that are made or begun, for the tests of `reference`."""

import os
from pathlib import Path

from benchmarks.reference import plan
from benchmarks.reference.plan import Entry

# what a plan says of a study that another machine made
MADE = {"models": 6, "scoring": 7, "commit": "abc", "date": "2030-01-01", "device": "GPU"}
# the keys that an entry needs, but for its name
GIVEN = dict(
    answers="?",
    device="either",
    data="none",
    minutes=1,
    priority=1,
    runs=["bench experiment=smoke"],
)


def entry(name: str, *runs: str, **changes) -> Entry:
    """An entry of a plan; without `runs` a bench."""
    given = GIVEN | changes
    if runs:
        given["runs"] = list(runs)
    return Entry(name=name, **given)


def plan_of(path: Path, *names: str) -> list[Entry]:
    """A plan of studies that were never made, written to `path` and loaded."""
    lines = []
    for priority, name in enumerate(names):
        lines += [
            f"- name: {name}",
            "  answers: '?'",
            "  device: cpu",
            "  data: none",
            "  minutes: 1",
            f"  priority: {priority}",
            "  made: null",
            "  runs: [cost]",
        ]
    path.write_text("\n".join(lines))
    return plan.load(path)


def made(folder: Path, name: str, size: int = 10) -> None:
    """A published study in `folder`: a table, and a plot of `size` bytes."""
    (folder / name / "plots").mkdir(parents=True)
    (folder / name / "results.csv").write_text(name)
    (folder / name / "plots" / "a.png").write_bytes(os.urandom(size))


def begun(work: Path, name: str, record: str) -> None:
    """A study that was begun in `work` and has one record."""
    (work / name / "records").mkdir(parents=True)
    (work / name / "records" / f"{record}.json").write_text(record)
