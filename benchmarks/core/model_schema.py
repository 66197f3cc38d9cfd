"""What the settings of the shipped models must be, as their classes take them. What depends on the
latents (a patch that tiles them, a block that divides the tokens) is theirs to say.
"""

from typing import Any, ClassVar, Literal

from pydantic import BaseModel, Field, model_validator

from benchmarks.core import setting_types as of

# --- networks


class TransformerShape(of.Section):
    """Width, depth and heads that fit each other."""

    head_multiple: ClassVar[int] = 1  # of which the width of one head must be a multiple

    width: of.Width
    depth: of.Depth
    heads: of.Width

    @model_validator(mode="after")
    def _heads_divide_the_width(self) -> "TransformerShape":
        if self.width % self.heads:
            reason = f"width {self.width} is not a multiple of heads {self.heads}"
            raise of.refusal("heads", self.heads, reason)
        if (self.width // self.heads) % self.head_multiple:
            reason = f"width / heads is {self.width // self.heads}"
            needed = f"rotary positions need a multiple of {self.head_multiple}"
            raise of.refusal("heads", self.heads, f"{reason}; {needed}")
        return self


class DiTShape(TransformerShape):
    """As models/dit.py, whose positions are sines and cosines of two coordinates."""

    @model_validator(mode="after")
    def _sines_fill_the_width(self) -> "DiTShape":
        if self.width % 4:
            raise of.refusal("width", self.width, "sine positions need a multiple of 4")
        return self


class RasterShape(TransformerShape):
    """As models/autoregressive.py: rotary positions in one dimension turn pairs."""

    head_multiple = 2
    mlp: of.Width


class GridShape(TransformerShape):
    """As models/masked.py: rotary positions in two dimensions turn a pair for each."""

    head_multiple = 4
    mlp: of.Width


class AnyOrderShape(GridShape):
    """As models/any_order.py, which has as many blocks in its first pass as in its second."""

    @model_validator(mode="after")
    def _halves_are_whole(self) -> "AnyOrderShape":
        if self.depth % 2:
            raise of.refusal("depth", self.depth, "an even number")
        return self


class ScalesShape(GridShape):
    """As models/ar_scale.py, with the entries of each scale's codebook."""

    entries: int = Field(ge=2, le=65536, description="a whole number from 2 to 65536")


class UNetShape(of.Section):
    """As models/unet.py. Group norms cut the channels of a level into equal groups."""

    channels: of.Channels
    layers: of.Depth
    groups: of.Width

    @model_validator(mode="after")
    def _groups_divide_the_channels(self) -> "UNetShape":
        if any(channels % self.groups for channels in self.channels):
            raise of.refusal("channels", self.channels, f"multiples of groups {self.groups}")
        return self


class Partial(of.Section):
    """Hydra's own keys of a denoiser, which is built when the shape of the latents is known."""

    target: of.Target = Field(alias="_target_")
    partial: Literal[True] = Field(alias="_partial_", description="true")


class UNet(UNetShape, Partial):
    """The denoiser `models.unet.UNet`."""

    attention_from: int | None = Field(
        1,
        ge=0,
        le=of.MOST,
        description="a whole number from 0 up, the first level with attention, or null: none",
    )
    head_dim: of.Width = 32

    @model_validator(mode="after")
    def _levels_hold_a_head(self) -> "UNet":
        if self.attention_from is None:
            return self
        # there is attention in the middle, at the lowest level, in any case
        fewest = min([*self.channels[self.attention_from :], self.channels[-1]])
        if self.head_dim > fewest:
            reason = f"at most {fewest}, the channels of a level with attention"
            raise of.refusal("head_dim", self.head_dim, reason)
        return self


class DiT(DiTShape, Partial):
    """The denoiser `models.dit.DiT`."""

    patch: of.Width = 1
    bottleneck: int | None = Field(
        None, ge=1, le=of.MOST, description="a whole number from 1 up, or null"
    )


class UViT(DiTShape, Partial):
    """The denoiser `models.uvit.UViT`."""

    mlp: of.Width
    skips: bool = Field(True, description="true or false")
    patch: of.Width = 1

    @model_validator(mode="after")
    def _every_skip_has_a_partner(self) -> "UViT":
        if self.skips and (self.depth < 3 or self.depth % 2 == 0):
            reason = "an odd number from 3 up, or skips have no partner; or skips=false"
            raise of.refusal("depth", self.depth, reason)
        return self


# --- models


class Model(of.Section):
    """What the harness keeps of every file of conf/model."""

    name: of.Name
    family: of.Text
    lr: of.Positive
    target: of.Target = Field(alias="_target_")
    tune: list[dict[str, Any]] | None = Field(
        None, description="a list of settings of sampling, such as [{temperature: 0.9}], or null"
    )


class Diffusion(Model):
    """`models.diffusion.Diffusion`"""

    objective: Literal["flow", "flow_x0", "eps", "v", "x0"] = Field(
        "flow", description="one of flow, flow_x0, eps, v, x0, flowmap"
    )
    time_mean: float = Field(0.0, ge=-10, le=10, description="a number from -10 to 10")
    time_std: float = Field(1.0, gt=0, le=10, description="a number above 0, 10 at most")
    denoiser: dict[str, Any] = Field(description="the settings of a network, with its _target_")

    @model_validator(mode="before")
    @classmethod
    def _is_no_flow_map(cls, values: Any) -> Any:
        # the objective decides on the class, which knows no setting of a flow map's file
        own = set(FlowMap.model_fields) - set(cls.model_fields)
        if isinstance(values, dict) and own <= set(values):
            reason = "flowmap, as this model is a flow map; for others give model=dit or model=unet"
            raise of.refusal("objective", values.get("objective"), reason)
        return values


class FlowMap(Model):
    """`models.flowmap.FlowMap`"""

    objective: Literal["flowmap"] = Field("flowmap", description="flowmap")
    denoiser: dict[str, Any] = Field(description="the settings of a network, with its _target_")
    time_mean: float = Field(0.0, ge=-10, le=10, description="a number from -10 to 10")
    flow_first: of.Fraction = 0.25
    same_time: of.Fraction = 0.75
    ends: of.Fraction = 0.5
    guided: of.Fraction = 0.25
    least_alpha: float = Field(0.1, gt=0, le=1, description="a number above 0, 1 at most")
    most_guidance: float = Field(
        1.0, ge=1, le=of.MOST_FACTOR, description=f"a number from 1 to {of.MOST_FACTOR:g}"
    )


class Autoregressive(Model, RasterShape):
    """`models.autoregressive.Autoregressive`"""

    block: of.Count = 1


class AutoregressiveScales(Model, ScalesShape):
    """`models.ar_scale.AutoregressiveScales`"""

    sides: list[of.Count] | None = Field(
        None, description="a list of whole numbers, ascending, or null"
    )


class AnyOrder(Model, AnyOrderShape):
    """`models.any_order.AnyOrder`"""


class Masked(Model, GridShape):
    """`models.masked.Masked`"""

    mask_schedule: Literal["cosine", "arccos"] = Field(
        "cosine", description="one of cosine, arccos"
    )


class ContinuousHead(of.Section):
    """What `models.continuous` adds to the transformers of `ar` and `masked`."""

    head: Literal["gmm", "flow"] = Field(
        "gmm",
        description="one of gmm, flow; for tokens of a codebook give model=ar or model=masked",
    )
    components: of.Count = 16
    head_width: of.Width = 64
    head_repeats: of.Count = 2


class ContinuousRaster(Model, RasterShape, ContinuousHead):
    """`models.continuous.ContinuousRaster`"""


class ContinuousMasked(Masked, ContinuousHead):
    """`models.continuous.ContinuousMasked`"""


class OwnModel(of.OpenSection):
    """Any other class: what it takes is its own to check."""

    name: of.Name
    family: of.Text
    lr: of.Positive
    target: of.Target = Field(alias="_target_")


class Pretrained(of.OpenSection):
    """A class of a user's own that gives images: what it takes is its own to check."""

    name: of.Name
    family: Literal["pretrained"]
    target: of.Target = Field(alias="_target_")


class LabelPipeline(of.Section):
    """`models.label_pipeline.LabelPipeline`"""

    name: of.Name
    family: Literal["pretrained"] = Field(description="pretrained: it is not trained here")
    target: of.Target = Field(alias="_target_")
    path: of.Text = Field(description="a folder, or a name on the hub: facebook/DiT-XL-2-256")
    labels: list[int] | None = Field(None, description="a list of whole numbers, or null")
    precision: Literal["fp32", "bf16"] | None = Field(
        None, description="one of fp32, bf16, or null"
    )


class OwnDenoiser(of.OpenSection):
    """Any other class."""

    target: of.Target = Field(alias="_target_")


# by `_target_`
MODELS: dict[str, type[BaseModel]] = {
    "models.diffusion.Diffusion": Diffusion,
    "models.flowmap.FlowMap": FlowMap,
    "models.autoregressive.Autoregressive": Autoregressive,
    "models.any_order.AnyOrder": AnyOrder,
    "models.ar_scale.AutoregressiveScales": AutoregressiveScales,
    "models.masked.Masked": Masked,
    "models.continuous.ContinuousRaster": ContinuousRaster,
    "models.continuous.ContinuousMasked": ContinuousMasked,
    "models.label_pipeline.LabelPipeline": LabelPipeline,
}
DENOISERS: dict[str, type[BaseModel]] = {
    "models.unet.UNet": UNet,
    "models.dit.DiT": DiT,
    "models.uvit.UViT": UViT,
}
