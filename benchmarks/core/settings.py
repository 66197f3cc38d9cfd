"""Settings: the configurations of conf/, composed, flattened, and checked before anything is
computed.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from omegaconf import DictConfig, ListConfig, OmegaConf

from benchmarks.core.errors import BadInput
from benchmarks.core.store import ROOT

CONF = ROOT / "conf"
EXPORT_KINDS = ("png", "npz")  # what samples can be written as


def compose(*overrides: str, **options: Any) -> DictConfig:
    """The configuration of a command line of Hydra overrides. HydraException for one that fits
    none.
    """
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return hydra_compose("config", list(overrides), **options)


def config_names(group: str) -> list[str]:
    """The files of a config group, such as `model`, without `.yaml`, sorted."""
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


def presets() -> dict[str, str]:
    """The files of conf/experiment, each with its first comment: what it is for."""
    found = {}
    for path in sorted((CONF / "experiment").glob("*.yaml")):
        comments = [
            line[1:].strip()
            for line in path.read_text(encoding="utf-8").splitlines()
            if line[:1] == "#"
        ]
        found[path.stem] = next((line for line in comments if not line.startswith("@")), "")
    return found


def many(value: Any) -> list[Any]:
    """A list of values, or a list of the one that was given."""
    return list(value) if isinstance(value, ListConfig) else [value]


def flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """Nested settings by their dotted names."""
    if not isinstance(value, dict):
        return {prefix: value}
    flat: dict[str, Any] = {}
    for name, inner in value.items():
        flat |= flatten(inner, f"{prefix}.{name}" if prefix else name)
    return flat


def shorten_paths(config: dict[str, Any]) -> None:
    """In place, every absolute path to its last name: a machine's folders do not travel."""
    for key, value in config.items():
        if isinstance(value, dict):
            shorten_paths(value)
        elif isinstance(value, str) and Path(value).is_absolute():
            config[key] = Path(value).name


def out_of_time(cfg: DictConfig) -> bool:
    """Whether the time that the run was given is up."""
    return cfg.stop_at is not None and time.time() > cfg.stop_at


def is_whole(value: Any, least: int) -> bool:
    """Whether it is a whole number (true and false are none) from `least` up."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def all_of(test: Callable[[Any], bool]) -> Callable[[Any], bool]:
    """The test of a list, or of a single value: not empty, and every one passes `test`."""

    def passes(value: Any) -> bool:
        values = many(value)
        return bool(values) and all(test(one) for one in values)

    return passes


def _ascends_from_1(values: list[float]) -> bool:
    return values[0] == 1 and values == sorted(set(values))


# key, the test of its value, what the value must be
RULES: list[tuple[str, Callable[[Any], bool], str]] = [
    ("seed", lambda v: is_whole(v, 0), "a whole number from 0 up"),
    ("num_samples", lambda v: is_whole(v, 2), "a whole number from 2 up"),
    ("data.image_size", lambda v: is_whole(v, 8), "a whole number from 8 up"),
    ("data.reference_images", lambda v: is_whole(v, 2), "a whole number from 2 up"),
    ("train.batch", lambda v: is_whole(v, 1), "a whole number from 1 up"),
    (
        "sample_batch",
        lambda v: v == "auto" or is_whole(v, 1),
        "a whole number from 1 up, or auto",
    ),
    ("stop_at", lambda v: v is None or is_number(v), "seconds since the epoch, or null"),
    ("train.budget", lambda v: is_number(v) and 0 < v < float("inf"), "a number above 0"),
    ("model.lr", lambda v: is_number(v) and 0 < v < float("inf"), "a number above 0"),
    ("train.grad_clip", lambda v: is_number(v) and 0 < v < float("inf"), "a number above 0"),
    (
        "train.snapshots",
        lambda v: all(isinstance(one, float) and 0 < one < 1 for one in v),
        "fractions of the budget, above 0 and below 1",
    ),
    ("train.precision", lambda v: v in ("auto", "bf16", "fp32"), "one of auto, bf16, fp32"),
    (
        "steps",
        all_of(lambda v: isinstance(v, int) and not isinstance(v, bool)),
        "a list of whole numbers, such as steps=[4,16,64]",
    ),
    (
        "sampling_seeds",
        all_of(lambda v: is_whole(v, 0)),
        "a list of whole numbers from 0 up, such as sampling_seeds=[0,1,2]",
    ),
    (
        "export",
        lambda v: set(many(v)) <= set(EXPORT_KINDS),
        f"a list of {', '.join(EXPORT_KINDS)}, or []",
    ),
    (
        "guidance",
        lambda v: all(map(is_number, many(v))),
        "a list of numbers, such as guidance=[1,2]; 1 is none",
    ),
    (
        "tune.guidance",
        lambda v: not v or (all(map(is_number, many(v))) and _ascends_from_1(many(v))),
        "numbers that ascend from 1, such as tune.guidance=[1,2,4]; [] tunes nothing",
    ),
    (
        "tune.steps",
        lambda v: v is None or all(is_whole(one, 1) for one in many(v)),
        "a list of whole numbers from 1 up, or null",
    ),
    ("tune.num_samples", lambda v: is_whole(v, 2), "a whole number from 2 up"),
    ("tune.recall", lambda v: is_number(v) and 0 <= v <= 1, "a number from 0 to 1"),
]


def check(cfg: DictConfig) -> None:
    """Types and ranges of what a user sets, before anything is computed.

    Raises BadInput naming the key.
    """
    for key, passes, wanted in RULES:
        value = OmegaConf.select(cfg, key)
        if not passes(value):
            raise BadInput(f"{key}={value}: {wanted}")
    if not many(cfg.guidance) and not cfg.tune.guidance:
        raise BadInput("guidance=[]: nothing is measured; give guidance=[1], or tune=default")
