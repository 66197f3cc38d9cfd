"""What a bench will make of this machine and of a folder of images, before it begins."""

from pathlib import Path

import pytest
from benches import TINY, command, run
from test_data import folder_config
from test_folders import make, write_image

from benchmarks.core import machine
from benchmarks.images import inspect
from benchmarks.images.inspect import inspect_images


def found(root: Path, **sizes: int) -> dict[str, machine.Finding]:
    """The findings on a folder by their topics."""
    cfg = folder_config(root, reference_images=sizes.pop("reference", 2))
    findings = inspect_images(cfg, num_samples=sizes.pop("holdout", 2))
    return {finding.topic: finding for finding in findings}


@pytest.fixture
def root(tmp_path):
    """Two classes, four training and two held-out images each."""
    names = [f"train/{name}/{i}.png" for name in ("ant", "bee") for i in range(4)]
    names += [f"val/{name}/{i}.png" for name in ("ant", "bee") for i in range(2)]
    return make(tmp_path / "pics", *names)


def test_a_healthy_folder_has_nothing_bad(root):
    findings = found(root)
    assert not any(finding.bad for finding in findings.values())
    assert findings["images"].found == "2 classes; 2 holdout, 2 reference, 8 train"
    assert findings["images"].consequence == "none is set aside from training"
    assert findings["sizes"].found == "of 12 images looked at: 16x16 (12)"


def test_a_file_that_may_not_be_read_takes_no_finding_with_it(root, monkeypatch):
    usual = inspect._content

    def content(path: Path, most: int = -1) -> bytes:
        if path.name == "3.png":
            raise PermissionError(13, "Permission denied", str(path))
        return usual(path, most)

    monkeypatch.setattr(inspect, "_content", content)
    assert {"images", "sizes", "twice"} <= found(root).keys()


def test_what_is_short_broken_or_there_twice_is_said(root):
    short = found(root, holdout=4)
    assert "some of holdout are set aside" in short["images"].consequence
    assert short["held out"].bad and "of 4 holdout images 0 are from it" in short["held out"].found
    starved = found(root, holdout=40)["images"]
    assert starved.bad and "too few for data.reference_images=2" in starved.found
    (root / "train" / "ant" / "0.png").write_bytes(b"no image")
    (root / "val" / "bee" / "0.png").write_bytes((root / "train" / "bee" / "1.png").read_bytes())
    write_image(root / "train" / "ant" / ".hidden" / "x.png")
    findings = found(root)
    assert findings["unreadable"].bad and "train/ant/0.png" in findings["unreadable"].found
    assert findings["twice"].bad and "train/bee/1.png = val/bee/0.png" in findings["twice"].found
    assert findings["left out"].found == "1 hidden (.hidden)"


def test_twins_of_a_class_are_bad_where_images_are_set_aside_from_training(tmp_path):
    """One may be trained on, the other held out."""
    folder = make(tmp_path, *(f"{name}/{i}.png" for name in ("ant", "bee") for i in range(6)))
    assert not found(folder)["twice"].bad
    (folder / "ant" / "copy.png").write_bytes((folder / "ant" / "0.png").read_bytes())
    assert found(folder)["twice"].bad


def test_a_reference_of_training_images_takes_none_of_them_away(root):
    cfg = folder_config(root, reference_images=8, reference_from="train")
    findings = {one.topic: one for one in inspect_images(cfg, num_samples=4)}
    assert not findings["images"].bad and "8 train" in findings["images"].found


def test_doctor_ends_with_one_line_where_a_bench_would_fail(tmp_path):
    (tmp_path / "empty").mkdir()
    sweep = ("-m", "seed=0,1")  # as a preset is: its cells have one machine
    ended = command("doctor", *sweep, "data=imagefolder", f"data.path={tmp_path / 'empty'}")
    assert ended.out.count(" device ") == 1
    assert ended.code == 1 and "! images" in ended.out and "no class folders" in ended.out
    assert "preset cpu" in ended.out  # it looks for as many images as a bench would
    (line,) = ended.err.splitlines()
    assert "images" in line and line.startswith("latentbench: look at: ")


def test_a_bench_begins_with_the_three_lines_that_matter_most(tmp_path):
    ended = run(tmp_path, "experiment=smoke", *TINY, "model=dit", "train.budget=1", "steps=[1]")
    topics = [line[2:].split()[0] for line in ended.out.splitlines()[:3]]
    assert ended.code == 0 and topics == ["device", "disk", "code"]


def test_a_folder_that_cannot_be_written_is_bad(tmp_path, monkeypatch):
    monkeypatch.setattr("os.access", lambda path, mode: path != tmp_path / "results")
    (tmp_path / "results").mkdir()
    finding = machine.disk(tmp_path / "cache", tmp_path / "results" / "x")
    assert finding.bad and "results_dir=" in finding.found
