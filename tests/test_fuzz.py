"""Broken files of every kind, made from whole ones with a fixed seed: each is read or refused in
one line, with no other exception, no long wait and no memory beyond what its pixels take.

`make test-faults` makes two thousand eight hundred; the ordinary tests a tenth of them.
"""

import io
import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ALL
from PIL import Image
from tally import tried

from benchmarks.core.errors import BadInput
from benchmarks.core.store import read_tensors, write_tensors
from benchmarks.images import import_export
from benchmarks.images.decode import LARGEST, Unreadable, decode
from metrics import speed

OF_A_KIND = 200 if ALL else 20
LONGEST = 30.0  # seconds of one file
CPU = torch.device("cpu")
MEMORY = 2 * 3 * LARGEST  # bytes: an image of the most pixels that are decoded, twice
FORMATS = ["JPEG", "PNG", "BMP", "WEBP", "GIF", "TIFF", "PPM", "JPEG2000", "MPO", "TGA", "AVIF"]
KINDS = [*FORMATS, "npz", "parquet", "safetensors"]  # 14, so 2,800 files in all


def pixels(seed: int) -> np.ndarray:
    """Sixteen random images of 16 px, (N, H, W, 3) uint8."""
    return np.random.default_rng(seed).integers(0, 256, (16, 16, 16, 3), dtype=np.uint8)


def whole(kind: str, folder: Path) -> bytes:
    """A good file of a kind."""
    images = pixels(0)
    if kind in FORMATS:
        file = io.BytesIO()
        Image.init()  # registers the formats of this Pillow
        if kind not in Image.SAVE:
            pytest.skip(f"this Pillow writes no {kind}")
        # a file of this format holds several images
        more = {"save_all": True, "append_images": [Image.fromarray(images[1])]}
        Image.fromarray(images[0]).save(file, format=kind, **(more if kind == "MPO" else {}))
        return file.getvalue()
    path = folder / f"whole.{kind}"
    if kind == "npz":
        np.savez_compressed(path, arr_0=images, arr_1=np.arange(16) % 4)
    elif kind == "parquet":
        arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        cells = []
        for image in images:
            file = io.BytesIO()
            Image.fromarray(image).save(file, format="PNG")
            cells.append({"bytes": file.getvalue(), "path": None})
        table = arrow.table({"image": cells, "label": [i % 4 for i in range(16)]})
        parquet.write_table(table, path)
    else:
        write_tensors(path, "key", {"a": torch.arange(60.0), "b": torch.ones(3, 5)}, text="x")
    return path.read_bytes()


def broken(content: bytes, rng: np.random.Generator) -> bytes:
    """The bytes cut short, changed here and there, zeroed in part, or with other ones between."""
    data = bytearray(content)
    place = int(rng.integers(len(data)))
    length = int(rng.integers(1, 64))
    match rng.integers(6):
        case 0:
            del data[place:]
        case 1:
            for at in rng.integers(len(data), size=rng.integers(1, 9)):
                data[at] ^= int(rng.integers(1, 256))
        case 2:  # headers, where sizes and types stand
            for at in rng.integers(min(64, len(data)), size=rng.integers(1, 5)):
                data[at] = int(rng.integers(256))
        case 3:
            data[place : place + length] = bytes(len(data[place : place + length]))
        case 4:
            data[place:place] = rng.bytes(length)
        case 5:
            data[place : place + length] = b"\xff" * len(data[place : place + length])
    return bytes(data)


def read_image(path: Path) -> None:
    """Decode; only `Unreadable` may be raised."""
    try:
        image = decode(path)
    except Unreadable as error:
        assert "\n" not in str(error) and len(str(error)) < 200
    else:
        assert image.dtype == np.uint8 and image.ndim == 3 and image.shape[0] == 3


def read_set(path: Path) -> None:
    """Read a set of images; only a BadInput of one line may be raised."""
    try:
        images, labels = import_export.read(path, "IMAGES")
    except BadInput as error:
        assert "\n" not in str(error) and str(path) in str(error)
    else:
        assert images.dtype == np.uint8 and images.ndim == 4
        assert labels is None or (labels.shape == (len(images),) and labels.min() >= 0)


def read_cache(path: Path) -> None:
    """Read tensors: those that were written, or none."""
    read = read_tensors(path, "key")
    if read is not None:
        tensors, texts = read
        assert torch.equal(tensors["a"], torch.arange(60.0)) and texts["text"] == "x"


@pytest.mark.parametrize("kind", KINDS)
def test_a_broken_file_is_read_or_refused_in_one_line(tmp_path, kind):
    rng = np.random.default_rng(KINDS.index(kind))
    content = whole(kind, tmp_path)
    readers: dict[str, Callable[[Path], None]] = {"npz": read_set, "parquet": read_set}
    read = readers.get(kind, read_cache if kind == "safetensors" else read_image)
    path = tmp_path / f"broken.{kind.lower()}"
    path.write_bytes(content)
    read(path)
    speed.reset_peak_memory(CPU)
    before = speed.peak_memory_mb(CPU)
    for _ in range(OF_A_KIND):
        path.write_bytes(broken(content, rng))
        with tried(f"a broken {kind} file"):
            began = time.perf_counter()
            read(path)
            assert time.perf_counter() - began < LONGEST
    assert (speed.peak_memory_mb(CPU) - before) * 2**20 < MEMORY


def test_an_image_whose_header_asks_for_all_memory_is_refused(tmp_path):
    path = tmp_path / "bomb.png"
    Image.new("1", (10_000, 9_000)).save(path)
    with pytest.raises(Unreadable, match="10000x9000 pixels"):
        decode(path)


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "x.png")
    with pytest.raises(BadInput, match="no images in it"):
        import_export.read(tmp_path, "IMAGES")
    with pytest.raises(BadInput, match="no such file"):
        import_export.read(tmp_path / "x.png", "IMAGES")
