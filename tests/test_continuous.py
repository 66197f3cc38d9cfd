"""Latent vectors predicted by a transformer: their heads, and what differs from codebook models."""

import pytest
import torch
from conftest import CLASSES, SHAPE, TOKENS, random_batch, rng, tiny
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

from benchmarks.stages.model import on_meta, sampling_macs
from models.autoregressive import _fused
from models.continuous import ContinuousMasked, ContinuousRaster
from models.heads import FlowHead, MixtureHead
from models.randomness import spawn

WIDTH, CHANNELS = 8, SHAPE[0]
OPTIONS = {"temperature": 1.0, "head_steps": 50}
MANY = 4096


def mixture_head() -> MixtureHead:
    torch.manual_seed(0)
    head = MixtureHead(WIDTH, CHANNELS, components=3)
    torch.nn.init.normal_(head.out.weight, std=0.5)
    return head.requires_grad_(False)


def noise_of(head, count: int):
    """Random numbers for `count` tokens of one image."""
    return head.noise(count, spawn(rng(), 1), torch.device("cpu"))


def test_a_mixture_s_density_is_torch_s():
    head, hidden = mixture_head(), torch.randn(5, 7, WIDTH, generator=rng(1))
    values = torch.randn(5, 7, 2, CHANNELS, generator=rng(2))
    weights, means, deviations = head.mixture(hidden)
    mixture = MixtureSameFamily(
        Categorical(logits=weights), Independent(Normal(means, deviations), 1)
    )
    for i in range(2):
        theirs = mixture.log_prob(values[:, :, i])
        torch.testing.assert_close(head.log_density(hidden, values)[..., i], theirs)
    torch.testing.assert_close(
        head.error(hidden, values[:, :, 0]), -mixture.log_prob(values[:, :, 0])
    )


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_a_mixture_is_sampled_with_its_mean_and_spread(temperature):
    head = mixture_head()
    hidden = torch.randn(1, 1, WIDTH, generator=rng(1)).expand(1, MANY, WIDTH)
    options = OPTIONS | {"temperature": temperature}
    out = head.sample(hidden, noise_of(head, MANY), scale=None, options=options)[0]
    weights, means, deviations = (each[0, 0] for each in head.mixture(hidden))
    p = weights.exp()[:, None]
    mean = (p * means).sum(0)
    variance = (p * ((temperature * deviations) ** 2 + means**2)).sum(0) - mean**2
    four_errors = 4 * (variance / MANY).sqrt()
    assert ((out.mean(0) - mean).abs() < four_errors).all()
    torch.testing.assert_close(out.var(0), variance, rtol=0.15, atol=0)


@pytest.mark.parametrize(
    "guidance, channels, mean, reached",
    [
        (1.5, 1, 1.0, 1.5),
        (2.0, 1, 1.0, 2.0),
        (1.5, 4, 0.5, 1.5),
        (2.0, 4, 0.5, 2.0),
        # of 128 draws none lies far enough out: strong guidance acts less than its number says
        (4.0, 4, 0.5, 3.2),
        (4.0, 4, 1.0, 2.25),
    ],
)
def test_guidance_of_a_mixture_samples_the_guided_density(guidance, channels, mean, reached):
    """N(m, 1)^w N(0, 1)^(1 - w) is N(w m, 1)."""
    head = MixtureHead(WIDTH, channels)
    hidden = torch.cat([torch.full((1, MANY, WIDTH), mean), torch.zeros(1, MANY, WIDTH)])
    normal, uniform = noise_of(head, MANY)
    head.mixture = lambda hidden: (
        torch.zeros(*hidden.shape[:-1], 1),
        hidden[..., None, :channels],
        torch.ones(*hidden.shape[:-1], 1, channels),
    )
    out = head.sample(hidden, (normal, uniform), scale=guidance, options=OPTIONS)
    assert out.mean().item() / mean == pytest.approx(reached, abs=0.1)
    assert out.flatten(0, -2).std(0).mean().item() == pytest.approx(1, abs=0.12)


def test_a_flow_head_s_steps_follow_its_velocity(monkeypatch):
    """The exact velocity of N(2, 0.5^2), whose guidance from N(0, 0.5^2) moves the mean alone."""
    head = FlowHead(WIDTH, CHANNELS)

    def velocity(x, time, hidden):
        mean, variance = hidden[..., :1], ((1 - time) * 0.5) ** 2 + time**2
        centred = x - (1 - time) * mean
        noise, data = time * centred / variance, mean + (1 - time) * 0.25 * centred / variance
        return noise - data

    monkeypatch.setattr(head, "velocity", velocity)
    both = torch.cat([torch.full((1, MANY, WIDTH), 2.0), torch.zeros(1, MANY, WIDTH)])
    plain = head.sample(both[:1], noise_of(head, MANY), scale=None, options=OPTIONS)
    assert plain.mean().item() == pytest.approx(2, abs=0.05)
    assert plain.std().item() == pytest.approx(0.5, abs=0.05)
    guided = head.sample(both, noise_of(head, MANY), scale=1.5, options=OPTIONS)
    assert guided.mean().item() == pytest.approx(3, abs=0.05)
    cold = head.sample(
        both[:1], noise_of(head, MANY), scale=None, options=OPTIONS | {"temperature": 0.5}
    )
    assert cold.std().item() < 0.7 * plain.std().item()


def test_a_flow_head_s_loss_is_least_for_the_mean_velocity():
    """Of tokens N(0, 1) the velocity (2 t - 1) x / (t^2 + (1 - t)^2) has a lower loss than zero."""
    head = FlowHead(WIDTH, CHANNELS, repeats=4)
    values = torch.randn(64, 32, CHANNELS, generator=rng(1))
    noise, time = head.inputs(64, 32, rng=rng(2))
    hidden = torch.zeros(64, 32, WIDTH)
    zero = head.error(hidden, values, noise, time).mean().item()
    assert zero == pytest.approx(2, rel=0.05), "untrained it is zero, and e - x has variance 2"
    head.velocity = lambda x, time, hidden: (2 * time - 1) * x / (time**2 + (1 - time) ** 2)
    best = head.error(hidden, values, noise, time).mean().item()
    variance = (2 - (2 * time - 1) ** 2 / (time**2 + (1 - time) ** 2)).mean().item()
    assert best == pytest.approx(variance, rel=0.05) and best < zero


def test_the_raster_transformer_is_that_of_ar():
    """With the weights of `ar`, and its tokens, the hidden states are the same."""
    ar = tiny("ar").eval()
    model = ContinuousRaster(SHAPE, CLASSES, width=32, depth=2, heads=2, mlp=64)
    model.blocks = torch.nn.ModuleList(_fused(layer, 32, 2, 64) for layer in ar.transformer.layers)
    model.embed, model.classes = ar.transformer.embed_tokens, ar.classes
    model.positions, model.norm = ar.positions, ar.transformer.norm
    batch = random_batch()
    hidden = model.hidden(batch.tokens, batch.labels)
    torch.testing.assert_close(ar.head(hidden), ar.logits(batch.tokens, batch.labels))


@pytest.mark.parametrize("head", ["gmm", "flow"])
def test_cached_sampling_is_what_the_whole_sequence_says(head):
    """Each token by its head from the hidden states of the sampled tokens before it."""
    model, labels = tiny(f"raster-{head}").eval(), torch.arange(3)
    model.set_sampler(**({"head_steps": 5} if head == "flow" else {}))
    out = model.as_tokens(model.sample(labels, steps=TOKENS, guidance=1.0, rng=rng()))
    with torch.inference_mode():
        hidden = model.hidden(out, labels)
        noise = model.head.noise(TOKENS, spawn(rng(), 3), torch.device("cpu"))
        again = model.head.sample(hidden, noise, scale=None, options=model.sampler_options)
    torch.testing.assert_close(again, out, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["raster-gmm", "random-gmm"])
def test_tokens_enter_at_one_size_and_are_sampled_at_any(name):
    """Too small or too large ones look alike to the transformer; the head's own are left alone."""
    model = tiny(name).eval()
    tokens = model.as_tokens(random_batch().latents)
    sizes = [model.embed(scale * tokens).square().mean(-1).sqrt() for scale in (0.2, 1.0, 5.0)]
    for size in sizes:
        torch.testing.assert_close(size, sizes[1], rtol=1e-2, atol=0)
    sampled = model.sample(torch.arange(3), steps=TOKENS, guidance=3.0, rng=rng())
    lengths = model.as_tokens(sampled).norm(dim=-1)
    assert lengths.std() > 0.1 * lengths.mean(), "no sphere"


def test_no_token_is_predicted_from_itself_or_what_follows():
    batch = random_batch()
    raster, masked = tiny("raster-gmm"), tiny("random-gmm")
    tokens = raster.as_tokens(batch.latents)
    changed = tokens.clone()
    changed[:, 20:] += 1
    first, second = (raster.hidden(each, batch.labels) for each in (tokens, changed))
    assert torch.equal(first[:, :21], second[:, :21])
    assert not torch.allclose(first[:, 21:], second[:, 21:])
    hidden_ones = torch.zeros(tokens.shape[:2], dtype=torch.bool)
    hidden_ones[:, 20:] = True
    first, second = (masked.hidden(each, hidden_ones, batch.labels) for each in (tokens, changed))
    assert torch.equal(first, second)


def test_each_step_of_masked_sampling_fixes_tokens_for_good(monkeypatch):
    """As many as the schedule says, at places of the image's own; all at the end."""
    model, seen = tiny("random-gmm").eval(), []
    hidden = ContinuousMasked.hidden
    monkeypatch.setattr(
        ContinuousMasked,
        "hidden",
        lambda self, tokens, masked, labels: (
            seen.append((tokens, masked)) or hidden(self, tokens, masked, labels)
        ),
    )
    out = model.as_tokens(model.sample(torch.arange(2), steps=4, guidance=1.0, rng=rng()))
    left = [masked.sum(1).tolist() for _, masked in seen]
    assert left[0] == [TOKENS, TOKENS] and len(left) == 4
    assert all(a == b for a, b in left) and sorted(left, reverse=True) == left
    for tokens, masked in seen:
        assert torch.equal(tokens[~masked], out[~masked]), "what is there stays"
    assert not torch.equal(seen[2][1][0], seen[2][1][1]), "each image has an order of its own"


@pytest.mark.parametrize("guidance, times", [(1.0, 1), (2.0, 2)])
def test_the_head_s_own_steps_are_counted(guidance, times):
    """A token of a flow head costs `head_steps` evaluations of it, beside the transformer's one."""
    counts = {}
    for steps in (1, 2, 40):
        size = dict(width=32, depth=2, heads=2, mlp=64, head="flow")
        model = ContinuousRaster((CHANNELS, 2, 2), CLASSES, **size)
        model.set_sampler(head_steps=steps)
        counts[steps] = sampling_macs(on_meta(model), 4, guidance)
    h = 64
    once = h * h + h * h + 3 * (2 + 3) * h * h + 2 * h * h + 2 * CHANNELS * h + 32 * h
    assert counts[2] - counts[1] == times * 4 * once
    assert counts[40] - counts[1] == times * 4 * 39 * once


def test_what_they_cannot_do_is_refused_by_name():
    size = dict(width=32, depth=2, heads=2, mlp=64)
    for settings, named in (
        ({"head": "codebook"}, "model.head=codebook"),
        ({"components": 0}, "model.components=0"),
        ({"heads": 5}, "width 32"),
    ):
        with pytest.raises(ValueError, match=named):
            ContinuousRaster(SHAPE, CLASSES, **size | settings)
    model = tiny("random-flow")
    for option, value in (("temperature", 0.0), ("head_steps", 0), ("guidance_schedule", "cubic")):
        with pytest.raises(ValueError, match=f"sampler.{option}="):
            model.set_sampler(**{option: value})
    with pytest.raises(ValueError, match=r"sampler\.top_k"):
        model.set_sampler(top_k=5)
    assert not model.uses_tokens
