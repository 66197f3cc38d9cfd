"""The schema of settings: everything shipped passes it, and it knows what the code knows."""

import inspect
import itertools
from collections.abc import Iterator

import pytest
from omegaconf import DictConfig, OmegaConf
from test_settings import parsed

from benchmarks.core import data_schema, model_schema, sampler_schema, schema, size_schema
from benchmarks.core.settings import check, compose, config_names, trained_models
from models.any_order import AnyOrder
from models.ar_scale import AutoregressiveScales
from models.autoregressive import Autoregressive
from models.continuous import ContinuousMasked, ContinuousRaster, ContinuousTokens
from models.diffusion import Diffusion
from models.dit import DiT
from models.flowmap import FlowMap
from models.heads import FlowHead
from models.masked import Masked
from models.schedulers import PREDICTION, samplers
from models.tokens import SCHEDULES
from models.unet import UNet
from models.uvit import UViT

# --- what is shipped


def cells(preset: str) -> Iterator[DictConfig]:
    """Every cell of a preset's sweep. Groups are composed; single settings are put in."""
    cfg = compose(f"experiment={preset}", return_hydra_config=True)
    swept = {key: str(values).split(",") for key, values in cfg.hydra.sweeper.params.items()}
    groups = {key: values for key, values in swept.items() if key in ("model", "size")}
    single = {key: values for key, values in swept.items() if key not in groups}
    for chosen in itertools.product(*groups.values()):
        names = [f"{key}={value}" for key, value in zip(groups, chosen, strict=True)]
        cell = compose(f"experiment={preset}", *names)
        for values in itertools.product(*single.values()):
            for key, value in zip(single, values, strict=True):
                OmegaConf.update(cell, key, parsed(value))
            yield cell


@pytest.mark.parametrize("preset", config_names("experiment"))
def test_every_cell_of_every_preset_passes(preset):
    for cell in cells(preset):
        check(cell)


@pytest.mark.parametrize("size", config_names("size"))
def test_every_size_passes_with_the_settings_of_every_model(size):
    cfg = compose(f"size={size}", "match=params")
    check(cfg)
    for name, of_size in size_schema.SIZES.items():
        fitted = name != "dit" and of_size is not size_schema.OwnRate  # to dit's parameters
        assert not fitted or cfg.size[name] == cfg.size.params[name], name


@pytest.mark.parametrize("model", trained_models())
def test_every_model_passes(model):
    pixels = ["autoencoder=pixels"] if model == schema.PIXELS_ONLY else []
    check(compose(f"model={model}", *pixels))


@pytest.mark.parametrize("group", ["data", "autoencoder", "sampler", "tune", "match", "features"])
def test_every_other_file_passes(group):
    for name in config_names(group):
        path = ["data.path=/x"] if name == "imagefolder" else []
        check(compose(f"{group}={name}", *path))


def test_a_rehearsal_passes():
    check(compose("rehearse=mini", "experiment=tradeoff", "model=unet"))


def test_a_check_leaves_the_configuration_as_it_was():
    """What names cached results is made of it."""
    for overrides in (["experiment=cpu"], ["experiment=tradeoff", "model=masked"]):
        cfg = compose(*overrides)
        before = OmegaConf.to_container(cfg, resolve=True)
        check(cfg)
        assert OmegaConf.to_container(cfg, resolve=True) == before


# --- the schema against the code

CLASSES = {
    Diffusion: model_schema.Diffusion,
    FlowMap: model_schema.FlowMap,
    Autoregressive: model_schema.Autoregressive,
    AnyOrder: model_schema.AnyOrder,
    Masked: model_schema.Masked,
    ContinuousRaster: model_schema.ContinuousRaster,
    ContinuousMasked: model_schema.ContinuousMasked,
    DiT: model_schema.DiT,
    UNet: model_schema.UNet,
    UViT: model_schema.UViT,
}
SHIPPED = (FlowMap, Autoregressive, AnyOrder, Masked, ContinuousRaster, ContinuousMasked)
SHIPPED += (AutoregressiveScales,)
GIVEN = {"self", "latent_shape", "num_classes", "codebook", "label_dropout"}  # by the harness
# only the paper's own models predict a variance, and they are counted; the flow map gives its own
NOT_SET = {"out_channels", "conditions"}


@pytest.mark.parametrize("network", CLASSES, ids=lambda network: network.__name__)
def test_the_schema_of_a_class_has_its_arguments(network):
    own = [vars(one)["__init__"] for one in network.__mro__ if "__init__" in vars(one)]
    own = own[: 2 if issubclass(network, ContinuousTokens) else 1]  # one adds to the other's
    arguments = {name for init in own for name in inspect.signature(init).parameters}
    arguments -= GIVEN | NOT_SET | {"settings"}
    harness = {"name", "family", "lr", "tune", "target", "partial"}
    assert set(CLASSES[network].model_fields) - harness == arguments
    shipped = model_schema.MODELS | model_schema.DENOISERS
    assert shipped[f"{network.__module__}.{network.__name__}"] is CLASSES[network]


def test_words_that_code_knows_are_those_that_the_schema_knows():
    options = set(sampler_schema.SamplerOptions.model_fields)
    models = (Diffusion, Masked, FlowHead)
    assert options == {"shift"}.union(*(set(model.sampler_defaults) for model in models))
    own = [set(model.samplers) for model in SHIPPED]
    own += [set(samplers(objective)) for objective in ("flow", *PREDICTION)]
    assert set(sampler_schema.SAMPLERS) == {"default"}.union(*own)
    words = [
        (model_schema.Diffusion, "objective", ["flow", *PREDICTION]),
        (model_schema.Masked, "mask_schedule", list(SCHEDULES)),
    ]
    for group, name, known in words:
        for word in known:
            assert word in group.model_fields[name].description


def test_every_setting_says_what_it_must_be():
    groups = [schema.Top, schema.Train, schema.Tune, *schema.DATA.values()]
    groups += [*schema.AUTOENCODERS.values(), *schema.EXTRACTORS.values()]
    groups += [
        data_schema.Features,
        *CLASSES.values(),
        *size_schema.SIZES.values(),
        sampler_schema.Sampler,
    ]
    for group in groups:
        for name, field in group.model_fields.items():
            assert field.description, f"{group.__name__}.{name}"
