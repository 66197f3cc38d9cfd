"""Nonsense for every key of conf/ is refused in one line, wherever it stands."""

import copy
import itertools
import random
import time

import pytest
from omegaconf import OmegaConf
from test_settings import HUGE, base, line_about, parsed

from benchmarks.core import schema, size_schema
from benchmarks.core.settings import check, flatten

# --- nonsense for every key

NONSENSE = ["-1", "0", "nan", "inf", "true", "x", "''", "[]", "{}", "1e400", HUGE, "null"]


def _allowed(values: list[str], *keys: str) -> dict[str, list[str]]:
    return dict.fromkeys(keys, values)


# which of NONSENSE a key really allows, and why
ALLOWED = {
    # a folder may be called so
    **_allowed(["-1", "0", "x", HUGE], "name", "data.name", "model.name", "size.name"),
    **_allowed(["-1", "0", "x", HUGE], "autoencoder.name"),
    **_allowed(["x"], "model.family", "results_dir", "cache_dir"),
    **_allowed(["x", "null"], "autoencoder.weights", "autoencoder.codebook", "features.weights"),
    **_allowed(["x", "null"], "features.local.weights", "features.efficientnet_lite0.weights"),
    # a seed, a fraction or a strength of zero
    **_allowed(["0"], "seed", "sampling_seeds", "data.seed", "guidance", "tune.recall"),
    **_allowed(["0"], "train.warmup", "train.ema_decay", "train.label_dropout"),
    **_allowed(["0"], "train.weight_decay"),
    # no end, or none of them; at the first step, or never
    "stop_at": ["0", HUGE, "null"],
    "train.checkpoint_seconds": ["0", HUGE],
    "export": ["[]"],
    "train.snapshots": ["[]"],
    **_allowed(["[]", "null"], "model.tune", "tune.guidance", "tune.steps"),
    # the model's own, the suite's own
    **_allowed(["null"], "sampler.shift", "sampler.guidance_interval", "sampler.temperature"),
    **_allowed(["null"], "sampler.guidance_schedule", "sampler.top_p", "sampler.schedule"),
    **_allowed(["null"], "sampler.head_steps", "sampler.guide"),
    **_allowed(["0", "null"], "sampler.top_k", "sampler.choice_temperature"),
    **_allowed(["null"], "autoencoder.codebook_size", "size.codebook_size"),
    # so many FLOPs have been spent before; gradients that are never clipped
    "train.budget": [HUGE],
    "train.grad_clip": [HUGE],
    # such a training diverges, which is a result
    **_allowed([HUGE], "model.lr", *(f"size.{name}.lr" for name in size_schema.SIZES)),
    **_allowed([HUGE], *(f"size.params.{name}.lr" for name in size_schema.SIZES)),
    **_allowed(["true"], "train.compile", "model.denoiser._partial_"),
}


def keys_of(model: str) -> list[str]:
    """Every key of conf/ that a configuration has; of a second model only its own."""
    keys = list(flatten(OmegaConf.to_container(base(model), resolve=True)))
    return keys if model == "dit" else [key for key in keys if key.startswith("model.")]


def put(settings: dict, key: str, value: object) -> None:
    """Set a dotted key of nested plain settings."""
    *groups, name = key.split(".")
    for group in groups:
        settings = settings[group]
    settings[name] = value


@pytest.mark.parametrize("model", ["dit", "unet", "ar", "ar_any", "masked"])
def test_nonsense_is_refused_in_one_line_wherever_it_stands(model):
    """Every key of conf/ with every nonsense, but for what it allows."""
    tried, resolved = 0, OmegaConf.to_container(base(model), resolve=True)
    for key, value in itertools.product(keys_of(model), NONSENSE):
        settings = copy.deepcopy(resolved)
        put(settings, key, parsed(value))
        line = schema.first_fault(settings)
        assert (line is None) == (value in ALLOWED.get(key, [])), f"{key}={value}: {line}"
        if line is not None:
            assert line.startswith(key) and len(line.splitlines()) == 1, line
        tried += 1
    assert tried > (900 if model == "dit" else 100)


def test_command_lines_of_random_nonsense_are_refused_in_one_line():
    """250 of up to three wrong settings each, always the same."""
    choices = random.Random(0)
    for _ in range(250):
        model = choices.choice(["dit", "unet", "ar", "ar_any", "masked"])
        keys = choices.sample([*keys_of("dit"), *keys_of(model)], k=3)
        here = [key for key in keys if OmegaConf.select(base(model), key) is not None]
        settings = {key: choices.choice(NONSENSE) for key in here}
        line = line_about(model, settings)
        wrong = [key for key, value in settings.items() if value not in ALLOWED.get(key, [])]
        assert line or not wrong, settings


def test_checking_takes_milliseconds():
    cfg = base("dit").copy()
    check(cfg)
    began = time.perf_counter()
    check(cfg)
    assert time.perf_counter() - began < 0.5
