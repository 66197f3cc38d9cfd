"""Making the plan's studies: calls stop in time, one that fails costs no other, and what was made
or begun is kept.
"""

import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from functools import partial
from pathlib import Path

import pytest
import torch
import yaml
from filelock import FileLock
from made_up_studies import entry, plan_of

from benchmarks.core.errors import BadInput
from benchmarks.core.store import ROOT
from benchmarks.reference import command, commands, packing, plan
from benchmarks.reference.commands import Places
from benchmarks.reference.keeping import Keeper
from benchmarks.reference.plan import Entry

CPU = torch.device("cpu")
ENDLESS = Path(__file__).with_name("endless.py")


def keep_nothing(study: Entry, became: str, minutes: float) -> None:
    """In the place of a Keeper."""


# Commands


@pytest.fixture
def scripts(monkeypatch, tmp_path) -> Places:
    """Commands are Python scripts: what follows `bench` in a run."""

    def script(study: Entry, line: str, places: Places, stop_at: float | None) -> list[str]:
        return [sys.executable, "-c", line.removeprefix("bench ")]

    monkeypatch.setattr(commands, "command", script)
    return Places(
        work=tmp_path / "work",
        cache=tmp_path / "cache",
        published=tmp_path / "published",
        images=tmp_path,
    )


def test_a_call_ends_before_its_minutes_are_up_and_says_what_is_left(scripts, monkeypatch, capsys):
    monkeypatch.setattr(command, "MARGIN", 0.5)
    monkeypatch.setattr(command, "LEAST", 0.5)
    monkeypatch.setattr(command, "FINAL", 0.3)
    entries = [
        entry("quick", "bench pass"),
        entry("endless", "bench import time; time.sleep(60)"),
        entry("later", "bench pass"),
    ]
    kept, deadline = [], time.time() + 3

    def keep(study: Entry, became: str, minutes: float) -> None:
        kept.append((study.name, became))

    outcome = command.make_all(entries, scripts, deadline, keep)
    assert time.time() < deadline
    assert (outcome.made, outcome.begun, outcome.waiting) == (["quick"], ["endless"], ["later"])
    assert kept == [("quick", "made"), ("endless", "begun")]
    command.report(outcome, entries, scripts)
    left = "left: endless (begun), later: about 2 minutes, what is begun counted from its beginning"
    assert left in capsys.readouterr().out


def test_a_command_that_fails_or_is_to_be_continued_costs_no_other_entry(scripts):
    """A training that diverged, exit code 4, is a result."""
    codes = {"broken": 3, "late": 75, "diverged": 4, "fine": 0}
    entries = [entry(name, f"bench raise SystemExit({code})") for name, code in codes.items()]
    outcome = command.make_all(entries, scripts, None, keep_nothing)
    assert outcome.made == ["diverged", "fine"]
    assert (outcome.begun, outcome.failed) == (["late"], ["broken"])
    assert command.verdict(outcome, entries, entries, None) == 1


def test_a_command_that_is_stopped_leaves_no_process_behind(tmp_path):
    """Its child's lock is free, which it would hold for a minute."""
    call = [sys.executable, str(ENDLESS), str(tmp_path)]
    assert command.run_until(call, time.time() + 2) == 75
    assert (tmp_path / "begun").exists()
    with FileLock(tmp_path / "lock", timeout=5):
        pass


def test_what_cannot_be_interrupted_is_begun_only_where_it_fits():
    whole, stoppable = entry("x", "cost", minutes=5), entry("y", "bench a=1", "perf", minutes=50)
    soon = time.time() + 120
    assert not command.fits(whole, soon) and command.fits(stoppable, soon)
    assert command.fits(whole, soon + 240) and command.fits(whole, None)
    assert not command.fits(stoppable, time.time() + command.MARGIN + 5)


def test_a_results_folder_that_cannot_be_written_is_one_line(scripts, tmp_path):
    (tmp_path / "work").write_text("a file in its way")
    with pytest.raises(BadInput, match=r"work/x cannot be written"):
        command.make_all([entry("x")], scripts, None, keep_nothing)


def test_a_command_line_is_the_entrys_with_places_and_the_time_to_stop(tmp_path):
    places = Places(
        work=Path("results"), cache=Path(".cache"), published=tmp_path, images=Path("/images")
    )
    study, line = entry("study-x"), "bench experiment=gpu data.path={data} steps=[1,2]"
    program, *call = commands.command(study, line, places, 1234.5)
    assert program == sys.executable
    assert call[:3] == ["-m", "benchmarks", "run"]
    assert call[3:6] == ["experiment=gpu", "data.path=/images", "steps=[1,2]"]
    assert call[6:8] == ["cache_dir=.cache", "results_dir=results"]
    assert call[8:] == ["name=study-x", "stop_at=1234"]
    call = commands.command(study, "perf --size b", places, 1234.5)
    assert call[1:4] == ["-m", "benchmarks", "perf"]
    assert call[4:] == ["--size", "b", "--out", "results/study-x", "--stop-at", "1234"]


def test_a_rehearsed_command_line_ends_in_what_shrinks_it(tmp_path):
    places = Places(work=Path("r"), cache=Path("c"), published=tmp_path, images=None, rehearse=True)
    call = commands.command(entry("study-x"), "bench experiment=gpu", places, None)
    assert call[-len(commands.REHEARSAL) :] == commands.REHEARSAL
    assert not any("stop_at" in word for word in call)
    assert commands.command(entry("x"), "perf", places, None)[-1] == "--rehearse"


def test_a_rehearsal_has_the_ends_of_what_a_preset_sweeps_and_all_of_its_models(
    tmp_path, monkeypatch
):
    """What the line itself sets stays as it is."""
    monkeypatch.setattr(commands, "PRESETS", tmp_path)
    params = {"model": "a,b,c", "seed": "0,1,2", "size": "s,m,b", "sampler": "x,y"}
    preset = {"hydra": {"sweeper": {"params": params}}}
    (tmp_path / "big.yaml").write_text(yaml.safe_dump(preset))
    places = Places(work=tmp_path, cache=tmp_path, published=tmp_path, images=None, rehearse=True)
    call = commands.command(entry("x"), "bench experiment=big size=s,b", places, None)
    assert call[call.index(commands.REHEARSAL[-1]) + 1 :] == ["seed=0,2"]
    assert "size=s,b" in call


# Arguments


@pytest.mark.parametrize("text", ["soon", "0", "-3", "inf", "nan"])
def test_minutes_that_are_none_are_refused(text):
    with pytest.raises(BadInput, match=f"MINUTES={text}"):
        command.minutes(text)


def test_too_few_minutes_for_anything_and_missing_data_are_errors():
    """Where nothing is left to be made, there is none."""
    whole, outcome = entry("whole", "cost", minutes=5), command.Outcome(waiting=["whole"])
    message = r"MINUTES=0.5: too few to begin any of whole; give [\d.]+ or more"
    with pytest.raises(BadInput, match=message):
        command.verdict(outcome, [whole], [whole], 0.5)
    needy = entry("needy", "bench data.path={data}")
    with pytest.raises(BadInput, match="DATA is missing for needy;"):
        command.verdict(command.Outcome(made=["a"]), [whole, needy], [whole], None)
    assert command.verdict(command.Outcome(), [], [], 9) == 0


@pytest.fixture
def image_folder(tmp_path) -> Path:
    """A folder of one class and one file in each split."""
    for inside in ("train/n01", "val/n01"):
        (tmp_path / "set" / inside).mkdir(parents=True)
        (tmp_path / "set" / inside / "a.JPEG").write_bytes(b"x")
    return tmp_path / "set"


def tar_of(folder: Path, path: Path, around: str = "") -> Path:
    """A tar of the folder's splits, `around` before their names."""
    with tarfile.open(path, "w") as tar:
        for split in ("train", "val"):
            tar.add(folder / split, arcname=f"{around}{split}")
    return path


@pytest.mark.parametrize("around, name", [("", "images"), ("tiny/", "tiny")])
def test_data_is_a_folder_or_a_tar_of_one(tmp_path, image_folder, around, name):
    """With a folder around the splits or without; a tar is unpacked once."""
    cache = tmp_path / "cache"
    assert commands.images(str(image_folder), cache) == image_folder
    tar = tar_of(image_folder, tmp_path / "images.tar", around)
    folder = commands.images(str(tar), cache)
    assert (folder / "train" / "n01" / "a.JPEG").read_bytes() == b"x" and folder.name == name
    (folder / "mine").touch()
    assert commands.images(str(tar), cache) == folder and (folder / "mine").exists()


def test_data_that_is_neither_is_one_line(tmp_path, image_folder):
    (tmp_path / "empty").mkdir()
    (tmp_path / "text").write_text("no tar")
    whole = tar_of(image_folder, tmp_path / "whole.tar")
    (tmp_path / "cut.tar").write_bytes(whole.read_bytes()[:1100])
    for wrong in ("text", "nowhere", "cut.tar", "empty"):
        with pytest.raises(BadInput, match="DATA="):
            commands.images(str(tmp_path / wrong), tmp_path / "cache")


# Keeping


@pytest.fixture
def keeper_of(tmp_path, monkeypatch):
    """A function of names: a keeper of a plan of these, each of which has made a table."""
    monkeypatch.setattr(plan, "mark", partial(plan.mark, path=tmp_path / "plan.yaml"))

    def keeper(*names: str, out: Path | None = None) -> tuple[Keeper, list[Entry]]:
        entries = plan_of(tmp_path / "plan.yaml", *names)
        places = Places(
            work=tmp_path / "work",
            cache=tmp_path / "cache",
            published=tmp_path / "published",
            images=None,
        )
        for name in names:
            (places.work / name).mkdir(parents=True, exist_ok=True)
            (places.work / name / "cost.csv").write_text(name)
        return Keeper(places, CPU, out), entries

    return keeper


def test_what_is_made_is_published_marked_and_packed(tmp_path, keeper_of):
    """Beside what an earlier call packed."""
    for i, name in enumerate(["one", "two"]):
        keeper, entries = keeper_of("one", "two", out=tmp_path / "out")
        keeper(entries[i], "made", 1.5)
        assert (tmp_path / "published" / name / "cost.csv").read_text() == name
    assert list(packing.packed(tmp_path / "out")) == ["one", "two"]
    assert plan.load(tmp_path / "plan.yaml")[1].made["minutes"] == 1.5


def test_what_is_begun_or_failed_changes_nothing_that_is_published(tmp_path, keeper_of):
    keeper, (study,) = keeper_of("one", out=tmp_path / "out")
    for became in ("begun", "failed"):
        keeper(study, became, 2.0)
    assert not (tmp_path / "published" / "one").exists()
    assert plan.load(tmp_path / "plan.yaml")[0].made is None
    assert packing.packed(tmp_path / "out") == {"one": None}
    assert packing.state(tmp_path / "work", "one")["minutes"] == 4.0


def test_a_call_goes_on_where_the_plan_was_laid_anew(tmp_path, keeper_of):
    """What was made is published and marked again without being made again, and what failed by this
    code comes last.
    """
    keeper, (one, two, _) = keeper_of("one", "two", "three")
    keeper(one, "made", 1.0)
    keeper(two, "failed", 1.0)
    shutil.rmtree(tmp_path / "published")
    keeper, entries = keeper_of("one", "two", "three")
    assert [study.name for study in keeper.restore(entries)] == ["three", "two"]
    assert (tmp_path / "published" / "one" / "cost.csv").exists()
    assert plan.load(tmp_path / "plan.yaml")[0].made


# Whole calls


def test_the_list_is_a_command_and_heeds_only():
    call = [sys.executable, "-m", "benchmarks", "reference", "--list", "--only", "gpu"]
    done = subprocess.run(call, cwd=ROOT, text=True, capture_output=True, env=os.environ)
    assert done.returncode == 0, done.stderr
    for study in plan.load():
        assert (f"| {study.name} |" in done.stdout) == (study.device == "cuda")


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--only", "nonsense"], "the plan has no nonsense"),
        (["--minutes", "never"], "MINUTES=never"),
        (["--only", "cost", "--data", "/nowhere"], "DATA=/nowhere"),
        (["--unpack", "/nowhere"], "no reference-*.tar there"),
        (["--only", "cost", "--minutes", "0.1"], "too few to begin any of cost"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(arguments, message, monkeypatch, capsys):
    monkeypatch.setattr(signal, "signal", lambda *_: None)  # not for this process
    with pytest.raises(SystemExit) as end:
        command.main(arguments)
    lines = capsys.readouterr().err.strip().splitlines()
    assert end.value.code == 2
    assert len(lines) == 1 and message in lines[0]
