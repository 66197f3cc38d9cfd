"""What the report says in words, on numbers made up here: the frontier, which rows stand for a
network, which networks are told apart.
"""

import itertools
import math
import statistics

import numpy as np
import pandas as pd
import pytest
from made_up_rows import TWO, rows, trained

from benchmarks.analysis import choices, verdicts
from benchmarks.analysis.differences import NOT_JUDGED

TRAINING_SD = 0.04  # of log distances, made up
TABLES = 400
DECIDED = {"better", "worse"}


def answers(table: pd.DataFrame) -> list[str]:
    """What is said of rows that all lead."""
    return verdicts.answers(table, choices.over_trainings(table))


def test_networks_of_three_trainings_are_judged_beside_one_that_has_a_single_one():
    """Which once kept all of a report from being judged."""
    table = trained({"a": {4: [5.0, 5.1, 4.9]}, "b": {4: [9.0, 9.2, 8.8]}, "c": {4: [2.0]}})
    first, *others = answers(table)
    assert first.endswith("of three trainings or more. Left out, for fewer: c.")
    assert others and all("a at 4 steps (5 ± " in line and "is lowest" in line for line in others)
    alone = table[table["curve"] != "b"]
    assert answers(alone) == [f"Which network is better is {NOT_JUDGED}."]


def test_the_frontier_is_what_nothing_beats():
    cost, distance = np.random.default_rng(0).integers(0, 12, (2, 60))
    beaten = [
        any(
            c <= cost[i] and d <= distance[i] and (c < cost[i] or d < distance[i])
            for c, d in zip(cost, distance, strict=True)
        )
        for i in range(60)
    ]
    kept = verdicts.frontier(cost, distance)
    expected = {(c, d) for c, d, bad in zip(cost, distance, beaten, strict=True) if not bad}
    assert {(c, d) for c, d, good in zip(cost, distance, kept, strict=True) if good} == expected
    assert kept.sum() == len(expected), "of equal points one stays"


def test_the_frontier_does_not_depend_on_order():
    cost, distance = np.array([1.0, 2.0, 3.0, 4.0]), np.array([5.0, 6.0, 2.0, 2.0])
    for order in itertools.permutations(range(4)):
        assert sorted(
            np.array(order)[verdicts.frontier(cost[list(order)], distance[list(order)])]
        ) == [0, 2]


def made_up_groups(rng, means: list[float], trainings: int) -> dict[str, pd.DataFrame]:
    """A table of networks with these mean log distances."""
    groups = {}
    for place, mean in enumerate(means):
        distances = np.exp(mean + TRAINING_SD * rng.normal(size=trainings))
        at = pd.DataFrame({"training": range(trainings), "distance": distances})
        groups[f"network {place}"] = at
    return groups


def verdicts_on(groups: dict[str, pd.DataFrame]) -> dict[tuple[str, str], str]:
    """What is said of every pair of networks."""
    return verdicts.judged(verdicts.differences(groups))


def decided(groups: dict[str, pd.DataFrame]) -> set[tuple[str, str]]:
    """The pairs of a table that are told apart."""
    return {pair for pair, verdict in verdicts_on(groups).items() if verdict in DECIDED}


@pytest.mark.parametrize("networks, trainings", [(4, 3), (4, 4), (8, 3), (2, 3)])
def test_of_equal_networks_hardly_a_table_tells_any_pair_apart(networks, trainings):
    """The chance that a table holds any false verdict, all its pairs together, is at most 5%."""
    rng = np.random.default_rng(networks + 10 * trainings)
    tables = (made_up_groups(rng, [1.6] * networks, trainings) for _ in range(TABLES))
    share = sum(bool(decided(groups)) for groups in tables) / TABLES
    assert share <= 0.05 + 2 * (0.05 * 0.95 / TABLES) ** 0.5


@pytest.mark.parametrize("deviations", [[0.1, 0.04], [0.1, 0.02], [0.1, *[0.02] * 5]])
def test_of_networks_that_scatter_unlike_each_other_a_few_more_tables_do(deviations):
    """Equal networks of three trainings, one of which scatters up to five times as much as the
    others: it is judged by its own spread, which three trainings know badly.
    docs/reading-results.md says it.
    """
    rng, found = np.random.default_rng(0), 0
    for _ in range(TABLES):
        groups = {}
        for place, deviation in enumerate(deviations):
            distances = np.exp(1.6 + deviation * rng.normal(size=3))
            at = pd.DataFrame({"training": range(3), "distance": distances})
            groups[f"network {place}"] = at
        found += bool(decided(groups))
    assert found / TABLES <= 0.05 + 2 * (0.05 * 0.95 / TABLES) ** 0.5


@pytest.mark.parametrize("trainings", [6, 8])
def test_trainings_of_one_recipe_in_two_groups_are_hardly_ever_told_apart(trainings):
    """As where a label that means nothing splits them; other recipes add to the spread."""
    rng, found = np.random.default_rng(trainings), 0
    for _ in range(TABLES):
        one, other = made_up_groups(rng, [1.6, 2.5], trainings).values()
        half = trainings // 2
        groups = {"first": one[:half], "second": one[half:], "other": other}
        found += ("first", "second") in decided(groups)
    assert found / TABLES <= 0.05 + 2 * (0.05 * 0.95 / TABLES) ** 0.5


def test_a_network_better_by_thirty_percent_is_found_in_most_tables():
    rng, found = np.random.default_rng(2), 0
    for _ in range(100):
        groups = made_up_groups(rng, [1.6, 1.6, 1.6, 1.6 + math.log(0.7)], 3)
        verdict = verdicts_on(groups)
        found += all(verdict[f"network {i}", "network 3"] == "better" for i in range(3))
    assert found >= 90


def test_equal_networks_of_many_trainings_are_shown_to_tie():
    """The error shrinks with trainings, until the difference is surely within a tenth."""
    rng, ties = np.random.default_rng(3), []
    for trainings in (3, 12):
        tables = [made_up_groups(rng, [1.6, 1.6], trainings) for _ in range(100)]
        words = [verdict for groups in tables for verdict in verdicts_on(groups).values()]
        ties.append(words.count("tie"))
    assert ties[0] < 70 and ties[1] > 90


@pytest.mark.parametrize("trainings", [1, 2])
def test_pairs_with_fewer_than_three_trainings_are_not_judged_and_others_are(trainings):
    groups = made_up_groups(np.random.default_rng(0), [1.0, 3.0, 5.0], 3)
    groups["network 2"] = groups["network 2"][:trainings]
    words = {(a[-1], b[-1]): verdict for (a, b), verdict in verdicts_on(groups).items()}
    assert words == {("0", "1"): "worse", ("0", "2"): NOT_JUDGED, ("1", "2"): NOT_JUDGED}


def test_samplings_of_a_training_are_not_trainings():
    """Ten samplings of one network each are still one training each."""
    groups = {
        name: pd.DataFrame({"training": [name] * 10, "distance": np.linspace(x, x + 0.1, 10)})
        for name, x in (("a", 5.0), ("b", 9.0))
    }
    (difference,) = verdicts.differences(groups).values()
    assert set(verdicts_on(groups).values()) == {NOT_JUDGED}
    assert difference.value == pytest.approx(math.log(9.05 / 5.05))


SEVERAL = trained(
    {
        "a": {1: [9.0, 9.3, 8.8], 4: [5.0, 5.1, 4.9]},
        "b": {1: [7.0, 7.2, 6.9], 4: [3.0, 3.1, 2.9]},
        "c": {1: [7.1, 6.9, 7.4]},
    }
)


def test_the_lowest_within_a_budget_and_what_is_not_told_apart_from_it():
    """The best of each within two budgets: the least that all can be had for, and the most."""
    lines = verdicts.best_under(SEVERAL, choices.over_trainings(SEVERAL))
    assert len(lines) == 4, "two budgets of each of two costs"
    least, most, latency, _ = lines
    assert least.startswith(
        "Up to 1 GFLOPs per image, each at its best step count: b at 1 step (7.03 ± "
    )
    assert least.endswith("is lowest; not told apart from it: c.")
    assert most.startswith(
        "Up to 4 GFLOPs per image, each at its best step count: b at 4 steps (3 ± "
    )
    assert most.endswith("is lowest.")
    assert latency.startswith(
        "Up to 1 seconds of latency, each at its best step count: b at 1 step"
    )


def test_no_budget_of_seconds_is_judged_where_other_programs_were_busy():
    busy = SEVERAL.assign(others_cpu=[0.0] * (len(SEVERAL) - 1) + [0.3])
    *of_gflops, latency = verdicts.best_under(busy, choices.over_trainings(busy))
    assert [line.split(",")[0] for line in of_gflops] == [
        "Up to 1 GFLOPs per image",
        "Up to 4 GFLOPs per image",
    ]
    assert latency.startswith("Budgets in seconds of latency are not judged: other programs")


@pytest.mark.long
@pytest.mark.parametrize(
    "networks, steps, of_training, of_steps",
    [(4, (1, 2, 4, 8), 0.04, 0.02), (2, (1, 2, 4, 8, 16, 32), 0.0, 0.05)],
)
def test_hardly_any_report_names_one_of_equal_networks_lowest_within_a_budget(
    networks, steps, of_training, of_steps
):
    """Each is taken at the step count that happens to be its lowest: that must not make winners."""
    rng, found = np.random.default_rng(0), 0
    for _ in range(TABLES):
        made_up = {}
        for name in range(networks):
            mean = 1.6 + of_training * rng.normal(size=3)
            made_up[f"network {name}"] = {
                count: list(np.exp(mean + of_steps * rng.normal(size=3))) for count in steps
            }
        table = trained(made_up)
        lines = verdicts.best_under(table, choices.over_trainings(table))
        found += any("no network is told apart from the lowest" not in line for line in lines)
    assert found / TABLES <= 0.05 + 2 * (0.05 * 0.95 / TABLES) ** 0.5


def test_of_single_trainings_no_winner_is_named():
    """However far apart."""
    lines = answers(TWO)
    assert f"Which network is better is {NOT_JUDGED}." in lines
    assert not any("lowest" in line for line in lines)


@pytest.mark.parametrize("trainings, lines", [(1, 2), (3, 5)])
def test_what_is_said_of_budgets_is_cut_where_there_are_many_panels(trainings, lines):
    """Of twenty networks no more is said than of two."""
    at = {1: [9.0, 9.1, 9.2][:trainings], 4: [5.0, 5.1, 5.2][:trainings]}
    for networks in (2, 20):
        table = trained({f"network {i}": at for i in range(networks)})
        table["train_flops"] = [1e12] + [2e12] * (len(table) - 1)
        found = answers(table)
        assert len(found) == lines and "budgets differ by a factor of 2" in found[0]
    cut = verdicts.answers(table, choices.over_trainings(table), most=1)
    assert cut == [f"{lines} more lines are left out."]


def test_unequal_budgets_are_said_to_be():
    unequal = TWO.assign(train_flops=[1e12] * 3 + [2e12] * 2)
    assert "Training budgets differ by a factor of 2." in answers(unequal)
    assert not any("budgets differ" in line for line in answers(TWO))


def test_one_point_says_nothing():
    assert answers(TWO.iloc[:1]) == []


def test_of_one_network_no_budget_is_judged():
    assert answers(TWO[TWO["curve"] == "a"]) == []


def test_a_curve_of_trainings_has_the_error_of_its_mean():
    one = choices.over_trainings(trained({"a": {4: [5.0, 6.0, 7.0]}}))
    assert one["trainings"].tolist() == [3] and one["distance"].tolist() == [6.0]
    assert one["distance_std"].iloc[0] == pytest.approx((1.0 / 3) ** 0.5)
    alike = choices.over_trainings(trained({"a": {4: [5.0, 5.0, 5.0]}}))
    assert alike["distance_std"].iloc[0] == pytest.approx((0.01 / 3) ** 0.5), (
        "chance agreement of trainings does not undo the images' error"
    )


def test_a_curve_of_one_training_keeps_its_own_error():
    points = choices.over_trainings(TWO)
    assert len(points) == 5 and set(points["trainings"]) == {1}
    assert set(points["distance_std"]) == {0.1}


def test_samplings_are_averaged_before_trainings_are():
    """A training that was sampled three times counts once, and keeps one sampling's error."""
    table = rows(
        model=["a"] * 4,
        steps=[4] * 4,
        training=["a0", "a0", "a0", "a1"],
        distance=[5.0, 6.0, 7.0, 8.0],
        sampling_seed=[0, 1, 2, 0],
    )
    by_training = choices.over_samplings(table)
    assert by_training["distance"].tolist() == [6.0, 8.0]
    assert by_training["distance_std"].tolist() == pytest.approx([0.1, 0.1])
    assert choices.over_trainings(by_training)["distance"].tolist() == [7.0]


def test_settings_chosen_by_tuning_lead_and_those_as_configured_only_where_none_were():
    """Whatever their distances are: `dit` leads with its worse rows, and both seeds of it."""
    table = rows(
        model=["dit"] * 4 + ["ar"] * 2,
        steps=[4] * 6,
        seed=[0, 0, 1, 1, 0, 0],
        guidance=[1.0, 2.0, 1.0, 2.0, 1.0, 2.0],
        chosen=[False, True, False, True, False, False],
        distance=[5.0, 6.0, 5.0, 6.0, 4.0, 4.5],
    )
    leading = choices.leading_rows(table)
    assert leading["pick"].tolist() == ["tuned", "tuned", "", ""]
    assert leading["seed"].tolist() == [0, 1, 0, 0]
    other = table.assign(variant=["lr 1"] * 2 + ["lr 2"] * 4, chosen=[False, True] + [False] * 4)
    assert len(choices.leading_rows(other)) == 5, "another learning rate was not tuned"


def test_a_mean_over_samplings_does_not_mix_chosen_with_configured_settings():
    table = rows(model=["a"] * 2, steps=[4] * 2, chosen=[True, False], distance=[5.0, 6.0])
    assert len(choices.over_samplings(table)) == 2


def test_log_distances_are_one_a_training():
    table = rows(model=["a"] * 3, steps=[4] * 3, training=["x", "x", "y"], distance=[4.0, 6.0, 7.0])
    expected = [math.log(statistics.mean([4.0, 6.0])), math.log(7.0)]
    assert verdicts.log_distances(table) == pytest.approx(expected)
