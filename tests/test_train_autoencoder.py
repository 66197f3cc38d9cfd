"""How autoencoder and codebook are made on a data set's own images, and the files that come with
the suite.
"""

import copy
from pathlib import Path

import pytest
import torch
from conftest import composed

from benchmarks.core import store
from benchmarks.core.errors import BadInput, Diverged
from benchmarks.core.store import SHIPPED_FOLDERS, file_digest, load_weights, write_json
from benchmarks.frozen import train_autoencoder
from benchmarks.frozen.autoencoder import LatentSpace, load_latent_space
from benchmarks.frozen.train_autoencoder import psnr
from benchmarks.images.dataset import load_dataset
from benchmarks.images.stored import Dataset
from metrics import speed
from models.autoencoder import Autoencoder

# of a model card
FIELDS = ("data", "recipe", "command", "seed", "hardware", "seconds", "scores", "sha256", "licence")
SHIPPED_WEIGHTS = [path for folder in SHIPPED_FOLDERS for path in folder.glob("*.safetensors")]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Dataset:
    cfg = composed("data.image_size=32", "data.train_images=60", "data.reference_images=20").data
    return load_dataset(cfg, num_samples=20, cache=tmp_path_factory.mktemp("data"))


def load(cache: Path, dataset: Dataset, *overrides: str) -> LatentSpace:
    cfg = composed(*overrides).autoencoder
    return load_latent_space(cfg, dataset, cache=cache, device=torch.device("cpu"))


def test_an_autoencoder_trained_on_the_data_learns_and_is_cached(dataset, tmp_path, capsys):
    overrides = ("autoencoder=trained", "autoencoder.images=320", "autoencoder.codebook_size=64")
    first = load(tmp_path, dataset, *overrides)
    assert "autoencoder 19/20" in capsys.readouterr().out
    images = torch.from_numpy(dataset.reference[:])
    flat = images.float().mean(dim=(2, 3), keepdim=True).expand(images.shape)
    rebuilt = first.autoencoder.decode(first.autoencoder.encode(images))
    assert psnr(images, rebuilt).mean() > psnr(images, flat).mean()
    again = load(tmp_path, dataset, *overrides)
    assert capsys.readouterr().out == "", "the second time nothing is trained"
    torch.testing.assert_close(again.autoencoder.encode(images), first.autoencoder.encode(images))
    assert load(tmp_path, dataset).key != first.key, "the shipped one is another"


@pytest.mark.parametrize("bf16, trained_in", [(2.0, torch.bfloat16), (0.5, torch.float32)])
def test_it_is_trained_in_what_this_machine_is_faster_in(
    dataset, tmp_path, monkeypatch, bf16, trained_in
):
    """Another precision gives other weights, so that these are kept by another name."""
    rates = {torch.bfloat16: bf16, torch.float32: 1.0}
    monkeypatch.setattr(speed, "product_flops", lambda device: rates)
    types = set()

    def perceptual(out, target):
        types.add(out.dtype)
        return out.float().mean()

    small, count = dataset.train[:][:, :, :16, :16], train_autoencoder.BATCH
    train_autoencoder.train_autoencoder(small, count=count, device="cpu", perceptual=perceptual)
    assert types == {trained_in}
    trained = Autoencoder()
    monkeypatch.setattr(train_autoencoder, "train_autoencoder", lambda *a, **k: trained)
    for rate in (bf16, 1 / bf16):
        monkeypatch.setitem(rates, torch.bfloat16, rate)
        load(tmp_path, dataset, "autoencoder=trained", "autoencoder.codebook_size=16")
    assert len(list((tmp_path / "autoencoder").glob("*.safetensors"))) == 2


def test_training_on_too_few_images_is_refused(dataset, tmp_path):
    with pytest.raises(BadInput, match=r"autoencoder\.images=0"):
        load(tmp_path, dataset, "autoencoder=trained", "autoencoder.images=0")


def test_its_optimizer_is_muon_on_matrices_and_adamw_on_the_rest():
    """One step from known gradients is the library's own on either kind, and no parameter is left
    out.
    """
    torch.manual_seed(0)
    model = Autoencoder().to(memory_format=torch.channels_last)
    twin = copy.deepcopy(model)
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        p.grad = torch.randn_like(p)
        q.grad = p.grad.clone()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    train_autoencoder.Optimizer(model, 1.0).step(1e-3)
    assert all(not torch.equal(p, before[name]) for name, p in model.named_parameters())
    inner = twin.decoder[1].first.weight  # 128 x 128 channels
    matrix = torch.nn.Parameter(inner.detach().flatten(1))
    matrix.grad = inner.grad.flatten(1)
    torch.optim.Muon([matrix], lr=1e-3, weight_decay=0.0, adjust_lr_fn="match_rms_adamw").step()
    torch.testing.assert_close(model.decoder[1].first.weight.flatten(1), matrix.detach())
    first = twin.encoder[1].weight  # 12 -> 64 channels
    torch.optim.AdamW([first], lr=1e-3, betas=(0.9, 0.99), weight_decay=1e-3).step()
    torch.testing.assert_close(model.encoder[1].weight, first)


def test_noise_is_on_every_fourth_latent_and_in_proportion():
    torch.manual_seed(0)
    latents = 3 * torch.randn(16, 4, 32, 32)
    noisy = train_autoencoder.noised(latents, torch.Generator().manual_seed(0))
    size = (noisy - latents).square().mean(dim=(1, 2, 3)).sqrt()
    assert (size[torch.arange(16) % 4 != 0] == 0).all()
    expected = train_autoencoder.NOISE * latents.square().mean().sqrt().item()
    torch.testing.assert_close(size[::4], torch.full((4,), expected), rtol=0.05, atol=0)


def test_latents_that_are_not_finite_have_no_codebook(dataset):
    class Broken(torch.nn.Module):
        def encode(self, x):
            return torch.full((len(x), 4, 8, 8), torch.nan)

    with pytest.raises(Diverged, match="not finite"):
        train_autoencoder.fit_codebook(Broken(), dataset.train, 16, device="cpu")


# --- files and their cards


def test_files_that_came_with_the_suite_need_their_cards(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "SHIPPED_FOLDERS", [tmp_path])
    path = tmp_path / "a.safetensors"
    Autoencoder().save(path)
    with pytest.raises(BadInput, match=r"model card .*a\.json is missing or cut short"):
        load_weights(Autoencoder(), path, "a")
    write_json(tmp_path / "a.json", ["not", "a", "card"])
    with pytest.raises(BadInput, match="model card"):
        load_weights(Autoencoder(), path, "a")
    write_json(tmp_path / "a.json", {"sha256": file_digest(path)})
    load_weights(Autoencoder(), path, "a")


def test_a_file_comes_back_frozen_and_only_with_the_card_that_describes_it(tmp_path):
    torch.manual_seed(0)
    path = tmp_path / "a.safetensors"
    first = Autoencoder()
    first.save(path)
    second = load_weights(Autoencoder(), path, "a")
    images = torch.randint(256, (2, 3, 32, 32), dtype=torch.uint8)
    torch.testing.assert_close(first.encode(images), second.encode(images), atol=1e-2, rtol=1e-2)
    assert not any(p.requires_grad for p in second.parameters())
    write_json(tmp_path / "a.json", {"sha256": "0" * 64})
    other = r"a: .*a\.safetensors is not the file its model card describes"
    with pytest.raises(BadInput, match=other):
        load_weights(Autoencoder(), path, "a")
