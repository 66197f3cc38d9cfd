"""One image to pixels, whatever format, mode, depth, orientation and size it comes in: the one
decoder of every command.
"""

import errno
import warnings
from pathlib import Path
from typing import IO

import numpy as np
from PIL import ExifTags, Image, ImageOps, TiffImagePlugin

from benchmarks.core.errors import raise_if_stopped

# Pillow's remarks on a broken file would bury our one line
warnings.filterwarnings("ignore", module=r"PIL\.")
warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # see LARGEST

LARGEST = 80 * 10**6  # pixels of an image: a few broken bytes may ask for all memory there is
MAX_BAD_FRACTION = 0.01  # of the images of a set may be unreadable
# of image formats only: Pillow would start another program for PostScript
FORMATS = ("JPEG", "MPO", "PNG", "BMP", "WEBP", "GIF", "TIFF", "PPM", "AVIF", "JPEG2000")
LAST_OF_16_BITS = 65535
# a disk or a network that fails, and too many open files
OF_THE_MACHINE = (errno.EIO, errno.ESTALE, errno.EMFILE, errno.ENFILE, errno.ENOMEM)


class Unreadable(Exception):
    """Why an image cannot be decoded, in part of a line."""


def open_image(file: Path | IO[bytes]) -> Image.Image:
    """An image file of a known format, not yet decoded. Raises what Pillow raises."""
    Image.init()
    formats = [name for name in FORMATS if name in Image.OPEN]  # as this Pillow was built
    # a Targa file has no mark to be known by: any bytes might be taken for one
    if isinstance(file, Path) and file.suffix.lower() == ".tga":
        formats = ["TGA"]
    return Image.open(file, formats=formats)


def is_image(path: Path) -> bool:
    """Whether a file's first bytes are those of a known image format."""
    try:
        with open_image(path):
            return True
    except Exception:  # whatever a decoder makes of bytes that are none of its own
        return False


def decode(file: Path | IO[bytes], size: int | None = None) -> np.ndarray:
    """The pixels of a file as uint8 (3, H, W), as a viewer shows them.

    With `size` a square of that side, as `to_pixels`. Raises Unreadable; and OSError where it is
    the machine's fault, not the image's.
    """
    try:
        with open_image(file) as image:
            if image.width * image.height > LARGEST:
                raise ValueError(f"{image.width}x{image.height} pixels, over {LARGEST // 10**6}M")
            if size is not None:
                return to_pixels(image, size)
            return np.asarray(to_rgb(image)).transpose(2, 0, 1)
    # Pillow's decoders raise whatever a broken file leads them to
    except Exception as error:
        raise_if_stopped(error)
        if isinstance(error, OSError) and error.errno in OF_THE_MACHINE:
            raise  # another time it may be read: it must not be left out for good
        reason = " ".join(str(error).split())
        name = type(error).__name__
        raise Unreadable(name if not reason else f"{name}: {reason[:80]}") from None


def to_rgb(image: Image.Image) -> Image.Image:
    """Any Pillow mode to 8-bit RGB, upright; transparency is laid over white.

    Raises ValueError for values whose range cannot be known.
    """
    tags = getattr(image, "tag_v2", {})  # of a TIFF
    white_is_zero = tags.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == 0
    image = _upright(image)
    if image.mode == "F":
        raise ValueError("floating-point values have no fixed range; save it with 8 bits")
    if image.mode == "I" and image.format not in ("PNG", "PPM"):  # of these it has 16 bits
        raise ValueError("32-bit values have no fixed range; save it with 8 bits")
    if image.mode == "I" or image.mode.startswith("I;16"):
        return _from_16_bits(image, inverted=white_is_zero)
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def _from_16_bits(image: Image.Image, *, inverted: bool) -> Image.Image:
    """Grey of 0 to 65535, where Pillow itself would clip at 255; `inverted` where 0 is white."""
    grey = np.asarray(image).astype(np.float64)
    if grey.min() < 0 or grey.max() > LAST_OF_16_BITS:
        raise ValueError("values beyond 16 bits; save it with 8 bits")
    if inverted:
        grey = LAST_OF_16_BITS - grey
    return Image.fromarray(np.rint(grey / 257).astype(np.uint8)).convert("RGB")


def _upright(image: Image.Image) -> Image.Image:
    """The image turned as its EXIF orientation says, where it has one."""
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # damaged EXIF is ignored, as viewers do
        return image
    return ImageOps.exif_transpose(image) if orientation in range(2, 9) else image


def to_pixels(image: Image.Image, size: int) -> np.ndarray:
    """Centre crop to a square and antialiased bicubic resize; returns uint8 (3, size, size).

    Pillow's filter is antialiased, unlike torch's default: aliasing moves feature distances
    (arXiv 2104.11222).
    """
    image = ImageOps.fit(to_rgb(image), (size, size), method=Image.Resampling.BICUBIC)
    return np.asarray(image).transpose(2, 0, 1)
