"""Autoencoders and codebooks as drop-ins: shipped, from a file, pretrained in the hub's format; and
the reconstruct command.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import composed
from diffusers import AutoencoderKL, AutoencoderTiny
from PIL import Image

from benchmarks.core.errors import BadInput
from benchmarks.core.store import file_digest, write_tensors
from benchmarks.frozen.autoencoder import (
    PRETRAINED_FILES,
    SHIPPED_FOLDER,
    LatentSpace,
    latent_shape,
    load_autoencoder,
    load_latent_space,
)
from benchmarks.frozen.latents import prepare_latents
from benchmarks.frozen.train_autoencoder import psnr
from benchmarks.images import hub, procedural
from benchmarks.images.dataset import load_dataset
from benchmarks.images.stored import Dataset
from benchmarks.stages import model
from benchmarks.studies.reconstruct import reconstruct
from models.autoencoder import Autoencoder, to_uint8
from models.codebook import Codebook

CPU = torch.device("cpu")
NETWORKS = {"sd-vae-ft-mse": AutoencoderKL, "taesd": AutoencoderTiny}


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    """Small random networks, saved in the format of the hub."""
    torch.manual_seed(0)
    widths = (8, 8, 8, 8)
    kl = AutoencoderKL(
        block_out_channels=widths,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=4,
        norm_num_groups=4,
        layers_per_block=1,
    )
    taesd = AutoencoderTiny(
        encoder_block_out_channels=widths,
        decoder_block_out_channels=widths,
        num_encoder_blocks=(1, 1, 1, 1),
        num_decoder_blocks=(1, 1, 1, 1),
    )
    saved = {}
    for name, net in (("sd-vae-ft-mse", kl), ("taesd", taesd)):
        saved[name] = tmp_path_factory.mktemp(name)
        net.save_pretrained(saved[name])
    return saved


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Dataset:
    cfg = composed("data.image_size=64", "data.train_images=60", "data.reference_images=20").data
    return load_dataset(cfg, num_samples=20, cache=tmp_path_factory.mktemp("data"))


def load(cache: Path, dataset: Dataset, *overrides: str) -> LatentSpace:
    return load_latent_space(composed(*overrides).autoencoder, dataset, cache=cache, device=CPU)


# --- pretrained


def pretrained(name: str, folders: dict[str, Path]) -> tuple[str, ...]:
    """The overrides for one of the small networks."""
    return (
        f"autoencoder={name}",
        f"autoencoder.path={folders[name]}",
        "autoencoder.codebook_size=32",
    )


@pytest.mark.parametrize("name", NETWORKS)
def test_pretrained_latents_and_images_are_diffusers_own(name, folders, dataset, tmp_path):
    overrides = pretrained(name, folders)
    assert latent_shape(composed(*overrides).autoencoder, 64) == (4, 8, 8)
    autoencoder = load(tmp_path, dataset, *overrides).autoencoder
    images = torch.from_numpy(dataset.train[:4])
    latents = autoencoder.encode(images)
    net = NETWORKS[name].from_pretrained(folders[name])
    with torch.no_grad():
        encoded = net.encode(images / 127.5 - 1)
        expected = encoded.latents if name == "taesd" else encoded.latent_dist.mean
        torch.testing.assert_close(latents, expected, atol=1e-5, rtol=1e-4)
        difference = autoencoder.decode(latents).int() - to_uint8(net.decode(latents).sample).int()
    assert difference.abs().max() <= 1, "one level is rounding, which differs between processors"


@pytest.mark.parametrize("name", NETWORKS)
def test_pretrained_latents_are_whitened_and_coded_like_any(name, folders, dataset, tmp_path):
    overrides = pretrained(name, folders)
    space = load(tmp_path, dataset, *overrides)
    encoded = prepare_latents(dataset, space, cache=tmp_path, device=CPU)
    spread = encoded.latents[:, :].std(dim=(0, 1, 3, 4))
    torch.testing.assert_close(spread, torch.ones(4), atol=1e-3, rtol=0)
    assert encoded.tokens.shape == (2, 60, 64)
    assert encoded.tokens[:, :].max() < 32 and space.codebook.size == 32
    again = load(tmp_path, dataset, *overrides)
    assert again.key == space.key and torch.equal(again.codebook.entries, space.codebook.entries)


def test_another_machine_s_codebook_does_not_pass_for_this_one_s(folders, dataset, tmp_path):
    overrides = pretrained("taesd", folders)
    space = load(tmp_path, dataset, *overrides)
    file = next((tmp_path / "codebook").glob("*.safetensors"))
    write_tensors(file, file.stem, {"entries": space.codebook.entries + 0.01})
    assert load(tmp_path, dataset, *overrides).key != space.key
    # what it holds names it, not how the file is written: trainings are not lost to a new format
    write_tensors(file, file.stem, {"entries": space.codebook.entries}, note="another header")
    assert load(tmp_path, dataset, *overrides).key == space.key


@pytest.mark.parametrize("damage", ["another class", "cut", "no weights", "no folder"])
def test_a_folder_that_does_not_fit_is_one_clear_line(damage, folders, tmp_path):
    folder = tmp_path / "vae"
    if damage != "no folder":
        folder.mkdir()
        source = folders["sd-vae-ft-mse" if damage == "another class" else "taesd"]
        for name in PRETRAINED_FILES:
            (folder / name).write_bytes((source / name).read_bytes())
    weights = folder / PRETRAINED_FILES[1]
    if damage == "cut":
        weights.write_bytes(weights.read_bytes()[:-200])
    if damage == "no weights":
        weights.unlink()
    with pytest.raises(BadInput, match=r"^autoencoder\.path=") as error:
        latent_shape(composed("autoencoder=taesd", f"autoencoder.path={folder}").autoencoder, 64)
    assert "\n" not in str(error.value) and len(str(error.value)) < 500


def test_a_hub_failure_is_one_line_with_the_files_to_download(monkeypatch):
    calls = []

    def fail(*args, **kwargs):
        calls.append(args)
        raise OSError("no network\nat all")

    monkeypatch.setattr(hub.huggingface_hub, "snapshot_download", fail)
    for _ in range(2):
        with pytest.raises(BadInput) as error:
            latent_shape(composed("autoencoder=sd-vae-ft-mse").autoencoder, 64)
    assert len(calls) == 1, "asked once, not once a cell"
    message = str(error.value)
    assert "\n" not in message
    for needed in ("stabilityai/sd-vae-ft-mse", *PRETRAINED_FILES, "autoencoder.path"):
        assert needed in message


# --- codebooks


def test_a_codebook_of_another_size_is_fitted_on_the_data(dataset, tmp_path):
    small = load(tmp_path, dataset, "autoencoder.codebook_size=16")
    large = load(tmp_path, dataset, "autoencoder.codebook_size=512")
    assert (small.codebook.size, large.codebook.size) == (16, 512) and small.key != large.key
    assert (small.codebook_name, large.codebook_name) == ("fitted 16", "fitted 512")
    assert small.name == large.name == "shipped", "distances over both compare"
    assert small.autoencoder_key == large.autoencoder_key
    images = torch.from_numpy(dataset.reference[:])
    latents = small.autoencoder.encode(images)
    quality = []
    for space in (small, large):
        quantised = space.codebook.detokenize(space.codebook.tokenize(latents))
        quality.append(psnr(images, space.autoencoder.decode(quantised)).mean())
    assert quality[1] > quality[0] + 1, "more entries, closer images"


def test_a_codebook_larger_than_the_data_is_refused(dataset, tmp_path):
    too_many = r"autoencoder\.codebook_size=50000: .*at least as many latent vectors"
    with pytest.raises(BadInput, match=too_many):
        load(tmp_path, dataset, "autoencoder.codebook_size=50000")


def test_a_codebook_file_must_have_the_latents_channels(dataset, tmp_path):
    Codebook(8, 3).save(tmp_path / "three.safetensors")
    with pytest.raises(BadInput, match="has 3 channels, the latents 4"):
        load(tmp_path, dataset, f"autoencoder.codebook={tmp_path / 'three.safetensors'}")
    (tmp_path / "no.safetensors").write_bytes(b"no")
    with pytest.raises(BadInput, match="is not a codebook"):
        load(tmp_path, dataset, f"autoencoder.codebook={tmp_path / 'no.safetensors'}")


def test_a_codebook_of_other_latents_is_refused_where_its_card_says_so(dataset, tmp_path):
    for name in ("codebook.safetensors", "codebook.json"):
        (tmp_path / name).write_bytes((SHIPPED_FOLDER / name).read_bytes())
    Autoencoder().save(tmp_path / "other.safetensors")
    override = f"autoencoder.codebook={tmp_path / 'codebook.safetensors'}"
    own = file_digest(tmp_path / "codebook.safetensors")[:6]
    assert load(tmp_path, dataset, override).codebook_name == f"{own} 2048"
    with pytest.raises(BadInput, match="fitted on the latents of another autoencoder"):
        load(tmp_path, dataset, override, f"autoencoder.weights={tmp_path / 'other.safetensors'}")
    with pytest.raises(BadInput, match="set one of them"):
        load(tmp_path, dataset, override, "autoencoder.codebook_size=64")


# --- settings and files that do not fit


@pytest.mark.parametrize("size", [30, 33, 8])
def test_a_size_the_autoencoder_cannot_take_is_refused(size):
    with pytest.raises(BadInput, match=f"data.image_size={size}"):
        latent_shape(composed().autoencoder, size)


@pytest.mark.parametrize("content", [b"", b"not a safetensors file", None])
def test_weights_that_do_not_fit_are_refused_in_one_line(tmp_path, content):
    path = tmp_path / "bad.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(BadInput) as error:
        load_autoencoder(composed(f"autoencoder.weights={path}").autoencoder)
    assert "autoencoder.weights" in str(error.value) and "\n" not in str(error.value)


def test_another_network_s_weights_are_refused():
    override = f"autoencoder.weights={SHIPPED_FOLDER / 'codebook.safetensors'}"
    with pytest.raises(BadInput, match="another network"):
        load_autoencoder(composed(override).autoencoder)


@pytest.mark.parametrize(
    "setting", ["codebook_size=abc", "codebook_size=16.9", "codebook_size=99999", "seed=abc"]
)
def test_numbers_that_are_none_name_their_setting(setting, dataset, tmp_path):
    kind = "trained" if setting.startswith("seed") else "shipped"
    name = setting.split("=")[0]
    with pytest.raises(BadInput, match=rf"^autoencoder\.{name}=.*: a whole number"):
        load(tmp_path, dataset, f"autoencoder={kind}", f"autoencoder.{setting}")


# --- the reconstruct command


def test_the_reconstruct_command_ends_with_its_json_line(tmp_path):
    overrides = [
        "data.image_size=64",
        "data.train_images=40",
        "data.reference_images=20",
        "num_samples=20",
        f"cache_dir={tmp_path}/cache",
        f"results_dir={tmp_path}",
    ]
    command = [sys.executable, "-m", "benchmarks", "reconstruct", *overrides]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    line = json.loads(done.stdout.splitlines()[-1])
    names = "images psnr psnr_codebook codebook_size usage perplexity psnr_scales scale_tokens"
    assert list(line) == [*names.split(), "encoder_gmacs", "decoder_gmacs"]
    assert line["images"] == 20 and line["scale_tokens"] == 341
    assert line["psnr"] > line["psnr_codebook"] > 20 and line["psnr"] > line["psnr_scales"] > 20
    assert 0 < line["usage"] <= 1 <= line["perplexity"] <= line["codebook_size"]
    (sheet,) = (tmp_path / "reconstruct").glob("*.png")
    width, height = Image.open(sheet).size
    assert width / 12 == height / 3, "twelve images, three rows"


def test_reconstruct_takes_any_data_autoencoder_and_codebook(folders, tmp_path, capsys):
    for i, image in enumerate(procedural.generate(60, 32, seed=5)[0]):
        folder = tmp_path / "images" / f"class{i % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.transpose(1, 2, 0)).save(folder / f"{i}.png")
    overrides = [
        "data=imagefolder",
        f"data.path={tmp_path}/images",
        "data.image_size=64",
        "data.reference_images=10",
        "num_samples=4",
        f"cache_dir={tmp_path}/cache",
        f"results_dir={tmp_path}",
    ]
    reconstruct(composed(*pretrained("sd-vae-ft-mse", folders), *overrides))
    line = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert line["images"] == 10 and line["codebook_size"] == 32
    assert line["encoder_gmacs"] > 0 and line["decoder_gmacs"] > 0
    (sheet,) = (tmp_path / "reconstruct").glob("images-64-*.png")
    assert Image.open(sheet).size[1] == 3 * 64


# --- what it costs


def test_the_autoencoder_costs_what_its_layers_say():
    fine, coarse = 64, 128  # channels at half and at a quarter of the image's side
    positions = 16 * 16  # of an image's latents
    # a residual block has two convolutions, of 9 weights a pair of channels
    fine_encoder = 4 * positions * 9 * (12 * fine + 2 * 2 * fine**2)
    coarse_encoder = positions * (4 * fine * coarse + 9 * (2 * coarse**2 + coarse * 4))
    coarse_decoder = positions * (9 * (4 * coarse + 2 * 2 * coarse**2) + 4 * fine * coarse)
    fine_decoder = 4 * positions * 9 * (4 * 2 * fine**2 + fine * 12)
    encoder = model.encoder_macs(Autoencoder(), 64)
    decoder = model.decoder_macs(Autoencoder(), (4, 16, 16))
    assert encoder == fine_encoder + coarse_encoder
    assert decoder == coarse_decoder + fine_decoder
    assert encoder <= 0.4e9 and decoder <= 0.9e9, "small beside what generates"
