"""One JSON per measurement, with everything needed to repeat it."""

import math
from pathlib import Path
from typing import Any

import pandas as pd

from benchmarks.core.environment import library_versions, machine
from benchmarks.core.errors import BadInput
from benchmarks.core.session import session
from benchmarks.core.settings import flatten
from benchmarks.core.store import digest, is_sealed, read_json, seal, write_sealed
from benchmarks.results import archive
from benchmarks.results.columns import ERRORS, GRADED, NAMES, leading

Record = dict[str, Any]
OF_EVERY_MEASUREMENT = ("seed", "image_size", "steps", "guidance", "train_fraction")
ELSEWHERE = "pretrained"  # the family of models that were trained elsewhere
TUNED = "tuned"  # the value of the column `settings` where they were chosen
# settings of conf/train that do not change what is trained; `minutes` and `images` are budgets of
# other units, which conf/match takes
NOT_OF_THE_TRAINING = (
    "checkpoint_seconds",
    "snapshots",
    "minutes",
    "images",
    "compile",
    "accumulate",
)
# settings that have columns of their own, or say nothing about the network
NOT_OF_THE_VARIANT = {
    "model.objective",
    "model.tune",
    "train.budget",
    "train.precision",
    *(f"train.{name}" for name in NOT_OF_THE_TRAINING),
}
# a width that sizes choose so that another head or codebook leaves a forward pass as dear
DERIVED, DERIVED_FROM = "model.mlp", ("model.head", "codebook")


def clean(value: Any) -> Any:
    """The same value with what JSON has no word for (NaN, infinity) as None."""
    if isinstance(value, dict):
        return {k: clean(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [clean(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write(folder: Path, row: dict[str, Any], **metadata: Any) -> None:
    """`folder/records/<run_id>.json`: the row of results.csv and whatever else a reader needs to
    repeat it.

    Raises ValueError for a row with columns that `columns.COLUMNS` does not have.
    """
    unknown = sorted(set(row) - set(NAMES))
    if unknown:
        raise ValueError(f"a record has unknown columns: {', '.join(unknown)}")
    record = clean({"row": row, "versions": library_versions()} | metadata)
    write_sealed(path_of(folder, row["run_id"]), record)


def refuse_foreign(folder: Path) -> None:
    """Raises BadInput for a folder that holds results, but none that this suite wrote."""
    names = ("results.csv", "summary.md", "plots", "samples", archive.PLAIN, archive.PACKED)
    there = [name for name in names if (folder / name).exists()]
    if there and not _is_ours(folder):
        raise BadInput(
            f"{folder} holds {there[0]}, but no records of this suite; give another folder (of a "
            "run: name=)"
        )


def _is_ours(folder: Path) -> bool:
    """Whether one file in a folder is a record of this suite, or an archive of them."""
    for path in (folder / "records").glob("*.json"):
        record = read_json(path)
        if isinstance(record, dict) and isinstance(record.get("row"), dict):
            return True
    try:
        return bool(archive.read(folder))
    except BadInput:
        return False


def path_of(folder: Path, run_id: str) -> Path:
    """Where a results folder has the record of a measurement."""
    return folder / "records" / f"{run_id}.json"


def load(path: Path) -> Record | None:
    """One record; None where it is missing, and with a printed line where it is not whole."""
    record = read_json(path)
    if record is None and not path.exists():
        return None
    wrong = "it is cut short" if record is None else why_not_whole(record)
    if wrong:
        session.print_once(f"{path} is left out: {wrong}")
        return None
    return record


def why_not_whole(record: Any) -> str:
    """Why a record cannot go into a table; empty where it can."""
    if not isinstance(record, dict) or not isinstance(record.get("row"), dict):
        return "it is no record"
    if not is_sealed(record):
        return "it was changed after it was written, or is of an earlier version"
    row = record["row"]
    if not all(isinstance(row.get(name), str) for name in ("run_id", "status", "model", "data")):
        return "it does not say what it is of"
    numbers = (*OF_EVERY_MEASUREMENT, leading(row)) if row["status"] == "ok" else ()
    missing = [name for name in numbers if not isinstance(row.get(name), int | float)]
    return f"it has no {missing[0]}" if missing else ""


def read(folder: Path) -> list[Record]:
    """All whole records of a results folder, oldest first; what is left out is printed.

    From `folder/records/*.json`, else `folder/results.json`, else `folder/records.json.gz`. Raises
    BadInput where one of the latter two is damaged.
    """
    paths = sorted((folder / "records").glob("*.json"))
    stored = [load(path) for path in paths] if paths else _whole(archive.read(folder), folder)
    records = [record for record in stored if record is not None]
    records = _of_today(records, folder, leave_out=bool(paths))
    _share_logs(records)
    return sorted(records, key=lambda r: (r["row"].get("started_at") or "", r["row"]["run_id"]))


def _whole(records: list[Record], folder: Path) -> list[Record]:
    """Those of an archive's records that are whole; the others are counted and named."""
    wrong = {i: why for i, record in enumerate(records) if (why := why_not_whole(record))}
    if wrong:
        first = next(iter(wrong.values()))
        session.print_once(f"{folder}: {len(wrong)} record(s) are left out: {first}")
    return [record for i, record in enumerate(records) if i not in wrong]


def _of_today(records: list[Record], folder: Path, *, leave_out: bool) -> list[Record]:
    """Those records whose columns are all known today; of files of their own, others are left out
    with a printed line, and stay where they are.

    Raises BadInput where none is left, and of an archive, which would be written anew without them.
    """
    strange = [record for record in records if not set(NAMES).issuperset(record["row"])]
    if not strange:
        return records
    unknown = sorted(set().union(*(record["row"] for record in strange)) - set(NAMES))
    what = f"of another version of the suite (columns {', '.join(unknown)})"
    kept = [record for record in records if record not in strange]
    if not (leave_out and kept):
        raise BadInput(
            f"{folder}: records {what}; remove the folder, or give another name=, and run again"
        )
    first = path_of(folder, strange[0]["row"]["run_id"])
    session.print_once(f"{len(strange)} record(s) are left out, e.g. {first}: {what}")
    return kept


def _share_logs(records: list[Record]) -> None:
    """In place, one loss log for all records of the same weights: it is stored and shown once."""
    logs = {_weights(r): r["train_log"] for r in records if r.get("train_log")}
    for record in records:
        if record["row"].get("status") == "ok" and _weights(record) in logs:
            shared = logs[_weights(record)]
            if record.get("train_log") != shared:
                record.update(seal(record | {"train_log": shared}))


def _weights(record: Record) -> tuple[Any, ...]:
    """What names the weights behind a record: the training, its machine, and the fraction of it."""
    return training(record), record["row"].get("device"), record["row"].get("train_fraction")


def gather(folder: Path, records: list[Record]) -> Path:
    """Write all records into one file and return it: results.json, or a published folder's .gz."""
    return archive.write(archive.place(folder), records)


def current(records: list[Record]) -> list[Record]:
    """Without what an earlier version of the models or of a library left behind: of trainings
    configured alike, the newest.

    `records` are oldest first.
    """
    recipes = [recipe(record) for record in records]
    trainings = [training(record) for record in records]
    newest = dict(zip(recipes, trainings, strict=True))  # the last of a recipe stays
    return [
        record
        for record, recipe, training in zip(records, recipes, trainings, strict=True)
        if newest[recipe] == training
    ]


def is_elsewhere(record: Record) -> bool:
    """Whether a record is of a model that was trained elsewhere."""
    return record["row"].get("family") == ELSEWHERE


def training(record: Record) -> str | None:
    """What names a trained network: its recipe, and the versions that trained it."""
    return record.get("fingerprints", {}).get("training")


def recipe(record: Record) -> str:
    """Digest of everything configured about a training, and of the images, latents and machine it
    was on.
    """
    row, config = record["row"], record.get("config", {})
    fingerprints = record.get("fingerprints", {})
    train = config.get("train") or {}
    train = {name: value for name, value in train.items() if name not in NOT_OF_THE_TRAINING}
    columns = ("model", "size", "seed", "dtype", "data", "image_size", "autoencoder")
    parts = {
        "train": train,
        "network": {k: v for k, v in (config.get("model") or {}).items() if k != "tune"},
        "on": [fingerprints.get("data"), fingerprints.get("latents"), machine(row)],
        # what was trained elsewhere has no other recipe than its weights
        "weights": training(record) if is_elsewhere(record) else None,
        **{name: row.get(name) for name in columns},
    }
    return digest(parts)


def table(records: list[Record]) -> pd.DataFrame:
    """One row per record, the columns of results.csv in their order, empty where unknown.

    Then fourteen for the report's own use:
    `distance` and `distance_std`, those that lead (`columns.leading`);
    `chosen`, whether its settings were chosen by tuning and not as configured;
    `tuned_at`, the step count they were chosen at, which may be a neighbour; NaN as configured;
    `diagnostics`, what else the evaluator said; `sampling_seed`;
    `features_dim`, the dimensions that the Fréchet distance has; `projected`, if there are more;
    `training`, which names the trained network; `budget`, what its training was given;
    `reference`, which names the images and features behind the distance of a whole system;
    `evaluated_by`, which names the very images, autoencoder and features behind a distance;
    `variant`, what else in the configuration tells networks of one model and size apart;
    `lr`, the learning rate of the training; NaN of what was trained elsewhere.
    """
    prints = [record.get("fingerprints", {}) for record in records]
    evaluated_by, reference = (
        [digest(*(p.get(name) for name in names))[:6] for p in prints]
        for names in (("data", "autoencoder", "features"), ("data", "features"))
    )
    rows = pd.DataFrame([record["row"] for record in records]).reindex(columns=NAMES)
    # a column that no row has would be one of None, which is no number
    rows = rows.assign(**{name: pd.to_numeric(rows[name], errors="coerce") for name in GRADED})
    leads = [leading(record["row"]) for record in records]
    return rows.assign(
        distance=[record["row"].get(name) for record, name in zip(records, leads, strict=True)],
        distance_std=[
            record["row"].get(ERRORS[name]) for record, name in zip(records, leads, strict=True)
        ],
        chosen=[record["row"].get("settings") == TUNED for record in records],
        tuned_at=[(record.get("tuning") or {}).get("steps", math.nan) for record in records],
        diagnostics=[record.get("diagnostics", {}) for record in records],
        sampling_seed=[record.get("sampling_seed") for record in records],
        training=[training(record) for record in records],
        features_dim=[p.get("features_frechet_dim") or p.get("features_dim") for p in prints],
        projected=[_is_projected(p) for p in prints],
        evaluated_by=evaluated_by,
        reference=reference,
        variant=variants(records),
        lr=[learning_rate(record) for record in records],
        budget=[budget(record) for record in records],
    )


def _is_projected(prints: dict[str, Any]) -> bool:
    """Whether a Fréchet distance is taken over fewer dimensions than the features have."""
    return 0 < (prints.get("features_frechet_dim") or 0) < (prints.get("features_dim") or 0)


def learning_rate(record: Record) -> float:
    """The peak of the schedule, as configured; NaN where the record does not say."""
    model = record.get("config", {}).get("model")
    rate = model.get("lr") if isinstance(model, dict) else None
    return math.nan if rate is None else float(rate)


def budget(record: Record) -> str:
    """What the training was given, such as `7.4e+12 flops`: what a clock made of it may differ
    between seeds.
    """
    train = record.get("config", {}).get("train") or {}
    value, unit = train.get("budget"), train.get("unit") or "flops"
    value = value or record["row"].get("train_flops")
    return "" if value is None else f"{float(value):g} {unit}"


def variants(records: list[Record]) -> list[str]:
    """Per record, the settings under `model` and `train`, and the autoencoder, that differ between
    records of the same model, size and data.
    """
    settings = [_settings(record) for record in records]
    groups: dict[tuple, list[int]] = {}
    for i, record in enumerate(records):
        columns = ("model", "size", "data", "image_size")
        groups.setdefault(tuple(record["row"].get(name) for name in columns), []).append(i)

    names = [""] * len(records)
    for members in groups.values():
        keys = {key for i in members for key in settings[i]} - NOT_OF_THE_VARIANT
        values = {key: {str(settings[i].get(key)) for i in members} for key in keys}
        differing = sorted(key for key in keys if len(values[key]) > 1)
        differing = _without_derived(differing, [settings[i] for i in members])
        for i in members:
            words = [f"{key.split('.', 1)[-1]} {settings[i].get(key)}" for key in differing]
            names[i] = ", ".join(words)
    return names


def _without_derived(keys: list[str], settings: list[dict[str, Any]]) -> list[str]:
    """Keys without `DERIVED`, where head and codebook determine it: to each pair of them belongs a
    single width.
    """
    widths: dict[tuple, set] = {}
    for one in settings:
        of = tuple(str(one.get(name)) for name in DERIVED_FROM)
        widths.setdefault(of, set()).add(str(one.get(DERIVED)))
    derived = all(len(several) == 1 for several in widths.values())
    return [key for key in keys if key != DERIVED] if derived else keys


def _settings(record: Record) -> dict[str, Any]:
    """What may tell a record from others of its model, by dotted names."""
    config = record.get("config", {})
    named = {name: config.get(name, {}) for name in ("model", "train", "sample_batch")}
    row = record["row"]
    sampled_in = row.get("sample_dtype") or row.get("dtype")  # once both were one
    return flatten(named) | {
        "weights": (training(record) or "")[:6] if is_elsewhere(record) else None,
        "sampled in": sampled_in if sampled_in != row.get("dtype") else "the same precision",
        **{name: row.get(name) for name in ("autoencoder", "codebook")},
    }
