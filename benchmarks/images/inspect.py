"""What is in a user's image folder, and what the suite will make of it."""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.core.errors import BadInput
from benchmarks.core.machine import Finding
from benchmarks.images.dataset import listing_of
from benchmarks.images.decode import MAX_BAD_FRACTION, Unreadable, decode, open_image
from benchmarks.images.folder import Entry
from benchmarks.images.splits import choose_entries, deal, too_few_held_out

START = 4096  # bytes that tell most files apart
LOOKED_AT = 500  # images that are decoded: evenly spread over all
NAMED = 3  # examples


def inspect_images(cfg: Any, *, num_samples: int) -> list[Finding]:
    """Classes, splits, sizes, unreadable files, and files that are in two splits or classes.

    `cfg` is conf/data, of a folder.
    """
    held_out = {"reference": int(cfg.reference_images), "holdout": num_samples}
    if cfg.get("reference_from") == "train":  # they stay training images
        held_out["reference"] = 0
    try:
        listing = listing_of(cfg)
        chosen = choose_entries(listing, held_out)
        index, aside = deal(chosen, np.ones(len(chosen.entries), bool), held_out)
    except BadInput as error:
        return [Finding("images", str(error), "a bench refuses it", bad=True)]
    counts = ", ".join(f"{len(rows)} {split}" for split, rows in sorted(index.items()))
    found = f"{len(listing.classes)} classes; {counts}"
    source = f"some of {' and '.join(aside)} are set aside from training images"
    findings = [Finding("images", found, source if aside else "none is set aside from training")]
    for line in too_few_held_out(chosen, index, aside):
        findings.append(Finding("held out", line, bad=True))
    if listing.left_out:
        findings.append(Finding("left out", listing.left_out))
    entries = listing.entries
    findings += _looked_at(entries[:: max(1, len(entries) // LOOKED_AT)])
    return [*findings, _twice(entries, dealt=bool(aside))]


def _looked_at(entries: Sequence[Entry]) -> list[Finding]:
    """Sizes and unreadable files of some images."""
    sizes: Counter[tuple[int, int]] = Counter()
    unreadable = []
    for entry in entries:
        try:
            decode(entry.file())
            with open_image(entry.file()) as image:
                sizes[image.size] += 1
        except Unreadable as error:
            unreadable.append(f"{entry.name} ({error})")
    shown = [f"{width}x{height} ({count})" for (width, height), count in sizes.most_common(NAMED)]
    more = f", and {len(sizes) - NAMED} other sizes" if len(sizes) > NAMED else ""
    findings = [
        Finding(
            "sizes",
            f"of {len(entries)} images looked at: {', '.join(shown)}{more}",
            "each is cropped to its central square and resized to data.image_size",
        )
    ]
    if unreadable:
        found = f"{len(unreadable)} of {len(entries)}, e.g. {unreadable[0]}"
        bad = len(unreadable) > MAX_BAD_FRACTION * len(entries)
        findings.append(Finding("unreadable", found, "over 1% of all are an error", bad=bad))
    return findings


def _twice(entries: list[Entry], *, dealt: bool) -> Finding:
    """Files that are there twice, byte for byte; few but those are read in full.

    Where images are `dealt` from training into other splits, so are twins of one class.
    """
    of_size = _groups([(entry, entry.file()) for entry in entries], _size)
    of_start = [group for same in of_size for group in _groups(same, partial(_content, most=START))]
    twins = [group for same in of_start for group in _groups(same, _content)]
    across = [
        [entry for entry, _ in group]
        for group in twins
        if len({(entry.held_out, entry.label) for entry, _ in group}) > 1
    ]
    if across:
        first, second = across[0][:2]
        found = f"{len(across)} files in two splits or classes, e.g. {first.name} = {second.name}"
        return Finding("twice", found, "distances to what was trained on mean little", bad=True)
    found = f"{len(twins)} files twice in their class, none in two"
    if twins and dealt:
        return Finding("twice", found, "one may be trained on and the other held out", bad=True)
    return Finding("twice", found)


Files = list[tuple[Entry, Path]]


def _groups(files: Files, key: Callable[[Path], Any]) -> list[Files]:
    """Those files of which several have the same key, together. What cannot be read has none."""
    groups: dict[Any, Files] = defaultdict(list)
    for entry, path in files:
        with suppress(OSError):
            groups[key(path)].append((entry, path))
    return [group for group in groups.values() if len(group) > 1]


def _size(path: Path) -> int:
    return path.stat().st_size


def _content(path: Path, most: int = -1) -> bytes:
    """A digest of a file's bytes, or of `most` of them."""
    with open(path, "rb") as file:
        return hashlib.blake2b(file.read(most), digest_size=16).digest()
