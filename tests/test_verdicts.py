"""What the report says in words: the frontier, who is cheapest, what ties, which steps are enough,
each on numbers made up here.
"""

import itertools

import numpy as np
import pandas as pd
import pytest

from benchmarks.analysis import verdicts


def rows(**columns) -> pd.DataFrame:
    """Points of made-up curves, `model` naming them; what is not given is the same for all."""
    count = len(next(iter(columns.values())))
    filled = {
        "guidance": [1.0] * count,
        "sampler": ["euler"] * count,
        "fd_std": [0.1] * count,
        "latency_seconds": columns["gflops_per_image"],
    }
    table = pd.DataFrame(filled | columns)
    return table.assign(curve=table["model"], training=table["model"], train_flops=1e12)


TWO = rows(
    model=["a", "a", "a", "b", "b"],
    steps=[1, 4, 16, 1, 4],
    fd=[9.0, 5.0, 4.95, 7.0, 3.0],
    gflops_per_image=[1.0, 4.0, 16.0, 3.0, 12.0],
)


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


def test_the_cheapest_to_a_distance():
    lines = verdicts.cheapest(TWO, "FD[local]")  # best 3: targets 6, 4.5, 3.3
    assert "FD[local] of 6 or less costs least with a at 4 steps (5 ± 0.1) for 4 GFLOPs" in lines[0]
    assert all("b at 4 steps (3 ± 0.1) for 12 GFLOPs" in line for line in lines[1:])


def test_what_may_reach_a_distance_within_its_error_is_said():
    lines = verdicts.cheapest(TWO.assign(fd_std=[0.1, 0.8, 0.1, 0.1, 0.1]), "FD[local]")
    assert (
        "b at 4 steps (3 ± 0.1) for 12 GFLOPs (within the error also a at 4 steps (5 ± 0.8))"
        in lines[1]
    )  # 4.5 asked


def test_words_speak_of_settings_one_could_have_chosen_only():
    """Guidance 2 is best by the reference, guidance 1 by the training images: the first is never
    announced.
    """
    table = rows(
        model=["a", "a", "b"],
        steps=[4, 4, 4],
        guidance=[1.0, 2.0, 1.0],
        fd=[6.0, 3.0, 7.0],
        gflops_per_image=[1.0, 2.0, 1.5],
    ).assign(fd_train=[5.0, 9.0, 7.0])
    said = " ".join(verdicts.answers(verdicts.over_samplings(verdicts.chosen(table)), "FD[local]"))
    assert "a at 4 steps (6 " in said and "(3 " not in said


def test_seeds_are_averaged_and_their_spread_is_part_of_the_error():
    table = rows(
        model=["a", "a", "a"], steps=[4, 4, 4], fd=[5.0, 6.0, 7.0], gflops_per_image=[1.0, 1.0, 1.0]
    )
    one = verdicts.averaged(table)
    assert (
        len(one) == 1
        and one["fd"].iloc[0] == 6.0
        and one["fd_std"].iloc[0] == pytest.approx((1.0 / 3) ** 0.5)
    )
    alike = verdicts.averaged(table.assign(fd=[5.0, 5.0, 5.0]))
    assert alike["fd_std"].iloc[0] == pytest.approx((0.01 / 3) ** 0.5), (
        "chance agreement of seeds does not undo the pictures' error"
    )


def test_points_of_several_seeds_are_told_apart_as_the_table_of_ties_does():
    """0.5 apart in every seed, though the seeds themselves differ by more."""
    table = rows(
        model=["a"] * 3 + ["b"] * 3,
        steps=[4] * 6,
        fd=[5.0, 5.3, 5.9, 5.5, 5.8, 6.41],
        gflops_per_image=[1.0] * 6,
    )
    both = verdicts.averaged(table.assign(seed=[0, 1, 2] * 2))
    assert not verdicts.tied(*(row for _, row in both.iterrows()))
    apart = verdicts.averaged(table.assign(seed=[0, 1, 2, 3, 4, 5]))
    assert verdicts.tied(*(row for _, row in apart.iterrows())), (
        "no seed is shared: nothing cancels"
    )


def test_unequal_budgets_are_said_to_be():
    said = verdicts.answers(TWO.assign(train_flops=[1e12] * 3 + [2e12] * 2), "FD[local]")
    assert said[0] == "Training budgets differ by a factor of 2."
    assert not any("budgets differ" in line for line in verdicts.answers(TWO, "FD[local]"))


def test_the_best_for_a_budget_and_what_ties_with_it():
    lines = verdicts.best_under(TWO)
    assert any(line.startswith("Up to 5 GFLOPs per image: a at 4 steps") for line in lines)
    assert any(line.startswith("Up to 2 GFLOPs per image: a at 1 step") for line in lines)
    near = TWO.assign(fd_std=2.0)
    assert any(
        "not told apart from b" in line or "not told apart from a" in line
        for line in verdicts.best_under(near)
    )
    assert not any("told apart" in line for line in lines)


def test_enough_steps_are_the_fewest_that_more_do_not_improve():
    lines = verdicts.enough_steps(TWO)
    assert lines[0].startswith(
        "a: no more steps are told apart from 4 steps, at 5 "
    )  # 4.95 is within the error
    assert lines[1].startswith("b: still improving at 4 steps, the most measured, at 3 ")


def test_two_joint_standard_deviations_are_the_limit_of_a_tie():
    a, b = pd.Series({"fd": 5.0, "fd_std": 0.3}), pd.Series({"fd": 5.99, "fd_std": 0.4})
    assert verdicts.tied(a, b) and not verdicts.tied(a, b.replace(5.99, 6.01))
    assert not verdicts.tied(a, pd.Series({"fd": 5.0, "fd_std": float("nan")}))


def test_samples_of_one_drawing_are_compared_by_their_paired_error():
    noise = np.random.default_rng(0).normal(size=20)
    some = [
        pd.Series(
            {
                "fd": fd,
                "fd_std": 0.3,
                "diagnostics": {"bootstrap": list(fd + noise + 0.01 * i * noise)},
            }
        )
        for i, fd in enumerate((5.0, 4.5))
    ]
    assert not verdicts.tied(*some), (
        "0.5 is below two joint deviations of 0.42, but far above the spread of the differences"
    )
    some[1]["sampling_seed"] = 1
    assert verdicts.tied(*some), "of different drawings nothing cancels"


def test_a_model_s_own_best_is_chosen_by_training_images_at_each_step_count():
    table = rows(
        model=["a"] * 4,
        steps=[4, 4, 16, 16],
        guidance=[1.0, 2.0, 1.0, 2.0],
        fd=[1.0, 9.0, 1.0, 9.0],
        gflops_per_image=[1.0, 2.0, 3.0, 4.0],
    ).assign(fd_train=[1.0, 9.0, 8.0, 7.0])
    assert verdicts.own_best(table)["guidance"].tolist() == [1.0, 2.0], "not by the reference"
    shown = verdicts.over_samplings(verdicts.chosen(table))
    assert sorted(zip(shown["pick"], shown["steps"], shown["guidance"], strict=True)) == [
        ("best guidance", 4, 1.0),
        ("best guidance", 16, 2.0),
        ("no guidance", 4, 1.0),
        ("no guidance", 16, 1.0),
    ]


def test_a_sampler_best_at_few_steps_is_neither_lost_at_many_nor_hidden_by_one_at_twice_the_cost():
    table = rows(
        model=["dit"] * 6,
        steps=[4] * 3 + [64] * 3,
        sampler=["euler", "dpmpp", "heun"] * 2,
        fd=[9.0, 6.0, 12.0, 5.0, 5.01, 4.99],
        gflops_per_image=[4.0, 4.0, 7.0, 64.0, 64.0, 127.0],
    )
    best = verdicts.over_samplings(verdicts.chosen(table.assign(fd_train=table["fd"])))
    found = list(zip(best["pick"], best["steps"], best["sampler"], strict=True))
    assert sorted(found) == [
        ("", 4, "dpmpp"),
        ("", 64, "euler"),
        ("heun", 4, "heun"),
        ("heun", 64, "heun"),
    ]
    alone = verdicts.over_samplings(
        verdicts.chosen(table[table["sampler"] == "heun"].assign(fd_train=5.0))
    )
    assert set(alone["pick"]) == {""}, "where nothing else was drawn it is the model's curve"


def test_one_guidance_is_chosen_for_all_seeds_of_a_recipe():
    """Seeds 0 and 1 are best at 1.5, seed 2 at 2.5; the mean over seeds decides, and a setting only
    one seed has is no candidate.
    """
    table = rows(
        model=["ar"] * 7,
        steps=[64] * 7,
        seed=[0, 1, 2, 0, 1, 2, 0],
        guidance=[1.5] * 3 + [2.5] * 3 + [3.5],
        fd=[5.0, 5.1, 6.0, 5.5, 5.6, 5.4, 1.0],
        gflops_per_image=[1.0] * 7,
    )
    best = verdicts.own_best(table.assign(fd_train=table["fd"], training=table["seed"]))
    assert set(best["guidance"]) == {1.5} and sorted(best["seed"]) == [0, 1, 2]


def test_no_guidance_that_is_best_everywhere_is_shown_once():
    table = rows(
        model=["a"] * 2 + ["b"] * 2,
        steps=[4] * 4,
        guidance=[1.0, 2.0] * 2,
        fd=[1.0, 2.0, 2.0, 1.0],
        gflops_per_image=[1.0] * 4,
    )
    shown = verdicts.over_samplings(verdicts.chosen(table.assign(fd_train=table["fd"])))
    assert list(zip(shown["model"], shown["pick"], strict=True)) == [
        ("a", "no guidance"),
        ("b", "no guidance"),
        ("b", "best guidance"),
    ]


def test_without_a_sweep_everything_is_shown_and_one_point_says_nothing():
    assert len(verdicts.over_samplings(verdicts.chosen(TWO))) == 5
    assert verdicts.answers(TWO.iloc[:1], "FD[local]") == []
