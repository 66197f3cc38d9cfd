"""Samples that copy training images are flagged, and nothing else is."""

import numpy as np
import pytest
import torch
from conftest import composed

from benchmarks.frozen.autoencoder import load_latent_space
from benchmarks.frozen.extractors import load_extractors
from benchmarks.images.dataset import load_dataset
from benchmarks.images.stored import Split
from metrics.features import extract
from metrics.memorisation import RATE, memorisation


def gaussian(n: int, d: int, seed: int, shift: float = 0.0) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed)) + shift


TRAIN, REFERENCE, HOLDOUT = gaussian(3000, 24, 0), gaussian(800, 24, 1), gaussian(400, 24, 2)
COPIES = {
    "copies": TRAIN[:400],
    "near copies": TRAIN[:400] + 0.1 * gaussian(400, 24, 3),
    "a tenth copies": torch.cat([TRAIN[:40], gaussian(360, 24, 4)]),
}
OTHERS = {
    "held-out images": gaussian(400, 24, 5),
    "collapsed": 0.3 * gaussian(400, 24, 6),
    "far off": gaussian(400, 24, 7, 2.0),
}


@pytest.mark.parametrize("name", COPIES)
def test_copies_are_flagged_and_their_originals_named(name):
    copies = memorisation(COPIES[name], train=TRAIN, reference=REFERENCE, held_out=HOLDOUT)
    assert copies.flagged and copies.fraction > 0.09
    assert copies.nearest[:40].equal(torch.arange(40))
    assert copies.closeness[:40].max() < 0.5


@pytest.mark.parametrize("name", OTHERS)
def test_nothing_else_is_flagged(name):
    others = memorisation(OTHERS[name], train=TRAIN, reference=REFERENCE, held_out=HOLDOUT)
    assert not others.flagged, others.fraction


def test_images_that_cannot_be_copies_are_called_copies_at_the_stated_rate():
    """40 sets of 400 held-out rows against 40 others: the mean fraction is RATE within three
    binomial errors of both.
    """
    fractions = []
    for i in range(40):
        samples, holdout = gaussian(400, 24, 100 + i), gaussian(400, 24, 200 + i)
        copies = memorisation(samples, train=TRAIN, reference=REFERENCE, held_out=holdout)
        fractions.append(copies.fraction)
    # 1/400: a quantile of 400 is between two rows
    limit = 3 * (RATE / 400 * 2 / 40) ** 0.5 + 1 / 400
    assert np.mean(fractions) == pytest.approx(RATE, abs=limit)


def test_copies_are_flagged_where_some_held_out_images_are_in_the_training_set_too():
    sets = dict(train=TRAIN, reference=REFERENCE, held_out=torch.cat([TRAIN[:8], HOLDOUT[8:]]))
    copies = memorisation(TRAIN[100:500], **sets)
    assert copies.flagged and copies.fraction == 1
    others = memorisation(gaussian(400, 24, 9), **sets)
    assert not others.flagged and others.expected == pytest.approx(0.02)


def test_training_images_through_the_shared_latents_are_flagged_as_copies(tmp_path):
    """What a network that learnt its latents by heart would sample; held-out images through the
    same latents are not flagged.
    """
    settings = ["data.image_size=32", "data.train_images=400", "data.reference_images=200"]
    cfg = composed("features=local", *settings)
    dataset = load_dataset(cfg.data, num_samples=200, cache=tmp_path)
    cpu = torch.device("cpu")
    space = load_latent_space(cfg.autoencoder, dataset, cache=tmp_path, device=cpu)
    (local,) = load_extractors(cfg.features)

    def through_latents(split: Split) -> torch.Tensor:
        """Features of the reconstructions of the first 200 images."""
        latents = space.autoencoder.encode(torch.from_numpy(split[:200]))
        return extract(local.net, space.autoencoder.decode(latents).numpy())

    sets = {
        "train": extract(local.net, dataset.train),
        "reference": extract(local.net, dataset.reference),
        "held_out": extract(local.net, dataset.holdout),
    }
    copies = memorisation(through_latents(dataset.train), **sets)
    others = memorisation(through_latents(dataset.holdout), **sets)
    assert copies.flagged and copies.fraction > 0.3, copies.fraction
    assert not others.flagged, others.fraction
