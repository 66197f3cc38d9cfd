"""Images from every source into disjoint and deterministic splits; bad input in one clear line."""

import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from benchmarks.core.errors import BadInput
from benchmarks.core.session import session
from benchmarks.images import dataset as dataset_module
from benchmarks.images import splits, stored
from benchmarks.images.dataset import load_dataset, remarks
from benchmarks.images.decode import to_pixels
from benchmarks.images.stored import Dataset, Split


class Config(SimpleNamespace):
    """What `load_dataset` reads of a data configuration."""

    def get(self, key, default=None):
        return getattr(self, key, default)


def folder_config(root, **changes) -> Config:
    defaults = dict(
        source="imagefolder",
        name="imagefolder",
        path=str(root),
        classes=None,
        images_per_class=None,
        image_size=32,
        reference_images=6,
    )
    return Config(**(defaults | changes))


def hub_config(root, **changes) -> Config:
    return folder_config(root, source="hub", name="mine", config=None, **changes)


def procedural_config() -> Config:
    return Config(
        source="procedural",
        name="procedural",
        image_size=32,
        train_images=100,
        reference_images=50,
        seed=0,
    )


def random_image(seed: int, side: int = 40) -> Image.Image:
    shape = (side, side + 6, 3)
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8))


@pytest.fixture
def root(tmp_path):
    """Three classes, ten training and three validation images each."""
    for k, name in enumerate(("ant", "bee", "cow")):
        for split, count, first in (("train", 10, 0), ("val", 3, 100)):
            folder = tmp_path / "pics" / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                random_image(1000 * k + i + first).save(folder / f"{i}.png")
    return tmp_path / "pics"


def contents(split: Split) -> list[bytes]:
    return [image.tobytes() for image in split[:]]


def sizes(dataset: Dataset) -> tuple[int, int, int]:
    return len(dataset.train), len(dataset.reference), len(dataset.holdout)


def all_contents(dataset: Dataset) -> list[bytes]:
    return contents(dataset.train) + contents(dataset.reference) + contents(dataset.holdout)


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:60])


# --- procedural


def test_procedural_splits_share_no_image(tmp_path):
    dataset = load_dataset(procedural_config(), num_samples=30, cache=tmp_path)
    assert sizes(dataset) == (100, 50, 30)
    assert len(set(all_contents(dataset))) == 180
    assert dataset.holdout.labels.tolist() == [i % 10 for i in range(30)]


# --- image folders


def test_an_image_folder_is_split_without_overlap(root, tmp_path):
    dataset = load_dataset(folder_config(root), num_samples=6, cache=tmp_path / "cache")
    assert dataset.classes == ["ant", "bee", "cow"] and dataset.name == "pics"
    assert sizes(dataset) == (24, 6, 6)
    assert dataset.reference.labels.tolist() == [0, 1, 2, 0, 1, 2]
    assert dataset.holdout.labels.tolist() == [0, 1, 2, 0, 1, 2]
    assert len(set(all_contents(dataset))) == 36
    validation = {to_pixels(Image.open(p), 32).tobytes() for p in (root / "val").rglob("*.png")}
    assert set(contents(dataset.reference)) <= validation, "the val folder serves the reference"
    assert dataset.aside == ["holdout"], "which found too few left"
    (warning,) = remarks(dataset)
    assert "too small: of 6 holdout images 0 are from it" in warning
    small = load_dataset(folder_config(root, reference_images=3), num_samples=3, cache=tmp_path)
    assert (small.aside, remarks(small)) == ([], [])


def test_one_folder_without_a_validation_split_works_too(root, tmp_path):
    dataset = load_dataset(folder_config(root / "train"), num_samples=6, cache=tmp_path / "cache")
    assert sizes(dataset) == (18, 6, 6)
    assert len(set(all_contents(dataset))) == 30


def test_the_split_is_deterministic_and_cached(root, tmp_path, monkeypatch):
    first = load_dataset(folder_config(root), num_samples=6, cache=tmp_path / "a")
    second = load_dataset(folder_config(root), num_samples=6, cache=tmp_path / "b")
    assert first.key == second.key and contents(first.holdout) == contents(second.holdout)
    # only the cache can serve now
    monkeypatch.setattr(dataset_module, "_write_decoded", lambda *_, **__: pytest.fail("decoded"))
    assert load_dataset(folder_config(root), num_samples=6, cache=tmp_path / "a").key == first.key


def test_a_subset_of_classes_and_images(root, tmp_path):
    by_name = load_dataset(
        folder_config(root, classes=["cow", "ant"], reference_images=4),
        num_samples=2,
        cache=tmp_path,
    )
    assert by_name.classes == ["cow", "ant"] and set(by_name.train.labels) == {0, 1}
    by_count = load_dataset(
        folder_config(root, classes=2, images_per_class=4, reference_images=4),
        num_samples=2,
        cache=tmp_path,
    )
    assert by_count.classes == ["ant", "bee"]
    assert np.bincount(by_count.train.labels).tolist() == [4, 4]


def test_any_prefix_of_a_dealt_split_is_class_balanced():
    dealt = splits.round_robin([[1, 4, 7], [2, 5], [3, 6]])
    assert dealt.tolist() == [1, 2, 3, 4, 5, 6, 7]
    assert [splits.quota(8, 3, label) for label in range(3)] == [3, 3, 2]


def test_an_image_replaced_by_one_of_the_same_size_is_noticed_and_the_split_stays(root, tmp_path):
    # a fourth held-out ant: reference and hold-out then take all four
    other = root / "val" / "ant" / "other.bmp"
    Image.new("RGB", (40, 40), "red").save(other)
    first = load_dataset(folder_config(root), num_samples=6, cache=tmp_path / "cache")
    before = other.stat()
    Image.new("RGB", (40, 40), "blue").save(other)
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))  # as a copy that keeps dates
    second = load_dataset(folder_config(root), num_samples=6, cache=tmp_path / "cache")
    assert first.key != second.key and first.train_key == second.train_key


def test_the_training_split_s_key_does_not_change_with_the_others(tmp_path):
    few, many = (load_dataset(procedural_config(), num_samples=n, cache=tmp_path) for n in (20, 30))
    assert few.train_key == many.train_key and few.key != many.key


@pytest.mark.parametrize(
    "path, name",
    [
        (".", "pics"),
        ("..", "my data"),
        ("/", "images"),
        ("/x/y/", "y"),
        ("/" + "n" * 200, "n" * 100),
        ("/" + "猫" * 80, "猫" * 33),  # of three bytes each: a hundred at most
    ],
)
def test_results_are_named_after_the_folder(path, name, tmp_path, monkeypatch):
    (tmp_path / "my data" / "pics").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "my data" / "pics")
    assert dataset_module.name_of(path) == name


# --- bad input


@pytest.mark.parametrize(
    "changes, samples, message",
    [
        (dict(path="/nowhere/at/all"), 6, "data.path=/nowhere/at/all: no such folder"),
        (dict(path=None), 6, "data.path"),
        (dict(classes=9), 6, "data.classes=9"),
        (dict(classes=["dog"]), 6, "no class called 'dog'"),
        (dict(images_per_class=0), 6, "data.images_per_class=0"),
        (dict(reference_images=60), 6, "data.reference_images=60"),
        (dict(), 300, "num_samples=300"),
        (dict(reference_images=0), 6, "reference_images=0"),
        (dict(image_size=0), 6, "data.image_size=0"),
        (dict(source="nonsense"), 6, "data.source=nonsense"),
    ],
)
def test_bad_settings_are_named_in_one_line(root, tmp_path, changes, samples, message):
    with pytest.raises(BadInput) as error:
        load_dataset(folder_config(root, **changes), num_samples=samples, cache=tmp_path / "cache")
    assert message in str(error.value) and "\n" not in str(error.value)


def test_a_folder_without_images_and_a_class_without_images(root, tmp_path):
    (tmp_path / "empty" / "train" / "ant").mkdir(parents=True)
    with pytest.raises(BadInput, match="no images"):
        load_dataset(folder_config(tmp_path / "empty"), num_samples=6, cache=tmp_path / "cache")
    (root / "train" / "dog").mkdir()
    with pytest.raises(BadInput, match="class 'dog' has no training images"):
        load_dataset(folder_config(root), num_samples=6, cache=tmp_path / "cache")
    (tmp_path / "flat").mkdir()
    random_image(0).save(tmp_path / "flat" / "a.png")
    with pytest.raises(BadInput, match="no class folders"):
        load_dataset(folder_config(tmp_path / "flat"), num_samples=6, cache=tmp_path / "cache")


def test_too_many_unreadable_images_are_an_error(root, tmp_path):
    for path in sorted((root / "train").rglob("*.png"))[:3]:
        cut_short(path)
    with pytest.raises(BadInput, match=r"3 of 39 images are unreadable .*e\.g\. train/ant/0\.png"):
        load_dataset(folder_config(root), num_samples=6, cache=tmp_path / "cache")


def test_one_unreadable_image_in_many_is_skipped_and_reported(tmp_path, capsys):
    for name in ("ant", "bee"):
        (tmp_path / "pics" / name).mkdir(parents=True)
        for i in range(60):
            random_image(i, 8).save(tmp_path / "pics" / name / f"{i}.png")
    cut_short(tmp_path / "pics" / "bee" / "0.png")
    cfg = folder_config(tmp_path / "pics")
    dataset = load_dataset(cfg, num_samples=6, cache=tmp_path / "cache")
    assert len(dataset.skipped) == 1 and "bee/0.png" in dataset.skipped[0]
    assert len(dataset.train) == 120 - 6 - 6 - 1
    assert "1 unreadable image(s) skipped" in capsys.readouterr().out


def test_an_image_that_is_in_two_splits_is_found_by_content_and_said(root, tmp_path, capsys):
    for path in (root / "train" / "cow").iterdir():  # wherever these go, the reference has one
        path.write_bytes((root / "val" / "cow" / "0.png").read_bytes())
        (root / "val" / "cow" / path.name).write_bytes(path.read_bytes())
    dataset = load_dataset(folder_config(root), num_samples=6, cache=tmp_path / "cache")
    first, second, third, _ = dataset.repeated
    assert first.startswith("2 of 6 reference images are in train too, e.g. val/cow/")
    assert second.startswith("2 of 6 holdout images are in train too")
    assert third.startswith("2 of 6 holdout images are in reference too")
    assert f"WARNING: {first}" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["pixels.npy", "train.npy", "labels.npy", "meta.json"])
def test_a_cut_short_cache_is_rebuilt(root, tmp_path, name):
    first = load_dataset(folder_config(root), num_samples=6, cache=tmp_path / "cache")
    expected = contents(first.reference)
    path = next((tmp_path / "cache" / "data").glob(f"*/{name}"))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    again = load_dataset(folder_config(root), num_samples=6, cache=tmp_path / "cache")
    assert again.key == first.key and contents(again.reference) == expected


def test_pixels_are_read_whole_once_until_they_change(root, tmp_path, monkeypatch):
    """Not once a process: ImageNet's are 250 GB at 256 px."""
    read, original = [], stored.fingerprints
    monkeypatch.setattr(stored, "fingerprints", lambda folder: read.append(1) or original(folder))

    def load() -> Dataset:
        session.checked.clear()  # as another process begins
        return load_dataset(folder_config(root), num_samples=6, cache=tmp_path / "cache")

    first = load()
    assert load().key == first.key and len(read) == 1, "the first one, after it wrote them"
    path = next((tmp_path / "cache" / "data").glob("*/pixels.npy"))
    path.write_bytes(path.read_bytes())
    load()
    assert len(read) == 2, "the same bytes, but something wrote to the file"


def test_two_runs_begun_together_make_the_data_once(root, tmp_path, monkeypatch):
    written, write = [], dataset_module._write_decoded

    def write_slowly(folder, **rest):
        written.append(folder)
        time.sleep(0.3)
        return write(folder, **rest)

    def load(_) -> Dataset:
        return load_dataset(folder_config(root), num_samples=3, cache=tmp_path / "cache")

    monkeypatch.setattr(dataset_module, "_write_decoded", write_slowly)
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(load, range(2))
    assert len(written) == 1 and first.key == second.key
    assert contents(first.train) == contents(second.train)


def test_a_reference_of_training_images_is_balanced_and_they_stay_training_images(root, tmp_path):
    """As ADM's protocol has it; the folder's held-out images then serve the hold-out alone."""
    plain = load_dataset(folder_config(root, reference_images=3), num_samples=6, cache=tmp_path)
    own = folder_config(root, reference_images=12, reference_from="train")
    data = load_dataset(own, num_samples=6, cache=tmp_path)
    assert data.reference.labels.tolist() == [0, 1, 2] * 4 and data.key != plain.key
    rows = set(data.train.index.tolist())
    assert set(data.reference.index.tolist()) <= rows and len(set(data.reference.index)) == 12
    assert [label_of(data.train, row) for row in data.reference.index] == [0, 1, 2] * 4
    assert len(data.train) == 30 and not rows & set(data.holdout.index.tolist())
    assert data.repeated[-1].startswith("the 12 reference images are training images")
    with pytest.raises(BadInput, match="class 'ant' has only 10 training images; lower it"):
        load_dataset(
            folder_config(root, reference_images=33, reference_from="train"),
            num_samples=6,
            cache=tmp_path,
        )


def label_of(split: Split, row: int) -> int:
    """The label of an image that a split has, by its row in the pixels."""
    return int(split.labels[split.index == row][0])
