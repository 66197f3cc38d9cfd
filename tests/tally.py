"""How many faults were tried, by kind, and what became of them: the table of docs/faults.md."""

import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.results.tables import markdown

OUTCOMES = ("tries", "survived", "lost", "wrong")
COUNTS: dict[str, Counter] = {}


@contextmanager
def tried(kind: str) -> Iterator[None]:
    """Within, one fault. Rows that differ from those of an unbroken run are wrong; whatever else
    goes against what was expected is lost.
    """
    counts = COUNTS.setdefault(kind, Counter())
    counts["tries"] += 1
    try:
        yield
    except BaseException as error:
        counts["wrong" if "are different" in str(error) else "lost"] += 1
        raise
    counts["survived"] += 1


def write() -> None:
    """The table, into the file that TALLY names; nothing where it names none."""
    if COUNTS and os.environ.get("TALLY"):
        rows = [[kind, *(counts[name] for name in OUTCOMES)] for kind, counts in COUNTS.items()]
        lines = markdown(["what was done", *OUTCOMES], rows)
        Path(os.environ["TALLY"]).write_text("\n".join(lines) + "\n", encoding="utf-8")
