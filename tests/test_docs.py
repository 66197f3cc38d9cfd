"""README, CONTRIBUTING and docs/: what they link to is there, and what they tell a user to type
works, tried in miniature.
"""

import argparse
import os
import re
import runpy
import shlex
import signal
import subprocess
import sys
import tomllib
from functools import cache
from importlib import import_module
from pathlib import Path

import pytest
import torch
from conftest import ALL
from hydra.core.override_parser.overrides_parser import OverridesParser

from benchmarks.__main__ import COMMANDS
from benchmarks.core.session import session
from benchmarks.core.settings import check, compose, config_names, with_preset
from benchmarks.images import import_export, procedural
from benchmarks.reference.commands import stand_in
from benchmarks.stages.cell import sampling_grid
from benchmarks.stages.model import build_model, choose_sampler
from models.codebook import Codebook

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
EXTENDING = ROOT / "docs" / "extending.md"
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)")

WITH_OVERRIDES = ("run", "study", "reconstruct", "probe", "doctor")  # these take Hydra overrides
# added to overrides, so that a run takes seconds
MINIATURE = ["rehearse=mini", "features=local", "num_samples=20", "data.reference_images=20"]
ONE_MODEL = ["model=dit", "steps=[4]", "guidance=[1,4]", "sampler=default,heun"]
OF_SEVERAL_PROCESSES = ("torchrun", "accelerate")
# what takes long even in miniature: its arguments are read, nothing more


def page_name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path, language: str) -> list[str]:
    """The code blocks of a page in one language."""
    found = BLOCK.findall(page.read_text(encoding="utf-8"))
    return [text for name, text in found if name == language]


def shell_commands(page: Path) -> list[list[str]]:
    """The commands of a page as lists of words, without comments and environment variables."""
    commands = []
    for block in blocks(page, "bash"):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            while words and re.match(r"[A-Z_]+=", words[0]):
                words = words[1:]
            if words:
                commands.append(words)
    return commands


@cache
def recipe(*words: str) -> str:
    """What a call of make would do, line by line. The tests' own call of make has no say in it."""
    environment = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    call = ["make", "--no-print-directory", "-n", *words[1:]]
    done = subprocess.run(call, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{shlex.join(words)}: {done.stderr}"
    return done.stdout.replace("\\\n", " ")


def expanded(line: str, given: dict[str, str]) -> list[str]:
    """The words of a recipe's line as its shell has them, with the variables that make exports."""
    script = f"set -- {line}\nprintf '%s\\0' \"$@\""
    environment = {"PATH": os.environ["PATH"]} | given
    done = subprocess.run(
        ["sh", "-c", script], env=environment, capture_output=True, text=True, check=True
    )
    return done.stdout.split("\0")[:-1]


def benchmark_calls(words: list[str]) -> list[list[str]]:
    """The arguments of `python -m benchmarks` that a command of a page comes down to, if any."""
    lines = [words]
    if words[0] == "make":
        given = dict(word.split("=", 1) for word in words[1:] if "=" in word)
        lines = [
            expanded(line, given) for line in recipe(*words).splitlines() if "-m benchmarks" in line
        ]
    calls = []
    for line in lines:
        if "benchmarks" in line:
            start = line.index("benchmarks")
            assert line[start - 1] == "-m"
            by_python = Path(line[start - 2]).name.startswith("python")
            assert by_python or Path(line[0]).name in OF_SEVERAL_PROCESSES
            calls.append(line[start + 1 :])
    return calls


def calls_of(*pages: Path) -> list[list[str]]:
    """All calls of pages, each once, without those that need the files of an example."""
    calls = [
        call for page in pages for words in shell_commands(page) for call in benchmark_calls(words)
    ]
    once = {tuple(call): call for call in calls if "--config-dir" not in call}
    return list(once.values())


class Parsed(Exception):
    """The arguments of a command were read; it need not go on."""


def read_arguments(call: list[str], monkeypatch) -> argparse.Namespace:
    """What a command that takes no overrides makes of its arguments; or a module of the suite."""
    name = COMMANDS[call[0]][0] if call[0] in COMMANDS else call[0].removeprefix("benchmarks.")
    parse = argparse.ArgumentParser.parse_args

    def parse_and_stop(self, *args, **kwargs):
        raise Parsed(parse(self, *args, **kwargs))

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_and_stop)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    with pytest.raises(Parsed) as stopped:
        import_module(f"benchmarks.{name}").main(call[1:])
    monkeypatch.undo()
    return stopped.value.args[0]


def choices(overrides: list[str]) -> dict[str, list[str]]:
    """Each override with its values, of a sweep several, by the key it sets."""
    by_key = {}
    for override in OverridesParser.create().parse_overrides(overrides):
        if override.is_sweep_override():
            values = [f"{override.key_or_group}={v}" for v in override.sweep_string_iterator()]
        else:
            values = [override.input_line]
        by_key[override.key_or_group] = values
    return by_key


@cache
def check_configuration(command: str, overrides: tuple[str, ...]) -> None:
    """One configuration composes, has values in range, and its model can be measured with it."""
    cfg = compose(*overrides)
    check(cfg)
    if command != "run" or cfg.model.family == "pretrained":
        return
    side = cfg.data.image_size // (4 if cfg.autoencoder.kind in ("shipped", "trained") else 8)
    with torch.device("meta"):
        model = build_model(cfg.model, (4, side, side), 10, Codebook(64))
    choose_sampler(model, cfg)
    assert sampling_grid(cfg, model), f"nothing is measured with {overrides}"


def check_overrides(command: str, overrides: list[str]) -> None:
    """The first configuration of a sweep, and those that differ from it in one key."""
    if command == "run":
        overrides = with_preset([override for override in overrides if override != "-m"])
        preset = next(word for word in overrides if word.startswith("experiment="))
        overrides = [*swept_by(preset), *overrides]
    values = choices(overrides)
    first = {key: several[0] for key, several in values.items()}
    check_configuration(command, tuple(first.values()))
    for key, several in values.items():
        for other in several[1:]:
            check_configuration(command, tuple((first | {key: other}).values()))


@cache
def swept_by(preset: str) -> list[str]:
    """What a preset sweeps over where the command line does not say otherwise, as overrides."""
    swept = compose(preset, return_hydra_config=True).hydra.sweeper.params or {}
    return [f"{key}={values}" for key, values in swept.items()]


def is_extra(words: list[str]) -> bool:
    """Whether a command installs the project with an extra that there is."""
    *pip, extra = words
    if pip != [".venv/bin/pip", "install", "-e"]:
        return False
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return extra.strip(".[]") in extras["optional-dependencies"]


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_every_command_is_one_that_there_is(page, monkeypatch):
    """Make knows the target, the command reads its arguments, and overrides compose to
    configurations that can run.
    """
    for words in shell_commands(page):
        calls = benchmark_calls(words)
        script = words[0].endswith("python") and words[1].startswith("mine/")
        measurement = words[1:2] == ["-m"] and words[2].startswith("benchmarks.perf.")
        if measurement:
            read_arguments(words[2:], monkeypatch)
        tried = calls or words[0] == "make" or script or is_extra(words) or measurement
        assert tried, f"no test knows how to try {words}"
        for call in calls:
            assert call[0] in COMMANDS
            if call[0] not in WITH_OVERRIDES:
                read_arguments(call, monkeypatch)
            elif "--config-dir" not in call:
                check_overrides(call[0], call[1:])


STUDY_PAGES = sorted((ROOT / "results" / "reference").rglob("*.md"))


@pytest.mark.parametrize("page", [*PAGES, *STUDY_PAGES], ids=page_name)
def test_links_lead_to_files_and_headings(page):
    text = BLOCK.sub("", page.read_text(encoding="utf-8"))
    for link in LINK.findall(text):
        if "://" in link:
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), f"{page_name(page)} links to {link}"
        assert not anchor or anchor in headings(target), f"{page_name(page)} links to {link}"


def headings(page: Path) -> set[str]:
    """The anchors of a page: headings in lower case, without punctuation, spaces as hyphens."""
    text = BLOCK.sub("", page.read_text(encoding="utf-8"))
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def start(*call: str) -> None:
    """A call of `python -m benchmarks` in this process. Nothing may go wrong."""
    session.__init__()
    try:
        import_module(f"benchmarks.{COMMANDS[call[0]][0]}").main(list(call[1:]))
    except SystemExit as end:
        assert not end.code, f"{shlex.join(call)}: {end.code}"
    assert session.exit_code() == 0, f"{shlex.join(call)}: {session.errors}"


def readme_runs() -> list[list[str]]:
    """The arguments of the README's runs: the default bench first, then one on a user's images."""
    return [call[1:] for call in calls_of(ROOT / "README.md") if call[0] == "run"]


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder as a user's clone may be: images, samples made elsewhere, results of one bench."""
    folder = tmp_path_factory.mktemp("clone")
    stand_in(folder / "images")
    pixels, labels = procedural.generate(80, 64, stream="train")
    for kind in ("npz", "png"):
        import_export.write(pixels, labels, folder / "samples", kind)
    before, argv = Path.cwd(), sys.argv
    os.chdir(folder)
    try:
        start("run", *with_preset(readme_runs()[0]), *MINIATURE, *ONE_MODEL, "name=cpu")
    finally:
        os.chdir(before)
        sys.argv = argv
    return folder


@pytest.fixture
def clone(place, monkeypatch) -> Path:
    """`place` as the working folder."""
    monkeypatch.chdir(place)
    monkeypatch.setattr(sys, "argv", sys.argv)
    return place


def here(word: str, folder: Path) -> str:
    """A word of a command with paths of `folder`; results that are not there are those that are."""
    for name, stand in (("/images", "images"), ("/pngs", "samples"), ("/parquet", "images")):
        word = re.sub(rf"(^|=){name}\b", rf"\g<1>{folder}/{stand}", word)
    is_missing = word.startswith("results/") and not (folder / word).exists()
    return "results/cpu" if is_missing else word


def in_miniature(call: list[str], folder: Path) -> list[str] | None:
    """A call made small enough to be run here; None for what is not."""
    command, *given = call
    if command == "publish":  # its target must be new
        folder_words = [here(given[0], folder), str(folder / "published")]
        return [command, *folder_words, *given[2:]]
    given = [here(word, folder) for word in given]
    if "--into" in given:  # a new folder, too
        given[given.index("--into") + 1] = str(folder / "together")
    if command in ("report", "compare") or (command == "reference" and "--list" in given):
        return [command, *given]
    if command == "score":
        return [command, *given, *(MINIATURE[2:] if given[1] in config_names("data") else [])]
    if command in ("reconstruct", "probe"):
        given = [re.sub(r"^\+sides=.*", "+sides=[64]", word) for word in given]
        return [command, *given, *MINIATURE]
    return [command, *given, "--rehearse"] if command == "cost" else None


def test_commands_run_in_miniature(clone, capfd):
    """Calls of the pages that can be made small end well and print something."""
    small = [in_miniature(call, clone) for call in calls_of(*PAGES)]
    small = [call for call in small if call]
    assert {call[0] for call in small} == {
        *("report", "compare", "publish", "score", "cost", "reference", "probe", "reconstruct")
    }
    # one of each command every day, all of them in `make test-long`
    alike = tuple if ALL else lambda call: call[0]
    for call in {alike(call): call for call in small}.values():
        start(*call)
        assert capfd.readouterr().out.strip(), f"{shlex.join(call)} prints nothing"


@pytest.mark.usefixtures("no_figures")
def test_the_readme_s_bench_of_own_images_runs_in_miniature(clone):
    """Like the default bench, which has made `place`, it writes a report."""
    given = [here(word, clone) for word in readme_runs()[1]]
    assert "data=imagefolder" in given
    start("run", *with_preset(given), *MINIATURE, *ONE_MODEL[:2], "name=own")
    assert (clone / "results" / "own" / "summary.md").exists()


@pytest.mark.usefixtures("no_figures")
def test_the_examples_of_extending_run_as_they_stand(clone, monkeypatch, capsys):
    """A family, a feature extractor and a data set of one's own, from the blocks of the page."""
    for block in (*blocks(EXTENDING, "python"), *blocks(EXTENDING, "yaml")):
        path = clone / re.match(r"# (mine/\S+)\n", block)[1]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(block)
    monkeypatch.syspath_prepend(str(clone / "mine"))
    for words in shell_commands(EXTENDING):
        words = [here(word, clone) for word in words]
        if words[1].startswith("mine/"):
            monkeypatch.setattr(sys, "argv", words[1:])
            runpy.run_path(words[1], run_name="__main__")
            continue
        ((_, *given),) = benchmark_calls(words)
        mine = next(word.split("=")[1] for word in given if re.match("(model|data)=", word))
        model = [] if "model=vae" in given else ONE_MODEL[:2]
        counts = [] if "data=gratings" in given else MINIATURE[1:]
        start("run", *with_preset(given), MINIATURE[0], *counts, *model, f"name={mine}")
        row = (clone / "results" / mine / "results.csv").read_text().splitlines()[1]
        assert mine in row.split(",")
    assert "FD[colours]" in capsys.readouterr().out
