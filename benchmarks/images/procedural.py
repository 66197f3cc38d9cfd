"""The embedded data set: ten classes of coloured, textured shapes, in integer arithmetic alone.

The same (seed, stream, index) gives the same bytes on every machine: random numbers come from
splitmix64 (Steele, Lea & Flood 2014), rotations from a fixed-point table, antialiasing from box
sums over a 128 x 128 canvas. Images of one index at 32 and at 64 px are box averages (each rounded
once) of the same canvas.
"""

import numpy as np

CANVAS = 128  # pixels a side
# name, hue (0..1535: red 0, green 512, blue 1024), shape, texture
CLASSES = [
    ("red-disc", 0, "disc", "solid"),
    ("orange-square", 140, "square", "stripes"),
    ("yellow-triangle", 270, "triangle", "solid"),
    ("green-ring", 470, "ring", "solid"),
    ("mint-cross", 620, "cross", "checker"),
    ("cyan-bar", 768, "bar", "stripes"),
    ("azure-dome", 910, "dome", "dots"),
    ("blue-dumbbell", 1040, "dumbbell", "solid"),
    ("violet-frame", 1190, "frame", "checker"),
    ("pink-moon", 1380, "moon", "dots"),
]
WEIGHTS_SEED = 7919  # the shipped weights were trained on images of this seed
CLASS_NAMES = [name for name, *_ in CLASSES]
STREAMS = {"train": 1, "reference": 2, "holdout": 3}  # one for each split: disjoint
_HUE_JITTER = 45  # less than half the least gap between two classes' hues
# round(16384 * sin(pi/2 * k/16)), k = 0..16; literals, so that no machine's libm has a say
_QUARTER = [
    0, 1606, 3196, 4756, 6270, 7723, 9102, 10394, 11585,
    12665, 13623, 14449, 15137, 15679, 16069, 16305, 16384,
]  # fmt: skip
_HALF = _QUARTER[:16] + _QUARTER[:0:-1]
_SINE = np.array(_HALF + [-value for value in _HALF], np.int32)  # 64 steps of a full turn


def _splitmix64(x: np.ndarray) -> np.ndarray:
    """A well-mixed function of 64-bit counters; arithmetic is modulo 2^64, so overflow is meant."""
    with np.errstate(over="ignore"):
        z = x + np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))


class _Dice:
    """Counter-based random integers: the k-th throw of image i is a pure function of (seed, stream,
    i, k).
    """

    def __init__(self, seed: int, stream: str, indices: np.ndarray):
        base = _splitmix64(np.array([seed * 16 + STREAMS[stream]], np.uint64))
        self.state = _splitmix64(base ^ indices.astype(np.uint64))
        self.throws = 0

    def __call__(self, low: int, high: int) -> np.ndarray:
        """Integers in [low, high), shape (n, 1, 1)."""
        self.throws += 1
        raw = _splitmix64(self.state ^ _splitmix64(np.array([self.throws], np.uint64)))
        # 53 bits, so that they fit a signed integer; the remainder's bias is below 1e-12
        values = low + (raw >> np.uint64(11)).astype(np.int64) % (high - low)
        return values.astype(np.int32)[:, None, None]


def _colour(hue: np.ndarray, saturation: np.ndarray) -> np.ndarray:
    """HSV to RGB at full value, in integers.

    Hue in 0..1535 and saturation in 0..255, (n, 1, 1) each, give (n, 3, 1, 1) in 0..255.
    """
    hue = hue % 1536  # six sectors of 256
    sector, f = hue >> 8, hue & 255
    full, p = np.full_like(f, 255), 255 - saturation
    q, t = 255 - saturation * f // 255, 255 - saturation * (255 - f) // 255
    red = np.choose(sector, [full, q, p, p, t, full])
    green = np.choose(sector, [t, full, full, q, p, p])
    blue = np.choose(sector, [p, p, t, full, full, q])
    return np.stack([red, green, blue], axis=1)


def _inside(shape: str, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Mask of a shape in its own frame, where the unit circle has radius 256."""
    box, r2 = np.maximum(abs(u), abs(v)), u * u + v * v
    match shape:
        case "disc":
            return r2 < 230 * 230
        case "square":
            return box < 190
        case "triangle":
            return (v < 150) & (v > 2 * abs(u) - 250)
        case "ring":
            return (r2 < 250 * 250) & (r2 > 140 * 140)
        case "cross":
            return (np.minimum(abs(u), abs(v)) < 80) & (box < 240)
        case "bar":
            return (abs(v) < 90) & (abs(u) < 256)
        case "dome":
            return (r2 < 256 * 256) & (v < 40)
        case "dumbbell":
            return ((abs(u) - 140) ** 2 + v * v < 115 * 115) | ((abs(u) < 140) & (abs(v) < 35))
        case "frame":
            return (box < 215) & (box > 110)
        case _:  # moon
            return (r2 < 250 * 250) & ((u - 110) ** 2 + v * v > 200 * 200)


def _dark(texture: str, u: np.ndarray, v: np.ndarray, period: np.ndarray) -> np.ndarray:
    """Mask of a texture's dark half; `period` in units of the shape's frame."""
    if texture == "stripes":
        return (u // period) % 2 == 0
    if texture == "checker":
        return (u // period + v // period) % 2 == 0
    if texture == "dots":
        half = period // 2
        return (u % period - half) ** 2 + (v % period - half) ** 2 < (period * 3 // 10) ** 2
    return np.zeros(np.broadcast(u, period).shape, bool)


def _render_class(label: int, dice: _Dice) -> np.ndarray:
    """Canvases (n, 3, 128, 128), int32 in 0..255, of one class.

    The order of the throws is part of the data set: another order makes other images.
    """
    _, hue, shape, texture = CLASSES[label]
    # odd coordinates -127..127: no pixel sits on the centre
    axis = 2 * np.arange(CANVAS, dtype=np.int32) - (CANVAS - 1)
    x, y = axis[None, None, :], axis[None, :, None]

    # a background of one hue, shaded along a random slope
    back_hue, back_sat, back_value = dice(0, 1536), dice(0, 110), dice(40, 216)
    slope_x, slope_y = dice(-40, 41), dice(-40, 41)
    shade = np.clip(back_value + (slope_x * x + slope_y * y) // 128, 0, 255)
    canvas = _colour(back_hue, back_sat) * shade[:, None] // 255

    # the shape's own frame: moved, turned and scaled; sines have 14 bits behind the point
    dx, dy = x - dice(-38, 39), y - dice(-38, 39)
    radius, turn = dice(52, 97), dice(0, 64)
    cos, sin = _SINE[(turn + 16) % 64], _SINE[turn]
    u = (dx * cos + dy * sin) * 256 // (radius * 16384)
    v = (dy * cos - dx * sin) * 256 // (radius * 16384)

    # the class's hue, jittered; the texture's dark half is at two fifths of the value
    ink_hue = hue + dice(-_HUE_JITTER, _HUE_JITTER + 1)
    ink_sat, ink_value = dice(190, 256), dice(180, 256)
    bright = np.where(_dark(texture, u, v, dice(90, 141)), ink_value * 2 // 5, ink_value)
    ink = _colour(ink_hue, ink_sat) * bright[:, None] // 255
    return np.where(_inside(shape, u, v)[:, None], ink, canvas)


def _shrink(canvas: np.ndarray, size: int) -> np.ndarray:
    """Box average with rounding, (n, 3, 128, 128) -> (n, 3, size, size) uint8."""
    k = CANVAS // size
    blocks = canvas.reshape(len(canvas), 3, size, k, size, k).sum(axis=(3, 5))
    return ((blocks + k * k // 2) // (k * k)).astype(np.uint8)


def generate(
    count: int, size: int, *, seed: int = 0, stream: str = "train", chunk: int = 8
) -> tuple[np.ndarray, np.ndarray]:
    """The first `count` images of a stream, in label order 0..9, 0..9, ...

    Returns images (count, 3, size, size) uint8 and labels (count,) int64. Streams ("train",
    "reference", "holdout") are disjoint. `chunk` images are rendered together, which changes memory
    only. Raises ValueError for a size that does not divide 128 or an unknown stream.
    """
    if size < 8 or CANVAS % size:
        raise ValueError(f"data.image_size={size}: procedural images are made at 32, 64 or 128 px")
    if stream not in STREAMS:
        raise ValueError(f"unknown stream {stream!r}: one of {', '.join(STREAMS)}")
    images = np.empty((count, 3, size, size), np.uint8)
    labels = np.arange(count) % len(CLASSES)
    for label in range(len(CLASSES)):
        mine = np.flatnonzero(labels == label)
        for start in range(0, len(mine), chunk):
            at = mine[start : start + chunk]
            images[at] = _shrink(_render_class(label, _Dice(seed, stream, at)), size)
    return images, labels
