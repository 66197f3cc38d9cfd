"""Nothing that is brought is executed: not by loading it, not by showing it, not by naming it."""

import ast
import pickle
from pathlib import Path

import pytest
import torch
from conftest import tiny
from diffusers.training_utils import EMAModel
from test_diagnostics import record, summary_of

from benchmarks.core.store import ROOT
from benchmarks.core.text import in_cell, printable
from benchmarks.stages.checkpoint import Checkpoints

SOURCES = [
    path for room in ("benchmarks", "models", "metrics") for path in (ROOT / room).rglob("*.py")
]
# calls that run what they are given, whatever the arguments
NEVER = {"eval", "exec", "os.system", "os.popen", "pickle.load", "pickle.loads", "yaml.load"}
NEVER |= {"yaml.unsafe_load", "yaml.full_load", "subprocess.getoutput", "marshal.loads"}
# arguments that would make a call run what it is given
UNSAFE = {"shell": True, "trust_remote_code": True, "allow_pickle": True, "weights_only": False}


def calls(path: Path) -> list[tuple[str, ast.Call]]:
    """Every call of a file with the name of what is called, as it is written."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    return [(ast.unparse(node.func), node) for node in found]


def what_is_unsafe(name: str, call: ast.Call) -> str | None:
    """Why a call might run what it is given."""
    given = {word.arg: getattr(word.value, "value", None) for word in call.keywords}
    for word, value in UNSAFE.items():
        if word in given and given[word] is value:
            return f"{word}={value}"
    if name == "torch.load" and "weights_only" not in given:
        return "no weights_only"
    return name if name in NEVER else None


@pytest.mark.parametrize(
    "line, why",
    [
        ("yaml.load(text)", "yaml.load"),
        ("torch.load(path)", "no weights_only"),
        ("subprocess.run(word, shell=True)", "shell=True"),
        ("torch.load(path, weights_only=True)", None),
    ],
)
def test_an_unsafe_call_is_seen(line, why):
    call = ast.parse(line, mode="eval").body
    assert what_is_unsafe(ast.unparse(call.func), call) == why


def test_no_call_runs_what_a_file_or_a_user_brings():
    assert len(SOURCES) > 100
    for path in SOURCES:
        for name, call in calls(path):
            assert what_is_unsafe(name, call) is None, f"{path}, line {call.lineno}"


class Runs:
    """What a pickle of it does when it is loaded: it makes a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_a_checkpoint_that_would_run_code_is_not_loaded(tmp_path, capsys):
    made = tmp_path / "made"
    pickle.loads(pickle.dumps(Runs(made)))
    assert made.exists(), "else this test could not fail"
    made.unlink()
    torch.save({"key": Runs(made)}, tmp_path / "checkpoint.pt")
    model = tiny("dit")
    files = Checkpoints(tmp_path, "key", ())
    average = EMAModel(model.parameters())
    optimizer = torch.optim.AdamW(model.parameters())
    assert files.resume(model, average, optimizer, torch.device("cpu")).step == 0
    assert not made.exists() and "cannot be used" in capsys.readouterr().out


@pytest.mark.parametrize(
    "name, shown, lost",
    [
        ("<script>alert(1)</script>", "alert(1)", "<script"),
        ("[x](javascript:1)", "javascript:1", "](javascript"),
        ("$a_b$", "a_b", " $a_b$"),
        ("a\n# here", "# here", "\n# here"),
    ],
)
def test_names_are_shown_and_not_obeyed(tmp_path, no_figures, name, shown, lost):
    """A data set is called as its folder is."""
    made_up = record("dit", 9.0)
    made_up["row"]["data"] = name
    text = summary_of(tmp_path, [made_up])
    assert shown in text and lost not in text


@pytest.mark.parametrize(
    "text, cell", [("a|b", r"a\|b"), (r"a\|b", r"a\\\|b"), ("a\nb", "a b"), (r"a\b", r"a\b")]
)
def test_no_name_ends_a_cell_of_a_table(text, cell):
    assert in_cell(text) == cell


def test_control_characters_of_class_names_are_shown_as_escapes():
    assert printable("a\nb\x1b[2J") == r"a\nb\x1b[2J"
