"""What every setting of conf/ must be, in one place: `settings.check` asks before anything is
loaded.

Everything is strict: `true` is no number and "1" is no whole number; a whole number will do where
any number is wanted. No number may be infinite or NaN, not even one that only a user's own class
takes. A key that is not known here is refused: nothing would read it.
"""

import math
from collections.abc import Iterator
from typing import Any, Literal

from pydantic import BaseModel, Field, ValidationError, model_validator

from benchmarks.core import model_schema, sampler_schema, size_schema
from benchmarks.core import setting_types as of
from benchmarks.core.data_schema import (
    Autoencoder,
    Data,
    Dinov2,
    Extractor,
    Features,
    ImageData,
    Pixels,
    PretrainedAutoencoder,
    ProceduralData,
    TrainedAutoencoder,
)

Values = dict[str, Any]  # one group of settings, resolved

# What a budget is at most, in its unit. Whoever changes the unit and forgets the number would
# train for centuries.
MOST_BUDGET = {"flops": 1e26, "images": 1e12, "steps": 1e10, "minutes": 1e6}
LONGEST_SHOWN = 80  # characters of a value
PIXELS_ONLY = "dit_pixels"  # of conf/model
# errors of a number that is of the right type; of a list that one is named
OUT_OF_RANGE = ("greater_than", "greater_than_equal", "less_than", "less_than_equal")


# --- what is in no group


class Top(of.Section):
    """conf/config.yaml. The groups are checked one by one, see `_groups`."""

    name: of.Name
    seed: of.Seed
    sampling_seeds: of.Seeds
    steps: of.Steps
    guidance: of.Scales
    num_samples: of.Images
    sample_batch: of.BatchOrAuto
    sample_precision: Literal["auto", "bf16", "fp32"] = of.one_of("auto", "bf16", "fp32")
    stop_at: of.Moment
    export: of.Exports
    device: of.Device
    results_dir: of.Path
    cache_dir: of.Path
    match: Literal["flops", "params", "time"] = of.one_of("flops", "params", "time")
    sides: of.Sides = []  # of `probe` alone


# --- training and tuning


class Train(of.Section):
    """conf/train"""

    minutes: float = Field(gt=0, le=1e6, description="a number above 0, 1e6 at most")
    images: float = Field(gt=0, le=1e12, description="a number above 0, 1e12 at most")
    budget: of.Budget
    unit: Literal["flops", "images", "steps", "minutes"] = of.one_of(*MOST_BUDGET)
    batch: of.Batch
    accumulate: of.Batch
    precision: Literal["auto", "bf16", "fp32"] = of.one_of("auto", "bf16", "fp32")
    compile: bool | Literal["auto"] = of.one_of("true", "false", "auto")
    betas: of.Betas
    weight_decay: of.Decay
    warmup: of.BelowOne
    grad_clip: of.Positive
    ema_decay: of.BelowOne
    label_dropout: of.BelowOne
    snapshots: of.Snapshots
    checkpoint_seconds: of.NotNegative

    @model_validator(mode="after")
    def _can_be_spent(self) -> "Train":
        most = MOST_BUDGET[self.unit]
        if self.budget > most:
            raise of.refusal("budget", self.budget, f"at most {most:g} with train.unit={self.unit}")
        return self

    @model_validator(mode="after")
    def _can_be_divided(self) -> "Train":
        if self.batch % self.accumulate:
            reason = f"a divisor of train.batch={self.batch}"
            raise of.refusal("accumulate", self.accumulate, reason)
        return self

    @model_validator(mode="after")
    def _are_told_apart(self) -> "Train":
        names = [f"{fraction:g}" for fraction in self.snapshots]  # of their files
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice:
            reason = f"each once, to six digits; {twice} is there twice"
            raise of.refusal("snapshots", self.snapshots, reason)
        return self


class Tune(of.Section):
    """conf/tune"""

    guidance: of.TunedScales
    steps: of.StepsOrNull
    num_samples: of.Images
    recall: of.Fraction


# --- which group is checked by what

DATA: dict[str, type[BaseModel]] = {
    "procedural": ProceduralData,
    "imagefolder": ImageData,
    "hub": ImageData,
}
AUTOENCODERS: dict[str, type[BaseModel]] = {
    "trained": TrainedAutoencoder,
    "pixels": Pixels,
    "AutoencoderKL": PretrainedAutoencoder,
    "AutoencoderTiny": PretrainedAutoencoder,
}
EXTRACTORS: dict[str, type[BaseModel]] = {
    "local": Extractor,
    "efficientnet_lite0": Extractor,
    "inception": Extractor,
    "dinov2": Dinov2,
}
GROUPS = ("size", "data", "autoencoder", "features", "train", "sampler", "tune", "model")

Group = tuple[str, type[BaseModel], Any]  # the dotted name of a group, its schema, its values


def first_fault(settings: Values) -> str | None:
    """The first thing that is wrong with a whole configuration, as one line; None where all is
    well.

    `settings` is the configuration as plain values, resolved, without `hydra`. The line names the
    dotted key and its value, and says what it must be.
    """
    for prefix, schema, values in _groups(settings):
        try:
            schema.model_validate(values)
        except ValidationError as error:
            return _line(prefix, schema, values, error.errors(include_url=False)[0])
    return _infinite(settings) or _conflict(settings)


def _infinite(settings: Values) -> str | None:
    """A line about a number that is not finite, in what only a user's own class takes."""
    for name, value in settings.items():
        for key, number in _numbers(name, value):
            if not math.isfinite(number):
                return f"{key}={shown(number)}: no number may be infinite or NaN"
    return None


def _numbers(key: str, value: Any) -> Iterator[tuple[str, float]]:
    """Every number in a setting, however deep in groups and lists, by its dotted name."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _numbers(f"{key}.{name}", inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _numbers(key, inner)
    elif isinstance(value, float):
        yield key, value


def _groups(settings: Values) -> Iterator[Group]:
    """Every group. What others take their values from comes first: it is what a user has set."""
    yield "", Top, {key: value for key, value in settings.items() if key not in GROUPS}
    groups = {name: settings.get(name) for name in GROUPS}
    size = groups["size"]
    yield "size", size_schema.Size, _beside(size_schema.SIZES, size)
    yield from _inner("size", size, size_schema.SIZES)
    yield from _inner("size.params", size.get("params"), size_schema.SIZES)
    data, autoencoder = groups["data"], groups["autoencoder"]
    yield "data", DATA.get(_word(data, "source"), Data), data
    yield "autoencoder", AUTOENCODERS.get(_word(autoencoder, "kind"), Autoencoder), autoencoder
    yield "features", Features, groups["features"]
    yield from _inner("features", groups["features"], EXTRACTORS)
    yield "train", Train, groups["train"]
    yield "tune", Tune, groups["tune"]
    yield from _of_the_model(groups["model"], groups["sampler"])


def _inner(prefix: str, values: Any, schemas: dict[str, type[BaseModel]]) -> Iterator[Group]:
    """The groups within a group that have a schema."""
    for name in values if isinstance(values, dict) else ():
        if name in schemas:
            yield f"{prefix}.{name}", schemas[name], values[name]


def _of_the_model(model: Any, sampler: Any) -> Iterator[Group]:
    """The model's own settings, its denoiser's, and how it is sampled."""
    if _word(model, "family") == "pretrained":
        own: type[BaseModel] = model_schema.Pretrained
    else:
        own = model_schema.OwnModel
    schema = model_schema.MODELS.get(_word(model, "_target_"), own)
    yield "model", schema, model
    is_own = schema is own
    if "denoiser" in model:
        known = model_schema.DENOISERS.get(_word(model["denoiser"], "_target_"))
        if known or not is_own:
            yield "model.denoiser", known or model_schema.OwnDenoiser, model["denoiser"]
    if is_own:  # its options of sampling may have the names of ours, and other ranges
        yield "sampler", sampler_schema.OwnSampler, sampler
        return
    yield "sampler", sampler_schema.Sampler, sampler
    for place, change in enumerate(model.get("tune") or ()):
        yield f"model.tune[{place}]", sampler_schema.Change, change


def _word(values: Any, key: str) -> str:
    """A word that says which kind a group is of; empty where there is none."""
    word = values.get(key) if isinstance(values, dict) else None
    return word if isinstance(word, str) else ""


def _beside(names: Any, values: Any) -> Any:
    """A group without some of its keys, which are groups themselves."""
    if not isinstance(values, dict):
        return values
    return {key: value for key, value in values.items() if key not in names}


# --- what goes together


def _conflict(settings: Values) -> str | None:
    """The first two settings that are right by themselves and not together, as one line."""
    guidance, tuned = of.as_list(settings["guidance"]), settings["tune"]["guidance"]
    if not guidance and not tuned:
        return "guidance=[]: nothing is measured; give guidance=[1], or tune=default"
    if settings["train"]["label_dropout"] == 0:
        # the network never saw the null label, which guidance leads away from
        mend = "guidance needs train.label_dropout above 0, such as 0.1"
        if any(scale != 1 for scale in guidance):
            return f"guidance={shown(settings['guidance'])}: {mend}"
        if any(scale != 1 for scale in of.null_as_list(tuned)):
            return f"tune.guidance={shown(tuned)}: {mend}; tune=none tunes nothing"
    name, autoencoder = settings["model"]["name"], settings["autoencoder"]
    if name == PIXELS_ONLY and autoencoder["kind"] != "pixels":
        # it would train, and be no model of pixels
        mend = "add autoencoder=pixels, or give model=dit for latents"
        return f"model={name}: made for pixels, not for autoencoder={autoencoder['name']}; {mend}"
    return None


# --- the line about a fault


def _line(prefix: str, schema: type[BaseModel], values: Any, error: Any) -> str:
    """One line about an error of pydantic's in the group `prefix`."""
    where, context = error["loc"], error.get("ctx", {})
    if error["type"] == "conflict":
        return f"{prefix}.{context['key']}={shown(context['value'])}: {context['reason']}"
    if not where:  # no group at all
        return f"{prefix}={shown(values)}: a group of settings, as the files of conf/ hold"
    name = str(where[0])
    key = f"{prefix}.{name}" if prefix else name
    fields = {field.alias or own: field for own, field in schema.model_fields.items()}
    field = fields.get(name)
    wanted = field.description if field and field.description else error["msg"]
    if error["type"] == "missing":
        return f"{key} is missing: {wanted}"
    value = values.get(where[0])
    if error["type"] == "extra_forbidden":
        return f"{key}={shown(value)}: there is no such setting here; there are {', '.join(fields)}"
    line = f"{key}={shown(value)}: {wanted}"
    if isinstance(value, list) and error["type"] in OUT_OF_RANGE:
        line += f"; {key}={shown(error['input'])} is out of range"
    return line


def shown(value: Any) -> str:
    """A value as a user would type it, on one line of bounded length."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    text = str(value)
    if not text or not text.isprintable():
        text = repr(value)
    return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}..."
