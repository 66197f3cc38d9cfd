"""Pixels in the place of latents, and the objective that goes with them."""

import pytest
import torch
from conftest import CLASSES, SHAPE, composed, random_batch, rng, tiny

from benchmarks.core.errors import BadInput
from benchmarks.frozen.autoencoder import latent_shape, load_autoencoder
from benchmarks.stages.model import build_model
from models.codebook import Codebook
from models.diffusion import Diffusion
from models.generator import Batch
from models.pixels import Pixels


@pytest.mark.parametrize("patch", [1, 4, 8])
def test_an_image_comes_back_exactly_whitened_or_not(patch):
    images = torch.randint(256, (3, 3, 32, 32), generator=rng()).byte()
    pixels = Pixels(patch)
    latents = pixels.encode(images)
    assert latents.shape == (3, 3 * patch**2, 32 // patch, 32 // patch)
    assert torch.equal(pixels.decode(latents), images)
    mean, std = (x[:, None, None] for x in (latents.mean((0, 2, 3)), latents.std((0, 2, 3))))
    assert torch.equal(pixels.decode((latents - mean) / std * std + mean), images)


def test_a_latent_is_the_patch_at_its_place():
    images = torch.zeros(1, 3, 16, 16, dtype=torch.uint8)
    images[:, :, 4:8, 12:16] = 255
    (latents,) = Pixels(4).encode(images)
    assert (latents[:, 1, 3] == 1).all() and (latents == 1).sum() == 48


def test_the_configuration_names_the_patch_and_refuses_one_that_does_not_divide():
    cfg = composed("autoencoder=pixels").autoencoder
    assert latent_shape(cfg, 64) == (48, 16, 16)
    other = composed("autoencoder=pixels", "autoencoder.patch=5").autoencoder
    with pytest.raises(BadInput, match=r"autoencoder\.patch=5 takes multiples of 5"):
        latent_shape(other, 64)
    assert load_autoencoder(cfg)[1] != load_autoencoder(other)[1], "what is cached of one is not"


class Oracle(torch.nn.Module):
    """Predicts the same data, whatever it is shown."""

    def __init__(self, data: torch.Tensor):
        super().__init__()
        self.data = data

    def forward(self, x, t, labels):
        return self.data[: len(x)]


def test_a_network_that_knows_the_data_has_no_loss_and_samples_it_in_any_number_of_steps():
    batch = random_batch()
    model = Diffusion(
        SHAPE, CLASSES, denoiser=lambda *_: Oracle(batch.latents), objective="flow_x0"
    )
    x, noise, _, labels = model.inputs(batch, rng=rng())
    assert model.error(x, noise, torch.full((6,), 0.3), labels) < 1e-9
    for sampler in model.samplers:
        model.set_sampler(sampler)
        for steps in (1, 2, 7, 16, 64):
            sampled = model.sample(batch.labels, steps=steps, guidance=1.0, rng=rng())
            exact = sampler in ("euler", "heun")  # the others begin at 0.999 of noise, and so end
            close = dict(rtol=0, atol=1e-5 if exact else 2e-2)
            torch.testing.assert_close(sampled, batch.latents, **close)


def test_the_configured_model_learns_and_samples_patches_of_48_numbers():
    """Every weight takes part, the bottleneck's too, and a sample does not depend on its batch."""
    shape = (48, 4, 4)
    model = build_model(composed("model=dit_pixels").model, shape, CLASSES, Codebook(4, 48))
    for p in model.parameters():
        if p.abs().max() == 0:  # gates and the output, which begin at zero
            torch.nn.init.normal_(p, std=0.05)
    latents = torch.randn(6, *shape, generator=rng(1))
    model(Batch(latents, None, torch.arange(6) % CLASSES), rng=rng()).backward()
    assert all(p.grad.isfinite().all() and p.grad.any() for p in model.parameters())
    labels, source = torch.arange(3), rng(5)
    whole = model.eval().sample(labels, steps=2, guidance=1.5, rng=rng(5))
    parts = [model.sample(n, steps=2, guidance=1.5, rng=source) for n in labels.split([1, 2])]
    assert whole.shape == (3, *shape) and whole.isfinite().all()
    torch.testing.assert_close(torch.cat(parts), whole, rtol=1e-4, atol=1e-4)


def test_near_data_the_loss_weighs_no_more_than_at_a_twentieth():
    """Prediction and target are divided alike, so that the data itself is the optimum anywhere."""
    batch = random_batch()
    model = Diffusion(
        SHAPE, CLASSES, denoiser=lambda *_: Oracle(batch.latents + 1), objective="flow_x0"
    )
    x, noise, _, labels = model.inputs(batch, rng=rng())
    for time, expected in ((0.01, 400.0), (0.05, 400.0), (0.1, 100.0)):
        loss = model.error(x, noise, torch.full((6,), time), labels).item()
        assert loss == pytest.approx(expected, rel=1e-4)
    model.denoiser.data = batch.latents
    assert model.error(x, noise, torch.full((6,), 0.01), labels) < 1e-8


def test_times_have_the_mean_that_is_asked_for():
    batch = random_batch(4000)
    times = tiny("dit-flow_x0", time_mean=0.8).inputs(batch, rng=rng())[2]
    assert times.logit().mean() == pytest.approx(0.8, abs=0.06)  # four errors
    with pytest.raises(
        ValueError, match=r"model\.time_mean=0\.8: only of objectives flow, flow_x0"
    ):
        tiny("dit-eps", time_mean=0.8)
