"""Settings are chosen by the same search for every model, on samples that are never reported."""

import json
import math
from functools import partial

import pytest
from benches import TINY, run
from conftest import composed, tiny
from omegaconf import OmegaConf

from benchmarks.core.errors import BadInput, Diverged
from benchmarks.core.settings import check, trained_models
from benchmarks.core.store import read_sealed, write_sealed
from benchmarks.stages import jointly, tune
from benchmarks.stages.jointly import sample
from benchmarks.stages.sample import SamplingConfig
from benchmarks.stages.tune import HIGHER, MOST_HIGHER, SEED, Trial, further, nearest, search

pytestmark = pytest.mark.usefixtures("no_figures")

LONG = partial(pytest.param, marks=pytest.mark.long)

START = SamplingConfig(steps=4, guidance=1.0, count=8, batch=8, seed=SEED, precision="fp32")
SCALES = [1.0, 2.0, 4.0]
TINY_NAMES = {
    "ar_any": "any",
    "ar_block": "ar",
    "ar_scale": "scale",
    "dit_pixels": "dit-flow_x0",
    "unet_conv": "unet",
    "ar_continuous": "raster-gmm",
    "masked_continuous": "random-gmm",
}


def by(distance, recall=lambda config: 0.5):
    """Scores of sampling configs, given as functions of them, and the list of what was scored."""
    scored = []

    def score(config: SamplingConfig) -> Trial:
        scored.append(config)
        return Trial(config, distance(config), recall(config))

    return score, scored


def once(change):
    """A change that goes no further."""
    return lambda config, times: change(config) if times == 1 else None


def test_the_best_guidance_inside_the_sweep_is_taken_and_nothing_beyond_it_is_tried():
    score, scored = by(lambda config: abs(config.guidance - 2))
    choice = search(score, START, SCALES, [], 0.9)
    assert choice.best.config.guidance == 2.0 and not choice.at_edge
    assert [config.guidance for config in scored] == SCALES


def test_where_the_highest_guidance_is_best_higher_ones_follow_until_one_is_worse():
    score, scored = by(lambda config: abs(config.guidance - 6))
    choice = search(score, START, SCALES, [], 0.9)
    assert choice.best.config.guidance == 4.0 * HIGHER
    assert [config.guidance for config in scored] == [*SCALES, 6.0, 9.0]


def test_higher_guidance_is_not_tried_without_end():
    score, scored = by(lambda config: -config.guidance)
    choice = search(score, START, SCALES, [], 0.9)
    assert len(scored) == len(SCALES) + MOST_HIGHER
    assert choice.at_edge, "and the record says so"


def test_higher_guidance_is_tried_only_as_far_as_the_model_supports_it():
    score, scored = by(lambda config: -config.guidance)
    search(score, START, SCALES, [], 0.9, supports=lambda scale: scale <= 6)
    assert [config.guidance for config in scored] == [*SCALES, 6.0]


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
        once(lambda config: config._replace(sampler="better")),
        once(lambda config: config._replace(options=(("worse", 1),))),
        once(lambda config: config._replace(precision="best")),
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
    assert choice.summary()["chosen"] == len(choice.trials) - 1


@pytest.mark.parametrize("best, tried", [(1.0, [0.9]), (0.9, [0.9, 0.8]), (0.5, [0.9, 0.8, 0.7])])
def test_a_number_that_is_better_is_followed_until_it_is_worse_or_thrice_as_far(best, tried):
    def cooler(config: SamplingConfig, times: int) -> SamplingConfig:
        return config._replace(options=(("temperature", 1 - times / 10),))

    def temperature(config: SamplingConfig) -> float:
        return dict(config.options).get("temperature", 1.0)

    score, scored = by(lambda config: abs(temperature(config) - best))
    choice = search(score, START, [1.0], [cooler], 0.9)
    assert [temperature(config) for config in scored[1:]] == pytest.approx(tried)
    assert temperature(choice.best.config) == pytest.approx(max(best, 0.7))


@pytest.mark.parametrize(
    "options, times, reached",
    [
        ({"temperature": 0.9}, 2, {"temperature": 0.81}),
        ({"shift": 2.0}, 3, {"shift": 8.0}),
        ({"choice_temperature": 9.0}, 2, {"choice_temperature": 18.0}),
        ({"guidance_interval": [0.1, 0.9]}, 2, None),
        ({"schedule": "arccos"}, 2, None),
        ({}, 2, None),
    ],
)
def test_a_setting_goes_further_in_equal_ratios_where_it_is_one_number(options, times, reached):
    defaults = {"temperature": 1.0, "shift": 1.0, "choice_temperature": 4.5, "schedule": "cosine"}
    assert further(options, defaults, times) == reached


def test_samples_that_are_not_finite_are_never_chosen():
    score, _ = by(lambda config: math.inf if config.guidance > 1 else 9.0)
    assert search(score, START, SCALES, [], 0.9).best.config.guidance == 1.0


@pytest.mark.parametrize("steps, taken", [(1, 4), (7, 4), (8, 16), (9, 16), (64, 16)])
def test_counts_that_were_not_tuned_take_the_settings_of_the_nearest_by_ratio(steps, taken):
    assert nearest(steps, [4, 16]) == taken


@pytest.mark.parametrize("name", trained_models())
def test_every_model_is_given_four_changes_and_each_changes_something(name):
    model = tiny(TINY_NAMES.get(name, name.replace("_", "-")))
    own = model.sampling_key()
    listed = OmegaConf.to_container(composed(f"model={name}").model, resolve=True)["tune"]
    keys = []
    for settings in listed:
        model.set_sampler(settings.pop("sampler", None), **settings)
        keys.append(str(model.sampling_key()))
    assert len(set(keys)) == 4 and str(own) not in keys


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


@pytest.mark.parametrize("asked", ["tune.guidance=2", "tune.steps=2.5", "tune.guidance=[1,x]"])
def test_what_is_no_list_of_numbers_is_refused_too(asked):
    with pytest.raises(BadInput, match=asked.split("=")[0]):
        check(composed("tune=default", asked))


# --- whole benches

TUNED = ["tune=default", "tune.guidance=[1,2]", "tune.num_samples=16", "train.budget=2"]


def bench(folder, name, *asked):
    """A bench of the smallest size whose settings are chosen."""
    return run(folder, *TINY, f"name={name}", *TUNED, *asked)


def rows(folder, name):
    """The records of a bench, those of tuned settings first, and those as configured."""
    read = [json.loads(path.read_text()) for path in folder.glob(f"results/{name}/records/*.json")]
    assert all((r["row"]["settings"] == "tuned") == bool(r["tuning"]) for r in read)
    return [r for r in read if r["tuning"]], [r for r in read if not r["tuning"]]


@pytest.fixture
def counted(monkeypatch):
    """The sampling configs that trials were sampled with."""
    sampled = []

    def counting(cell, config):
        if config.seed == SEED:
            sampled.append(config)
        return sample(cell, config)

    monkeypatch.setattr(jointly, "sample", counting)
    return sampled


def test_a_bench_reports_chosen_settings_on_samples_that_they_were_not_chosen_by(tmp_path, counted):
    ended = bench(tmp_path, "tuned", "model=dit", "steps=[1,2]", "tune.steps=[2]")
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
    assert {config.seed for config in counted} == {SEED}
    report = (tmp_path / "results" / "tuned" / "summary.md").read_text()
    assert "dit, tuned" in report
    assert "## Chosen settings" in report and "FD[local] to training images" in report

    # nothing is tried or measured twice; of the trials only one that is lost is made again
    made = len(counted)
    again = bench(tmp_path, "tuned", "model=dit", "steps=[1,2]", "tune.steps=[2]")
    assert "4 of 4 measurements are there\n" in again.out and len(counted) == made
    [file] = tmp_path.glob("cache/cells/*/trials.json")
    trials = read_sealed(file)
    lost = list(trials)[-1]
    write_sealed(file, {key: value for key, value in trials.items() if key != lost})
    again = bench(tmp_path, "tuned", "model=dit", "steps=[1,2]", "tune.steps=[2]")
    assert "and settings to choose" in again.out
    assert len(counted) == made + 1 and read_sealed(file) == trials

    # trials of other weights say nothing of these
    write_sealed(file, trials | {"weights": "other", lost: None})
    bench(tmp_path, "tuned", "model=dit", "steps=[1,2]", "tune.steps=[2]")
    assert len(counted) == 2 * made + 1


def test_another_choice_takes_the_place_of_the_one_before(tmp_path):
    for scales in ("[1,2]", "[1,3]", "[1]"):
        ended = bench(tmp_path, "again", "model=dit", "steps=[2]", f"tune.guidance={scales}")
        assert ended.code == 0, ended.err
        chosen, configured = rows(tmp_path, "again")
        assert len(chosen) == len(configured) == 1
        tried = {trial["guidance"] for trial in chosen[0]["tuning"]["trials"]}
        assert float(scales[-2]) in tried


def test_a_sweep_of_samplers_has_one_choice_which_starts_from_the_model_s_own(tmp_path):
    asked = ["model=dit", "steps=[2]", "sampler=euler,heun"]
    ended = bench(tmp_path, "swept", "-m", *asked)
    assert ended.code == 0, ended.err
    chosen, configured = rows(tmp_path, "swept")
    assert len(chosen) == 1 and len(configured) == 2
    assert chosen[0]["tuning"]["trials"][0]["sampler"] == "euler"


def test_the_most_steps_are_always_tuned(tmp_path):
    asked = ["model=dit", "steps=[1,2,4]", "tune.steps=[1]", "guidance=[]", "sampler=euler"]
    ended = bench(tmp_path, "most", *asked)
    assert "sampler=euler: no row will have it" in ended.out
    chosen, configured = rows(tmp_path, "most")
    by = {r["row"]["steps"]: r["tuning"]["steps"] for r in chosen}
    assert by == {1: 1, 2: 4, 4: 4} and not configured


@pytest.mark.parametrize("objective", ["v", LONG("eps"), LONG("x0")])
def test_every_objective_can_be_tuned_and_says_what_it_lacks(objective, tmp_path):
    asked = ["model=dit", "steps=[2]", f"model.objective={objective}", "guidance=[]"]
    ended = bench(tmp_path, objective, *asked)
    assert ended.code == 0, ended.err
    assert f"dit with objective {objective} has no shift: left out of tuning" in ended.out


def test_a_value_out_of_range_is_one_line_before_anything_is_trained(tmp_path):
    asked = ["model=dit", "steps=[2]", "+model.tune.0.guidance_interval=[2,3]"]
    ended = bench(tmp_path, "bad", *asked)
    assert ended.code == 1
    assert "guidance_interval" in ended.err and len(ended.err.strip().splitlines()) == 1


def test_a_search_that_fails_takes_no_configured_measurement_with_it(tmp_path, monkeypatch):
    def failing(cell, config):
        if config.seed == SEED:
            raise RuntimeError("no memory for two halves")
        return sample(cell, config)

    monkeypatch.setattr(jointly, "sample", failing)
    ended = bench(tmp_path, "fails", "model=dit", "steps=[2]")
    assert ended.code == 1 and "no memory for two halves" in ended.err
    folder = tmp_path / "results" / "fails" / "records"
    read = [json.loads(path.read_text())["row"] for path in folder.glob("*.json")]
    statuses = sorted((row["status"], row["sampler"]) for row in read)
    assert statuses == [("failed", "euler"), ("ok", "euler")]


def test_samples_that_diverge_in_a_trial_are_not_chosen(tmp_path, monkeypatch):
    def diverging(cell, config):
        if config.guidance > 1:
            raise Diverged("not finite")
        return sample(cell, config)

    monkeypatch.setattr(jointly, "sample", diverging)
    ended = bench(tmp_path, "wild", "model=dit", "steps=[2]", "guidance=[]")
    assert ended.code == 0, ended.err
    [chosen], _ = rows(tmp_path, "wild")
    assert chosen["row"]["guidance"] == 1
    assert chosen["tuning"]["trials"][1]["fd_generator_train"] is None
    again = bench(tmp_path, "wild", "model=dit", "steps=[2]", "guidance=[]")
    assert "1 of 1 measurements are there\n" in again.out, "nothing is measured again for it"


def test_time_that_is_up_between_trials_keeps_those_made(tmp_path, monkeypatch, counted):
    monkeypatch.setattr(tune, "out_of_time", lambda cfg: len(counted) == 2)
    ended = bench(tmp_path, "late", "model=dit", "steps=[2]", "guidance=[]")
    assert ended.code == 75 and "its settings are still to be chosen" in ended.out
    monkeypatch.setattr(tune, "out_of_time", lambda cfg: False)
    ended = bench(tmp_path, "late", "model=dit", "steps=[2]", "guidance=[]")
    assert ended.code == 0 and len(set(counted)) == len(counted)
