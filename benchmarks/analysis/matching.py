"""Which measurements of two sets of records measured the same thing, and which belong together."""

import math
import shlex
import statistics
from collections.abc import Callable
from typing import Any

from benchmarks.analysis.differences import (
    Difference,
    Spread,
    accuracy_within_training,
    between_networks,
    between_settings,
    spread,
    within_training,
)
from benchmarks.core.environment import machine
from benchmarks.core.errors import BadInput
from benchmarks.core.store import digest
from benchmarks.results.columns import leading

Record = dict[str, Any]
Pair = tuple[Record, Record]  # of A and of B
# columns that must be equal for two records to match
SAME = (
    "model",
    "size",
    "seed",
    "data",
    "num_classes",
    "image_size",
    "objective",
    "settings",
    "sampler",
    "steps",
    "guidance",
    "train_fraction",
    "num_samples",
    "reference_images",
    "features",
)
CHOSEN = frozenset({"sampler", "guidance"})  # of tuned settings these need not be equal
# what another model may not have: not asked to be equal where nothing else matches
BY_MODEL = frozenset({"objective", "sampler"})


def identity(record: Record, free: frozenset[str] = frozenset()) -> tuple:
    """What must be equal for two records to match, the columns in `free` aside."""
    row = record["row"]
    tuned = row.get("settings") == "tuned" or "settings" in free
    left_out = free | CHOSEN if tuned else free
    return tuple(row.get(name) for name in SAME if name not in left_out)


def matched(first: dict[tuple, Record], second: dict[tuple, Record]) -> tuple[list[Pair], int, int]:
    """Pairs of records of one identity, and how many of each side have no match."""
    both = [key for key in first if key in second]
    pairs = [(first[key], second[key]) for key in both]
    return pairs, len(first) - len(both), len(second) - len(both)


def why_none(first: list[dict[str, Any]], second: list[dict[str, Any]]) -> str:
    """The columns in which no row of the one side is as any of the other, with their values."""
    words = []
    for name in SAME:
        here, there = ({row.get(name) for row in side} for side in (first, second))
        if not here & there:
            words.append(f"{name} is {_listed(here)} in A and {_listed(there)} in B")
    return f": {'; '.join(words)}" if words else ""


def _listed(values: set[Any]) -> str:
    return ", ".join(sorted(map(str, values)))


def by_identity(
    records: list[Record],
    variants: list[str],
    budgets: list[str] | None,
    free: frozenset[str],
    side: str,
) -> dict[tuple, Record]:
    """Finished records by what they measured, the columns in `free` aside.

    `variants` are the settings that tell a side's records apart, `budgets` those of training where
    a side has several. Raises BadInput where a filter leaves several records of one identity, or a
    side has one of two machines or versions; two code versions of one are no such case: the newer
    is taken.
    """
    by_key: dict[tuple, Record] = {}
    for i, (record, variant) in enumerate(zip(records, variants, strict=True)):
        row = record["row"]
        if row["status"] != "ok":
            continue
        sampling_seed = record.get("sampling_seed", row.get("seed"))
        key = (*identity(record, free), sampling_seed, variant, budgets[i] if budgets else False)
        other = by_key[key]["row"] if key in by_key else row
        of_two_machines = machine(other) != machine(row)
        if of_two_machines or (key in by_key and free):
            may_differ = ["device"] if of_two_machines else sorted(free | CHOSEN)
            name = next((n for n in may_differ if other.get(n) != row.get(n)), "run_id")
            # as a shell takes it: samplers' names hold spaces
            choice = shlex.quote(f"{name}={row.get(name)}")
            raise BadInput(
                f"{side} has several records that differ only in {name}: "
                f"say which, as in --where-{side.lower()} {choice}"
            )
        by_key[key] = record
    return by_key


def pooled(pairs: list[Pair], setting: Callable[[Record], str]) -> list[list[Pair]]:
    """The pairs in lists, one for each row of a table.

    Together are those that differ by training and sampling seed only, if there are several training
    seeds, and were made by one kind of machine. `setting` says what tells a record from others of
    its side.
    """
    groups: dict[tuple, list[Pair]] = {}
    for pair in pairs:
        key = [same_evaluator(*pair)]
        for record in pair:
            of_all = identity(record, frozenset({"seed"}))
            key.append((of_all, setting(record), machine(record["row"])))
        groups.setdefault(tuple(key), []).append(pair)
    rows: list[list[Pair]] = []
    for group in groups.values():
        # without another training seed there is no error between seeds: each sampling is a row
        several = len({seeds_of(pair) for pair in group}) > 1
        rows += [group] if several else [[pair] for pair in group]
    return rows


def seeds_of(pair: Pair) -> tuple[int, ...]:
    return tuple(record["row"]["seed"] for record in pair)


def values_of(group: list[Pair], side: int, measure: str) -> list[float]:
    """One value for each training of a side, in the order of the seeds: the mean over samplings.

    Distances as logarithms; label accuracies negative, so that lower is better. Empty where one is
    not measured.
    """
    by_seed: dict[tuple[int, ...], list[float]] = {}
    for pair in sorted(group, key=seeds_of):
        value = pair[side]["row"].get(measure)
        if value is None:
            return []
        by_seed.setdefault(seeds_of(pair), []).append(value)
    means = [statistics.mean(values) for values in by_seed.values()]
    if measure == "label_accuracy":
        return [-value for value in means]
    return [math.log(value) for value in means]


def same_networks(group: list[Pair]) -> bool:
    """Whether both sides are the same trained networks, only sampled in other ways. A training of
    one name that two machines made is two: rounding differs.
    """
    return all(_network(first) == _network(second) is not None for first, second in group)


def _network(record: Record) -> tuple[str, str] | None:
    """What names the weights: the training, and who trained them with which losses."""
    name = record.get("fingerprints", {}).get("training")
    return name and (name, digest(record.get("trained_by"), record.get("train_log")))


def over_trainings(
    group: list[Pair], measure: str, of_trainings: Spread | None, margin: float
) -> Difference:
    """Of a group whose sides were trained several times, or apart: the second less the first."""
    first, second = (values_of(group, side, measure) for side in (0, 1))
    if same_networks(group) and len(first) > 1:
        return between_settings(first, second, margin)
    return between_networks(first, second, of_trainings, margin)


def same_evaluator(first: Record, second: Record) -> bool:
    """Whether both distances are to the same images, through the same autoencoder, over the same
    features; never where that is not recorded.
    """
    # names alone do not tell: an image folder or weights may have changed under the same name
    prints = [
        [record.get("fingerprints", {}).get(name) for name in ("data", "autoencoder", "features")]
        for record in (first, second)
    ]
    return prints[0] == prints[1] and None not in prints[0]


def differences_of(
    groups: list[list[Pair]], measure: str, margin: float
) -> list[Difference | None]:
    """Of each group, a row of a table, in `measure` (distance or label_accuracy); None where a side
    is not measured.
    """
    measures = [_measure(group, measure) for group in groups]
    spreads = _spreads(groups, measures)
    differences: list[Difference | None] = []
    for group, name in zip(groups, measures, strict=True):
        if not name:
            differences.append(None)
        elif len({seeds_of(pair) for pair in group}) == 1 and same_networks(group):
            if measure == "label_accuracy":
                rows = [record["row"] for record in group[0]]
                differences.append(accuracy_within_training(*rows))
            else:
                differences.append(within_training(*group[0]))
        else:
            differences.append(over_trainings(group, name, spreads[_judge(group)], margin))
    return differences


def _spreads(groups: list[list[Pair]], measures: list[str]) -> dict[str, Spread | None]:
    """By feature extractor, the spread between trainings of all networks that were trained again.

    A training counts once, at whatever setting and side comes first: the same again says no more
    about the spread.
    """
    values: dict[str, list[list[float]]] = {}
    counted: set[tuple[str, str]] = set()
    measured = [(group, name) for group, name in zip(groups, measures, strict=True) if name]
    # where a network is in several groups, its most trainings
    for group, name in sorted(measured, key=lambda one: -len({seeds_of(p) for p in one[0]})):
        judge = _judge(group)
        for side in (0, 1):
            prints = [pair[side].get("fingerprints", {}).get("training") for pair in group]
            networks = {(judge, str(one)) for one in prints}
            if not counted & networks:
                counted |= networks
                values.setdefault(judge, []).append(values_of(group, side, name))
    return {judge: spread(of_networks) for judge, of_networks in values.items()}


def _judge(group: list[Pair]) -> str:
    """Whose features a row of the table is measured by."""
    return str(group[0][0]["row"].get("features"))


def _measure(group: list[Pair], measure: str) -> str:
    """The column behind a measure, the same on both sides; empty where it is not measured."""
    rows = [record["row"] for pair in group for record in pair]
    name = leading(rows[0]) if measure == "distance" else measure
    return name if all(row.get(name) is not None for row in rows) else ""
