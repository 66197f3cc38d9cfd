"""Rebuild tables, plots and pages from the records of results folders; nothing is measured anew.

    python -m benchmarks report
    python -m benchmarks report results/cpu results/reference/seeds

Without folders, all of results/ that hold records. A published folder stays one.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.core.cli import parser
from benchmarks.core.errors import BadInput
from benchmarks.reports.summary import build_report


def main(argv: Sequence[str]) -> None:
    arguments = parser("report", __doc__)
    where = "default: every folder of results/ with records"
    arguments.add_argument("folders", nargs="*", type=Path, help=where)
    folders = arguments.parse_args(argv).folders
    folders = folders or sorted(path.parent for path in Path("results").glob("*/records"))
    if not folders:
        sys.exit("latentbench: results/ has no records yet; run `make bench` first")
    try:
        for folder in folders:
            print(build_report(folder))
    except BadInput as error:
        sys.exit(f"latentbench: {error}")
