"""Nothing in a training step or in sampling makes the host wait for a GPU.

Seen without one, on the meta device.
"""

import contextlib

import pytest
import torch
from conftest import ENTRIES, FAMILIES, random_batch, rng, steps_of, tiny
from test_train import latent_set
from waiting import NoWaiting, Waited

from benchmarks.frozen.autoencoder import LatentSpace
from benchmarks.stages.sample import SamplingConfig, sampler
from benchmarks.stages.train_state import InPlaceEMA
from models import schedulers
from models.autoencoder import Autoencoder
from models.codebook import Codebook
from models.generator import Batch
from models.randomness import to_device

META = torch.device("meta")
CACHED = ("ar", "ar-block4", "any")  # these decode in static buffers on CUDA
SAMPLERS = ("unet-unipc", "dit-v-heun", "dit-eps-dpmpp", "dit-v-euler", "dit-v-ddim", "dit-x0-ddpm")


@pytest.mark.parametrize("name", FAMILIES)
def test_a_training_step_waits_for_nothing(name):
    """Batch, loss, gradients, optimiser and average.

    No value is read, no tensor of the host is used, and all copies are asynchronous.
    """
    model, data = tiny(name).to(META).train(), latent_set().to(META)
    optimizer = torch.optim.AdamW(model.parameters(), foreach=True)
    average = InPlaceEMA(model.parameters(), decay=0.999, foreach=True)
    with NoWaiting():
        loss = model(data.batch(0, 3, 4), rng=rng())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        average.step(model.parameters())


GROWING = [(name, False) for name in (*FAMILIES, *SAMPLERS)]
STATIC = [(name, True) for name in CACHED]


@pytest.mark.parametrize("guidance", [1.0, 2.5])
@pytest.mark.parametrize("name, static", GROWING + STATIC)
def test_sampling_waits_for_nothing(name, guidance, static):
    model = tiny(name).to(META).eval()
    model.static_decoding = static
    labels = torch.zeros(3, dtype=torch.long, device=META)
    with NoWaiting(), model.fixed_weights():
        out = model.sample(labels, steps=steps_of(model), guidance=guidance, rng=rng())
    assert out.device == META


@pytest.mark.parametrize("name", ["dit", "ar"])
def test_images_are_sampled_and_decoded_without_waiting(name, monkeypatch):
    """Up to their way to the host."""
    # There is no autocast for the meta device.
    monkeypatch.setattr(torch, "autocast", lambda *args, **kwargs: contextlib.nullcontext())
    model = tiny(name).to(META).eval()
    space = LatentSpace(
        Autoencoder().to(META), Codebook(ENTRIES).to(META), "tiny", "tiny 64", "", ""
    )
    setting = SamplingConfig(
        steps=steps_of(model), guidance=2.0, count=4, batch=4, seed=0, precision="fp32"
    )
    with sampler(model, space, latent_set(), setting, META) as sampled, NoWaiting():
        arriving = sampled(torch.arange(4), rng())
    assert arriving.images.shape == (4, 3, 32, 32) and arriving.images.device == META


def test_only_what_lies_on_the_host_is_pinned(monkeypatch):
    """CUDA refuses to pin what it already has, for which a tensor of meta stands here."""
    pinned = []

    def pin_memory(x: torch.Tensor) -> torch.Tensor:
        pinned.append(x.device.type)
        return x

    monkeypatch.setattr(torch.Tensor, "pin_memory", pin_memory)
    monkeypatch.setattr(torch.Tensor, "to", lambda x, *a, **k: x)
    for where in ("meta", "cpu"):
        to_device(torch.zeros(1, device=where), torch.device("cuda"))
    assert pinned == ["cpu"]


@pytest.mark.parametrize("name", ["unet-unipc", "dit-v-ddpm"])
def test_some_schedulers_would_wait_if_they_were_let(name, monkeypatch):
    monkeypatch.setattr(schedulers, "WithoutWaiting", contextlib.nullcontext)
    model, labels = tiny(name).to(META).eval(), torch.zeros(3, dtype=torch.long, device=META)
    with pytest.raises(Waited, match="waits"), NoWaiting():
        model.sample(labels, steps=4, guidance=1.0, rng=rng())


@pytest.mark.parametrize("name", ["unet-unipc", "dit-v-ddpm", "dit-x0-unipc"])
def test_a_scheduler_that_is_not_waited_for_gives_the_same_samples(name, monkeypatch):
    model, labels = tiny(name).eval(), torch.tensor([0, 1])
    ours = model.sample(labels, steps=5, guidance=2.0, rng=rng())
    monkeypatch.setattr(schedulers, "WithoutWaiting", contextlib.nullcontext)
    assert torch.equal(ours, model.sample(labels, steps=5, guidance=2.0, rng=rng()))


def _on(device: torch.device) -> torch.Tensor:
    return torch.zeros(3, device=device)


@pytest.mark.parametrize(
    "waits",
    [
        lambda: _on(META).sum().item(),
        lambda: bool(_on(META).sum() > 0),
        lambda: torch.zeros(3).to(META),
        lambda: _on(META).cpu(),
        lambda: torch.tensor(1.0, device=META),
        lambda: torch.tensor(1.0).to(META),
        lambda: _on(META) + torch.zeros(3),
        lambda: _on(META)[torch.zeros(3, dtype=torch.long)],
        lambda: _on(META).nonzero(),
        lambda: _on(META).copy_(torch.zeros(3)),
    ],
)
def test_what_waits_is_seen(waits):
    with pytest.raises((Waited, RuntimeError, NotImplementedError)), NoWaiting():
        waits()


def test_what_does_not_wait_is_let_through():
    with NoWaiting():
        # A number of the host is an argument of the kernel.
        assert (_on(META) * torch.tensor(2.0) + 1).device == META
        torch.zeros(3).to(META, non_blocking=True)
        _on(META).copy_(torch.zeros(3), non_blocking=True)


def test_a_batch_of_the_host_is_seen():
    """A stray tensor: labels left on the CPU."""
    model = tiny("dit").to(META).train()
    batch = Batch(*(x.to(META) for x in random_batch()))._replace(labels=random_batch().labels)
    with pytest.raises((Waited, RuntimeError)), NoWaiting():
        model(batch, rng=rng())
