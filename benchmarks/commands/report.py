"""Rebuild tables, plots and pages from the records of results folders; nothing is measured anew.

    python -m benchmarks report
    python -m benchmarks report results/cpu
    python -m benchmarks report results/cpu /theirs/cpu --into results/both

Without folders, all of results/ that hold records, each by itself. A published folder stays one.
The records of several folders, of this machine or of others, become one report in a folder of its
own: that of --into, or results/<names of the folders>. Rows of different devices stand apart there,
so that no seconds of one are compared with another's. Two machines with a device of one name are
taken for one, but where both trained the same with other versions of a library or of the suite:
then rows of each version stand apart.
"""

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.core import cli
from benchmarks.core.errors import BadInput
from benchmarks.core.files import atomic_folder
from benchmarks.core.store import digest, read_json, seal, write_json
from benchmarks.reports.summary import build_report
from benchmarks.results import records
from benchmarks.results.side_by_side import told_apart

SOURCES = "made_of.json"  # of a report of several folders: which
NOTES = "README.md"  # what somebody wrote about a report


def main(argv: Sequence[str]) -> None:
    arguments = cli.parser("report", __doc__)
    where = "default: every folder of results/ with records"
    arguments.add_argument("folders", nargs="*", type=cli.path, help=where)
    into = "where one report of all of them goes; default: results/<their names>"
    arguments.add_argument("--into", type=cli.path, metavar="FOLDER", help=into)
    args = arguments.parse_args(argv)
    folders = args.folders
    there = sorted(path.parent for path in Path("results").glob("*/records"))
    if not folders and not there:
        sys.exit("latentbench: results/ has no records yet; run `make bench` first")
    try:
        for folder in folders:
            _check(folder)
        into = args.into or together(folders)
        if into:
            combine(folders or [path for path in there if not (path / SOURCES).exists()], into)
            folders = [into]
        for folder in folders or there:
            print(build_report(folder))
        if into:
            print(f"one report of all: {into}")
    except BadInput as error:
        sys.exit(f"latentbench: {error}")


def together(folders: Sequence[Path]) -> Path | None:
    """Where the one report of several folders goes: results/cpu+seeds of two of these names."""
    if len(folders) < 2:
        return None
    return Path("results") / "+".join(folder.resolve().name for folder in folders)


def combine(folders: Sequence[Path], target: Path) -> None:
    """Copy the records and sample strips of several results folders into one of their own.

    A record that two folders have is there once; two machines' records of one measurement both. Of
    two that one machine made of it, the newer one is, and a line says so. Made once more, it is
    replaced. Raises BadInput for a folder that was made of anything else.
    """
    sources = [str(folder.resolve()) for folder in folders]
    if target.exists() and read_json(target / SOURCES) != sources:
        raise BadInput(f"{target}: it is there already, and of other results; give a new --into")
    with atomic_folder(target) as place:
        write_json(place / SOURCES, sources)
        if (target / NOTES).exists():
            shutil.copyfile(target / NOTES, place / NOTES)
        for (name, device), (folder, record) in _newest(folders).items():
            own = name
            if records.path_of(place, name).exists():  # another machine's
                own = digest(name, device)[:12]
                record = seal(record | {"row": record["row"] | {"run_id": own}})
            write_json(records.path_of(place, own), record)
            for suffix in (".png", "-nearest.png"):
                strip = folder / "records" / f"{name}{suffix}"
                if strip.exists():
                    shutil.copyfile(strip, place / "records" / f"{own}{suffix}")


def _newest(folders: Sequence[Path]) -> dict[tuple[str, str], tuple[Path, dict]]:
    """Of each measurement, on each kind of machine, the newest record and its folder."""
    newest: dict[tuple[str, str], tuple[Path, dict]] = {}
    left_out = 0
    found = [(path, one) for path in folders for one in records.current(records.read(path))]
    marked = told_apart([record for _, record in found])
    for (folder, _), record in zip(found, marked, strict=True):
        row = record["row"]
        key = row["run_id"], row.get("device") or ""
        _, other = newest.get(key, (folder, record))
        left_out += other["row"] != row
        if (other["row"].get("started_at") or "") <= (row.get("started_at") or ""):
            newest[key] = folder, record
    if left_out:
        print(
            f"{left_out} measurement(s) are in two folders, of machines of one name, and differ: "
            "the newer of each is in the report"
        )
    return newest


def _check(folder: Path) -> None:
    """Raises BadInput for a folder without records."""
    if not records.read(folder):
        wanted = "give folders such as results/cpu that `make bench` wrote"
        raise BadInput(f"{folder}: no records there; {wanted}")
