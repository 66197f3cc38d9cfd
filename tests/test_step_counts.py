"""How many steps are enough, in the report's words, on numbers made up here."""

import numpy as np
import pytest
from made_up_rows import TWO, trained

from benchmarks.analysis import verdicts


def test_enough_steps_are_the_fewest_that_are_within_two_errors_of_the_lowest():
    lines = verdicts.enough_steps(TWO)
    assert lines == [
        "a: 4 steps (5) are within two errors of the best count, 16 steps (4.95); fewer are worse.",
        "b: 4 steps, the most measured, are best (3); fewer are worse.",
    ]
    (line,) = verdicts.enough_steps(trained({"a": {1: [4.0], 16: [5.0]}}))
    assert line == "a: 1 step is best (4); 16 steps (5) are worse."
    (line,) = verdicts.enough_steps(trained({"a": {4: [4.0], 8: [3.5], 16: [3.6]}}))
    assert line == "a: 8 steps are best (3.5); fewer are worse."
    (line,) = verdicts.enough_steps(trained({"a": {4: [3.6], 8: [4.5], 16: [3.5]}}))
    assert line == (
        "a: 4 steps (3.6) are within two errors of the best count, 16 steps (3.5); "
        "8 steps (4.5) are worse."
    )
    assert verdicts.enough_steps(trained({"a": {4: [5.0]}})) == []


def test_steps_of_one_drawing_are_compared_by_their_paired_error():
    """0.2 of 5 is less than two joint errors of 0.14, but far more than the differences' spread."""
    noise = np.random.default_rng(0).normal(size=20)
    bootstraps = [
        {"bootstrap": list(fd + 0.1 * noise + 0.002 * i * noise)} for i, fd in enumerate((5.2, 5.0))
    ]
    table = trained({"a": {4: [5.2], 8: [5.0]}}).assign(diagnostics=bootstraps)
    assert "8 steps, the most measured, are best" in verdicts.enough_steps(table)[0]
    apart = table.assign(sampling_seed=[0, 1])
    assert "4 steps (5.2) are within two errors" in verdicts.enough_steps(apart)[0], (
        "nothing cancels"
    )


def test_steps_are_compared_within_each_training():
    """The trainings differ by far more than the steps do, and only the first has 32 steps."""
    table = trained({"a": {4: [5.5, 9.5], 8: [5.0, 9.0], 16: [5.0, 9.0], 32: [5.0]}})
    (line,) = verdicts.enough_steps(table)
    assert line.startswith("a: 8 steps are best (7)"), "0.1 of 5 is seen in each"


def test_steps_that_help_some_trainings_and_harm_others_are_not_told_apart():
    """The images' errors are 2% here, the trainings differ by 20%."""
    table = trained({"a": {4: [5.0, 5.0, 5.0], 8: [4.0, 4.9, 5.4]}})
    (line,) = verdicts.enough_steps(table)
    assert line == "a: 4 steps (5) are within two errors of the best count, 8 steps (4.77)."


def test_steps_that_three_trainings_agree_on_by_chance_are_not_called_worse():
    """Above the best count by 2.1 errors, of three trainings: p is 0.17."""
    table = trained({"a": {4: [5.0, 5.0, 5.0], 8: [5.2, 5.35, 5.75]}})
    (line,) = verdicts.enough_steps(table)
    assert line == "a: 4 steps are best (5), and no other count is told apart from it."
    (line,) = verdicts.enough_steps(trained({"a": {4: [5.2, 5.35, 5.75], 8: [5.0, 5.0, 5.0]}}))
    assert line.endswith("are best (5); fewer are more than two errors above it.")


@pytest.mark.parametrize("counts", [pytest.param(2, marks=pytest.mark.long), 4])
def test_of_equal_step_counts_hardly_any_is_called_worse(counts):
    """Three trainings, which differ by more than their images make them: a chance of 5% at most
    that a model's line calls any of its counts worse.
    """
    rng, found, tables = np.random.default_rng(counts), 0, 200
    for _ in range(tables):
        distances = np.exp(1.6 + 0.1 * rng.normal(size=(counts, 3)))
        table = trained({"a": {2**place: list(at) for place, at in enumerate(distances)}})
        (line,) = verdicts.enough_steps(table)
        found += "worse" in line
    assert found / tables <= 0.05 + 2 * (0.05 * 0.95 / tables) ** 0.5


def test_settings_chosen_otherwise_for_fewer_steps_are_mentioned():
    (line,) = verdicts.enough_steps(TWO[TWO["curve"] == "a"].assign(guidance=[2.5, 2.5, 1.5]))
    assert line.endswith("fewer are worse; not all of these have the same settings.")
