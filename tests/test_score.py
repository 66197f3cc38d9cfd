"""Images made elsewhere, scored as a user scores them."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from test_import_export import IMAGES, LABELS, folder_of, png

from benchmarks.commands import score_images
from benchmarks.core.session import session
from benchmarks.images import import_export
from benchmarks.images.decode import to_pixels
from benchmarks.images.procedural import generate
from benchmarks.stages.score import balanced_alike

SMALL = ["data.train_images=200", "data.reference_images=60", "data.image_size=32"]


def score(*arguments: object, places: Path) -> None:
    # the other judge is slow, and scored in the smoke bench
    where = ["features=local", f"results_dir={places}/results", f"cache_dir={places}/cache"]
    score_images.main([*map(str, arguments), *where])


@pytest.fixture
def samples(tmp_path) -> Path:
    """An npz of the procedural hold-out's first images, with their labels."""
    return import_export.write(IMAGES, LABELS, tmp_path / "set", "npz")


@pytest.fixture
def unlabelled(tmp_path) -> Path:
    """A flat folder of as many images of another seed."""
    images = generate(48, 32, seed=3, stream="holdout")[0]
    return folder_of(tmp_path / "pngs", [png(image) for image in images])


def last_line(capsys) -> tuple[str, dict]:
    out = capsys.readouterr().out
    return out, json.loads(out.splitlines()[-1])


def test_a_folder_against_an_npz(samples, unlabelled, tmp_path, capsys):
    score(unlabelled, samples, places=tmp_path)
    out, line = last_line(capsys)
    wanted = {"fd", "fd_std", "kid", "kid_stderr", "precision", "fd_floor_analytic"}
    assert set(line) >= wanted and line["num_samples"] == 48
    assert "mostly bias" in out.splitlines()[0], "the warning stands in the table"
    assert session.exit_code() == 0


def test_samples_against_a_data_set_of_which_they_are_the_hold_out(samples, tmp_path, capsys):
    score(samples, "procedural", *SMALL, places=tmp_path)
    out, line = last_line(capsys)
    assert line["label_accuracy"] > 0.5 and line["fd"] == pytest.approx(line["fd_floor_real"])
    assert line["train_images_searched"] == 200 and line["memorised_fraction"] <= 0.05
    assert "kid_per_class" not in line and "loors are of" not in out


def test_floors_of_fewer_or_unbalanced_images_are_said_to_be(unlabelled, tmp_path, capsys):
    score(unlabelled, "procedural", *SMALL, "num_samples=20", places=tmp_path)
    out, line = last_line(capsys)
    assert "Floors are of 20 real images, the scores of 48" in out
    assert "class-balanced images, which these are not known to be" in out
    assert line["num_samples"] == 48


@pytest.mark.parametrize(
    "reference, said", [("imagenette", "data.image_size"), ("wide.npz", "say image_size")]
)
def test_a_reference_that_does_not_fit_gets_one_line(reference, said, samples, tmp_path, capsys):
    wide = np.zeros((9, 3, 64, 32), np.uint8)
    import_export.write(wide, np.zeros(9, int), tmp_path / "wide", "npz")
    file = tmp_path / reference
    score(samples, file if file.exists() else reference, places=tmp_path)
    lines = capsys.readouterr().err.splitlines()
    assert session.exit_code() == 1 and len(lines) == 1 and said in lines[0]


def test_a_reference_that_is_nothing_gets_one_line(samples, tmp_path):
    with pytest.raises(SystemExit, match="neither a file"):
        score(samples, "no/such/thing", places=tmp_path)


def test_only_sets_of_equal_fractions_of_every_class_count_as_balanced():
    even, other = torch.arange(52) % 5, torch.arange(100) % 5
    assert balanced_alike(even, other)
    assert not balanced_alike(torch.zeros(52, dtype=torch.long), other)
    assert not balanced_alike(None, other) and not balanced_alike(even, None)


def test_images_of_many_sizes_are_brought_to_one_and_that_is_said(samples, tmp_path, capsys):
    """Sides of 32 and 64 pixels; the right pixels are those of the data set's own way to a size."""
    large = generate(10, 64, seed=3, stream="holdout")[0]
    mixed = folder_of(tmp_path / "pngs", [png(image) for image in (*IMAGES[:20], *large)])
    score(mixed, samples, "image_size=16", places=tmp_path)
    out, line = last_line(capsys)
    assert line["resized"] and line["image_size"] == 16 and line["num_samples"] == 30
    said = "IMAGES: 30 images of 2 size(s), 32x32 to 64x64, brought to 16x16"
    assert said in out and "REFERENCE: 48 images of 1 size(s), 32x32 to 32x32" in out
    images, _ = import_export.read(mixed, "IMAGES", 16)
    wanted = to_pixels(Image.fromarray(large[0].transpose(1, 2, 0)), 16)
    assert np.array_equal(images[20], wanted)


@pytest.mark.parametrize("size", ["0", "big", "5.5", "-8", "100000"])
def test_a_size_that_no_image_can_have_is_one_line(size, samples, tmp_path):
    with pytest.raises(SystemExit) as stopped:
        score(samples, samples, f"image_size={size}", places=tmp_path)
    assert str(stopped.value).startswith(f"latentbench: image_size={size}: a whole number")
