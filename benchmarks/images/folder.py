"""Image folders as lists of images, class by class, before any is decoded; hub and parquet data are
in `hub.py`.

Read are `train/<class>/*` with held-out images in `val/<class>/*`, or in a flat `val/` with a file
that says which image is of which class; and `<class>/*` without splits. Other spellings of `train`
and `val` will do. What can be read in two ways is refused.
"""

import re
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import IO, Any, NamedTuple

from benchmarks.core.errors import BadInput
from benchmarks.core.text import printable
from benchmarks.images.annotations import read_annotations
from benchmarks.images.files import Walk, list_images, look

TRAIN, VAL, TEST = "train", "val", "test"
SPELLINGS = {
    **dict.fromkeys(("train", "training", "trainset", "trainingset"), TRAIN),
    **dict.fromkeys(
        ("val", "valid", "validation", "valset", "validationset", "dev", "holdout", "heldout"), VAL
    ),
    **dict.fromkeys(("test", "testing", "testset", "eval", "evaluation"), TEST),
}
# words that say nothing about the split, as in ILSVRC2012_img_train
NEUTRAL = {"set", "split", "data", "images", "image", "imgs", "img", "files", "ilsvrc", "imagenet"}
# ordinary words that begin as splits do
WORDS = {"trainer", "trainers", "valley", "value", "valve", "vale", "testament", "testudo"}
EXPECTED = "expected train/<class>/* with val/<class>/*, or <class>/*"


class Entry(NamedTuple):
    """One image before it is decoded."""

    label: int
    name: str  # stable: what the order of images comes from
    stamp: str  # changes with the image
    held_out: bool  # the source itself keeps it from training
    file: Callable[[], Path | IO[bytes]]  # what the decoder takes


def list_folder(given: Any) -> tuple[list[str], list[Entry], str | None]:
    """Class names in their order, the images, and in part of a line what was left out.

    Raises BadInput where there are no classes, no images, or two ways to read the folder.
    """
    root = Path(str(given)).expanduser()
    if not root.is_dir():
        raise BadInput(
            f"data.path={given}: no such folder; give one that holds train/<class>/* or <class>/*"
        )
    walk = Walk(f"data.path={given}")
    train, held_out = _split_folders(root, walk)
    for folder in dict.fromkeys((root, train)):
        walk.enter(folder)  # so that a link back to them is seen to be one
    folders = look(train, walk).folders
    if not folders:
        raise BadInput(
            f"data.path={given}: {printable(train.name)} has no class folders; {EXPECTED}"
        )
    for folder in folders:
        if held_out is not None or train != root:
            _refuse_a_split(folder, walk, train)
        for inside in look(folder, walk).folders:
            _refuse_a_split(inside, walk, folder)
    for folder in dict.fromkeys((root, train)):
        _leave_out_loose(folder, walk)
    labels = {folder.name: label for label, folder in enumerate(folders)}
    entries = _list_classes(folders, labels, root, walk, held_out=False)
    if held_out is not None:
        entries += _list_held_out(held_out, labels, root, walk)
    if not entries:
        raise BadInput(f"data.path={given}: no images in it; {EXPECTED}")
    return [printable(name) for name in labels], entries, walk.summary()


def split_of(name: str) -> str | None:
    """Which split a folder's name stands for, in any case and usual spelling; None: a class."""
    words = [word for word in _words(name) if word not in NEUTRAL]
    return SPELLINGS.get(words[0]) if len(words) == 1 else None


def looks_like_split(name: str) -> bool:
    """Whether a name that `split_of` does not know begins or ends as those of splits do."""
    words = _words(name)
    ends = {words[0], words[-1]} if words else set()
    return any(end.startswith((TRAIN, VAL, TEST)) and end not in WORDS for end in ends)


def _words(name: str) -> list[str]:
    """The words of a name in small letters: `trainImages_64x64` is train and images."""
    name = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)
    return [word for word in re.findall("[a-z]+", name.lower()) if len(word) > 1]


def _split_folders(root: Path, walk: Walk) -> tuple[Path, Path | None]:
    """The folders of training and of held-out images; without splits all of `root` is training."""
    splits: dict[str, Path] = {}
    others = []
    for folder in look(root, walk).folders:
        split = split_of(folder.name)
        if split is None and looks_like_split(folder.name) and look(folder, walk).folders:
            raise BadInput(
                f"{walk.setting}: {printable(folder.name)} looks like a split, but not like one "
                f"of the names train, val and test; rename it. {EXPECTED}"
            )
        if split is None:
            others.append(folder)
        elif split in splits:
            both = f"{printable(splits[split].name)} and {printable(folder.name)}"
            raise BadInput(f"{walk.setting}: {both} both stand for {split}; keep one of them")
        else:
            splits[split] = folder
    if not splits:
        return root, None
    if TRAIN not in splits:
        names = ", ".join(printable(folder.name) for folder in splits.values())
        raise BadInput(
            f"{walk.setting}: has {names}, but no train; {EXPECTED} "
            "(a class of such a name must be renamed)"
        )
    held_out = splits.get(VAL, splits.get(TEST))
    for folder in [*others, *splits.values()]:
        if folder not in (splits[TRAIN], held_out):
            walk.leave_out("folder beside train", folder)
    return splits[TRAIN], held_out


def _refuse_a_split(inside: Path, walk: Walk, folder: Path) -> None:
    """Raises BadInput for a split within training or within a class: all would be trained on."""
    if split_of(inside.name) is not None:
        raise BadInput(
            f"{walk.setting}: {printable(folder.name)} holds {printable(inside.name)}, which is "
            f"the name of a split; {EXPECTED}. If it is the data set, give its path"
        )


def _leave_out_loose(folder: Path, walk: Walk) -> None:
    """Count the images beside class folders, which have no class."""
    for path in look(folder, walk).images:
        walk.leave_out("image outside class folders", path)


def _list_classes(
    folders: Iterable[Path], labels: dict[str, int], root: Path, walk: Walk, *, held_out: bool
) -> list[Entry]:
    """The images of class folders. Raises BadInput for one folder under two names."""
    entries = []
    for folder in folders:
        found = folder.stat()
        before = walk.visited.get((found.st_dev, found.st_ino))
        if before is not None:
            raise BadInput(
                f"{walk.setting}: {printable(str(folder.relative_to(root)))} is the same folder as "
                f"{printable(str(before.relative_to(root)))}; remove one of the links"
            )
        entries += [
            _entry(path, root, labels[folder.name], held_out) for path in list_images(folder, walk)
        ]
    return entries


def _list_held_out(folder: Path, labels: dict[str, int], root: Path, walk: Walk) -> list[Entry]:
    """The held-out images, by class folders or by annotations. Raises BadInput for neither."""
    folders = look(folder, walk).folders
    known = [path for path in folders if path.name in labels]
    if known:
        for path in folders:
            if path.name not in labels:
                walk.leave_out("held-out folder of no training class", path)
        _leave_out_loose(folder, walk)
        return _list_classes(known, labels, root, walk, held_out=True)
    images = list_images(folder, walk)
    if not images:
        walk.leave_out("held-out folder without images", folder)
        return []
    annotated = read_annotations(folder, images, labels)
    if annotated is None:
        raise BadInput(
            f"{walk.setting}: the {len(images)} images in {printable(folder.name)} lie in no class "
            "folder, and no text file there names their classes; sort them into class folders or "
            "move them away"
        )
    file, class_of = annotated
    walk.take_back(file)
    entries = []
    for path in images:
        if path in class_of:
            entries.append(_entry(path, root, labels[class_of[path]], held_out=True))
        else:
            walk.leave_out("held-out image of no training class", path)
    return entries


def _entry(path: Path, root: Path, label: int, held_out: bool) -> Entry:
    """One image; its stamp changes with whatever is written to the file, even under an old date."""
    relative, found = str(path.relative_to(root)), path.stat()
    # a copy may keep its date, but no program can set the time of a file's last change
    stamp = f"{printable(relative)}:{found.st_size}:{found.st_mtime_ns}:{found.st_ctime_ns}"
    return Entry(label, printable(relative), stamp, held_out, partial(Path, str(path)))
