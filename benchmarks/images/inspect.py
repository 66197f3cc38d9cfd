"""What is in a user's image folder, and what the suite will make of it."""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.core.errors import BadInput
from benchmarks.core.machine import Finding
from benchmarks.images.decode import Unreadable, decode, open_image
from benchmarks.images.folder import Entry, list_folder
from benchmarks.images.splits import quota

LOOKED_AT = 500  # images that are decoded: evenly spread over all
NAMED = 3  # examples


def inspect_folder(path: Any, *, reference: int, holdout: int) -> list[Finding]:
    """Classes, splits, sizes, unreadable files, and files that are in two splits or classes.

    `reference` and `holdout` are the sizes of these splits. Raises BadInput for what a bench
    refuses.
    """
    classes, entries, left_out = list_folder(path)
    findings = [_splits(classes, entries, reference, holdout)]
    if left_out:
        findings.append(Finding("left out", left_out))
    findings += _looked_at(entries[:: max(1, len(entries) // LOOKED_AT)])
    return [*findings, _twice(entries, classes)]


def _splits(classes: list[str], entries: list[Entry], reference: int, holdout: int) -> Finding:
    """How many images of each class there are, and where each split will come from."""
    counts = {
        held_out: Counter(entry.label for entry in entries if entry.held_out == held_out)
        for held_out in (False, True)
    }
    train, outside = counts[False], counts[True]
    fewest = min(range(len(classes)), key=lambda label: train[label] + outside[label])
    found = (
        f"{len(classes)} classes, {train.total()} images to train on, {outside.total()} held out; "
        f"fewest of {classes[fewest]}: {train[fewest]} and {outside[fewest]}"
    )
    needed = [
        quota(reference, len(classes), k) + quota(holdout, len(classes), k)
        for k in range(len(classes))
    ]
    short = [k for k in range(len(classes)) if outside[k] < needed[k]]
    starved = [k for k in short if train[k] <= needed[k]]
    if starved:
        names = ", ".join(classes[k] for k in starved[:NAMED])
        mend = "lower data.reference_images and num_samples, or add images"
        return Finding("images", found, f"too few of {names}: {mend}", bad=True)
    if short:
        aside = f"for {len(short)} classes reference or holdout images are set aside from training"
        return Finding("images", found, aside)
    return Finding("images", found, "reference and holdout come from the held-out images")


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
        findings.append(Finding("unreadable", found, "over 1% of all are an error", bad=True))
    return findings


def _twice(entries: list[Entry], classes: list[str]) -> Finding:
    """Files that are there twice, byte for byte; only those of equal size are read."""
    by_size: dict[int, list[Entry]] = defaultdict(list)
    for entry in entries:
        file = entry.file()
        if isinstance(file, Path):
            by_size[file.stat().st_size].append(entry)
    by_content: dict[bytes, list[Entry]] = defaultdict(list)
    for same_size in by_size.values():
        for entry in same_size if len(same_size) > 1 else []:
            content = hashlib.blake2b(Path(entry.file()).read_bytes(), digest_size=16)
            by_content[content.digest()].append(entry)
    twins = [twin for twin in by_content.values() if len(twin) > 1]
    across = [twin for twin in twins if len({(e.held_out, e.label) for e in twin}) > 1]
    if across:
        first, second = across[0][:2]
        found = f"{len(across)} files in two splits or classes, e.g. {first.name} = {second.name}"
        return Finding("twice", found, "distances to what was trained on mean little", bad=True)
    return Finding("twice", f"{len(twins)} files twice in their class, none in two")


def refused(error: BadInput) -> Finding:
    """A folder that a bench would not take."""
    return Finding("images", str(error), "a bench refuses it", bad=True)
