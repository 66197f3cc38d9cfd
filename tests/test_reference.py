"""`make reference`: the plan is whole, calls stop in time and lose nothing, and what was made
travels back.
"""

import itertools
import os
import shutil
import subprocess
import sys
import tarfile
import time
from functools import partial
from pathlib import Path

import pytest
import torch
import yaml
from conftest import composed
from hydra.core.override_parser.overrides_parser import OverridesParser

from benchmarks.core.environment import git_state
from benchmarks.core.errors import BadInput
from benchmarks.reference import command as reference
from benchmarks.reference import commands, packing, plan
from benchmarks.reference.commands import Places
from benchmarks.reference.keeping import Keeper
from benchmarks.reference.plan import Entry
from benchmarks.results import records

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "results" / "reference"
CPU = torch.device("cpu")
ENTRIES = plan.load()
# what the plan's command lines may set: all of it, and only it, a rehearsal sets again or leaves as
# it is
GIVEN = {
    "experiment",
    "data",
    "data.path",
    "data.image_size",
    "model",
    "size",
    "seed",
    "sampler",
    "sampler.guidance_schedule",
}
GIVEN |= {
    "steps",
    "guidance",
    "num_samples",
    "data.reference_images",
    "train.budget",
    "train.batch",
    "sample_batch",
    "model.lr",
}
GIVEN |= {"model.denoiser.patch", "data.name", "train.snapshots", "train.checkpoint_seconds"}


def entry(name: str, *runs: str, **changes) -> Entry:
    given = dict(
        answers="?",
        device="either",
        data="none",
        minutes=1,
        priority=1,
        runs=list(runs) or ["bench experiment=smoke"],
    )
    return Entry(name=name, **given | changes)


# The plan


@pytest.mark.parametrize("one", ENTRIES, ids=lambda one: one.name)
def test_every_command_of_the_plan_composes(one):
    """With every preset, model and size that it sweeps."""
    for line in one.runs:
        kind, *overrides = line.replace("{data}", "/images").split()
        if kind not in commands.CONFIGURED:
            continue
        parsed = OverridesParser.create().parse_overrides(overrides)
        assert {override.key_or_group for override in parsed} <= GIVEN
        choices = [
            [
                f"{o.key_or_group}={value}"
                for value in (
                    o.sweep_string_iterator() if o.is_sweep_override() else [o.get_value_string()]
                )
            ]
            for o in parsed
        ]
        for chosen in itertools.product(*choices):
            assert composed(*chosen).data.source in ("procedural", "imagefolder")
        small = composed(*(choice[0] for choice in choices), *commands.REHEARSAL)
        assert (small.train.unit, small.train.budget, small.train.batch, small.num_samples) == (
            "steps",
            2,
            4,
            10,
        )


def test_every_committed_folder_has_an_entry_and_every_entry_that_was_made_a_folder():
    folders = {path.name for path in FOLDER.iterdir() if path.is_dir()}
    assert folders <= {one.name for one in ENTRIES}
    assert {one.name for one in ENTRIES if one.made} <= folders


def test_every_figure_that_an_entry_keeps_is_there_where_it_was_made():
    for one in ENTRIES:
        if one.made and one.figures:
            assert {path.stem for path in (FOLDER / one.name / "plots").glob("*.png")} == set(
                one.figures
            ), one.name


def test_the_gpu_s_entries_come_first_and_in_the_order_of_their_worth():
    first = [one.name.split("-")[0] for one in ENTRIES if one.device == "cuda"]
    assert first == ["cuda", "perf", "gpu", "tradeoff", "dit_paper_ranks", "seeds", "sizes"]
    assert all(one.device == "cuda" for one in ENTRIES[: len(first)])


def test_an_entry_is_made_where_the_versions_are_today_s(tmp_path):
    (tmp_path / "there").mkdir()
    today = plan.todays_versions()
    older = today | {"models": today["models"] - 1}
    assert entry("there", made=today).state(tmp_path) == "made"
    assert entry("there", made=older).state(tmp_path) == "out of date"
    assert entry("there", "study x=1", made=older).state(tmp_path) == "made", (
        "no model is behind a study of the judge"
    )
    assert (
        entry("there", made=None).state(tmp_path) == "missing"
        and entry("gone", made=today).state(tmp_path) == "missing"
    )


def test_what_is_chosen_is_what_this_machine_can_make_and_is_missing(tmp_path):
    (tmp_path / "done").mkdir()
    entries = [
        entry("big", device="cuda"),
        entry("both"),
        entry("cpu", device="cpu"),
        entry("done", made=plan.todays_versions()),
        entry("other", device="cpu", machine="No Such Machine"),
    ]
    names = lambda only: [one.name for one in plan.chosen(entries, only, CPU, tmp_path)]  # noqa: E731
    assert names("") == ["both", "cpu"] and names("cpu") == ["cpu"]
    assert names("done,both") == ["both", "done"], "what is named is made, in the plan's order"
    for only, message in [
        ("nothing", "the plan has no nothing"),
        (",", "the plan has no ,"),
        ("gpu", "no CUDA device found"),
        ("gpu,both", "the plan has no gpu; give cpu, or gpu, or names"),
        ("cpu,big", "big is for cuda"),
        ("other", "other is for cpu, No Such Machine"),
    ]:
        with pytest.raises(BadInput, match=message):
            names(only)


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
        (
            {"runs": ["bench experiment=gone"]},
            "experiment=gone: conf/experiment has no such preset",
        ),
    ],
)
def test_a_plan_that_cannot_be_one_is_one_line(tmp_path, change, message):
    given = (
        dict(name="x", answers="?", device="cpu", data="none", minutes=1, priority=1, runs=["cost"])
        | change
    )
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump([given]))
    with pytest.raises(BadInput, match=message):
        plan.load(tmp_path / "plan.yaml")


def test_a_damaged_plan_and_a_name_twice_are_one_line(tmp_path):
    path = tmp_path / "plan.yaml"
    for text, message in [
        ("- [", "cannot be read"),
        ("5", "cannot be read"),
        ("- 5", "entry 5: needs"),
    ]:
        path.write_text(text)
        with pytest.raises(BadInput, match=message):
            plan.load(path)
    given = dict(
        name="x", answers="?", device="cpu", data="none", minutes=1, priority=1, runs=["cost"]
    )
    path.write_text(yaml.safe_dump([given, given]))
    with pytest.raises(BadInput, match="two entries are called x"):
        plan.load(path)


def test_marking_an_entry_changes_its_line_only(tmp_path):
    path = tmp_path / "plan.yaml"
    path.write_text(plan.PLAN.read_text())
    plan.mark(
        "seeds",
        {
            "models": 9,
            "scoring": 9,
            "commit": "abc",
            "date": "2030-01-01",
            "device": "One (TM), two: three",
        },
        path,
    )
    before, after = plan.PLAN.read_text().splitlines(), path.read_text().splitlines()
    assert [a for a, b in zip(after, before, strict=True) if a != b] == [
        "  made: {models: 9, scoring: 9, commit: abc, date: '2030-01-01', device: 'One (TM), two: three'}"
    ]
    assert (
        next(one for one in plan.load(path) if one.name == "seeds").made["device"]
        == "One (TM), two: three"
    )


# Making


@pytest.fixture
def fake(monkeypatch, tmp_path) -> Places:
    """Commands are Python scripts: the words of a run after `bench`, joined."""
    monkeypatch.setattr(
        commands,
        "command",
        lambda one, line, places, stop_at: [sys.executable, "-c", line.removeprefix("bench ")],
    )
    return Places(tmp_path / "work", tmp_path / "cache", tmp_path / "published", tmp_path)


def test_a_call_ends_before_its_minutes_are_up_and_says_what_is_left(fake, monkeypatch, capsys):
    monkeypatch.setattr(reference, "MARGIN", 0.5)
    monkeypatch.setattr(reference, "LEAST", 0.5)
    monkeypatch.setattr(reference, "FINAL", 0.3)
    entries = [
        entry("quick", "bench pass"),
        entry("endless", "bench import time; time.sleep(60)"),
        entry("later", "bench pass"),
    ]
    kept, started = [], time.time()
    outcome = reference.make_all(
        entries, fake, started + 4, lambda one, became, minutes: kept.append((one.name, became))
    )
    assert time.time() - started < 4
    assert (outcome.made, outcome.begun, outcome.waiting) == (["quick"], ["endless"], ["later"])
    assert kept == [("quick", "made"), ("endless", "begun")]
    reference.report(outcome, entries, fake)
    assert (
        "left: endless (begun), later: about 2 minutes, what is begun counted from its beginning"
        in capsys.readouterr().out
    )


def test_a_command_that_fails_or_is_to_be_continued_costs_no_other_entry(fake):
    lines = {
        "broken": "raise SystemExit(3)",
        "late": "raise SystemExit(75)",
        "diverged": "raise SystemExit(4)",
        "fine": "pass",
    }
    entries = [entry(name, f"bench {line}") for name, line in lines.items()]
    outcome = reference.make_all(entries, fake, None, lambda one, became, minutes: None)
    assert (outcome.made, outcome.begun, outcome.failed) == (
        ["diverged", "fine"],
        ["late"],
        ["broken"],
    )
    assert reference.verdict(outcome, entries, entries, None) == 1


def test_a_command_that_is_stopped_leaves_no_process_behind(fake, tmp_path):
    child = f"import time, pathlib; time.sleep(3); pathlib.Path('{tmp_path}/late').touch()"
    parent = f'import subprocess, sys, time; subprocess.Popen([sys.executable, "-c", {child!r}]); time.sleep(60)'
    assert reference.run_until([sys.executable, "-c", parent], time.time() + 1.5) == 75
    time.sleep(3)
    assert not (tmp_path / "late").exists()


def test_what_cannot_be_interrupted_is_begun_only_where_it_fits():
    whole, parts = entry("x", "cost", minutes=5), entry("y", "bench a=1", "perf", minutes=50)
    soon = time.time() + 120
    assert not reference.fits(whole, soon) and reference.fits(parts, soon)
    assert reference.fits(whole, soon + 240) and reference.fits(whole, None)
    assert not reference.fits(parts, time.time() + reference.MARGIN + 5)


def test_a_results_folder_that_cannot_be_written_is_one_line(fake, tmp_path):
    (tmp_path / "work").write_text("a file in its way")
    with pytest.raises(BadInput, match=r"work/x cannot be written"):
        reference.make_all([entry("x")], fake, None, lambda one, became, minutes: None)


def test_a_command_line_is_the_entry_s_with_places_and_the_time_to_stop(tmp_path):
    places, one = (
        Places(Path("results"), Path(".cache"), tmp_path, Path("/images")),
        entry("study-x"),
    )
    call = commands.command(
        one, "bench experiment=gpu data.path={data} steps=[1,2]", places, 1234.5
    )
    assert call[1:] == [
        "-m", "benchmarks", "run", "experiment=gpu", "data.path=/images", "steps=[1,2]", "cache_dir=.cache", "results_dir=results",
        "name=study-x", "stop_at=1234",
    ]  # fmt: skip
    rehearsed = commands.command(
        one,
        "bench experiment=gpu",
        Places(Path("r"), Path("c"), tmp_path, None, rehearse=True),
        None,
    )
    assert rehearsed[-len(commands.REHEARSAL) :] == commands.REHEARSAL and not any(
        "stop_at" in part for part in rehearsed
    )
    assert commands.command(one, "perf --size b", places, 1234.5)[3:] == [
        "--size",
        "b",
        "--out",
        "results/study-x",
        "--stop-at",
        "1234",
    ]


@pytest.mark.parametrize(
    "given, message",
    [("soon", "MINUTES=soon"), ("0", "MINUTES=0"), ("-3", "MINUTES=-3"), ("inf", "MINUTES=inf")],
)
def test_minutes_that_are_none_are_refused(given, message):
    with pytest.raises(BadInput, match=message):
        reference.minutes(given)


def test_too_few_minutes_for_anything_and_missing_data_are_errors():
    one, outcome = entry("whole", "cost", minutes=5), reference.Outcome(waiting=["whole"])
    with pytest.raises(
        BadInput, match=r"MINUTES=0.5: too few to begin any of whole; give [\d.]+ or more"
    ):
        reference.verdict(outcome, [one], [one], 0.5)
    needy = entry("needy", "bench data.path={data}")
    with pytest.raises(BadInput, match="DATA is missing for needy;"):
        reference.verdict(reference.Outcome(made=["a"]), [one, needy], [one], None)
    assert reference.verdict(reference.Outcome(), [], [], 9) == 0, "nothing is left to be made"


def test_data_is_a_folder_or_a_tar_of_one(tmp_path):
    for inside in ("train/n01", "val/n01"):
        (tmp_path / "set" / inside).mkdir(parents=True)
        (tmp_path / "set" / inside / "a.JPEG").write_bytes(b"x")
    for name, around in (("flat.tar", ""), ("around.tar", "tiny/")):
        with tarfile.open(tmp_path / name, "w") as tar:
            for part in ("train", "val"):
                tar.add(tmp_path / "set" / part, arcname=f"{around}{part}")
        folder = commands.images(str(tmp_path / name), tmp_path / "cache")
        assert (folder / "train" / "n01" / "a.JPEG").read_bytes() == b"x" and folder.name == (
            "tiny" if around else "flat"
        )
        assert commands.images(str(tmp_path / name), tmp_path / "cache") == folder
    assert commands.images(str(tmp_path / "set"), tmp_path / "cache") == tmp_path / "set"
    (tmp_path / "empty").mkdir()
    (tmp_path / "text").write_text("no tar")
    (tmp_path / "cut.tar").write_bytes((tmp_path / "flat.tar").read_bytes()[:1100])
    for wrong in ("text", "nowhere", "cut.tar", "empty"):
        with pytest.raises(BadInput, match="DATA="):
            commands.images(str(tmp_path / wrong), tmp_path / "cache")


# Travelling


def made(folder: Path, name: str, size: int = 10) -> None:
    (folder / name / "plots").mkdir(parents=True)
    (folder / name / "results.csv").write_text(name)
    (folder / name / "plots" / "a.png").write_bytes(os.urandom(size))


def plan_of(path: Path, *names: str, made: str = "null") -> list[Entry]:
    path.write_text("\n".join(
        f"- name: {name}\n  answers: '?'\n  device: cpu\n  data: none\n  minutes: 1\n  priority: {i}\n  made: {made}\n  runs: [cost]"
        for i, name in enumerate(names)
    ))  # fmt: skip
    return plan.load(path)


NOW = {"models": 6, "scoring": 7, "commit": "abc", "date": "2030-01-01", "device": "GPU"}


def begun(work: Path, name: str, record: str) -> None:
    (work / name / "records").mkdir(parents=True)
    (work / name / "records" / f"{record}.json").write_text(record)


def test_what_is_packed_comes_back_whole_and_is_marked(tmp_path):
    """A finished study in place of an older one, the records of an unfinished one beside those that
    are here.
    """
    there, here, path = tmp_path / "there", tmp_path / "here", tmp_path / "plan.yaml"
    (
        made(there / "ref", "one"),
        begun(there / "results", "two", "a"),
        begun(here / "results", "two", "b"),
    )
    (here / "ref" / "one").mkdir(parents=True)
    (here / "ref" / "one" / "README.md").write_text("by hand")
    (here / "ref" / "one" / "old.csv").write_text("older")
    made(here / "ref", "two")
    packing.pack({"one": NOW, "two": None}, there / "ref", there / "results", tmp_path)
    lines = packing.unpack(
        tmp_path, plan_of(path, "one", "two", "three"), here / "ref", here / "results", path
    )
    assert lines == ["one: made", "two: begun"]
    assert (here / "ref" / "one" / "plots" / "a.png").read_bytes() == (
        there / "ref" / "one" / "plots" / "a.png"
    ).read_bytes()
    assert (here / "ref" / "one" / "README.md").read_text() == "by hand" and not (
        here / "ref" / "one" / "old.csv"
    ).exists()
    assert (here / "ref" / "two" / "results.csv").read_text() == "two", "what is published stays"
    assert {p.name for p in (here / "results" / "two" / "records").iterdir()} == {
        "a.json",
        "b.json",
    }
    assert [one.made for one in plan.load(path)] == [NOW, None, None]


def test_packs_are_at_most_eight_files_of_under_sixteen_megabytes(tmp_path, monkeypatch):
    studies = {f"s{i}": NOW for i in range(5)}
    for name in studies:
        made(tmp_path / "ref", name, 6_000_000)
    pack = lambda names: packing.pack(
        dict.fromkeys(names, NOW), tmp_path / "ref", tmp_path, tmp_path
    )
    paths = pack(studies)
    assert [path.name for path in paths] == [
        "reference-1.tar",
        "reference-2.tar",
        "reference-3.tar",
    ]
    assert all(path.stat().st_size < 16 * 2**20 for path in paths)
    assert pack(["s1"]) == paths[:1] == sorted(tmp_path.glob("*.tar")), (
        "tars of an earlier, larger pack are gone"
    )
    monkeypatch.setattr(packing, "FILES", 2)
    with pytest.raises(BadInput, match="do not fit into 2 files"):
        pack(studies)
    assert packing.packed(tmp_path) == {"s1": NOW}, "and what was packed stays"


def test_what_cannot_be_unpacked_is_one_line_and_writes_nothing_outside(tmp_path):
    path = tmp_path / "plan.yaml"
    entries, here = plan_of(path, "one"), tmp_path / "here"
    made(tmp_path / "ref", "one"), made(tmp_path / "ref", "unknown")

    def refused(source: str, message: str) -> None:
        with pytest.raises(BadInput, match=message):
            packing.unpack(tmp_path / source, entries, here, here, path)

    def packed_as(source: str, studies: dict, **options) -> Path:
        (tmp_path / source).mkdir()
        return packing.pack(studies, tmp_path / "ref", tmp_path, tmp_path / source, **options)[0]

    refused("nothing", r"no reference-\*.tar there")
    packed_as("a", {"unknown": NOW})
    refused("a", "the plan has no unknown")
    packed_as("r", {"one": NOW}, rehearsed=True)
    refused("r", "made by a rehearsal")
    whole = packed_as("b", {"one": NOW})
    whole.write_bytes(whole.read_bytes()[:700])
    refused("b", "not a whole file|is not whole")
    for index in ("[]", "{", '{"rehearsed": false, "studies": {"one": {}}}'):
        source = tmp_path / f"c{len(index)}"
        source.mkdir()
        with tarfile.open(source / "reference-1.tar", "w") as tar:
            (tmp_path / "index").write_text(index)
            (tmp_path / "evil").write_text("x")
            tar.add(tmp_path / "index", arcname=packing.INDEX)
            tar.add(tmp_path / "evil", arcname="one/../../evil2")
        refused(source.name, "not a whole file|is not whole")
    assert not (tmp_path / "evil2").exists() and not (here / "one").exists()
    assert plan.load(path)[0].made is None


def keeper_of(
    tmp_path: Path, monkeypatch, *names: str, out: Path | None = None
) -> tuple[Keeper, list[Entry]]:
    """A keeper of a plan of its own; what entries make is a table."""
    entries = plan_of(tmp_path / "plan.yaml", *names)
    monkeypatch.setattr(plan, "mark", partial(plan.mark, path=tmp_path / "plan.yaml"))
    places = Places(tmp_path / "work", tmp_path / "cache", tmp_path / "published", None)
    for name in names:
        (places.work / name).mkdir(parents=True, exist_ok=True)
        (places.work / name / "cost.csv").write_text(name)
    return Keeper(places, CPU, out), entries


def test_what_is_made_is_published_marked_and_packed_beside_what_was_packed_before(
    tmp_path, monkeypatch
):
    for name in ("one", "two"):
        keeper, entries = keeper_of(tmp_path, monkeypatch, "one", "two", out=tmp_path / "out")
        keeper(next(entry for entry in entries if entry.name == name), "made", 1.5)
        assert (tmp_path / "published" / name / "cost.csv").read_text() == name
    assert list(packing.packed(tmp_path / "out")) == ["one", "two"], (
        "a second call keeps the first one's"
    )
    assert plan.load(tmp_path / "plan.yaml")[1].made["minutes"] == 1.5


def test_what_is_begun_or_failed_changes_nothing_that_is_published(tmp_path, monkeypatch):
    keeper, (one,) = keeper_of(tmp_path, monkeypatch, "one", out=tmp_path / "out")
    for became in ("begun", "failed"):
        keeper(one, became, 2.0)
    assert (
        not (tmp_path / "published" / "one").exists()
        and plan.load(tmp_path / "plan.yaml")[0].made is None
    )
    assert packing.packed(tmp_path / "out") == {"one": None}
    assert packing.state(tmp_path / "work", "one")["minutes"] == 4.0


def test_a_call_goes_on_where_the_plan_was_laid_anew(tmp_path, monkeypatch):
    """What was made is published and marked again without being made again, and what failed by this
    code comes last.
    """
    keeper, (one, two, _) = keeper_of(tmp_path, monkeypatch, "one", "two", "three")
    keeper(one, "made", 1.0), keeper(two, "failed", 1.0)
    shutil.rmtree(tmp_path / "published")
    keeper, entries = keeper_of(tmp_path, monkeypatch, "one", "two", "three")
    assert [entry.name for entry in keeper.restore(entries)] == ["three", "two"]
    assert (tmp_path / "published" / "one" / "cost.csv").exists() and plan.load(
        tmp_path / "plan.yaml"
    )[0].made


def test_the_commit_travels_with_the_tree(tmp_path, monkeypatch):
    """Without a repository it comes from a variable or from the file `.commit`; a repository knows
    better.
    """
    git_state.cache_clear()
    monkeypatch.setattr(records, "ROOT", tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    try:
        assert git_state() == {"git_sha": None, "git_dirty": None}
        git_state.cache_clear()
        (tmp_path / ".commit").write_text("abcdef123456-dirty\n")
        assert git_state() == {"git_sha": "abcdef123456", "git_dirty": True}
        git_state.cache_clear()
        monkeypatch.setenv("LATENTBENCH_COMMIT", "123456abcdef")
        assert git_state() == {"git_sha": "123456abcdef", "git_dirty": False}
    finally:
        git_state.cache_clear()


# Whole calls


def call(*args: str, **environment: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "benchmarks", "reference", *args]
    return subprocess.run(
        command,
        cwd=ROOT,
        text=True,
        capture_output=True,
        env=os.environ | {"HF_HUB_OFFLINE": "1"} | environment,
    )


def test_the_gpu_s_entries_are_rehearsed_on_a_cpu(tmp_path):
    """By the same command lines, in miniature, so that no minute of a GPU is lost to a typo; and
    what they make can be packed.
    """
    wanted = [one.name for one in ENTRIES if one.device == "cuda"]
    done = call(
        "--rehearse",
        "--only",
        "gpu",
        "--cache",
        str(tmp_path / "cache"),
        "--out",
        str(tmp_path / "out"),
        CUDA_VISIBLE_DEVICES="",
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    assert f"made: {', '.join(wanted)}" in done.stdout and "left:" not in done.stdout
    assert list(packing.packed(tmp_path / "out")) == wanted
    with pytest.raises(BadInput, match="made by a rehearsal"):
        packing.unpack(
            tmp_path / "out",
            plan_of(tmp_path / "plan.yaml", *wanted),
            tmp_path,
            tmp_path,
            tmp_path / "plan.yaml",
        )
    published = tmp_path / "cache" / "rehearsal" / "reference"
    for name in wanted:
        kept = {path.name for path in (published / name).rglob("*") if path.is_file()}
        assert (
            {"perf.csv", "bars.csv"} <= kept
            if name == "perf-gpu"
            else {"results.csv", "summary.md", "records.json.gz"} <= kept
        )
    rows = (published / "gpu-tiny-imagenet-20" / "results.csv").read_text()
    assert all(f",{family}," in rows for family in ("unet", "dit", "ar"))


def test_the_list_and_bad_input(tmp_path):
    assert "seeds" not in call("--list", "--only", "cost").stdout
    listed = call("--list")
    assert listed.returncode == 0 and all(one.name in listed.stdout for one in ENTRIES)
    for args, message in [
        (["--only", "nonsense"], "the plan has no nonsense"),
        (["--minutes", "never"], "MINUTES=never"),
        (["--only", "cost", "--data", "/nowhere"], "DATA=/nowhere"),
        (["--unpack", str(tmp_path)], "no reference-*.tar there"),
        (["--only", "cost", "--minutes", "0.1"], "too few to begin any of cost"),
    ]:
        done = call(*args)
        assert done.returncode == 2 and message in done.stderr, (args, done.stderr)
        assert len(done.stderr.strip().splitlines()) == 1, done.stderr
