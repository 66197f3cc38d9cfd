"""Images to fixed splits: whatever the source, `load_dataset` returns uint8 NCHW images split into
`train`, `reference` and `holdout`.

All three are decoded once and cached as one memory-mapped array plus three index arrays.
"""

import hashlib
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.core import versions
from benchmarks.core.errors import BadInput
from benchmarks.core.files import atomic_folder, reserve
from benchmarks.core.locks import load_or_make
from benchmarks.core.session import session
from benchmarks.core.store import digest, write_sealed
from benchmarks.core.text import file_name
from benchmarks.images import procedural
from benchmarks.images.decode import MAX_BAD_FRACTION
from benchmarks.images.decode_all import decode_all
from benchmarks.images.folder import Entry, list_folder
from benchmarks.images.splits import (
    SPLITS,
    Listing,
    choose_entries,
    deal,
    quota,
    round_robin,
    too_few_held_out,
    with_classes,
)
from benchmarks.images.stored import Dataset, Split, fingerprints, load, repeated

LEAST_SIDE = 8  # pixels


# writes pixels, labels and indices into a new folder, and returns the description beside them
Writer = Callable[[Path], dict[str, Any]]


def load_dataset(cfg: Any, *, num_samples: int, cache: str | Path) -> Dataset:
    """The data set that `conf/data/*.yaml` describes, decoded on first use and memory-mapped from
    `cache` after.

    `cfg.reference_images` and `num_samples` fix the sizes of `reference` and `holdout`. Raises
    BadInput, in one line, for whatever about the images or the sizes cannot be used.
    """
    size = int(cfg.image_size)
    held_out = {"reference": int(cfg.reference_images), "holdout": int(num_samples)}
    _check_sizes(size, held_out)
    from_train = cfg.get("reference_from") == "train"
    if from_train:  # they come later, from what is trained on
        held_out["reference"] = 0
    if cfg.source == "procedural":
        counts = {"train": int(cfg.train_images)} | held_out
        left_out = None
        contents: Any = [int(cfg.seed), counts["train"], procedural.CLASSES]
        write: Writer = partial(
            _write_procedural, name=cfg.name, size=size, counts=counts, seed=int(cfg.seed)
        )
    else:
        listing = choose_entries(listing_of(cfg), held_out)
        left_out = listing.left_out
        contents = [listing.classes, cfg.get("images_per_class"), _stamp(listing.entries)]
        name = name_of(str(cfg.path)) if cfg.name == "imagefolder" else cfg.name
        write = partial(_write_decoded, name=name, listing=listing, size=size, held_out=held_out)
    # of all that determines the pixels; the contents have another hash, Dataset.key
    key = digest("data", versions.DATA, cfg.source, str(cfg.get("path")), size, held_out, contents)
    dataset = _load_or_write(Path(cache) / "data" / key, key, size, write)
    dataset = replace(dataset, left_out=left_out)
    if from_train:
        dataset = with_training_reference(dataset, int(cfg.reference_images))
    for line in remarks(dataset):
        session.print_once(line)
    return dataset


def name_of(path: str) -> str:
    """What results of a folder of one's own are named after: the folder."""
    whole = Path(os.path.abspath(Path(path).expanduser()))  # `.` and `..` have no name
    return file_name(whole.name) or "images"


def with_training_reference(dataset: Dataset, count: int) -> Dataset:
    """The data set with `count` of its training images as the reference, class-balanced.

    They stay training images: ADM's protocol (arXiv 2105.05233) takes its statistics from what was
    trained on. Raises BadInput where a class has too few.
    """
    train, classes = dataset.train, len(dataset.classes)
    hands = []
    for label in range(classes):
        hand = train.index[train.labels == label][: quota(count, classes, label)].tolist()
        if len(hand) < quota(count, classes, label):
            raise BadInput(
                f"data.reference_images={count}: class {dataset.classes[label]!r} has only "
                f"{len(hand)} training images; lower it"
            )
        hands.append(hand)
    index = round_robin(hands)
    place = {row: i for i, row in enumerate(train.index.tolist())}
    labels = train.labels[[place[row] for row in index.tolist()]]
    remark = f"the {count} reference images are training images, as data.reference_from=train asks"
    return replace(
        dataset,
        key=digest(dataset.key, "reference from train", count),
        reference=Split(train.pixels, index, labels),
        repeated=[*dataset.repeated, remark],
    )


def remarks(dataset: Dataset) -> list[str]:
    """What a user must know of the images before trusting a number: in lines."""
    lines = []
    if dataset.left_out:
        lines.append(f"data: left out {dataset.left_out}")
    if dataset.skipped:
        count, example = len(dataset.skipped), dataset.skipped[0]
        lines.append(f"data: {count} unreadable image(s) skipped, e.g. {example}")
    return lines + [f"WARNING: {line}" for line in dataset.repeated]


def _stamp(entries: Sequence[Entry]) -> str:
    """Changes with every image: a file's stamp does, so that a replaced one makes another data set.

    One by one, because the text of a million stamps together would take much memory.
    """
    total = hashlib.sha256()
    for entry in entries:
        total.update(f"{entry.label} {entry.held_out} {entry.stamp}\n".encode())
    return total.hexdigest()[:16]


def _check_sizes(size: int, held_out: dict[str, int]) -> None:
    """Raises BadInput for an image side or split sizes that cannot be used."""
    if size < LEAST_SIDE:
        raise BadInput(f"data.image_size={size}: images need a side of at least {LEAST_SIDE} px")
    if min(held_out.values()) < 2:  # a covariance needs two
        raise BadInput(
            f"data.reference_images={held_out['reference']}, num_samples={held_out['holdout']}: "
            "both must be at least 2"
        )


def listing_of(cfg: Any) -> Listing:
    """Class names and every image of the chosen classes, in a deterministic order."""
    if cfg.source == "imagefolder":
        classes, entries, left_out = list_folder(cfg.path)
    elif cfg.source == "hub":
        # the only way to `datasets`, which a machine with image folders may lack
        from benchmarks.images.hub import list_hub

        left_out = None
        classes, entries = list_hub(
            str(cfg.path), config=cfg.get("config"), held_out=cfg.get("held_out")
        )
    else:
        raise BadInput(f"data.source={cfg.source}: one of procedural, imagefolder, hub")
    limit = cfg.get("images_per_class")
    if limit is not None and int(limit) < 1:
        raise BadInput(f"data.images_per_class={limit}: at least 1, or null for all")
    listing = Listing(
        path=cfg.path,
        classes=classes,
        entries=entries,
        left_out=left_out,
        images_per_class=None if limit is None else int(limit),
    )
    return with_classes(listing, cfg.get("classes"))


def _load_or_write(folder: Path, key: str, size: int, write: Writer) -> Dataset:
    """The cached data set, written first where it is missing or damaged. Raises BadInput where what
    was written does not read back.
    """

    def make() -> Dataset | None:
        # whole or absent: a run that is killed leaves no half a data set behind
        with atomic_folder(folder) as temporary:
            description = write(temporary) | fingerprints(temporary)
            write_sealed(temporary / "meta.json", {"key": key} | description)
        return load(folder, key, size)

    dataset = load_or_make(folder, partial(load, folder, key, size), make)
    if dataset is None:
        raise BadInput(
            f"cache_dir={folder.parents[1]}: the data just written to {folder} does not read back; "
            "is the disk full?"
        )
    return dataset


def _new_pixels(folder: Path, count: int, size: int) -> np.memmap:
    """A new array of images on disk, which need not fit into memory.

    Raises OSError where the disk has no room for it: writing to a mapped file would end the
    process then.
    """
    path, shape = folder / "pixels.npy", (count, 3, size, size)
    with open(path, "wb") as file:
        header = {"descr": "|u1", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        file.flush()
        reserve(file, file.tell() + math.prod(shape))
    return np.lib.format.open_memmap(path, mode="r+")


def _write_arrays(folder: Path, labels: np.ndarray, index: dict[str, np.ndarray]) -> None:
    np.save(folder / "labels.npy", labels)
    for name in SPLITS:
        np.save(folder / f"{name}.npy", index[name])


def _write_procedural(
    folder: Path, *, name: str, size: int, counts: dict[str, int], seed: int
) -> dict[str, Any]:
    """Generate the embedded data set; each split is a stream of its own."""
    if counts["train"] < len(procedural.CLASSES):
        raise BadInput(
            f"data.train_images={counts['train']}: at least one per class, "
            f"{len(procedural.CLASSES)} in all"
        )
    pixels = _new_pixels(folder, sum(counts.values()), size)
    labels, index, start = [], {}, 0
    for split, count in counts.items():
        try:
            images, split_labels = procedural.generate(count, size, seed=seed, stream=split)
        except ValueError as error:
            raise BadInput(str(error)) from None
        index[split] = np.arange(start, start + count)
        pixels[start : start + count] = images
        labels.append(split_labels)
        start += count
    pixels.flush()
    _write_arrays(folder, np.concatenate(labels), index)
    return {
        "name": name,
        "classes": procedural.CLASS_NAMES,
        "skipped": [],
        "repeated": [],
        "aside": [],
    }


def _write_decoded(
    folder: Path, *, name: str, listing: Listing, size: int, held_out: dict[str, int]
) -> dict[str, Any]:
    """Decode all entries, then deal them into splits."""
    entries = listing.entries
    pixels = _new_pixels(folder, len(entries), size)
    readable, skipped = np.ones(len(entries), bool), []
    for i, image in enumerate(decode_all([entry.file for entry in entries], size)):
        if isinstance(image, str):
            readable[i] = False
            skipped.append(f"{entries[i].name} ({image})")
        else:
            pixels[i] = image
    pixels.flush()
    if len(skipped) > MAX_BAD_FRACTION * len(entries):
        raise BadInput(
            f"data.path={listing.path}: {len(skipped)} of {len(entries)} images are unreadable "
            f"(over 1%), e.g. {skipped[0]}; mend or remove them"
        )
    index, aside = deal(listing, readable, held_out)
    _write_arrays(folder, np.array([entry.label for entry in entries], np.int64), index)
    return {
        "name": name,
        "classes": listing.classes,
        "skipped": skipped,
        "repeated": [
            *repeated(pixels, index, [entry.name for entry in entries]),
            *too_few_held_out(listing, index, aside),
        ],
        "aside": aside,
    }
