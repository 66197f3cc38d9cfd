"""The shared latent space: encode and decode, tokens and back, whitening, batches as pure functions of (seed, step)."""

from types import SimpleNamespace

import pytest
import torch

from benchmarks import data, latents
from benchmarks.procedural import draw
from benchmarks.store import BadInput
from benchmarks.weights import psnr
from models import codebook
from models.autoencoder import Autoencoder, to_float, to_uint8
from models.codebook import Codebook

SHIPPED = SimpleNamespace(name="shipped", get=lambda key: None)


@pytest.fixture(scope="module")
def space():
    return latents.load_space(SHIPPED)


@pytest.fixture(scope="module")
def encoded(space, tmp_path_factory):
    cache = tmp_path_factory.mktemp("cache")
    cfg = SimpleNamespace(
        source="procedural", name="procedural", image_size=32, train_images=200, reference_images=20, seed=0, get=lambda k: None
    )
    dataset = data.load(cfg, num_samples=20, cache=cache)
    return dataset, latents.prepare(dataset, space, cache=cache, device=torch.device("cpu"))


def test_quantising_is_the_inverse_of_scaling():
    levels = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    assert torch.equal(to_uint8(to_float(levels)), levels)
    assert to_uint8(torch.tensor([-9.0, 9.0])).tolist() == [0, 255]


@pytest.mark.parametrize("size", [32, 64, 128])
def test_the_shipped_autoencoder_rebuilds_pictures_of_any_size(space, size):
    images = torch.from_numpy(draw(20, size, seed=11)[0])
    z = space.autoencoder.encode(images)
    assert z.shape == (20, *space.autoencoder.latent_shape(size)) and z.dtype == torch.float32
    rebuilt = space.autoencoder.decode(z)
    assert rebuilt.shape == images.shape and rebuilt.dtype == torch.uint8
    assert psnr(images, rebuilt) > 22
    tokens = space.codebook.tokenize(z)
    assert psnr(images, space.autoencoder.decode(space.codebook.detokenize(tokens))) > 18


@pytest.mark.parametrize("size", [30, 33, 8])
def test_a_size_the_autoencoder_cannot_take_is_refused(space, size):
    with pytest.raises(BadInput, match=f"data.image_size={size}"):
        latents.latent_shape(space, size)


def test_tokens_survive_a_round_trip_raw_and_whitened():
    book = Codebook(50)
    book.entries.copy_(torch.randn(50, 4, generator=torch.Generator().manual_seed(0)))
    ids = torch.randint(50, (3, 64))
    mean, std = torch.tensor([1.0, -2.0, 0.5, 3.0]), torch.tensor([0.5, 4.0, 1.0, 0.1])
    for speaker in (book, book.whitened(mean, std)):
        z = speaker.detokenize(ids)
        assert z.shape == (3, 4, 8, 8)
        assert torch.equal(speaker.tokenize(z), ids)
    whitened = book.whitened(mean, std).detokenize(ids)
    torch.testing.assert_close(whitened * std[:, None, None] + mean[:, None, None], book.detokenize(ids))
    with pytest.raises(ValueError, match="square"):
        book.detokenize(torch.zeros(1, 60, dtype=torch.long))


def test_tokens_are_in_raster_order_and_nearest():
    book = Codebook(3)
    book.entries.copy_(torch.tensor([[0.0] * 4, [1.0] * 4, [5.0] * 4]))
    z = torch.zeros(1, 4, 2, 2)
    z[0, :, 0, 1], z[0, :, 1, 0] = 0.9, 4.0
    assert book.tokenize(z).tolist() == [[0, 1, 2, 0]]


def test_kmeans_finds_the_clusters_and_uses_every_entry():
    rng = torch.Generator().manual_seed(0)
    again = torch.Generator().manual_seed(5)
    centres = torch.randn(8, 4, generator=rng) * 20
    points = centres[torch.arange(4000) % 8] + torch.randn(4000, 4, generator=rng) * 0.01
    book = codebook.fit(points, 16, rng=torch.Generator().manual_seed(5))
    error = (points - book.entries[codebook.nearest(points, book.entries)]).square().sum(1).max()
    assert error < 0.1, "some cluster has no entry"
    assert torch.equal(book.entries, codebook.fit(points, 16, rng=again).entries), "the same seed gives the same book"
    with pytest.raises(ValueError, match="at least as many"):
        codebook.fit(points[:5], 16, rng=rng)


def test_training_latents_are_white_and_carry_their_own_tokens(space, encoded):
    _, encoded = encoded
    std, mean = torch.std_mean(encoded.latents, dim=(0, 1, 3, 4))
    torch.testing.assert_close(mean, torch.zeros(4), atol=1e-4, rtol=0)
    torch.testing.assert_close(std, torch.ones(4), atol=1e-3, rtol=0)
    ids = space.codebook.tokenize(encoded.raw(encoded.latents[1, :50]))
    assert (ids == encoded.tokens[1, :50]).float().mean() > 0.999  # un-whitening rounds; a tie may fall the other way


def test_the_second_copy_is_of_the_mirror_images(space, encoded):
    dataset, encoded = encoded
    z = space.autoencoder.encode(torch.from_numpy(dataset.train[:10]).flip(3))
    torch.testing.assert_close(encoded.raw(encoded.latents[1, :10]), z, atol=1e-3, rtol=1e-3)


def test_batches_are_pure_functions_of_seed_and_step(encoded):
    _, encoded = encoded
    a, b, c = encoded.batch(0, 5, 64), encoded.batch(0, 5, 64), encoded.batch(1, 5, 64)
    assert torch.equal(a.latents, b.latents) and torch.equal(a.tokens, b.tokens) and torch.equal(a.labels, b.labels)
    assert not torch.equal(a.latents, c.latents)
    assert a.tokens.dtype == torch.int64


def test_an_epoch_shows_every_picture_once_across_uneven_batches():
    seen = torch.cat([latents.batch_indices(100, 7, 3, step) for step in range(43)])  # 301 places: three epochs and one
    for epoch in range(3):
        assert sorted(seen[100 * epoch : 100 * (epoch + 1)].tolist()) == list(range(100))
    assert not torch.equal(seen[:100], seen[100:200])
    assert len(latents.batch_indices(10, 64, 0, 2)) == 64, "a batch may be larger than the data"


@pytest.mark.parametrize("damage", ["cut", "other"])
def test_a_damaged_latent_cache_is_rebuilt(space, tmp_path, damage, capsys):
    cfg = SimpleNamespace(
        source="procedural", name="procedural", image_size=32, train_images=20, reference_images=10, seed=0, get=lambda k: None
    )
    dataset = data.load(cfg, num_samples=10, cache=tmp_path)
    device = torch.device("cpu")
    first = latents.prepare(dataset, space, cache=tmp_path, device=device)
    path = next((tmp_path / "latents").glob("*.safetensors"))
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-100])
    else:
        from safetensors.torch import save_file

        save_file(
            {name: getattr(first, name) + 1 for name in ("latents", "tokens", "labels", "mean", "std")},
            str(path),
            metadata={"key": "someone else's"},
        )
    again = latents.prepare(dataset, space, cache=tmp_path, device=device)
    assert torch.equal(again.latents, first.latents)
    assert "rebuilding" in capsys.readouterr().out


@pytest.mark.parametrize("content", [b"", b"not a safetensors file", None])
def test_weights_that_do_not_fit_are_refused_in_one_line(tmp_path, content):
    path = tmp_path / "bad.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(BadInput) as error:
        latents.load_space(SimpleNamespace(name="x", get=lambda key: str(path) if key == "weights" else None))
    assert "autoencoder.weights" in str(error.value) and "\n" not in str(error.value)


def test_another_network_s_weights_are_refused():
    with pytest.raises(BadInput, match="another network"):
        latents.load_space(
            SimpleNamespace(name="x", get=lambda key: str(latents.SHIPPED / "codebook.safetensors") if key == "weights" else None)
        )


def test_the_autoencoder_saves_what_it_loads(tmp_path):
    from models.autoencoder import load_weights

    torch.manual_seed(0)
    first = Autoencoder()
    first.save(tmp_path / "a.safetensors")
    second = load_weights(Autoencoder(), tmp_path / "a.safetensors", "a")
    images = torch.from_numpy(draw(2, 32)[0])
    torch.testing.assert_close(first.encode(images), second.encode(images), atol=1e-2, rtol=1e-2)
    assert not any(p.requires_grad for p in second.parameters())
