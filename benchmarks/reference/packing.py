"""Made studies as a few small files that can be carried from a machine without a network, and back into the tree."""

import io
import json
import shutil
import tarfile
from pathlib import Path
from typing import Any

from benchmarks import archive
from benchmarks.publish import publish
from benchmarks.reference.plan import Entry, mark
from benchmarks.reports.shrink import FIGURE_BYTES, shrink
from benchmarks.store import BadInput, atomic_file, atomic_folder

FILES, BYTES = 8, 15_500_000  # so much of what a machine made may travel back
INDEX = "made.json"
KEPT = ("*.csv", "*.json", "*.md", "*.xml", "*.png")  # of what is not a bench


def put_in_place(entry: Entry, out: Path, folder: Path) -> Path:
    """What the commands of an entry wrote to `out`, in its published form, as `folder/<name>`. Raises BadInput where there is nothing."""
    target = folder / entry.name
    if "bench" in entry.kinds:
        drawn = {path.stem for path in (out / "plots").glob("*.png")}
        publish(out, target, [name for name in entry.figures if name in drawn], entry.grid)
        keep = out.glob("*.xml")
    else:
        inner = out / {"study": "judge", "reconstruct": "reconstruct"}.get(entry.kinds[0], "")
        with atomic_folder(target) as temporary:
            _copy(inner, temporary)
            if (target / "README.md").exists():
                shutil.copyfile(target / "README.md", temporary / "README.md")
        keep = iter(())
    for path in keep:
        shutil.copyfile(path, target / path.name)
    return target


def anything(entry: Entry, out: Path) -> bool:
    """Whether the commands of an entry have written anything that `put_in_place` could take."""
    return (out / "results.csv").exists() if "bench" in entry.kinds else any(True for pattern in KEPT for _ in out.rglob(pattern))


def _copy(source: Path, target: Path) -> None:
    """Tables and texts as they are, figures small."""
    found = sorted(path for pattern in KEPT for path in source.rglob(pattern))
    if not found:
        raise BadInput(f"{source}: nothing was written there; run it alone to see why")
    for path in found:
        place = target / path.relative_to(source)
        place.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".png":
            shrink(path, place, FIGURE_BYTES)
        else:
            shutil.copyfile(path, place)


def pack(folder: Path, made: dict[str, dict[str, Any] | None], out: Path) -> list[Path]:
    """`folder/<name>` of all that was made, into at most eight tars of `out`, each of under 16 MB; returns them.

    `made` says what the plan is to say of each; None of one that is not finished. Raises BadInput where it does not fit, or `out`
    cannot be written.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInput(f"OUT={out}: cannot be written ({error.strerror}); give a folder that can") from None
    bundles: list[list[str]] = [[]]
    sizes = {name: sum(path.stat().st_size for path in (folder / name).rglob("*") if path.is_file()) for name in made}
    for name in made:
        if bundles[-1] and sum(sizes[other] for other in bundles[-1]) + sizes[name] > BYTES:
            bundles.append([])
        bundles[-1].append(name)
    if len(bundles) > FILES or max(sizes.values(), default=0) > BYTES:
        raise BadInput(f"OUT={out}: {sum(sizes.values()) / 1e6:.0f} MB do not fit into {FILES} files of 16 MB; make fewer with ONLY=")
    return [_tar(folder, {name: made[name] for name in names}, out / f"reference-{i}.tar") for i, names in enumerate(bundles, 1)]


def _tar(folder: Path, made: dict[str, dict[str, Any] | None], path: Path) -> Path:
    index = json.dumps(made).encode()
    with atomic_file(path) as temporary, tarfile.open(temporary, "w") as tar:
        info = tarfile.TarInfo(INDEX)
        info.size = len(index)
        tar.addfile(info, io.BytesIO(index))
        for name in made:
            tar.add(folder / name, arcname=name)
    return path


def unpack(source: Path, entries: list[Entry], folder: Path, plan: Path) -> list[str]:
    """Put what `pack` wrote where it belongs, and its lines `made` into the plan; returns lines that say what came.

    What is not finished takes no finished study's place. Raises BadInput for files that are not whole, and for a study that the plan
    does not have; what was put in place before stays.
    """
    tars = sorted(source.glob("reference-*.tar")) if source.is_dir() else []
    if not tars:
        raise BadInput(f"UNPACK={source}: no reference-*.tar there; give the folder that `make reference OUT=` wrote")
    known, lines = {entry.name: entry for entry in entries}, []
    for path in tars:
        for name, made in _index(path).items():
            if name not in known:
                raise BadInput(f"UNPACK={path}: the plan has no {name}; use the plan of the code that made it")
            if made is None and known[name].made is not None:
                lines.append(f"{name}: not finished there; what is here stays")
                continue
            _place(path, name, folder)
            if made is not None:
                mark(name, made, plan)
            lines.append(f"{name}: {'made' if made else 'not finished'}")
    return lines


def _index(path: Path) -> dict[str, dict[str, Any] | None]:
    try:
        with tarfile.open(path) as tar:
            return json.loads(tar.extractfile(INDEX).read())
    except (tarfile.TarError, OSError, KeyError, ValueError, EOFError, AttributeError) as error:
        raise BadInput(f"UNPACK={path}: not a whole file of `make reference OUT=` ({type(error).__name__}); fetch it again") from None


def _place(path: Path, name: str, folder: Path) -> None:
    """One study out of a tar, in the place of an older one; nothing outside its own folder is written."""
    try:
        with tarfile.open(path) as tar, atomic_folder(folder / name) as temporary:
            inside = [member for member in tar.getmembers() if member.name.split("/")[0] == name]
            tar.extractall(temporary, members=inside, filter="data")
            for part in list((temporary / name).iterdir()):
                part.rename(temporary / part.name)
            (temporary / name).rmdir()
            if (folder / name / "README.md").exists() and not (temporary / "README.md").exists():
                shutil.copyfile(folder / name / "README.md", temporary / "README.md")
            if (temporary / archive.PACKED).exists():
                archive.read(temporary)  # it must be whole
    except (tarfile.TarError, OSError, EOFError) as error:
        raise BadInput(f"UNPACK={path}: {name} is not whole there ({type(error).__name__}); fetch it again") from None
