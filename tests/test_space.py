"""The shared latent space: encode and decode, tokens and back, whitening, batches as pure functions
of (seed, step).
"""

import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

from benchmarks.frozen.autoencoder import SHIPPED_FOLDER as FOLDER
from benchmarks.frozen.autoencoder import LatentSpace, load_autoencoder, load_codebook
from benchmarks.frozen.latents import batch_indices, prepare_latents
from benchmarks.frozen.train_autoencoder import psnr
from benchmarks.images.dataset import load_dataset
from benchmarks.images.procedural import generate
from benchmarks.images.stored import Dataset
from models import codebook
from models.autoencoder import to_float, to_uint8
from models.codebook import Codebook


@pytest.fixture(scope="module")
def space():
    autoencoder, key = load_autoencoder(SimpleNamespace(kind="shipped", get=lambda key: None))
    codebook = load_codebook(FOLDER / "codebook.safetensors")
    return LatentSpace(autoencoder, codebook, "shipped", "shipped 2048", key, key)


def procedural(cache: Path, *, train_images: int, others: int) -> Dataset:
    """Images of 32 px, with `others` of reference and hold-out each."""
    cfg = SimpleNamespace(
        source="procedural",
        name="procedural",
        image_size=32,
        train_images=train_images,
        reference_images=others,
        seed=0,
        get=lambda key: None,
    )
    return load_dataset(cfg, num_samples=others, cache=cache)


@pytest.fixture(scope="module")
def encoded(space, tmp_path_factory):
    """A data set and its latents."""
    cache = tmp_path_factory.mktemp("cache")
    dataset = procedural(cache, train_images=200, others=20)
    return dataset, prepare_latents(dataset, space, cache=cache, device=torch.device("cpu"))


def test_quantising_is_the_inverse_of_scaling():
    levels = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    assert torch.equal(to_uint8(to_float(levels)), levels)
    assert to_uint8(torch.tensor([-9.0, 9.0])).tolist() == [0, 255]


@pytest.mark.parametrize(
    "size, plain, coded",
    [(32, 29.78, 27.56), (64, 34.20, 29.93), (128, 34.58, 29.81), (256, 37.01, 31.25)],
)
def test_the_shipped_autoencoder_rebuilds_images_of_any_size(space, size, plain, coded):
    """As well as the shipped weights did when they came: what changes the code around them must not
    change that.
    """
    images = torch.from_numpy(generate(20, min(size, 128), seed=11)[0])
    if size > 128:
        images = images[:4].repeat_interleave(2, 2).repeat_interleave(2, 3)
    z = space.autoencoder.encode(images)
    assert z.shape == (len(images), 4, size // 4, size // 4) and z.dtype == torch.float32
    rebuilt = space.autoencoder.decode(z)
    assert rebuilt.shape == images.shape and rebuilt.dtype == torch.uint8
    assert psnr(images, rebuilt).mean() == pytest.approx(plain, abs=0.1)
    quantised = space.codebook.detokenize(space.codebook.tokenize(z))
    through_codebook = space.autoencoder.decode(quantised)
    assert psnr(images, through_codebook).mean() == pytest.approx(coded, abs=0.1)


def test_psnr_is_per_image_and_in_decibels():
    a = torch.zeros(2, 3, 4, 4, dtype=torch.uint8)
    b = a.clone()
    b[1] = 10
    equal, off_by_ten = psnr(a, b).tolist()
    assert equal > 70 and off_by_ten == pytest.approx(20 * math.log10(255 / 10), abs=1e-4)


def test_tokens_survive_a_round_trip_raw_and_whitened():
    book = Codebook(50)
    book.entries.copy_(torch.randn(50, 4, generator=torch.Generator().manual_seed(0)))
    ids = torch.randint(50, (3, 64))
    mean, std = torch.tensor([1.0, -2.0, 0.5, 3.0]), torch.tensor([0.5, 4.0, 1.0, 0.1])
    for codes in (book, book.whitened(mean, std)):
        z = codes.detokenize(ids)
        assert z.shape == (3, 4, 8, 8)
        assert torch.equal(codes.tokenize(z), ids)
    whitened = book.whitened(mean, std).detokenize(ids)
    raw = whitened * std[:, None, None] + mean[:, None, None]
    torch.testing.assert_close(raw, book.detokenize(ids))
    with pytest.raises(ValueError, match="square"):
        book.detokenize(torch.zeros(1, 60, dtype=torch.long))


def test_tokens_are_in_raster_order_and_nearest():
    book = Codebook(3)
    book.entries.copy_(torch.tensor([[0.0] * 4, [1.0] * 4, [5.0] * 4]))
    z = torch.zeros(1, 4, 2, 2)
    z[0, :, 0, 1], z[0, :, 1, 0] = 0.9, 4.0
    assert book.tokenize(z).tolist() == [[0, 1, 2, 0]]


@pytest.mark.parametrize("channels", [4, 16])
def test_nearest_is_nearest_by_tree_and_by_matrix(channels):
    rng = torch.Generator().manual_seed(0)
    points = torch.randn(500, channels, generator=rng)
    centres = torch.randn(70, channels, generator=rng)
    assert torch.equal(codebook.nearest(points, centres), torch.cdist(points, centres).argmin(1))


def test_the_start_is_spread_out_and_dead_entries_go_where_they_are_needed():
    """Ten tight clusters of very unequal size: a random start would miss the small ones, k-means++
    does not.
    """
    rng = torch.Generator().manual_seed(1)
    centres = torch.randn(10, 4, generator=rng) * 30
    points = torch.cat([centres[:1].expand(9000, 4), centres[1:].repeat_interleave(20, 0)])
    points = points + 0.01 * torch.randn(9180, 4, generator=rng)
    start = codebook.spread(points, 10, rng=rng)
    assert len(codebook.nearest(start, centres).unique()) == 10
    # duplicates: a start must leave entries dead
    points = torch.cat([torch.zeros(50, 4), torch.arange(30.0)[:, None].expand(30, 4)])
    book = codebook.fit(points, 31, rng=rng, iterations=10)
    quantised = book.entries[codebook.nearest(points, book.entries)]
    assert (points - quantised).abs().max() < 1e-4 and book.entries.isfinite().all()


def test_usage_and_perplexity():
    book = Codebook(8)
    even = book.statistics(torch.arange(4).repeat(100))
    assert even["usage"] == 0.5 and even["perplexity"] == pytest.approx(4)
    assert book.statistics(torch.zeros(10, dtype=torch.long))["perplexity"] == pytest.approx(1)


def test_kmeans_finds_the_clusters_and_uses_every_entry():
    rng = torch.Generator().manual_seed(0)
    centres = torch.randn(8, 4, generator=rng) * 20
    points = centres[torch.arange(4000) % 8] + torch.randn(4000, 4, generator=rng) * 0.01
    book = codebook.fit(points, 16, rng=torch.Generator().manual_seed(5))
    quantised = book.entries[codebook.nearest(points, book.entries)]
    assert (points - quantised).square().sum(1).max() < 0.1, "some cluster has no entry"
    again = codebook.fit(points, 16, rng=torch.Generator().manual_seed(5))
    assert torch.equal(book.entries, again.entries), "the same seed gives the same book"
    with pytest.raises(ValueError, match="at least as many"):
        codebook.fit(points[:5], 16, rng=rng)


def test_training_latents_are_white_and_carry_their_own_tokens(space, encoded):
    _, encoded = encoded
    std, mean = torch.std_mean(encoded.latents[:, :], dim=(0, 1, 3, 4))
    torch.testing.assert_close(mean, torch.zeros(4), atol=1e-4, rtol=0)
    torch.testing.assert_close(std, torch.ones(4), atol=1e-3, rtol=0)
    ids = space.codebook.tokenize(encoded.raw(encoded.latents[1, :50]))
    # un-whitening rounds; a tie may fall the other way
    assert (ids == encoded.tokens[1, :50]).float().mean() > 0.999


def test_the_second_copy_is_of_the_mirror_images(space, encoded):
    dataset, encoded = encoded
    z = space.autoencoder.encode(torch.from_numpy(dataset.train[:10]).flip(3))
    torch.testing.assert_close(encoded.raw(encoded.latents[1, :10]), z, atol=1e-3, rtol=1e-3)


def test_batches_are_pure_functions_of_seed_and_step(encoded):
    _, encoded = encoded
    batch, again = encoded.batch(0, 5, 64), encoded.batch(0, 5, 64)
    assert all(torch.equal(a, b) for a, b in zip(batch, again, strict=True))
    assert not torch.equal(batch.latents, encoded.batch(1, 5, 64).latents)
    assert batch.tokens.dtype == torch.int64


def test_an_epoch_shows_every_image_once_across_uneven_batches():
    # 43 batches are 301 places: three epochs and one
    seen = torch.cat([batch_indices(100, 7, 3, step) for step in range(43)])
    for epoch in range(3):
        assert sorted(seen[100 * epoch : 100 * (epoch + 1)].tolist()) == list(range(100))
    assert not torch.equal(seen[:100], seen[100:200])
    assert len(batch_indices(10, 64, 0, 2)) == 64, "a batch may be larger than the data"


@pytest.mark.parametrize("damage", ["cut", "other"])
def test_a_damaged_latent_cache_is_rebuilt(space, tmp_path, damage, capsys):
    dataset = procedural(tmp_path, train_images=20, others=10)
    device = torch.device("cpu")
    first = prepare_latents(dataset, space, cache=tmp_path, device=device)
    path = next((tmp_path / "latents").glob("*/*.safetensors"))
    whole = first.latents[:, :]
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-100])
    else:
        tensors = {"latents": whole + 1, "tokens": first.tokens[:, :]}
        save_file(tensors, str(path), metadata={"key": "someone else's"})
    again = prepare_latents(dataset, space, cache=tmp_path, device=device)
    assert torch.equal(again.latents[:, :], whole)
    assert "rebuilding" in capsys.readouterr().out
