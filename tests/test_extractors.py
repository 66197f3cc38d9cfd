"""The feature extractors FD[local] and DINOv2: what they are fingerprinted by, what they are worth,
and what happens where one is not to be had.
"""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from benches import TINY, run
from conftest import composed
from safetensors.torch import load_file, save_file

from benchmarks.core.errors import BadInput
from benchmarks.frozen import train_extractor
from benchmarks.frozen.autoencoder import SHIPPED_FOLDER
from benchmarks.frozen.extractors import (
    FeatureExtractor,
    load_extractors,
    probe_split,
    shipped_parts,
)
from benchmarks.images import hub, procedural
from benchmarks.images.dataset import load_dataset
from benchmarks.stages import features
from benchmarks.stages.floors import prepare_evaluator
from benchmarks.studies.probe_extractor import examine
from metrics.features import WEIGHTS, LocalFeatures, extract
from metrics.probe import fit_probe


def load(*overrides: str) -> list[FeatureExtractor]:
    return load_extractors(composed(*overrides).features)


@pytest.fixture(scope="module")
def local() -> FeatureExtractor:
    """The one that comes with the suite."""
    (extractor,) = load("features=local")
    return extractor


@pytest.fixture(scope="module")
def dinov2_folder(tmp_path_factory):
    """A small random DINOv2 in the hub's format."""
    from transformers import Dinov2Config, Dinov2Model

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("dinov2")
    config = Dinov2Config(
        hidden_size=24, num_hidden_layers=2, num_attention_heads=2, patch_size=14, image_size=28
    )
    Dinov2Model(config).save_pretrained(folder)
    return folder


# --- FD[local]


def test_local_features_take_any_size_in_any_batching():
    net = LocalFeatures(7).eval()
    images = torch.randint(256, (10, 3, 32, 32), dtype=torch.uint8).numpy()
    whole = extract(net, images, batch=10)
    assert whole.shape == (10, net.dim) and net.dim <= 256 and whole.dtype == torch.float32
    torch.testing.assert_close(extract(net, images, batch=3), whole, atol=1e-5, rtol=1e-4)
    assert extract(net, images.repeat(2, axis=2).repeat(2, axis=3)).shape == (10, net.dim)


def test_the_shipped_extractor_tells_procedural_classes_apart(local):
    train, labels = procedural.generate(400, 32, seed=3)
    test, truth = procedural.generate(200, 32, seed=3, stream="reference")
    probe = fit_probe(extract(local.net, train), torch.from_numpy(labels), 10)
    assert probe.accuracy(extract(local.net, test), torch.from_numpy(truth)) > 0.9


def test_a_fingerprint_names_network_weights_resize_and_type(local):
    card = json.loads(WEIGHTS.with_suffix(".json").read_text())
    assert local.fingerprint == {
        "name": "local",
        "weights_sha256": card["sha256"],
        "resize": "bilinear-antialias-64",
        "dtype": "float32",
        "dim": 128,
        "frechet_dim": 128,
    }
    resized = LocalFeatures(90)
    resized.resize = "nearest-64"
    others = [
        FeatureExtractor("local", local.net, "0" * 64),
        FeatureExtractor("other", local.net, card["sha256"]),
        FeatureExtractor("local", local.net, card["sha256"], dtype="bfloat16"),
        FeatureExtractor("local", resized, card["sha256"]),
    ]
    assert FeatureExtractor("local", local.net, card["sha256"]).key == local.key
    keys = {local.key, *(extractor.key for extractor in others)}
    assert len(keys) == 5, "other weights, name, type or resize, another key"


def test_features_are_extracted_once_for_each_key(local, tmp_path, monkeypatch):
    calls = []

    def counted(*args, **kwargs):
        calls.append(args)
        return extract(*args, **kwargs)

    monkeypatch.setattr(features, "extract", counted)
    cfg = composed("data.train_images=40", "data.reference_images=20", "data.image_size=32")
    dataset = load_dataset(cfg.data, num_samples=20, cache=tmp_path)
    twin = FeatureExtractor("local", local.net, "0" * 64)
    counts = []
    for extractor in (local, local, twin):
        prepare_evaluator(
            extractor,
            dataset,
            None,
            key="as they are",
            autoencoder_key="none",
            cache=tmp_path,
            device=torch.device("cpu"),
            split="train",
        )
        counts.append(len(calls))
    assert 0 < counts[0] == counts[1] < counts[2] == 2 * counts[0]


@pytest.mark.parametrize("damage", ["cut", "changed"])
def test_damaged_weights_are_refused_by_their_hash(tmp_path, damage):
    content = bytearray(WEIGHTS.read_bytes())
    if damage == "cut":
        del content[-1000:]
    else:
        content[-1] ^= 1
    path = tmp_path / "judge.safetensors"
    path.write_bytes(content)
    (tmp_path / "judge.json").write_text(WEIGHTS.with_suffix(".json").read_text())
    with pytest.raises(BadInput, match=r"features\.weights: .*judge\.safetensors") as error:
        load(f"features.weights={path}")
    assert "\n" not in str(error.value)


# --- what an extractor has seen before


def test_the_probe_never_sees_folder_images_that_the_extractor_trained_on(local):
    data = composed("data=imagefolder", "data.path=/x").data
    seen = json.loads((SHIPPED_FOLDER / "data.json").read_text())["classes"]
    trained_on = [name for name in seen if name.startswith("n")]
    assert probe_split(data, local, trained_on[:3]) == "holdout"
    assert probe_split(data, local, ["cats", "dogs"]) == "holdout", "names that cannot tell"
    assert probe_split(data, local, ["n00000001", "n00000002"]) == "train"
    published = FeatureExtractor("dinov2", local.net, "0")
    assert probe_split(data, published, ["n00000001"]) == "holdout", "it may know any image"


def test_the_probe_never_sees_procedural_images_that_the_extractor_trained_on(local):
    classes = procedural.CLASS_NAMES
    assert probe_split(composed().data, local, classes) == "train"
    same_seed = composed(f"data.seed={procedural.WEIGHTS_SEED}").data
    assert probe_split(same_seed, local, classes) == "holdout"


def test_a_record_names_the_shipped_networks_behind_it(local, tmp_path):
    autoencoder = composed("autoencoder.codebook_size=null").autoencoder
    assert shipped_parts(autoencoder, local) == ["autoencoder", "codebook", "judge"]
    published = FeatureExtractor("dinov2", local.net, "0")
    assert shipped_parts(autoencoder, published) == ["autoencoder", "codebook"]
    fitted = composed("autoencoder.codebook_size=16").autoencoder
    assert shipped_parts(fitted, None) == ["autoencoder"]
    other = tmp_path / "other.safetensors"
    other.write_bytes(WEIGHTS.read_bytes())
    (mine,) = load("features=local", f"features.weights={other}")
    assert shipped_parts(autoencoder, mine) == ["autoencoder", "codebook"]


# --- DINOv2


def test_dinov2_features_are_the_class_token_of_normalised_bicubic_images(dinov2_folder):
    from transformers import Dinov2Model

    (dino,) = load("features=dinov2", f"features.path={dinov2_folder}")
    assert dino.name == "dinov2" and dino.net.dim == 24
    assert dino.fingerprint["resize"] == "bicubic-antialias-224"
    rng = torch.Generator().manual_seed(0)
    images = torch.randint(256, (5, 3, 64, 64), generator=rng, dtype=torch.uint8)
    x = F.interpolate(images.float() / 255, size=(224, 224), mode="bicubic", antialias=True)
    mean = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)  # of ImageNet's pixels
    std = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    with torch.no_grad():
        theirs = Dinov2Model.from_pretrained(dinov2_folder).eval()
        expected = theirs((x.clamp(0, 1) - mean) / std).last_hidden_state[:, 0]
    torch.testing.assert_close(extract(dino.net, images.numpy()), expected, atol=1e-5, rtol=1e-4)


def test_dinov2_that_cannot_be_fetched_says_what_to_download_and_others_go_on(monkeypatch):
    def fail(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr(hub.huggingface_hub, "snapshot_download", fail)
    with pytest.raises(BadInput) as error:
        load("features=dinov2")
    message = str(error.value)
    assert "\n" not in message
    for needed in ("config.json", "model.safetensors", "features.dinov2.path"):
        assert needed in message
    assert [extractor.name for extractor in load("features=[local,dinov2]")] == ["local"]


def test_dinov2_refuses_what_is_not_a_dinov2(dinov2_folder, tmp_path):
    with pytest.raises(BadInput, match="no such folder"):
        load("features=dinov2", f"features.path={tmp_path}/none")
    with pytest.raises(BadInput, match=r"the folder has no config\.json"):
        load("features=dinov2", f"features.path={tmp_path}")
    (tmp_path / "config.json").write_text((dinov2_folder / "config.json").read_text())
    weights = tmp_path / "model.safetensors"
    whole = dinov2_folder / "model.safetensors"
    renamed = {f"other.{name}": value for name, value in load_file(whole).items()}
    save_file(renamed, weights, metadata={"format": "pt"})
    with pytest.raises(BadInput, match="another network's weights"):
        load("features=dinov2", f"features.path={tmp_path}")
    weights.write_bytes(whole.read_bytes()[:-100])
    with pytest.raises(BadInput, match="not a whole Dinov2"):
        load("features=dinov2", f"features.path={tmp_path}")


# --- its training


@pytest.mark.long  # tests/test_weights.py trains one for a few steps
def test_training_the_classifier_teaches_it_something():
    images, labels = procedural.generate(300, 64, seed=1)
    judge = train_extractor.train_judge(images, labels, 10, count=1920, device="cpu")
    other, truth = procedural.generate(200, 64, seed=1, stream="reference")
    assert train_extractor.top1(judge, other, truth, "cpu") > 0.3, "chance is 0.1"
    assert train_extractor.images_per_second(judge, 32, "cpu", batch=8) > 0


def test_zooming_keeps_images_inside_themselves():
    ramp = torch.linspace(-1, 1, 64).expand(8, 3, 64, 64).contiguous()
    out = train_extractor.zoomed(ramp, torch.Generator().manual_seed(0))
    assert out.shape == ramp.shape and out.min() >= -1 and out.max() <= 1
    spans = out[:, 0, 0, -1] - out[:, 0, 0, 0]
    assert (spans > 2 * train_extractor.LEAST_ZOOM - 0.1).all()
    assert (spans < 2.01).all() and spans.std() > 0


# --- commands


def test_the_probe_command_prints_one_json_line_per_network(tmp_path, dinov2_folder, capsys):
    cfg = composed(
        "features=[local,dinov2]",
        f"features.dinov2.path={dinov2_folder}",
        "data.image_size=32",
        "data.train_images=60",
        "data.reference_images=20",
        "num_samples=20",
        f"cache_dir={tmp_path}",
    )
    examine(cfg)
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()[-2:]]
    assert [line["features"] for line in lines] == ["local", "dinov2"]
    assert lines[1]["dim"] == 24
    for line in lines:
        names = {"features", "dim", "shown_at", "images_per_second", "probe_images"}
        names |= {"probe_accuracy"}
        assert set(line) == names
        assert 0 <= line["probe_accuracy"] <= 1 and line["images_per_second"] > 0


@pytest.mark.usefixtures("no_figures")
def test_one_row_for_each_extractor_and_the_same_samples_for_both(tmp_path, dinov2_folder):
    both = ["features=[local,dinov2]", f"features.dinov2.path={dinov2_folder}"]
    smoke = ["experiment=smoke", "model=unet", "steps=[2]", *TINY, "train.budget=2"]
    ended = run(tmp_path, *smoke, *both)
    assert ended.code == 0, ended.err
    results = tmp_path / "results" / "smoke"
    paths = (results / "records").glob("*.json")
    first, second = (json.loads(path.read_text()) for path in paths)
    assert {first["row"]["features"], second["row"]["features"]} == {"dinov2", "local"}
    assert first["row"]["seconds_per_image"] == second["row"]["seconds_per_image"], "sampled once"
    for record in (first, second):
        fingerprints = record["fingerprints"]
        assert fingerprints["features_name"] == record["row"]["features"]
        assert len(fingerprints["features_weights_sha256"]) == 64
        assert fingerprints["features_resize"] and fingerprints["features_dtype"] == "float32"
        assert str(dinov2_folder) not in json.dumps(record), "a machine's folders stay its own"
        assert np.isfinite(record["row"]["fd"]) and record["config"]["features"]
    assert "FD[dinov2]" in (results / "summary.md").read_text()
