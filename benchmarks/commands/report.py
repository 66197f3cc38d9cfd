"""Rebuild tables, plots and pages from the records of results folders; nothing is measured anew.

    python -m benchmarks report
    python -m benchmarks report results/cpu results/reference/cpu-procedural

Without folders, all of results/ that hold records. A published folder stays one.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.core import cli
from benchmarks.core.errors import BadInput
from benchmarks.reports.summary import build_report
from benchmarks.results import records


def main(argv: Sequence[str]) -> None:
    arguments = cli.parser("report", __doc__)
    where = "default: every folder of results/ with records"
    arguments.add_argument("folders", nargs="*", type=cli.path, help=where)
    folders = arguments.parse_args(argv).folders
    there = sorted(path.parent for path in Path("results").glob("*/records"))
    if not folders and not there:
        sys.exit("latentbench: results/ has no records yet; run `make bench` first")
    try:
        for folder in folders:
            _check(folder)
        for folder in folders or there:
            print(build_report(folder))
    except BadInput as error:
        sys.exit(f"latentbench: {error}")


def _check(folder: Path) -> None:
    """Raises BadInput for a folder without records."""
    if not records.read(folder):
        wanted = "give folders such as results/cpu that `make bench` wrote"
        raise BadInput(f"{folder}: no records there; {wanted}")
