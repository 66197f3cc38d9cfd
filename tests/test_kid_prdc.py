"""KID, precision, recall, density and coverage: what their papers and torchmetrics say."""

import numpy as np
import pytest
import torch
from torchmetrics.image.kid import KernelInceptionDistance

import metrics.kid
from metrics.kid import kid
from metrics.prdc import prdc, recall


def gaussian(n: int, d: int, seed: int, shift: float = 0.0) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed)) + shift


class _Identity(torch.nn.Module):
    """Passes (N, d, 1, 1) 'images' through as features, so that torchmetrics sees ours."""

    num_features = 16

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(1).float()


def test_kid_of_the_full_sets_is_torchmetrics():
    real, fake = gaussian(200, 16, 0).relu(), gaussian(200, 16, 1, 0.3).relu()
    theirs = KernelInceptionDistance(
        feature=_Identity(), subsets=1, subset_size=200, normalize=True
    )
    theirs.update(real[:, :, None, None], real=True)
    theirs.update(fake[:, :, None, None], real=False)
    assert kid(real, fake).distance == pytest.approx(theirs.compute()[0].item(), rel=1e-4)


def test_kid_and_its_error_are_the_same_in_blocks_of_any_size(monkeypatch):
    """Blocks of 7 of 100 and 93 rows, of which the last are short; and one block of all."""
    real, fake = gaussian(100, 4, 0), gaussian(93, 4, 1, 0.3)
    within = [kernel_mean_by_hand(x, x, same=True) for x in (real, fake)]
    across = kernel_mean_by_hand(real, fake, same=False)
    whole = kid(real, fake)
    assert whole.distance == pytest.approx(sum(within) - 2 * across, rel=1e-9)
    monkeypatch.setattr(metrics.kid, "ROWS", 7)
    assert kid(real, fake) == pytest.approx(whole, rel=1e-9)


def kernel_mean_by_hand(a: torch.Tensor, b: torch.Tensor, same: bool) -> float:
    """Of (a.b / d + 1)^3 over all pairs, or over those of different rows."""
    kernel = (a.double() @ b.double().T / a.shape[1] + 1) ** 3
    if same:
        kernel.fill_diagonal_(0)
    return (kernel.sum() / (len(a) * (len(b) - same))).item()


def test_kid_is_unbiased_at_fifty():
    """600 pairs of samples of one distribution: their mean is within three errors of zero."""
    distances = []
    for i in range(600):
        distances.append(kid(gaussian(50, 8, 2 * i), gaussian(50, 8, 2 * i + 1)).distance)
    assert abs(np.mean(distances)) < 3 * np.std(distances) / 600**0.5
    apart = kid(gaussian(50, 8, 0), gaussian(50, 8, 1, 1.0)).distance
    assert apart > 10 * np.std(distances)


@pytest.mark.parametrize("call", [kid, prdc, recall])
def test_features_that_cannot_be_compared_are_refused(call):
    with pytest.raises(ValueError, match="must be"):
        call(torch.zeros(1, 4), torch.zeros(9, 4))
    with pytest.raises(ValueError, match="must be"):
        call(torch.zeros(9, 4), torch.zeros(9, 5))


def radii(points: np.ndarray, k: int) -> np.ndarray:
    """Distance of each point to its k-th nearest other one."""
    distances = [[np.linalg.norm(a - b) for b in points] for a in points]
    return np.array([np.sort(row)[k] for row in distances])


def by_hand(real: np.ndarray, fake: np.ndarray, k: int) -> list[float]:
    """Precision, recall, density and coverage as their papers write them, a pair at a time."""
    pairs = np.array([[np.linalg.norm(r - f) for f in fake] for r in real])
    real_radii, fake_radii = radii(real, k), radii(fake, k)
    in_real = np.zeros(pairs.shape, bool)
    in_fake = np.zeros(pairs.shape, bool)
    for i in range(len(real)):
        for j in range(len(fake)):
            in_real[i, j] = pairs[i, j] < real_radii[i]
            in_fake[i, j] = pairs[i, j] < fake_radii[j]
    precision, recall = in_real.any(0).mean(), in_fake.any(1).mean()
    density = in_real.sum() / (k * len(fake))
    coverage = np.mean([pairs[i].min() < real_radii[i] for i in range(len(real))])
    return [precision, recall, density, coverage]


def test_precision_recall_density_coverage_are_their_papers():
    real, fake = gaussian(40, 3, 0), gaussian(40, 3, 1, 0.7)
    assert list(prdc(real, fake, k=3)) == pytest.approx(by_hand(real.numpy(), fake.numpy(), 3))
    assert recall(real, fake, k=3) == prdc(real, fake, k=3).recall


def test_two_samples_of_one_distribution_and_of_two_apart():
    same = prdc(gaussian(1000, 8, 0), gaussian(1000, 8, 1))
    assert 0.7 < same.precision < 0.95 and 0.7 < same.recall < 0.95
    assert 0.9 < same.density < 1.1 and same.coverage > 0.9
    assert list(prdc(gaussian(100, 8, 0), gaussian(300, 8, 1, 50.0))) == [0, 0, 0, 0]
