"""Trainings of one recipe, which differ by nothing but their seed, dealt at random into networks
that do not exist: hardly a table may tell any of these apart, by distance or by label accuracy.

The trainings are those of results/reference/null_test: eighteen of `dit` and eighteen of `ar`.
"""

import random
from itertools import combinations

import pandas as pd
import pytest

from benchmarks.analysis import diagnostics, verdicts
from benchmarks.core.store import ROOT

TABLES = 300
TRAININGS = 3  # of each network
LEVEL = 0.05
ERROR = (LEVEL * (1 - LEVEL) / TABLES) ** 0.5
MEASURED = pd.read_csv(ROOT / "results" / "reference" / "null_test" / "results.csv")
RECIPES = {
    f"{model} at {steps} steps": rows
    for (model, steps), rows in MEASURED.groupby(["model", "steps"])
}


def dealt(rows: pd.DataFrame, name: str, rng: random.Random) -> dict[str, pd.DataFrame]:
    """The trainings of a recipe in random threes, as networks of their own."""
    order = rng.sample(range(len(rows)), len(rows))
    columns = {"training": rows["seed"], "distance": rows["fd_generator"]}
    table = pd.DataFrame(columns | {"label_accuracy": rows["label_accuracy"]})
    threes = zip(*[iter(order)] * TRAININGS, strict=True)
    return {f"{name} {place}": table.iloc[list(three)] for place, three in enumerate(threes)}


def told_apart(groups: dict[str, pd.DataFrame]) -> set[tuple[str, str]]:
    """The pairs of a table of which one is called better, by its distance or its label accuracy."""
    words = verdicts.judged(diagnostics.differences(groups))
    return {(a, b) for (_, a, b), verdict in words.items() if verdict in ("better", "worse")}


def test_every_training_is_another():
    for rows in RECIPES.values():
        assert len(rows) == rows["seed"].nunique() == rows["fd_generator"].nunique() == 18


@pytest.mark.parametrize("name", RECIPES)
def test_hardly_a_table_tells_trainings_of_one_recipe_apart(name):
    """Six networks of three trainings each, which are all the same one."""
    rng = random.Random(0)
    tables = [told_apart(dealt(RECIPES[name], name, rng)) for _ in range(TABLES)]
    assert sum(bool(pairs) for pairs in tables) / TABLES <= LEVEL + 2 * ERROR


@pytest.mark.parametrize("name", RECIPES)
def test_hardly_two_networks_of_one_recipe_are_told_apart(name):
    """Two networks of three trainings each, and nothing else in their table."""
    rng, found = random.Random(1), 0
    for _ in range(TABLES):
        two = list(dealt(RECIPES[name], name, rng).items())[:2]
        found += bool(told_apart(dict(two)))
    assert found / TABLES <= LEVEL + 2 * ERROR


@pytest.mark.parametrize("one, other", combinations(RECIPES, 2))
def test_beside_another_recipe_they_are_not_told_apart_either(one, other):
    """Two networks of each of two recipes: only pairs of unlike ones may be told apart."""
    rng, found = random.Random(2), 0
    for _ in range(TABLES):
        groups = {}
        for name in (one, other):
            groups |= dict(list(dealt(RECIPES[name], name, rng).items())[:2])
        alike = {(f"{name} 0", f"{name} 1") for name in (one, other)}
        found += bool(told_apart(groups) & alike)
    assert found / TABLES <= LEVEL + 2 * ERROR


# --- another precision

PRECISION = pd.read_csv(ROOT / "results" / "reference" / "precision" / "results.csv")


def by_precision(model: str, factor: float = 1.0) -> dict[str, pd.DataFrame]:
    """The trainings of a model in each precision, the distances of bfloat16 times a factor."""
    groups = {}
    for dtype, rows in PRECISION[PRECISION["model"] == model].groupby("dtype"):
        scale = factor if dtype == "bf16" else 1.0
        columns = {"training": rows["seed"], "distance": scale * rows["fd_generator"]}
        groups[dtype] = pd.DataFrame(columns | {"label_accuracy": rows["label_accuracy"]})
    return groups


@pytest.mark.parametrize("model", ["dit", "ar"])
def test_trainings_in_bfloat16_are_not_told_from_those_in_float32(model):
    """Three of each, sampled from in the precision that they were trained in."""
    groups = by_precision(model)
    assert [len(rows) for rows in groups.values()] == [TRAININGS, TRAININGS]
    assert told_apart(groups) == set()
    assert told_apart(by_precision(model, factor=1.6)), "what would be noticed"
