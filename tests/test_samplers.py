"""Every objective with every sampler that diffusers has for it.

Right in spread on a Gaussian, nearer to two of them with more evaluations, counted, guided in part.
"""

import math
from functools import partial

import numpy as np
import pytest
import torch
from conftest import CLASSES, SHAPE, composed, partly_long, rng, tiny
from scipy.stats import norm, wasserstein_distance

from benchmarks.core.errors import BadInput
from benchmarks.stages.model import choose_sampler, on_meta, sampling_macs
from models import schedulers
from models.diffusion import Diffusion
from models.schedulers import CHAIN, PREDICTION

OBJECTIVES = ("flow", *PREDICTION)
EVERY = [(objective, name) for objective in OBJECTIVES for name in schedulers.samplers(objective)]
# each solver converts what `v` and `x0` predict: these two in every test run
DAILY = ("dpmpp", "heun")
OTHERS = [one for one in EVERY if one[0] in ("v", "x0") and one[1] not in DAILY]
MEAN, SPREAD = 0.7, 0.5
MEANS, NARROW = (-1.0, 1.0), 0.3  # two Gaussians apart, as many of either
MANY = (16, 16, 16)  # latents of 4,096 numbers


class _Mixture(torch.nn.Module):
    """The exact denoiser of an even mixture of N(mean, spread^2), independent per element.

    `times` are those it was evaluated at.
    """

    def __init__(self, shape, num_classes, objective, means, spread):
        super().__init__()
        self.objective, self.times = objective, []
        self.means, self.spread = torch.tensor(means, dtype=torch.float64), spread
        betas = torch.linspace(1e-4, 0.02, CHAIN, dtype=torch.float64)
        self.log_alphas = torch.cumsum(torch.log1p(-betas), 0)

    def levels(self, t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The factors of data and of noise in x at time t in [0, 1000]."""
        if self.objective == "flow":
            return 1 - t / CHAIN, t / CHAIN
        before = t.long()
        after = (before + 1).clamp(max=CHAIN - 1)
        # second-order solvers also ask between two steps of the chain
        log_alpha = torch.lerp(self.log_alphas[before], self.log_alphas[after], t - before)
        return log_alpha.exp().sqrt(), (1 - log_alpha.exp()).sqrt()

    def forward(self, x, t, labels):
        self.times.append(t[0].item())
        a, b = self.levels(t[0].double())
        # By Gaussian, along a last dimension of its own; then weighted by how likely x is of it.
        centred, variance = x.double()[..., None] - a * self.means, (a * self.spread) ** 2 + b**2
        weights = (-(centred**2) / (2 * variance)).softmax(-1)
        x0 = (weights * (self.means + a * self.spread**2 * centred / variance)).sum(-1)
        noise = (weights * b * centred / variance).sum(-1)
        targets = {"flow": noise - x0, "eps": noise, "x0": x0, "v": a * noise - b * x0}
        return targets[self.objective].float()


def exact(
    objective: str, name: str, means=(MEAN,), spread=SPREAD, shape=SHAPE, **options
) -> Diffusion:
    """The exact model of an objective, sampling with the sampler of that name."""
    denoiser = partial(_Mixture, objective=objective, means=means, spread=spread)
    model = Diffusion(shape, CLASSES, denoiser=denoiser, objective=objective)
    model.set_sampler(name, **options)
    return model


@pytest.fixture(scope="module")
def truth() -> np.ndarray:
    """65,536 quantiles of the two Gaussians, evenly spaced in probability."""
    x = np.linspace(-4, 4, 100_001)
    below = np.mean([norm.cdf(x, mean, NARROW) for mean in MEANS], axis=0)
    count = 16 * np.prod(MANY)
    return np.interp((np.arange(count) + 0.5) / count, below, x)


@pytest.fixture(scope="module")
def chance(truth) -> float:
    """The largest of 100 distances between the truth and as many numbers sampled from it."""
    numbers = np.random.default_rng(0)
    distances = []
    for _ in range(100):
        means = numbers.choice(MEANS, len(truth))
        sampled = means + NARROW * numbers.standard_normal(len(truth))
        distances.append(wasserstein_distance(sampled, truth))
    return max(distances)


def distance_by_evaluations(
    objective: str, name: str, truth, requested, **options
) -> dict[int, float]:
    """W1 of a sampler's samples to the two Gaussians, by its number of evaluations."""
    model = exact(objective, name, MEANS, NARROW, MANY, **options)
    labels, distances = torch.zeros(16, dtype=torch.long), {}
    for steps in model.supported_steps(requested):
        out = model.sample(labels, steps=steps, guidance=1.0, rng=rng())
        distances[model.nfe(steps, 1.0)] = wasserstein_distance(out.flatten(), truth)
    return distances


@pytest.mark.parametrize("objective, name", partly_long(EVERY, OTHERS))
def test_more_evaluations_are_not_further_from_the_data(objective, name, truth, chance):
    """The measured W1 may rise by chance only.

    By the triangle inequality chance moves each distance by at most that of exact samples. A
    sampler without noise of its own begins from the same noise for any number of steps, so that
    most of the error is common and cancels: one of it is allowed. The errors of ddpm, which samples
    noise anew at each step, can add up: two.
    """
    distances = distance_by_evaluations(
        objective, name, truth, (1, 2, 3, 4, 5, 8, 10, 16, 20, 25, 40)
    )
    allowed = 2 * chance if name == "ddpm" else chance
    nearest = math.inf
    for evaluations, distance in distances.items():
        assert distance <= nearest + allowed, f"{evaluations} evaluations: {distances}"
        nearest = min(nearest, distance)
    assert nearest < 0.1 * distances[1]


@pytest.mark.parametrize("name", schedulers.samplers("flow"))
def test_nor_are_they_on_the_grid_of_the_largest_shift_that_is_ever_chosen(name, truth, chance):
    """The search follows a shift beyond its list: a trade-off chose 8."""
    distances = distance_by_evaluations("flow", name, truth, (1, 2, 4, 10, 40), shift=8.0)
    for evaluations, distance in distances.items():
        fewer = [distances[n] for n in distances if n < evaluations]
        assert distance <= min(fewer, default=math.inf) + chance, f"{evaluations}: {distances}"
    assert distance < 0.1 * distances[1]


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_heun_s_three_evaluations_are_nearer_than_two_of_first_order(objective, truth, chance):
    """None is wasted. Beside Euler, or ddim, which is Euler of the chain."""
    first_order = schedulers.samplers(objective)[0]
    heun = distance_by_evaluations(objective, "heun", truth, [2])[3]
    assert heun < distance_by_evaluations(objective, first_order, truth, [2])[2] - 2 * chance


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_heun_s_evaluations_cover_equal_times_and_it_ends_in_an_euler_step(shift):
    """Each time but the first is asked for twice: at the end of a step and as the next begins."""
    heun = schedulers.scheduler("flow", "heun", 4, shift)
    even = np.array([7, 5, 3, 1]) / 7  # and 0: steps of two evaluations, and the last of one
    first, *later = schedulers.CHAIN * shift * even / (1 + (shift - 1) * even)
    assert schedulers.times(heun) == pytest.approx([first, *np.repeat(later, 2)])
    assert heun.sigmas[-1] == 0


@pytest.mark.parametrize("objective, name", EVERY)
def test_a_gaussian_is_sampled_with_its_mean_and_spread(objective, name):
    """16,384 numbers: 100 steps give the mean to 0.02 and the spread to 4%.

    DDPM (first order, small variance) needs 1000. One step collapses to the mean.
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
        evaluations = 2 * steps - 1 if name == "heun" else steps
        assert len(model.denoiser.times) == model.nfe(steps, 1.0) == evaluations
        assert model.denoiser.times[0] >= 999, "the grid begins at pure noise"


def test_more_steps_are_nearer_the_answer_and_better_samplers_nearer_with_fewer():
    """A point's exact answer by 1,000 Euler steps; second-order samplers beat Euler at eight."""

    def sample(name: str, steps: int) -> torch.Tensor:
        labels = torch.zeros(4, dtype=torch.long)
        return exact("flow", name).sample(labels, steps=steps, guidance=1.0, rng=rng())

    answer = sample("euler", 1000)

    def error(name: str, steps: int) -> torch.Tensor:
        return (sample(name, steps) - answer).abs().mean()

    assert error("euler", 4) > error("euler", 8) > error("euler", 32)
    assert all(error(name, 8) < 0.6 * error("euler", 8) for name in ("heun", "dpmpp", "unipc"))


def test_guidance_acts_inside_its_interval_only_and_is_counted_there_only():
    """Euler asks at 1, .875, ..., .125: four of the eight times lie in [0.2, 0.7]."""
    model, batches = tiny("dit").eval(), []
    model.denoiser.register_forward_hook(lambda module, args, out: batches.append(len(args[0])))

    def sample(guidance: float) -> torch.Tensor:
        batches.clear()
        return model.sample(torch.tensor([0, 1]), steps=8, guidance=guidance, rng=rng())

    always, never = sample(3.0), sample(1.0)
    model.set_sampler(guidance_interval=[0.2, 0.7])
    assert model.nfe(8, 3.0) == 12 and model.nfe(8, 1.0) == 8
    sometimes = sample(3.0)
    assert batches == [2, 2, 2, 4, 4, 4, 4, 2]
    assert not torch.allclose(sometimes, always, atol=1e-3)
    assert not torch.allclose(sometimes, never, atol=1e-3)
    model.set_sampler(guidance_interval=[0.0, 0.05])
    torch.testing.assert_close(sample(3.0), never)


def test_shift_moves_the_flow_s_times_towards_noise():
    model = exact("flow", "euler")
    model.set_sampler("euler", shift=3.0)
    model.sample(torch.tensor([0]), steps=4, guidance=1.0, rng=rng())
    shifted = [1000 * 3 * t / (1 + 2 * t) for t in (1, 0.75, 0.5, 0.25)]
    assert model.denoiser.times == pytest.approx(shifted)
    for name in ("heun", "dpmpp", "unipc"):
        plain, moved = (
            schedulers.times(schedulers.scheduler("flow", name, 8, shift)) for shift in (1.0, 3.0)
        )
        assert moved == pytest.approx([1000 * 3 * t / (1000 + 2 * t) for t in plain], abs=1)
    # Rounding would put the first of these above 1000, where no guidance acts.
    model.set_sampler("euler", shift=0.2)
    assert model.nfe(4, 2.0) == 8


@pytest.mark.parametrize("name", ["euler", "heun", "dpmpp", "unipc"])
@pytest.mark.parametrize("shift", [0.5, 5.0, 20.0])
def test_a_shifted_grid_is_walked_whole(name, shift):
    """Every step is taken, though near pure noise a shifted grid has rounded times twice.

    The point at its end is the data's.
    """
    model = exact("flow", name)
    model.set_sampler(name, shift=shift)
    out = model.sample(torch.zeros(64, dtype=torch.long), steps=250, guidance=1.0, rng=rng())
    times = model.denoiser.times
    assert len(times) == model.nfe(250, 1.0) and times == sorted(times, reverse=True)
    tolerance = 0.1 if shift > 5 else 0.05  # a large shift leaves few steps near the data
    assert out.mean().item() == pytest.approx(MEAN, abs=0.02)
    assert out.std().item() == pytest.approx(SPREAD, rel=tolerance)


@pytest.mark.parametrize("objective, name", EVERY)
def test_every_supported_step_count_has_that_many_steps(objective, name):
    """diffusers' trailing grids are one longer at some counts, of which 61 is the first.

    Those are refused. All others walk from noise to data.
    """
    model = exact(objective, name)
    supported = model.supported_steps(range(1, 251))
    assert len(supported) > 220 or name == "ddim"
    near_refused = [n for n in (60, 61, 62, 103, 122, 250) if n in supported]
    for steps in supported[::7] + near_refused:
        times = schedulers.times(schedulers.scheduler(objective, name, steps))
        assert len(times) == (2 * steps - 1 if name == "heun" else steps)
        assert min(times) >= 0 and max(times) >= 999
    if objective != "flow":
        with pytest.raises(ValueError, match="steps=61"):
            model.nfe(61, 1.0)


@pytest.mark.parametrize("objective, name", EVERY)
def test_sampling_on_the_meta_device_is_counted(objective, name):
    model = tiny("dit" if objective == "flow" else f"dit-{objective}")
    model.set_sampler(name)
    meta = on_meta(model)
    assert sampling_macs(meta, 4, 2.0) == meta.nfe(4, 2.0) * sampling_macs(meta, 1, 1.0)


def test_an_option_another_family_has_is_named_and_left_out(capsys):
    model = tiny("ar")
    cfg = composed("model=ar", "sampler=heun", "sampler.shift=3", "sampler.top_k=10")
    choose_sampler(model, cfg)
    printed = capsys.readouterr().out
    assert "sampler=heun is not one of its own" in printed
    assert "sampler.shift is not one of its options" in printed
    assert model.sampler_label() == "raster, top_k 10"


@pytest.mark.parametrize(
    "override, message",
    [
        ("sampler.shift=-1", "shift"),
        ("sampler.guidance_interval=[1]", "guidance_interval"),
        ("sampler.guidance_interval=[0.9,0.1]", "guidance_interval"),
    ],
)
def test_a_value_out_of_range_is_a_bad_input(override, message):
    with pytest.raises(BadInput, match=message):
        choose_sampler(tiny("dit"), composed(override))
