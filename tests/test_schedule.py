"""How many tokens a step samples: every schedule's counts, and which of them is the default."""

import pytest
import torch
from conftest import SHAPE, TOKENS, rng, tiny

from models.tokens import SCHEDULES, random_mask, schedule


@pytest.mark.parametrize("kind", list(SCHEDULES))
@pytest.mark.parametrize("tokens", [64, 256])
def test_a_schedule_samples_every_token_once_and_at_least_one_a_step(kind, tokens):
    for steps in (1, 2, 3, 8, 33, tokens - 1, tokens):
        counts = schedule(kind, tokens, steps)
        assert len(counts) == steps and sum(counts) == tokens and min(counts) >= 1
    counts = schedule(kind, 6400, 8)
    left = [1 - sum(counts[: n + 1]) / 6400 for n in range(8)]
    assert left == pytest.approx([SCHEDULES[kind]((n + 1) / 8) for n in range(8)], abs=1e-3)
    assert counts[0] < counts[-1], "few at first"


@pytest.mark.parametrize("name", ["masked", "any"])
def test_the_last_of_eight_steps_samples_12_of_64_tokens(name):
    """By default. It would be 21, a third of the image at once, with arccos."""
    default = tiny(name).sampler_options["schedule"]
    assert schedule(default, 64, 8) == [1, 4, 6, 8, 9, 12, 12, 12]
    assert schedule("arccos", 64, 8)[-1] == 21


def loss_of_parallel_steps(covariance: torch.Tensor, counts: list[int]) -> float:
    """Kullback-Leibler divergence, in nats, of a Gaussian field from one sampled in steps.

    `covariance` (T, T) is in the order of sampling. A step samples `counts` of the T values, each
    from its own distribution given all steps before. So what is lost of a step is their dependence:
    the entropies of each alone less the entropy of all of them.
    """
    loss, start = 0.0, 0
    for count in counts:
        before, now = slice(0, start), slice(start, start + count)
        explained = torch.linalg.solve(covariance[before, before], covariance[before, now])
        given_earlier = covariance[now, now] - covariance[now, before] @ explained
        loss += (given_earlier.diag().log().sum() - given_earlier.logdet()).item() / 2
        start += count
    return loss


@pytest.mark.parametrize("steps", [8, 16, 32])
@pytest.mark.parametrize("reach", [1.0, 2.0, 4.0])
def test_in_random_order_cosine_loses_less_than_arccos(reach, steps):
    """Why it is the any-order model's default: tokens of one step do not see each other.

    A field on the grid of tokens, correlated by exp(-distance / reach), stands for an image.
    """
    rows, columns = torch.meshgrid(*map(torch.arange, SHAPE[1:]), indexing="ij")
    places = torch.stack([rows, columns], dim=-1).view(-1, 2).double()
    covariance = torch.exp(-torch.cdist(places, places) / reach)

    def mean_loss(kind: str) -> float:
        counts, orders = schedule(kind, TOKENS, steps), rng()
        losses = []
        for _ in range(50):
            order = torch.randperm(TOKENS, generator=orders)
            losses.append(loss_of_parallel_steps(covariance[order][:, order], counts))
        return sum(losses) / len(losses)

    assert mean_loss("cosine") < mean_loss("arccos")


@pytest.mark.parametrize("kind, quarter", [("cosine", 0.3827), ("arccos", 0.4602)])
def test_masked_learns_the_fractions_that_sampling_meets(kind, quarter):
    """The fraction still masked three quarters of the way is exceeded in three of four images."""
    fractions = random_mask(4000, TOKENS, kind, rng=rng(0)).float().mean(dim=1)
    least = torch.quantile(fractions, 0.25).item()
    assert least == pytest.approx(quarter, abs=2 / TOKENS)  # the two are 5 tokens apart
