"""The commonest silent error with models trained elsewhere: their classes in another order."""

import pandas as pd
import pytest
from benches import TINY, run

SHAPES = ["model=pretrained", "model._target_=models_elsewhere.Shapes", "model.name=shapes"]


@pytest.mark.parametrize("first, warned", [(0, False), (1, True)])
def test_the_label_accuracy_tells_another_order_of_the_classes(tmp_path, first, warned):
    """The images are as good in both."""
    settings = ["data.image_size=32", "data.train_images=400", "data.reference_images=100"]
    settings += [
        "num_samples=100",
        "train.budget=2",
        "tune=none",
        "guidance=[1]",
        "steps=[1]",
        "name=x",
    ]
    ended = run(tmp_path, *TINY, *settings, *SHAPES, f"+model.first={first}")
    assert ended.code == 0, ended.err
    row = pd.read_csv(tmp_path / "results/x/results.csv").iloc[0]
    text = (tmp_path / "results/x/summary.md").read_text()
    assert ("Are the labels in another order?" in text) == warned
    assert (row["label_accuracy"] < 0.5 * row["label_accuracy_real"]) == warned
    assert "model.labels" not in text, "which a class of one's own does not take"
