"""Records of one kind of machine that were trained by other versions of a library or of the suite:
in a report of several folders neither is an older state of the other.
"""

import re
from collections.abc import Sequence

from benchmarks.core.environment import machine
from benchmarks.core.store import seal
from benchmarks.results.records import Record, is_elsewhere, recipe, training

# the libraries that a training's name depends on
LIBRARIES = ("torch", "diffusers", "transformers")
MARK = re.compile(r" \[[^\]]*\]")  # in the column `device`


def told_apart(records: Sequence[Record]) -> list[Record]:
    """The records, where two trainings of one recipe meet with the versions of either behind the
    name of the device: `AMD EPYC [torch 2.13.0] (2 threads)`. So they stand in sections of their
    own, and with all others that the same versions made on such a machine.

    Marks of an earlier report are made anew.
    """
    plain = [_with_device(record, MARK.sub("", _device(record))) for record in records]
    trainings: dict[str, dict[str | None, Record]] = {}  # by recipe, one record of each
    for record in plain:
        if not is_elsewhere(record):
            trainings.setdefault(recipe(record), {})[training(record)] = record
    met = [record for of_one in trainings.values() if len(of_one) > 1 for record in of_one.values()]
    machines = {machine(record["row"]) for record in met} - {""}
    labels = {name: _labels(plain, name) for name in machines}
    return [
        _marked(record, labels[name]) if (name := machine(record["row"])) in labels else record
        for record in plain
    ]


def _labels(records: Sequence[Record], name: str) -> tuple[str, ...]:
    """The libraries whose versions differ among the records of a machine; none where it is only
    the suite's own code that does.
    """
    versions = [record.get("versions", {}) for record in records if machine(record["row"]) == name]
    return tuple(one for one in LIBRARIES if len({of.get(one) for of in versions}) > 1)


def _marked(record: Record, libraries: tuple[str, ...]) -> Record:
    """The record with the versions of these libraries, or of the code, in its device."""
    versions = record.get("versions", {})
    words = [f"{name} {versions.get(name)}" for name in libraries]
    mark = "; ".join(words) or f"code {record['row'].get('git_sha')}"
    name = machine(record["row"])
    return _with_device(record, _device(record).replace(name, f"{name} [{mark}]", 1))


def _device(record: Record) -> str:
    return record["row"].get("device") or ""


def _with_device(record: Record, device: str) -> Record:
    """The same record of a device of this name; itself where it has that name."""
    if device == _device(record):
        return record
    return seal(record | {"row": record["row"] | {"device": device}})
