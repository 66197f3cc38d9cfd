"""Rebuild tables, plots and pages from the records of results folders; nothing is measured anew.

    python -m benchmarks report
    python -m benchmarks report results/cpu results/reference/cpu-procedural
    python -m benchmarks report results/cpu results/reference/cpu-procedural --into results/both

Without folders, all of results/ that hold records. A published folder stays one. With --into, the
records of all folders, of this machine or of others, become one report in a new folder. Rows of
different devices stand apart there, so that no seconds of one are compared with another's. Two
machines with a device of one name are taken for one.
"""

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.core import cli
from benchmarks.core.errors import BadInput
from benchmarks.core.files import atomic_folder
from benchmarks.core.store import digest, seal, write_json
from benchmarks.reports.summary import build_report
from benchmarks.results import records


def main(argv: Sequence[str]) -> None:
    arguments = cli.parser("report", __doc__)
    where = "default: every folder of results/ with records"
    arguments.add_argument("folders", nargs="*", type=cli.path, help=where)
    into = "a new folder for one report of all of them"
    arguments.add_argument("--into", type=cli.path, metavar="FOLDER", help=into)
    args = arguments.parse_args(argv)
    folders = args.folders
    there = sorted(path.parent for path in Path("results").glob("*/records"))
    if not folders and not there:
        sys.exit("latentbench: results/ has no records yet; run `make bench` first")
    try:
        for folder in folders:
            _check(folder)
        if args.into:
            combine(folders or there, args.into)
            there, folders = [args.into], []
        for folder in folders or there:
            print(build_report(folder))
        if len(folders) > 1:
            print("each folder has its own report; --into FOLDER makes one of all of them")
    except BadInput as error:
        sys.exit(f"latentbench: {error}")


def combine(folders: Sequence[Path], target: Path) -> None:
    """Copy the records and sample strips of several results folders into a new one.

    A record that two folders have is there once; two machines' records of one measurement both.
    Raises BadInput where the folder is there already.
    """
    if target.exists():
        raise BadInput(f"--into {target}: it is there already; give a new folder")
    with atomic_folder(target) as place:
        taken: dict[str, dict] = {}
        for folder in folders:
            for record in records.read(folder):
                name = record["row"]["run_id"]
                own = name
                if name in taken and taken[name] != record:
                    own = digest(name, record)[:12]
                    record = seal(record | {"row": record["row"] | {"run_id": own}})
                taken[own] = record
                write_json(records.path_of(place, own), record)
                for suffix in (".png", "-nearest.png"):
                    strip = folder / "records" / f"{name}{suffix}"
                    if strip.exists():
                        shutil.copyfile(strip, place / "records" / f"{own}{suffix}")


def _check(folder: Path) -> None:
    """Raises BadInput for a folder without records."""
    if not records.read(folder):
        wanted = "give folders such as results/cpu that `make bench` wrote"
        raise BadInput(f"{folder}: no records there; {wanted}")
