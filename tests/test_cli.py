"""The command line: every command explains itself, and ends as its session ended."""

import ast
import os
import re
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
from benches import command
from omegaconf.errors import OmegaConfBaseException

from benchmarks import __main__ as cli
from benchmarks.core.errors import BadInput, NobodyReads, OutOfTime, raise_if_stopped
from benchmarks.core.session import Session, session
from benchmarks.core.settings import model_settings, presets
from benchmarks.core.store import ROOT
from benchmarks.images.decode import decode
from benchmarks.results.columns import COLUMNS, as_page
from benchmarks.stages.record import record_failure


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_every_command_shows_two_examples(command, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["benchmarks", command, "--help"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    lines = capsys.readouterr().out.splitlines()
    examples = [line for line in lines if line.startswith(f"    python -m benchmarks {command}")]
    assert ended.value.code in (0, None) and len(examples) >= 2


def test_the_usage_lists_commands_and_presets_with_what_they_are_for():
    text = cli.usage()
    assert all(f"  {name} " in text for name in (*cli.COMMANDS, *presets()))
    assert all(presets().values()), "every preset begins with a comment that says what it is for"


def test_a_command_that_is_none_gets_one_line(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["benchmarks", "bench"])
    with pytest.raises(SystemExit, match="no command bench; there are run, report"):
        cli.main()


def raising(error: Exception):
    def task() -> None:
        raise error

    return task


ENDS = [
    ([], 0),
    ([BadInput("x")], 1),
    ([ValueError("x")], 1),
    ([OutOfTime("x")], 75),
    ([OutOfTime("x"), BadInput("y")], 1),
]


@pytest.mark.parametrize("errors, code", ENDS)
def test_the_exit_code_says_how_it_ended(errors, code, capsys):
    session = Session()
    for error in errors:
        session.guard(raising(error))
    assert session.exit_code() == code
    lines = [line for line in capsys.readouterr().err.splitlines() if line]
    bad = [error for error in errors if not isinstance(error, OutOfTime)]
    assert len(lines) == len(bad) and all(line.startswith("latentbench: ") for line in lines)


@pytest.mark.parametrize("stop", [KeyboardInterrupt, cli.Terminated])
def test_a_stop_that_broke_a_library_on_its_way_out_is_a_stop_all_the_same(stop, capsys):
    """OmegaConf, say, puts its flags back in a `finally`, of a node that is half made."""

    def in_pieces() -> None:
        try:
            raise stop
        finally:
            raise AttributeError("'NoneType' object has no attribute '_invalidate_flags_cache'")

    def as_a_library_says_it() -> None:
        try:
            in_pieces()
        except AttributeError as error:
            raise OmegaConfBaseException(str(error)) from error

    def as_a_reader_says_it() -> None:
        try:
            in_pieces()
        except AttributeError:
            raise BadInput("the file is damaged") from None

    for task in (in_pieces, as_a_library_says_it, as_a_reader_says_it):
        with pytest.raises(stop):
            Session().guard(task)
    # and a training that broke by it is no failed training, nor an image an unreadable one
    with pytest.raises(stop):
        record_failure(None, broken_by(in_pieces))
    with pytest.raises(stop):
        decode(SimpleNamespace(read=lambda *_: in_pieces(), seek=lambda *_: 0, tell=lambda: 0))
    assert capsys.readouterr().err == ""


def broken_by(task: Callable[[], None]) -> Exception:
    """The error that a task ends with."""
    with pytest.raises(AttributeError) as ended:
        task()
    return ended.value


def test_a_training_that_diverged_is_a_result_of_its_own_kind():
    session = Session()
    session.complain("the loss was nan", diverged=True)
    assert session.exit_code() == 4
    session.complain("and something failed")
    assert session.exit_code() == 1


@pytest.mark.parametrize("code", [0, 1, 4, 75])
def test_a_command_ends_the_process_with_its_session_s_code(code, monkeypatch):
    def command(arguments: list[str]) -> None:
        assert arguments == ["x=1"], "the command's own arguments, without its name"
        if code == 1:
            session.complain("a line")
        elif code == 4:
            session.complain("a loss of nan", diverged=True)
        elif code == 75:
            session.unfinished.append("the rest")

    monkeypatch.setattr(cli, "import_module", lambda name: SimpleNamespace(main=command))
    monkeypatch.setattr(sys, "argv", ["benchmarks", "run", "x=1"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == code


CHANGES = {"append", "extend", "insert", "add", "update", "setdefault", "pop", "clear", "remove"}


def module_state(tree: ast.Module) -> list[str]:
    """What of a module is state of the process: `global`, and containers that functions change."""
    names = set()
    for statement in tree.body:
        if isinstance(statement, ast.Assign | ast.AnnAssign):
            places = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
            names |= {place.id for place in places if isinstance(place, ast.Name)}
    state = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Global):
            state += node.names
        changed = None
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            changed = node.func.value if node.func.attr in CHANGES else None
        elif isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Store | ast.Del):
            changed = node.value
        if isinstance(changed, ast.Name) and changed.id in names:
            state.append(changed.id)
    return state


def test_only_the_session_remembers_anything():
    """A second cell of a sweep must not depend on what the first left in a module."""
    kept = {}
    for package in ("benchmarks", "models", "metrics"):
        for path in sorted((ROOT / package).rglob("*.py")):
            if state := module_state(ast.parse(path.read_text(encoding="utf-8"))):
                kept[path.relative_to(ROOT).as_posix()] = state
    assert kept == {}
    assert module_state(ast.parse("A = {}\ndef f():\n    A['x'] = 1\n    A.clear()")) == ["A", "A"]


def test_the_same_line_is_said_once(capsys):
    session = Session()
    for _ in range(3):
        session.complain("a")
        session.print_once("b")
    caught = capsys.readouterr()
    assert caught.err == "latentbench: a\n" and caught.out == "b\n"


def test_no_meaning_of_a_column_is_its_name_again():
    for column in COLUMNS:
        words = column.name.replace("_", " ")
        assert column.meaning.lower() not in (words, f"the {words}") and len(column.meaning) > 10


def test_the_page_of_columns_is_the_table_in_code():
    assert (ROOT / "docs" / "columns.md").read_text(encoding="utf-8") == as_page()


# --- make

TOLD = "#!/bin/sh\nprintf '%s\\n' \"$@\"\n"


@pytest.mark.parametrize("name", ["a b", "a$b", "$(touch x)", "a`touch x`", "it's", 'a"b', "é"])
def test_make_hands_on_the_name_of_a_folder_as_it_is(tmp_path, name):
    python, makefile = tmp_path / "python", tmp_path / "Makefile"
    python.write_text(TOLD)
    python.chmod(0o755)
    text = (ROOT / "Makefile").read_text()
    text = re.sub("^PY := .*$", f"PY := {python}", text, flags=re.MULTILINE)
    text = re.sub("^READY := .*$", "READY := .ready", text, flags=re.MULTILINE)
    makefile.write_text(re.sub(r"^\$\(READY\):.*$", "$(READY):", text, flags=re.MULTILINE))
    (tmp_path / ".ready").touch()
    for words, expected in (
        (["score", f"IMAGES={name}", "REFERENCE=r"], ["score", name, "r"]),
        (["compare", f"A={name}", f"B={name}"], ["compare", name, name]),
        (["reference", f"DATA={name}"], ["reference", "--data", name]),
    ):
        call = ["make", "--silent", *words]
        # `make test ARGS=...` hands its own words down
        own = {key: value for key, value in os.environ.items() if key not in ("ARGS", "MAKEFLAGS")}
        done = subprocess.run(call, cwd=tmp_path, env=own, capture_output=True, text=True)
        assert done.stdout.splitlines() == ["-m", "benchmarks", *expected], done.stderr
    assert not (tmp_path / "x").exists(), "nothing in a name is run"


def test_a_command_ends_silently_where_nobody_reads_what_it_prints():
    """As `head` does after a few lines: the exit code is that of SIGPIPE, as a shell counts it."""
    reading, writing = os.pipe()
    os.close(reading)
    call = [sys.executable, "-m", "benchmarks", "--help"]
    done = subprocess.run(call, stdout=writing, stderr=subprocess.PIPE, cwd=ROOT)
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, b"")


def test_a_setting_of_another_model_than_the_default_asks_for_that_model():
    """A preset that sweeps over `ar_block` does not help: Hydra reads the setting before."""
    ended = command("run", "experiment=blocks", "model.block=4")
    assert (ended.code, ended.err) == (
        1,
        "latentbench: model.block: the model of this command line has no such setting; "
        "give model= as well, of ar, ar_block\n",
    )
    assert "no such setting" not in command("run", "model.blok=4").err, "no model has it"


def test_models_are_found_by_their_settings():
    """With those of the file that they begin with."""
    said = model_settings()
    assert [name for name in said if "block" in said[name]] == ["ar", "ar_block"]
    assert "width" in said["ar_block"] and "denoiser.patch" in said["dit_flowmap"]


@pytest.mark.parametrize("lost", ["stdout", "stderr", ""])
def test_only_output_that_nobody_reads_is_taken_for_it(lost, monkeypatch):
    """A broken pipe to another process, of a compiler say, is an error like any other."""
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "wb", 0) as nobody:
        if lost:
            monkeypatch.setattr(sys, lost, nobody)
        with pytest.raises(NobodyReads) if lost else nullcontext():
            raise_if_stopped(BrokenPipeError(32, "Broken pipe"))


def test_a_command_without_any_output_ends_well(monkeypatch):
    """As in `command >&-`."""
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "argv", ["benchmarks", "--help"])
    monkeypatch.setattr(cli, "listen", lambda: None)
    cli.main()
