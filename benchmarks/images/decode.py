"""One image to pixels, whatever mode and size it comes in."""

import numpy as np
from PIL import Image, ImageOps

MAX_BAD_FRACTION = 0.01  # of the images of a set may be unreadable


def to_rgb(image: Image.Image) -> Image.Image:
    """Any Pillow mode to 8-bit RGB; transparency is laid over white."""
    if image.mode in ("F", "I") or image.mode.startswith("I;16"):
        # Pillow would clip a grey of mode I at 255, but those of a 16-bit PNG go to 65535
        grey = np.asarray(image).astype(np.float64)
        if image.mode != "F":
            grey = grey / 257  # 0..65535 -> 0..255
        return Image.fromarray(np.clip(np.rint(grey), 0, 255).astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def to_pixels(image: Image.Image, size: int) -> np.ndarray:
    """Centre crop to a square and antialiased bicubic resize; returns uint8 (3, size, size).

    Pillow's filter is antialiased, unlike torch's default: aliasing moves feature distances
    (arXiv 2104.11222).
    """
    image = ImageOps.fit(to_rgb(image), (size, size), method=Image.Resampling.BICUBIC)
    return np.asarray(image).transpose(2, 0, 1)
