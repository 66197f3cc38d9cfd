"""Images in parquet files, in the hub's format."""

import os
from functools import partial

import pytest
from PIL import Image
from test_data import contents, hub_config, random_image, sizes

from benchmarks.core.errors import BadInput
from benchmarks.images import hub
from benchmarks.images.dataset import load_dataset
from benchmarks.images.decode import decode, to_pixels

# --- parquet and the hub


@pytest.fixture
def parquet(tmp_path):
    """Two classes in the hub's format, 20 training and 8 validation images."""
    datasets = pytest.importorskip("datasets")
    label = datasets.ClassLabel(names=["ant", "bee"])
    features = datasets.Features({"image": datasets.Image(), "label": label})
    folder = tmp_path / "hub" / "data"
    folder.mkdir(parents=True)
    for split, count, first in (("train", 20, 0), ("validation", 8, 50)):
        images = [random_image(i + first) for i in range(count)]
        rows = {"image": images, "label": [i % 2 for i in range(count)]}
        table = datasets.Dataset.from_dict(rows, features=features)
        table.to_parquet(folder / f"{split}-00000-of-00001.parquet")
    return tmp_path / "hub"


def validation_contents() -> set[bytes]:
    return {to_pixels(random_image(i + 50), 32).tobytes() for i in range(8)}


def test_a_local_parquet_folder_in_the_hub_s_format(parquet, tmp_path):
    cfg = hub_config(parquet, held_out="validation", reference_images=8)
    dataset = load_dataset(cfg, num_samples=4, cache=tmp_path / "cache")
    assert dataset.classes == ["ant", "bee"] and dataset.name == "mine"
    assert sizes(dataset) == (16, 8, 4)
    assert set(contents(dataset.reference)) == validation_contents()


@pytest.mark.parametrize("linked", [False, True])
def test_rewritten_parquet_files_of_the_same_date_are_noticed(parquet, tmp_path, linked):
    if linked:  # to a folder that lies elsewhere, which `datasets` reads too
        elsewhere = tmp_path / "elsewhere"
        (parquet / "data").rename(elsewhere)
        (parquet / "data").symlink_to(elsewhere)
    cfg = hub_config(parquet, held_out="validation", reference_images=8)
    list_hub = partial(hub.list_hub, config=None, held_out="validation")
    first = list_hub(cfg.path)[1]
    path = next(parquet.glob("data/validation-*.parquet"))
    before = path.stat()
    seen = decode(first[-1].file(), 32)
    white = [Image.new("RGB", (46, 40), "white") for _ in range(8)]
    datasets = pytest.importorskip("datasets")
    whole = datasets.load_dataset("parquet", data_files=str(path), split="train")
    rows = {"image": white, "label": whole["label"]}
    datasets.Dataset.from_dict(rows, features=whole.features).to_parquet(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    second = list_hub(cfg.path)[1]
    assert {entry.stamp for entry in first}.isdisjoint(entry.stamp for entry in second)
    assert decode(second[-1].file(), 32).min() == 255 and seen.min() < 255


@pytest.mark.parametrize("kind", ["ClassLabel", "string"])
def test_class_names_are_one_line_each(tmp_path, kind):
    datasets = pytest.importorskip("datasets")
    (tmp_path / "hub").mkdir()
    names = ["a\nb", "c\x1b[2J"]
    rows = {"image": [random_image(i) for i in range(2)], "label": names}
    table = datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image())
    if kind == "ClassLabel":
        table = table.cast_column("label", datasets.ClassLabel(names=names))
    table.to_parquet(tmp_path / "hub" / "train-00000-of-00001.parquet")
    classes, _ = hub.list_hub(str(tmp_path / "hub"), config=None, held_out=None)
    assert classes == [r"a\nb", r"c\x1b[2J"]


@pytest.mark.parametrize("labels", [[0, -1], [0, None], [0.5, 1.0]])
def test_labels_that_name_no_class_are_refused(tmp_path, labels):
    datasets = pytest.importorskip("datasets")
    (tmp_path / "hub").mkdir()
    rows = {"image": [random_image(i) for i in range(2)], "label": labels}
    table = datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image())
    table.to_parquet(tmp_path / "hub" / "train-00000-of-00001.parquet")
    with pytest.raises(BadInput, match=r"label .* names no class"):
        hub.list_hub(str(tmp_path / "hub"), config=None, held_out=None)


def test_a_held_out_split_of_another_name_is_taken_and_named(parquet, tmp_path, capsys):
    cfg = hub_config(parquet, held_out="valid", reference_images=8)
    dataset = load_dataset(cfg, num_samples=4, cache=tmp_path / "cache")
    assert set(contents(dataset.reference)) == validation_contents()
    assert "data.held_out=valid" in capsys.readouterr().out


def test_a_split_called_test_is_held_out_where_there_is_no_other(capsys):
    assert hub._pick_splits(["train", "test"], None) == ["train", "test"]
    assert "images are held out of test" in capsys.readouterr().out
    assert hub._pick_splits(["train", "test", "validation"], "validation")[1] == "validation"


def test_a_hub_name_without_network_is_one_line(tmp_path, monkeypatch):
    pytest.importorskip("datasets")
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    cfg = hub_config("no-such-owner/no-such-data", held_out="valid")
    with pytest.raises(BadInput) as error:
        load_dataset(cfg, num_samples=4, cache=tmp_path)
    message = str(error.value)
    assert "data.path=no-such-owner/no-such-data" in message and "\n" not in message
    assert "download" in message
