"""Kernel distance, precision and recall; how images are degraded; the study on a small version."""

import json
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from torchmetrics.image.kid import KernelInceptionDistance

from benchmarks.core.errors import BadInput
from benchmarks.images.procedural import generate
from benchmarks.studies.degradation import balanced, verdicts
from benchmarks.studies.degradations import DEGRADATIONS, check_levels_differ, degrade
from metrics.kid import kid
from metrics.prdc import prdc

BY_NAME = {degradation.name: degradation for degradation in DEGRADATIONS}


def gaussian(n: int, d: int, seed: int, shift: float = 0.0) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed)) + shift


class _Identity(torch.nn.Module):
    num_features = 16

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(1).float()


def test_kid_of_the_full_sets_is_torchmetrics():
    real, fake = gaussian(200, 16, 0).relu(), gaussian(200, 16, 1, 0.3).relu()
    theirs = KernelInceptionDistance(
        feature=_Identity(), subsets=1, subset_size=200, normalize=True
    )
    theirs.update(real[:, :, None, None], real=True)
    theirs.update(fake[:, :, None, None], real=False)
    assert kid(real, fake).distance == pytest.approx(theirs.compute()[0].item(), rel=1e-4)


def test_kid_is_unbiased_at_fifty():
    """600 pairs of samples of one distribution: their mean is within three errors of zero."""
    read = np.array(
        [kid(gaussian(50, 8, 2 * i), gaussian(50, 8, 2 * i + 1)).distance for i in range(600)]
    )
    assert abs(read.mean()) < 3 * read.std() / 600**0.5
    assert kid(gaussian(50, 8, 0), gaussian(50, 8, 1, 1.0)).distance > 10 * read.std()


@pytest.mark.parametrize("call", [kid, prdc])
def test_features_that_cannot_be_compared_are_refused(call):
    with pytest.raises(ValueError, match="must be"):
        call(torch.zeros(1, 4), torch.zeros(9, 4))
    with pytest.raises(ValueError, match="must be"):
        call(torch.zeros(9, 4), torch.zeros(9, 5))


def by_hand(real: np.ndarray, fake: np.ndarray, k: int) -> list[float]:
    """Precision, recall, density and coverage as their papers write them, a pair at a time."""

    def radius(points: np.ndarray, i: int) -> float:
        return np.sort([np.linalg.norm(points[i] - p) for p in points])[k]

    pairs = np.array([[np.linalg.norm(r - f) for f in fake] for r in real])
    real_r, fake_r = ([radius(x, i) for i in range(len(x))] for x in (real, fake))
    inside = np.array(
        [[pairs[i, j] < real_r[i] for j in range(len(fake))] for i in range(len(real))]
    )
    recall = np.mean(
        [any(pairs[i, j] < fake_r[j] for j in range(len(fake))) for i in range(len(real))]
    )
    return [
        inside.any(0).mean(),
        recall,
        inside.sum() / (k * len(fake)),
        np.mean([pairs[i].min() < real_r[i] for i in range(len(real))]),
    ]


def test_precision_recall_density_coverage_are_their_papers():
    real, fake = gaussian(40, 3, 0), gaussian(40, 3, 1, 0.7)
    assert list(prdc(real, fake, k=3)) == pytest.approx(by_hand(real.numpy(), fake.numpy(), 3))


def test_two_samples_of_one_distribution_and_of_two_apart():
    same = prdc(gaussian(1000, 8, 0), gaussian(1000, 8, 1))
    assert (
        0.7 < same.precision < 0.95
        and 0.7 < same.recall < 0.95
        and 0.9 < same.density < 1.1
        and same.coverage > 0.9
    )
    assert list(prdc(gaussian(100, 8, 0), gaussian(300, 8, 1, 50.0))) == [0, 0, 0, 0]


@pytest.fixture(scope="module")
def pool() -> tuple[np.ndarray, np.ndarray]:
    return generate(1000, 32, seed=5)


@pytest.mark.parametrize("degradation", DEGRADATIONS, ids=lambda degradation: degradation.name)
@pytest.mark.parametrize("size", [32, 64])
def test_every_level_of_every_ladder_is_another_set_and_repeatable(degradation, size, pool):
    images, labels = pool
    if size == 64:
        images = images.repeat(2, axis=2).repeat(2, axis=3)
    assert len(degradation.levels) == 5 and list(degradation.levels) == sorted(degradation.levels)
    sets = [degrade(degradation, images, labels, 200, level) for level in (0, *degradation.levels)]
    assert all(x.shape == (200, 3, size, size) and x.dtype == np.uint8 for x in sets)
    assert np.array_equal(sets[0], images[:200]) and np.array_equal(
        sets[3], degrade(degradation, images, labels, 200, degradation.levels[2])
    )
    assert len({x.tobytes() for x in sets}) == 6, (
        "a level that does nothing would be taken for the judge's failure"
    )


@pytest.mark.parametrize("classes, n", [(2, 200), (20, 100), (5, 200)])
def test_too_few_classes_or_images_for_different_levels_are_refused(classes, n):
    with pytest.raises(BadInput, match=f"num_samples={n} of {classes} classes"):
        check_levels_differ(np.arange(5 * n) % classes, n)
    check_levels_differ(np.arange(5 * 400) % 20, 400)


def test_patches_move_inside_images_of_any_side():
    images = np.random.default_rng(0).integers(1, 256, (3, 3, 100, 100), dtype=np.uint8)
    out = degrade(BY_NAME["patch shuffling"], images, np.arange(3), 3, 1.0)
    assert (
        (out > 0).all()
        and np.array_equal(out[..., 96:], images[..., 96:])
        and not np.array_equal(out, images)
    )


def test_degradations_do_what_their_names_say(pool):
    images, labels = pool
    flat = np.full((4, 3, 32, 32), 120, np.uint8)
    assert np.array_equal(degrade(BY_NAME["Gaussian blur"], flat, labels, 4, 3.0), flat)
    grey = degrade(
        BY_NAME["Gaussian noise"], np.full((64, 3, 32, 32), 120, np.uint8), labels, 64, 16
    ).astype(float)
    assert grey.mean() == pytest.approx(120, abs=0.3) and grey.std() == pytest.approx(16, rel=0.02)
    peppered = degrade(
        BY_NAME["salt and pepper"], np.full((64, 3, 32, 32), 120, np.uint8), labels, 64, 0.1
    )
    assert (peppered != 120).mean() == pytest.approx(0.1, abs=0.01) and (
        peppered == 0
    ).mean() == pytest.approx(0.05, abs=0.01)
    moved = degrade(BY_NAME["patch shuffling"], images, labels, 40, 1.0)
    assert np.array_equal(np.sort(moved.reshape(40, -1)), np.sort(images[:40].reshape(40, -1))), (
        "the same pixels elsewhere"
    )

    def shown(name: str, level: float) -> set[bytes]:
        return {p.tobytes() for p in degrade(BY_NAME[name], images, labels, 40, level)}

    assert len(shown("missing classes", 0.8)) == 40, "nothing is repeated while there are others"
    of_class = {p.tobytes(): int(label) for p, label in zip(images, labels, strict=True)}
    assert {of_class[p] for p in shown("missing classes", 0.8)} == {0, 1}
    collapsed = shown("mode collapse", 0.5)
    assert len(collapsed) == 20 and {of_class[p] for p in collapsed} == set(range(10))


def test_balanced_deals_any_prefix_evenly():
    class Uneven:
        labels = np.array([0] * 30 + [1] * 10 + [2] * 20)

        def __getitem__(self, at):
            return at

    places, labels = balanced(Uneven(), 3, 60)
    assert labels.tolist() == [0, 1, 2] * 10 and len(set(places.tolist())) == 30


def test_verdicts_count_the_steps_that_get_worse():
    table = pd.DataFrame(
        {
            "degradation": "x",
            "fd": [1, 2, 3, 3],
            "fd_pixels": [4, 3, 2, 1],
            "kid": [0, 1, 2, 3],
            "precision": [3, 2, 1, 0],
            "recall": 1,
        }
    )
    assert verdicts(table).loc["x"].tolist() == [2, 0, 3, 3, 0]


def test_the_study_on_a_small_version(tmp_path):
    small = [
        "data.image_size=64",
        "data.train_images=1000",
        "data.reference_images=400",
        "num_samples=200",
    ]
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "benchmarks",
            "study",
            *small,
            f"cache_dir={tmp_path}/cache",
            f"results_dir={tmp_path}",
        ],
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "judge" / "procedural-64-local"
    table = pd.read_csv(folder / "study.csv")
    assert len(table) == 36 and table.notna().all(axis=None)
    for name, part in table.groupby("degradation"):
        assert part["fd"].iloc[-1] > part["fd"].iloc[0], (
            f"{name}: the worst images must read worse than the best"
        )
    assert (verdicts(table)["fd"] == 5).all(), (
        "FD must rise strictly over all levels of all degradations"
    )
    text = (folder / "study.md").read_text()
    assert "Where it fails" in text and all(
        degradation.name in text for degradation in DEGRADATIONS
    )
    assert all(
        (folder / name).stat().st_size > 10_000 for name in ("study.png", "degradations.png")
    )
    assert json.dumps(table["level"].tolist()) == json.dumps([0, 1, 2, 3, 4, 5] * 6)
