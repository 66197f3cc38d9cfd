"""PNGs small enough to travel with the code: fewer colours, if need be fewer pixels."""

import io
from pathlib import Path

from PIL import Image

from benchmarks.core.errors import BadInput
from benchmarks.core.files import atomic_file

FIGURES = ("fd_vs_gflops", "fd_vs_latency")  # shown where nothing else is asked for
FIGURE_BYTES = 200_000  # a published figure is smaller than this
GRID_BYTES = 300_000  # and a grid than this: samples do not compress as lines do
PALETTE_PIXELS = 1_000_000  # the palette of a larger image is fitted to about so many of its pixels
NEARLY_WHITE = 249  # of 255, in every channel: what white and its neighbours average to


def shrink(source: Path, target: Path, limit: int) -> Path:
    """Write the image `source` to `target`, as a PNG of fewer than `limit` bytes, atomically.

    256 colours, else 128, both fitted to the image; only where neither is enough, fewer pixels.
    Transparency becomes white. An image that has a palette already and is small enough is copied
    as it is, so that shrinking twice changes nothing. `target` may be `source`; it is returned.
    Raises BadInput for a file that is not a readable image.
    """
    try:
        image = Image.open(source, formats=["PNG"])
        image.load()
    except (OSError, SyntaxError) as error:
        why = type(error).__name__
        raise BadInput(f"{source} is not a readable image ({why}); draw it anew") from None
    if image.format == "PNG" and image.mode == "P" and source.stat().st_size < limit:
        data = source.read_bytes()
    else:
        data = _small(_on_white(image), limit)
    with atomic_file(target) as temporary:
        temporary.write_bytes(data)
    return target


def _on_white(image: Image.Image) -> Image.Image:
    """An RGB image, transparent parts over white."""
    image = image.convert("RGBA")
    white = Image.new("RGBA", image.size, "white")
    white.alpha_composite(image)
    return white.convert("RGB")


def _small(image: Image.Image, limit: int) -> bytes:
    """The bytes of a PNG of an RGB image, with as many colours and pixels as fit below `limit`.

    ValueError where not even a few pixels fit.
    """
    while max(image.size) > 16:
        for colours in (256, 128):
            data = _encoded(image, colours)
            if len(data) < limit:
                return data
        smaller = [max(1, round(0.85 * side)) for side in image.size]
        image = image.resize(smaller, Image.Resampling.LANCZOS)
    raise ValueError(f"no image is left of what was to fit into {limit} bytes")


def _encoded(image: Image.Image, colours: int) -> bytes:
    """The bytes of a PNG of an RGB image in a palette that is fitted to it.

    The palette covers the range of colours first (`MAXCOVERAGE`). Split by count alone it would
    dull the rare saturated ones, and samples under strong guidance would look better than they are.
    """
    stride = max(1, round((image.width * image.height / PALETTE_PIXELS) ** 0.5))
    sides = [max(1, side // stride) for side in image.size]
    thinned = image.resize(sides, Image.Resampling.NEAREST)
    fitted = thinned.quantize(colours, method=Image.Quantize.MAXCOVERAGE, kmeans=3)
    _keep_white(fitted)
    if stride > 1:
        fitted = image.quantize(palette=fitted, dither=Image.Dither.NONE)
    packed = io.BytesIO()
    fitted.save(packed, "PNG", optimize=True)
    return packed.getvalue()


def _keep_white(palette: Image.Image) -> None:
    """In place, a palette's nearly white colours to white: backgrounds stay white."""
    values = palette.getpalette() or []
    colours = [values[i : i + 3] for i in range(0, len(values), 3)]
    colours = [[255] * 3 if min(colour) >= NEARLY_WHITE else colour for colour in colours]
    palette.putpalette([value for colour in colours for value in colour])
