"""The plan of `reference`: every command composes, what cannot be a plan is one line, and what is
chosen of it is what this machine can make.
"""

import re

import pytest
import torch
import yaml
from conftest import ALL, composed
from hydra.core.override_parser.overrides_parser import OverridesParser
from made_up_studies import GIVEN, entry, plan_of

from benchmarks.core import environment, versions
from benchmarks.core.environment import git_state
from benchmarks.core.errors import BadInput
from benchmarks.reference import commands, plan

CPU = torch.device("cpu")
# what the plan's command lines may set: all of it a rehearsal sets again or leaves as it is
SETTABLE = {
    "autoencoder",
    "autoencoder.codebook_size",
    "data",
    "data.classes",
    "data.image_size",
    "data.name",
    "data.path",
    "data.reference_images",
    "data.seed",
    "experiment",
    "features",
    "model.ends",
    "model.objective",
    "model.flow_first",
    "model.least_alpha",
    "model.same_time",
    "guidance",
    "model",
    "model.denoiser.patch",
    "model.denoiser.skips",
    "model.head",
    "model.lr",
    "num_samples",
    "sample_batch",
    "sampler",
    "sampler.guidance_schedule",
    "sampling_seeds",
    "seed",
    "size",
    "size.ar.mlp",
    "size.ar_any.mlp",
    "size.masked.mlp",
    "steps",
    "train.batch",
    "train.budget",
    "train.checkpoint_seconds",
    "train.precision",
    "train.snapshots",
    "tune",
    "tune.steps",
}


def sweeps(overrides: list[str]) -> list[list[str]]:
    """Of each override the single values that it sweeps, as overrides; of numbers, such as seeds
    and learning rates, the first: any other composes as that does.

    Also checks that it is one of SETTABLE.
    """
    choices = []
    for override in OverridesParser.create().parse_overrides(overrides):
        assert override.key_or_group in SETTABLE
        values = [override.get_value_string()]
        if override.is_sweep_override():
            values = list(override.sweep_string_iterator())
        if re.fullmatch(r"[\d.e-]+", values[0]):
            values = values[:1]
        choices.append([f"{override.key_or_group}={value}" for value in values])
    return choices


@pytest.fixture(scope="module")
def composed_so_far() -> set[tuple[str, str]]:
    """Swept values with the preset, size and data that they were composed with: each once a run."""
    return set()


@pytest.mark.parametrize("study", plan.load(), ids=lambda study: study.name)
def test_every_command_of_the_plan_composes(study, composed_so_far):
    """With every preset, model and size that it sweeps, one changed at a time, and in a rehearsal,
    which shrinks it. What another study has composed is passed over, but in `make test-long`.
    """
    for line in study.runs:
        kind, *overrides = line.replace("{data}", "/images").split()
        if kind not in commands.CONFIGURED:
            continue
        choices = sweeps(overrides)
        first = [values[0] for values in choices]
        own = ("experiment=", "size=", "data=")
        place = " ".join(one for one in first if one.startswith(own))
        others = []
        for i, values in enumerate(choices):
            new = [other for other in values[1:] if ALL or (other, place) not in composed_so_far]
            composed_so_far.update((other, place) for other in new)
            others += [[*first[:i], other, *first[i + 1 :]] for other in new]
        for chosen in (first, *others):
            assert composed(*chosen).data.source in ("procedural", "imagefolder", "hub")
        small = composed(*first, *commands.REHEARSAL)
        assert (small.train.unit, small.train.budget, small.train.batch) == ("steps", 2, 4)
        assert small.num_samples == 10


def test_an_entry_is_made_where_the_versions_are_todays(tmp_path):
    """Of all that its commands depend on: no model is behind a study of the judge."""
    (tmp_path / "there").mkdir()
    today = plan.todays_versions()
    older = today | {"models": today["models"] - 1}
    assert entry("there", made=today).state(tmp_path) == "made"
    assert entry("there", made=older).state(tmp_path) == "out of date"
    assert entry("there", "study x=1", made=older).state(tmp_path) == "made"
    assert entry("there", "study x=1", made=today | {"weights": "others"}).state(tmp_path) != "made"
    assert entry("there", made={"models": today["models"]}).state(tmp_path) == "out of date"
    assert entry("there", made=None).state(tmp_path) == "missing"
    assert entry("gone", made=today).state(tmp_path) == "missing"


def test_a_network_that_changed_alone_puts_only_what_trains_it_out_of_date(tmp_path, monkeypatch):
    """Whether a run names the model or its preset sweeps over it."""
    (tmp_path / "there").mkdir()
    today = plan.todays_versions()
    monkeypatch.setitem(versions.NETWORKS, "models.uvit.UViT", 1000)
    named, swept = "bench experiment=seeds model=dit,uvit", "bench experiment=hybrids"
    states = [entry("there", line, made=today).state(tmp_path) for line in (named, swept)]
    assert states == ["out of date"] * 2
    without = {name: value for name, value in today.items() if name != "networks"}
    for line in ("bench experiment=cpu", "bench experiment=hybrids model=dit", "perf --train uvit"):
        assert entry("there", line, made=without).state(tmp_path) == "made"
    assert entry("there", named, made=plan.todays_versions()).state(tmp_path) == "made"


@pytest.fixture
def chosen_names(tmp_path):
    """Names of what `only` chooses on a CPU, of a plan with an entry of each kind."""
    (tmp_path / "done").mkdir()
    entries = [
        entry("big", device="cuda"),
        entry("both"),
        entry("cpu", device="cpu"),
        entry("done", made=plan.todays_versions()),
        entry("days", device="cpu", by_name=True),
        entry("other", device="cpu", machine="No Such Machine"),
    ]

    def names(only: str) -> list[str]:
        return [study.name for study in plan.chosen(entries, only, CPU, tmp_path)]

    return names


def test_what_is_chosen_is_what_this_machine_can_make_and_is_missing(chosen_names):
    """But for names: what is named is made in any case, in the plan's order."""
    assert chosen_names("") == ["both", "cpu"]
    assert chosen_names("cpu") == ["cpu"]
    assert chosen_names("done,both") == ["both", "done"]


@pytest.mark.parametrize(
    "only, message",
    [
        ("nothing", "the plan has no nothing"),
        (",", "the plan has no ,"),
        ("gpu", "no CUDA device found"),
        ("gpu,both", "the plan has no gpu; give cpu, or gpu, or names"),
        ("cpu,big", "big is for cuda"),
        ("other", "other is for cpu, No Such Machine"),
    ],
)
def test_what_cannot_be_chosen_is_one_line(chosen_names, only, message):
    with pytest.raises(BadInput, match=message):
        chosen_names(only)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"runs": ["dance"]}, "begins with one of bench"),
        ({"runs": []}, "begins with one of"),
        ({"device": "tpu"}, "one of cpu, cuda, either"),
        ({"name": "../up"}, "the name is a folder's"),
        ({"minutes": "long"}, "minutes: 'long'"),
        ({"color": "red"}, "nothing else"),
        ({"figures": ["a", "b", "c"]}, "at most 2 figures"),
        ({"runs": ["bench experiment=gone"]}, "experiment=gone: conf/experiment has no such"),
    ],
)
def test_an_entry_that_cannot_be_one_is_one_line(tmp_path, change, message):
    path = tmp_path / "plan.yaml"
    path.write_text(yaml.safe_dump([GIVEN | {"name": "x"} | change]))
    with pytest.raises(BadInput, match=message):
        plan.load(path)


@pytest.mark.parametrize(
    "text, message",
    [
        ("- [", "cannot be read"),
        ("5", "cannot be read"),
        ("- 5", "entry 5: needs"),
        (yaml.safe_dump(2 * [GIVEN | {"name": "x"}]), "two entries are called x"),
    ],
)
def test_a_damaged_plan_is_one_line(tmp_path, text, message):
    path = tmp_path / "plan.yaml"
    path.write_text(text)
    with pytest.raises(BadInput, match=message):
        plan.load(path)


def test_a_plan_is_loaded_most_valuable_first(tmp_path):
    path = tmp_path / "plan.yaml"
    studies = [GIVEN | {"name": name, "priority": p} for name, p in (("b", 2), ("a", 1), ("c", 3))]
    path.write_text(yaml.safe_dump(studies))
    assert [study.name for study in plan.load(path)] == ["a", "b", "c"]


def test_marking_an_entry_changes_its_line_only(tmp_path):
    """Comments stay, and what is marked is read back as it was."""
    path = tmp_path / "plan.yaml"
    plan_of(path, "one", "two", "three")
    path.write_text("# a comment\n" + path.read_text() + "\n")
    before = path.read_text().splitlines()
    made = {"models": 9, "scoring": 9, "commit": "abc", "date": "2030-01-01"}
    made["device"] = "One (TM), two: three"
    plan.mark("two", made, path)
    after = path.read_text().splitlines()
    changed = [new for new, old in zip(after, before, strict=True) if new != old]
    assert changed == [
        "  made: {models: 9, scoring: 9, commit: abc, date: '2030-01-01', "
        "device: 'One (TM), two: three'}"
    ]
    assert [study.made for study in plan.load(path)] == [None, made, None]


def test_the_commit_travels_with_the_tree(tmp_path, monkeypatch):
    """Without a repository it comes from a variable or from the file `.commit`."""
    monkeypatch.setattr(environment, "ROOT", tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))

    def state_now() -> tuple:
        git_state.cache_clear()
        state = git_state()
        return state["git_sha"], state["git_dirty"]

    try:
        assert state_now() == (None, None)
        (tmp_path / ".commit").write_text("abcdef123456-dirty\n")
        assert state_now() == ("abcdef123456", True)
        monkeypatch.setenv("LATENTBENCH_COMMIT", "123456abcdef")
        assert state_now() == ("123456abcdef", False)
    finally:
        git_state.cache_clear()
