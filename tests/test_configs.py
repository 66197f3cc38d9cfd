"""Every YAML composes and instantiates; presets are the sweeps they say they are."""

import pytest
import torch
from conftest import composed, partly_long
from hydra.errors import HydraException

from benchmarks.core import versions
from benchmarks.core.errors import BadInput
from benchmarks.core.settings import config_names, trained_models
from benchmarks.frozen.autoencoder import latent_shape, shipped_codebook_size
from benchmarks.frozen.extractors import load_extractors
from benchmarks.stages.budget import UNITS, make_budget
from benchmarks.stages.model import build_model
from benchmarks.stages.prepare import prepare
from metrics import flops
from models import schedulers
from models.any_order import AnyOrder
from models.codebook import Codebook
from models.continuous import ContinuousMasked
from models.diffusion import Diffusion
from models.flowmap import FlowMap
from models.generator import GenerativeModel
from models.heads import FlowHead
from models.masked import Masked
from models.pretrained import CLASSES

GROUPS = [
    "model",
    "size",
    "data",
    "autoencoder",
    "train",
    "sampler",
    "features",
    "experiment",
    "match",
    "rehearse",
]


MODELS = ["unet", "dit", "ar", "ar_block", "ar_any", "masked"]  # of the presets
NEWER = ["uvit", "unet_conv", "unet_flowmap", "dit_flowmap"]
NEWER += ["ar_continuous", "ar_scale", "masked_continuous"]
# the sizes of a CPU, and the smallest of the paper's; larger ones differ from that by numbers alone
SIZES = partly_long(config_names("size"), ("b", "l", "xl"))
EQUAL = [*MODELS, "unet_conv", "uvit", "ar_scale"]  # in parameters, with match=params
FILES = [(group, name) for group in GROUPS for name in config_names(group)]


@pytest.mark.parametrize("group, name", FILES)
def test_every_yaml_composes(group, name):
    cfg = composed(f"{group}={name}")
    families = ("pretrained",) if name == "pretrained" else ("unet", "dit", "ar")
    assert cfg.seed == 0 and cfg.model.family in families
    if group == "features":
        # each under its own name, so that a list of features can merge them
        assert set(cfg.features) - {"weights", "path"} == {name}
    elif group == "match":
        assert cfg.match == name
    elif group not in ("experiment", "train", "rehearse"):
        assert cfg[group].name == name
    if group == "experiment":
        assert cfg.name == name, "results/<name> is the preset's name"


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("model", trained_models())
def test_every_model_instantiates_at_every_size(model, size):
    cfg = composed(f"model={model}", f"size={size}")
    with torch.device("meta"):
        built = build_model(cfg.model, (4, 8, 8), 10, Codebook(32))
    assert isinstance(built, GenerativeModel) and 0 < cfg.model.lr < 0.1


@pytest.mark.parametrize(
    "model, kin", [("dit_flowmap", "dit"), ("masked_continuous", "ar_continuous")]
)
def test_a_model_with_the_network_of_another_has_its_rate_where_a_size_has_none_of_its_own(
    model, kin
):
    given = composed(f"model={model}", "size=xs", f"size.{model}.lr=1e-5")
    assert given.model.lr == 1e-5
    without = composed(f"model={model}", "size=xs", f"~size.{model}")
    assert without.model.lr == without.size[kin].lr


@pytest.mark.parametrize("experiment", config_names("experiment"))
def test_presets_sweep_their_families(experiment):
    cfg = composed(f"experiment={experiment}")
    assert str(cfg.hydra.mode).endswith("MULTIRUN")
    every, default = ",".join(MODELS), "unet,dit,ar,ar_any"
    swept = {
        "cpu": default,
        "gpu": default,
        "imagenette": default,
        "tokenizer": "ar",
        "blocks": "ar_block",
        "few_steps": "unet,unet_flowmap,dit,dit_flowmap",
        "hybrids": "unet,unet_conv,uvit,dit",
        "no_codebook": "unet,dit,ar,ar_continuous,ar_scale,masked,masked_continuous",
        "objectives": "unet,dit",
        "pixels": "dit_pixels",
        "guides": "unet,dit,ar",
        "tradeoff": ",".join([every, *NEWER]),
        "tradeoff_gpu": every,
        "lr_sweep": every,
        "dit_paper_ranks": "dit",
        "imagenet256": "dit",
    }
    assert cfg.hydra.sweeper.params.model == swept.get(experiment, "unet,dit,ar")
    assert cfg.train.unit in UNITS and make_budget(cfg.train, 40_000_000).steps >= 1
    assert cfg.data.source in ("procedural", "imagefolder", "hub")


@pytest.mark.parametrize("size", SIZES)
def test_equal_parameters_are_equal(size):
    counts = []
    heads = [("ar_continuous", "model.head=gmm"), ("masked_continuous", "model.head=flow")]
    for model, *head in [*((model,) for model in EQUAL), *heads]:
        cfg = composed(f"model={model}", *head, f"size={size}", "match=params")
        with torch.device("meta"):
            codebook = Codebook(cfg.size.get("codebook_size", 2048))
            counts.append(flops.params(build_model(cfg.model, (4, 8, 8), 100, codebook)))
    assert max(counts) / min(counts) < 1.05, counts


def test_a_match_sets_the_budget_s_unit_and_the_command_line_beats_it():
    assert composed("match=flops", "experiment=smoke").train.unit == "images", (
        "a preset's own budget stands"
    )
    timed = composed("match=time", "experiment=tradeoff")
    assert (timed.train.unit, timed.train.budget, timed.match) == ("minutes", 3, "time")
    assert composed("match=time", "experiment=tradeoff", "train.minutes=5").train.budget == 5
    assert composed("match=params", "experiment=tradeoff", "train.budget=64").train.budget == 64
    matched, free = composed("match=params", "model=unet"), composed("model=unet")
    assert matched.model.denoiser.channels != free.model.denoiser.channels


@pytest.mark.parametrize(
    "match, budget", [("time", "minutes"), ("params", "images"), ("flops", "budget")]
)
def test_a_budget_names_its_training_under_every_match(match, budget, tmp_path):
    """Two budgets are two trainings; what is kept on the way and how often it is saved are not."""
    tiny = [
        "data.train_images=20",
        "data.reference_images=10",
        "num_samples=10",
        "data.image_size=32",
        "features=local",
        f"cache_dir={tmp_path}",
    ]

    def key(*settings: str) -> str:
        return prepare(composed(f"match={match}", *tiny, *settings)).key

    assert key(f"train.{budget}=3") != key(f"train.{budget}=7")
    assert key() == key("train.snapshots=[0.5]", "train.checkpoint_seconds=7", "train.compile=true")


def test_a_network_that_changed_alone_is_trained_again_and_no_other(tmp_path, monkeypatch):
    tiny = ["data.train_images=20", "data.reference_images=10", "num_samples=10"]
    tiny += ["data.image_size=32", "features=local", f"cache_dir={tmp_path}"]

    def keys() -> list[str]:
        return [prepare(composed(f"model={name}", *tiny)).key for name in ("uvit", "dit")]

    uvit, dit = keys()
    monkeypatch.setitem(versions.NETWORKS, "models.uvit.UViT", 1000)
    assert keys()[0] != uvit and keys()[1] == dit
    monkeypatch.setattr(versions, "TRAINING", 1000)
    assert keys()[0] != uvit and keys()[1] != dit


def test_another_codebook_is_another_training_of_models_of_tokens_only(tmp_path):
    tiny = [
        "data.train_images=20",
        "data.reference_images=10",
        "num_samples=10",
        "data.image_size=32",
        "features=local",
        f"cache_dir={tmp_path}",
    ]

    def key(*settings: str) -> str:
        return prepare(composed(*tiny, *settings)).key

    small = "autoencoder.codebook_size=16"
    assert key("model=dit") == key("model=dit", small) != key("model=dit", "seed=1")
    assert key("model=ar", "steps=[64]") != key("model=ar", "steps=[64]", small)


def test_overrides_beat_presets_and_presets_beat_defaults():
    assert composed("experiment=cpu").steps == [2, 4, 8, 16]
    assert composed("experiment=smoke").steps != composed().steps
    assert composed("experiment=smoke", "steps=[3]", "data.image_size=64").data.image_size == 64
    assert composed("experiment=cpu", "data=imagefolder", "data.path=/x").data.image_size == 32, (
        "a preset's size holds for any data"
    )


def test_unknown_names_are_refused_by_hydra():
    for override in ("model=nonsense", "size=xxl", "experiment=nonsense", "data=nonsense"):
        with pytest.raises(HydraException, match=r"nonsense|xxl"):
            composed(override)


def test_a_model_s_refusal_is_one_line():
    cfg = composed("model=dit", "model.denoiser.heads=7")
    with pytest.raises(BadInput, match="width 128 is not a multiple of heads 7"):
        build_model(cfg.model, (4, 8, 8), 10, Codebook(32))


class Outsider(GenerativeModel):
    """Someone else's family: it takes what every family is given, and what its YAML says."""

    def __init__(self, latent_shape, num_classes, *, codebook, label_dropout, width, **rest):
        super().__init__(latent_shape, num_classes, label_dropout=label_dropout)
        self.width = width


def test_someone_else_s_family_needs_one_target():
    cfg = composed("model=ar", "model._target_=test_configs.Outsider", "model.width=77")
    built = build_model(cfg.model, (4, 8, 8), 10, Codebook(32))
    assert type(built).__name__ == "Outsider" and built.width == 77 and built.num_classes == 10


@pytest.mark.parametrize("name", config_names("sampler"))
def test_every_sampler_is_one_that_some_family_has(name):
    cfg = composed(f"sampler={name}")
    own = {*schedulers.samplers("flow"), *schedulers.samplers("eps"), *FlowMap.samplers}
    own |= {*Masked.samplers}
    assert name == "default" or name in own
    options = {"shift"}
    for model in (Diffusion, FlowMap, Masked, AnyOrder, ContinuousMasked, FlowHead):
        options |= set(model.sampler_defaults)
    # every option of every model can be set, and nothing else
    assert set(cfg.sampler) == {"name", *options}


@pytest.mark.parametrize("name", config_names("autoencoder"))
def test_every_autoencoder_says_where_its_codebook_comes_from(name):
    cfg = composed(f"autoencoder={name}", "size=s").autoencoder
    assert cfg.kind in ("shipped", "trained", "pixels", *CLASSES) and "codebook" in cfg
    assert (cfg.codebook_size is None) == (name == "shipped")
    small = composed(f"autoencoder={name}", "size=xs").autoencoder
    assert small.codebook_size == 512, "what its models of tokens were matched with"


def test_the_shipped_networks_load():
    local, content = load_extractors(composed().features)
    assert local.name == "local" and local.net.dim <= 256
    assert content.name == "efficientnet_lite0" and content.net.frechet_dim <= 256
    assert latent_shape(composed().autoencoder, 64) == (4, 16, 16)
    assert 512 <= shipped_codebook_size() <= 4096


def test_budgets_of_every_unit_become_the_same_steps():
    cfg = composed("train.batch=64").train
    per_image = 3 * 2 * 1_000_000
    for unit, budget in (("flops", per_image * 640), ("images", 640), ("steps", 10)):
        cfg.unit, cfg.budget = unit, budget
        assert make_budget(cfg, 1_000_000).steps == 10
    cfg.unit, cfg.budget = "minutes", 2
    assert make_budget(cfg, 1_000_000).seconds == 120
    for unit, budget in (("hours", 1), ("flops", 0), ("flops", -1)):
        cfg.unit, cfg.budget = unit, budget
        with pytest.raises(BadInput, match="train"):
            make_budget(cfg, 1_000_000)


def test_equal_flops_mean_equal_flops():
    """The families' budgets differ in images, not in FLOPs, up to half a batch."""
    cfg = composed("experiment=cpu").train
    for macs in (41_000_000, 42_600_000):
        budget = make_budget(cfg, macs)
        flops_spent = budget.steps * budget.batch * budget.flops_per_image
        half_a_batch = 0.5 * cfg.batch * 6 * macs
        assert flops_spent == pytest.approx(cfg.budget, abs=half_a_batch)
