"""Latents in shards on disk: read where they lie, written by several, gone on with."""

import os
import pickle
import subprocess
import sys
import threading

import pytest
import torch

from benchmarks.core.checked import is_whole
from benchmarks.core.session import session
from benchmarks.core.settings import compose
from benchmarks.core.store import ROOT, write_tensors
from benchmarks.frozen import latents, shards
from benchmarks.frozen.autoencoder import load_latent_space
from benchmarks.frozen.latents import LatentSet, prepare_latents
from benchmarks.frozen.shards import mean_and_std, moments
from benchmarks.images.dataset import load_dataset

CPU = torch.device("cpu")
IMAGES = 16  # of a shard, here


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(shards, "IMAGES", IMAGES)


@pytest.fixture
def images(tmp_path):
    """Forty procedural images, which fill two shards and a half, and their latent space."""
    cfg = compose("data.image_size=16", "data.train_images=40", "data.reference_images=4")
    dataset = load_dataset(cfg.data, num_samples=4, cache=tmp_path)
    return dataset, load_latent_space(cfg.autoencoder, dataset, cache=tmp_path, device=CPU)


def whole(images) -> tuple[torch.Tensor, torch.Tensor]:
    """The whitened latents and the tokens of all images, computed at once."""
    dataset, space = images
    pixels = torch.from_numpy(dataset.train[:])
    with torch.inference_mode():
        raw = torch.stack([space.autoencoder.encode(each) for each in (pixels, pixels.flip(3))])
        tokens = torch.stack([space.codebook.tokenize(each) for each in raw])
    std, mean = torch.std_mean(raw, dim=(0, 1, 3, 4))
    return (raw - mean[:, None, None]) / std[:, None, None], tokens


def encode(images, cache) -> LatentSet:
    return prepare_latents(*images, cache=cache, device=CPU)


def test_rows_are_those_of_one_encoding_of_everything(images, tmp_path):
    encoded, (expected, tokens) = encode(images, tmp_path), whole(images)
    assert len(list((tmp_path / "latents").glob("*/*.safetensors"))) == 3
    assert encoded.latents.shape == expected.shape and encoded.tokens.shape == tokens.shape
    torch.testing.assert_close(encoded.latents[:, :], expected, atol=1e-4, rtol=1e-4)
    assert torch.equal(encoded.tokens[:, :].long(), tokens)
    mirror, at = torch.tensor([0, 1, 1, 0]), torch.tensor([15, 16, 39, 0])
    torch.testing.assert_close(
        encoded.latents[mirror, at], expected[mirror, at], atol=1e-4, rtol=1e-4
    )
    assert torch.equal(encoded.latents[1, 14:18], encoded.latents[:, :][1, 14:18])


def test_batches_are_those_of_latents_that_are_held(images, tmp_path):
    encoded = encode(images, tmp_path)
    held = LatentSet(
        encoded.latents.held(CPU), encoded.tokens.held(CPU), *list(vars(encoded).values())[2:]
    )
    for step in range(4):
        for one, other in zip(encoded.batch(3, step, 24), held.batch(3, step, 24), strict=True):
            assert torch.equal(one, other) and one.dtype == other.dtype


def test_a_part_of_a_batch_reads_its_own_images_alone(images, tmp_path, monkeypatch):
    encoded, rows = encode(images, tmp_path), slice(6, 12)
    whole_batch = encoded.batch(3, 1, 24)
    read, counted = shards._Place.read, []
    monkeypatch.setattr(shards._Place, "read", lambda *a: (counted.append(a), read(*a)))
    part = encoded.batch(3, 1, 24, rows)
    assert len(counted) == 2 * 6, "latents and tokens of six images"
    assert torch.equal(part.labels, whole_batch.labels), "labels are dropped for the whole batch"
    for one, other in zip(part[:2], whole_batch[:2], strict=True):
        assert one.shape == other.shape and one.dtype == other.dtype
        assert torch.equal(one[rows], other[rows]) and other[rows].any()
        assert not one[:6].any() and not one[12:].any()


def test_only_what_is_missing_or_damaged_is_encoded_again(images, tmp_path, monkeypatch, capsys):
    first = encode(images, tmp_path).latents[:, :]
    paths = sorted((tmp_path / "latents").glob("*/*.safetensors"))
    content = paths[0].read_bytes()
    paths[0].write_bytes(content[:-20] + b"\0" * 4 + content[-16:])
    paths[2].unlink()
    encoded_again, original = [], latents._encode
    monkeypatch.setattr(
        latents, "_encode", lambda *args: encoded_again.append(args[2]) or original(*args)
    )
    assert torch.equal(encode(images, tmp_path).latents[:, :], first)
    assert sorted(each.start for each in encoded_again) == [0, 32]
    assert "it was changed" in capsys.readouterr().out


def test_shards_are_read_whole_once_until_they_change(images, tmp_path, monkeypatch):
    """Not once a process: ImageNet's are 50 GB."""
    encode(images, tmp_path)
    read, whole_shards = shards.read_tensors, []
    monkeypatch.setattr(
        shards, "read_tensors", lambda path, key: whole_shards.append(path.stem) or read(path, key)
    )
    counts = []
    for change in (None, None, "00001", "folder"):
        if change == "folder":  # shards of other images are put in their place
            path = next((tmp_path / "latents").glob("*/00002.safetensors"))
            write_tensors(path, "another's", {"latents": torch.zeros(1)})
            assert is_whole([path], "another's", path.with_suffix(".checked"), lambda: True)
        elif change:  # the same bytes under the same date
            path = next((tmp_path / "latents").glob(f"*/{change}.safetensors"))
            date = path.stat().st_mtime_ns
            path.write_bytes(path.read_bytes())
            os.utime(path, ns=(date, date))
        session.checked.clear()  # as another process begins
        encode(images, tmp_path)
        counts.append(whole_shards[:])
        whole_shards.clear()
    read_whole = [sorted(set(each)) for each in counts]
    assert read_whole == [["00000", "00001", "00002"], [], ["00001"], ["00002"]]


def test_an_encoding_that_was_stopped_goes_on(images, tmp_path, monkeypatch):
    original, calls = latents._encode, []

    def stopped(*args):
        calls.append(args[2])
        if len(calls) == 2:
            raise KeyboardInterrupt
        return original(*args)

    monkeypatch.setattr(latents, "_encode", stopped)
    with pytest.raises(KeyboardInterrupt):
        encode(images, tmp_path)
    encode(images, tmp_path)
    assert len(calls) == 1 + 1 + 2, "one was whole, one was stopped"


def test_nobody_waits_while_there_is_something_to_do(images, tmp_path, monkeypatch):
    """A process that finds a shard taken encodes another, and waits for it at the end only."""
    original, taken, calls = latents._encode, threading.Event(), []
    others_done = threading.Event()

    def slow(*args):
        calls.append(args[2].start)
        if len(calls) == 1:  # the first one to begin waits until the other two are encoded
            taken.set()
            assert others_done.wait(60)
        elif len(calls) == 3:
            others_done.set()
        return original(*args)

    monkeypatch.setattr(latents, "_encode", slow)
    first = threading.Thread(target=encode, args=(images, tmp_path))
    first.start()
    assert taken.wait(60)
    encode(images, tmp_path)
    first.join(60)
    assert sorted(calls) == [0, 16, 32]


def test_two_at_once_share_the_work(images, tmp_path, monkeypatch):
    original, calls = latents._encode, []
    monkeypatch.setattr(latents, "_encode", lambda *args: calls.append(args[2]) or original(*args))
    both = [threading.Thread(target=encode, args=(images, tmp_path)) for _ in range(2)]
    for one in both:
        one.start()
    for one in both:
        one.join(60)
    assert sorted(each.start for each in calls) == [0, 16, 32], "each shard once"


def test_moments_of_parts_are_those_of_the_whole():
    values = 3 + 2 * torch.randn(2, 50, 4, 3, 3, generator=torch.Generator().manual_seed(0))
    mean, std = mean_and_std([moments(part) for part in values.split(7, dim=1)])
    expected = torch.std_mean(values, dim=(0, 1, 3, 4))
    torch.testing.assert_close((std, mean), expected)


def test_another_process_can_be_given_them(images, tmp_path):
    encoded = encode(images, tmp_path)
    again = pickle.loads(pickle.dumps(encoded))
    assert torch.equal(again.latents[:, :], encoded.latents[:, :])


def test_a_file_that_is_cut_short_while_it_is_read_is_one_clear_line(images, tmp_path):
    encoded = encode(images, tmp_path)
    path = min((tmp_path / "latents").glob("*/*.safetensors"))
    os.truncate(path, 2000)
    with pytest.raises(OSError, match="was cut short while it was read; run again"):
        encoded.latents[:, :]


PEAK = """
import sys, torch
from pathlib import Path
from benchmarks.frozen.latents import LatentSet
from benchmarks.frozen.shards import Rows
from metrics.speed import peak_memory_mb
count, folder = int(sys.argv[1]), Path(sys.argv[2])
paths = [folder / f"{i}.safetensors" for i in range(count // 1000)]
rows = {name: Rows(paths, name) for name in ("latents", "tokens")}
labels, ones = torch.zeros(count, dtype=torch.long), torch.ones(4)
data = LatentSet(**rows, labels=labels, mean=0 * ones, std=ones, key="k")
for step in range(200):
    data.batch(0, step, 256)
print(peak_memory_mb(torch.device("cpu")))
"""


@pytest.mark.long
def test_memory_does_not_grow_with_the_images(tmp_path):
    made = {"latents": torch.randn(2, 1000, 4, 16, 16), "tokens": torch.zeros(2, 1000, 256).int()}
    write_tensors(tmp_path / "0.safetensors", "k", made)
    for i in range(1, 200):
        os.link(tmp_path / "0.safetensors", tmp_path / f"{i}.safetensors")
    peaks = {}
    for count in (10_000, 200_000):
        call = [sys.executable, "-c", PEAK, str(count), str(tmp_path)]
        peaks[count] = float(subprocess.check_output(call, cwd=ROOT, timeout=120))
    # the order of an epoch and the labels are what grows: 16 bytes an image
    assert peaks[200_000] < 1.05 * peaks[10_000], peaks
