"""What the settings of the data, of the autoencoder and of the feature extractors must be."""

from typing import Literal

from pydantic import Field

from benchmarks.core import setting_types as of


class Data(of.Section):
    """Every key of conf/data; which of them are needed depends on the source."""

    name: of.Name
    source: Literal["procedural", "imagefolder", "hub"] = of.one_of(
        "procedural", "imagefolder", "hub"
    )
    image_size: of.Side
    reference_images: of.Images
    path: of.TextOrNull = None
    config: of.TextOrNull = None
    held_out: of.TextOrNull = None
    classes: of.Classes = None
    images_per_class: of.CountOrNull = None
    reference_from: Literal["held_out", "train"] = Field(
        "held_out", description="one of held_out, train"
    )
    train_images: of.Count = 1
    seed: of.DataSeed = 0


class ProceduralData(Data):
    """conf/data/procedural.yaml"""

    train_images: of.Count
    seed: of.DataSeed


class ImageData(Data):
    """Images in folders, in parquet files or on the hub."""

    path: of.Text = Field(description="the folder of the images, or their name on the hub")


class Autoencoder(of.Section):
    """Every key of conf/autoencoder; which of them are needed depends on the kind."""

    name: of.Name
    kind: Literal["shipped", "trained", "pixels", "AutoencoderKL", "AutoencoderTiny"] = of.one_of(
        "shipped", "trained", "pixels", "AutoencoderKL", "AutoencoderTiny"
    )
    codebook: of.File
    codebook_size: of.Entries
    weights: of.File = None
    path: of.TextOrNull = None


class TrainedAutoencoder(Autoencoder):
    """conf/autoencoder/trained.yaml"""

    images: int = Field(ge=16, le=of.MOST, description=f"a whole number from 16 to {of.MOST:,}")
    seed: of.NextSeed


class Pixels(Autoencoder):
    """conf/autoencoder/pixels.yaml"""

    patch: int = Field(ge=1, le=64, description="a whole number from 1 to 64")


class PretrainedAutoencoder(Autoencoder):
    """An autoencoder of diffusers."""

    path: of.Text = Field(description="a name on the hub, or a folder with its files")


class Extractor(of.Section):
    """One feature extractor. null is the usual file."""

    weights: of.File = None


class Features(of.Section):
    """conf/features: one or several extractors, and what their files have in common."""

    weights: of.File = None
    path: of.TextOrNull = None
    local: of.Group = {}
    efficientnet_lite0: of.Group = {}
    inception: of.Group = {}
    dinov2: of.Group = {}


class Dinov2(of.Section):
    """The extractor that is a folder, not a file."""

    path: of.Text = Field(description="a name on the hub, or a folder with its files")
