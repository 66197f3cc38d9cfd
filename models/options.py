"""Values of the options of sampling, which a user sets as `sampler.<name>=...`."""

from typing import Any

UNCONDITIONAL, SNAPSHOT = "unconditional", "snapshot:"  # what guides: values of `guide`
# The option of families that another network may guide: see `GenerativeModel.guide`.
GUIDE = {"guide": UNCONDITIONAL}


def snapshot_of(options: dict[str, Any]) -> float | None:
    """The fraction of the training after which the weights were kept that guide; None where the
    network without a label does. Raises ValueError for a `guide` that is neither.
    """
    guide = options.get("guide", UNCONDITIONAL)
    if guide == UNCONDITIONAL:
        return None
    try:
        fraction = float(guide.removeprefix(SNAPSHOT)) if guide.startswith(SNAPSHOT) else 0.0
    except ValueError:
        fraction = 0.0
    if not 0 < fraction < 1:
        raise ValueError(
            f"sampler.guide={guide}: {UNCONDITIONAL}, or {SNAPSHOT} and a fraction of "
            f"train.snapshots, as in {SNAPSHOT}0.25"
        )
    return fraction


def converted(name: str, value: Any, default: Any) -> Any:
    """An option's value in the type of its default, so that 3 and 3.0 name the same samples.

    Raises ValueError where that would change the value (2.5 for a whole number).
    """
    refusal = f"sampler.{name}={value}: must be a value like {default}"
    try:
        if isinstance(default, tuple):
            return tuple(float(number) for number in value)
        converted = type(default)(value)
    except (TypeError, ValueError):
        raise ValueError(refusal) from None
    if converted != value:
        raise ValueError(refusal)
    return converted
