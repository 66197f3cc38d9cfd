"""Pictures to fixed splits: whatever the source, `load` returns uint8 NCHW pictures split into
train, reference, floor.

Three disjoint splits (DESIGN section 3): `train` is what everything learns from; `reference` is
what distances are measured against; `floor` is as many real pictures as will be generated, seen by
nothing, for the real-vs-real floor. All three are decoded once and cached as one memory-mapped
array plus three index arrays.
"""

import hashlib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from PIL import Image

from benchmarks.core import versions
from benchmarks.core.errors import BadInput
from benchmarks.core.store import atomic_folder, digest, read_json, write_json
from benchmarks.images import procedural
from benchmarks.images.decode import MAX_BAD_SHARE, to_pixels
from benchmarks.images.folder import Entry, list_folder

SPLITS = ("train", "reference", "holdout")


@dataclass(frozen=True)
class Split:
    """Some of a data set's pictures: `split[a:b]` reads them as uint8 (n, 3, H, W)."""

    pixels: np.ndarray
    index: np.ndarray
    labels: np.ndarray

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
    image_size: int
    skipped: list[str]
    aside: list[str]  # held-out splits with pictures that the source had for training
    train: Split
    reference: Split
    holdout: Split


def load_dataset(cfg: Any, *, num_samples: int, cache: str | Path) -> Dataset:
    """The data set that `conf/data/*.yaml` describes, decoded on first use and memory-mapped from
    `cache` after.

    `cfg.reference_images` and `num_samples` fix the sizes of `reference` and `floor`. Raises
    BadInput, in one line, for whatever about the pictures or the sizes cannot be used.
    """
    size = int(cfg.image_size)
    held_out = {"reference": int(cfg.reference_images), "holdout": int(num_samples)}
    if size < 8:
        raise BadInput(f"data.image_size={size}: pictures need a side of at least 8 px")
    if min(held_out.values()) < 2:
        raise BadInput(
            f"data.reference_images={held_out['reference']}, num_samples={num_samples}: both must be at least 2"
        )
    if cfg.source == "procedural":
        source: Any = [int(cfg.seed), int(cfg.train_images), procedural.CLASSES]
    else:
        classes, entries = _listing(cfg)
        entries = _choose(cfg, classes, entries, held_out)
        source = [
            classes,
            cfg.get("images_per_class"),
            [(e.label, e.stamp, e.held_out) for e in entries],
        ]
    key = digest("data", versions.DATA, cfg.source, str(cfg.get("path")), size, held_out, source)
    folder = Path(cache) / "data" / key
    ready = _read(folder, key, size)
    if ready is None:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(
            folder.with_suffix(".lock")
        ):  # of two runs begun together one makes it, the other waits
            ready = _read(folder, key, size)
            if ready is None:
                with atomic_folder(folder) as temporary:
                    if cfg.source == "procedural":
                        _draw(temporary, cfg, size, held_out, key)
                    else:
                        _decode(temporary, cfg, classes, entries, size, held_out, key)
                ready = _read(folder, key, size)
    if ready is None:
        raise BadInput(
            f"cache_dir={cache}: the data just written to {folder} does not read back; is the disk full?"
        )
    if ready.skipped:
        print(f"data: {len(ready.skipped)} unreadable picture(s) skipped, e.g. {ready.skipped[0]}")
    return ready


def _read(folder: Path, key: str, size: int) -> Dataset | None:
    """The cached data set, or None where it is missing, cut short or another's."""
    meta = read_json(folder / "meta.json")
    if not isinstance(meta, dict) or meta.get("key") != key:
        return None
    try:
        pixels = np.load(folder / "pixels.npy", mmap_mode="r")
        labels = np.load(folder / "labels.npy")
        index = {name: np.load(folder / f"{name}.npy") for name in SPLITS}
    except (OSError, ValueError, EOFError):
        print(f"data: the cache in {folder} is damaged; rebuilding it")
        return None
    if pixels.shape != (len(labels), 3, size, size) or any(
        len(index[n]) != meta["sizes"][n] for n in SPLITS
    ):
        print(f"data: the cache in {folder} does not fit its own description; rebuilding it")
        return None
    splits = {name: Split(pixels, at, labels[at]) for name, at in index.items()}
    return Dataset(
        meta["name"],
        *meta["fingerprints"],
        meta["classes"],
        size,
        meta["skipped"],
        meta["aside"],
        **splits,
    )


def _write(
    folder: Path, pixels: np.ndarray, labels: np.ndarray, index: dict[str, np.ndarray], meta: dict
) -> None:
    """Index arrays, labels and description beside `pixels.npy`, which is there already."""
    fingerprints = {}
    for name in SPLITS:
        fingerprint = fingerprints[name] = hashlib.sha256()
        np.save(folder / f"{name}.npy", index[name])
        for start in range(0, len(index[name]), 1024):
            at = index[name][start : start + 1024]
            fingerprint.update(pixels[at].tobytes() + labels[at].tobytes())
    np.save(folder / "labels.npy", labels)
    prints = [fingerprints[name].hexdigest()[:16] for name in SPLITS]
    sizes = {name: len(at) for name, at in index.items()}
    write_json(
        folder / "meta.json", meta | {"sizes": sizes, "fingerprints": [digest(*prints), prints[0]]}
    )


def _new_pixels(folder: Path, count: int, size: int) -> np.ndarray:
    return np.lib.format.open_memmap(
        folder / "pixels.npy", mode="w+", dtype=np.uint8, shape=(count, 3, size, size)
    )


def _draw(folder: Path, cfg: Any, size: int, held_out: dict[str, int], key: str) -> None:
    counts = {"train": int(cfg.train_images)} | held_out
    if counts["train"] < len(procedural.CLASSES):
        raise BadInput(
            f"data.train_images={counts['train']}: at least one per class, {len(procedural.CLASSES)} in all"
        )
    pixels, labels, index, start = _new_pixels(folder, sum(counts.values()), size), [], {}, 0
    for name, count in counts.items():
        index[name] = np.arange(start, start + count)
        try:
            images, split_labels = procedural.generate(count, size, seed=int(cfg.seed), stream=name)
        except ValueError as error:
            raise BadInput(str(error)) from None
        pixels[index[name]] = images
        labels.append(split_labels)
        start += count
    meta = {
        "key": key,
        "name": cfg.name,
        "classes": procedural.CLASS_NAMES,
        "skipped": [],
        "aside": [],
    }
    _write(folder, pixels, np.concatenate(labels), index, meta)


def _listing(cfg: Any) -> tuple[list[str], list[Entry]]:
    """Class names and every picture of the chosen classes, in a deterministic order that ignores
    the file system's.
    """
    if cfg.source == "imagefolder":
        classes, entries = list_folder(cfg.path)
    elif cfg.source == "hub":
        from benchmarks.images.hub import (
            list_hub,
        )  # the only way to `datasets`, which a machine with image folders may lack

        classes, entries = list_hub(cfg)
    else:
        raise BadInput(f"data.source={cfg.source}: one of procedural, imagefolder, hub")
    keep = _pick_classes(cfg.get("classes"), classes)
    number = {old: new for new, old in enumerate(keep)}
    entries = [e._replace(label=number[e.label]) for e in entries if e.label in number]
    return [classes[i] for i in keep], sorted(
        entries, key=lambda e: (e.label, hashlib.sha256(e.name.encode()).digest())
    )


def _pick_classes(wanted: Any, classes: list[str]) -> list[int]:
    """`data.classes`: None keeps all, a count keeps the first ones by name, a list names them."""
    if wanted is None:
        return list(range(len(classes)))
    if isinstance(wanted, int):
        if not 1 <= wanted <= len(classes):
            raise BadInput(
                f"data.classes={wanted}: the data has {len(classes)} classes; ask for 1 to {len(classes)}"
            )
        return list(range(wanted))
    names = [wanted] if isinstance(wanted, str) else [str(name) for name in wanted]
    missing = [name for name in names if name not in classes]
    if missing:
        raise BadInput(
            f"data.classes: no class called {missing[0]!r}; the data has {', '.join(classes[:5])}, ..."
        )
    return [classes.index(name) for name in dict.fromkeys(names)]


def _quota(total: int, num_classes: int, label: int) -> int:
    """How many of `total` pictures, dealt round-robin over the classes, carry this label."""
    return total // num_classes + (label < total % num_classes)


def _choose(
    cfg: Any, classes: list[str], entries: list[Entry], held_out: dict[str, int]
) -> list[Entry]:
    """The pictures to decode: every one, or `data.images_per_class` for training plus what the
    other splits need.
    """
    limit = cfg.get("images_per_class")
    if limit is not None and int(limit) < 1:
        raise BadInput(f"data.images_per_class={limit}: at least 1, or null for all")
    chosen, groups = [], [[] for _ in classes]
    for e in entries:
        groups[e.label].append(e)
    for label, (name, mine) in enumerate(zip(classes, groups, strict=True)):
        if not any(not e.held_out for e in mine):
            raise BadInput(
                f"data.path={cfg.path}: class {name!r} has no training pictures; add some or leave it out of data.classes"
            )
        aside = sum(_quota(total, len(classes), label) for total in held_out.values())
        spare = 2 + aside // 50  # some may turn out unreadable
        for group in (False, True):
            some = [e for e in mine if e.held_out == group]
            chosen += (
                some if limit is None else some[: aside + spare + (0 if group else int(limit))]
            )
    return chosen


def _decode(
    folder: Path,
    cfg: Any,
    classes: list[str],
    entries: list[Entry],
    size: int,
    held_out: dict[str, int],
    key: str,
) -> None:
    """Decode all entries into `pixels.npy` in threads (Pillow releases the GIL), then deal them
    into splits.
    """
    pixels, good, skipped = (
        _new_pixels(folder, len(entries), size),
        np.zeros(len(entries), bool),
        [],
    )

    def one(i: int) -> str | None:
        try:
            with entries[i].open() as image:
                pixels[i] = to_pixels(image, size)
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            return f"{entries[i].name} ({type(error).__name__})"
        good[i] = True
        return None

    with ThreadPoolExecutor() as pool:
        skipped = [line for line in pool.map(one, range(len(entries)), chunksize=64) if line]
    if len(skipped) > MAX_BAD_SHARE * len(entries):
        raise BadInput(
            f"data.path={cfg.path}: {len(skipped)} of {len(entries)} pictures are unreadable (over 1%), e.g. {skipped[0]}; mend or remove them"
        )
    index, aside = _deal(cfg, classes, entries, good, held_out)
    labels = np.array([e.label for e in entries], np.int64)
    name = Path(str(cfg.path)).name if cfg.name == "imagefolder" else cfg.name
    _write(
        folder,
        pixels,
        labels,
        index,
        {"key": key, "name": name, "classes": classes, "skipped": skipped, "aside": aside},
    )


def _deal(
    cfg: Any, classes: list[str], entries: list[Entry], good: np.ndarray, held_out: dict[str, int]
) -> tuple[dict[str, np.ndarray], list[str]]:
    """Indices of each split, and which splits needed training pictures: held-out folders serve
    first; where they run short, some are set aside.
    """
    limit = cfg.get("images_per_class")
    piles: dict[str, list[list[int]]] = {name: [] for name in SPLITS}
    aside: set[str] = set()
    groups: list[list[int]] = [[] for _ in classes]
    for i in np.flatnonzero(good).tolist():
        groups[entries[i].label].append(i)
    for label, (name, mine) in enumerate(zip(classes, groups, strict=True)):
        outside, inside = (
            [i for i in mine if entries[i].held_out],
            [i for i in mine if not entries[i].held_out],
        )
        for split, total in held_out.items():
            need = _quota(total, len(classes), label)
            pile = outside if len(outside) >= need else inside
            if len(pile) - (pile is inside) < need:
                raise BadInput(
                    f"data.path={cfg.path}: class {name!r} has {len(mine)} readable pictures, too few for data.reference_images="
                    f"{held_out['reference']}, num_samples={held_out['holdout']} and some to train on; lower these or add pictures"
                )
            piles[split].append(pile[:need])
            if pile is inside:
                aside.add(split)
            del pile[:need]
        if not inside:
            raise BadInput(
                f"data.path={cfg.path}: class {name!r} has no readable training picture left; add some or leave it out of data.classes"
            )
        piles["train"].append(inside[: int(limit)] if limit is not None else inside)
    index = {split: _round_robin(piles[split]) for split in held_out}
    return {"train": np.array(sorted(i for pile in piles["train"] for i in pile))} | index, sorted(
        aside
    )


def _round_robin(piles: Iterable[list[int]]) -> np.ndarray:
    """One of each class in turn, so that any prefix is class-balanced and label i is i mod K."""
    piles = [list(pile) for pile in piles]
    longest = max(len(pile) for pile in piles)
    return np.array([pile[k] for k in range(longest) for pile in piles if k < len(pile)])
