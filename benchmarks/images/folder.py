"""Where images come from, before any is decoded: image folders here, hub and parquet data in
`hub.py`.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from benchmarks.core.errors import BadInput

SUFFIXES = {".jpeg", ".jpg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"}
HELD_OUT_NAMES = ("val", "valid", "validation")


class Entry(NamedTuple):
    """One image before it is decoded."""

    label: int
    name: str  # stable: what the order of images comes from
    stamp: str  # changes with the image
    held_out: bool  # the source itself keeps it from training
    open: Callable[[], Image.Image]


def list_folder(given: Any) -> tuple[list[str], list[Entry]]:
    """Class names and images of `train/<class>/*` with `val/<class>/*`, or of `<class>/*`.

    Classes are in the order of their names. Raises BadInput where there are none, or no images.
    """
    root = Path(str(given)).expanduser()
    if not root.is_dir():
        raise BadInput(
            f"data.path={given}: no such folder; give one that holds train/<class>/* or <class>/*"
        )
    train, held_out = _split_folders(root)
    # labels by name, not by the order in which the file system lists
    classes = sorted(p.name for p in train.iterdir() if p.is_dir() and not p.name.startswith("."))
    if not classes:
        raise BadInput(
            f"data.path={given}: {train} has no class folders; "
            "expected train/<class>/* or <class>/*"
        )
    entries = _list_split(train, root, classes, held_out=False)
    if held_out is not None:
        entries += _list_split(held_out, root, classes, held_out=True)
    if not entries:
        raise BadInput(f"data.path={given}: no images in it ({', '.join(sorted(SUFFIXES))})")
    return classes, entries


def _split_folders(root: Path) -> tuple[Path, Path | None]:
    """The folders of training and of held-out classes; without `train` all classes are of one."""
    train = root / "train"
    if not train.is_dir():
        return root, None
    for name in HELD_OUT_NAMES:
        if (root / name).is_dir():
            return train, root / name
    return train, None


def _list_split(split: Path, root: Path, classes: list[str], *, held_out: bool) -> list[Entry]:
    """The images of one split, class by class, each class in the order of its files' names."""
    entries = []
    for label, name in enumerate(classes):
        for path in sorted((split / name).rglob("*")):
            if path.suffix.lower() not in SUFFIXES or not path.is_file():
                continue
            relative, stat = str(path.relative_to(root)), path.stat()
            # size alone would not notice an image that was replaced by one of the same size
            stamp = f"{relative}:{stat.st_size}:{stat.st_mtime_ns}"
            entries.append(Entry(label, relative, stamp, held_out, partial(Image.open, path)))
    return entries
