"""The hub: data through `datasets` (the one module that imports it), and the files of pretrained
networks.
"""

import io
import logging
import os
from collections.abc import Collection, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import IO, Any

import huggingface_hub

from benchmarks.core.errors import BadInput
from benchmarks.core.session import session
from benchmarks.core.store import digest
from benchmarks.core.text import printable
from benchmarks.images.folder import Entry

HELD_OUT_NAMES = ("validation", "valid", "val", "test")


class Unreachable(BadInput):
    """The hub did not give what was asked for."""


def _hush() -> None:
    """Retries of the hub's client would bury our one line."""
    for name in ("datasets", "huggingface_hub", "httpx"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


def folder(path: str, files: Sequence[str], key: str, more: Sequence[str] = ()) -> Path:
    """The folder that holds `files` of a pretrained network: `path` itself, or a snapshot of that
    name on the hub.

    `more` are patterns of files to fetch beside these; `key` is the setting that names the path.
    Raises BadInput, in one line that says which files to put where; Unreachable where the hub is to
    blame.
    """
    local = Path(path).expanduser()
    # a local folder first: machines without network are given one
    if local.is_dir():
        missing = [name for name in files if not (local / name).is_file()]
        if missing:
            raise BadInput(f"{key}={path}: the folder has no {missing[0]}")
        return local
    # the hub's names are owner/name; anything else is a mistyped folder, not worth a download
    if path.count("/") != 1 or path.startswith((".", "~", "/")):
        raise BadInput(f"{key}={path}: no such folder")
    # each try waits for the network, and a sweep has many cells
    if path in session.unreachable:
        raise Unreachable(session.unreachable[path])
    _hush()
    try:
        return Path(huggingface_hub.snapshot_download(path, allow_patterns=[*files, *more]))
    except Exception as error:  # the client raises whatever its network and cache layers raise
        session.unreachable[path] = (
            f"{key}={path}: the hub did not give it ({_reason(error)}); "
            f"download {' and '.join([*files, *more])} of {path} elsewhere and give their folder "
            f"as {key}"
        )
        raise Unreachable(session.unreachable[path]) from None


def _reason(error: Exception) -> str:
    """An error of some library in part of a line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"


def list_hub(
    path: str, *, config: str | None, held_out: str | None
) -> tuple[list[str], list[Entry]]:
    """Class names and one entry per image, of the training split and of the held-out one.

    `path` is a name on the hub, with its `config`, or a local folder of parquet files. Where there
    is no split called `held_out`, one of the usual names is taken if there is one. Raises BadInput,
    in one line, for data that cannot be had or used.
    """
    loaded = _load(path, config)
    if "train" not in loaded:
        raise BadInput(f"data.path={path}: has no split called train, only {', '.join(loaded)}")
    splits = _pick_splits(loaded, held_out)
    image_column, label_column = _columns(loaded["train"], path)
    # of all splits, so that a class without training images is seen to be one
    values: set[Any] = set()
    for name in splits:
        values.update(loaded[name].unique(label_column))
    _check_labels(values, path, label_column)
    label_of = {value: label for label, value in enumerate(sorted(values))}
    written = _stamp(path)
    entries = []
    for name in splits:
        split = _undecoded(loaded[name], image_column)
        # of a local folder the fingerprint would tell where it lies, not what is in it
        stamp = f"{name}:{written or split._fingerprint}"
        for i, value in enumerate(split[label_column]):
            file = partial(_row_file, split, i, image_column)
            label, is_held_out = label_of[value], name in splits[1:]
            entries.append(Entry(label, f"{name}:{i}", f"{stamp}:{i}", is_held_out, file))
    return _class_names(loaded["train"].features[label_column], list(label_of)), entries


def _pick_splits(names: Collection[str], held_out: str | None) -> list[str]:
    """`train`, and the held-out split if there is one: `held_out`, or one of a usual name."""
    taken = next((name for name in (held_out, *HELD_OUT_NAMES) if name in names), None)
    if taken != held_out:
        print(f"data.held_out={held_out}: no such split; images are held out of {taken or 'train'}")
    return ["train"] if taken is None else ["train", taken]


def _load(path: str, config: str | None) -> Any:
    """The data set's splits by name. Raises BadInput, in one line, for whatever keeps `datasets`
    from giving them.
    """
    if path in session.unreachable:
        raise BadInput(session.unreachable[path])
    try:
        import datasets
    except ImportError:
        raise BadInput(
            f"data.path={path}: hub and parquet data need the `datasets` package; "
            "`pip install datasets`"
        ) from None
    local = Path(path).expanduser()
    datasets.disable_progress_bars()
    _hush()
    try:
        if local.is_dir():
            # the library knows files by their dates, which a copy may keep: a place for each stamp
            place = Path(datasets.config.HF_DATASETS_CACHE) / f"by-stamp-{_stamp(path)}"
            return datasets.load_dataset(str(local), cache_dir=str(place))
        return datasets.load_dataset(path, config)
    # the library raises whatever its network, file and script layers raise
    except Exception as error:
        what = "not readable as parquet" if local.is_dir() else "the hub did not give it"
        session.unreachable[path] = (
            f"data.path={path}: {what} ({_reason(error)}); "
            "download its parquet files elsewhere and give their folder as data.path"
        )
        raise BadInput(session.unreachable[path]) from None


def _columns(split: Any, path: str) -> tuple[str, str]:
    """Names of the image and the label column. Raises BadInput where either is missing."""
    import datasets

    image = label = None
    for name, feature in split.features.items():
        if image is None and isinstance(feature, datasets.Image):
            image = name
        if label is None and isinstance(feature, datasets.ClassLabel):
            label = name
    if label is None:  # plain numbers or strings under a usual name will do
        label = next((name for name in ("label", "labels") if name in split.features), None)
    if image is None or label is None:
        raise BadInput(
            f"data.path={path}: needs an image column and a label column, "
            f"has {', '.join(split.features)}"
        )
    return image, label


def _class_names(feature: Any, values: list[Any]) -> list[str]:
    """Names of the values of a label column, as far as the data set knows them."""
    import datasets

    if isinstance(feature, datasets.ClassLabel):
        return [printable(feature.int2str(value)) for value in values]
    return [printable(str(value)) for value in values]


def _check_labels(values: set[Any], path: str, column: str) -> None:
    """Raises BadInput for labels that name no class: none at all, negative or fractional ones."""
    for value in values:
        whole = isinstance(value, int) and not isinstance(value, bool) and value >= 0
        if not (whole or (isinstance(value, str) and value)):
            raise BadInput(
                f"data.path={path}: label {value!r} in column {column} names no class; "
                "labels are names or whole numbers from 0 up"
            )


def _stamp(path: str) -> str:
    """Changes with whatever is written to the files of a local folder, even under an old date;
    empty for a name on the hub.
    """
    local = Path(path).expanduser()
    if not local.is_dir():
        return ""
    stats = [(os.path.relpath(path, local), path.stat()) for path in sorted(_files_below(local))]
    return digest([(n, one.st_size, one.st_mtime_ns, one.st_ctime_ns) for n, one in stats])


def _files_below(folder: Path) -> Iterator[Path]:
    """Its files and those of all folders in it, through links too, as `datasets` finds them; the
    same folder not within itself.
    """
    walked = set()
    for place, folders, files in os.walk(folder, followlinks=True):
        walked.add(os.path.realpath(place))
        folders[:] = [f for f in folders if os.path.realpath(os.path.join(place, f)) not in walked]
        yield from (path for file in files if (path := Path(place, file)).is_file())


def _undecoded(split: Any, column: str) -> Any:
    """The split with its images as stored, so that reading labels decodes none."""
    import datasets

    return split.cast_column(column, datasets.Image(decode=False))


def _row_file(split: Any, row: int, column: str) -> Path | IO[bytes]:
    """An image as `datasets` stores it undecoded: bytes in the table, or a path beside it."""
    cell = split[row][column] or {}
    if cell.get("path") and not cell.get("bytes"):
        return Path(cell["path"])
    return io.BytesIO(cell.get("bytes") or b"")  # of an empty cell nothing, which is no image
