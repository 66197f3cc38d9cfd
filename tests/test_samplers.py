"""Every objective with every sampler diffusers has for it: exact on one point, right in spread on a
Gaussian, counted, guided in part.
"""

from functools import partial

import pytest
import torch
from conftest import CLASSES, SHAPE, composed, rng, tiny

from benchmarks.core.errors import BadInput
from benchmarks.stages.model import choose_sampler, on_meta, sampling_macs
from models import schedulers
from models.diffusion import Diffusion
from models.schedulers import CHAIN, PREDICTION

EVERY = [
    (objective, name)
    for objective in ("flow", *PREDICTION)
    for name in schedulers.samplers(objective)
]
MEAN, SPREAD = 0.7, 0.5


class _Gaussian(torch.nn.Module):
    """The exact denoiser of data N(MEAN, SPREAD^2), independent per element; remembers when it was
    asked.
    """

    def __init__(self, shape, num_classes, objective):
        super().__init__()
        self.objective, self.times = objective, []
        self.log_alphas = torch.cumsum(
            torch.log1p(-torch.linspace(1e-4, 0.02, CHAIN, dtype=torch.float64)), 0
        )

    def forward(self, x, t, labels):
        self.times.append(t[0].item())
        if self.objective == "flow":
            a, b = 1 - t[0].double() / CHAIN, t[0].double() / CHAIN
        else:
            low = t[0].long()
            part = t[0].double() - low
            alpha = torch.lerp(
                self.log_alphas[low], self.log_alphas[(low + 1).clamp(max=CHAIN - 1)], part
            ).exp()
            a, b = alpha.sqrt(), (1 - alpha).sqrt()
        centred, variance = x.double() - a * MEAN, a**2 * SPREAD**2 + b**2
        x0, noise = MEAN + a * SPREAD**2 * centred / variance, b * centred / variance
        return {"flow": noise - x0, "eps": noise, "x0": x0, "v": a * noise - b * x0}[
            self.objective
        ].float()


def exact(objective: str, name: str) -> Diffusion:
    model = Diffusion(
        SHAPE, CLASSES, denoiser=partial(_Gaussian, objective=objective), objective=objective
    )
    model.set_sampler(name)
    return model


@pytest.mark.parametrize("objective, name", EVERY)
def test_a_gaussian_is_drawn_with_its_mean_and_spread(objective, name):
    """16,384 numbers: 100 steps give the mean to 0.02 and the spread to 4%, DDPM (first order,
    small variance) needs 1000; one step collapses to the mean.
    """
    model = exact(objective, name)
    labels = torch.zeros(64, dtype=torch.long)
    out = model.sample(labels, steps=1000 if name == "ddpm" else 100, guidance=1.0, rng=rng())
    assert out.mean().item() == pytest.approx(MEAN, abs=0.02)
    assert out.std().item() == pytest.approx(SPREAD, rel=0.04)
    one = model.sample(labels, steps=1, guidance=1.0, rng=rng())
    assert one.mean().item() == pytest.approx(MEAN, abs=0.02)
    assert one.std().item() < 0.1


@pytest.mark.parametrize("objective, name", EVERY)
def test_evaluations_are_counted_as_they_are_spent(objective, name):
    model = exact(objective, name)
    for steps in (1, 2, 5, 250):
        model.denoiser.times.clear()
        model.sample(torch.tensor([0]), steps=steps, guidance=1.0, rng=rng())
        assert (
            len(model.denoiser.times)
            == model.nfe(steps, 1.0)
            == (2 * steps - 1 if name == "heun" else steps)
        )
        assert model.denoiser.times[0] >= 999, "the grid begins at pure noise"


def test_more_steps_are_nearer_the_answer_and_better_samplers_nearer_with_fewer():
    """A point's exact answer by 1,000 Euler steps; second-order samplers beat Euler at eight."""
    labels = torch.zeros(4, dtype=torch.long)
    answer = exact("flow", "euler").sample(labels, steps=1000, guidance=1.0, rng=rng())
    error = lambda name, steps: (
        (exact("flow", name).sample(labels, steps=steps, guidance=1.0, rng=rng()) - answer)
        .abs()
        .mean()
    )
    assert error("euler", 4) > error("euler", 8) > error("euler", 32)
    assert all(error(name, 8) < 0.6 * error("euler", 8) for name in ("heun", "dpmpp", "unipc"))


def test_guidance_acts_inside_its_interval_only_and_is_counted_there_only():
    model = tiny("dit").eval()
    draw = lambda: model.sample(torch.tensor([0, 1]), steps=8, guidance=3.0, rng=rng())  # noqa: E731
    whole, plain = draw(), model.sample(torch.tensor([0, 1]), steps=8, guidance=1.0, rng=rng())
    model.set_sampler(
        guidance_interval=[0.2, 0.7]
    )  # Euler asks at 1, .875, ..., .125: four of eight times lie inside
    assert model.nfe(8, 3.0) == 12 and model.nfe(8, 1.0) == 8
    part = draw()
    assert not torch.allclose(part, whole, atol=1e-3) and not torch.allclose(part, plain, atol=1e-3)
    batches = []
    model.denoiser.register_forward_hook(lambda module, args, out: batches.append(len(args[0])))
    draw()
    assert batches == [2, 2, 2, 4, 4, 4, 4, 2]
    model.set_sampler(guidance_interval=[0.0, 0.05])
    torch.testing.assert_close(draw(), plain)


def test_shift_moves_the_flow_s_times_towards_noise():
    model = exact("flow", "euler")
    model.set_sampler("euler", shift=3.0)
    model.sample(torch.tensor([0]), steps=4, guidance=1.0, rng=rng())
    assert model.denoiser.times == pytest.approx(
        [1000 * 3 * t / (1 + 2 * t) for t in (1, 0.75, 0.5, 0.25)]
    )
    for name in ("dpmpp", "unipc"):
        times = [
            schedulers.times(schedulers.scheduler("flow", name, 8, shift)) for shift in (1.0, 3.0)
        ]
        assert times[1] == pytest.approx([1000 * 3 * t / (1000 + 2 * t) for t in times[0]], abs=1)
    with pytest.raises(ValueError, match="not with heun"):
        model.set_sampler("heun", shift=3.0)


@pytest.mark.parametrize("name", ["euler", "dpmpp", "unipc"])
@pytest.mark.parametrize("shift", [0.5, 5.0, 20.0])
def test_a_shifted_grid_is_walked_whole(name, shift):
    """Near pure noise a shifted grid has rounded times twice; every step is still taken, and the
    point at its end is the data's.
    """
    model = exact("flow", name)
    model.set_sampler(name, shift=shift)
    out = model.sample(torch.zeros(64, dtype=torch.long), steps=250, guidance=1.0, rng=rng())
    assert (
        len(model.denoiser.times) == 250
        and sorted(model.denoiser.times, reverse=True) == model.denoiser.times
    )
    coarse = 0.1 if shift > 5 else 0.05  # then few steps are left near the data
    assert out.mean().item() == pytest.approx(MEAN, abs=0.02) and out.std().item() == pytest.approx(
        SPREAD, rel=coarse
    )


@pytest.mark.parametrize("objective, name", EVERY)
def test_every_step_count_that_is_honoured_has_that_many_steps(objective, name):
    """diffusers' trailing grids are one longer at some counts, 61 the first: those are refused, all
    others walk from noise to data.
    """
    model = exact(objective, name)
    honoured = model.supported_steps(range(1, 251))
    assert len(honoured) > 220 or name == "ddim"
    for steps in honoured[::7] + [n for n in (60, 61, 62, 103, 122, 250) if n in honoured]:
        times = schedulers.times(schedulers.scheduler(objective, name, steps))
        assert (
            len(times) == (2 * steps - 1 if name == "heun" else steps)
            and min(times) >= 0
            and max(times) >= 999
        )
    if objective != "flow":
        with pytest.raises(ValueError, match="steps=61"):
            model.nfe(61, 1.0)


@pytest.mark.parametrize("objective, name", EVERY)
def test_sampling_on_the_meta_device_is_counted(objective, name):
    model = tiny("dit" if objective == "flow" else f"dit-{objective}")
    model.set_sampler(name)
    meta = on_meta(model)
    one = sampling_macs(meta, 1, 1.0)
    assert sampling_macs(meta, 4, 2.0) == meta.nfe(4, 2.0) * one


def test_an_option_another_family_has_is_named_and_left_out(capsys):
    model = tiny("ar")
    choose_sampler(
        model, composed("model=ar", "sampler=heun", "sampler.shift=3", "sampler.top_k=10")
    )
    said = capsys.readouterr().out
    assert (
        "sampler=heun is not one of its own" in said
        and "sampler.shift is not one of its options" in said
    )
    assert model.sampler_label() == "raster, top_k 10"


def test_a_value_out_of_range_is_one_line():
    for override, message in [
        ("sampler.shift=-1", "shift"),
        ("sampler.guidance_interval=[1]", "guidance_interval"),
        ("sampler.guidance_interval=[0.9,0.1]", "guidance_interval"),
    ]:
        with pytest.raises(BadInput, match=message):
            choose_sampler(tiny("dit"), composed(override))
