"""What the settings of sampling must be, as the models' `set_sampler` takes them."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from benchmarks.core import setting_types as of


class SamplerOptions(of.OpenSection):
    """The options of every shipped model; null is the model's own default."""

    shift: of.Factor = None
    guidance_interval: of.Interval = None
    guidance_schedule: Literal["constant", "linear"] | None = Field(
        None, description="one of constant, linear, or null"
    )
    temperature: of.Factor = None
    top_k: int | None = Field(
        None, ge=0, le=of.MOST, description="a whole number, 0 for all, or null"
    )
    top_p: float | None = Field(
        None, gt=0, le=1, description="a number above 0, 1 at most, or null"
    )
    guide: str | None = Field(
        None,
        pattern=r"^(unconditional|snapshot:0?\.\d+)$",
        description="unconditional, snapshot: and a fraction as in snapshot:0.25, or null",
    )
    schedule: Literal["cosine", "arccos"] | None = Field(
        None, description="one of cosine, arccos, or null"
    )
    head_steps: int | None = Field(
        None,
        ge=1,
        le=of.MOST_STEPS,
        description=f"a whole number from 1 to {of.MOST_STEPS:,}, or null",
    )
    choice_temperature: float | None = Field(
        None, ge=0, le=of.MOST_FACTOR, description=f"a number from 0 to {of.MOST_FACTOR:g}, or null"
    )


# the ways of sampling of all shipped models
SAMPLERS = (
    *("default", "euler", "heun", "dpmpp", "unipc", "ddim", "ddpm", "map", "renoise"),
    *("raster", "random-order", "confidence", "random", "scales"),
)


class Sampler(SamplerOptions):
    """conf/sampler"""

    name: Annotated[str, AfterValidator(of.one_word_of(SAMPLERS))] = of.one_of(*SAMPLERS)

    @model_validator(mode="after")
    def _a_random_order_needs_no_confidences(self) -> "Sampler":
        # it would change nothing, and yet name other samples
        if self.name == "random" and self.choice_temperature is not None:
            reason = "sampler=random looks at no confidences; leave out one of the two"
            raise of.refusal("choice_temperature", self.choice_temperature, reason)
        return self


class OwnSampler(of.OpenSection):
    """conf/sampler for a user's own model, which says itself what its options are."""

    name: of.Name


class Change(SamplerOptions):
    """An entry of a shipped model's `tune`."""

    model_config = of.Section.model_config

    sampler: of.TextOrNull = None

    @model_validator(mode="after")
    def _guides_are_not_searched(self) -> "Change":
        if self.guide is not None:
            reason = "not searched for; set sampler.guide, and settings are chosen for it"
            raise of.refusal("guide", self.guide, reason)
        return self
