"""Two results folders, or two settings of one, side by side: rows that measured the same are
matched.

`make compare A=results/x B=results/y` matches whatever is equal; `make compare A=results/x
WHERE_A="guidance=1" WHERE_B="guidance=4"` compares two settings (or samplers, step counts, models,
model.lr: any column of results.csv or setting of a model or training); what is named there with two
values need not be equal. Where both sides were trained with several of the same seeds, their
differences are pooled: the error is that between seeds.

The last line on stdout is JSON: `matched` measurements, `rows` of the table, and of those `ties`,
`better`, `worse` (of B against A), `inconclusive`, `unknown`, `not_comparable`; `only_a`, `only_b`.
"""

import json
import math
import re
import statistics
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.analysis.curves import FEW, distance_name
from benchmarks.analysis.differences import (
    ACCURACY_MARGIN,
    MARGIN,
    Difference,
    accuracy_difference,
    difference,
    over_seeds,
)
from benchmarks.core import cli
from benchmarks.core.errors import BadInput
from benchmarks.core.settings import flatten
from benchmarks.results import records
from benchmarks.results.columns import NAMES
from benchmarks.results.tables import markdown

Pair = tuple[dict[str, Any], dict[str, Any]]  # two records
SAME = (
    "model",
    "size",
    "seed",
    "data",
    "num_classes",
    "image_size",
    "objective",
    "sampler",
    "steps",
    "guidance",
    "train_fraction",
)
SAME += ("num_samples", "reference_images", "features")
BY_MODEL = frozenset(
    {"objective", "sampler"}
)  # what another model may not have: not asked to be equal where nothing else matches


def where(found: list[dict], wanted: dict[str, str]) -> list[dict]:
    """The records whose columns, or settings such as model.lr, have these values; numbers compare
    as numbers. SystemExit for unknown names.
    """
    settings = [
        flatten({k: r.get("config", {}).get(k, {}) for k in ("model", "train")}) | r["row"]
        for r in found
    ]
    known = set(NAMES).union(*settings)
    if unknown := sorted(set(wanted) - known):
        sys.exit(
            f"latentbench: no column or setting {', '.join(unknown)} in these results; there are {', '.join(sorted(known))}"
        )
    return [
        r
        for r, has in zip(found, settings, strict=True)
        if all(_equal(has.get(name), value) for name, value in wanted.items())
    ]


def _equal(value: Any, wanted: str) -> bool:
    try:
        return float(value) == float(wanted)
    except (TypeError, ValueError):
        return str(value) == wanted


def matched(
    first: list[dict], second: list[dict], free: frozenset[str] = frozenset()
) -> tuple[list[Pair], int, int]:
    """Pairs of records that measured the same thing, the columns in `free` aside, and how many of
    each side have no match.

    Settings that differ within a side (learning rates, codebooks, budgets) tell its records apart,
    those that differ between the sides do not. SystemExit where a side has several records of one
    identity, as when a filter leaves two guidance scales.
    """
    several = any(len({records.budget(r) for r in found}) > 1 for found in (first, second))
    a, b = (
        _by_identity(found, several, free, side) for found, side in ((first, "A"), (second, "B"))
    )
    both = [key for key in a if key in b]
    return [(a[key], b[key]) for key in both], len(a) - len(both), len(b) - len(both)


def _by_identity(
    found: list[dict], budgets: bool, free: frozenset[str], side: str
) -> dict[tuple, dict]:
    known: dict[tuple, dict] = {}
    for r, variant in zip(found, records.variants(found), strict=True):
        if r["row"]["status"] != "ok":
            continue
        drawing = r.get("sampling_seed", r["row"].get("seed"))
        key = (
            *(r["row"].get(n) for n in SAME if n not in free),
            drawing,
            variant,
            budgets and records.budget(r),
        )
        if key in known and free:  # without a filter: of two code versions, the newer
            name = next(
                (n for n in sorted(free) if known[key]["row"].get(n) != r["row"].get(n)), "run_id"
            )
            sys.exit(
                f'latentbench: {side} has several records that differ only in {name}: say which, as in WHERE_{side}="{name}={r["row"].get(name)}"'
            )
        known[key] = r
    return known


def pooled(pairs: list[Pair]) -> list[list[Pair]]:
    """The pairs in lists, one for each row of the table: together are those that differ by training
    seed and drawing only, if by seed.
    """
    groups: dict[tuple, list[Pair]] = {}
    told = _told_apart(pairs)
    for pair in pairs:
        settings = (
            (*(r["row"].get(n) for n in SAME if n != "seed"), records.budget(r), told[id(r)])
            for r in pair
        )
        groups.setdefault((*settings, _same_judge(*pair)), []).append(pair)
    several = {key: len({_seeds(pair) for pair in group}) > 1 for key, group in groups.items()}
    return [
        part
        for key, group in groups.items()
        for part in ([group] if several[key] else [[pair] for pair in group])
    ]


def _told_apart(pairs: list[Pair]) -> dict[int, str]:
    """By a record's id, the settings that tell it from others of its side."""
    sides = [[pair[side] for pair in pairs] for side in (0, 1)]
    return {
        id(r): variant
        for side in sides
        for r, variant in zip(side, records.variants(side), strict=True)
    }


def _seeds(pair: Pair) -> tuple[int, ...]:
    return tuple(r["row"]["seed"] for r in pair)


def table(pairs: list[Pair]) -> tuple[list[str], Counter]:
    """The matched rows as Markdown, and how often each verdict was given."""
    rows, verdicts = [], Counter()
    told, several = _told_apart(pairs), len({records.budget(r) for pair in pairs for r in pair}) > 1
    for group in sorted(pooled(pairs), key=_order):
        one, other = group[0]
        first, second = (_means([pair[side] for pair in group]) for side in (0, 1))
        found = _over("fd", group, MARGIN * first["fd"]) or difference(one, other)
        verdict = found.verdict if _same_judge(one, other) else "not comparable"
        verdicts[verdict] += 1
        seeds = len({_seeds(pair) for pair in group})
        names = [
            _both(_network(r["row"], seeds) for r in group[0]),
            _both(_setting(r, told[id(r)], several, len(group)) for r in group[0]),
        ]
        distances = [
            distance_name(first["features"]),
            first["fd"],
            second["fd"],
            found.value,
            f"{found.error:.3g} ({found.basis})",
        ]
        costs = [
            _ratio(first, second, column) for column in ("gflops_per_image", "seconds_per_image")
        ]
        rows.append([*names, *distances, verdict, _labels(group), *costs])
    header = [
        "network",
        "setting",
        "distance",
        "A",
        "B",
        "B - A",
        "± error",
        "B is",
        "label accuracy, B - A",
        "GFLOPs B/A",
        "seconds B/A",
    ]
    return markdown(header, rows), verdicts


def _order(group: list[Pair]) -> tuple:
    row = group[0][0]["row"]
    return (
        *(str(row.get(n)) for n in ("data", "features", "model", "size", "sampler")),
        row["steps"],
        row["guidance"],
        row["seed"],
    )


def _over(measure: str, group: list[Pair], margin: float) -> Difference | None:
    """Over the training seeds of a group, several drawings of one as their mean; None of a single
    seed or of what is not measured.
    """
    by_seed: dict[tuple[int, ...], list[Pair]] = {}
    for pair in group:
        by_seed.setdefault(_seeds(pair), []).append(pair)
    if len(by_seed) < 2 or any(r["row"].get(measure) is None for pair in group for r in pair):
        return None
    values = [
        [statistics.mean(pair[side]["row"][measure] for pair in same) for same in by_seed.values()]
        for side in (0, 1)
    ]
    return over_seeds(*values, margin)


def _labels(group: list[Pair]) -> str:
    """The difference in label accuracy with its error; empty where it is not measured."""
    rows = [r["row"] for r in group[0]]
    if any(row.get("label_accuracy") is None or not row.get("num_samples") for row in rows):
        return ""
    found = _over("label_accuracy", group, ACCURACY_MARGIN) or (
        accuracy_difference(*rows) if len(group) == 1 else None
    )
    if found is None:
        return ""
    return f"{found.value:+.3f} ± {found.error:.2g}"


def _means(found: list[dict]) -> dict[str, Any]:
    """The first's row with the means of what is compared."""
    rows = [r["row"] for r in found]
    columns = [
        n
        for n in ("fd", "gflops_per_image", "seconds_per_image")
        if all(row.get(n) is not None for row in rows)
    ]
    return rows[0] | {n: statistics.mean(row[n] for row in rows) for n in columns}


def _both(said: Iterable[str]) -> str:
    """Of A and, where it is not the same, of B."""
    return "; B: ".join(dict.fromkeys(said))


def _network(row: dict, seeds: int) -> str:
    return f"{row['model']} {row['size']}, {f'{seeds} seeds' if seeds > 1 else 'seed ' + str(row['seed'])}"


def _setting(record: dict, variant: str, budgets: bool, drawings: int) -> str:
    row = record["row"]
    share = (
        f"at {row['train_fraction']:g} of the training"
        if row.get("train_fraction") not in (None, 1)
        else ""
    )
    drawing = (
        f"drawing {record['sampling_seed']}"
        if drawings == 1 and record.get("sampling_seed")
        else ""
    )
    said = [
        f"{row['steps']} steps, guidance {row['guidance']:g}",
        row["sampler"],
        share,
        variant,
        records.budget(record) * budgets,
        drawing,
    ]
    return ", ".join(filter(None, said))


def _same_judge(one: dict, other: dict) -> bool:
    """Whether both distances are to the same pictures over the same features; never where that is
    not recorded.
    """
    prints = [
        [record.get("fingerprints", {}).get(name) for name in ("data", "features")]
        for record in (one, other)
    ]
    return prints[0] == prints[1] and None not in prints[0]


def _ratio(first: dict, second: dict, column: str) -> float | None:
    return (
        second[column] / first[column]
        if first.get(column) and second.get(column) is not None
        else None
    )


def _wanted(text: str) -> dict[str, str]:
    """`guidance=1 sampler=euler, temperature 0.8` as columns and values. SystemExit for what is
    neither.
    """
    found = re.findall(r"([\w.]+)=(\S.*?)\s*(?=\s[\w.]+=|$)", text)
    if text.strip() and not re.fullmatch(r"(\s*[\w.]+=\S.*?)+", text):
        sys.exit(
            f'latentbench: WHERE "{text}": give column=value, such as guidance=1 or "guidance=1 sampler=euler"'
        )
    if twice := [name for name, count in Counter(name for name, _ in found).items() if count > 1]:
        sys.exit(f'latentbench: WHERE "{text}" gives {twice[0]} twice')
    return dict(found)


def _remarks(pairs: list[Pair], unlike: bool) -> list[str]:
    """What the numbers leave out."""
    said = (
        [
            "Not comparable: the reference pictures or the features are not the same, or not recorded."
        ]
        if unlike
        else []
    )
    few = [
        r
        for pair in pairs
        for r in pair
        if min(_sizes(r["row"])) < 2 * (r.get("fingerprints", {}).get("features_dim") or 0)
    ]
    if few:
        said.append(
            f"WARNING: {FEW}, in {len({r['row']['run_id'] for r in few})} of the measurements (N samples, M reference pictures, d features)."
        )
    apart = [
        group
        for group in pooled(pairs)
        if len(group) == 1 or len({_seeds(pair) for pair in group}) == 1
    ]
    if any(
        len({record.get("fingerprints", {}).get("training") for record in group[0]}) > 1
        for group in apart
    ):
        said.append(
            "Errors of single seeds are of the pictures drawn: where A and B were trained apart, another training seed moves both."
        )
    return said


def _sizes(row: dict) -> tuple[float, float]:
    return tuple(row.get(name) or math.inf for name in ("num_samples", "reference_images"))


def main(argv: Sequence[str]) -> None:
    parser = cli.parser("compare", __doc__)
    parser.add_argument("a", type=Path)
    parser.add_argument("b", type=Path, nargs="?", help="default: a")
    parser.add_argument(
        "--where-a",
        default="",
        help='of A only these: column=value ..., such as "guidance=1 sampler=euler"',
    )
    parser.add_argument("--where-b", default="")
    args = parser.parse_args(argv)
    sides = [(args.a, _wanted(args.where_a)), (args.b or args.a, _wanted(args.where_b))]
    try:
        found = [where(records.current(records.read(folder)), wanted) for folder, wanted in sides]
    except BadInput as error:
        sys.exit(f"latentbench: {error}")
    for (folder, wanted), these in zip(sides, found, strict=True):
        if not these:
            given = f" with {' '.join(f'{k}={v}' for k, v in wanted.items())}" if wanted else ""
            sys.exit(
                f"latentbench: {folder}: no records there{given}; give folders such as results/cpu that `make bench` wrote"
            )
    first, second = sides[0][1], sides[1][1]
    free = frozenset(name for name in {**first, **second} if first.get(name) != second.get(name))
    pairs, only_a, only_b = matched(*found, free)
    if not pairs and "model" in free:
        pairs, only_a, only_b = matched(*found, free | BY_MODEL)
    if not pairs:
        sys.exit(
            f"latentbench: {sides[0][0]} and {sides[1][0]} have no measurement in common ({only_a} and {only_b} of their own)"
        )
    lines, verdicts = table(pairs)
    print("\n".join([*lines, *_remarks(pairs, bool(verdicts["not comparable"]))]))
    said = ("tie", "better", "worse", "inconclusive", "unknown", "not comparable")
    counts = {"ties" if word == "tie" else word.replace(" ", "_"): verdicts[word] for word in said}
    print(
        json.dumps(
            {
                "matched": len(pairs),
                "rows": sum(verdicts.values()),
                **counts,
                "only_a": only_a,
                "only_b": only_b,
            }
        )
    )
