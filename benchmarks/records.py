"""One JSON per measurement, with everything needed to repeat it; `COLUMNS` is the one place that says what a number means."""

import math
import os
import platform
import subprocess
from datetime import UTC, datetime
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import torch

from benchmarks import archive
from benchmarks.store import digest, read_json, write_json

ROOT = Path(__file__).parent.parent
NO_RECIPE = ("checkpoint_seconds", "snapshots", "minutes", "images", "compile")  # of conf/train: they do not change what is trained


class Column(NamedTuple):
    """A column of results.csv: which direction is better (-1 lower, +1 higher, 0 neither), its unit, what it says."""

    name: str
    better: int
    unit: str
    meaning: str


COLUMNS = [
    Column("run_id", 0, "", "names this measurement: a hash of everything that determines it"),
    Column("status", 0, "", "ok, diverged or failed"),
    Column("family", 0, "", "unet, dit or ar"),
    Column("model", 0, "", "the model's YAML name"),
    Column("size", 0, "", "xs, s, b, l or xl"),
    Column("params_m", 0, "M", "trainable parameters"),
    Column("seed", 0, "", "training seed"),
    Column("data", 0, "", "data set"),
    Column("num_classes", 0, "", "classes"),
    Column("image_size", 0, "px", "side of the pictures"),
    Column("autoencoder", 0, "", "the shared autoencoder"),
    Column("latent_shape", 0, "", "channels x height x width"),
    Column("objective", 0, "", "training objective"),
    Column("train_images", 0, "", "pictures seen in training, repeats included"),
    Column("train_flops", 0, "FLOP", "3 x forward FLOPs x images"),
    Column("train_fraction", 0, "", "share of the training budget behind these weights"),
    Column("train_seconds", -1, "s", "wall time of the training loop"),
    Column("train_images_per_second", 1, "images/s", "training throughput"),
    Column("train_utilisation", 1, "", "training FLOP/s over a bf16 matrix product's in the same run"),
    Column("sampler", 0, "", "sampler"),
    Column("steps", 0, "", "sampling steps"),
    Column("nfe", -1, "", "network evaluations per image"),
    Column("guidance", 0, "", "classifier-free guidance scale; 1 is none"),
    Column("num_samples", 0, "", "generated pictures scored (N)"),
    Column("reference_images", 0, "", "held-out real pictures they are compared with (M)"),
    Column("features", 0, "", "feature network behind fd"),
    Column("fd", -1, "", "Fréchet distance to the reference pictures"),
    Column("fd_sd", 0, "", "bootstrap standard deviation of fd (pictures resampled; training seeds not)"),
    Column("fd_floor_analytic", 0, "", "what finite N and M alone would read"),
    Column("fd_floor_real", 0, "", "fd of N unseen real pictures"),
    Column("fd_floor_autoencoder", 0, "", "fd of the same pictures through the autoencoder: diffusion's floor"),
    Column("fd_floor_codebook", 0, "", "fd of the same pictures through the codebook: the AR family's floor"),
    Column("kid", -1, "", "kernel distance (x1, not x1000); around 0, also below, where nothing is wrong"),
    Column("kid_se", 0, "", "jackknife standard error of kid"),
    Column("precision", 1, "", "share of samples near real pictures"),
    Column("recall", 1, "", "share of real pictures near samples"),
    Column("density", 1, "", "density"),
    Column("coverage", 1, "", "coverage"),
    Column("label_accuracy", 1, "", "share of samples a linear probe assigns the class asked for"),
    Column("label_accuracy_real", 0, "", "the same probe on held-out real pictures: the ceiling"),
    Column("memorised_share", -1, "", "share of samples closer to training pictures than 99% of held-out pictures are; 0.01 is none"),
    Column("gmacs_generator", -1, "GMAC/image", "all network evaluations of one image"),
    Column("gmacs_decoder", 0, "GMAC/image", "decoding its latents"),
    Column("gmacs_per_image", -1, "GMAC/image", "generator and decoder"),
    Column("gflops_per_image", -1, "GFLOP/image", "2 x gmacs_per_image"),
    Column("seconds_per_image", -1, "s/image", "wall time at the sampling batch, decoder included"),
    Column("images_per_second", 1, "images/s", "its inverse"),
    Column("latency_seconds", -1, "s", "wall time of one image alone"),
    Column("peak_memory_mb", -1, "MiB", "peak memory while sampling: of the device, or of the whole process on a CPU"),
    Column("device", 0, "", "hardware"),
    Column("dtype", 0, "", "precision of training and sampling"),
    Column("torch", 0, "", "torch version"),
    Column("git_sha", 0, "", "code version"),
    Column("git_dirty", 0, "", "whether the code had uncommitted changes"),
    Column("started_at", 0, "", "UTC time the measurement began"),
]
NAMES = [column.name for column in COLUMNS]
MEANING = {column.name: column for column in COLUMNS}
PACKAGES = ("torch", "diffusers", "transformers", "accelerate", "numpy", "scipy", "pillow", "safetensors", "datasets", "hydra-core")
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


@lru_cache(maxsize=1)
def git_state() -> dict[str, Any]:
    """The code's commit and whether it has been changed since (results are not code); empty where neither can be known.

    Where the code lies without its repository, the commit travels with it: as LATENTBENCH_COMMIT, or in a file `.commit` beside it
    (`make commit-file`), the commit and, where it has been changed, `-dirty`.
    """

    def git(*args: str) -> str | None:
        try:
            done = subprocess.run(["git", *args], cwd=ROOT, capture_output=True, text=True, timeout=10)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    sha, changes = git("rev-parse", "--short=12", "HEAD"), git("status", "--porcelain", "--", ".", ":!results")
    if sha is None and (carried := os.environ.get("LATENTBENCH_COMMIT") or _carried_commit()):
        return {"git_sha": carried.removesuffix("-dirty"), "git_dirty": carried.endswith("-dirty")}
    return {"git_sha": sha, "git_dirty": None if changes is None else bool(changes)}


def _carried_commit() -> str:
    """What the file `.commit` says; empty where there is none."""
    try:
        return (ROOT / ".commit").read_text().strip()
    except OSError:
        return ""


@lru_cache(maxsize=4)
def device_name(device: torch.device) -> str:
    """The GPU's name, or the CPU's with its thread count."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        name = platform.processor() or platform.machine()
    return f"{name} ({torch.get_num_threads()} threads)"


def now() -> str:
    """UTC, to the second, ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def provenance(device: torch.device) -> dict[str, Any]:
    """The columns that say by which code, library and machine something was made."""
    return git_state() | {"torch": torch.__version__, "device": device_name(device)}


@lru_cache(maxsize=1)
def versions() -> dict[str, str]:
    """Versions of Python and of the libraries a number may depend on."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def clean(value: Any) -> Any:
    """The same value with what JSON has no word for (NaN, infinity) as None."""
    if isinstance(value, dict):
        return {k: clean(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [clean(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def shorten_paths(config: dict[str, Any]) -> None:
    """In place, every absolute path to its last name: records travel; a machine's folders do not."""
    for key, value in config.items():
        if isinstance(value, dict):
            shorten_paths(value)
        elif isinstance(value, str) and Path(value).is_absolute():
            config[key] = Path(value).name


def write(folder: Path, row: dict[str, Any], **details: Any) -> None:
    """`folder/records/<run_id>.json`: the row of results.csv and whatever else a reader needs to repeat it.

    Raises ValueError for a row with columns that `COLUMNS` does not have.
    """
    unknown = set(row) - set(NAMES)
    if unknown:
        raise ValueError(f"a record has unknown columns: {', '.join(sorted(unknown))}")
    write_json(folder / "records" / f"{row['run_id']}.json", clean({"row": row, "versions": versions()} | details))


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
    return sorted(found, key=lambda record: (record["row"].get("started_at") or "", record["row"]["run_id"]))


def _weights(record: dict[str, Any]) -> tuple[Any, Any]:
    """What names the weights behind a record: the training, and the share of it."""
    return record.get("fingerprints", {}).get("training"), record["row"].get("train_fraction")


def gather(folder: Path, found: list[dict[str, Any]]) -> Path:
    """Write all records into one file and return it: results.json, or a published folder's .gz."""
    return archive.write(archive.place(folder), found)


def current(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Without what an earlier version of the models or of a library left behind: of trainings configured alike, the newest.

    `found` are oldest first.
    """
    recipes = [digest(_recipe(record)) for record in found]
    trainings = [record.get("fingerprints", {}).get("training") for record in found]
    newest = dict(zip(recipes, trainings, strict=True))
    return [record for record, recipe, training in zip(found, recipes, trainings, strict=True) if newest[recipe] == training]


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
    """One row per record, the columns of `COLUMNS` in their order, empty where unknown; then eight for the report's own use.

    `fd_train` is the distance to training pictures, by which settings are chosen; `diagnostics` what else the judge said;
    `sampling_seed` the drawing's; `features_dim` the features' dimensions; `training` names the trained network, `judged_by` the very pictures, latents and features behind a distance, `variant` what else in
    the configuration tells networks of one model and size apart, `budget` what the training was given.
    """
    prints = [record.get("fingerprints", {}) for record in found]
    rows = pd.DataFrame([record["row"] for record in found]).reindex(columns=NAMES)
    return rows.assign(
        fd_train=[record.get("selection", {}).get("fd_train") for record in found],
        diagnostics=[record.get("diagnostics", {}) for record in found],
        sampling_seed=[record.get("sampling_seed") for record in found],
        training=[p.get("training") for p in prints],
        features_dim=[p.get("features_dim") for p in prints],
        judged_by=[digest(*(p.get(k) for k in ("data", "latents", "features")))[:6] for p in prints],
        variant=variants(found),
        budget=[budget(record) for record in found],
    )


def budget(record: dict[str, Any]) -> str:
    """What the training was given, such as `7.4e+12 flops`: what a clock made of it may differ between seeds."""
    train = record.get("config", {}).get("train") or {}
    value, unit = train.get("budget") or record["row"].get("train_flops"), train.get("unit") or "flops"
    return "" if value is None else f"{float(value):g} {unit}"


def variants(found: list[dict[str, Any]]) -> list[str]:
    """Per record, the settings under `model` and `train`, and the autoencoder, that differ between records of the same model, size and data."""
    flat = [flatten({k: record.get("config", {}).get(k, {}) for k in ("model", "train", "sample_batch")}) for record in found]
    flat = [{**settings, "autoencoder": record["row"].get("autoencoder")} for settings, record in zip(flat, found, strict=True)]
    groups: dict[tuple, list[int]] = {}
    for i, record in enumerate(found):
        groups.setdefault(tuple(record["row"].get(k) for k in ("model", "size", "data", "image_size")), []).append(i)
    names = [""] * len(found)
    for members in groups.values():
        keys = sorted({key for i in members for key in flat[i]} - TOLD_ELSEWHERE)
        differing = [key for key in keys if len({str(flat[i].get(key)) for i in members}) > 1]
        for i in members:
            names[i] = ", ".join(f"{key.split('.', 1)[-1]} {flat[i].get(key)}" for key in differing)
    return names


def flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """Nested settings by their dotted names."""
    if not isinstance(value, dict):
        return {prefix: value}
    return {k: v for name, part in value.items() for k, v in flatten(part, f"{prefix}.{name}" if prefix else name).items()}
