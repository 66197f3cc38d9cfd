"""Compare two results folders, or two settings of one: rows that measured the same are matched.

    python -m benchmarks compare results/a results/b
    python -m benchmarks compare results/cpu --where-a settings=configured guidance=1 \\
        --where-b settings=tuned
    python -m benchmarks compare results/mine --where-a guidance=1 --where-b guidance=4

With two folders whatever is equal is matched. --where-a and --where-b keep records by any column of
results.csv or setting of a model or training, such as model.lr=0.001; what they name with two
values need not be equal. Networks that were trained apart are compared over several training seeds,
or not judged at all; settings of one network by what its samples share.

The last line on stdout is JSON: `matched` measurements, `rows` of the table, and of those `ties`,
`better`, `worse` (of B against A), `inconclusive`, `unknown`, `not_judged`, `not_comparable`,
`refused`; `only_a`, `only_b`.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.analysis.matching import BY_MODEL, Record, by_identity, matched, why_none
from benchmarks.core import cli
from benchmarks.core.errors import BadInput
from benchmarks.core.settings import flatten
from benchmarks.reports import comparison
from benchmarks.results import records
from benchmarks.results.columns import NAMES


def where(everything: list[Record], wanted: dict[str, str]) -> list[Record]:
    """The records whose columns, or settings such as model.lr, have these values.

    Numbers compare as numbers. Raises BadInput for unknown names.
    """
    settings = []
    for record in everything:
        config = record.get("config", {})
        named = {name: config.get(name, {}) for name in ("model", "train")}
        settings.append(flatten(named) | record["row"])
    there = set(NAMES).union(*settings)
    if unknown := sorted(set(wanted) - there):
        raise BadInput(
            f"no column or setting {', '.join(unknown)} in these results; "
            f"there are {', '.join(sorted(there))}"
        )
    return [
        record
        for record, values in zip(everything, settings, strict=True)
        if all(_equal(values.get(name), value) for name, value in wanted.items())
    ]


def _equal(value: Any, wanted: str) -> bool:
    try:  # 1e-3 and 0.001, 1 and 1.0 are one value
        return float(value) == float(wanted)
    except (TypeError, ValueError):
        return str(value) == wanted


def match(first: list[Record], second: list[Record], free: frozenset[str] = frozenset()):
    """Pairs of records that measured the same thing, the columns in `free` aside, and how many of
    each side have no match.

    Settings that differ within a side (learning rates, codebooks, budgets) tell its records apart;
    those that differ between the sides do not.
    """
    # one budget each is what is compared, several are told apart
    budgets = [[records.budget(record) for record in side] for side in (first, second)]
    several = any(len(set(of_side)) > 1 for of_side in budgets)
    sides = [
        by_identity(side, records.variants(side), of_side if several else None, free, name)
        for side, of_side, name in zip((first, second), budgets, "AB", strict=True)
    ]
    return matched(*sides)


def _wanted(words: list[str]) -> dict[str, str]:
    """`column=value` words as a dictionary. Raises BadInput for what is none."""
    wanted: dict[str, str] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or not name or not value:
            raise BadInput(
                f'"{word}": give column=value, such as guidance=1; quote values with spaces'
            )
        if name in wanted:
            raise BadInput(f"{name} is given twice")
        wanted[name] = value
    return wanted


def main(argv: Sequence[str]) -> None:
    arguments = cli.parser("compare", __doc__)
    arguments.add_argument("a", type=cli.path)
    arguments.add_argument("b", type=cli.path, nargs="?", help="default: a")
    examples = "column=value ..., such as guidance=1 sampler=euler"
    arguments.add_argument("--where-a", nargs="*", default=[], help=f"of A only these: {examples}")
    arguments.add_argument("--where-b", nargs="*", default=[], help="of B only these")
    args = arguments.parse_args(argv)
    try:
        compare(args.a, args.b or args.a, _wanted(args.where_a), _wanted(args.where_b))
    except BadInput as error:
        sys.exit(f"latentbench: {error}")


def compare(a: Path, b: Path, where_a: dict[str, str], where_b: dict[str, str]) -> None:
    """Print the table of matched measurements, remarks and the line of JSON.

    Raises BadInput where there is nothing to compare.
    """
    first, second = _records(a, where_a), _records(b, where_b)
    names = {*where_a, *where_b}
    free = frozenset(name for name in names if where_a.get(name) != where_b.get(name))
    pairs, only_a, only_b = match(first, second, free)
    if not pairs and "model" in free:  # ar has other samplers and objectives than dit
        pairs, only_a, only_b = match(first, second, free | BY_MODEL)
    if not pairs:
        rows = [[record["row"] for record in side] for side in (first, second)]
        raise BadInput(
            f"{a} and {b} have no measurement in common ({only_a} and {only_b} of their own)"
            f"{why_none(*rows)}"
        )
    lines, verdicts = comparison.table(pairs)
    print("\n".join([*lines, *comparison.remarks(pairs, verdicts)]))
    names = {verdict: verdict.split(":")[0].replace(" ", "_") for verdict in comparison.VERDICTS}
    counts = {names[verdict]: verdicts[verdict] for verdict in comparison.VERDICTS}
    counts = {"ties": counts.pop("tie"), **counts}
    line = {"matched": len(pairs), "rows": sum(verdicts.values()), **counts}
    print(json.dumps(line | {"only_a": only_a, "only_b": only_b}))


def _records(folder: Path, wanted: dict[str, str]) -> list[Record]:
    """The records of a side. Raises BadInput where there are none."""
    kept = where(records.current(records.read(folder)), wanted)
    if not kept:
        words = " ".join(f"{name}={value}" for name, value in wanted.items())
        given = f" with {words}" if wanted else ""
        raise BadInput(
            f"{folder}: no records there{given}; "
            "give folders such as results/cpu that `make bench` wrote"
        )
    return kept
