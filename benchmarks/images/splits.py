"""Which image of a listing goes to which split: choosing classes and images, and dealing them out.

Everything here is pure: it sees names, labels and counts, never a pixel. Three disjoint splits keep
the comparison honest: `train` is what everything learns from; `reference` is what distances are
measured against; `holdout` is as many real images as will be generated, which nothing ever sees.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from benchmarks.core.errors import BadInput
from benchmarks.images.folder import Entry

SPLITS = ("train", "reference", "holdout")


@dataclass(frozen=True)
class Listing:
    """What a folder or the hub offers, before anything is decoded."""

    path: Any  # data.path as the user gave it, for errors
    classes: list[str]
    entries: list[Entry]  # `label` counts in `classes`
    left_out: str | None  # what lies there beside, in part of a line
    images_per_class: int | None  # for training; None: all


def with_classes(listing: Listing, wanted: Any) -> Listing:
    """The listing with only the wanted classes (see `pick_classes`), labelled anew from 0.

    Within a class the order is that of the hashes of the names: the same on every file system, and
    unrelated to how the images were numbered.
    """
    # labels count from 0 without gaps: models have one embedding a class
    kept = pick_classes(wanted, listing.classes)
    new_label = {old: new for new, old in enumerate(kept)}
    entries = [
        entry._replace(label=new_label[entry.label])
        for entry in listing.entries
        if entry.label in new_label
    ]
    entries.sort(key=lambda entry: (entry.label, hashlib.sha256(entry.name.encode()).digest()))
    return replace(listing, classes=[listing.classes[i] for i in kept], entries=entries)


def pick_classes(wanted: Any, classes: list[str]) -> list[int]:
    """`data.classes`: None keeps all, a count keeps the first ones by name, a list names them.

    Returns their places in `classes`, without repeats. Raises BadInput for classes there are not.
    """
    if wanted is None:
        return list(range(len(classes)))
    if isinstance(wanted, int):
        if not 1 <= wanted <= len(classes):
            raise BadInput(
                f"data.classes={wanted}: the data has {len(classes)} classes; "
                f"ask for 1 to {len(classes)}"
            )
        return list(range(wanted))
    names = [wanted] if isinstance(wanted, str) else [str(name) for name in wanted]
    missing = [name for name in names if name not in classes]
    if missing:
        raise BadInput(
            f"data.classes: no class called {missing[0]!r}; "
            f"the data has {', '.join(classes[:5])}, ..."
        )
    # in the order asked for, which is that of the labels
    return [classes.index(name) for name in dict.fromkeys(names)]


def quota(total: int, num_classes: int, label: int) -> int:
    """How many of `total` images, dealt round-robin over the classes, carry this label."""
    one_more = 1 if label < total % num_classes else 0
    return total // num_classes + one_more


def choose_entries(listing: Listing, held_out: dict[str, int]) -> Listing:
    """The listing with only what is to be decoded.

    Every image, or `images_per_class` for training plus what the splits in `held_out` (name ->
    size) need. Raises BadInput for a class without training images.
    """
    chosen: list[Entry] = []
    by_label = _group([entry.label for entry in listing.entries], len(listing.classes))
    for label, places in enumerate(by_label):
        entries = [listing.entries[i] for i in places]
        inside = [entry for entry in entries if not entry.held_out]
        outside = [entry for entry in entries if entry.held_out]
        # before anything is decoded, which may take long
        if not inside:
            raise BadInput(
                f"data.path={listing.path}: class {listing.classes[label]!r} has no training "
                "images; add some or leave it out of data.classes"
            )
        if listing.images_per_class is not None:
            # either kind may have to serve all the held-out splits; some may prove unreadable
            needed = sum(quota(n, len(listing.classes), label) for n in held_out.values())
            needed += 2 + needed // 50
            inside = inside[: needed + listing.images_per_class]
            outside = outside[:needed]
        chosen += inside + outside
    return replace(listing, entries=chosen)


def deal(
    listing: Listing, readable: np.ndarray, held_out: dict[str, int]
) -> tuple[dict[str, np.ndarray], list[str]]:
    """Deal a listing's readable entries, bool (N,), into the three splits.

    `held_out` gives the sizes of `reference` and `holdout`. Held-out folders serve these first;
    where they run short, training images are set aside. Returns each split's indices into the
    entries, and the names of the splits that needed training images. Raises BadInput for a class
    with too few.
    """
    # split -> for each class its indices
    dealt: dict[str, list[list[int]]] = {name: [] for name in SPLITS}
    aside: set[str] = set()
    readable_entries = np.flatnonzero(readable).tolist()
    labels = [listing.entries[i].label for i in readable_entries]
    for label, places in enumerate(_group(labels, len(listing.classes))):
        needs = {split: quota(n, len(listing.classes), label) for split, n in held_out.items()}
        indices = [readable_entries[place] for place in places]
        hands, from_training = _deal_class(listing, label, indices, needs, held_out)
        for split, hand in hands.items():
            dealt[split].append(hand)
        aside |= from_training
    index = {split: round_robin(dealt[split]) for split in held_out}
    # in the order of the array, so that a batch of neighbours is read in one go
    index["train"] = np.array(sorted(i for hand in dealt["train"] for i in hand))
    return index, sorted(aside)


def too_few_held_out(
    listing: Listing, index: dict[str, np.ndarray], aside: Sequence[str]
) -> list[str]:
    """A line where there are held-out images, and yet splits took training images (`aside`)."""
    there = sum(entry.held_out for entry in listing.entries)
    if not there or not aside:
        return []
    used = sum(listing.entries[i].held_out for name in aside for i in index[name])
    asked = sum(len(index[name]) for name in aside)
    return [
        f"the held-out folder is too small: of {asked} {' and '.join(aside)} images {used} are "
        "from it, the others were set aside from the training images; lower "
        "data.reference_images or num_samples to use it"
    ]


def _deal_class(
    listing: Listing,
    label: int,
    indices: list[int],
    needs: dict[str, int],
    held_out: dict[str, int],
) -> tuple[dict[str, list[int]], set[str]]:
    """One class's indices by split, and the held-out splits that took training images."""
    where = f"data.path={listing.path}: class {listing.classes[label]!r}"
    outside = [i for i in indices if listing.entries[i].held_out]
    inside = [i for i in indices if not listing.entries[i].held_out]
    hands: dict[str, list[int]] = {}
    aside: set[str] = set()
    for split, need in needs.items():
        # all of a class's split from one source: a mixture would be of two distributions
        if len(outside) >= need:
            hands[split], outside = outside[:need], outside[need:]
            continue
        if len(inside) <= need:  # at least one must be left to train on
            raise BadInput(
                f"{where} has {len(indices)} readable images, too few for "
                f"data.reference_images={held_out['reference']}, "
                f"num_samples={held_out['holdout']} and some to train on; "
                "lower these or add images"
            )
        hands[split], inside = inside[:need], inside[need:]
        aside.add(split)
    if not inside:
        raise BadInput(
            f"{where} has no readable training image left; add some or leave it out of data.classes"
        )
    hands["train"] = inside[: listing.images_per_class]
    return hands, aside


def _group(labels: Sequence[int], num_classes: int) -> list[list[int]]:
    """For each label the places where it stands, in order."""
    groups: list[list[int]] = [[] for _ in range(num_classes)]
    for place, label in enumerate(labels):
        groups[label].append(place)
    return groups


def round_robin(hands: list[list[int]]) -> np.ndarray:
    """One of each class in turn, so that any prefix is class-balanced and label i is i mod K."""
    longest = max(map(len, hands), default=0)
    dealt: list[int] = []
    for turn in range(longest):
        dealt += [hand[turn] for hand in hands if turn < len(hand)]
    return np.array(dealt, dtype=np.int64)
