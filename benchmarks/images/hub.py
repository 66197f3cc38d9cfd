"""The hub: data through `datasets` (the one module that imports it), and the files of pretrained
networks.
"""

import io
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import huggingface_hub
from PIL import Image

from benchmarks.core.errors import BadInput
from benchmarks.core.session import session
from benchmarks.images.folder import Entry

HELD_OUT = ("validation", "valid", "val")


class Unreachable(BadInput):
    """The hub did not give what was asked for."""


def _hush() -> None:
    """Retries of the hub's client would bury our one line."""
    for name in ("datasets", "huggingface_hub", "httpx"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


def folder(path: str, files: Sequence[str], key: str) -> Path:
    """The folder that holds `files` of a pretrained network: `path` itself, or a snapshot of that
    name on the hub.

    Raises BadInput, in one line that says which files to put where. `key` is the setting that names
    the path.
    """
    local = Path(path).expanduser()
    mend = f"download {' and '.join(files)} of {path} elsewhere and give their folder as {key}"
    if local.is_dir():
        missing = [name for name in files if not (local / name).is_file()]
        if missing:
            raise BadInput(f"{key}={path}: the folder has no {missing[0]}")
        return local
    if path.count("/") != 1 or path.startswith((".", "~", "/")):
        raise BadInput(f"{key}={path}: no such folder")
    if path in session.unreachable:
        raise Unreachable(session.unreachable[path])
    _hush()
    try:
        return Path(huggingface_hub.snapshot_download(path, allow_patterns=list(files)))
    except Exception as error:  # the client raises whatever its network and cache layers raise
        reason = " ".join(str(error).split())[:160]
        session.unreachable[path] = (
            f"{key}={path}: the hub did not give it ({type(error).__name__}: {reason}); {mend}"
        )
        raise Unreachable(session.unreachable[path]) from None


def _load(cfg: Any):
    """The data set's splits. Raises BadInput, in one line, for whatever keeps `datasets` from
    giving them.
    """
    if str(cfg.path) in session.unreachable:
        raise BadInput(session.unreachable[str(cfg.path)])
    try:
        import datasets
    except ImportError:
        raise BadInput(
            f"data.path={cfg.path}: hub and parquet data need the `datasets` package; `pip install datasets`"
        ) from None
    path = Path(str(cfg.path)).expanduser()
    datasets.disable_progress_bars()
    _hush()
    try:
        if path.is_dir():
            return datasets.load_dataset(str(path)), datasets
        return datasets.load_dataset(str(cfg.path), cfg.get("config")), datasets
    except (
        Exception
    ) as error:  # the library raises whatever its network, file and script layers raise
        what = "not readable as parquet" if path.is_dir() else "the hub did not give it"
        reason = " ".join(str(error).split())[:160]
        mend = "download its parquet files elsewhere and give their folder as data.path"
        session.unreachable[str(cfg.path)] = (
            f"data.path={cfg.path}: {what} ({type(error).__name__}: {reason}); {mend}"
        )
        raise BadInput(session.unreachable[str(cfg.path)]) from None


def _columns(split: Any, datasets: Any, path: Any) -> tuple[str, str]:
    """Names of the picture and the label column."""
    picture = next((k for k, f in split.features.items() if isinstance(f, datasets.Image)), None)
    label = next((k for k, f in split.features.items() if isinstance(f, datasets.ClassLabel)), None)
    label = label or next((k for k in ("label", "labels") if k in split.features), None)
    if picture is None or label is None:
        raise BadInput(
            f"data.path={path}: needs an image column and a label column, has {', '.join(split.features)}"
        )
    return picture, label


def list_hub(cfg: Any) -> tuple[list[str], list[Entry]]:
    """Class names and one entry per picture, of the training split and of `data.held_out` where
    there is one.
    """
    loaded, datasets = _load(cfg)
    if "train" not in loaded:
        raise BadInput(f"data.path={cfg.path}: has no split called train, only {', '.join(loaded)}")
    held_out = next((name for name in (cfg.get("held_out"), *HELD_OUT) if name in loaded), None)
    if held_out != cfg.get("held_out"):
        print(
            f"data.held_out={cfg.get('held_out')}: no such split; pictures are held out of {held_out or 'train'}"
        )
    picture, label = _columns(loaded["train"], datasets, cfg.path)
    feature = loaded["train"].features[label]
    numbers = sorted(
        {
            value
            for name in filter(None, ("train", held_out))
            for value in loaded[name].unique(label)
        }
    )
    classes = [
        feature.int2str(n) if isinstance(feature, datasets.ClassLabel) else str(n) for n in numbers
    ]
    number = {value: i for i, value in enumerate(numbers)}
    entries, folder = [], Path(str(cfg.path)).expanduser()
    size = sum(p.stat().st_size for p in folder.rglob("*.parquet")) if folder.is_dir() else 0
    for name in filter(None, ("train", held_out)):
        split = loaded[name].cast_column(picture, datasets.Image(decode=False))
        stamp = f"{name}:{size or split._fingerprint}"
        for i, value in enumerate(split[label]):
            entries.append(
                Entry(
                    number[value],
                    f"{name}:{i}",
                    f"{stamp}:{i}",
                    name == held_out,
                    lambda s=split, i=i: _open(s[i][picture]),
                )
            )
    return classes, entries


def _open(cell: dict) -> Image.Image:
    """A picture as `datasets` stores it undecoded: bytes in the table, or a path beside it."""
    return Image.open(io.BytesIO(cell["bytes"]) if cell["bytes"] else cell["path"])
