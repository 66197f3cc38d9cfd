"""EfficientNet-Lite0 as a feature extractor: its weights are the published ones or none, its
projection is what its card says, and its own head tells ImageNet's classes apart.
"""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import composed
from PIL import Image

from benchmarks.core.errors import BadInput
from benchmarks.core.session import session
from benchmarks.frozen.extractors import load_extractors, probe_split
from metrics import efficientnet
from metrics.features import frechet_features

WNIDS = ["n02123045", "n02124075", "n02129165"]


@pytest.fixture(scope="module")
def extractor():
    (extractor,) = load_extractors(composed("features=efficientnet_lite0").features)
    return extractor


def test_images_of_any_size_have_1280_features_of_which_fd_takes_128(extractor):
    images = torch.randint(256, (2, 3, 40, 40), dtype=torch.uint8)
    features = extractor.net(images)
    assert features.shape == (2, 1280) and features.dtype == torch.float32
    assert frechet_features(extractor.net, features).shape == (2, 128)
    assert extractor.fingerprint["frechet_dim"] == 128


def test_the_projection_is_orthonormal(extractor):
    basis = extractor.net.basis
    assert torch.allclose(basis.T @ basis, torch.eye(128), atol=1e-4)


def test_only_the_published_file_is_read(tmp_path):
    other = tmp_path / "other.pth"
    other.write_bytes(efficientnet.installed_weights("lite1").read_bytes())
    with pytest.raises(BadInput, match=r"is not efficientnet-lite0-57934424\.pth"):
        load_extractors(
            composed(
                "features=efficientnet_lite0", f"features.efficientnet_lite0.weights={other}"
            ).features
        )


def test_without_the_package_one_line_says_so_and_the_others_are_used(monkeypatch, capsys):
    def missing(name):
        raise ImportError(f"needs the weights of the package efficientnet-{name}")

    monkeypatch.setattr(efficientnet, "installed_weights", missing)
    assert [one.name for one in load_extractors(composed().features)] == ["local"]
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 and "efficientnet-lite0" in lines[0]
    assert not session.errors


def test_its_own_head_tells_imagenet_s_classes_apart(extractor):
    """Between the classes of a data set it is the network's own decision."""
    images = torch.randint(256, (8, 3, 64, 64), dtype=torch.uint8)
    features = extractor.net(images)
    labels = efficientnet.imagenet_classes()
    places = torch.tensor([labels.index(name) for name in WNIDS])
    chosen = extractor.net.net.head(features)[:, places].argmax(1)
    assert extractor.net.probe_of(WNIDS).accuracy(features, chosen) == 1
    assert len(labels) == len(set(labels)) == 1000


def test_the_head_is_used_where_all_classes_are_imagenet_s(extractor):
    folder = composed("data=imagefolder", "data.path=/none").data
    assert probe_split(folder, extractor, WNIDS) == "head"
    assert probe_split(folder, extractor, [*WNIDS, "dog"]) != "head"


PHOTOS = os.environ.get("IMAGENET_PHOTOS")  # a folder of <WordNet id>_<name>.JPEG, full-size photos


@pytest.mark.skipif(not PHOTOS, reason="IMAGENET_PHOTOS names no folder of photographs")
def test_photographs_are_recognised():
    """Whether weights, scaling and the order of the classes fit together. Published: 0.75 top-1 on
    50,000 photographs; a hundred have a standard error of 0.04.
    """
    net = efficientnet.EfficientNetLite("lite0", efficientnet.installed_weights("lite0"))
    labels, right, paths = efficientnet.imagenet_classes(), [], sorted(Path(PHOTOS).glob("n*_*"))
    for path in paths:
        photo = Image.open(path).convert("RGB")
        side = min(photo.size)
        corner = [(length - side) // 2 for length in photo.size]
        square = photo.crop((*corner, corner[0] + side, corner[1] + side))
        pixels = torch.from_numpy(np.asarray(square).copy()).permute(2, 0, 1)[None]
        scores = net(efficientnet.resized(pixels, 224))
        right.append(labels[scores.argmax()] == path.name.split("_")[0])
    print(f"top-1 {np.mean(right):.3f} of {len(right)}")
    assert len(right) >= 50 and np.mean(right) >= 0.70, np.mean(right)
