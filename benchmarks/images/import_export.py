"""Sets of images to and from files that other tools read: folders of PNGs, ADM's npz (`arr_0`,
`arr_1`), parquet with an `image` column.
"""

import io
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image

from benchmarks.core.errors import BadInput
from benchmarks.core.files import atomic_file, atomic_folder
from benchmarks.core.text import printable
from benchmarks.images.decode import MAX_BAD_FRACTION, open_image, to_pixels
from benchmarks.images.decode_all import decode_all
from benchmarks.images.files import Walk, list_images

IMAGE_COLUMNS = ("image", "img")
WANTED = (*IMAGE_COLUMNS, "label")  # columns of a parquet file
MOST_CLASSES = 100_000  # arrays of this length are made for each measure by class


def place(path: Path, kind: str) -> Path:
    """Where `write` puts a set: the folder itself, or an npz beside it."""
    return path.with_name(path.name + ".npz") if kind == "npz" else path


def write(images: np.ndarray, labels: np.ndarray, path: Path, kind: str) -> Path:
    """Write uint8 images (N, 3, H, W) and labels (N,); returns where they are.

    `png` makes a folder of `000000-7.png` (label 7), ...; `npz` one file in ADM's layout, arr_0
    (N, H, W, 3) and arr_1 (N,).
    """
    pixels, path = images.transpose(0, 2, 3, 1), place(path, kind)
    if kind == "npz":
        with atomic_file(path) as temporary, open(temporary, "wb") as file:
            np.savez(file, arr_0=pixels, arr_1=labels)
        return path
    # the label in the name: a folder of PNGs has no other place for it
    with atomic_folder(path, lasting=False) as folder:
        for i, (image, label) in enumerate(zip(pixels, labels, strict=True)):
            Image.fromarray(image).save(folder / f"{i:06d}-{label}.png")
    return path


def read(path: Path, what: str, size: int | None = None) -> tuple[np.ndarray, np.ndarray | None]:
    """uint8 images (N, 3, H, W) of one size, and labels (N,) where the file has them.

    With `size` all become squares of that side, as `decode.to_pixels` makes them, and a line says
    of how many sizes they were. `what` names the setting in errors. A folder is read with its
    sub-folders, in the order of their names; these are not taken for labels. Raises BadInput, in
    one line.
    """
    if path.is_dir():
        return _read_folder(path, what, size), None
    if not path.is_file():
        raise BadInput(f"{what}={path}: no such file or folder")
    if path.suffix == ".npz":
        pixels, labels = _read_npz(path, what)
        if size is None:
            return pixels, labels
        _say_resized(Counter({(pixels.shape[3], pixels.shape[2]): len(pixels)}), size, what)
        pictures = (Image.fromarray(image) for image in pixels.transpose(0, 2, 3, 1))
        return np.stack([to_pixels(picture, size) for picture in pictures]), labels
    if path.suffix == ".parquet":
        return _read_parquet(path, what, size)
    raise BadInput(
        f"{what}={path}: a folder of images, an .npz with arr_0 or a .parquet with an image column "
        "is needed"
    )


def _decode_files(
    files: Sequence[tuple[str, Any]], where: str, what: str, size: int | None
) -> tuple[np.ndarray, list[int]]:
    """Decode (name, file) pairs to uint8 (N, 3, H, W); returns also which of them these are.

    Up to 1% may be unreadable and are named; all others must have one size where none is given,
    since resizing some of them would be measured as a difference. Raises BadInput, which begins
    with `where`.
    """
    if not files:
        raise BadInput(f"{where}: no images in it")
    decoded: dict[int, np.ndarray] = {}
    # of each width and height how many, and one of them as an example
    sizes: Counter[tuple[int, int]] = Counter()
    names: dict[tuple[int, int], str] = {}
    unreadable: list[str] = []
    images = decode_all([partial(_as_it_is, file) for _, file in files], size)
    for i, ((name, file), image) in enumerate(zip(files, images, strict=True)):
        if isinstance(image, str):
            unreadable.append(f"{name} ({image})")
        else:
            decoded[i] = image
            of_file = _width_and_height(file, image, size)
            sizes[of_file] += 1
            names.setdefault(of_file, name)
    if len(unreadable) > MAX_BAD_FRACTION * len(files):
        raise BadInput(
            f"{where}: {len(unreadable)} of {len(files)} images are unreadable (over 1%), "
            f"e.g. {unreadable[0]}; mend or remove them"
        )
    if size is None and len(names) > 1:
        examples = [f"{name} {width}x{height}" for (width, height), name in names.items()]
        raise BadInput(
            f"{where}: images of {len(names)} sizes, e.g. {examples[0]} and {examples[1]}; "
            "give them one size, or say image_size=<pixels>"
        )
    if unreadable:
        print(f"{what}: {len(unreadable)} unreadable image(s) skipped, e.g. {unreadable[0]}")
    _say_resized(sizes, size, what)
    return np.stack(list(decoded.values())), list(decoded)


def _as_it_is(file: Path | IO[bytes]) -> Path | IO[bytes]:
    """What opens a file for `decode_all`: a path, or what is in memory."""
    return file


def _width_and_height(file: Any, pixels: np.ndarray, size: int | None) -> tuple[int, int]:
    """Of an image (3, H, W) as its file has it; with `size` the pixels were resized."""
    if size is None:
        return pixels.shape[2], pixels.shape[1]
    with open_image(file) as image:
        return image.size


def _say_resized(sizes: Counter[tuple[int, int]], size: int | None, what: str) -> None:
    """Print how many images, of which widths and heights, were brought to `size`, if any were."""
    if size is None or set(sizes) == {(size, size)}:
        return
    widths, heights = (sorted(side) for side in zip(*sizes, strict=True))
    enlarged = sum(count for of_file, count in sizes.items() if min(of_file) < size)
    blurred = f"; {enlarged} of them were smaller, and are blurred" if enlarged else ""
    print(
        f"{what}: {sizes.total()} images of {len(sizes)} size(s), {widths[0]}x{heights[0]} to "
        f"{widths[-1]}x{heights[-1]}, brought to {size}x{size} (centre crop, antialiased bicubic)"
        f"{blurred}"
    )


def _read_folder(path: Path, what: str, size: int | None) -> np.ndarray:
    walk = Walk(f"{what}={path}")
    images = list_images(path, walk)
    if left_out := walk.summary():
        print(f"{walk.setting}: left out {left_out}")
    files = [(printable(str(file.relative_to(path))), file) for file in images]
    return _decode_files(files, f"{what}={path}", what, size)[0]


def _read_npz(path: Path, what: str) -> tuple[np.ndarray, np.ndarray | None]:
    where = f"{what}={path}"
    try:
        # a pickle inside could run code
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in ("arr_0", "arr_1") if name in file.files}
    except Exception as error:  # zipfile, zlib and numpy each have their own for a file cut short
        raise BadInput(f"{where}: not a whole npz ({type(error).__name__})") from None
    pixels, labels = arrays.get("arr_0"), arrays.get("arr_1")
    layout = "ADM's layout is arr_0 of uint8 (N, H, W, 3)"
    if pixels is None:
        raise BadInput(f"{where}: no arr_0; {layout}")
    right_shape = pixels.ndim == 4 and pixels.shape[-1] == 3 and len(pixels) > 0
    if pixels.dtype != np.uint8 or not right_shape:
        raise BadInput(f"{where}: arr_0 is {pixels.dtype} {pixels.shape}; {layout}")
    if labels is not None:
        whole = np.issubdtype(labels.dtype, np.integer)
        if labels.shape != (len(pixels),) or not whole:
            raise BadInput(
                f"{where}: arr_1 is {labels.dtype} {labels.shape}; "
                f"labels are {len(pixels)} whole numbers"
            )
        _check_labels(labels, where)
    return np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)), labels


def _read_parquet(path: Path, what: str, size: int | None) -> tuple[np.ndarray, np.ndarray | None]:
    where = f"{what}={path}"
    try:
        import pyarrow.parquet as parquet
    except ImportError:
        raise BadInput(
            f"{where}: parquet needs pyarrow; .venv/bin/pip install -e '.[hub]'"
        ) from None
    try:
        table = parquet.read_table(path)
        columns = {name: table[name].to_pylist() for name in table.column_names if name in WANTED}
    except Exception as error:  # whatever broken bytes lead its readers to
        raise BadInput(f"{where}: not a whole parquet file ({type(error).__name__})") from None
    column = next((name for name in IMAGE_COLUMNS if name in columns), None)
    if column is None:
        names = ", ".join(map(printable, table.column_names))
        raise BadInput(f"{where}: no image column among {names}")
    files = []
    for row, cell in enumerate(columns[column]):
        content = cell.get("bytes") if isinstance(cell, dict) else cell
        # what is no image becomes an empty file, which counts as unreadable
        file = io.BytesIO(content if isinstance(content, bytes) else b"")
        files.append((f"row {row}", file))
    pixels, kept = _decode_files(files, where, what, size)
    if "label" not in columns:
        return pixels, None
    stated = [columns["label"][row] for row in kept]
    if not all(isinstance(label, int) and abs(label) < 2**62 for label in stated):
        print(f"{what}: the labels are no whole numbers, and are not used")
        return pixels, None
    labels = np.array(stated)
    _check_labels(labels, where)
    return pixels, labels


def _check_labels(labels: np.ndarray, where: str) -> None:
    """Raises BadInput for labels that cannot be those of classes counted from 0."""
    if labels.min() < 0 or labels.max() >= MOST_CLASSES:
        raise BadInput(
            f"{where}: labels {labels.min()} to {labels.max()}; classes are counted from 0, "
            f"up to {MOST_CLASSES:,} of them"
        )
