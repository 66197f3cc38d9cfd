"""What a single setting may be: types with ranges, for the groups of `schema.py`,
`model_schema.py` and others.

A type's description is what the line about a wrong value says it must be.
"""

from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError

from benchmarks.core.text import LONGEST_NAME

ExportKind = Literal["png", "npz"]  # what samples can be written as
EXPORT_KINDS = get_args(ExportKind)
MOST = 10**9  # images, steps, entries: beyond it a typing error, or more than any disk holds
MOST_STEPS = 10_000  # of sampling: beyond it a typing error, or a grid that fills the memory
LARGEST_BATCH = 2**20
WIDEST = 2**16  # of a network: beyond it a typing error, or more than any memory holds
# Sampling divides and multiplies by these; beyond them float32 overflows, after a whole training.
STRONGEST, LEAST_FACTOR, MOST_FACTOR = 1000, 1e-3, 1e3


def plain_text(text: str) -> str:
    """Raises for text that is blank, or would break a line of a terminal or of a report."""
    if not text.strip() or any(ord(c) < 32 or ord(c) == 127 for c in text):
        raise PydanticCustomError("text", "must be text")
    return text


def one_component(text: str) -> str:
    """Raises for a name that as a folder would lie elsewhere, or be hidden."""
    plain_text(text)
    if not text.isprintable():  # it would turn a line around, say
        raise PydanticCustomError("name", "must be printable")
    if text.startswith(".") or "/" in text or "\\" in text or len(text.encode()) > LONGEST_NAME:
        raise PydanticCustomError("name", "must be one component of a path")
    return text


def whole_as_text(value: Any) -> Any:
    """A whole number as text: `name=2024` is a name, too."""
    is_whole = isinstance(value, int) and not isinstance(value, bool)
    return str(value) if is_whole else value


def as_list(value: Any) -> Any:
    """A list, or a list of the one that was given."""
    return value if isinstance(value, list) else [value]


def null_as_list(value: Any) -> Any:
    """As `as_list`, and null is an empty list."""
    return [] if value is None else as_list(value)


def ascends_from_1(scales: list[float]) -> list[float]:
    """Raises for scales that do not ascend from 1. None at all will do."""
    if scales and (scales[0] != 1 or scales != sorted(set(scales))):
        raise PydanticCustomError("scales", "must ascend from 1")
    return scales


def interval(times: list[float]) -> list[float]:
    """Raises for two times that are not in order."""
    if times[0] >= times[1]:
        raise PydanticCustomError("interval", "must ascend")
    return times


# --- text

Text = Annotated[str, AfterValidator(plain_text), Field(description="a name")]
TextOrNull = Annotated[Text | None, Field(description="a name, or null")]
Path = Annotated[Text, Field(description="a path")]
File = Annotated[Text | None, Field(description="a file, or null for the usual one")]
Name = Annotated[
    str,
    BeforeValidator(whole_as_text),
    AfterValidator(one_component),
    Field(
        description=f"the name of one folder, {LONGEST_NAME} bytes at most: no separators, no "
        "dot in front"
    ),
]
Target = Annotated[
    str, Field(pattern=r"^\w+(\.\w+)+$", description="a class, such as models.dit.DiT")
]
Device = Annotated[
    str,
    Field(
        pattern=r"^(auto|cpu|cuda(:\d{1,3})?)$",
        description="one of auto, cpu, cuda, or cuda:N for the card of that number, from 0 up",
    ),
]

# --- whole numbers

Count = Annotated[int, Field(ge=1, le=MOST, description=f"a whole number from 1 to {MOST:,}")]
StepCount = Annotated[
    int, Field(ge=1, le=MOST_STEPS, description=f"a whole number from 1 to {MOST_STEPS:,}")
]
Batch = Annotated[
    int, Field(ge=1, le=LARGEST_BATCH, description=f"a whole number from 1 to {LARGEST_BATCH:,}")
]
CountOrNull = Annotated[
    Count | None, Field(description=f"a whole number from 1 to {MOST:,}, or null for all")
]
# a distance between sets of images needs a covariance, and that needs two
Images = Annotated[int, Field(ge=2, le=MOST, description=f"a whole number from 2 to {MOST:,}")]
Side = Annotated[int, Field(ge=8, le=4096, description="a whole number from 8 to 4096, in pixels")]
Width = Annotated[int, Field(ge=1, le=WIDEST, description=f"a whole number from 1 to {WIDEST:,}")]
Depth = Annotated[int, Field(ge=1, le=1000, description="a whole number from 1 to 1000")]
# torch's generators take 64 bits
Seed = Annotated[int, Field(ge=0, le=2**64 - 1, description="a whole number from 0 to 2^64 - 1")]
# of procedural images, which use four bits of the 64 themselves
DataSeed = Annotated[
    int, Field(ge=0, le=2**60 - 1, description="a whole number from 0 to 2^60 - 1")
]
# of an autoencoder, which takes the next number, too
NextSeed = Annotated[
    int, Field(ge=0, le=2**64 - 2, description="a whole number from 0 to 2^64 - 2")
]
Entries = Annotated[
    Annotated[int, Field(ge=2, le=2**16)] | None,
    Field(description="a whole number from 2 to 65536, or null for a codebook as it is"),
]
BatchOrAuto = Annotated[
    Batch | Literal["auto"],
    Field(description=f"a whole number from 1 to {LARGEST_BATCH:,}, or auto"),
]

# --- numbers

Positive = Annotated[float, Field(gt=0, description="a number above 0")]
NotNegative = Annotated[float, Field(ge=0, description="a number from 0 up")]
Fraction = Annotated[float, Field(ge=0, le=1, description="a number from 0 to 1")]
# at 1 nothing would ever be learned, warmed up or averaged
BelowOne = Annotated[float, Field(ge=0, lt=1, description="a number from 0 up and below 1")]
# Of a budget in any unit: the largest trainings there are took some 1e26 FLOPs. See also
# `schema.MOST_BUDGET`.
Budget = Annotated[float, Field(gt=0, le=1e26, description="a number above 0, 1e26 at most")]
Decay = Annotated[float, Field(ge=0, le=1000, description="a number from 0 to 1000")]
Guidance = Annotated[float, Field(ge=0, le=STRONGEST)]
Factor = Annotated[
    Annotated[float, Field(ge=LEAST_FACTOR, le=MOST_FACTOR)] | None,
    Field(description=f"a number from {LEAST_FACTOR} to {MOST_FACTOR:g}, or null"),
]
Moment = Annotated[
    NotNegative | None, Field(description="seconds since the epoch, or null for no end")
]

# --- lists

Steps = Annotated[
    list[StepCount],
    BeforeValidator(as_list),
    Field(
        min_length=1,
        description=f"a list of whole numbers from 1 to {MOST_STEPS:,}, such as steps=[4,16,64]",
    ),
]
StepsOrNull = Annotated[
    list[StepCount] | None,
    BeforeValidator(null_as_list),
    Field(description=f"a list of whole numbers from 1 to {MOST_STEPS:,}, or null for all"),
]
Seeds = Annotated[
    list[Seed],
    BeforeValidator(as_list),
    Field(
        min_length=1,
        description="a list of whole numbers from 0 to 2^64 - 1, such as sampling_seeds=[0,1,2]",
    ),
]
Sides = Annotated[
    list[Side],
    BeforeValidator(null_as_list),
    Field(description="a list of whole numbers from 8 to 4096, such as +sides=[96,128]"),
]
Scales = Annotated[
    list[Guidance],
    BeforeValidator(as_list),
    Field(
        description=f"a list of numbers from 0 to {STRONGEST}, such as guidance=[1,2]; 1 is none"
    ),
]
TunedScales = Annotated[
    list[Guidance],
    BeforeValidator(null_as_list),
    AfterValidator(ascends_from_1),
    Field(
        description=f"numbers that ascend from 1, {STRONGEST} at most, such as "
        "tune.guidance=[1,2,4]; [] tunes nothing"
    ),
]
Snapshots = Annotated[
    list[Annotated[float, Field(gt=0, lt=1)]],
    Field(description="a list of fractions of the budget, above 0 and below 1"),
]
Betas = Annotated[
    list[BelowOne],
    Field(min_length=2, max_length=2, description="two numbers from 0 up and below 1"),
]
Interval = Annotated[
    Annotated[list[Fraction], Field(min_length=2, max_length=2), AfterValidator(interval)] | None,
    Field(description="two numbers, 0 <= low < high <= 1, or null"),
]
Channels = Annotated[
    list[Width],
    Field(
        min_length=1,
        max_length=8,
        description=f"a list of whole numbers from 1 to {WIDEST:,}, one a resolution, 8 at most",
    ),
]
Exports = Annotated[
    list[ExportKind],
    BeforeValidator(as_list),
    Field(description="a list of png, npz, or []"),
]
# what Hydra reads as a whole number may be a class's name all the same
Classes = Annotated[
    Count | Text | Annotated[list[int | Text], Field(min_length=1)] | None,
    Field(description="a count from 1 up, a list of names, or null for all"),
]

# --- groups

# what is in it is checked by a schema of its own
Group = Annotated[dict[str, Any], Field(description="a group of settings")]


class Section(BaseModel):
    """A group of settings in which every key is known.

    Strict: `true` is no number and "1" is no whole number; a whole number will do for any number.
    """

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)


class OpenSection(BaseModel):
    """A group to which a user's own class may add keys."""

    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)


def one_of(*words: str) -> Any:
    """The field of a setting that must be one of these words."""
    return Field(description=f"one of {', '.join(words)}")


def one_word_of(words: Sequence[str]) -> Callable[[str], str]:
    """A check that a word is one of these."""

    def check(word: str) -> str:
        if word not in words:
            raise ValueError(f"one of {', '.join(words)}")
        return word

    return check


def refusal(key: str, value: Any, reason: str) -> PydanticCustomError:
    """What the check of a whole group raises: which of its keys is wrong, and why."""
    return PydanticCustomError(
        "conflict", "{reason}", {"key": key, "value": value, "reason": reason}
    )
