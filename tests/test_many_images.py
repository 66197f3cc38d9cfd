"""Training on many images takes the memory of training on few: its measurement in miniature."""

import pandas as pd
import pytest

from benchmarks.perf import many_images


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
