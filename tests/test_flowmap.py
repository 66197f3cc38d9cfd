"""The flow map: its target, its curriculum, what its training pays for, and its samples."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from conftest import CLASSES, SHAPE, composed, random_batch, rng, tiny
from scipy.stats import norm, wasserstein_distance

from benchmarks.core.errors import BadInput
from benchmarks.stages.budget import make_budget
from benchmarks.stages.cell import sampling_grid
from benchmarks.stages.checkpoint import Progress
from benchmarks.stages.model import build_model, choose_sampler
from models.codebook import Codebook
from models.diffusion import Diffusion
from models.dit import DiT
from models.flowmap import FlowMap
from models.unet import UNet

MEAN, SPREAD = 0.7, 0.5
LABELS = torch.zeros(64, dtype=torch.long)


class _Exact(torch.nn.Module):
    """The average velocity of the flow that makes noise N(MEAN, SPREAD^2), element by element.

    The flow keeps each number's place within the distribution, a Gaussian at all times.
    """

    def __init__(self, shape, num_classes, conditions):
        super().__init__()
        self.rows = []  # of each evaluation, and whether it had a gradient

    def forward(self, x, t, labels, span, guidance):
        self.rows.append((len(x), torch.is_grad_enabled()))
        time, span = t.double() / 1000, span.double() / 1000
        until = time - span
        place = (x.double() - self.mean(time)) / self.spread(time)
        ahead = self.mean(until) + self.spread(until) * place
        # of no span, the velocity itself: the slope over a tiny one
        tiny = torch.where(span == 0, 1e-6, span)
        just = time - tiny
        near = self.mean(just) + self.spread(just) * place
        moved = torch.where((span == 0)[:, None, None, None], near, ahead)
        return ((x.double() - moved) / tiny[:, None, None, None]).float()

    @staticmethod
    def mean(time):
        return ((1 - time) * MEAN)[:, None, None, None]

    @staticmethod
    def spread(time):
        return ((((1 - time) * SPREAD) ** 2 + time**2).sqrt())[:, None, None, None]


def exact(**settings) -> FlowMap:
    return FlowMap(SHAPE, CLASSES, denoiser=_Exact, **settings)


def test_euler_takes_the_velocity_of_each_time():
    """In one step the mean, in many the Gaussian: the flow's own sampler."""
    model = exact()
    model.set_sampler("euler")
    for steps, spread, tolerance in ((1, 0.0, 0.02), (200, SPREAD, 0.02)):
        out = model.sample(LABELS, steps=steps, guidance=1.0, rng=rng())
        assert out.mean().item() == pytest.approx(MEAN, abs=0.02)
        assert out.std().item() == pytest.approx(spread, abs=tolerance)


@pytest.mark.parametrize("sampler", ["map", "renoise"])
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_the_exact_map_samples_the_gaussian_in_any_number_of_steps(steps, sampler):
    """16,384 numbers: mean and spread to 0.02, where an Euler step collapses to the mean."""
    model = exact()
    model.set_sampler(sampler)
    out = model.sample(LABELS, steps=steps, guidance=1.0, rng=rng())
    assert out.mean().item() == pytest.approx(MEAN, abs=0.02)
    assert out.std().item() == pytest.approx(SPREAD, abs=0.02)
    assert len(model.denoiser.rows) == model.nfe(steps, 1.0) == steps


@pytest.fixture(scope="module")
def truth() -> np.ndarray:
    """Quantiles of the Gaussian, as many as a sample has numbers."""
    count = len(LABELS) * math.prod(SHAPE)
    return norm.ppf((np.arange(count) + 0.5) / count, MEAN, SPREAD)


@pytest.fixture(scope="module")
def chance(truth) -> float:
    """The largest W1 of 300 sets of exact samples."""
    numbers = np.random.default_rng(0)
    samples = (numbers.normal(MEAN, SPREAD, len(truth)) for _ in range(300))
    return max(wasserstein_distance(one, truth) for one in samples)


@pytest.mark.parametrize("sampler", ["map", "renoise", "euler"])
def test_more_evaluations_are_not_further_from_the_gaussian(sampler, truth, chance):
    """The measured W1 may rise by chance only."""
    model = exact()
    model.set_sampler(sampler)
    distances = []
    for steps in (1, 2, 4, 10, 40):
        out = model.sample(LABELS, steps=steps, guidance=1.0, rng=rng())
        distances.append(wasserstein_distance(out.flatten(), truth))
        assert distances[-1] <= min(distances) + chance, distances
    if sampler == "euler":  # its one step collapses to the mean
        assert distances[-1] < 0.1 * distances[0]
    else:
        assert max(distances) <= chance, "an exact map is at the data at once"


def bias(model: FlowMap, alpha: float, monkeypatch) -> float:
    """How far the target's mean, given x_t, is from the model's own output, from 0.9 to 0.2.

    Measured by the least-squares line of the difference over x_t: its value two deviations out.
    """
    x = MEAN + SPREAD * torch.randn(4096, *SHAPE, generator=rng(1))
    noise = torch.randn(x.shape, generator=rng(2))
    ones, seen = torch.ones(len(x)), {}
    mse = torch.Tensor.square

    def keep(difference):
        seen.setdefault("difference", difference)
        return mse(difference)

    monkeypatch.setattr(torch.Tensor, "square", keep)
    numbers = (0.2 * ones, alpha * ones)
    model.error(x, noise, 0.9 * ones, torch.zeros(len(x), dtype=torch.long), *numbers)
    monkeypatch.undo()
    noisy = torch.lerp(x, noise, 0.9).flatten().double()
    difference = seen["difference"].flatten().double()
    slope = torch.cov(torch.stack([noisy, difference]))[0, 1] / noisy.var()
    return max(abs(difference.mean() + slope * 2 * noisy.std() * side).item() for side in (-1, 1))


def test_the_exact_map_is_what_the_loss_asks_for(monkeypatch):
    """At a small alpha the target's mean is the map; at alpha = 1, the velocity, it is not."""
    model = exact(most_guidance=1.0)
    assert bias(model, 0.02, monkeypatch) < 0.02
    assert bias(model, 1.0, monkeypatch) > 0.3


@pytest.mark.parametrize(
    "denoiser",
    [
        partial(DiT, width=32, depth=2, heads=2),
        partial(UNet, channels=[16, 32], layers=1, groups=4, head_dim=8),
    ],
    ids=["dit", "unet"],
)
def test_untrained_it_is_the_flow_s_network_and_at_first_the_flow_s_loss(denoiser):
    flow = Diffusion(SHAPE, CLASSES, denoiser=denoiser)
    with torch.no_grad():
        for weights in flow.parameters():
            weights.normal_(std=0.05)
    flow_map = FlowMap(SHAPE, CLASSES, denoiser=denoiser)
    # diffusers' table of labels is one module deeper beside other numbers
    same = {
        name.replace("class_embedding.w", "class_embedding.labels.w"): tensor
        for name, tensor in flow.state_dict().items()
    }
    added = flow_map.load_state_dict(same, strict=False).missing_keys
    assert added and all("conditions" in name for name in added)
    x, t = torch.randn(3, *SHAPE), torch.rand(3) * 1000
    plain = flow.denoiser(x, t, torch.arange(3))
    for span, guidance in ((0.0, 0.0), (700.0, 448.0)):
        numbers = torch.full((3,), span), torch.full((3,), guidance)
        assert torch.equal(flow_map.denoiser(x, t, torch.arange(3), *numbers), plain)
    batch = random_batch()
    assert flow_map(batch, rng=rng()).item() == flow(batch, rng=rng()).item()


@pytest.mark.parametrize("most_guidance, extra", [(1.0, 0.4), (4.0, 0.4 + 2 * 0.3)])
def test_passes_without_gradient_are_paid_for(most_guidance, extra):
    """As many rows as the budget counts: none in the first quarter, then `extra` an image."""
    model = exact(flow_first=0.25, most_guidance=most_guidance, same_time=0.6, guided=0.3)
    model.train()
    rows, numbers, images = {}, rng(), len(random_batch().labels)
    for progress in (0.0, 0.9):
        model.progress = progress
        model.denoiser.rows.clear()
        for _ in range(400):
            model(random_batch(), rng=numbers)
        without = sum(n for n, gradient in model.denoiser.rows if not gradient)
        rows[progress] = without / images / 400
        assert sum(n for n, gradient in model.denoiser.rows if gradient) == images * 400
    assert rows == {0.0: 0, 0.9: pytest.approx(extra, abs=0.15)}
    assert model.extra_passes == pytest.approx(0.75 * extra)
    cfg = composed("train.unit=flops", "train.budget=1e12").train
    plain, paid = make_budget(cfg, 1000), make_budget(cfg, 1000, model.extra_passes, 0.25)
    assert paid.flops_per_image == pytest.approx((3 + 0.75 * extra) * 2000)
    assert paid.steps == pytest.approx(plain.steps * 3 / (3 + 0.75 * extra), rel=1e-3)
    spent = [
        paid.spent(Progress(step=round(done * paid.steps)))["flops"]
        / (paid.steps * paid.batch * 2000)
        for done in (0.25, 0.5, 1.0)
    ]
    assert spent == pytest.approx([0.75, 1.5 + 0.25 * extra, 3 + 0.75 * extra], rel=1e-3)


def test_alpha_falls_from_one_to_the_least():
    model = tiny("dit-flowmap", same_time=0.0, flow_first=0.2, least_alpha=0.04, guided=0.0)
    model.train()
    alphas = {}
    for progress in (0.2, 0.4, 0.6, 1.0):
        model.progress = progress
        _, _, _, _, _, alpha = model.inputs(random_batch(20), rng=rng())
        alphas[progress] = alpha.unique().item()
    assert alphas == pytest.approx({0.2: 1.0, 0.4: 0.2, 0.6: 0.04, 1.0: 0.04})


def test_later_batches_are_of_flow_or_of_pairs_and_guided_or_not():
    model = tiny("dit-flowmap", same_time=0.7, flow_first=0.2, most_guidance=6.0, guided=0.4)
    model.train()
    model.progress, numbers = 0.5, rng()
    more = [len(model.inputs(random_batch(2), rng=numbers)) - 4 for _ in range(1000)]
    shares = [sum(count in kind for count in more) / 1000 for kind in ((2, 3), (1, 3))]
    assert shares == pytest.approx([0.3, 0.4], abs=0.05)
    model.eval()
    assert len(model.inputs(random_batch(2), rng=numbers)) == 4, "checked as flow matching"


def test_the_steps_from_noise_and_to_data_are_trained():
    """Of two logit-normal times hardly any pair would be near 1 and 0, as a single step is."""
    model = tiny("dit-flowmap", same_time=0.0, flow_first=0.0, ends=0.6, guided=0.0)
    model.train()
    model.progress = 0.5
    _, _, time, _, until, _ = model.inputs(random_batch(4000), rng=rng())
    assert (until <= time).all() and (until >= 0).all() and (time <= 1).all()
    shares = [(time == 1).float().mean().item(), (until == 0).float().mean().item()]
    assert shares == pytest.approx([0.3, 0.3], abs=0.03)
    assert ((time > 0.9) & (until < 0.1)).float().mean() > 0.04


def test_guidance_is_learned_towards_the_label_s_own_velocity():
    """The target moves by (w - 1) (u(label) - u(no label)), and for no label not at all."""
    model = tiny("dit-flowmap", most_guidance=6.0)
    x, noise = torch.randn(2, *SHAPE), torch.randn(2, *SHAPE)
    time, labels = torch.full((2,), 0.5), torch.tensor([1, CLASSES])
    seen = []
    average = model._average
    model._average = lambda *inputs: seen.append(average(*inputs)) or seen[-1]
    loss = model.error(x, noise, time, labels, torch.full((2,), 3.0))
    (conditional, unconditional), own = seen[0].chunk(2), seen[1]
    target = noise - x
    target[0] += 2 * (conditional - unconditional)[0]
    error = (own - target).square().mean((1, 2, 3))
    assert loss.item() == pytest.approx(error.mean().item(), rel=1e-5)


def test_the_second_point_of_a_guided_pair_is_where_the_guided_network_leads():
    """Not where the image and its noise lead: the network's velocity is the mean of those."""
    model = tiny("dit-flowmap")
    x, noise = torch.randn(2, *SHAPE), torch.randn(2, *SHAPE)
    time, until, labels = torch.full((2,), 0.8), torch.full((2,), 0.3), torch.tensor([1, CLASSES])
    seen = []
    average = model._average
    model._average = lambda *inputs: seen.append((inputs, average(*inputs))) or seen[-1][1]
    alpha, guidance = torch.full((2,), 0.2), torch.full((2,), 3.0)
    loss = model.error(x, noise, time, labels, until, alpha, guidance)
    (_, both), (second, after), (first, own) = seen
    conditional, unconditional = both.chunk(2)
    added = torch.stack([2 * (conditional - unconditional)[0], torch.zeros(SHAPE)])
    torch.testing.assert_close(second[0], first[0] - 0.1 * (conditional + added))
    torch.testing.assert_close(second[1], torch.full((2,), 0.7))
    target = 0.8 * after + 0.2 * (noise - x + added)
    assert loss.item() == pytest.approx((own - target).square().mean().item(), rel=1e-5)


@pytest.mark.parametrize("name", ["dit-flowmap", "unet-flowmap"])
def test_in_bf16_every_weight_learns_from_pairs(name):
    """Autocast keeps the casts of weights that a pass without gradient has made."""
    model = tiny(name, same_time=0.0, flow_first=0.0, most_guidance=6.0, guided=1.0)
    with torch.no_grad():
        for weights in model.parameters():
            weights.add_(0.05 * torch.randn(weights.shape, generator=rng(weights.numel())))
    model.train()
    model.progress = 0.5
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(random_batch(), rng=rng())
    loss.backward()
    still = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert still == []


def test_guidance_that_is_not_learned_takes_two_evaluations():
    """u(no label) + w (u(label) - u(no label)), in one step from noise to data."""
    model = tiny("dit-flowmap", most_guidance=1.0).eval()
    labels, shape = torch.tensor([1, 2]), (2, *SHAPE)
    seen = []
    average = model._average
    model._average = lambda *inputs: seen.append((inputs, average(*inputs))) or seen[-1][1]
    out = model.sample(labels, steps=1, guidance=3.0, rng=rng())
    (((x, *_), both),) = seen
    conditional, unconditional = both.chunk(2)
    assert x.shape == (4, *SHAPE) and out.shape == shape
    torch.testing.assert_close(out, x[:2] - (3 * conditional - 2 * unconditional))
    assert model.nfe(5, 3.0) == 10 and model.nfe(5, 1.0) == 5
    assert model.supports_guidance(16.0)
    learned = tiny("dit-flowmap", most_guidance=6.0)
    assert learned.nfe(5, 3.0) == 5 and not learned.supports_guidance(16.0)


def test_what_it_cannot_do_is_refused_by_name():
    with pytest.raises(ValueError, match="learned 1 to 6"):
        tiny("dit-flowmap", most_guidance=6.0).sample(LABELS, steps=2, guidance=7.0, rng=rng())
    for settings, named in (
        ({"flow_first": 1.5}, "flow_first"),
        ({"same_time": -0.1}, "same_time"),
        ({"least_alpha": 0.0}, "least_alpha"),
        ({"most_guidance": 0.5}, "most_guidance"),
        ({"label_dropout": 0.0, "most_guidance": 6.0}, "label_dropout"),
        ({"objective": "flow"}, "objective"),
    ):
        with pytest.raises(ValueError, match=named):
            tiny("dit-flowmap", **settings)


@pytest.mark.parametrize("model", ["model=dit_flowmap", "model=unet model.objective=flowmap"])
def test_guidance_beyond_what_is_learned_is_left_out_or_refused(model, capsys):
    learned = "model.most_guidance=6"
    if "dit" not in model:
        learned = f"+{learned}"
    cfg = composed(*model.split(), learned, "guidance=[1,4,16]", "sample_batch=8")
    built = build_model(cfg.model, SHAPE, CLASSES, Codebook(8))
    assert isinstance(built, FlowMap)
    choose_sampler(built, cfg)
    assert {config.guidance for config in sampling_grid(cfg, built)[1]} == {1.0, 4.0}
    assert "does not support [16.0]" in capsys.readouterr().out
    with pytest.raises(BadInput, match="guidance=16: this flow map learned 1 to 6"):
        sampling_grid(composed(*model.split(), learned, "guidance=[16]", "sample_batch=8"), built)
