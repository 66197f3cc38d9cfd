"""The errors and floors that stand beside the numbers: do they cover what they say, on Gaussians
whose truth is known?
"""

import numpy as np
import pytest
import torch

from benchmarks.analysis.differences import within_training
from metrics.frechet import bootstrap, frechet_bias, frechet_distance, frechet_infinity
from metrics.kid import kid
from metrics.per_class import frechet_per_class, kid_per_class


def gaussian(n: int, d: int, seed: int, shift: float = 0.0) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed)) + shift


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_two_jackknife_errors_of_kid_cover_the_truth_nineteen_times_in_twenty():
    """The truth is the mean of 1500 distances, itself within 0.05 errors; 500 distances tell 0.954
    from it to +-0.028 (three SE).
    """
    kids = [kid(gaussian(80, 8, 2 * i), gaussian(120, 8, 2 * i + 1, 0.2)) for i in range(1500)]
    truth = np.mean([k.distance for k in kids])
    covered = np.mean([abs(k.distance - truth) < 2 * k.error for k in kids[:500]])
    # 0.02: the error is itself estimated, and the tails are longer than normal
    assert 0.954 - 0.028 - 0.02 < covered < 0.954 + 0.028


def test_kid_jackknife_is_the_one_of_the_definition():
    a, b = gaussian(12, 5, 0), gaussian(9, 5, 1, 0.3)
    without_a = [kid(a[torch.arange(12) != i], b).distance for i in range(12)]
    without_b = [kid(a, b[torch.arange(9) != i]).distance for i in range(9)]
    variance = 0.0
    for left_out in (without_a, without_b):
        n, spread = len(left_out), np.array(left_out) - np.mean(left_out)
        variance += (n - 1) / n * np.sum(spread**2)
    assert kid(a, b).error == pytest.approx(variance**0.5, rel=1e-6)


def test_distances_per_class_see_which_class_is_off():
    labels = torch.arange(300) % 3
    real, fake = gaussian(300, 8, 0), gaussian(300, 8, 1) + 1.5 * (labels == 2)[:, None]
    kids = kid_per_class(real, labels, fake, labels)
    assert kids[2].distance > 10 * kids[2].error
    assert all(abs(kids[k].distance) < 4 * kids[k].error for k in (0, 1))
    distances = frechet_per_class(real, labels, fake, labels)
    assert max(distances, key=distances.get) == 2 and set(distances) == {0, 1, 2}


def test_classes_of_too_few_rows_have_no_distance():
    """Ten rows of eight dimensions are mostly bias; two rows of a class say nothing."""
    labels = torch.arange(300) % 3
    real, fake = gaussian(300, 8, 0), gaussian(300, 8, 1) + 1.5 * (labels == 2)[:, None]
    ten_each = gaussian(30, 8, 0)
    assert frechet_per_class(ten_each, labels[:30], fake[:30], labels[:30]) == {}
    assert set(kid_per_class(real, labels, fake[:5], labels[:5])) == set()


@pytest.mark.long  # a thousand distances, and 200 bootstraps of 200
def test_two_bootstrap_deviations_cover_the_expected_distance_at_this_n():
    """FD is biased, so what its error covers is the mean over samples of this size: 0.95; three
    standard errors of 200 distances are 0.05.
    """
    d, n = 6, 200
    pairs = [(gaussian(n, d, 2 * i), gaussian(n, d, 2 * i + 1, 0.4)) for i in range(1000)]
    distances = [frechet_distance(*pair) for pair in pairs]
    errors = [bootstrap(*pair, rng=rng(i)).std().item() for i, pair in enumerate(pairs[:200])]
    off_by = np.abs(np.array(distances[:200]) - np.mean(distances))
    covered = np.mean(off_by < 2 * np.array(errors))
    assert 0.90 <= covered <= 1.0
    assert np.mean(errors) == pytest.approx(np.std(distances), rel=0.15)


def balanced(n: int, seed: int, shift: float = 0.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Ten classes far apart, as many rows of each."""
    labels = torch.arange(n) % 10
    return 3 * gaussian(10, 6, 7)[labels] + gaussian(n, 6, seed, shift), labels


def kid_distance(a: torch.Tensor, b: torch.Tensor) -> float:
    return kid(a, b).distance


def kid_error(a: torch.Tensor, b: torch.Tensor, labels) -> float:
    return kid(a, b, labels=labels).error


def bootstrap_error(a: torch.Tensor, b: torch.Tensor, labels=(None, None)) -> float:
    return bootstrap(a, b, rng=rng(), labels=labels).std().item()


@pytest.fixture(scope="module")
def balanced_pairs():
    """300 repetitions: real and generated rows, and the labels of both."""
    pairs = []
    for i in range(300):
        (real, real_labels), (fake, labels) = balanced(300, 2 * i), balanced(300, 2 * i + 1, 0.5)
        pairs.append((real, fake, (real_labels, labels)))
    return pairs


MEASURES = {"fd": (frechet_distance, bootstrap_error), "kid": (kid_distance, kid_error)}


@pytest.mark.parametrize("name", MEASURES)
def test_errors_of_class_balanced_sets_leave_out_what_balance_takes_away(name, balanced_pairs):
    """Of 300 repetitions the true spread has 4% SE; the estimates are means of 20."""
    distance, error = MEASURES[name]
    true = np.std([distance(real, fake) for real, fake, _ in balanced_pairs], ddof=1)
    estimate = np.mean([error(*pair) for pair in balanced_pairs[:20]])
    assert estimate == pytest.approx(true, rel=0.2)


def test_a_bootstrap_that_forgets_the_classes_is_too_wide(balanced_pairs):
    true = np.std([frechet_distance(real, fake) for real, fake, _ in balanced_pairs])
    plain = np.mean([bootstrap_error(real, fake) for real, fake, _ in balanced_pairs[:20]])
    assert plain > 1.3 * true


def shared_noise(i: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Real rows, and those of two settings of a model whose samples share most of their noise."""
    real, shared, own = (gaussian(200, 6, 3 * i + k) for k in range(3))
    return real, shared + 0.4, 0.9 * shared + 0.3 * own + 0.5


def as_record(distance: float, resampled: torch.Tensor, **changes) -> dict:
    """A record with this distance, whose bootstrap gave `resampled`."""
    row = {
        "fd_generator": distance,
        "fd_generator_std": resampled.std().item(),
        "fd": 3 * distance,
        "fd_std": 9.0,
        "num_samples": 200,
    }
    return {"row": row, "diagnostics": {"bootstrap": resampled.tolist()}} | changes


def test_alike_bootstraps_give_the_spread_of_differences_and_less_of_it_where_samples_share_noise():
    """Of logarithms. True spread over 200 repetitions (5% SE); mean of 20 estimates of 200
    resamples.
    """
    differences = []
    for real, a, b in map(shared_noise, range(200)):
        differences.append(np.log(frechet_distance(real, b) / frechet_distance(real, a)))
    paired, unpaired = [], []
    for i in range(20):
        real, *samples = shared_noise(1000 + i)
        a, b = (
            as_record(frechet_distance(real, one), bootstrap(real, one, rng=rng(i)))
            for one in samples
        )
        paired.append(within_training(a, b).error)
        b["sampling_seed"] = 1  # other noise: nothing is shared
        assert within_training(a, b).basis == "one training, its images, unpaired"
        unpaired.append(within_training(a, b).error)
    assert np.mean(paired) == pytest.approx(np.std(differences, ddof=1), rel=0.2)
    assert np.mean(paired) < 0.8 * np.mean(unpaired)


@pytest.mark.parametrize(
    "changes", [{"sampling_seed": 1}, {"evaluator": "another"}, {"diagnostics": {}}]
)
def test_only_settings_evaluated_and_sampled_alike_are_paired(changes):
    noise = torch.linspace(4, 6, 20)
    same = {"sampling_seed": 0, "evaluator": "e"}
    first, second = (as_record(5.0, noise, **same) for _ in range(2))
    assert within_training(first, second).basis == "one training, its images"
    assert within_training(first, second | changes).basis.endswith("unpaired")
    second["row"]["num_samples"] = 100
    assert within_training(first, second).basis.endswith("unpaired")


@pytest.mark.parametrize("d, n, m", [(32, 128, 128), (32, 128, 400)])
def test_the_analytic_floor_is_within_five_percent_at_four_times_the_dimension(d, n, m):
    """Of 120 distances the mean has 1% SE; the floor is computed as the benchmark does, from M
    reference rows alone (mean of 10).
    """
    scale = torch.linspace(0.3, 2, d)
    distances = []
    for i in range(120):
        a, b = gaussian(n, d, 2 * i) * scale, gaussian(m, d, 2 * i + 1) * scale
        distances.append(frechet_distance(a, b))
    floors = [frechet_bias(gaussian(m, d, 5000 + i) * scale, n, m) for i in range(10)]
    assert np.mean(floors) == pytest.approx(np.mean(distances), rel=0.05)


def heavy_tailed(n: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Ten classes far apart, as many rows of each, heavy tails within."""
    labels, x = torch.arange(n) % 10, gaussian(n, 16, seed)
    return 2 * gaussian(10, 16, 7)[labels] + x * x.abs(), labels


def test_the_analytic_floor_knows_of_balanced_classes_and_heavy_tails():
    distances = []
    for i in range(100):
        (a, _), (b, _) = heavy_tailed(400, 2 * i), heavy_tailed(600, 2 * i + 1)
        distances.append(frechet_distance(a, b))
    floors = []
    for i in range(10):
        rows, labels = heavy_tailed(600, 9000 + i)
        floors.append(frechet_bias(rows, 400, 600, labels))
    assert np.mean(floors) == pytest.approx(np.mean(distances), rel=0.05)
    # without labels it counts what balance takes away
    without_labels = frechet_bias(heavy_tailed(20_000, 1)[0], 400, 600)
    assert without_labels > 1.2 * np.mean(distances)


def test_the_analytic_floor_wants_rows_enough_of_each_class():
    with pytest.raises(ValueError, match="too little"):
        frechet_bias(gaussian(30, 4, 0), 10, 10, torch.arange(30) // 3)


def test_the_extrapolated_distance_is_near_the_true_one():
    d, shift = 8, 0.3
    truth = d * shift**2
    extrapolated, plain = [], []
    for i in range(60):
        real, fake = gaussian(400, d, 2 * i), gaussian(400, d, 2 * i + 1, shift)
        extrapolated.append(frechet_infinity(real, fake, rng=rng(i)))
        plain.append(frechet_distance(real, fake))
    off_by = abs(np.mean(extrapolated) - truth)
    assert off_by < 3 * np.std(extrapolated) / 60**0.5
    assert off_by < (np.mean(plain) - truth) / 2


def test_the_extrapolated_distance_wants_rows_enough():
    with pytest.raises(ValueError, match="twice as many"):
        frechet_infinity(gaussian(15, 8, 0), gaussian(400, 8, 1), rng=rng())
