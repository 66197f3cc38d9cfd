"""A data set as it lies in the cache: one memory-mapped array of images and three of indices."""

import hashlib
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.core.checked import is_whole
from benchmarks.core.store import digest, first_line, read_sealed
from benchmarks.images.splits import SPLITS

READ_AT_ONCE = 1024  # images, for a fingerprint


@dataclass(frozen=True)
class Split:
    """Some of a data set's images: `split[a:b]` reads them as uint8 (n, 3, H, W)."""

    pixels: np.ndarray  # uint8 (all images of the data set, 3, H, W), memory-mapped
    index: np.ndarray  # (N,) of this split's images in `pixels`
    labels: np.ndarray  # (N,) int64

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, at: Any) -> np.ndarray:
        return np.asarray(self.pixels[self.index[at]])


@dataclass(frozen=True)
class Dataset:
    """Three splits of one data set, its class names, and fingerprints of the pixels of all splits
    and of `train` alone.
    """

    name: str
    key: str
    train_key: str
    classes: list[str]
    image_size: int  # pixels a side
    left_out: str | None  # what the listing did not take, in part of a line
    skipped: list[str]  # unreadable images, each with its error
    # a line for each two splits that share images, and where a held-out folder was too small
    repeated: list[str]
    aside: list[str]  # held-out splits with images that the source had for training
    train: Split
    reference: Split
    holdout: Split


def load(folder: Path, key: str, size: int) -> Dataset | None:
    """The cached data set, or None where it is missing, damaged or another's."""
    if not folder.exists():
        return None
    meta = read_sealed(folder / "meta.json")
    if meta is None or meta.get("key") != key:
        return None
    try:
        pixels = np.load(folder / "pixels.npy", mmap_mode="r")
        labels = np.load(folder / "labels.npy")
        index = {name: np.load(folder / f"{name}.npy") for name in SPLITS}
        # of what is there, not of what was written: a byte may have changed since
        files = [folder / "meta.json", *sorted(folder.glob("*.npy"))]
        whole = is_whole(files, key, folder / "images.checked", partial(_is_stated, meta, folder))
    except Exception as error:  # whatever damaged files lead their readers to
        print(f"data: the cache in {folder} is damaged ({first_line(error)}); rebuilding it")
        return None
    if pixels.shape != (len(labels), 3, size, size) or not whole:
        print(f"data: the cache in {folder} is not what was written; rebuilding it")
        return None
    key_of_all, key_of_train = meta["fingerprints"]
    return Dataset(
        name=meta["name"],
        key=key_of_all,
        train_key=key_of_train,
        classes=meta["classes"],
        image_size=size,
        left_out=None,
        skipped=meta["skipped"],
        repeated=meta["repeated"],
        aside=meta["aside"],
        **{name: Split(pixels, at, labels[at]) for name, at in index.items()},
    )


def _is_stated(meta: dict[str, Any], folder: Path) -> bool:
    """Whether a folder holds what its description states."""
    there = fingerprints(folder)
    return there == {name: meta[name] for name in there}


def fingerprints(folder: Path) -> dict[str, Any]:
    """Sizes of the splits in a folder just written, and the hashes of what they hold.

    `train` has a hash of its own: what is learnt from it does not depend on the other two.
    """
    pixels = np.load(folder / "pixels.npy", mmap_mode="r")
    labels = np.load(folder / "labels.npy")
    sizes, hashes = {}, []
    for name in SPLITS:
        index = np.load(folder / f"{name}.npy")
        total = hashlib.sha256()
        for start in range(0, len(index), READ_AT_ONCE):
            at = index[start : start + READ_AT_ONCE]
            total.update(pixels[at].tobytes() + labels[at].tobytes())
        sizes[name] = len(index)
        hashes.append(total.hexdigest()[:16])
    return {"sizes": sizes, "fingerprints": [digest(*hashes), hashes[0]]}


def repeated(pixels: np.ndarray, index: dict[str, np.ndarray], names: list[str]) -> list[str]:
    """A line for each two splits that share images, pixel for pixel. `names` are the images'."""
    # split -> content -> row of an image that has it
    rows = {split: {_content(pixels[row]): row for row in at} for split, at in index.items()}
    lines = []
    for split, other in (("reference", "train"), ("holdout", "train"), ("holdout", "reference")):
        shared = [row for row in index[split] if _content(pixels[row]) in rows[other]]
        if shared:
            twin = rows[other][_content(pixels[shared[0]])]
            lines.append(
                f"{len(shared)} of {len(index[split])} {split} images are in {other} too, "
                f"e.g. {names[shared[0]]} = {names[twin]}"
            )
    return lines


def _content(image: np.ndarray) -> bytes:
    return hashlib.blake2b(image.tobytes(), digest_size=16).digest()
