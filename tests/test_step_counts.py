"""How many steps are enough, in the report's table, on numbers made up here."""

import numpy as np
import pandas as pd
import pytest
from made_up_rows import TWO, trained

from benchmarks.analysis import step_counts


def said(table: pd.DataFrame) -> list[dict[str, str]]:
    """What the table says of each curve, by column; what is empty is left out."""
    header, rows = step_counts.enough_steps(table)
    return [{name: cell for name, cell in zip(header, row, strict=True) if cell} for row in rows]


def said_of(at: dict[int, list[float]]) -> dict[str, str]:
    """What is said of one curve, but for its name and where it holds."""
    (cells,) = said(trained({"a": at}))
    return {k: v for k, v in cells.items() if k not in ("model", "where", "settings")}


def test_enough_steps_are_the_fewest_that_are_within_two_errors_of_the_lowest():
    a, b = said(TWO)
    assert a == {
        "model": "a",
        "where": "in this training",
        "fewest that will do": "4 (5)",
        "lowest at": "16 (4.95)",
        "no difference that matters": "4 (5)",
        "worse": "1 (9)",
        "settings": "alike",
    }
    assert b["lowest at"] == "not converged: the most measured is best, 4 (3)"
    assert b["fewest that will do"] == "none fewer than the most" and b["worse"] == "1 (7)"
    assert said_of({1: [4.0], 16: [5.0]}) == {
        "fewest that will do": "1 (4)",
        "lowest at": "1 (4)",
        "worse": "16 (5)",
    }
    assert said_of({4: [3.7], 8: [4.5], 16: [3.5]}) == {
        "fewest that will do": "4 (3.7)",
        "lowest at": "not converged: the most measured is best, 16 (3.5)",
        "worse": "8 (4.5)",
        "undecided": "4 (3.7)",
    }
    assert said(trained({"a": {4: [5.0]}})) == []


@pytest.mark.parametrize("steps, column", [(16, "lowest at"), (4, "fewest that will do")])
def test_the_most_steps_are_called_not_converged_only_where_fewer_may_be_worse(steps, column):
    """Surely a hundredth apart: more steps would not matter either."""
    assert said_of({4: [43.3], 16: [42.9]})[column].startswith(f"{steps} (")
    assert said_of({4: [60.0], 16: [42.9]})["lowest at"].startswith("not converged")


@pytest.mark.parametrize("apart, column", [(1.01, "no difference that matters"), (1.2, "worse")])
def test_a_difference_within_a_tenth_does_not_matter_though_it_is_surely_one(apart, column):
    """4 steps have 42.9 and 16 have 43.3, in one training, and the paired error is a thousandth."""
    noise = np.random.default_rng(0).normal(size=20)
    distances = [42.9, 42.9 * apart]
    bootstraps = [
        {"bootstrap": list(fd * (1 + 0.02 * noise + 0.001 * i * noise[::-1]))}
        for i, fd in enumerate(distances)
    ]
    table = trained({"a": {4: distances[:1], 16: distances[1:]}}).assign(diagnostics=bootstraps)
    (cells,) = said(table)
    assert cells["lowest at"] == "4 (42.9)" and cells[column].startswith("16 (")
    assert cells["where"] == "in this training"


def test_steps_of_one_drawing_are_compared_by_their_paired_error():
    """1 of 5 is less than two joint errors of 0.7, but far more than the differences' spread."""
    noise = np.random.default_rng(0).normal(size=20)
    bootstraps = [
        {"bootstrap": list(fd + 0.7 * noise + 0.002 * i * noise)} for i, fd in enumerate((6.0, 5.0))
    ]
    table = trained({"a": {4: [6.0], 8: [5.0]}}, distance_std=[0.7, 0.7])
    table = table.assign(diagnostics=bootstraps)
    assert said(table)[0]["worse"] == "4 (6)"
    apart = table.assign(sampling_seed=[0, 1])
    assert said(apart)[0]["undecided"] == "4 (6)", "nothing cancels"


def test_a_count_that_is_surely_worse_will_not_do():
    """4 lies 1.97 errors above 8: within two, and beyond the 1.96 of a chance of 5%."""
    table = trained({"a": {4: [6.08], 8: [5.0]}}, distance_std=[6.08 * 0.07, 5.0 * 0.07])
    (cells,) = said(table)
    assert cells["worse"] == "4 (6.08)"
    assert cells["fewest that will do"] == "none fewer than the most"


def test_steps_are_compared_within_each_training():
    """The trainings differ by far more than the steps do, and only the first has 32 steps."""
    table = trained({"a": {4: [6.5, 11.7], 8: [5.0, 9.0], 16: [5.0, 9.0], 32: [5.0]}})
    (cells,) = said(table)
    assert cells["where"] == "over 2 trainings"
    assert cells["lowest at"] == cells["fewest that will do"] == "8 (7)"
    assert "4 (9.1)" not in cells["no difference that matters"], "0.3 of each"


def test_steps_that_help_some_trainings_and_harm_others_are_not_told_apart():
    """The images' errors are 2% here, the trainings differ by 20%."""
    cells = said_of({4: [5.0, 5.0, 5.0], 8: [4.0, 4.9, 5.4]})
    assert cells["fewest that will do"] == cells["undecided"] == "4 (5)"
    assert cells["lowest at"].startswith("not converged") and "worse" not in cells


def test_steps_that_three_trainings_agree_on_by_chance_are_not_called_worse():
    """Above the best count by 2.1 errors, of three trainings: p is 0.17."""
    assert said_of({4: [5.0, 5.0, 5.0], 8: [5.2, 5.35, 5.75]}) == {
        "fewest that will do": "4 (5)",
        "lowest at": "4 (5)",
        "undecided": "8 (5.43)",
    }
    cells = said_of({4: [5.2, 5.35, 5.75], 8: [5.0, 5.0, 5.0]})
    assert cells["fewest that will do"] == "none fewer than the most"
    assert cells["undecided"] == "4 (5.43)"


@pytest.mark.parametrize("counts", [2, pytest.param(4, marks=pytest.mark.long)])
def test_of_equal_step_counts_hardly_any_is_called_worse(counts):
    """Three trainings, which differ by more than their images make them: a chance of 5% at most
    that a model's row calls any of its counts worse.
    """
    rng, found, tables = np.random.default_rng(counts), 0, 200
    for _ in range(tables):
        distances = np.exp(1.6 + 0.1 * rng.normal(size=(counts, 3)))
        table = trained({"a": {2**place: list(at) for place, at in enumerate(distances)}})
        found += "worse" in said(table)[0]
    assert found / tables <= 0.05 + 2 * (0.05 * 0.95 / tables) ** 0.5


def test_settings_chosen_otherwise_for_fewer_steps_are_mentioned():
    (cells,) = said(TWO[TWO["curve"] == "a"].assign(guidance=[2.5, 2.5, 1.5]))
    assert cells["settings"] == "differ"
