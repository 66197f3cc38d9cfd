"""The Fréchet distance against scipy and torchmetrics, its bias and spread; the linear probe."""

import numpy as np
import pytest
import scipy.linalg
import torch
from torchmetrics.image.fid import FrechetInceptionDistance

from metrics.frechet import bootstrap, frechet_bias, frechet_distance
from metrics.probe import fit_probe


def features(n: int, d: int, seed: int, shift: float = 0.0) -> torch.Tensor:
    """Correlated, non-negative features, as a network's are."""
    rng = torch.Generator().manual_seed(seed)
    mix = torch.randn(d, d, generator=torch.Generator().manual_seed(99)) / d**0.5
    return (torch.randn(n, d, generator=rng) @ mix + shift).relu()


def gaussian(n: int, d: int, seed: int) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def by_scipy(real: torch.Tensor, fake: torch.Tensor) -> float:
    """The distance as its definition has it, with a matrix square root."""
    a, b = real.double().numpy(), fake.double().numpy()
    cov_a, cov_b = np.cov(a.T), np.cov(b.T)
    root = scipy.linalg.sqrtm(cov_a @ cov_b).real
    means_apart = ((a.mean(0) - b.mean(0)) ** 2).sum()
    return float(means_apart + np.trace(cov_a) + np.trace(cov_b) - 2 * np.trace(root))


class _Identity(torch.nn.Module):
    """Passes (N, d, 1, 1) 'images' through as features, so that torchmetrics sees ours."""

    num_features = 24

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(1).float()


@pytest.mark.parametrize("n, m", [(500, 300), (24, 40), (15, 400), (400, 15), (12, 15)])
def test_frechet_equals_scipy_above_and_below_the_dimension(n, m):
    real, fake = features(n, 24, 1), features(m, 24, 2, 0.3)
    assert frechet_distance(real, fake) == pytest.approx(by_scipy(real, fake), rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("n, m", [(500, 300), (15, 12)])
def test_frechet_survives_a_dead_feature(n, m):
    real, fake = features(n, 24, 1), features(m, 24, 2, 0.3)
    real[:, 5] = fake[:, 5] = 0.0
    real[:, 7] = 1.5
    assert frechet_distance(real, fake) == pytest.approx(by_scipy(real, fake), rel=1e-4, abs=1e-5)
    assert frechet_distance(fake, real) == pytest.approx(frechet_distance(real, fake), rel=1e-6)


@pytest.mark.parametrize("n, m", [(500, 300), (15, 20)])
def test_frechet_equals_torchmetrics(n, m):
    real, fake = features(n, 24, 1), features(m, 24, 2, 0.3)
    theirs = FrechetInceptionDistance(
        feature=_Identity(), normalize=True, input_img_size=(24, 1, 1)
    )
    theirs.set_dtype(torch.float64)
    theirs.update(real[:, :, None, None], real=True)
    theirs.update(fake[:, :, None, None], real=False)
    assert frechet_distance(real, fake) == pytest.approx(theirs.compute().item(), rel=1e-4)


def test_frechet_of_gaussians_is_the_closed_form():
    """N(0, I) and N(mu, s^2 I) are |mu|^2 + d (s - 1)^2 apart."""
    real, fake = gaussian(200_000, 6, 0), 2 * gaussian(200_000, 6, 1) + 0.5
    assert frechet_distance(real, fake) == pytest.approx(6 * 0.25 + 6, rel=0.01)
    assert frechet_distance(real, real) == pytest.approx(0, abs=1e-8)


@pytest.mark.parametrize(
    "real, fake, reason",
    [
        (torch.zeros(1, 4), torch.zeros(9, 4), "N >= 2"),
        (torch.zeros(9, 4), torch.zeros(9, 5), "dimensions"),
        (torch.zeros(9, 4), torch.full((9, 4), torch.nan), "NaN"),
        (torch.zeros(9), torch.zeros(9, 4), "must be"),
    ],
)
def test_frechet_refuses_what_it_cannot_compare(real, fake, reason):
    with pytest.raises(ValueError, match=reason):
        frechet_distance(real, fake)


def test_the_bias_is_the_mean_distance_of_two_samples_of_one_gaussian():
    """Three standard errors of 60 distances are 7%."""
    d, n, m = 16, 400, 600
    scale = torch.linspace(0.3, 2, d)
    distances = [
        frechet_distance(gaussian(n, d, 2 * i) * scale, gaussian(m, d, 2 * i + 1) * scale)
        for i in range(60)
    ]
    bias = frechet_bias(gaussian(20_000, d, 1000) * scale, n, m)
    assert bias == pytest.approx(np.mean(distances), rel=0.08)


def test_bootstrap_std_is_near_the_true_spread():
    d, n = 8, 300
    distances = [
        frechet_distance(gaussian(n, d, 2 * i), gaussian(n, d, 2 * i + 1) + 0.5) for i in range(100)
    ]
    estimates = []
    for i in range(10):
        real, fake = gaussian(n, d, 1000 + i), gaussian(n, d, 2000 + i) + 0.5
        rng = torch.Generator().manual_seed(i)
        estimates.append(bootstrap(real, fake, rng=rng).std().item())
    assert 0.7 < np.mean(estimates) / np.std(distances, ddof=1) < 1.4


def test_the_probe_separates_what_is_separable_and_guesses_what_is_not():
    labels = torch.arange(600) % 3
    apart = torch.randn(600, 10) + 4 * torch.eye(10)[labels]
    assert fit_probe(apart, labels, 3).accuracy(apart, labels) > 0.95
    noise, labels = torch.randn(4000, 10), torch.arange(2000) % 4
    probe = fit_probe(noise[:2000], labels, 4)
    assert probe.accuracy(noise[2000:], labels) == pytest.approx(0.25, abs=0.05)
