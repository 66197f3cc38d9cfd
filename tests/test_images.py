"""Single images: the embedded data set's, byte for byte, and files of any mode as pixels."""

import errno
import hashlib
import io
import multiprocessing
import os
import signal
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from benchmarks.core.errors import BadInput
from benchmarks.images import decode_all as decode_all_module
from benchmarks.images import procedural
from benchmarks.images.decode import decode, to_pixels
from benchmarks.images.decode_all import decode_all

# --- procedural


@pytest.mark.parametrize(
    "size, stream, pinned",
    [
        (32, "train", "a143d9dd8290be3e"),
        (64, "train", "89bafa2cd09f37a9"),
        (64, "holdout", "3294aadb13119f8d"),
    ],
)
def test_procedural_bytes_are_the_same_on_every_machine(size, stream, pinned):
    images, labels = procedural.generate(50, size, stream=stream)
    assert images.dtype == np.uint8 and images.shape == (50, 3, size, size)
    assert labels.tolist() == [i % 10 for i in range(50)]
    assert hashlib.sha256(images.tobytes()).hexdigest()[:16] == pinned


def test_procedural_images_depend_on_index_and_seed_alone():
    few, many = procedural.generate(20, 32)[0], procedural.generate(200, 32, chunk=3)[0]
    assert np.array_equal(few, many[:20])
    assert not np.array_equal(few, procedural.generate(20, 32, seed=1)[0])
    assert len({image.tobytes() for image in many}) == 200


def test_the_32_px_image_is_the_64_px_one_halved():
    small = procedural.generate(20, 32)[0].astype(int)
    large = procedural.generate(20, 64)[0].astype(int)
    halved = large.reshape(20, 3, 32, 2, 32, 2).mean(axis=(3, 5))
    assert np.abs(small - halved).max() <= 1


# --- decoding


def grey_image(mode: str) -> tuple[Image.Image, np.ndarray]:
    """A ramp of greys in the given mode, and its values 0..255."""
    grey = np.linspace(0, 255, 64 * 64).reshape(64, 64)
    if mode == "I;16":
        return Image.fromarray((grey * 257).astype(np.uint16)), grey
    plain = Image.fromarray(grey.astype(np.uint8))
    if mode in ("P", "CMYK"):  # Pillow reaches these from RGB only
        plain = plain.convert("RGB")
    return plain.convert(mode), grey


@pytest.mark.parametrize("mode", ["L", "RGBA", "LA", "P", "CMYK", "1", "I;16"])
def test_every_mode_becomes_rgb(tmp_path, mode):
    image, grey = grey_image(mode)
    path = tmp_path / ("x.tif" if mode == "CMYK" else "x.png")
    image.save(path)
    pixels = to_pixels(Image.open(path), 32)
    assert pixels.shape == (3, 32, 32) and pixels.dtype == np.uint8
    if mode != "1":
        expected = grey.reshape(32, 2, 32, 2).mean(axis=(1, 3))
        error = np.abs(pixels.astype(float) - expected).mean()
        assert error < 6, "brightness survives the conversion"


def test_sixteen_bits_of_which_nought_is_white_are_not_shown_inverted(tmp_path):
    """Pillow inverts such images of eight bits, and no others."""
    image, grey = grey_image("I;16")
    image.save(tmp_path / "x.tif", tiffinfo={262: 0})
    pixels = to_pixels(Image.open(tmp_path / "x.tif"), 64)
    assert np.abs(pixels - (255 - grey)).max() <= 1


def test_transparency_lies_over_white():
    clear = Image.new("RGBA", (8, 8), (255, 0, 0, 0))
    assert to_pixels(clear, 8).min() == 255


def test_the_crop_is_central_and_the_resize_antialiased():
    wide = np.zeros((64, 128, 3), np.uint8)
    wide[:, 32:96] = 200  # only the central square is grey
    cropped = to_pixels(Image.fromarray(wide), 32)
    assert (cropped[:, :, 2:-2] == 200).all()
    assert cropped.min() > 150, "the filter sees a little past the crop's edge"
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 255
    shrunk = to_pixels(Image.fromarray(stripes), 16).astype(int)
    assert np.abs(shrunk - 128).max() < 40, "aliasing would give 0 or 255"


# --- many at once


def _jpeg(i: int) -> io.BytesIO:
    file = io.BytesIO()
    Image.fromarray(np.full((9, 12, 3), i, np.uint8)).save(file, "JPEG")
    return file


@pytest.fixture
def processes(monkeypatch):
    monkeypatch.setattr(decode_all_module, "MANY", 4)
    monkeypatch.setattr(decode_all_module, "AT_ONCE", 3)
    monkeypatch.setattr(decode_all_module, "own_cores", lambda: [0, 1])


def test_processes_decode_what_one_does_in_the_same_order(processes):
    files = [partial(_jpeg, i) for i in range(40)]
    files[7] = partial(io.BytesIO, b"no image")
    images = list(decode_all(files, 8))
    assert [type(image) for image in images].count(str) == 1 and "Unidentified" in images[7]
    assert not multiprocessing.active_children()  # none is left behind
    for image, file in zip(images, files, strict=True):
        if isinstance(image, np.ndarray):
            assert np.array_equal(image, decode(file(), 8)) and image.shape == (3, 8, 8)
    assert [int(image[0, 0, 0]) for image in images[:7]] == pytest.approx(range(7), abs=2)


def test_a_killed_process_ends_decoding_in_one_line(processes):
    files = [partial(_jpeg, i) for i in range(40)]
    files[20] = lambda: os.kill(os.getpid(), signal.SIGKILL)
    with pytest.raises(BadInput, match="a process that decoded images was killed") as refused:
        list(decode_all(files, 8))
    assert "\n" not in str(refused.value)


def _fails_with(number: int) -> io.BytesIO:
    raise OSError(number, os.strerror(number))


@pytest.mark.parametrize("many", [4, 1000], ids=["in processes", "in one"])
def test_a_failing_disk_is_no_unreadable_image(many, processes, monkeypatch):
    """Left out, it would be missing from the data set for good."""
    monkeypatch.setattr(decode_all_module, "MANY", many)
    files = [partial(_jpeg, i) for i in range(40)]
    files[5] = partial(_fails_with, errno.EIO)
    with pytest.raises(OSError) as error:
        list(decode_all(files, 8))
    assert error.value.errno == errno.EIO
    files[5] = partial(_fails_with, errno.ENOENT)  # it was removed since it was listed
    with pytest.raises(OSError):
        list(decode_all(files, 8))


def test_processes_are_few_and_none_where_none_may_be_started(monkeypatch):
    monkeypatch.setattr(decode_all_module, "own_cores", lambda: list(range(128)))
    assert decode_all_module._processes() == decode_all_module.MOST
    monkeypatch.setattr(decode_all_module, "own_cores", lambda: [0])
    assert decode_all_module._processes() == 0
    monkeypatch.setattr(decode_all_module, "own_cores", lambda: [0, 1])
    assert decode_all_module._processes() == 2
    monkeypatch.setattr(multiprocessing, "current_process", lambda: SimpleNamespace(daemon=True))
    assert decode_all_module._processes() == 0
