"""On a GPU: the contract of every family, nothing that waits, the numbers of a CPU, resuming, a
whole bench.

`pytest tests/test_cuda.py --on=cpu` runs the same code without a GPU, so that none of its lines is
new on the day there is one.
"""

import contextlib
from collections.abc import Iterator
from functools import partial
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from benches import run as run_bench
from conftest import CLASSES, ENTRIES, FAMILIES, SHAPE, TOKENS, random_batch, rng, steps_of, tiny
from test_train import CFG, _Killed, latent_set
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.core.environment import device_name
from benchmarks.frozen.autoencoder import LatentSpace
from benchmarks.stages.compiling import Compiler
from benchmarks.stages.model import place_on
from benchmarks.stages.precision import bf16_weights
from benchmarks.stages.sample import SamplingConfig, sampler
from benchmarks.stages.train import train
from benchmarks.stages.train_state import build_train_state
from metrics import speed
from metrics.features import WEIGHTS, LocalFeatures, extract
from models import decoding
from models.autoencoder import Autoencoder
from models.codebook import Codebook
from models.generator import Batch

pytestmark = pytest.mark.cuda
CPU = torch.device("cpu")
CACHED = ("ar", "ar-block4", "any")
LOSSES = ("unet", "dit", "ar", "any", "masked")


def on(device: torch.device, batch: Batch) -> Batch:
    return Batch(*(x.to(device) for x in batch))


def placed(name: str, device: torch.device):
    return place_on(tiny(name), device)


@contextlib.contextmanager
def waiting_is_an_error(device: torch.device) -> Iterator[None]:
    """torch raises where the host waits for CUDA; elsewhere nothing is watched."""
    if device.type != "cuda":
        yield
        return
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def training(name: str, device: torch.device, **changes):
    """A model in training, its train state, and data, all on `device`."""
    cfg = SimpleNamespace(**vars(CFG) | {"precision": "bf16"} | changes)
    model = placed(name, device).train()
    return model, build_train_state(model, cfg, 1e-3, device), latent_set().to(device)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_training_step_waits_for_nothing(name, device):
    _, state, data = training(name, device)
    for step in range(3):
        with waiting_is_an_error(device) if step else contextlib.nullcontext():
            loss = state.step(data.batch(0, step, 96), rng(step))
    assert loss.isfinite()


@pytest.mark.parametrize("name", ["dit", "ar"])
def test_images_are_sampled_batch_after_batch_without_waiting(name, device):
    """One batch is decoded and on its way to the host while the device is given the next."""
    model = placed(name, device).eval()
    space = LatentSpace(
        Autoencoder().to(device), Codebook(ENTRIES).to(device), "tiny", "tiny 64", "", ""
    )
    config = SamplingConfig(
        steps=steps_of(model), guidance=2.0, count=8, batch=4, seed=0, precision="bf16"
    )
    with sampler(model, space, latent_set(), config, device) as sampled:
        for _ in range(3):
            sampled(torch.arange(4), rng()).arrived()
        with waiting_is_an_error(device):
            under_way = [sampled(torch.arange(4), rng(seed)) for seed in (1, 2)]
        images = [batch.arrived() for batch in under_way]
    assert all(
        x.shape == (4, 3, 32, 32) and x.dtype == torch.uint8 and x.device.type == "cpu"
        for x in images
    )
    assert not torch.equal(*images)


@pytest.mark.parametrize("guidance", [1.0, 2.5])
@pytest.mark.parametrize("name", [*FAMILIES, "unet-unipc"])
def test_sampling_waits_for_nothing(name, guidance, device):
    model, labels = placed(name, device).eval(), torch.arange(4, device=device)
    with bf16_weights(model, "bf16"), model.fixed_weights():
        for call in range(4):  # kernels are chosen in the first, graphs captured in the second
            with (
                waiting_is_an_error(device) if call > 1 else contextlib.nullcontext(),
                torch.autocast(device.type, torch.bfloat16),
            ):
                out = model.sample(labels, steps=steps_of(model), guidance=guidance, rng=rng(call))
    assert out.shape == (4, *SHAPE) and out.isfinite().all()


def flat_gradients(model: torch.nn.Module) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


@pytest.mark.parametrize("name", FAMILIES)
def test_losses_and_gradients_are_those_of_a_cpu(name, device):
    """In float32, from the same random numbers, which are drawn on the host everywhere."""
    losses, gradients = [], []
    for where in (CPU, device):
        model = placed(name, where).train()
        loss = model(on(where, random_batch()), rng=rng())
        loss.backward()
        losses.append(loss.item())
        gradients.append(flat_gradients(model).cpu())
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    assert (gradients[1] - gradients[0]).norm() < 1e-3 * gradients[0].norm()


@pytest.mark.parametrize(
    "name", ["unet", "dit", "unet-heun", "unet-flow-dpmpp", "unet-unipc", "dit-v"]
)
def test_ode_samples_are_those_of_a_cpu(name, device):
    samples = []
    for where in (CPU, device):
        model, labels = placed(name, where).eval(), torch.arange(3, device=where)
        samples.append(model.sample(labels, steps=4, guidance=2.0, rng=rng()).cpu())
    torch.testing.assert_close(samples[1], samples[0], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["ar", "ar-block4", "any", "masked"])
def test_tokens_are_those_of_a_cpu(name, device):
    """All but a few.

    Where the cumulated probabilities of the two lie on either side of a number, one rounding
    decides, and what follows.
    """
    tokens = []
    for where in (CPU, device):
        model, labels = placed(name, where).eval(), torch.arange(4, device=where)
        steps = steps_of(model)
        ids = model.sample_tokens(labels, steps=steps, guidance=1.0, rng=rng())
        tokens.append(ids.cpu())
    assert (tokens[0] == tokens[1]).float().mean() > 0.9


@pytest.mark.parametrize("guidance", [1.0, 2.5])
@pytest.mark.parametrize("name", CACHED)
def test_a_replayed_graph_gives_the_tokens_of_its_steps(name, guidance, device):
    model, labels = placed(name, device).eval(), torch.arange(4, device=device)
    model.set_sampler(guidance_schedule="linear")
    for steps in model.supported_steps([7, 16, TOKENS])[:2]:
        expected = [
            model.sample_tokens(labels, steps=steps, guidance=guidance, rng=rng(seed))
            for seed in (1, 2, 3)
        ]
        with model.fixed_weights():
            for seed, wanted in zip((1, 2, 3), expected, strict=True):
                ids = model.sample_tokens(labels, steps=steps, guidance=guidance, rng=rng(seed))
                assert torch.equal(ids, wanted)
            (kept,) = model._kept.values()
            captured = any(graph is not None for graph in kept.steps.graphs.values())
        assert captured == (device.type == "cuda"), "on CUDA steps are replayed"


@pytest.mark.parametrize("name", CACHED)
def test_static_steps_in_bf16_give_the_tokens_of_growing_caches(name, device):
    """All but a few, where a rounding decides: masked attention has its own kernel in bf16."""
    model, labels = placed(name, device).eval(), torch.arange(8, device=device) % CLASSES
    tokens = []
    for static in (False, True):
        model.static_decoding = static
        with torch.autocast(device.type, torch.bfloat16):
            ids = model.sample_tokens(labels, steps=steps_of(model), guidance=1.0, rng=rng())
        tokens.append(ids)
    # Of the first tokens: one that differs changes all behind it.
    agree = tokens[0][:, : TOKENS // 8] == tokens[1][:, : TOKENS // 8]
    assert agree.float().mean() > 0.8


@pytest.mark.parametrize("name", ["ar", "ar-block4"])
def test_gradients_through_attention_in_bf16_are_those_of_plain_attention(name, device):
    """Whatever kernel torch chooses for it."""
    gradients = []
    for kernel in (contextlib.nullcontext, partial(sdpa_kernel, SDPBackend.MATH)):
        model = placed(name, device).train()
        with kernel():
            with torch.autocast(device.type, torch.bfloat16):
                loss = model(on(device, random_batch(32)), rng=rng())
            loss.backward()
        gradients.append(flat_gradients(model))
    assert gradients[0].isfinite().all()
    assert (gradients[0] - gradients[1]).norm() < 0.1 * gradients[1].norm()


@pytest.mark.parametrize("name", CACHED)
def test_graphs_see_other_weights(name, device):
    """What one set of weights captured is gone with them."""
    model, labels = placed(name, device).eval(), torch.arange(4, device=device)
    for scale in (1.0, -1.0):
        with torch.no_grad():
            model.head.weight.mul_(scale)
        plain = model.sample_tokens(labels, steps=steps_of(model), guidance=1.0, rng=rng())
        with bf16_weights(model, "fp32"), model.fixed_weights():
            for _ in range(3):
                ids = model.sample_tokens(labels, steps=steps_of(model), guidance=1.0, rng=rng())
                assert torch.equal(ids, plain)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_sample_does_not_depend_on_its_batch(name, device):
    model, labels = placed(name, device).eval(), torch.arange(6, device=device) % CLASSES
    steps = steps_of(model)
    whole = model.sample(labels, steps=steps, guidance=1.0, rng=rng())
    source = rng()
    batches = [model.sample(few, steps=steps, guidance=1.0, rng=source) for few in labels.split(3)]
    agree = (whole - torch.cat(batches)).abs().flatten(1).amax(1) < 1e-3
    assert agree.float().mean() > 0.8, "one rounding may decide a token, and what follows"


@pytest.mark.parametrize("name", LOSSES)
def test_a_compiled_loss_is_the_loss(name, device):
    """Needs a C++ compiler; on a CPU only the graph is made."""
    model, batch = placed(name, device).train(), on(device, random_batch())
    with torch.autocast(device.type, torch.bfloat16):
        expected = model(batch, rng=rng())
        backend = "inductor" if device.type == "cuda" else "eager"
        error = type(model).error.__get__(model)
        model.error = torch.compile(error, backend=backend, fullgraph=True)
        loss = model(batch, rng=rng())
        loss.backward()
    torch.compiler.reset()
    torch.testing.assert_close(loss, expected, atol=2e-2, rtol=2e-2)


def test_a_killed_training_goes_on_as_if_it_had_not_been(tmp_path, device, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    options = dict(lr=1e-3, seed=0, forward_macs=1000, key="key", device=device)
    whole, broken = placed("dit", device), placed("dit", device)
    data, killer = latent_set().to(device), _Killed(**vars(latent_set())).to(device)
    train(whole, data, CFG, folder=tmp_path / "whole", **options)
    with pytest.raises(KeyboardInterrupt):
        train(broken, killer, CFG, folder=tmp_path / "broken", **options)
    train(broken, data, CFG, folder=tmp_path / "broken", **options)
    expected, weights = (
        torch.cat([p.detach().flatten() for p in model.parameters()]) for model in (whole, broken)
    )
    # Not closer: Adam makes much of a gradient that is only rounding.
    assert (weights - expected).norm() < 1e-2 * expected.norm()


def test_a_training_that_goes_on_compiled_says_what_that_gave(tmp_path, device, monkeypatch):
    if device.type == "cpu":  # where generating code takes long
        monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    model, state, data = training("dit", device)
    compiler = Compiler(True, 10**9, device, tmp_path / "compile.json")
    for step in range(40):
        batch = data.batch(0, step, 4)
        state.step(batch, rng(step))
        compiler.after(state, step + 1, batch)
    model.uncompile_error()
    summary = compiler.summary()
    assert summary["startup_seconds"] > 0 and summary["compiled_step_seconds"] > 0
    assert (tmp_path / "compile.json").exists()


def test_laps_are_the_device_s_own_time(device):
    x = torch.randn(512, 512, device=device)
    x @ x  # kernels are loaded by the first product
    speed.synchronise(device)
    laps = speed.Laps(device)
    for times in (1, 200):
        for _ in range(times):
            x @ x
        laps.mark()
    short, long = laps.seconds()
    assert 0 < short < long


def test_features_are_float32_and_those_of_a_cpu(device):
    torch.manual_seed(0)
    net = LocalFeatures(90).eval()
    images = torch.randint(256, (300, 3, 32, 32), dtype=torch.uint8).numpy()
    assert WEIGHTS.exists()
    expected = extract(net, images)
    with torch.autocast(device.type, torch.bfloat16):
        features = extract(net, images, device=device)
    assert features.dtype == torch.float32 and features.device.type == "cpu"
    torch.testing.assert_close(features, expected, atol=1e-3, rtol=1e-3)


def test_a_cache_is_of_the_device(device):
    steps = decoding.Steps(8, device, static=True, captured=False)
    cache, new = decoding.Cache(8), torch.ones(1, 1, 1, 4, device=device)
    keys, _ = cache.extend(new, new, steps.window(0, 1))
    assert keys.device.type == device.type and keys.isfinite().all()


def test_a_whole_smoke_bench(tmp_path, device):
    """As a user runs it: every family measured, on this device, with its memory."""
    code, _, err = run_bench(
        tmp_path,
        "experiment=smoke",
        "num_samples=40",
        "data.reference_images=40",
        f"device={device.type}",
    )
    assert code == 0, err
    rows = pd.read_csv(tmp_path / "results" / "smoke" / "results.csv")
    assert set(rows["model"]) == {"unet", "dit", "ar"} and (rows["status"] == "ok").all()
    assert (rows["device"] == device_name(device)).all() or device.type == "cpu"
    costs = ["seconds_per_image", "latency_seconds", "peak_memory_mb", "train_utilisation"]
    assert (rows[["fd", *costs]] > 0).all(axis=None)
