"""What the settings of the shipped sizes must be: conf/size, a group for each network."""

from pydantic import BaseModel

from benchmarks.core import setting_types as of
from benchmarks.core.model_schema import (
    AnyOrderShape,
    DiTShape,
    GridShape,
    RasterShape,
    ScalesShape,
    TransformerShape,
    UNetShape,
)


class DiTSize(DiTShape):
    lr: of.Positive


class OwnRate(of.Section):
    """Of a model that has the network of another, and its own learning rate."""

    lr: of.Positive


class UViTSize(DiTShape):
    mlp: of.Width
    lr: of.Positive


class UNetSize(UNetShape):
    lr: of.Positive


class RasterSize(RasterShape):
    lr: of.Positive


class AnyOrderSize(AnyOrderShape):
    lr: of.Positive


class MaskedSize(GridShape):
    lr: of.Positive


class ScalesSize(ScalesShape):
    lr: of.Positive


class ContinuousSize(TransformerShape):
    head_multiple = 4
    head_width: of.Width
    gmm: of.Width  # the width inside the MLPs, by the head
    flow: of.Width
    lr: of.Positive


# by their key in a file of conf/size; a user's own models may have keys of their own beside them
SIZES: dict[str, type[BaseModel]] = {
    "dit": DiTSize,
    "dit_flowmap": OwnRate,
    "unet": UNetSize,
    "unet_conv": UNetSize,
    "uvit": UViTSize,
    "ar": RasterSize,
    "ar_any": AnyOrderSize,
    "masked": MaskedSize,
    "ar_continuous": ContinuousSize,
    "masked_continuous": OwnRate,
    "ar_scale": ScalesSize,
}


class Size(of.OpenSection):
    """conf/size; each of SIZES in it is checked by itself."""

    name: of.Name
    codebook_size: of.Entries = None
    params: of.Group = {}  # SIZES again, of match=params
