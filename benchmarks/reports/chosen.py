"""The settings that were chosen for each training, and what they were chosen from."""

from typing import Any

from benchmarks.analysis.curves import distance_name
from benchmarks.results.tables import show

HEADER = [
    "model",
    "size",
    "seed",
    "tuned at steps",
    "guidance",
    "other settings",
    "{distance} to training images: unguided",
    "chosen",
    "recall: unguided",
    "chosen",
    "trials",
]


def chosen(records: list[dict[str, Any]], variants: list[str]) -> tuple[list[str], list[list]]:
    """Header and rows, one for each training and step count that was tuned; empty where none was.

    `variants` say what else tells networks of one model apart.
    """
    rows: dict[tuple, list[object]] = {}
    features = ""
    for record, variant in zip(records, variants, strict=True):
        tuning = record.get("tuning")
        if tuning is None or record["row"]["status"] != "ok":
            continue
        features = tuning.get("features", "")
        network = record.get("fingerprints", {}).get("training")
        device = record["row"].get("device")  # two machines' trainings have one name
        rows[network, device, tuning["steps"]] = _row(record["row"], variant, tuning)
    header = [name.format(distance=distance_name(features)) for name in HEADER]
    return header, [rows[key] for key in rows]


def _row(row: dict[str, Any], variant: str, tuning: dict[str, Any]) -> list[object]:
    trials = tuning["trials"]
    first, best = trials[0], trials[tuning["chosen"]]
    changed = [] if best["sampler"] == first["sampler"] else [best["sampler"]]
    changed += [
        f"{name} {_value(value)}{_edge(name, value, trials)}"
        for name, value in best["options"].items()
        if value != first["options"][name]
    ]
    return [
        ", ".join(word for word in (row["model"], variant) if word),
        row["size"],
        row["seed"],
        tuning["steps"],
        f"{best['guidance']:g}" + (", the highest tried" if tuning.get("at_edge") else ""),
        ", ".join(changed) or "the model's own",
        show(first["fd_generator_train"]),
        show(best["fd_generator_train"]),
        show(first["recall_train"]),
        show(best["recall_train"]),
        len(trials),
    ]


def _edge(name: str, value: Any, trials: list[dict[str, Any]]) -> str:
    """Whether a number is the most extreme one that was tried: a better one may lie beyond it."""
    if not isinstance(value, int | float):
        return ""
    numbers = [trial["options"].get(name) for trial in trials]
    numbers = [number for number in numbers if isinstance(number, int | float)]
    if value == min(numbers):
        return ", the lowest tried"
    return ", the highest tried" if value == max(numbers) else ""


def _value(value: Any) -> str:
    return " to ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
