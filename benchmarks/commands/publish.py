"""A results folder in its published form, small enough to travel with the code.

    python -m benchmarks publish results/cpu results/reference/cpu-procedural
    python -m benchmarks publish results/seeds kept/seeds --figures fd_vs_gflops

The target is replaced; its README.md stays.
"""

import re
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.core import cli
from benchmarks.core.errors import BadInput
from benchmarks.core.files import atomic_folder
from benchmarks.reports.shrink import FIGURE_BYTES, FIGURES, GRID_BYTES, shrink
from benchmarks.results import archive, records

MOST_FIGURES = 2
TEXTS = ("README.md", "results.csv", "summary.md")
# all that a target may hold already
PUBLISHED = {*TEXTS, archive.PLAIN, archive.PACKED, "plots", "samples", "tests.xml"}
IMAGE_LINE = re.compile(r"!\[[^\]]*\]\(([^)]+)\)")


def publish(
    folder: Path,
    target: Path,
    figures: Sequence[str],
    grid: str | None = None,
) -> list[Path]:
    """Write the published form of the results in `folder` to `target`, a folder, which it replaces.

    `figures` names at most two of `folder/plots`, `grid` one of `folder/samples`, both without
    `.png`; where no grid is named, the first grid of samples is taken, if there is one. `folder`
    may be `target`, and may be published itself. Written are

    - `results.csv`, as it is;
    - `summary.md`, without its links to figures and grids that are not published;
    - `records.json.gz`: the records of `folder`, without those of earlier code versions, which
      the report leaves out too; parts that are equal are stored once;
    - `plots/<figure>.png`, below 200 KB each, and `samples/<grid>.png`, below 300 KB, in at most
      256 colours.

    A `README.md` of the target is kept. Returns the paths written, sorted. Raises BadInput, in
    one line and before anything is replaced: for a folder without records or report, for damaged
    records or images, for an unknown figure or grid, for more than two figures, and for a target
    that holds anything else, since publishing would remove it.
    """
    current = records.current(records.read(folder))
    if not current:
        raise BadInput(f"{folder}: no records there; give a folder that `make bench` wrote")
    for name in ("results.csv", "summary.md"):
        if not (folder / name).exists():
            raise BadInput(f"{folder}: no {name}; `make report` writes it")
    images = _figures(folder, figures) + _grid(folder, grid)
    _check_target(target)
    with atomic_folder(target) as place:
        _write(current, folder, images, place)
        written = [target / path.relative_to(place) for path in place.rglob("*") if path.is_file()]
        if (target / "README.md").exists():
            shutil.copyfile(target / "README.md", place / "README.md")
    return sorted(written)


def _write(current: list[dict[str, Any]], folder: Path, images: list[str], place: Path) -> None:
    """All files of the published form but README.md, into the empty folder `place`."""
    archive.write(place / archive.PACKED, current)
    shutil.copyfile(folder / "results.csv", place / "results.csv")
    for name in images:
        limit = FIGURE_BYTES if name.startswith("plots/") else GRID_BYTES
        shrink(folder / name, place / name, limit)
    summary = (folder / "summary.md").read_text(encoding="utf-8")
    (place / "summary.md").write_text(without_lost_images(summary, images), encoding="utf-8")


def _figures(folder: Path, names: Sequence[str]) -> list[str]:
    """The figures asked for, as paths in `folder`. BadInput for a third and for an unknown one."""
    names = list(dict.fromkeys(names))
    if len(names) > MOST_FIGURES:
        raise BadInput(f"at most {MOST_FIGURES} figures can be published, not {', '.join(names)}")
    known = {path.stem for path in (folder / "plots").glob("*.png")}
    for name in names:
        if name not in known:
            has = ", ".join(sorted(known)) or "none"
            raise BadInput(f"{folder}/plots: no figure {name}; there are {has}")
    return [f"plots/{name}.png" for name in names]


def _grid(folder: Path, name: str | None) -> list[str]:
    """The grid asked for, else the first, as a path in `folder`; none where there is none.

    Samples beside what they may copy come after all others. BadInput for an unknown grid.
    """
    known = sorted(path.stem for path in (folder / "samples").glob("*.png"))
    known.sort(key=lambda stem: stem.startswith("nearest"))
    if name is None:
        return [f"samples/{stem}.png" for stem in known[:1]]
    if name not in known:
        has = ", ".join(known) or "none"
        raise BadInput(f"{folder}/samples: no grid {name}; there are {has}")
    return [f"samples/{name}.png"]


def _check_target(target: Path) -> None:
    """BadInput for a target that is a file, or holds what is not of a published folder."""
    if target.exists() and not target.is_dir():
        raise BadInput(f"{target} is a file; give a folder")
    others = {path.name for path in target.iterdir()} - PUBLISHED if target.exists() else ()
    if others:
        what = ", ".join(sorted(others)[:3])
        raise BadInput(f"{target} holds {what}: publishing would remove that; give another folder")
    records.refuse_foreign(target)


def without_lost_images(summary: str, kept: list[str]) -> str:
    """Markdown without the lines that show an image which is not in `kept` (paths as linked).

    The heading of the images goes where none of them is kept.
    """
    lines = []
    for line in summary.splitlines():
        shown = IMAGE_LINE.fullmatch(line.strip())
        if not shown or shown[1] in kept:
            lines.append(line)
    text = "\n".join(lines).rstrip() + "\n"
    if not kept:
        text = text.replace("\n## Plots\n", "\n")
    return re.sub(r"\n{3,}", "\n\n", text)


def main(argv: Sequence[str]) -> None:
    parser = cli.parser("publish", __doc__)
    parser.add_argument("folder", type=cli.path, help="a bench's results, such as results/cpu")
    parser.add_argument("target", type=cli.path, help="the published folder")
    parser.add_argument("--figures", nargs="*", default=FIGURES, help="at most two names of plots/")
    parser.add_argument("--grid", help="a name in samples/, without .png; default: the first")
    args = parser.parse_args(argv)
    try:
        written = publish(args.folder, args.target, args.figures, args.grid)
    except BadInput as error:
        sys.exit(f"latentbench: {error}")
    print("\n".join(map(str, written)))
