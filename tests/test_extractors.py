"""The judges: FD[local], FID's Inception-v3, DINOv2; what they are fingerprinted by, and what
happens where one is not to be had.
"""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import composed
from omegaconf import OmegaConf

from benchmarks.core.errors import BadInput
from benchmarks.core.session import session
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
from benchmarks.stages import score
from benchmarks.stages.score import prepare_evaluator
from metrics import inception
from metrics.features import WEIGHTS, LocalFeatures, extract
from metrics.probe import fit_probe

TEST_ONLY = (
    Path(sys.prefix) / "test-only"
)  # `make setup` puts torch-fidelity there, out of torchmetrics' sight
PICTURES = torch.randint(
    256, (5, 3, 64, 64), generator=torch.Generator().manual_seed(0), dtype=torch.uint8
)


def features(*overrides: str) -> list[FeatureExtractor]:
    return load_extractors(composed(*overrides).features)


def test_local_features_take_any_size_in_any_batching():
    net = LocalFeatures(7).eval()
    images = torch.randint(256, (10, 3, 32, 32), dtype=torch.uint8).numpy()
    whole = extract(net, images, batch=10)
    assert whole.shape == (10, net.dim) and net.dim <= 256 and whole.dtype == torch.float32
    torch.testing.assert_close(extract(net, images, batch=3), whole, atol=1e-5, rtol=1e-4)
    assert extract(net, images.repeat(2, axis=2).repeat(2, axis=3)).shape == (10, net.dim)


def test_the_shipped_judge_tells_procedural_classes_apart():
    (local,) = features()
    (train, labels), (test, truth) = (
        procedural.generate(400, 32, seed=3),
        procedural.generate(200, 32, seed=3, stream="reference"),
    )
    probe = fit_probe(extract(local.net, train), torch.from_numpy(labels), 10)
    assert probe.accuracy(extract(local.net, test), torch.from_numpy(truth)) > 0.9


def test_a_fingerprint_names_network_weights_resize_and_type(tmp_path):
    (local,) = features()
    card = json.loads(WEIGHTS.with_suffix(".json").read_text())
    expected = {
        "name": "local",
        "weights_sha256": card["sha256"],
        "resize": "bilinear-antialias-64",
        "dtype": "float32",
        "dim": 128,
    }
    assert local.fingerprint == expected
    assert FeatureExtractor("local", local.net, card["sha256"]).key == local.key
    others = [
        FeatureExtractor("local", local.net, "0" * 64),
        FeatureExtractor("other", local.net, card["sha256"]),
    ]
    others.append(FeatureExtractor("local", local.net, card["sha256"], dtype="bfloat16"))
    resized = LocalFeatures(90)
    resized.resize = "nearest-64"
    others.append(FeatureExtractor("local", resized, card["sha256"]))
    assert len({local.key, *(f.key for f in others)}) == 5, (
        "other weights, name, type or resize, another key"
    )


def test_features_are_extracted_once_for_each_key(tmp_path, monkeypatch):
    cfg = composed("data.train_images=40", "data.reference_images=20", "data.image_size=32")
    dataset, calls = load_dataset(cfg.data, num_samples=20, cache=tmp_path), []
    monkeypatch.setattr(
        score,
        "extract",
        lambda net, images, **rest: calls.append(1) or extract(net, images, **rest),
    )
    (local,) = features()
    twin = FeatureExtractor("local", local.net, "0" * 64)
    counts = []
    for one in (local, local, twin):
        prepare_evaluator(
            one,
            dataset,
            dict,
            key="as they are",
            cache=tmp_path,
            device=torch.device("cpu"),
            split="train",
        )
        counts.append(len(calls))
    assert 0 < counts[0] == counts[1] < counts[2] == 2 * counts[0]


@pytest.mark.parametrize("damage", ["cut", "changed"])
def test_damaged_weights_are_refused_by_their_hash(tmp_path, damage):
    path, whole = tmp_path / "judge.safetensors", WEIGHTS.read_bytes()
    path.write_bytes(whole[:-1000] if damage == "cut" else whole[:-1] + bytes([whole[-1] ^ 1]))
    (tmp_path / "judge.json").write_text(WEIGHTS.with_suffix(".json").read_text())
    with pytest.raises(BadInput, match=r"features\.weights: .*judge\.safetensors") as error:
        features(f"features.weights={path}")
    assert "\n" not in str(error.value)


def test_the_probe_never_sees_pictures_the_judge_trained_on():
    (local,) = features()
    seen = json.loads((SHIPPED_FOLDER / "data.json").read_text())["classes"]
    trained_on = [name for name in seen if name.startswith("n")]
    folder = composed("data=imagefolder", "data.path=/x")
    assert probe_split(folder, local, trained_on[:3]) == "holdout"
    assert probe_split(folder, local, ["cats", "dogs"]) == "holdout", (
        "names that cannot tell count as seen"
    )
    assert probe_split(folder, local, ["n00000001", "n00000002"]) == "train"
    drawn = composed()
    assert probe_split(drawn, local, procedural.CLASS_NAMES) == "train", (
        "the benchmark's own seed is another"
    )
    assert (
        probe_split(composed(f"data.seed={procedural.WEIGHTS_SEED}"), local, procedural.CLASS_NAMES)
        == "holdout"
    )
    assert shipped_parts(drawn, local) == ["autoencoder", "codebook", "judge"]
    other = FeatureExtractor("dinov2", local.net, "0")
    assert shipped_parts(drawn, other) == ["autoencoder", "codebook"], (
        "not every row was judged by the shipped judge"
    )
    imagenet = FeatureExtractor("dinov2", local.net, "0")
    assert probe_split(folder, imagenet, ["n00000001"]) == "holdout", (
        "it may have trained on any ImageNet picture"
    )


WIRING = """
import sys, torch
sys.path[:0] = [sys.argv[1], sys.argv[2]]
from safetensors.torch import save_file
from metrics import inception
assert "torchvision" not in sys.modules
Theirs = inception.extractor_class()
torch.save({}, sys.argv[3] + "/empty.pth")
load, Theirs.load_state_dict = Theirs.load_state_dict, lambda self, state: None
torch.manual_seed(0)
state = Theirs("x", ["2048"], feature_extractor_weights_path=sys.argv[3] + "/empty.pth").state_dict()
Theirs.load_state_dict = load
for name, value in state.items():
    if name.endswith("running_var"):
        value.uniform_(0.5, 2)
    elif value.is_floating_point() and value.ndim < 2:
        value.normal_(std=0.3)
torch.save(state, sys.argv[3] + "/random.pth")
save_file(state, sys.argv[3] + "/random.safetensors")
pictures = torch.randint(256, (3, 3, 64, 64), dtype=torch.uint8)
expected = Theirs("x", ["2048"], feature_extractor_weights_path=sys.argv[3] + "/random.pth")(pictures)[0]
assert expected.shape == (3, 2048) and expected.std() > 0
for kind in ("pth", "safetensors"):
    ours = inception.InceptionFeatures(sys.argv[3] + "/random." + kind)
    assert torch.equal(ours(pictures), expected), kind
    assert ours.dim == 2048
from benchmarks.analysis.curves import distance_name
from omegaconf import OmegaConf
(mine,) = load_extractors(OmegaConf.create({"weights": None, "inception": {"weights": sys.argv[3] + "/random.pth"}}))
assert distance_name(mine.name).startswith("FD[inception-"), distance_name(mine.name)
for bad in ("empty.pth", "cut.pth", "none.pth"):
    if bad == "cut.pth":
        open(sys.argv[3] + "/cut.pth", "wb").write(open(sys.argv[3] + "/random.pth", "rb").read()[:-5000])
    try:
        load_extractors(OmegaConf.create({"weights": None, "inception": {"weights": sys.argv[3] + "/" + bad}}))
        raise SystemExit(bad + " was taken")
    except BadInput as error:
        assert "features.inception.weights" in str(error) and "\\n" not in str(error), error
print("same features")
"""


@pytest.mark.skipif(
    not (TEST_ONLY / "torch_fidelity").is_dir(),
    reason="`make setup` puts torch-fidelity into .venv/test-only",
)
def test_inception_features_are_torch_fidelity_s(tmp_path):
    """Random weights in the exact state-dict layout; random weights must not be called FID."""
    root = Path(__file__).parent.parent
    done = subprocess.run(
        [sys.executable, "-c", WIRING, root, TEST_ONLY, tmp_path],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0 and "same features" in done.stdout, done.stderr


def test_only_the_published_inception_is_called_fid():
    from benchmarks.reports.plots import distance_name

    assert distance_name("inception") == "FID"
    assert [distance_name(name) for name in ("local", "dinov2", "inception-12345678")] == [
        "FD[local]",
        "FD[dinov2]",
        "FD[inception-12345678]",
    ]
    assert inception.PUBLISHED in inception.URL


def test_without_inception_the_others_are_still_measured(monkeypatch, capsys):
    monkeypatch.setattr(
        inception,
        "extractor_class",
        lambda: (_ for _ in ()).throw(ImportError("no torch-fidelity")),
    )
    assert [f.name for f in features("features=[local,inception]")] == ["local"]
    assert [f.name for f in features("features=[local,inception]")] == ["local"]
    assert capsys.readouterr().out.count("no torch-fidelity") == 1, "one line, once"
    with pytest.raises(BadInput, match="no torch-fidelity"):
        features("features=inception")


def test_weights_that_cannot_be_fetched_say_what_to_download(monkeypatch, tmp_path):
    def fetch(*args, **kwargs):
        raise getattr(fetch, "error", OSError("no network"))

    monkeypatch.setattr(inception, "extractor_class", lambda: None)
    monkeypatch.setattr(torch.hub, "download_url_to_file", fetch)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    for _ in range(2):
        session.unreachable.clear()
        with pytest.raises(
            BadInput, match=r"download https://.*6726825d\.pth .*features\.inception\.weights"
        ):
            features("features=inception")
        fetch.error = RuntimeError("invalid hash value")


@pytest.fixture(scope="module")
def dinov2_folder(tmp_path_factory):
    from transformers import Dinov2Config, Dinov2Model

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("dinov2")
    config = Dinov2Config(
        hidden_size=24, num_hidden_layers=2, num_attention_heads=2, patch_size=14, image_size=28
    )
    Dinov2Model(config).save_pretrained(folder)
    return folder


def test_dinov2_features_are_the_class_token_of_normalised_bicubic_pictures(dinov2_folder):
    from transformers import Dinov2Model

    (dino,) = features("features=dinov2", f"features.path={dinov2_folder}")
    assert (
        dino.name == "dinov2"
        and dino.net.dim == 24
        and dino.fingerprint["resize"] == "bicubic-antialias-224"
    )
    x = F.interpolate(
        PICTURES.float() / 255, size=(224, 224), mode="bicubic", antialias=True
    ).clamp(0, 1)
    x = (x - torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)) / torch.tensor(
        [0.229, 0.224, 0.225]
    ).view(3, 1, 1)
    with torch.no_grad():
        expected = Dinov2Model.from_pretrained(dinov2_folder).eval()(x).last_hidden_state[:, 0]
    torch.testing.assert_close(extract(dino.net, PICTURES.numpy()), expected, atol=1e-5, rtol=1e-4)


def test_dinov2_that_cannot_be_fetched_says_what_to_download_and_others_go_on(monkeypatch):
    def fail(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr(hub.huggingface_hub, "snapshot_download", fail)
    with pytest.raises(BadInput) as error:
        features("features=dinov2")
    said = str(error.value)
    assert "\n" not in said and all(
        part in said for part in ("config.json", "model.safetensors", "features.dinov2.path")
    )
    assert [f.name for f in features("features=[local,dinov2]")] == ["local"]


def test_dinov2_refuses_what_is_not_a_dinov2(dinov2_folder, tmp_path):
    from safetensors.torch import load_file, save_file

    with pytest.raises(BadInput, match="no such folder"):
        features("features=dinov2", f"features.path={tmp_path}/none")
    with pytest.raises(BadInput, match=r"the folder has no config\.json"):
        features("features=dinov2", f"features.path={tmp_path}")
    (tmp_path / "config.json").write_text((dinov2_folder / "config.json").read_text())
    state = load_file(dinov2_folder / "model.safetensors")
    save_file(
        {f"other.{k}": v for k, v in state.items()},
        tmp_path / "model.safetensors",
        metadata={"format": "pt"},
    )
    with pytest.raises(BadInput, match="another network's weights"):
        features("features=dinov2", f"features.path={tmp_path}")
    (tmp_path / "model.safetensors").write_bytes(
        (dinov2_folder / "model.safetensors").read_bytes()[:-100]
    )
    with pytest.raises(BadInput, match="not a whole Dinov2"):
        features("features=dinov2", f"features.path={tmp_path}")


def test_training_a_judge_teaches_it_something():
    images, labels = procedural.generate(300, 64, seed=1)
    judge = train_extractor.train_judge(images, labels, 10, count=3200, device="cpu")
    other, truth = procedural.generate(200, 64, seed=1, stream="reference")
    assert train_extractor.top1(judge, other, truth, "cpu") > 0.3, "chance is 0.1"
    assert train_extractor.images_per_second(judge, 32, "cpu", batch=8) > 0


def test_zooming_keeps_pictures_inside_themselves():
    ramp = torch.linspace(-1, 1, 64).expand(8, 3, 64, 64).contiguous()
    out = train_extractor.zoomed(ramp, torch.Generator().manual_seed(0))
    assert out.shape == ramp.shape and out.min() >= -1 and out.max() <= 1
    spans = out[:, 0, 0, -1] - out[:, 0, 0, 0]
    assert (
        (spans > 2 * train_extractor.LEAST_ZOOM - 0.1).all()
        and (spans < 2.01).all()
        and spans.std() > 0
    )


def test_the_judge_command_prints_one_json_line_per_network(tmp_path, dinov2_folder):
    overrides = [
        "data.image_size=32",
        "data.train_images=60",
        "data.reference_images=20",
        "num_samples=20",
        f"cache_dir={tmp_path}",
    ]
    command = [
        sys.executable,
        "-m",
        "benchmarks",
        "probe",
        "features=[local,dinov2]",
        f"features.dinov2.path={dinov2_folder}",
        *overrides,
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()[-2:]]
    assert [line["features"] for line in lines] == ["local", "dinov2"]
    assert all(
        set(line) == {"features", "dim", "images_per_second", "probe_images", "probe_accuracy"}
        for line in lines
    )
    assert lines[1]["dim"] == 24 and all(
        0 <= line["probe_accuracy"] <= 1 and line["images_per_second"] > 0 for line in lines
    )


def test_one_row_for_each_judge_and_one_drawing_for_both(tmp_path, dinov2_folder):
    overrides = [
        "experiment=smoke",
        "model=unet",
        "hydra.sweeper.params.model=unet",
        "steps=[2]",
        "data.train_images=64",
        "train.budget=64",
    ]
    overrides += [
        "data.reference_images=20",
        "num_samples=20",
        f"cache_dir={tmp_path}/cache",
        f"results_dir={tmp_path}",
    ]
    overrides += ["features=[local,dinov2]", f"features.dinov2.path={dinov2_folder}"]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "run", *overrides],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    found = [
        json.loads(path.read_text()) for path in (tmp_path / "smoke" / "records").glob("*.json")
    ]
    assert sorted(record["row"]["features"] for record in found) == ["dinov2", "local"]
    assert found[0]["row"]["seconds_per_image"] == found[1]["row"]["seconds_per_image"], (
        "one drawing"
    )
    for record in found:
        prints = record["fingerprints"]
        assert (
            prints["features_name"] == record["row"]["features"]
            and len(prints["features_weights_sha256"]) == 64
        )
        assert prints["features_resize"] and prints["features_dtype"] == "float32"
        assert str(dinov2_folder) not in json.dumps(record), (
            "records do not tell where a machine keeps its files"
        )
    assert "FD[dinov2]" in (tmp_path / "smoke" / "summary.md").read_text()
    assert np.isfinite([record["row"]["fd"] for record in found]).all()
    assert OmegaConf.create(found[0]["config"]).features
