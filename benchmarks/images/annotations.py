"""Files that say which image is of which class, where folders do not."""

import csv
from collections import defaultdict
from collections.abc import Collection, Iterator
from pathlib import Path

from benchmarks.core.errors import BadInput
from benchmarks.core.text import printable

SUFFIXES = (".txt", ".csv", ".tsv")


def read_annotations(
    folder: Path, images: Collection[Path], classes: Collection[str]
) -> tuple[Path, dict[Path, str]] | None:
    """A text file in `folder`, and the class of each image by it.

    A line begins with a file's name, or its path from `folder`, and its class, between tabs,
    commas or spaces, as in Tiny-ImageNet's val_annotations.txt. Images of other classes are not in
    it. None where no file names any image. Raises BadInput for a name that two images have.
    """
    # by path, by name and by name without suffix, the surest first
    named: list[dict[str, list[Path]]] = [defaultdict(list) for _ in range(3)]
    for path in images:
        for by, name in zip(named, (path.relative_to(folder), path.name, path.stem), strict=True):
            by[str(name)].append(path)
    for file in sorted(folder.iterdir()):
        hidden = file.name.startswith(".")
        if hidden or file.suffix.lower() not in SUFFIXES or not file.is_file():
            continue
        class_of: dict[Path, str] = {}
        for name, text in _pairs(file):
            candidates = next((by[name] for by in named if name in by), [])
            label = _class_in(text, classes)
            if not candidates or label is None:
                continue
            if len(candidates) > 1:
                raise BadInput(
                    f"{printable(str(file))}: {printable(name)} is the name of "
                    f"{len(candidates)} images; give their paths from {printable(folder.name)}"
                )
            class_of[candidates[0]] = label
        if class_of:
            return file, class_of
    return None


def _pairs(file: Path) -> Iterator[tuple[str, str]]:
    """The first two fields of each line."""
    lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
    for line in lines:
        if "\t" in line:
            fields = line.split("\t")
        elif "," in line:
            fields = next(csv.reader([line]))
        else:
            fields = list(line.strip().partition(" ")[::2])
        if len(fields) > 1:
            yield fields[0].strip(), fields[1].strip()


def _class_in(text: str, classes: Collection[str]) -> str | None:
    """The longest beginning of a text that is a class: boxes may follow in the same field."""
    words = text.split(" ")
    for count in range(len(words), 0, -1):
        label = " ".join(words[:count])
        if label in classes:
            return label
    return None
