"""The floors of a model with codebooks of its own are those of its own, not of the shared one."""

import pytest
import torch
from conftest import composed

from benchmarks.frozen.latents import decode
from benchmarks.stages.floors import CODEBOOK_FLOORS
from benchmarks.stages.own_codebook import own_floors
from benchmarks.stages.prepare import prepare
from metrics.frechet import frechet_distance

TINY = ["data.train_images=20", "data.reference_images=10", "num_samples=10"]
TINY += ["data.image_size=32", "features=local", "steps=[4]", "guidance=[1]"]


@pytest.fixture(scope="module")
def cell(tmp_path_factory):
    """A cell of `ar_scale`, its codebooks fitted as training would."""
    cache = tmp_path_factory.mktemp("cache")
    cell = prepare(composed("model=ar_scale", *TINY, f"cache_dir={cache}"))
    cell.work.mkdir(parents=True)
    cell.model.fit(cell.latents.latents[0, range(20)])
    return cell


def test_the_floors_are_of_the_images_through_its_own_codebooks(cell):
    evaluator, space = cell.evaluators[0], cell.latent_space
    floors = own_floors(cell, evaluator)
    assert sorted(floors) == sorted(CODEBOOK_FLOORS)

    mean, std = (x[:, None, None] for x in (cell.latents.mean, cell.latents.std))
    images = torch.from_numpy(cell.dataset.holdout[:])
    whitened = (space.autoencoder.encode(images) - mean) / std
    ids, _ = cell.model.codebook.tokenize(whitened)
    coded = decode(space, cell.latents, cell.model.codebook.detokenize(ids))
    features = evaluator.features(coded.numpy())
    expected = frechet_distance(evaluator.reference_through, features)
    assert floors["fd_generator_floor_codebook"] == pytest.approx(expected)
    assert all(floors[name] != evaluator.row_constants[name] for name in CODEBOOK_FLOORS)


def test_they_are_kept_and_a_model_of_the_shared_codebook_has_none(cell, monkeypatch):
    evaluator = cell.evaluators[0]
    floors = own_floors(cell, evaluator)
    monkeypatch.setattr(type(evaluator), "features", None)  # would fail if computed again
    assert own_floors(cell, evaluator) == floors
    monkeypatch.setattr(cell.model, "codebook", torch.nn.Identity())  # a user's, without quantise
    assert own_floors(cell, evaluator) == dict.fromkeys(CODEBOOK_FLOORS)
    monkeypatch.setattr(cell.model, "own_codebook", None)
    assert own_floors(cell, evaluator) == {}
