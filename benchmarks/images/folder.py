"""Where pictures come from, before any is decoded: image folders here, hub and parquet data in
`hub.py`.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from benchmarks.core.errors import BadInput

SUFFIXES = {".jpeg", ".jpg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"}


class Entry(NamedTuple):
    """One picture before it is decoded: its label, a stable name to sort by, a stamp that changes
    with it, how to open it.
    """

    label: int
    name: str
    stamp: str
    held_out: bool
    open: Callable[[], Image.Image]


def list_folder(given: Any) -> tuple[list[str], list[Entry]]:
    """Class names and pictures of `train/<class>/*` with `val/<class>/*`, or of `<class>/*`. Raises
    BadInput where there are none.
    """
    root = Path(str(given)).expanduser()
    if not root.is_dir():
        raise BadInput(
            f"data.path={given}: no such folder; give one that holds train/<class>/* or <class>/*"
        )
    train = root / "train" if (root / "train").is_dir() else root
    held_out = next(
        (
            root / name
            for name in ("val", "valid", "validation")
            if train != root and (root / name).is_dir()
        ),
        None,
    )
    classes = sorted(p.name for p in train.iterdir() if p.is_dir() and not p.name.startswith("."))
    if not classes:
        raise BadInput(
            f"data.path={given}: {train} has no class folders; expected train/<class>/* or <class>/*"
        )
    entries = []
    for folder in filter(None, (train, held_out)):
        for label, name in enumerate(classes):
            files = [
                p
                for p in sorted((folder / name).rglob("*"))
                if p.suffix.lower() in SUFFIXES and p.is_file()
            ]
            for p in files:
                relative, stat = str(p.relative_to(root)), p.stat()
                entries.append(
                    Entry(
                        label,
                        relative,
                        f"{relative}:{stat.st_size}:{stat.st_mtime_ns}",
                        folder == held_out,
                        lambda p=p: Image.open(p),
                    )
                )
    if not entries:
        raise BadInput(f"data.path={given}: no pictures in it ({', '.join(sorted(SUFFIXES))})")
    return classes, entries
