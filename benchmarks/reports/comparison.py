"""The table of two results folders, or of two settings of one, matched row by row."""

import math
import statistics
from collections import Counter
from collections.abc import Iterable
from typing import Any

from benchmarks.analysis.curves import FEW, distance_title
from benchmarks.analysis.differences import (
    ACCURACY_MARGIN,
    LEAST_RECALL,
    MARGIN,
    NOT_JUDGED,
    Difference,
    holm,
)
from benchmarks.analysis.matching import (
    Pair,
    Record,
    differences_of,
    pooled,
    same_evaluator,
    seeds_of,
)
from benchmarks.core.store import digest
from benchmarks.results import records
from benchmarks.results.columns import is_busy, is_unsteady, leading
from benchmarks.results.tables import markdown, show

HEADER = [
    "network",
    "setting",
    "distance",
    "A",
    "B",
    "B/A (95% interval)",
    "interval over",
    "B is",
    "label accuracy, B - A",
    "GFLOPs B/A, generator",
    "GFLOPs B/A, decoder included",
    "seconds B/A",
]
# of which a group of rows shows the mean
COSTS = ("gmacs_generator", "gflops_per_image")
MEANS = ("fd_generator", "fd", *COSTS, "seconds_per_image")
OTHER_MACHINE = "other machine"  # in place of seconds
UNLIKE, REFUSED = "not comparable", "refused"  # where there is no verdict at all
SAME = "same measurement"
VERDICTS = (
    *("tie", "better", "worse", "inconclusive", "unknown"),
    *(NOT_JUDGED, UNLIKE, REFUSED, SAME),
)


def table(pairs: list[Pair]) -> tuple[list[str], Counter]:
    """The matched rows as Markdown, and how often each verdict was given."""
    variants = _variants(pairs)
    budgets = len({records.budget(record) for pair in pairs for record in pair}) > 1
    groups = sorted(groups_of(pairs), key=_order)
    differences = differences_of(groups, "distance", MARGIN)
    accuracies = differences_of(groups, "label_accuracy", ACCURACY_MARGIN)
    whys = [_why_none(*pair) for pair in zip(groups, differences, strict=True)]
    # what has no verdict is no comparison that could be false
    chances = [math.nan if why else one.p for one, why in zip(differences, whys, strict=True)]
    adjusted = holm(chances)
    rows, verdicts = [], Counter()
    for group, difference, accuracy, why, p in zip(
        groups, differences, accuracies, whys, adjusted, strict=True
    ):
        names = [
            _both(_network(record["row"], group) for record in group[0]),
            _both(_setting(r, variants[id(r)], budgets, len(group)) for r in group[0]),
        ]
        first, second = (_means([pair[side] for pair in group]) for side in (0, 1))
        name = leading(first)
        verdict = why or difference.verdict(p)
        verdicts[verdict] += 1
        distances = [side.get(name) for side in (first, second)]
        values = [*distances, *_relative(difference), verdict, _accuracy(accuracy)]
        costs = [_ratio(first, second, column) for column in COSTS]
        costs.append(_seconds_ratio(group, first, second))
        title = distance_title(first["features"], name == "fd_generator")
        rows.append([*names, title, *values, *costs])
    return markdown(HEADER, rows), verdicts


def _why_none(group: list[Pair], difference: Difference | None) -> str:
    """Why there is no verdict on a group, as a table says it; empty where there may be one."""
    # two results folders of one cache
    if all(a["row"] == b["row"] and a["row"].get("started_at") for a, b in group):
        return SAME
    if difference is None or not same_evaluator(*group[0]):
        return UNLIKE
    recalls = [record["row"].get("recall_autoencoder") for pair in group for record in pair]
    hidden = any(recall is not None and recall < LEAST_RECALL for recall in recalls)
    return REFUSED if hidden else ""


def _relative(difference: Difference | None) -> list[str]:
    """B's distance over A's with its interval, and what the interval is of."""
    return ["", ""] if difference is None else [difference.ratio(), difference.basis]


def _accuracy(difference: Difference | None) -> str:
    """The difference in label accuracy with its error; empty where it is not measured."""
    if difference is None:
        return ""
    error = "" if math.isnan(difference.error) else f" ± {difference.error:.2g}"
    return f"{-difference.value:+z.3f}{error}"


def groups_of(pairs: list[Pair]) -> list[list[Pair]]:
    variants = _variants(pairs)
    return pooled(pairs, lambda record: records.budget(record) + variants[id(record)])


def _variants(pairs: list[Pair]) -> dict[int, str]:
    """By a record's id, the settings that tell it from others of its side."""
    variants = {}
    # by side: what differs between the sides is what is compared, and tells nothing apart
    for side in (0, 1):
        own = [pair[side] for pair in pairs]
        for record, variant in zip(own, records.variants(own), strict=True):
            variants[id(record)] = variant
    return variants


def _order(group: list[Pair]) -> tuple:
    row = group[0][0]["row"]
    names = tuple(str(row.get(n)) for n in ("data", "features", "model", "size", "sampler"))
    return (*names, row["steps"], row["guidance"], row["seed"])


def _means(side: list[Record]) -> dict[str, Any]:
    """The first's row with the means of what is compared."""
    rows = [record["row"] for record in side]
    means = {}
    for name in MEANS:
        if all(row.get(name) is not None for row in rows):
            means[name] = statistics.mean(row[name] for row in rows)
    return rows[0] | means


def _both(texts: Iterable[str]) -> str:
    """Of A and, where it is not the same, of B."""
    return "; B: ".join(dict.fromkeys(texts))


def _network(row: dict[str, Any], group: list[Pair]) -> str:
    seeds = len({seeds_of(pair) for pair in group})
    trained = f"{seeds} seeds" if seeds > 1 else f"seed {row['seed']}"
    return f"{row['model']} {row['size']}, {trained}"


def _setting(record: Record, variant: str, budgets: bool, samplings: int) -> str:
    row = record["row"]
    words = [f"{row['steps']} steps, guidance {row['guidance']:g}", row["sampler"]]
    if row.get("settings") == records.TUNED:
        words = [f"{row['steps']} steps, tuned"]  # trainings may have chosen differently
    if row.get("train_fraction") not in (None, 1):
        words.append(f"at {row['train_fraction']:g} of the training")
    words.append(variant)
    if budgets:
        words.append(records.budget(record))
    if samplings == 1 and record.get("sampling_seed"):
        words.append(f"sampling seed {record['sampling_seed']}")
    return ", ".join(word for word in words if word)


def _seconds_ratio(
    group: list[Pair], first: dict[str, Any], second: dict[str, Any]
) -> float | str | None:
    """B's seconds over A's, of one machine only; marked where some may be too high."""
    rows, name = [record["row"] for pair in group for record in pair], "seconds_per_image"
    if len({row.get("device") for row in rows}) > 1:
        return OTHER_MACHINE
    ratio = _ratio(first, second, name)
    marks = {"busy": is_busy, "unsteady": is_unsteady}
    marked = [mark for mark, is_so in marks.items() if any(is_so(row, name) for row in rows)]
    return f"{show(ratio)} ({marked[0]})" if ratio is not None and marked else ratio


def _ratio(first: dict[str, Any], second: dict[str, Any], column: str) -> float | None:
    if not first.get(column) or second.get(column) is None:
        return None
    return second[column] / first[column]


def remarks(pairs: list[Pair], verdicts: Counter) -> list[str]:
    """What the numbers leave out."""
    remarks = []
    if verdicts[REFUSED]:
        remarks.append(
            "Refused: real images through the autoencoder have a recall below "
            f"{LEAST_RECALL} against images as they are. The decoder hides too much for a verdict."
        )
    if verdicts[UNLIKE]:
        remarks.append(
            "Not comparable: the reference images or the features are not the same, or not "
            "recorded."
        )
    searches = {digest(_search(record)) for pair in pairs for record in pair} - {digest(None)}
    if len(searches) > 1:
        remarks.append("WARNING: not all settings were chosen by the same search (tune).")
    otherwise = sum(_chosen(first) != _chosen(second) for first, second in pairs)
    if otherwise:
        remarks.append(
            f"WARNING: of {otherwise} measurement(s) that match both are tuned, but to other "
            "settings, or at another step count: --where-a guidance= and sampler= say which."
        )
    few = {record["row"]["run_id"] for pair in pairs for record in pair if _few(record)}
    if few:
        remarks.append(
            f"WARNING: {FEW}, in {len(few)} of the measurements (N samples, M reference images, "
            "d features)."
        )
    return remarks


def _search(record: Record) -> list[Any] | None:
    """How the settings of a tuned record were looked for; None where they are as configured."""
    if record["row"].get("settings") != records.TUNED:
        return None
    config = record.get("config", {})
    return [config.get("tune"), record["tuning"].get("features")]


def _chosen(record: Record) -> tuple[Any, ...] | None:
    """The settings of a tuned record, and the step count they were chosen at; None of others."""
    row = record["row"]
    if row.get("settings") != records.TUNED:
        return None
    return row.get("guidance"), row.get("sampler"), record["tuning"].get("steps")


def _few(record: Record) -> bool:
    """Whether N or M is below twice the dimensions of the features."""
    sizes = [record["row"].get(name) or math.inf for name in ("num_samples", "reference_images")]
    return min(sizes) < 2 * _dimensions(record)


def _dimensions(record: Record) -> int:
    """Those that the Fréchet distance is taken over."""
    prints = record.get("fingerprints", {})
    return prints.get("features_frechet_dim") or prints.get("features_dim") or 0
