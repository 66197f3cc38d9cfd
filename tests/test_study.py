"""How images are degraded, and the study of it on a small version."""

import numpy as np
import pandas as pd
import pytest
from benches import command

from benchmarks.core.errors import BadInput
from benchmarks.images.procedural import generate
from benchmarks.studies.degradation import balanced, verdicts
from benchmarks.studies.degradations import (
    DEGRADATIONS,
    Degradation,
    check_levels_differ,
    degrade,
)

BY_NAME = {degradation.name: degradation for degradation in DEGRADATIONS}


@pytest.fixture(scope="module")
def pool() -> tuple[np.ndarray, np.ndarray]:
    """1000 images of ten classes, and their labels."""
    return generate(1000, 32, seed=5)


def enlarged(images: np.ndarray, size: int) -> np.ndarray:
    """Images of 32 px, their pixels repeated."""
    factor = size // 32
    return images.repeat(factor, axis=2).repeat(factor, axis=3)


@pytest.mark.parametrize("degradation", DEGRADATIONS, ids=lambda degradation: degradation.name)
@pytest.mark.parametrize("size", [32, 64])
def test_every_level_is_another_set_and_repeatable(degradation: Degradation, size, pool):
    images, labels = enlarged(pool[0], size), pool[1]
    levels = degradation.levels
    assert len(levels) == 5 and list(levels) == sorted(levels)
    sets = [degrade(degradation, images, labels, 200, level) for level in (0, *levels)]
    assert all(x.shape == (200, 3, size, size) and x.dtype == np.uint8 for x in sets)
    assert np.array_equal(sets[0], images[:200])
    assert np.array_equal(sets[3], degrade(degradation, images, labels, 200, levels[2]))
    # a level that does nothing would be taken for the distance's failure
    assert len({x.tobytes() for x in sets}) == 6


@pytest.mark.parametrize("classes, n", [(2, 200), (20, 100), (5, 200)])
def test_too_few_classes_or_images_for_different_levels_are_refused(classes, n):
    with pytest.raises(BadInput, match=f"num_samples={n} of {classes} classes"):
        check_levels_differ(np.arange(5 * n) % classes, n)
    check_levels_differ(np.arange(5 * 400) % 20, 400)


def test_patches_move_inside_images_of_any_side():
    images = np.random.default_rng(0).integers(1, 256, (3, 3, 100, 100), dtype=np.uint8)
    moved = degrade(BY_NAME["patch shuffling"], images, np.arange(3), 3, 1.0)
    assert (moved > 0).all() and not np.array_equal(moved, images)
    assert np.array_equal(moved[..., 96:], images[..., 96:]), "beyond eight patches nothing moves"


def test_what_changes_images_does_what_its_name_says(pool):
    images, labels = pool
    grey = np.full((64, 3, 32, 32), 120, np.uint8)

    blurred = degrade(BY_NAME["Gaussian blur"], grey, labels, 4, 3.0)
    assert np.array_equal(blurred, grey[:4])

    noisy = degrade(BY_NAME["Gaussian noise"], grey, labels, 64, 16).astype(float)
    assert noisy.mean() == pytest.approx(120, abs=0.3)
    assert noisy.std() == pytest.approx(16, rel=0.02)

    peppered = degrade(BY_NAME["salt and pepper"], grey, labels, 64, 0.1)
    assert (peppered != 120).mean() == pytest.approx(0.1, abs=0.01)
    assert (peppered == 0).mean() == pytest.approx(0.05, abs=0.01)

    moved = degrade(BY_NAME["patch shuffling"], images, labels, 40, 1.0)
    before, after = (np.sort(x.reshape(40, -1)) for x in (images[:40], moved))
    assert np.array_equal(before, after), "the same pixels elsewhere"


def test_what_chooses_images_leaves_out_what_its_name_says(pool):
    images, labels = pool
    class_of = {x.tobytes(): int(label) for x, label in zip(images, labels, strict=True)}

    def chosen(name: str, level: float) -> set[bytes]:
        return {x.tobytes() for x in degrade(BY_NAME[name], images, labels, 40, level)}

    two_classes = chosen("missing classes", 0.8)
    assert len(two_classes) == 40, "nothing is repeated while there are others"
    assert {class_of[x] for x in two_classes} == {0, 1}
    collapsed = chosen("mode collapse", 0.5)
    assert len(collapsed) == 20 and {class_of[x] for x in collapsed} == set(range(10))


class Uneven:
    """A split of three classes, whose images are their own places."""

    labels = np.array([0] * 30 + [1] * 10 + [2] * 20)

    def __getitem__(self, at):
        return at


def test_balanced_deals_any_prefix_evenly():
    places, labels = balanced(Uneven(), 3, 60)
    assert labels.tolist() == [0, 1, 2] * 10 and len(set(places.tolist())) == 30


def test_verdicts_count_the_steps_that_get_worse():
    measured = {
        "fd": [1, 2, 3, 3],
        "fd_pixels": [4, 3, 2, 1],
        "kid": [0, 1, 2, 3],
        "precision": [3, 2, 1, 0],
        "recall": 1,
    }
    table = pd.DataFrame({"degradation": "x"} | measured)
    assert verdicts(table).loc["x"].tolist() == [2, 0, 3, 3, 0]


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """The folder that a small study writes."""
    folder = tmp_path_factory.mktemp("study")
    settings = ["data.image_size=64", "data.train_images=1000", "data.reference_images=400"]
    places = [f"cache_dir={folder}/cache", f"results_dir={folder}"]
    ended = command("study", *settings, "num_samples=200", *places)
    assert ended.code == 0, ended.err
    return folder / "judge" / "procedural-64-local"


def test_fd_rises_strictly_over_all_levels_of_all_degradations(study):
    table = pd.read_csv(study / "study.csv")
    assert len(table) == 36 and table.notna().all(axis=None)
    assert table["level"].tolist() == [0, 1, 2, 3, 4, 5] * 6
    for name, rows in table.groupby("degradation"):
        assert rows["fd"].iloc[-1] > rows["fd"].iloc[0], name
    assert (verdicts(table)["fd"] == 5).all()


def test_the_study_s_page_names_all_degradations_and_has_its_figures(study):
    text = (study / "study.md").read_text()
    assert "Where it fails" in text
    assert all(name in text for name in BY_NAME)
    for figure in ("study.png", "degradations.png"):
        assert (study / figure).stat().st_size > 10_000
