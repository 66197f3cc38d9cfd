"""Single images: the embedded data set's, byte for byte, and files of any mode as pixels."""

import hashlib

import numpy as np
import pytest
from PIL import Image

from benchmarks.images import procedural
from benchmarks.images.decode import to_pixels

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
