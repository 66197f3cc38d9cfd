"""What is measured of many images, in miniature: that training takes the memory of training on few,
and what reading and encoding a folder takes.
"""

import pandas as pd
import pytest
from PIL import Image

from benchmarks.images import procedural
from benchmarks.perf import encoding, many_images


@pytest.mark.long
def test_a_training_on_more_images_takes_no_more_memory(tmp_path):
    """Of 300 and 9,000 images, which are two shards."""
    counts = ["--images", "300", "9000", "--steps", "2", "--turns", "1"]
    (tmp_path / "many").mkdir()
    (tmp_path / "many" / "mine").touch()
    many_images.main([*counts, "--shards", str(tmp_path / "many"), "--out", str(tmp_path)])
    table = pd.read_csv(tmp_path / "many_images.csv")
    assert table.images.tolist() == [300, 9000]
    assert table.peak_mib[1] < 1.05 * table.peak_mib[0]
    assert [path.name for path in (tmp_path / "many").iterdir()] == ["mine"]


def test_reading_and_encoding_a_folder_are_timed(tmp_path):
    images, labels = procedural.generate(120, 32, seed=0)
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        folder = tmp_path / "images" / f"class{label}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.transpose(1, 2, 0)).save(folder / f"{number}.png")
    options = ["--data", str(tmp_path / "images"), "--image-size", "32", "--out", str(tmp_path)]
    encoding.main([*options, "--reference", "20", "--cache", str(tmp_path / "cache")])
    table = pd.read_csv(tmp_path / "encoding.csv").set_index("stage")
    assert table.index.tolist() == ["read", "encode"] and (table.seconds > 0).all()
    assert table.images["read"] == 120 and 0 < table.images["encode"] < 240
    assert table.cores_busy.between(0, 1.1).all() and (table.peak_mib > 100).all()
    assert list((tmp_path / "cache").iterdir()) == [], "nothing of it is left"
