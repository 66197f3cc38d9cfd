"""The masked model: what it may see, and in which order its two samplers fix tokens."""

import torch
from conftest import ENTRIES, TOKENS, random_batch, rng, tiny
from test_tokens import LABELS, any_order_numbers

from models.randomness import spawn
from models.tokens import inverse_cdf, schedule


def spied_logits(model, monkeypatch) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """A list to which each call of the masked model's `logits` adds its tokens and its result."""
    calls, logits = [], model.logits

    def spy(tokens, labels):
        calls.append((tokens, logits(tokens, labels)))
        return calls[-1][1]

    monkeypatch.setattr(model, "logits", spy)
    return calls


def test_a_masked_model_does_not_see_what_it_predicts(monkeypatch):
    model, batch = tiny("masked").eval(), random_batch()
    calls = spied_logits(model, monkeypatch)
    model(batch, rng=rng(4))
    model(batch._replace(tokens=(batch.tokens + 1) % ENTRIES), rng=rng(4))
    (seen, _), (other_seen, _) = calls
    masked = seen == ENTRIES
    assert torch.equal(masked, other_seen == ENTRIES) and 0.2 < masked.float().mean() < 0.9
    assert torch.equal(seen[~masked], batch.tokens[~masked])
    assert (masked.sum(dim=1) >= 1).all()


def test_masked_decoding_fixes_as_many_as_its_schedule_says_and_never_changes_them(monkeypatch):
    model = tiny("masked").eval()
    calls = spied_logits(model, monkeypatch)
    ids = model.sample_tokens(LABELS, steps=8, guidance=1.0, rng=rng(2))
    seen = [tokens for tokens, _ in calls]
    counts = [(tokens != ENTRIES).sum(dim=1).tolist() for tokens in seen]
    done = [sum(schedule("cosine", TOKENS, 8)[:n]) for n in range(8)]
    assert counts == [[n] * 3 for n in done]
    for before, after in zip(seen, [*seen[1:], ids], strict=True):
        assert torch.equal(after[before != ENTRIES], before[before != ENTRIES])
    assert (ids < ENTRIES).all()


def test_masked_decoding_without_noise_keeps_what_it_is_surest_of(monkeypatch):
    model = tiny("masked").eval()
    model.set_sampler(choice_temperature=0.0)
    calls = spied_logits(model, monkeypatch)
    model.sample_tokens(LABELS[:1], steps=4, guidance=1.0, rng=rng(2))
    (_, logits), (kept, _) = calls[:2]
    uniform = torch.rand(2, TOKENS, generator=spawn(rng(2), 1)[0])[0]
    proposed = inverse_cdf(logits[0], uniform)
    confidence = logits[0].log_softmax(-1).gather(1, proposed[:, None])[:, 0]
    surest = confidence.topk(schedule("cosine", TOKENS, 4)[0]).indices
    assert (kept[0] != ENTRIES).nonzero()[:, 0].tolist() == surest.sort().values.tolist()


def test_masked_decoding_in_random_order_fixes_the_places_of_each_image_s_own_order(monkeypatch):
    """As many a step as `masked_continuous`, whatever the model is sure of."""
    model = tiny("masked-random").eval()
    calls = spied_logits(model, monkeypatch)
    model.sample_tokens(LABELS, steps=8, guidance=1.0, rng=rng(2))
    orders, _ = any_order_numbers(3, 2)
    for step, (tokens, _) in enumerate(calls):
        done = sum(schedule("cosine", TOKENS, 8)[:step])
        for seen, order in zip(tokens, orders, strict=True):
            there = (seen != ENTRIES).nonzero()[:, 0]
            assert there.tolist() == order[:done].sort().values.tolist()


def test_masked_decoding_in_random_order_and_all_steps_is_a_conditional_each(monkeypatch):
    """In as many steps as tokens each is sampled from what the model says of it, the rest given."""
    model = tiny("masked-random").eval()
    calls = spied_logits(model, monkeypatch)
    ids = model.sample_tokens(LABELS[:1], steps=TOKENS, guidance=1.0, rng=rng(2))
    own = spawn(rng(2), 1)[0]
    order = torch.rand(TOKENS, generator=own).argsort()
    for place, (_, logits) in zip(order, calls, strict=True):
        uniform = torch.rand(2, TOKENS, generator=own)[0]
        assert ids[0, place] == inverse_cdf(logits[0], uniform)[place]
