"""Images from and to other tools."""

import io
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from benchmarks.commands.score_images import read_shuffled
from benchmarks.core.errors import BadInput
from benchmarks.core.setting_types import EXPORT_KINDS
from benchmarks.images import decode_all, import_export
from benchmarks.images.procedural import generate

IMAGES, LABELS = generate(48, 32, seed=0, stream="holdout")


def png(image: np.ndarray) -> bytes:
    """An image (3, H, W) as a PNG file."""
    file = io.BytesIO()
    Image.fromarray(image.transpose(1, 2, 0)).save(file, format="PNG")
    return file.getvalue()


def folder_of(path: Path, files: list[bytes]) -> Path:
    """A folder of PNG files."""
    path.mkdir()
    for i, file in enumerate(files):
        (path / f"{i:03d}.png").write_bytes(file)
    return path


@pytest.mark.parametrize("kind", EXPORT_KINDS)
def test_what_is_written_is_read_back_the_same(kind, tmp_path):
    path = import_export.write(IMAGES, LABELS, tmp_path / "set", kind)
    images, labels = import_export.read(path, "IMAGES")
    assert np.array_equal(images, IMAGES)
    assert labels is None if kind == "png" else np.array_equal(labels, LABELS)


def test_many_images_are_decoded_by_processes_and_are_the_same(tmp_path, monkeypatch, capsys):
    pytest.importorskip("pyarrow")
    monkeypatch.setattr(decode_all, "MANY", 8)
    monkeypatch.setattr(decode_all, "own_cores", lambda: {0, 1})
    started, loader = [], decode_all.DataLoader
    monkeypatch.setattr(
        decode_all,
        "DataLoader",
        lambda *args, **options: started.append(options["num_workers"]) or loader(*args, **options),
    )
    files = [png(image) for image in IMAGES]
    folder = folder_of(tmp_path / "set", files)
    cells = [{"bytes": file, "path": None} for file in files]
    pd.DataFrame({"image": cells}).to_parquet(tmp_path / "set.parquet")
    for path in (folder, tmp_path / "set.parquet"):
        assert np.array_equal(import_export.read(path, "IMAGES")[0], IMAGES)
        assert import_export.read(path, "IMAGES", 16)[0].shape == (48, 3, 16, 16)
        assert "of 1 size(s), 32x32 to 32x32, brought to 16x16" in capsys.readouterr().out
        assert import_export.read(path, "IMAGES", 40)[0].shape == (48, 3, 40, 40)
        assert "; 48 of them were smaller, and are blurred" in capsys.readouterr().out
    assert started == [2] * 6


def test_an_npz_is_in_adm_s_layout(tmp_path):
    path = import_export.write(IMAGES, LABELS, tmp_path / "set", "npz")
    with np.load(path, allow_pickle=False) as file:
        assert file["arr_0"].shape == (48, 32, 32, 3) and file["arr_0"].dtype == np.uint8
        assert file["arr_1"].tolist() == LABELS.tolist()


def test_parquet_in_the_hub_s_layout_is_read(tmp_path):
    pytest.importorskip("pyarrow")
    cells = [{"bytes": png(image), "path": None} for image in IMAGES]
    pd.DataFrame({"image": cells, "label": LABELS}).to_parquet(tmp_path / "set.parquet")
    images, labels = import_export.read(tmp_path / "set.parquet", "IMAGES")
    assert np.array_equal(images, IMAGES) and np.array_equal(labels, LABELS)


FILES = [png(image) for image in IMAGES[:10]]
BAD_FOLDERS = {
    "no images": [],
    "1 image": FILES[:1],
    "5 image": FILES[:5],
    "2 sizes": [*FILES, png(IMAGES[0][:, :16, :16])],
    "1 of 11": [*FILES, FILES[0][:90]],
}


@pytest.mark.parametrize("said", BAD_FOLDERS)
def test_a_folder_that_cannot_be_scored_gets_one_line(said, tmp_path):
    with pytest.raises(BadInput, match=said) as error:
        read_shuffled(folder_of(tmp_path / "x", BAD_FOLDERS[said]), "IMAGES")
    assert "\n" not in str(error.value) and "IMAGES=" in str(error.value)


PIXELS = IMAGES.transpose(0, 2, 3, 1)
BAD_ARRAYS = {
    "float32": {"arr_0": PIXELS.astype(np.float32)},
    "no arr_0": {"images": IMAGES},
    "not a whole npz": {"arr_0": np.array([{"a": 1}], dtype=object)},  # would be unpickled
    "arr_1": {"arr_0": PIXELS, "arr_1": LABELS[:3]},
    "labels -1 to": {"arr_0": PIXELS, "arr_1": LABELS - LABELS.min() - 1},
    "labels .* to 1000000000000": {"arr_0": PIXELS, "arr_1": LABELS * 0 + 10**12},
}


@pytest.mark.parametrize("said", BAD_ARRAYS)
def test_an_npz_that_cannot_be_scored_gets_one_line(said, tmp_path):
    np.savez(tmp_path / "x.npz", **BAD_ARRAYS[said])
    with pytest.raises(BadInput, match=said) as error:
        read_shuffled(tmp_path / "x.npz", "IMAGES")
    assert "\n" not in str(error.value) and "IMAGES=" in str(error.value)


def test_a_file_that_is_cut_short_or_absent_gets_one_line(tmp_path):
    whole = import_export.write(IMAGES, LABELS, tmp_path / "y", "npz").read_bytes()
    (tmp_path / "x.npz").write_bytes(whole[:500])
    with pytest.raises(BadInput, match="not a whole npz"):
        read_shuffled(tmp_path / "x.npz", "IMAGES")
    with pytest.raises(BadInput, match="no such file"):
        read_shuffled(tmp_path / "absent.npz", "IMAGES")
