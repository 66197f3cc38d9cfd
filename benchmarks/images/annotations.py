"""Files that say which image is of which class, where folders do not."""

from collections.abc import Collection
from pathlib import Path

SUFFIXES = (".txt", ".csv", ".tsv")
SEPARATORS = ("\t", ",", " ")


def read_annotations(
    folder: Path, images: Collection[Path], classes: Collection[str]
) -> dict[str, str] | None:
    """The class of each image by its file's name, from a text file in `folder`.

    A line begins with a file's name and its class, between tabs, commas or spaces, as in
    Tiny-ImageNet's val_annotations.txt. Images of other classes are not in it. None where no file
    names any image.
    """
    names = {path.name for path in images}
    by_stem = {path.stem: path.name for path in images}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() not in SUFFIXES or not path.is_file():
            continue
        class_of: dict[str, str] = {}
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            name, label = _first_two(line)
            name = name if name in names else by_stem.get(name, "")
            # boxes may follow the class in the same field, as in ImageNet's LOC_val_solution.csv
            label = label if label in classes else label.split(" ")[0]
            if name and label in classes:
                class_of[name] = label
        if class_of:
            return class_of
    return None


def _first_two(line: str) -> tuple[str, str]:
    """The first two fields of a line, empty where it has none."""
    separator = next((mark for mark in SEPARATORS if mark in line), None)
    fields = [field.strip() for field in line.split(separator)] if separator else []
    return (fields[0], fields[1]) if len(fields) > 1 else ("", "")
