"""Made studies as a few small files that can be carried from a machine without a network, and back
into the tree."""

import io
import json
import shutil
import tarfile
from pathlib import Path
from typing import Any

from benchmarks.commands.publish import publish
from benchmarks.core.errors import BadInput
from benchmarks.core.files import atomic_file, atomic_folder
from benchmarks.core.store import read_json
from benchmarks.reference.plan import Entry, mark
from benchmarks.reports.shrink import FIGURE_BYTES, shrink
from benchmarks.results import archive

FILES = 8  # so many files, each of so many bytes, may travel back from a machine
BYTES = 15_500_000  # of contents; the tar's own headers come to less than the rest of 16 MB
INDEX = "made.json"
KEPT = ("*.csv", "*.json", "*.md", "*.xml", "*.png")  # of what is not a bench
BEGUN = "begun"  # where the records of a study that is not finished lie in a pack
INNER = {"study": "judge", "reconstruct": "reconstruct"}  # folders that a command makes by itself
# what reading a tar that is cut short, or made by something else, raises
DAMAGE = (tarfile.TarError, OSError, EOFError, KeyError, ValueError, AttributeError, TypeError)

Made = dict[str, dict[str, Any] | None]  # by study, what the plan is to say; None: not finished


def put_in_place(entry: Entry, out: Path, folder: Path) -> Path:
    """What the commands of an entry wrote to `out`, published as `folder/<name>`.

    Raises BadInput where there is nothing, or nothing that can be published.
    """
    target = folder / entry.name
    if "bench" in entry.kinds:
        plots = {path.stem for path in (out / "plots").glob("*.png")}
        publish(out, target, [name for name in entry.figures if name in plots])
        for path in out.glob("*.xml"):
            shutil.copyfile(path, target / path.name)
        return target
    with atomic_folder(target) as temporary:
        _copy(out / INNER.get(entry.kinds[0], ""), temporary)
        if (target / "README.md").exists():
            shutil.copyfile(target / "README.md", temporary / "README.md")
    return target


def _copy(source: Path, target: Path) -> None:
    """Tables and texts as they are, figures small."""
    paths = sorted(path for pattern in KEPT for path in source.rglob(pattern))
    paths = [path for path in paths if path.name != INDEX]
    if not paths:
        raise BadInput(f"{source}: nothing was written there; run it alone to see why")
    for path in paths:
        place = target / path.relative_to(source)
        place.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".png":
            shrink(path, place, FIGURE_BYTES)
        else:
            shutil.copyfile(path, place)


def pack(made: Made, folder: Path, work: Path, out: Path, *, rehearsed: bool = False) -> list[Path]:
    """All studies of `made` as at most eight tars in `out`, each of under 16 MB; returns them.

    Of a finished one `folder/<name>`; of one that is not, the records in `work/<name>`, with which
    another machine can go on. Tars that `out` had before are replaced. Raises BadInput where it
    does not fit, and leaves the tars as they were.
    """
    contents = {}
    for name, state in made.items():
        finished = state is not None
        contents[name] = _finished(folder / name) if finished else _begun(work / name)
    sizes = {
        name: sum(path.stat().st_size for path in files.values())
        for name, files in contents.items()
    }
    bundles = _bundles(sizes)
    if len(bundles) > FILES or max(sizes.values(), default=0) > BYTES:
        total = f"{sum(sizes.values()) / 1e6:.0f} MB"
        raise BadInput(
            f"OUT={out}: {total} do not fit into {FILES} files of 16 MB; make fewer with ONLY="
        )
    paths = []
    for number, names in enumerate(bundles, 1):
        index = {"rehearsed": rehearsed, "studies": {name: made[name] for name in names}}
        files: dict[str, Path] = {}
        for name in names:
            files |= contents[name]
        paths.append(_tar(index, files, out / f"reference-{number}.tar"))
    for path in out.glob("reference-*.tar"):  # of an earlier pack that had more files
        if path not in paths:
            path.unlink()
    return paths


def _bundles(sizes: dict[str, int]) -> list[list[str]]:
    """Studies of one tar each time, in order, as many as fit."""
    bundles: list[list[str]] = [[]]
    filled = 0
    for name, size in sizes.items():
        if bundles[-1] and filled + size > BYTES:
            bundles.append([])
            filled = 0
        bundles[-1].append(name)
        filled += size
    return bundles


def _finished(study: Path) -> dict[str, Path]:
    """All files of a published study, by their places in a pack."""
    paths = [path for path in sorted(study.rglob("*")) if path.is_file()]
    return {f"{study.name}/{path.relative_to(study)}": path for path in paths}


def _begun(study: Path) -> dict[str, Path]:
    """What another machine needs of a study to go on with it, by its places in a pack."""
    records = sorted((study / "records").glob("*.json"))
    files = {f"{BEGUN}/{study.name}/records/{path.name}": path for path in records}
    for pattern in ("*.json", "*.csv", "*.xml"):  # perf's and the tests'
        for path in sorted(study.glob(pattern)):
            files[f"{BEGUN}/{study.name}/{path.name}"] = path
    return files


def _tar(index: dict[str, Any], files: dict[str, Path], path: Path) -> Path:
    """An uncompressed tar of `files`, by their places in it, behind its index."""
    text = json.dumps(index).encode()
    with atomic_file(path) as temporary, tarfile.open(temporary, "w") as tar:
        info = tarfile.TarInfo(INDEX)
        info.size = len(text)
        tar.addfile(info, io.BytesIO(text))
        for place, source in files.items():
            tar.add(source, arcname=place)
    return path


def packed(out: Path) -> Made:
    """What the tars in `out` hold already, finished or not; nothing where there are none."""
    made: Made = {}
    for path in sorted(out.glob("reference-*.tar")):
        made |= _index(path)["studies"]
    return made


def unpack(source: Path, entries: list[Entry], folder: Path, work: Path, plan: Path) -> list[str]:
    """Put what `pack` wrote where it belongs, and its lines `made` into the plan.

    Of an unfinished study the records go to `work/<name>`, and nothing that is published changes.
    Returns lines that say what came. Raises BadInput for files that are not whole, for a
    rehearsal's, and for a study that the plan does not have, before anything is put in place.
    """
    tars = sorted(source.glob("reference-*.tar")) if source.is_dir() else []
    if not tars:
        wanted = "give the folder that `make reference OUT=` wrote"
        raise BadInput(f"UNPACK={source}: no reference-*.tar there; {wanted}")
    indexes = {path: _index(path) for path in tars}
    names = {entry.name for entry in entries}
    for path, index in indexes.items():
        if index["rehearsed"]:
            raise BadInput(f"UNPACK={path}: made by a rehearsal, so its numbers mean nothing")
        unknown = sorted(set(index["studies"]) - names)
        if unknown:
            mend = "use the plan of the code that made it"
            raise BadInput(f"UNPACK={path}: the plan has no {unknown[0]}; {mend}")
    lines = []
    for path, index in indexes.items():
        for name, made in index["studies"].items():
            if made is None:
                _extract(path, f"{BEGUN}/{name}", work / name)
            else:
                _replace(path, name, folder)
                mark(name, made, plan)
            lines.append(f"{name}: {'begun' if made is None else 'made'}")
    return lines


def _index(path: Path) -> dict[str, Any]:
    """What a tar says of itself. Raises BadInput for one that is not whole or not of `pack`."""
    try:
        with tarfile.open(path) as tar:
            index = json.loads(tar.extractfile(INDEX).read())
        return {"rehearsed": bool(index["rehearsed"]), "studies": dict(index["studies"])}
    except DAMAGE as error:
        reason = f"not a whole file of `make reference OUT=` ({type(error).__name__})"
        raise BadInput(f"{path}: {reason}; fetch it again") from None


def _extract(path: Path, inside: str, target: Path) -> None:
    """The files below `inside` of a tar, over those in `target`; nothing is written elsewhere."""
    try:
        with tarfile.open(path) as tar:
            for member in tar.getmembers():
                if member.isfile() and member.name.startswith(f"{inside}/"):
                    member.name = member.name.removeprefix(f"{inside}/")
                    # the filter refuses what would lie outside `target`
                    tar.extract(member, target, filter="data")
    except DAMAGE as error:
        reason = f"{inside} is not whole there ({type(error).__name__})"
        raise BadInput(f"{path}: {reason}; fetch it again") from None


def _replace(path: Path, name: str, folder: Path) -> None:
    """A finished study out of a tar, in the place of an older one, whose README.md stays."""
    with atomic_folder(folder / name) as temporary:
        _extract(path, name, temporary)
        older, newer = folder / name / "README.md", temporary / "README.md"
        if older.exists() and not newer.exists():  # it is written by hand
            shutil.copyfile(older, newer)
        if (temporary / archive.PACKED).exists():
            archive.read(temporary)  # raises where it is not whole


def state(work: Path, name: str) -> dict[str, Any]:
    """Of a study on this machine: `made`, `failed_by` (a commit), `minutes` so far; empty where
    it was never begun.
    """
    written = read_json(work / name / INDEX)
    return written if isinstance(written, dict) else {}
