"""The table of pairs: what the other distances say beside the one that leads, and what a pair costs
that is not printed. Made-up records.
"""

import numpy as np
import pandas as pd
import pytest
from test_diagnostics import panel_of, record, summary_of, trained

from benchmarks.analysis import diagnostics, verdicts
from benchmarks.analysis.differences import LEVEL

OTHERS = ("kid_generator", "fd", "kid")


def with_others(made_up: list[dict], **factors: list[float]) -> list[dict]:
    """These records with their other distances apart from the leading one: of `dit` 10 with a
    little scatter, of every other network that times its factor for each of them.
    """
    for place, one in enumerate(made_up):
        scatter = 1 + 0.01 * (place % 3)
        values = factors.get(one["row"]["model"], [1.0] * len(OTHERS))
        one["row"] |= {name: 10 * scatter * x for name, x in zip(OTHERS, values, strict=True)}
    return made_up


def favoured(made_up: list[dict]) -> tuple[str, str]:
    """Of one pair the verdict of the leading distance, and whom the others favour."""
    header, (row,) = diagnostics.ties(panel_of(made_up))
    cells = dict(zip(header, row, strict=True))
    return cells["the second is"], cells["other distances favour"]


@pytest.mark.parametrize(
    "factors, words",
    [
        ([0.99, 0.5, 0.5], "the second: 2 of 3; the first: none"),
        ([2.0, 2.0, 0.5], "the first: 2 of 3; the second: 1"),
        ([1.0, 1.0, 1.0], "neither: 0 of 3"),
        ([-1.0, 0.5, 0.5], "the second: 2 of 2; the first: none"),
    ],
)
def test_a_tie_by_the_leading_distance_says_whom_the_others_favour(factors, words):
    """A KID below zero, as at its floor, has no logarithm: it is not counted."""
    made_up = trained("dit", 10.0, 10.1, 10.2) + trained("ar", 10.01, 10.11, 10.21)
    assert favoured(with_others(made_up, ar=factors)) == ("tie", words)


def test_of_single_trainings_the_other_distances_say_nothing_either():
    made_up = [record("dit", 10.0), record("ar", 5.0)]
    assert favoured(with_others(made_up, ar=[0.5] * 3))[1] == ""


def test_where_the_distance_of_the_system_leads_it_is_none_of_the_others():
    made_up = with_others(trained("dit", 10.0, 10.1, 10.2) + trained("ar", 10.0, 10.1, 10.2))
    for one in made_up:
        one["row"] |= dict.fromkeys(("fd_generator", "fd_generator_std", "kid_generator"))
    assert favoured(made_up)[1] == "neither: 0 of 1"


def test_hardly_a_table_of_equal_networks_has_another_distance_that_favours_one():
    """Three distances of four networks: all pairs of all share the chance of a false one."""
    rng, found, tables = np.random.default_rng(0), 0, 150
    for _ in range(tables):
        groups = {}
        for place in range(4):
            noise = dict(zip(OTHERS, np.exp(0.05 * rng.normal(size=(3, 3))), strict=True))
            columns = {"training": range(3), "fd_generator": [10.0] * 3} | noise
            groups[f"net{place}"] = pd.DataFrame(columns)
        words = diagnostics.favoured_by_others(groups)
        found += set(words.values()) != {"neither: 0 of 3"}
    assert found / tables <= LEVEL + 2 * (LEVEL * (1 - LEVEL) / tables) ** 0.5


def test_pairs_that_are_not_printed_count_and_are_said_to_be_left_out(tmp_path, no_figures):
    """Which eight are the lowest is seen in the data: a verdict on two of them has the chance of
    all pairs of all curves.
    """
    made_up = []
    for place in range(12):
        fd = 10.0 + place
        made_up += trained(f"net{place}", fd, 1.01 * fd, 1.02 * fd)
    panel = panel_of(made_up)
    header, rows = diagnostics.ties(panel)
    assert len(rows) == 28
    judged = verdicts.judged(diagnostics.differences(diagnostics._from_lowest(panel)))
    assert len(judged) == 2 * 66, "distance and label accuracy of all pairs of twelve"
    assert [row[header.index("the second is")] for row in rows] == [
        judged["distance", row[0].split(",")[0], row[1].split(",")[0]] for row in rows
    ]
    line = "The 8 lowest of 12 curves: 4 are not printed. The verdicts count the pairs of all 12."
    assert line in summary_of(tmp_path, made_up)
    assert diagnostics.unprinted(panel_of(made_up[:24])) == []
