"""Tokens by scale: the codebooks, and the transformer that predicts a scale a step."""

import itertools
import math

import pytest
import torch
from conftest import CLASSES, SHAPE, random_batch, rng, tiny

from models.ar_scale import AutoregressiveScales
from models.randomness import spawn
from models.scales import ScaleCodebooks
from models.tokens import inverse_cdf

LABELS = torch.tensor([0, 3, 1])


def smooth(count: int, seed: int = 0) -> torch.Tensor:
    """Latents (N, 4, 8, 8) of which a coarse map tells the most, as real ones."""
    coarse = torch.randn(count, 4, 2, 2, generator=rng(seed))
    fine = torch.randn(count, *SHAPE, generator=rng(seed + 1))
    return torch.nn.functional.interpolate(coarse, size=(8, 8), mode="bilinear") + 0.2 * fine


def fitted(size: int = 64, **changes) -> ScaleCodebooks:
    books = ScaleCodebooks(size, SHAPE, **changes)
    books.fit(smooth(500))
    return books


def test_every_scale_takes_away_some_of_what_is_left():
    books, latents = fitted(), smooth(100, seed=7)
    ids, before = books.tokenize(latents)
    assert ids.shape == (100, 85) and before.shape == (100, 85, 4)
    left, errors = latents, [latents.square().mean().item()]
    for scale, (a, b) in enumerate(books.spans()):
        left = left - books.enlarged(scale, ids[:, a:b])
        errors.append(left.square().mean().item())
    assert all(after < earlier for earlier, after in itertools.pairwise(errors))
    torch.testing.assert_close(books.detokenize(ids), latents - left)


def test_a_constant_image_is_its_first_token():
    books = ScaleCodebooks(3, SHAPE)
    books.entries[0] = torch.tensor([[1.0, 2, 3, 4], [0, 0, 0, 0], [9, 9, 9, 9]])
    latents = torch.tensor([1.0, 2, 3, 4])[None, :, None, None].expand(2, *SHAPE)
    ids, before = books.tokenize(latents)
    assert (ids[:, 0] == 0).all() and torch.equal(books.detokenize(ids), latents)
    assert (before[:, 0] == 0).all() and torch.equal(
        before[0, 1:], latents[0, :, 0, 0].expand(84, 4)
    )


def test_each_token_is_told_the_mean_of_its_own_area():
    """The lower right quarter is ones after the scale of two places a side, but for the borders."""
    books = ScaleCodebooks(2, SHAPE, sides=[2, 8])
    books.entries[0, 1] = 1.0
    latents = torch.zeros(1, *SHAPE)
    latents[:, :, 4:, 4:] = 1.0
    ids, before = books.tokenize(latents)
    assert ids[0, :4].tolist() == [0, 0, 0, 1]
    assert torch.equal(before[0, 4:], books.enlarged(0, ids[:, :4])[0].flatten(1).T)
    assert before[0, -1].tolist() == [1.0] * 4 and before[0, 4].tolist() == [0.0] * 4


def test_fewer_vectors_than_entries_are_no_fault():
    books = ScaleCodebooks(64, SHAPE)
    books.fit(smooth(10))
    assert books.entries[0].unique(dim=0).shape[0] == 10 and books.entries.isfinite().all()


@pytest.mark.parametrize(
    "sides, side", [([1, 3, 8], 8), ([2, 1, 8], 8), ([1, 2, 4], 8), (None, 12), ([1, 1, 8], 8)]
)
def test_scales_that_do_not_tile_are_refused_by_name(sides, side):
    with pytest.raises(ValueError, match=r"model\.sides.*tile"):
        ScaleCodebooks(8, (4, side, side), sides)


def model_of(books: ScaleCodebooks) -> AutoregressiveScales:
    model = tiny("scale").eval()
    model.codebook.load_state_dict(books.state_dict())
    return model


@pytest.mark.parametrize("guidance", [1.0, 2.5])
def test_scales_sampled_with_the_cache_are_those_of_the_full_forward_pass(guidance):
    books = fitted()
    model = model_of(books)
    ids = model.sample_tokens(LABELS, steps=4, guidance=guidance, rng=rng(2))
    # what a training on these very samples would see
    total, before = torch.zeros(3, *SHAPE), []
    for scale, (a, b) in enumerate(books.spans()):
        before.append(books.shrunk(total, books.sides[scale]))
        total = total + books.enlarged(scale, ids[:, a:b])
    with torch.no_grad():
        conditional = model.logits(torch.cat(before, dim=1), LABELS)
        nothing = model.logits(torch.cat(before, dim=1), torch.full_like(LABELS, CLASSES))
    logits = nothing + guidance * (conditional - nothing)
    uniform = torch.stack([torch.rand(85, generator=own) for own in spawn(rng(2), 3)])
    columns = [inverse_cdf(logits[:, n], uniform[:, n]) for n in range(85)]
    assert torch.equal(ids, torch.stack(columns, dim=1)) and ids.unique().numel() > 16
    sampled = model.sample(LABELS, steps=4, guidance=guidance, rng=rng(2))
    torch.testing.assert_close(sampled, total)


def test_a_scale_sees_itself_and_the_scales_before_and_nothing_after():
    model, before = model_of(fitted()), torch.randn(1, 85, 4)
    changed = before.clone()
    changed[:, 10] += 1  # of the scale of tokens 5 to 20
    one, other = (model.logits(each, LABELS[:1]) for each in (before, changed))
    differs = (one != other).any(-1)[0]
    assert not differs[:5].any() and differs[5:].all()


def test_the_loss_is_that_of_the_tokens_of_the_batch():
    model, batch = model_of(fitted()), random_batch()
    batch = batch._replace(latents=smooth(6, seed=9))
    ids, before = model.codebook.tokenize(batch.latents)
    logits = model.logits(before, batch.labels)
    chosen = logits.log_softmax(-1).gather(2, ids[..., None])
    assert model(batch, rng=rng()).item() == pytest.approx(-chosen.mean().item(), rel=1e-5)
    with torch.no_grad():
        model.head.weight.zero_()
    assert model(batch, rng=rng()).item() == pytest.approx(math.log(64), rel=1e-6)


def test_what_is_fitted_is_part_of_the_weights():
    model = tiny("scale")
    model.fit(smooth(200))
    other = tiny("scale")
    other.load_state_dict(model.state_dict())
    assert torch.equal(other.codebook.entries, model.codebook.entries)
    assert model.codebook.entries.abs().sum() > 0
