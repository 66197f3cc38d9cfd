"""Sets of pictures to and from files that other tools read: folders of PNGs, ADM's npz (`arr_0`,
`arr_1`), parquet with an `image` column.
"""

import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.core.errors import BadInput
from benchmarks.core.store import atomic_file, atomic_folder
from benchmarks.images.decode import MAX_BAD_SHARE, to_rgb
from benchmarks.images.folder import SUFFIXES

KINDS = ("png", "npz")


def place(path: Path, kind: str) -> Path:
    """Where `write` puts a set: the folder itself, or an npz beside it."""
    return path.with_name(path.name + ".npz") if kind == "npz" else path


def write(images: np.ndarray, labels: np.ndarray, path: Path, kind: str) -> Path:
    """uint8 pictures (N, 3, H, W) and labels (N,) as `path/000000-7.png` (label 7), ... or
    `path.npz` in ADM's layout (arr_0 NHWC, arr_1).
    """
    pixels, path = images.transpose(0, 2, 3, 1), place(path, kind)
    if kind == "npz":
        with atomic_file(path) as temporary, open(temporary, "wb") as file:
            np.savez(file, arr_0=pixels, arr_1=labels)
        return path
    with atomic_folder(path) as folder:
        for i, (picture, label) in enumerate(zip(pixels, labels, strict=True)):
            Image.fromarray(picture).save(folder / f"{i:06d}-{label}.png")
    return path


def read(path: Path, what: str) -> tuple[np.ndarray, np.ndarray | None]:
    """uint8 pictures (N, 3, H, W) of one size, and labels (N,) where the file has them; `what`
    names the setting in errors.

    A folder is read with its sub-folders, in the order of their names; these are not taken for
    labels. Raises BadInput, in one line.
    """
    if path.is_dir():
        return _folder(path, what), None
    if not path.is_file():
        raise BadInput(f"{what}={path}: no such file or folder")
    if path.suffix == ".npz":
        return _npz(path, what)
    if path.suffix == ".parquet":
        return _parquet(path, what)
    raise BadInput(
        f"{what}={path}: a folder of pictures, an .npz with arr_0 or a .parquet with an image column is needed"
    )


def _stacked(pictures: list[tuple[str, Any]], path: Path, what: str) -> np.ndarray:
    """Decode (name, file) pairs; up to 1% may be unreadable and are named; all others must have one
    size.
    """
    if not pictures:
        raise BadInput(f"{what}={path}: no pictures in it")
    found, bad = {}, []
    for name, file in pictures:
        try:
            with Image.open(file) as image:
                found[name] = np.asarray(to_rgb(image)).transpose(2, 0, 1)
        except (OSError, ValueError, SyntaxError, TypeError, Image.DecompressionBombError):
            bad.append(name)
    if len(bad) > MAX_BAD_SHARE * len(pictures):
        raise BadInput(
            f"{what}={path}: {len(bad)} of {len(pictures)} pictures are unreadable (over 1%), e.g. {bad[0]}; mend or remove them"
        )
    sizes = {picture.shape[1:]: name for name, picture in found.items()}
    if len(sizes) > 1:
        (a, first), (b, second) = list(sizes.items())[:2]
        raise BadInput(
            f"{what}={path}: pictures of {len(sizes)} sizes, e.g. {first} {a[1]}x{a[0]} and {second} {b[1]}x{b[0]}; give them one size"
        )
    if bad:
        print(f"{what}: {len(bad)} unreadable picture(s) skipped, e.g. {bad[0]}")
    return np.stack(list(found.values()))


def _folder(path: Path, what: str) -> np.ndarray:
    files = sorted(
        p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES and not p.name.startswith(".")
    )
    return _stacked([(str(p.relative_to(path)), p) for p in files], path, what)


def _npz(path: Path, what: str) -> tuple[np.ndarray, np.ndarray | None]:
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in ("arr_0", "arr_1") if name in file.files}
    except Exception as error:  # zipfile, zlib and numpy each have their own for a file cut short
        raise BadInput(f"{what}={path}: not a whole npz ({type(error).__name__})") from None
    pixels, labels = arrays.get("arr_0"), arrays.get("arr_1")
    if (
        pixels is None
        or pixels.dtype != np.uint8
        or pixels.ndim != 4
        or pixels.shape[-1] != 3
        or not len(pixels)
    ):
        found = "no arr_0" if pixels is None else f"arr_0 is {pixels.dtype} {pixels.shape}"
        raise BadInput(f"{what}={path}: {found}; ADM's layout is arr_0 of uint8 (N, H, W, 3)")
    if labels is not None and (
        labels.shape != (len(pixels),) or not np.issubdtype(labels.dtype, np.integer)
    ):
        raise BadInput(
            f"{what}={path}: arr_1 is {labels.dtype} {labels.shape}; labels are {len(pixels)} whole numbers"
        )
    return np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)), labels


def _parquet(path: Path, what: str) -> tuple[np.ndarray, np.ndarray | None]:
    try:
        import pyarrow.parquet as parquet
    except ImportError:
        raise BadInput(
            f"{what}={path}: parquet needs pyarrow; .venv/bin/pip install -e '.[hub]'"
        ) from None
    try:
        table = parquet.read_table(path)
    except (OSError, ValueError, NotImplementedError) as error:  # pyarrow's own errors are of these
        raise BadInput(
            f"{what}={path}: not a whole parquet file ({type(error).__name__})"
        ) from None
    column = next((name for name in ("image", "img") if name in table.column_names), None)
    if column is None:
        raise BadInput(f"{what}={path}: no image column among {', '.join(table.column_names)}")
    cells = [
        cell.get("bytes") if isinstance(cell, dict) else cell for cell in table[column].to_pylist()
    ]
    files = [
        io.BytesIO(cell if isinstance(cell, bytes) else b"") for cell in cells
    ]  # what is no picture will be unreadable
    pixels = _stacked([(f"row {i}", file) for i, file in enumerate(files)], path, what)
    labels = (
        np.array(table["label"].to_pylist())
        if "label" in table.column_names and len(pixels) == len(cells)
        else None
    )
    return pixels, labels if labels is not None and np.issubdtype(
        labels.dtype, np.integer
    ) else None
