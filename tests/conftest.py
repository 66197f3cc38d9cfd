"""Tiny members of every family, batches for them, and configurations."""

import gc
import os
from collections.abc import Container, Iterable

# Processes that share the cores have one thread each, of every library (which read this when they
# are imported) and of the commands they start.
if "PYTEST_XDIST_WORKER" in os.environ:
    for library in ("OMP", "OPENBLAS", "MKL"):
        os.environ[f"{library}_NUM_THREADS"] = "1"

from copy import deepcopy
from functools import cache, partial

import pytest
import tally
import torch

from benchmarks.core.environment import pick_device
from benchmarks.core.session import session
from benchmarks.core.settings import compose
from benchmarks.reports import summary
from benchmarks.stages.faster_precision import HOPELESS
from metrics import speed
from models.any_order import AnyOrder
from models.ar_scale import AutoregressiveScales
from models.autoregressive import Autoregressive
from models.codebook import Codebook
from models.continuous import ContinuousMasked, ContinuousRaster
from models.diffusion import Diffusion
from models.dit import DiT
from models.flowmap import FlowMap
from models.generator import Batch, GenerativeModel
from models.masked import Masked
from models.schedulers import FLOWS, PREDICTION
from models.unet import UNet
from models.uvit import UViT

# What is imported by now stays: the collector, which a bench calls often, need not look at it.
gc.collect()
gc.freeze()

ALL = os.environ.get("TESTS") == "all"  # of `make test-long`
# of tests made in both: float32 in `make test-long` only
PRECISIONS = [pytest.param("fp32", marks=pytest.mark.long), "bf16"]
SHAPE, CLASSES, ENTRIES = (4, 8, 8), 5, 64
TOKENS = SHAPE[1] * SHAPE[2]
CONTINUOUS = {"raster": ContinuousRaster, "random": ContinuousMasked}
TOKEN_MODELS = {"ar": Autoregressive, "any": AnyOrder, "masked": Masked}
FAMILIES = (
    "unet",
    "dit",
    "ar",
    "ar-block4",
    "any",
    "masked",
    "masked-random",
    "scale",
    "dit-eps",
    "dit-v",
    "dit-x0",
    "dit-flow_x0",
    "unet-heun",
    "dit-v-ddpm",
    "dit-x0-unipc",
    "unet-flow-dpmpp",
    "dit-flowmap",
    "unet-flowmap",
    "dit-flowmap-renoise",
    "uvit",
    "unet-conv",
    "dit-flow_x0-bottleneck",
    "raster-gmm",
    "raster-flow",
    "random-gmm",
    "random-flow",
)
# those of another loss or network, not of another sampler alone
SAMPLED_OTHERWISE = ("unet-heun", "dit-v-ddpm", "dit-x0-unipc", "unet-flow-dpmpp")
SAMPLED_OTHERWISE += ("dit-flowmap-renoise",)
LOSSES = tuple(name for name in FAMILIES if name not in SAMPLED_OTHERWISE)
# In tests that are dear these wait for `make test-long`. `dit-v` has their way of training with
# another target, `dit-flow_x0-bottleneck` the same one, `unet` the blocks of `unet-conv` and more.
KIN = ("dit-eps", "dit-x0", "dit-flow_x0", "unet-conv")


def partly_long(values: Iterable, long: Container) -> list:
    """Values, or tuples of them, as parameters; those in `long` are of `make test-long` only."""
    parameters = []
    for value in values:
        arguments = value if isinstance(value, tuple) else (value,)
        parameters.append(pytest.param(*arguments, marks=pytest.mark.long if value in long else ()))
    return parameters


@cache
def bf16_is_hopeless() -> bool:
    """Whether this processor has no bfloat16 to speak of: products take ten times as long."""
    rates = speed.product_flops(torch.device("cpu"))
    return rates[torch.float32] > HOPELESS * rates[torch.bfloat16]


def tiny(name: str, **extra) -> GenerativeModel:
    """A small model of a family, with variants as in `dit-v-ddpm`; `extra` goes to its class.

    It is not degenerate: zero-initialised layers are filled, so that every input matters.
    """
    torch.manual_seed(0)
    family, *variants = name.split("-")
    if family in TOKEN_MODELS:
        model = _tiny_token_model(family, variants, **extra)
    elif family == "scale":
        size = dict(width=32, depth=2, heads=2, mlp=64, entries=ENTRIES)
        model = AutoregressiveScales(SHAPE, CLASSES, **size, **extra)
        model.codebook.entries.normal_()
    elif family in CONTINUOUS:
        size = dict(width=32, depth=2, heads=2, mlp=64, head=variants[0])
        model = CONTINUOUS[family](SHAPE, CLASSES, **size, **extra)
        if "flow" in variants:
            model.set_sampler(head_steps=3)  # 25 would take the tests long
    else:
        model = _tiny_diffusion(family, variants, **extra)
    with torch.no_grad():
        for p in model.parameters():
            if p.abs().max() == 0:
                p.normal_(std=0.05)
        if family in (*TOKEN_MODELS, "scale"):
            model.head.weight.normal_(std=0.2 if family == "scale" else 0.5)
            for module in model.modules():
                if isinstance(module, torch.nn.Embedding):  # classes and tokens weigh the same
                    module.weight.normal_()
    return model


def _tiny_token_model(family: str, variants: list[str], **extra) -> GenerativeModel:
    book = Codebook(ENTRIES)
    book.entries.normal_()
    if "block4" in variants:
        extra["block"] = 4
    size = dict(width=32, depth=2, heads=2, mlp=64)
    model = TOKEN_MODELS[family](SHAPE, CLASSES, codebook=book, **size, **extra)
    model.set_sampler(next((v for v in variants if v in model.samplers), None))
    return model


def _tiny_diffusion(family: str, variants: list[str], **extra) -> GenerativeModel:
    denoisers = {
        "unet": partial(UNet, channels=[16, 32], layers=1, groups=4, head_dim=8),
        "dit": partial(DiT, width=32, depth=2, heads=2),
        "uvit": partial(UViT, width=32, depth=3, heads=2, mlp=64),
    }
    if "conv" in variants:
        denoisers["unet"] = partial(denoisers["unet"], attention_from=None)
    if "bottleneck" in variants:
        denoisers["dit"] = partial(denoisers["dit"], bottleneck=3)
    if "flowmap" in variants:
        model: GenerativeModel = FlowMap(SHAPE, CLASSES, denoiser=denoisers[family], **extra)
        model.progress = 0.75  # past the curriculum's first part, which is the flow's own loss
    else:
        objectives = (*FLOWS, *PREDICTION)
        objective = next((v for v in variants if v in objectives), "flow")
        model = Diffusion(SHAPE, CLASSES, denoiser=denoisers[family], objective=objective, **extra)
    model.set_sampler(next((v for v in variants if v in model.samplers), None))
    return model


def pytest_sessionfinish() -> None:
    """The tally of faults, where it is asked for."""
    tally.write()


def composed(*overrides: str):
    """The configuration of the command line `overrides`: a copy, for a test to change."""
    return deepcopy(_composed(overrides))


@cache
def _composed(overrides: tuple[str, ...]):
    return compose(*overrides, return_hydra_config=True)


def steps_of(model: GenerativeModel) -> int:
    """A step count that the model supports."""
    return model.supported_steps([4, 16, TOKENS, 1])[0]  # 4 is the scales of 8 places a side


def random_batch(count: int = 6, seed: int = 1) -> Batch:
    """Latents and tokens that have nothing to do with each other."""
    rng = torch.Generator().manual_seed(seed)
    return Batch(
        torch.randn(count, *SHAPE, generator=rng),
        torch.randint(ENTRIES, (count, TOKENS), generator=rng),
        torch.arange(count) % CLASSES,
    )


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(params=FAMILIES)
def model(request) -> GenerativeModel:
    """A test that asks for it is run for each family."""
    return tiny(request.param)


def pytest_addoption(parser) -> None:
    parser.addoption(
        "--on",
        choices=["cuda", "cpu"],
        default="cuda",
        help="device of the tests marked cuda; cpu runs their code without one",
    )


# minutes in a single file: begun first, or one process would run it while the others wait
LONGEST = ("test_reference_rehearsal.py", "test_docs.py", "test_bench.py", "test_weights.py")


def pytest_collection_modifyitems(config, items) -> None:
    """Tests marked cuda are skipped where there is none, unless asked for on a CPU; those marked
    long wherever not all are asked for.
    """
    items.sort(key=lambda item: item.path.name not in LONGEST)
    for item in items if not ALL else ():
        if item.get_closest_marker("long"):
            item.add_marker(pytest.mark.skip(reason="takes minutes: make test-long"))
    if config.getoption("--on") == "cuda" and not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("cuda"):
                item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@pytest.fixture
def device(request) -> torch.device:
    """Where the tests marked cuda run, with the exactness that a bench has there."""
    return pick_device(request.config.getoption("--on"))


@pytest.fixture
def no_figures(monkeypatch) -> None:
    """Of benches in this process: plots take most of the time of a small report."""
    monkeypatch.setattr(summary, "_figures", lambda report, place: [])
    monkeypatch.setattr(summary, "_sample_grids", lambda report: [])


@pytest.fixture(autouse=True)
def fresh_session() -> None:
    """Every test begins as a process does: nothing printed, nothing failed."""
    session.__init__()
