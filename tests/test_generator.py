"""The contract of `models/generator.py`, kept by every family."""

import doctest
from functools import partial

import pytest
import torch
from conftest import CLASSES, SHAPE, TOKENS, random_batch, rng, steps_of, tiny

from models import generator
from models.generator import drop_labels
from models.tokens import inverse_cdf


def test_loss_is_a_finite_scalar_with_finite_gradients_everywhere(model):
    loss = model(random_batch(), rng=rng())
    assert loss.shape == () and loss.dtype == torch.float32
    loss.backward()
    for name, p in model.named_parameters():
        assert p.grad is not None and p.grad.isfinite().all(), name
        assert p.grad.abs().max() > 0, f"{name} takes no part in the loss"


def test_loss_is_a_function_of_its_generator(model):
    first, again, other = (model(random_batch(), rng=rng(seed)).item() for seed in (3, 3, 4))
    assert first == again and first != other


@pytest.mark.parametrize("name", ["unet", "dit", "ar", "any", "masked"])
def test_loss_does_not_depend_on_train_or_eval_but_for_label_dropout(name):
    model = tiny(name, label_dropout=0.0)
    trained = model.train()(random_batch(), rng=rng()).item()
    assert model.eval()(random_batch(), rng=rng()).item() == pytest.approx(trained, rel=1e-6)


def test_samples_have_the_contract_s_shape_and_type(model):
    labels = torch.arange(3) % CLASSES
    out = model.eval().sample(labels, steps=steps_of(model), guidance=1.0, rng=rng())
    assert out.shape == (3, *SHAPE) and out.dtype == torch.float32 and out.isfinite().all()


def test_same_generator_same_samples(model):
    first, again, other = (
        model.eval().sample(torch.arange(2), steps=steps_of(model), guidance=1.5, rng=rng(seed))
        for seed in (7, 7, 8)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_sample_i_does_not_depend_on_its_batch(model):
    labels, source = torch.arange(6) % CLASSES, rng(5)
    whole = model.eval().sample(labels, steps=steps_of(model), guidance=1.5, rng=rng(5))
    batches = [
        model.sample(few, steps=steps_of(model), guidance=1.5, rng=source)
        for few in labels.split([1, 3, 2])
    ]
    torch.testing.assert_close(torch.cat(batches), whole, rtol=1e-4, atol=1e-4)


def test_guidance_one_is_no_guidance(model):
    """At a scale next to 1 the two evaluations of a guided step meet the one of an unguided."""
    labels = torch.arange(4) % CLASSES
    plain, nearly, strong = (
        model.eval().sample(labels, steps=steps_of(model), guidance=guidance, rng=rng())
        for guidance in (1.0, 1 + 1e-7, 3.0)
    )
    torch.testing.assert_close(plain, nearly, rtol=1e-3, atol=1e-3)
    assert not torch.allclose(plain, strong, atol=1e-2)


@torch.no_grad()
def test_a_network_that_is_not_finite_gives_no_sample_that_is(model):
    """Its tokens would decode to images like any others. Here only guidance sees the broken row."""
    tables = [p for p in model.parameters() if p.ndim > 1 and len(p) == CLASSES + 1]
    assert len(tables) == 1, "the class embedding, of which the last row is no class"
    tables[0][-1] = torch.nan
    sampled = partial(model.eval().sample, torch.arange(2), steps=steps_of(model), rng=rng())
    assert not sampled(guidance=2.0).isfinite().all()
    assert sampled(guidance=1.0).isfinite().all()


def test_labels_matter(model):
    first, second = (
        model.eval().sample(torch.full((4,), k), steps=steps_of(model), guidance=1.0, rng=rng())
        for k in (0, 1)
    )
    assert not torch.equal(first, second)


def test_step_counts_are_supported_or_refused(model):
    asked = [TOKENS, 1, 4, 7, 16, 0, -1, 100_000]
    supported = model.supported_steps(asked)
    assert supported and supported == [n for n in asked if n in supported]
    for steps in asked:
        if steps in supported:
            assert model.nfe(steps, 1.0) >= steps
            assert model.nfe(steps, 2.0) == 2 * model.nfe(steps, 1.0)
        else:
            with pytest.raises(ValueError, match="steps="):
                model.sample(torch.zeros(1, dtype=torch.long), steps=steps, guidance=1.0, rng=rng())


def test_labels_are_dropped_once_per_batch_by_the_one_function(model, monkeypatch):
    calls = []

    def spy(labels, null_label, rate, *, rng):
        calls.append((null_label, rate))
        return drop_labels(labels, null_label, rate, rng=rng)

    monkeypatch.setattr(generator, "drop_labels", spy)
    model.train()(random_batch(), rng=rng())
    assert calls == [(CLASSES, 0.1)]
    model.eval()(random_batch(), rng=rng())
    assert len(calls) == 1, "validation drops no labels"


def test_label_dropout_keeps_its_rate_and_touches_nothing_else():
    labels = torch.arange(200_000) % 10
    dropped = drop_labels(labels, 10, 0.1, rng=rng())
    changed = dropped != labels
    assert (dropped[changed] == 10).all()
    four_standard_errors = 4 * (0.09 / 200_000) ** 0.5
    assert changed.float().mean().item() == pytest.approx(0.1, abs=four_standard_errors)


@pytest.mark.parametrize(
    "name, extra", [("uvit-flowmap", {}), ("dit-flowmap", {"most_guidance": 4.0})]
)
def test_flow_maps_of_other_networks_and_of_learned_guidance_keep_it_too(name, extra):
    """All of it but that guidance takes twice the evaluations, which they are trained to save."""
    for promise in (
        test_loss_is_a_finite_scalar_with_finite_gradients_everywhere,
        test_samples_have_the_contract_s_shape_and_type,
        test_same_generator_same_samples,
        test_sample_i_does_not_depend_on_its_batch,
        test_guidance_one_is_no_guidance,
        test_labels_matter,
    ):
        promise(tiny(name, **extra))


@pytest.mark.parametrize("name", ["unet", "dit", "ar"])
def test_what_the_loss_sees_are_the_dropped_labels(name, monkeypatch):
    model, seen = tiny(name, label_dropout=0.5), []

    def loss(batch, *, rng):
        seen.append(batch.labels)
        return torch.zeros(())

    monkeypatch.setattr(model, "loss", loss)
    model.train()(random_batch(2000), rng=rng())
    assert (seen[0] == CLASSES).float().mean().item() == pytest.approx(0.5, abs=0.05)


def test_inverse_cdf_samples_from_the_distribution():
    logits = torch.tensor([0.0, 1.0, 2.0, -1.0])
    ids = inverse_cdf(logits.expand(100_000, 4), torch.rand(100_000, generator=rng()))
    frequency = torch.bincount(ids, minlength=4) / 100_000
    torch.testing.assert_close(frequency, logits.softmax(0), atol=0.01, rtol=0)
    impossible = torch.tensor([[-1e9, 0.0, -1e9]])
    assert inverse_cdf(impossible, torch.tensor([0.0])).item() == 1, "the only possible token"


def test_the_family_that_the_contract_s_docstring_shows_keeps_it():
    """It trains, samples, guides and refuses, as its docstring says a family must."""
    names = vars(generator).copy()
    example = doctest.DocTestParser().get_doctest(generator.__doc__, names, "generator", None, 0)
    runner = doctest.DocTestRunner()
    runner.run(example, clear_globs=False)
    assert example.examples and runner.failures == 0
    model = example.globs["ClassMeans"](SHAPE, CLASSES, codebook=None)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    losses = []
    for step in range(3):
        losses.append(model(random_batch(), rng=rng(step)))
        losses[-1].backward()
        optimizer.step()
    assert losses[-1].dtype == torch.float32 and losses[-1] < losses[0]
    test_samples_have_the_contract_s_shape_and_type(model)
    test_sample_i_does_not_depend_on_its_batch(model)
    test_labels_matter(model)
    test_step_counts_are_supported_or_refused(model)
