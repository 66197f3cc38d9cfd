"""How images are degraded, what the study of it measures, and which rules it reports as broken."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from benches import Ended, command
from conftest import composed

from benchmarks.core.errors import BadInput
from benchmarks.frozen.extractors import FeatureExtractor, load_extractors
from benchmarks.images.dataset import load_dataset
from benchmarks.images.procedural import generate
from benchmarks.studies import degradation as study_command
from benchmarks.studies.degradation import measure_ladder, measures, pool_features, prepare_targets
from benchmarks.studies.degradations import (
    DEGRADATIONS,
    LABELS,
    PASSES,
    RISES,
    Degradation,
    amounts_of,
    check_levels_differ,
    degrade,
    labels_at,
    rows_in_use,
    rows_of,
)
from benchmarks.studies.findings import worse_steps
from benchmarks.studies.material import REAL, REBUILT, balanced, images_for_probe, prepare
from metrics.features import frechet_features
from metrics.frechet import frechet_distance

BY_NAME = {degradation.name: degradation for degradation in DEGRADATIONS}


@pytest.fixture(scope="module")
def pool() -> tuple[np.ndarray, np.ndarray]:
    """1000 images of ten classes, and their labels."""
    return generate(1000, 32, seed=5)


def enlarged(images: np.ndarray, size: int) -> np.ndarray:
    """Images of 32 px, their pixels repeated."""
    factor = size // 32
    return images.repeat(factor, axis=2).repeat(factor, axis=3)


def darker(images: np.ndarray) -> np.ndarray:
    """What stands for a pass through an autoencoder."""
    return images // 2


@pytest.mark.parametrize("degradation", DEGRADATIONS, ids=lambda degradation: degradation.name)
@pytest.mark.parametrize("size", [32, 64])
def test_every_level_is_another_set_and_repeatable(degradation: Degradation, size, pool):
    images, labels = enlarged(pool[0], size), pool[1]
    amounts = amounts_of(degradation)
    assert len(amounts) == 6 and list(amounts) in (sorted(amounts), sorted(amounts, reverse=True))
    sets = [degrade(degradation, images, labels, 200, amount, darker) for amount in amounts]
    assert all(x.shape == (200, 3, size, size) and x.dtype == np.uint8 for x in sets)
    assert np.array_equal(sets[0], images[:200])
    assert np.array_equal(sets[3], degrade(degradation, images, labels, 200, amounts[3], darker))
    said = [labels_at(degradation, labels, 200, amount) for amount in amounts]
    # a level that does nothing would be taken for the distance's failure
    seen = {x.tobytes() + y.numpy().tobytes() for x, y in zip(sets, said, strict=True)}
    assert len(seen) == 6


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


def fine_detail(images: np.ndarray) -> float:
    """The mean squared difference between neighbouring pixels."""
    return float((np.diff(images.astype(float), axis=3) ** 2).mean())


def test_sharpening_adds_fine_detail_and_leaves_flat_areas(pool):
    images, labels = pool
    detail = [
        fine_detail(degrade(BY_NAME["sharpening"], images, labels, 100, amount))
        for amount in amounts_of(BY_NAME["sharpening"])
    ]
    assert detail == sorted(detail) and detail[-1] > 1.5 * detail[0]
    grey = np.full((4, 3, 32, 32), 120, np.uint8)
    assert np.array_equal(degrade(BY_NAME["sharpening"], grey, labels, 4, 1.5), grey)


def test_saturation_moves_colours_only_and_contrast_only_away_from_the_mean(pool):
    images = torch.from_numpy(pool[0][:50] // 2 + 64)  # far from black and white: nothing clips
    saturate, contrast = BY_NAME["saturation"].change, BY_NAME["contrast up"].change
    assert torch.equal(saturate(images, 1.0), images) and torch.equal(contrast(images, 1.0), images)

    def spread(x: torch.Tensor) -> float:
        """Of the three channels of a pixel."""
        return x.float().std(dim=1).mean().item()

    assert spread(saturate(images, 1.3)) == pytest.approx(1.3 * spread(images), rel=0.02)
    grey = images[:, :1].expand(-1, 3, -1, -1)
    assert torch.equal(saturate(grey, 1.6), grey), "grey has no colour to saturate"

    for factor in (0.5, 1.3):
        before, after = images.float(), contrast(images, factor).float()
        assert after.std() < before.std() if factor < 1 else after.std() > before.std()
        weights = torch.tensor([0.299, 0.587, 0.114])
        brightness = [x.mean(dim=(2, 3)) @ weights for x in (before, after)]
        assert torch.allclose(*brightness, atol=0.5), "the mean grey of each image stays"


def test_duplicates_keep_the_count_and_the_balance_and_lose_variety(pool):
    labels, earlier = pool[1], set(range(200))
    for fraction in BY_NAME["duplicates"].levels:
        rows = rows_of(BY_NAME["duplicates"], labels, 200, fraction)
        assert len(rows) == 200 and np.array_equal(labels[rows], labels[:200])
        kept = set(rows.tolist())
        assert len(kept) == round(200 * (1 - fraction))
        assert kept < earlier, "what one level has lost, no later one has"
        earlier = kept


def test_label_swaps_keep_the_images_and_give_that_fraction_another_class(pool):
    images, labels = pool
    swaps = BY_NAME["label swaps"]
    assert swaps.kind == LABELS
    for fraction in swaps.levels:
        assert np.array_equal(degrade(swaps, images, labels, 200, fraction), images[:200])
        said = labels_at(swaps, labels, 200, fraction).numpy()
        assert (said != labels[:200]).mean() == fraction and set(said) <= set(labels)


def test_each_pass_rebuilds_what_the_one_before_it_made():
    images = np.full((2, 3, 8, 8), 64, np.uint8)
    passed = degrade(BY_NAME["autoencoder passes"], images, np.arange(2), 2, 3, darker)
    assert (passed == 8).all()


def test_the_pool_without_what_no_level_has_gives_the_same_images(pool):
    images, labels = pool
    rows = rows_in_use(labels, 200)
    assert len(rows) < len(labels) and rows[:200].tolist() == list(range(200))
    for degradation in DEGRADATIONS:
        for amount in amounts_of(degradation):
            whole = images[rows_of(degradation, labels, 200, amount)]
            trimmed = images[rows][rows_of(degradation, labels[rows], 200, amount)]
            assert np.array_equal(whole, trimmed), degradation.name


def test_balanced_deals_any_prefix_evenly():
    labels = np.array([0] * 30 + [1] * 10 + [2] * 20)
    places = balanced(labels, 3, 60)
    assert labels[places].tolist() == [0, 1, 2] * 10 and len(set(places.tolist())) == 30


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """1000 training images of 64 px."""
    cfg = composed("data.image_size=64", "data.train_images=1000", "data.reference_images=200")
    return load_dataset(cfg.data, num_samples=200, cache=tmp_path_factory.mktemp("data"))


def test_the_probe_is_fitted_on_images_that_are_compared_nowhere(dataset):
    pooled = balanced(dataset.train.labels, 10, 500)
    beyond = images_for_probe(dataset, pooled)
    assert not set(beyond.index) & set(dataset.train.index[pooled]) and len(beyond) == 500
    everything = np.arange(len(dataset.train))
    assert set(images_for_probe(dataset, everything).index) == set(dataset.holdout.index)


class Coarse(torch.nn.Module):
    """A fast feature extractor of many dimensions with a projection to fewer."""

    dim, resize = 48, "none"

    def forward(self, images):
        return F.adaptive_avg_pool2d(images.float() / 255, 4).flatten(1)

    def project(self, features):
        return 2 * features[:, :8]


def test_frechet_distances_are_taken_over_the_projection_and_no_other_measure(dataset):
    material = prepare(dataset, 200, darker)
    targets = prepare_targets(Coarse(), torch.device("cpu"), material, 10)
    features = pool_features(targets, material).pools[REBUILT][:200]
    row = measures(targets, REBUILT, features, torch.from_numpy(material.labels[:200]))
    halves = [2 * x[:, :8] for x in (targets.reference, targets.reference_rebuilt, features)]
    assert row["fd"] == frechet_distance(halves[0], halves[2])
    assert row["fd_generator"] == frechet_distance(halves[1], halves[2])
    plain = torch.nn.Identity()
    assert frechet_features(plain, features) is features


@pytest.mark.long
def test_fd_of_the_local_extractor_rises_at_each_level_of_all_that_is_to_raise_it(dataset):
    material = prepare(dataset, 200, lambda images: images)
    (extractor,) = load_extractors(composed("features=local").features)
    targets = prepare_targets(extractor.net, torch.device("cpu"), material, 10)
    known = pool_features(targets, material)
    said = torch.from_numpy(material.labels[:200])
    first = measures(targets, REAL, known.pools[REAL][:200], said)
    for degradation in DEGRADATIONS:
        if degradation.demand == RISES and degradation.kind != PASSES:
            ladder = measure_ladder(targets, material, known, REAL, degradation, first)
            assert worse_steps(pd.DataFrame(ladder), "fd") == 5, degradation.name


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """The folder that a small study writes, over a fast extractor."""
    folder = tmp_path_factory.mktemp("study")
    ended = small_study(folder)
    assert ended.code == 0, ended.err
    return folder / "judge" / "procedural-32-coarse"


def small_study(folder: Path) -> Ended:
    extractor = FeatureExtractor(name="coarse", net=Coarse(), weights="0" * 64)
    settings = ["data.train_images=600", "data.reference_images=200", "num_samples=200"]
    places = [f"cache_dir={folder}/cache", f"results_dir={folder}", "device=cpu"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(study_command, "load_extractors", lambda cfg: [extractor])
        return command("study", "features=local", *settings, *places)


def test_the_study_measures_every_level_of_real_and_of_reconstructed_images(study):
    table = pd.read_csv(study / "study.csv")
    assert table["level"].tolist() == [0, 1, 2, 3, 4, 5] * len(DEGRADATIONS) * 2
    real, rebuilt = (table[table["images"] == kind] for kind in (REAL, REBUILT))
    generator = [name for name in table if name.startswith(("fd_generator", "kid_generator"))]
    assert len(generator) == 5 and real[generator].isna().all(axis=None)
    assert real.drop(columns=generator).notna().all(axis=None)
    missing_in_rebuilt = ["fd_pixels", "fd_std", "fd_change_std"]
    assert rebuilt.drop(columns=missing_in_rebuilt).notna().all(axis=None)
    # one pass over real images is where reconstructed ones begin
    first = real[(real["degradation"] == "autoencoder passes") & (real["level"] == 1)]
    assert first["fd"].item() == pytest.approx(rebuilt["fd"].iloc[0])
    swaps = table[table["degradation"] == "label swaps"].groupby("images")
    assert (swaps["fd"].nunique() == 1).all() and (swaps["label_accuracy"].nunique() == 6).all()


def test_a_study_that_was_stopped_goes_on_where_it_was(study, monkeypatch):
    """A ladder that is kept is not measured again; one that was cut short is."""
    before = pd.read_csv(study / "study.csv")
    kept = sorted((study.parent.parent / "cache" / "judge").glob("*/*.json"))
    assert len(kept) == 2 * len(DEGRADATIONS)
    kept[3].unlink()
    kept[5].write_bytes(kept[5].read_bytes()[:-40])
    monkeypatch.setattr(study_command, "pool_features", pytest.fail)  # features are kept, too
    measured, measure = [], study_command.measure_ladder

    def counted(*args):
        measured.append(args[4].name)
        return measure(*args)

    monkeypatch.setattr(study_command, "measure_ladder", counted)
    for drawn in ("plot", "show", "shrink"):  # figures take most of the time
        monkeypatch.setattr(study_command, drawn, lambda *_: None)
    assert small_study(study.parent.parent).code == 0
    assert len(measured) == 2
    pd.testing.assert_frame_equal(pd.read_csv(study / "study.csv"), before)


def test_the_study_s_page_has_rules_first_then_weights_and_small_figures(study):
    text = (study / "study.md").read_text()
    parts = ["## The rules", "units of the floor", "## Real images", "## Reconstructed images"]
    assert [text.index(part) for part in parts] == sorted(text.index(part) for part in parts)
    assert all(text.count(name) > 5 for name in BY_NAME)
    for figure in ("study.png", "degradations.png"):
        assert 10_000 < (study / figure).stat().st_size < 200_000
