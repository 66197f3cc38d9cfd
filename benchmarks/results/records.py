"""One JSON per measurement, with everything needed to repeat it."""

import math
from pathlib import Path
from typing import Any

import pandas as pd

from benchmarks.core.environment import library_versions
from benchmarks.core.settings import flatten
from benchmarks.core.store import digest, read_json, write_json
from benchmarks.results import archive
from benchmarks.results.columns import NAMES

NO_RECIPE = (
    "checkpoint_seconds",
    "snapshots",
    "minutes",
    "images",
    "compile",
)  # of conf/train: they do not change what is trained
TOLD_ELSEWHERE = {
    "model.objective",
    "train.budget",
    "train.precision",
    "train.checkpoint_seconds",
    "train.compile",
    "train.snapshots",
    "train.minutes",
    "train.images",
}  # columns say these


def clean(value: Any) -> Any:
    """The same value with what JSON has no word for (NaN, infinity) as None."""
    if isinstance(value, dict):
        return {k: clean(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [clean(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write(folder: Path, row: dict[str, Any], **details: Any) -> None:
    """`folder/records/<run_id>.json`: the row of results.csv and whatever else a reader needs to
    repeat it.

    Raises ValueError for a row with columns that `COLUMNS` does not have.
    """
    unknown = set(row) - set(NAMES)
    if unknown:
        raise ValueError(f"a record has unknown columns: {', '.join(sorted(unknown))}")
    write_json(
        folder / "records" / f"{row['run_id']}.json",
        clean({"row": row, "versions": library_versions()} | details),
    )


def read(folder: Path) -> list[dict[str, Any]]:
    """All whole records of a results folder, oldest first.

    From `folder/records/*.json`, else `folder/results.json`, else `folder/records.json.gz`.
    Raises BadInput where one of the latter two is damaged.
    """
    paths = sorted((folder / "records").glob("*.json"))
    found = [read_json(path) for path in paths] if paths else archive.read(folder)
    found = [record for record in found if isinstance(record, dict) and "row" in record]
    logs = {_weights(record): record["train_log"] for record in found if record.get("train_log")}
    for record in found:
        if record["row"].get("status") == "ok" and _weights(record) in logs:
            record["train_log"] = logs[_weights(record)]
    return sorted(
        found, key=lambda record: (record["row"].get("started_at") or "", record["row"]["run_id"])
    )


def _weights(record: dict[str, Any]) -> tuple[Any, Any]:
    """What names the weights behind a record: the training, and the share of it."""
    return record.get("fingerprints", {}).get("training"), record["row"].get("train_fraction")


def gather(folder: Path, found: list[dict[str, Any]]) -> Path:
    """Write all records into one file and return it: results.json, or a published folder's .gz."""
    return archive.write(archive.place(folder), found)


def current(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Without what an earlier version of the models or of a library left behind: of trainings
    configured alike, the newest.

    `found` are oldest first.
    """
    recipes = [digest(_recipe(record)) for record in found]
    trainings = [record.get("fingerprints", {}).get("training") for record in found]
    newest = dict(zip(recipes, trainings, strict=True))
    return [
        record
        for record, recipe, training in zip(found, recipes, trainings, strict=True)
        if newest[recipe] == training
    ]


def _recipe(record: dict[str, Any]) -> dict[str, Any]:
    """Everything configured about a training, and the pictures, latents and machine it was on."""
    row, prints, config = record["row"], record.get("fingerprints", {}), record.get("config", {})
    train = {k: v for k, v in (config.get("train") or {}).items() if k not in NO_RECIPE}
    names = ("model", "size", "seed", "dtype", "data", "image_size", "autoencoder")
    machine = (row.get("device") or "").split(" (")[0]  # however many threads
    return {
        "train": train,
        "network": config.get("model"),
        "on": [prints.get("data"), prints.get("latents"), machine],
        **{n: row.get(n) for n in names},
    }


def table(found: list[dict[str, Any]]) -> pd.DataFrame:
    """One row per record, the columns of `COLUMNS` in their order, empty where unknown; then eight
    for the report's own use.

    `fd_train` is the distance to training pictures, by which settings are chosen; `diagnostics`
    what else the judge said; `sampling_seed` the drawing's; `features_dim` the features'
    dimensions; `training` names the trained network, `judged_by` the very pictures, latents and
    features behind a distance, `variant` what else in the configuration tells networks of one model
    and size apart, `budget` what the training was given.
    """
    prints = [record.get("fingerprints", {}) for record in found]
    rows = pd.DataFrame([record["row"] for record in found]).reindex(columns=NAMES)
    return rows.assign(
        fd_train=[record.get("selection", {}).get("fd_train") for record in found],
        diagnostics=[record.get("diagnostics", {}) for record in found],
        sampling_seed=[record.get("sampling_seed") for record in found],
        training=[p.get("training") for p in prints],
        features_dim=[p.get("features_dim") for p in prints],
        judged_by=[
            digest(*(p.get(k) for k in ("data", "latents", "features")))[:6] for p in prints
        ],
        variant=variants(found),
        budget=[budget(record) for record in found],
    )


def budget(record: dict[str, Any]) -> str:
    """What the training was given, such as `7.4e+12 flops`: what a clock made of it may differ
    between seeds.
    """
    train = record.get("config", {}).get("train") or {}
    value, unit = (
        train.get("budget") or record["row"].get("train_flops"),
        train.get("unit") or "flops",
    )
    return "" if value is None else f"{float(value):g} {unit}"


def variants(found: list[dict[str, Any]]) -> list[str]:
    """Per record, the settings under `model` and `train`, and the autoencoder, that differ between
    records of the same model, size and data.
    """
    flat = [
        flatten(
            {k: record.get("config", {}).get(k, {}) for k in ("model", "train", "sample_batch")}
        )
        for record in found
    ]
    flat = [
        {**settings, "autoencoder": record["row"].get("autoencoder")}
        for settings, record in zip(flat, found, strict=True)
    ]
    groups: dict[tuple, list[int]] = {}
    for i, record in enumerate(found):
        groups.setdefault(
            tuple(record["row"].get(k) for k in ("model", "size", "data", "image_size")), []
        ).append(i)
    names = [""] * len(found)
    for members in groups.values():
        keys = sorted({key for i in members for key in flat[i]} - TOLD_ELSEWHERE)
        differing = [key for key in keys if len({str(flat[i].get(key)) for i in members}) > 1]
        for i in members:
            names[i] = ", ".join(f"{key.split('.', 1)[-1]} {flat[i].get(key)}" for key in differing)
    return names
