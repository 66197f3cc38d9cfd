"""The contract that every family keeps (DESIGN section 2), over all of them."""

import pytest
import torch
from conftest import CLASSES, SHAPE, TOKENS, random_batch, rng, steps_of, tiny

from models import generator as contract
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
    a, b, c = (model(random_batch(), rng=rng(seed)).item() for seed in (3, 3, 4))
    assert a == b and a != c


def test_loss_does_not_depend_on_train_or_eval_but_for_label_dropout():
    for name in ("unet", "dit", "ar", "any", "masked"):
        model = tiny(name, label_dropout=0.0)
        assert model.train()(random_batch(), rng=rng()).item() == pytest.approx(
            model.eval()(random_batch(), rng=rng()).item(), rel=1e-6
        )


def test_samples_have_the_contract_s_shape_and_type(model):
    out = model.eval().sample(
        torch.arange(3) % CLASSES, steps=steps_of(model), guidance=1.0, rng=rng()
    )
    assert out.shape == (3, *SHAPE) and out.dtype == torch.float32 and out.isfinite().all()


def test_same_generator_same_samples(model):
    draw = lambda seed: model.eval().sample(
        torch.arange(2), steps=steps_of(model), guidance=1.5, rng=rng(seed)
    )
    assert torch.equal(draw(7), draw(7))
    assert not torch.equal(draw(7), draw(8))


def test_sample_i_does_not_depend_on_its_batch(model):
    labels, source = torch.arange(6) % CLASSES, rng(5)
    whole = model.eval().sample(labels, steps=steps_of(model), guidance=1.5, rng=rng(5))
    parts = [
        model.sample(part, steps=steps_of(model), guidance=1.5, rng=source)
        for part in labels.split([1, 3, 2])
    ]
    torch.testing.assert_close(torch.cat(parts), whole, rtol=1e-4, atol=1e-4)


def test_guidance_one_is_no_guidance(model):
    """The guided path (two evaluations a step) at a scale next to 1 meets the unguided one, and at
    3 it does not.
    """
    labels = torch.arange(4) % CLASSES
    plain, nearly, strong = (
        model.eval().sample(labels, steps=steps_of(model), guidance=g, rng=rng())
        for g in (1.0, 1 + 1e-7, 3.0)
    )
    torch.testing.assert_close(plain, nearly, rtol=1e-3, atol=1e-3)
    assert not torch.allclose(plain, strong, atol=1e-2)


def test_labels_matter(model):
    one, two = (
        model.eval().sample(torch.full((4,), k), steps=steps_of(model), guidance=1.0, rng=rng())
        for k in (0, 1)
    )
    assert not torch.equal(one, two)


def test_step_counts_are_honoured_or_refused(model):
    asked = [TOKENS, 1, 4, 7, 16, 0, -1, 100_000]
    honoured = model.supported_steps(asked)
    assert honoured and honoured == [n for n in asked if n in honoured]
    for steps in asked:
        if steps in honoured:
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

    monkeypatch.setattr(contract, "drop_labels", spy)
    model.train()(random_batch(), rng=rng())
    assert calls == [(CLASSES, 0.1)]
    model.eval()(random_batch(), rng=rng())
    assert len(calls) == 1, "validation drops no labels"


def test_label_dropout_keeps_its_rate_and_touches_nothing_else():
    labels = torch.arange(200_000) % 10
    dropped = drop_labels(labels, 10, 0.1, rng=rng())
    changed = dropped != labels
    assert (dropped[changed] == 10).all()
    assert changed.float().mean().item() == pytest.approx(
        0.1, abs=4 * (0.09 / 200_000) ** 0.5
    )  # four standard errors


def test_what_the_loss_sees_are_the_dropped_labels(monkeypatch):
    for name in ("unet", "dit", "ar"):
        model, seen = tiny(name, label_dropout=0.5), []
        monkeypatch.setattr(
            model,
            "loss",
            lambda batch, *, rng, seen=seen: seen.append(batch.labels) or torch.zeros(()),
        )
        model.train()(random_batch(2000), rng=rng())
        assert (seen[0] == CLASSES).float().mean().item() == pytest.approx(0.5, abs=0.05)


def test_inversion_draws_from_the_distribution():
    logits = torch.tensor([0.0, 1.0, 2.0, -1.0])
    drawn = inverse_cdf(logits.expand(100_000, 4), torch.rand(100_000, generator=rng()))
    share = torch.bincount(drawn, minlength=4) / 100_000
    torch.testing.assert_close(share, logits.softmax(0), atol=0.01, rtol=0)
    assert inverse_cdf(torch.tensor([[-1e9, 0.0, -1e9]]), torch.tensor([0.0])).item() == 1, (
        "an impossible token is never drawn"
    )
