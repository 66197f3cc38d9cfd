"""Settings are chosen by the same search for every model, on samples that are never reported."""

import json
import math

import pytest
from benches import TINY, run
from conftest import composed

from benchmarks.core.errors import BadInput
from benchmarks.core.settings import check, config_names
from benchmarks.stages.sample import SamplingConfig
from benchmarks.stages.tune import HIGHER, MOST_HIGHER, SEED, Trial, nearest, search

START = SamplingConfig(steps=4, guidance=1.0, count=8, batch=8, seed=SEED, precision="fp32")
SCALES = [1.0, 2.0, 4.0]


def by(distance, recall=lambda config: 0.5):
    """Scores of sampling configs, given as functions of them, and the list of what was scored."""
    scored = []

    def score(config: SamplingConfig) -> Trial:
        scored.append(config)
        return Trial(config, distance(config), recall(config))

    return score, scored


def test_the_best_guidance_inside_the_sweep_is_taken_and_nothing_beyond_it_is_tried():
    score, scored = by(lambda config: abs(config.guidance - 2))
    choice = search(score, START, SCALES, [], 0.9)
    assert choice.best.config.guidance == 2.0
    assert [config.guidance for config in scored] == SCALES


def test_where_the_highest_guidance_is_best_higher_ones_follow_until_one_is_worse():
    score, scored = by(lambda config: abs(config.guidance - 6))
    choice = search(score, START, SCALES, [], 0.9)
    assert choice.best.config.guidance == 4.0 * HIGHER
    assert [config.guidance for config in scored] == [*SCALES, 6.0, 9.0]


def test_higher_guidance_is_not_tried_without_end():
    score, scored = by(lambda config: -config.guidance)
    search(score, START, SCALES, [], 0.9)
    assert len(scored) == len(SCALES) + MOST_HIGHER


def test_without_scales_to_choose_from_guidance_stays():
    score, scored = by(lambda config: -config.guidance)
    assert search(score, START, [1.0], [], 0.9).best.config.guidance == 1.0
    assert len(scored) == 1


@pytest.mark.parametrize("lost, chosen", [(0.11, 1.0), (0.09, 2.0)])
def test_what_loses_more_than_a_tenth_of_the_unguided_recall_is_not_chosen(lost, chosen):
    closer = {1.0: 3.0, 2.0: 1.0, 4.0: 2.0}
    recall = {1.0: 0.5, 2.0: 0.5 * (1 - lost), 4.0: 0.1}
    score, _ = by(lambda c: closer[c.guidance], lambda c: recall[c.guidance])
    assert search(score, START, SCALES, [], 0.9).best.config.guidance == chosen


def test_changes_are_tried_on_top_of_the_best_and_stay_where_they_are_better():
    changes = [
        lambda config: config._replace(sampler="better"),
        lambda config: config._replace(options=(("worse", 1),)),
        lambda config: config._replace(precision="best"),
    ]
    worth = {"better": 1, None: 0}

    def distance(config: SamplingConfig) -> float:
        gained = worth[config.sampler] + (config.precision == "best") - len(config.options)
        return abs(config.guidance - 2) - gained

    score, scored = by(distance)
    choice = search(score, START, SCALES, changes, 0.9)
    best = START._replace(guidance=2.0, sampler="better", precision="best")
    assert choice.best.config == best
    assert scored[-2].options == (("worse", 1),) and scored[-2].sampler == "better"
    assert choice.summary("local")["chosen"] == len(choice.trials) - 1


def test_samples_that_are_not_finite_are_never_chosen():
    score, _ = by(lambda config: math.inf if config.guidance > 1 else 9.0)
    assert search(score, START, SCALES, [], 0.9).best.config.guidance == 1.0


@pytest.mark.parametrize("steps, taken", [(1, 4), (7, 4), (8, 16), (9, 16), (64, 16)])
def test_counts_that_were_not_tuned_take_the_settings_of_the_nearest_by_ratio(steps, taken):
    assert nearest(steps, [4, 16]) == taken


def test_every_model_is_given_as_many_changes():
    listed = {name: composed(f"model={name}").model.tune for name in config_names("model")}
    assert {len(changes) for changes in listed.values()} == {4}


@pytest.mark.parametrize(
    "overrides, reason",
    [
        (["tune.guidance=[2,4]"], "tune.guidance"),
        (["tune.guidance=[1,4,2]"], "tune.guidance"),
        (["tune=default", "tune.recall=1.5"], "tune.recall"),
        (["tune=default", "tune.num_samples=1"], "tune.num_samples"),
        (["tune=default", "tune.steps=[0]"], "tune.steps"),
        (["guidance=[]"], "nothing is measured"),
    ],
)
def test_settings_that_cannot_be_tuned_are_refused(overrides, reason):
    with pytest.raises(BadInput, match=reason):
        check(composed(*overrides))


def rows(folder, name):
    """The records of a bench, by whether their settings were chosen."""
    read = [json.loads(path.read_text()) for path in folder.glob(f"results/{name}/records/*.json")]
    return [r for r in read if r["tuning"]], [r for r in read if not r["tuning"]]


def test_a_bench_reports_chosen_settings_on_samples_that_they_were_not_chosen_by(tmp_path):
    asked = [*TINY, "name=tuned", "model=dit", "train.budget=2", "steps=[1,2]"]
    asked += ["tune=default", "tune.guidance=[1,2]", "tune.num_samples=16", "tune.steps=[2]"]
    ended = run(tmp_path, *asked)
    assert ended.code == 0, ended.err
    chosen, configured = rows(tmp_path, "tuned")
    assert sorted(r["row"]["steps"] for r in chosen) == [1, 2]
    assert sorted(r["row"]["steps"] for r in configured) == [1, 2]
    for record in chosen:
        tuning = record["tuning"]
        best = tuning["trials"][tuning["chosen"]]
        assert tuning["steps"] == 2 and tuning["sampling_seed"] == SEED
        assert record["row"]["guidance"] == best["guidance"]
        assert record["row"]["sampler"].startswith(best["sampler"])
        assert record["sampling_seed"] != SEED
    report = (tmp_path / "results" / "tuned" / "summary.md").read_text()
    assert "dit, tuned" in report
    assert "## Chosen settings" in report and "FD[local] to training images" in report

    # nothing is tried or measured twice; a trial that is lost is made again, the others are not
    assert "4 of 4 measurements are there\n" in run(tmp_path, *asked).out
    [file] = tmp_path.glob("cache/cells/*/trials.json")
    trials = json.loads(file.read_text())
    lost = list(trials)[-1]
    file.write_text(json.dumps({key: value for key, value in trials.items() if key != lost}))
    again = run(tmp_path, *asked, "guidance=[]")
    assert "and settings to choose" in again.out
    assert json.loads(file.read_text()) == trials


def test_a_change_that_the_model_does_not_have_is_one_line(tmp_path):
    asked = [*TINY, "name=bad", "model=dit", "train.budget=2", "steps=[2]"]
    tuned = ["tune=default", "tune.num_samples=16", "+model.tune.0.colour=red"]
    ended = run(tmp_path, *asked, *tuned)
    assert ended.code == 1
    assert "colour" in ended.err and len(ended.err.strip().splitlines()) == 1
