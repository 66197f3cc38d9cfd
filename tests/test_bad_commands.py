"""What a user may get wrong on the command line of any command: one line says what it was, and the
exit code is not 0.
"""

import json
from pathlib import Path

import numpy as np
import pytest
from benches import command

from benchmarks.core import cli
from benchmarks.core.errors import BadInput
from benchmarks.core.session import Session

IMAGES = np.random.default_rng(0).integers(0, 255, (12, 16, 16, 3), dtype=np.uint8)
ROW = {"run_id": "a", "status": "ok", "model": "dit", "fd": 1.0}
# what may lie where records are looked for, by the folder's name
RECORDS = {
    "null": "null",
    "list": "[1]",
    "rowless": "{}",
    "row-list": '{"row": [1]}',
    "row-null": '{"row": null}',
    "row-empty": '{"row": {}}',
    "cut": '{"row": {',
    "half": json.dumps({"row": ROW}),
}
PATHS = ["nowhere", "file", "empty", "", "~of-nobody/x"]


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with files and folders that are not what a command wants."""
    folder = tmp_path_factory.mktemp("place")
    (folder / "file").write_text("x")
    (folder / "x.tar").write_text("x")
    (folder / "empty").mkdir()
    (folder / "classes" / "train" / "a").mkdir(parents=True)
    (folder / "classes" / "train" / "a" / "1.png").write_text("no image")
    for name, text in RECORDS.items():
        (folder / name / "records").mkdir(parents=True)
        (folder / name / "records" / "a.json").write_text(text)
    (folder / "gathered").mkdir()
    (folder / "gathered" / "results.json").write_text("[]")
    np.savez(folder / "good.npz", arr_0=IMAGES)
    np.savez(folder / "floats.npz", arr_0=IMAGES.astype(float))
    np.savez(folder / "none.npz", arr_0=IMAGES[:0])
    np.savez(folder / "other.npz", x=IMAGES)
    np.savez(folder / "wide.npz", arr_0=IMAGES[:, :8])
    np.savez(folder / "labelled.npz", arr_0=IMAGES, arr_1=np.full(12, 99))
    (folder / "cut.npz").write_bytes(b"PK")
    return folder


REPORT = [["report", path] for path in [*PATHS, *RECORDS, "gathered"] if path != "half"]
REPORT += [["report"], ["report", "--nothing"], ["report", "half", "nowhere"]]
COMPARE = [["compare", "half", path] for path in [*PATHS, *RECORDS, "gathered"]]
COMPARE += [["compare"], ["compare", "half", "half", "half"], ["compare", "half", "--where-c"]]
COMPARE += [
    ["compare", "half", "--where-a", word, "--where-b", "model=dit"]
    for word in ("model", "=1", "model=", "", "nothing=1", "fd=nan", "model=a=b")
]
PUBLISH = [["publish", path, "target"] for path in [*PATHS, "row-list", "gathered", "half"]]
PUBLISH += [["publish"], ["publish", "half", ""], ["publish", "half", "t", "--figures", "a", "b"]]
SCORE = [["score", path, "good.npz", "features=local"] for path in PATHS]
SCORE += [["score", "good.npz", path, "features=local"] for path in PATHS]
SCORE += [
    ["score", f"{name}.npz", "good.npz", "features=local"]
    for name in ("floats", "none", "other", "wide", "cut")
]
SCORE += [
    ["score"],
    ["score", "good.npz"],
    ["score", "classes", "good.npz"],
    ["score", "good.npz", "good.npz", "seed=true"],
    ["score", "good.npz", "good.npz", "model=null"],
    ["score", "good.npz", "good.npz", "num_samples=0"],
    ["score", "good.npz", "good.npz", "num_samples=nan"],
    ["score", "good.npz", "good.npz", "results_dir=file"],
    ["score", "good.npz", "good.npz", "features=nothing"],
    ["score", "good.npz", "good.npz", "features=[]"],
    ["score", "good.npz", "good.npz", "nothing=1"],
    ["score", "good.npz", "good.npz", "nothing"],
    ["score", "good.npz", "procedural", "data.image_size=64", "features=local"],
    ["score", "good.npz", "imagefolder", "features=local"],
]
PERF = [
    ["perf", "--rehearse", *arguments]
    for arguments in (
        ["--size", "nothing"],
        ["--size", ""],
        ["--side", "0"],
        ["--side", "3"],
        ["--side", "x"],
        ["--batch", "0"],
        ["--batch", "1.5"],
        ["--stop-at", "nan"],
        ["--stop-at", "soon"],
        ["--out", "file"],
        ["--out", ""],
        ["x"],
    )
]
COST = [["cost", *arguments] for arguments in (["--out", "file"], ["--out", ""], ["x"])]
REFERENCE = [
    ["reference", *arguments]
    for arguments in (
        ["--minutes", "nan"],
        ["--minutes", "-1", "--list"],
        ["--minutes", ""],
        ["--only", "nothing", "--list"],
        ["--unpack", "nowhere"],
        ["--unpack", "file"],
        ["--unpack", ""],
        ["--data", "nowhere", "--only", "judge"],
        ["--data", "x.tar", "--only", "judge", "--cache", "cache"],
        ["--data", "empty", "--only", "judge"],
        ["--out", "file", "--only", "cost"],
        ["x"],
    )
]
FROZEN = [["train-frozen", path, "--out", "frozen", "--cache", "cache"] for path in PATHS]
FROZEN += [
    ["train-frozen", "classes", "--cache", "cache", "--out", "frozen", *arguments]
    for arguments in (
        [],
        ["--scale", "nan"],
        ["--scale", "0"],
        ["--held-out", "0"],
        ["--held-out", "x"],
        ["--only", "nothing"],
        ["--out", "file"],
    )
]
CONFIGURED = [
    [name, "features=local", "device=cpu", override]
    for name in ("study", "reconstruct", "probe", "doctor")
    for override in (
        "nothing",
        "nothing=1",
        "seed=x",
        "num_samples=nan",
        "data=nothing",
        "data=imagefolder",
        "data.image_size=30",
        "device=quantum",
        "cache_dir=file",
        "+sides=[0]",
        "model=null",
        "--nothing",
    )
]
LINES = [*REPORT, *COMPARE, *PUBLISH, *SCORE, *PERF, *COST, *REFERENCE, *FROZEN, *CONFIGURED]
LINES += [["nothing"], [""]]


@pytest.mark.parametrize("line", LINES, ids=" ".join)
def test_a_bad_command_line_gets_one_line_and_a_non_zero_exit(line, place, monkeypatch):
    monkeypatch.chdir(place)
    ended = command(*line)
    said = ended.err + (ended.code if isinstance(ended.code, str) else "")
    assert ended.code != 0 and "not foreseen" not in said and "Traceback" not in said
    lines = [line for line in said.splitlines() if line.strip()]
    assert len(lines) == 1 and lines[0].startswith("latentbench: "), said


def raising(error: Exception):
    def task() -> None:
        raise error

    return task


@pytest.mark.parametrize(
    "error, line",
    [
        (PermissionError(13, "Permission denied", "/x"), "/x: Permission denied"),
        (OSError(28, "No space left on device"), "a file: No space left on device; make room"),
        (MemoryError("Unable to allocate 7 GiB"), "not enough memory: Unable to allocate 7 GiB"),
        (ConnectionError("reset"), "ConnectionError: reset (not foreseen"),
    ],
)
def test_what_the_machine_lacks_is_said_in_one_line(error, line, capsys):
    session = Session()
    session.guard(raising(error))
    assert session.exit_code() == 1 and capsys.readouterr().err.startswith(f"latentbench: {line}")


def test_arguments_that_are_paths_and_numbers():
    assert cli.path("results/cpu/") == Path("results/cpu") and cli.whole("3") == 3
    assert cli.positive("2.5") == 2.5
    with pytest.raises(BadInput, match="a path is empty"):
        cli.path(" ")
