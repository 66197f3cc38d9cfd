"""The commonest silent error with models trained elsewhere: their classes in another order."""

import pandas as pd
import pytest
from benches import TINY, run

from benchmarks.stages.elsewhere import imagenet_labels
from metrics.efficientnet import imagenet_classes
from models.label_pipeline import matched

SHAPES = ["model=pretrained", "model._target_=models_elsewhere.Shapes", "model.name=shapes"]
NAMES = [f"class {i}, of a thousand" for i in range(1000)]


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


def test_labels_are_found_by_name_by_imagenets_order_or_as_given():
    wnids = imagenet_classes()[5:8]
    assert imagenet_labels(wnids) == [5, 6, 7] and imagenet_labels(["dog"]) is None
    own = dict(enumerate(NAMES))
    assert matched(NAMES[2:4], own, None, 1000, None)[0] == [2, 3]
    assert matched(wnids, own, [5, 6, 7], 1000, None)[0] == [5, 6, 7]
    assert matched(["a", "b"], {}, None, 2, None) == (
        [0, 1],
        "in the order of both, which nothing has checked",
    )
    assert matched(["a", "b"], own, None, 1000, [9, 4])[0] == [9, 4]


def test_a_name_that_two_labels_have_is_no_match_but_others_are():
    """ImageNet has two classes called crane."""
    names = {0: "crane", 1: "wolf", 2: "crane", 3: "fox"}
    assert matched(["fox", "wolf"], names, None, 4, None)[0] == [3, 1]
    labels, how = matched(["crane", "wolf", "crane bird", "fox"], names, None, 4, None)
    assert labels == [0, 1, 2, 3] and how == "in the order of both, where 3 of 4 have the same name"


def test_names_that_are_there_in_another_order_are_refused_though_some_fit_nothing():
    names = {0: "dog", 1: "cat", 2: "parrot"}
    with pytest.raises(ValueError, match="cat is label 1 there and 0 in the data"):
        matched(["cat", "dog", "bird"], names, None, 3, None)


@pytest.mark.parametrize(
    "given, reason",
    [
        (None, r"it has 1000 labels and the data 2 classes, of other names; give model.labels="),
        ([1], "labels: 1 for 2 classes"),
        ([1, 1], "a label is given twice"),
        ([1, 1000], "1000 is not among its 1000"),
        ([-1, 3], "-1 is not among its 1000"),
    ],
)
def test_labels_that_do_not_fit_are_refused(given, reason):
    with pytest.raises(ValueError, match=reason):
        matched(["a", "b"], {}, None, 1000, given)
