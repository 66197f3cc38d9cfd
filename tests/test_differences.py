"""Two measurements compared: verdicts, ties, and many comparisons together."""

import numpy as np
import pytest
from scipy.stats import ttest_ind

from benchmarks.analysis.differences import (
    MARGIN,
    NOT_JUDGED,
    Difference,
    Spread,
    accuracy_within_training,
    between_networks,
    between_settings,
    holm,
    paired_error,
    spread,
    within_training,
)


def record(fd: float, std: float | None, name: str = "fd_generator") -> dict:
    return {"row": {name: fd, f"{name}_std": std, "num_samples": 9}}


@pytest.mark.parametrize("name", ["fd_generator", "fd"])
@pytest.mark.parametrize(
    "fd, std_a, std_b, verdict",
    [
        (4.0, 0.1, 0.1, "better"),
        (6.0, 0.1, 0.1, "worse"),
        (5.1, 0.1, 0.1, "tie"),
        (50.0, 0.1, None, "unknown"),
        (5.1, 0.4, 0.4, "inconclusive"),  # it could not have shown a tenth of 5
    ],
)
def test_verdicts_on_settings_of_one_training(fd, std_a, std_b, verdict, name):
    """Also where there is no generator-only distance, so that fd leads."""
    difference = within_training(record(5.0, std_a, name), record(fd, std_b, name))
    assert difference.verdict() == verdict
    assert difference.value == pytest.approx(np.log(fd / 5))


def test_the_generator_only_distance_decides_and_not_that_of_the_system():
    first, second = record(5.0, 0.1), record(4.0, 0.1)
    first["row"] |= {"fd": 5.0, "fd_std": 0.1}
    second["row"] |= {"fd": 9.0, "fd_std": 0.1}
    assert within_training(first, second).verdict() == "better"


@pytest.mark.parametrize(
    "first, second, verdict",
    [
        ([1.5, 1.6, 1.4], [1.3, 1.4, 1.2], "better"),
        ([1.3, 1.4, 1.2], [1.5, 1.6, 1.4], "worse"),
        ([1.5, 1.6, 1.4], [1.51, 1.61, 1.42], "tie"),
        ([1.5, 1.6, 1.4], [1.51, 1.41, 1.61], "inconclusive"),
        ([1.5, 1.5], [1.5, 1.9], "inconclusive"),  # Student's limit for two is 12.7 errors
    ],
)
def test_settings_of_the_same_trainings_are_compared_by_their_differences(first, second, verdict):
    """However far apart the trainings themselves are."""
    difference = between_settings(first, second, MARGIN)
    assert difference.verdict() == verdict
    assert difference.basis == f"{len(first)} trainings, paired"


@pytest.mark.parametrize("apart", [0.0, 0.5, 100.0])
def test_networks_of_fewer_than_three_trainings_are_not_judged_however_far_apart(apart):
    known = Spread(0.04**2, 20)
    for first, trainings in ((1, 1), (1, 3), (2, 2), (3, 2)):
        difference = between_networks([0.0] * first, [apart] * trainings, known, MARGIN)
        assert difference.verdict() == difference.verdict(0.0) == NOT_JUDGED
        assert np.isnan(difference.p)


def test_networks_are_compared_by_the_pooled_spread_of_all():
    """Identical trainings of each do not make an error of nothing."""
    known = spread([[1.0, 1.0], [1.2, 1.2], [2.0, 2.4], [5.0]])
    assert known.variance == pytest.approx(0.08 / 3) and known.freedom == 3
    difference = between_networks([1.0] * 3, [1.2] * 3, known, MARGIN)
    assert difference.error == pytest.approx((known.variance * 2 / 3) ** 0.5)
    assert difference.freedom == 3 and difference.verdict() == "inconclusive"
    assert difference.basis == "3 and 3 trainings"


def test_without_a_spread_between_trainings_nothing_is_known():
    assert spread([[1.0], [2.0]]) is None and spread([]) is None
    assert spread([[1.0, 1.0]]) is None, "equal distances are one training stored twice"
    assert between_networks([1.0] * 3, [2.0] * 3, None, MARGIN).verdict() == "unknown"


@pytest.mark.parametrize(
    "value, error, freedom, verdict",
    [
        (0.0, 0.06, np.inf, "tie"),  # 1.645 x 0.06 is within 0.1
        (0.0, 0.062, np.inf, "inconclusive"),
        (0.0, 0.06, 4, "inconclusive"),  # Student's 2.13
        (0.05, 0.03, np.inf, "tie"),
        (0.05, 0.04, np.inf, "inconclusive"),
        (-0.05, 0.01, np.inf, "better"),  # surely different, though it does not matter
        (0.0, 0.0, np.inf, "tie"),
        (0.5, 0.0, np.inf, "worse"),
    ],
)
def test_a_tie_is_shown_and_not_assumed(value, error, freedom, verdict):
    """Errors too wide to exclude a difference that matters are no tie."""
    assert Difference(value, error, freedom, "made up", 0.1).verdict() == verdict


def test_ties_are_declared_of_different_networks_at_most_one_time_in_twenty():
    """Of networks exactly the margin apart; 4000 comparisons tell 0.05 to 0.007 (two SE)."""
    rng, ties = np.random.default_rng(5), 0
    for value in MARGIN + 0.05 * rng.normal(size=4000):
        ties += Difference(value, 0.05, np.inf, "made up", MARGIN).verdict(1.0) == "tie"
    assert ties / 4000 <= 0.057


def test_holm_s_adjustment_is_that_of_a_worked_example():
    """0.005, 0.01, 0.03 and 0.04 times 4, 3, 2 and 1, none below the one before."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.5]) == [1.0, 1.0], "a probability stays one"
    assert holm([]) == []


def test_holm_does_not_count_what_is_not_compared():
    adjusted = holm([np.nan, 0.01, np.nan, 0.04])
    assert np.isnan(adjusted[0]) and np.isnan(adjusted[2])
    assert adjusted[1] == pytest.approx(0.02) and adjusted[3] == 0.04


def test_label_accuracies_of_one_training_differ_by_the_error_of_two_fractions():
    rows = [{"label_accuracy": share, "num_samples": 100} for share in (0.5, 0.8)]
    difference = accuracy_within_training(*rows)
    assert difference.value == pytest.approx(-0.3) and difference.verdict() == "better"
    assert difference.error == pytest.approx((0.5 * 0.5 / 100 + 0.8 * 0.2 / 100) ** 0.5)


@pytest.mark.parametrize("too_high", [0.0, 0.3, 3.0])
def test_a_bootstrap_that_lies_too_high_makes_no_error_smaller(too_high):
    """As it does near the floor: its scatter counts, and the distances that were measured."""
    noise = np.random.default_rng(0).normal(size=(2, 200)) * [[0.05], [0.02]]
    bootstraps = [0.5 + too_high + noise[0], 0.4 + too_high + noise[1]]
    wanted = float(np.std(noise[1] / 0.4 - noise[0] / 0.5, ddof=1))
    assert paired_error((0.5, 0.4), bootstraps) == pytest.approx(wanted)


def test_networks_that_scatter_unlike_each_other_are_compared_by_welch_s_test():
    """And those whose spreads are less than three times apart by the pooled one, which others of
    the table have a part in.
    """
    steady, noisy = [1.0, 1.01, 1.02], [1.0, 1.2, 1.5]
    of_all = spread([steady, noisy, [2.0, 2.3, 2.9]])
    found = between_networks(steady, noisy, of_all, MARGIN)
    assert found.p == pytest.approx(ttest_ind(steady, noisy, equal_var=False).pvalue)
    alike = between_networks(noisy, [1.0, 1.1, 1.3], of_all, MARGIN)
    assert alike.freedom == of_all.freedom
