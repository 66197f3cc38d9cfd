"""The same features through the field's own tools: `make agreement` installs them beside the suite and runs this."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import composed
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance

from benchmarks import networks
from benchmarks.pictures import procedural
from metrics.features import extract
from metrics.frechet import frechet_distance
from metrics.kid import kid
from metrics.prdc import prdc

TOOLS = Path(sys.prefix) / "agreement"
SCRIPT = """
import importlib.metadata, json, sys
from unittest.mock import MagicMock
import numpy as np, torch
sys.path.append(sys.argv[1])
for name in ("", ".transforms", ".transforms.functional", ".datasets", ".models"):  # imported, for pictures, never used on features
    sys.modules["torchvision" + name] = MagicMock()
sys.modules["pytorch_fid.inception"] = MagicMock()
from prdc import compute_prdc
from pytorch_fid.fid_score import calculate_frechet_distance
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric
real, fake = (torch.from_numpy(x) for x in np.load(sys.argv[2]).values())
moments = lambda x: (x.double().numpy().mean(0), np.cov(x.double().numpy(), rowvar=False))
statistics = [fid_features_to_statistics(x.double()) for x in (real, fake)]
n = min(len(real), len(fake))
print(json.dumps({
    "pytorch-fid": float(calculate_frechet_distance(*moments(real), *moments(fake))),
    "torch-fidelity": fid_statistics_to_metric(*statistics, False)["frechet_inception_distance"],
    "torch-fidelity kid": kid_features_to_metric(real[:n].double(), fake[:n].double(), kid_subsets=1, kid_subset_size=n, verbose=False)["kernel_inception_distance_mean"],
    "prdc": compute_prdc(real[:n].double().numpy(), fake[:n].double().numpy(), nearest_k=5),
    "versions": {name: importlib.metadata.version(name) for name in ("pytorch-fid", "torch-fidelity", "prdc", "scipy", "scikit-learn")},
}))
"""


def features(n: int, seed: int, shift: float) -> torch.Tensor:
    mix = torch.randn(32, 32, generator=torch.Generator().manual_seed(99)) / 32**0.5
    return (torch.randn(n, 32, generator=torch.Generator().manual_seed(seed)) @ mix + shift).relu()


REAL, FAKE = features(600, 0, 0.0), features(500, 1, 0.2)


class _Identity(torch.nn.Module):
    num_features = 32

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(1).float()


@pytest.fixture(scope="module")
def theirs(tmp_path_factory):
    """What each tool says, computed in a process of its own: torchmetrics does not import where torch-fidelity can be seen."""
    if not TOOLS.is_dir():
        pytest.skip("`make agreement` installs the field's tools")
    import numpy as np

    path = tmp_path_factory.mktemp("agreement") / "features.npz"
    np.savez(path, real=REAL.numpy(), fake=FAKE.numpy())
    done = subprocess.run([sys.executable, "-c", SCRIPT, str(TOOLS), str(path)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    print("agreement with", found["versions"])
    return found


@pytest.mark.parametrize("tool", ["pytorch-fid", "torch-fidelity"])
def test_the_frechet_distance_is_theirs(tool, theirs):
    assert frechet_distance(REAL, FAKE) == pytest.approx(theirs[tool], rel=1e-4)


def test_the_kernel_distance_is_torch_fidelity_s_on_full_sets(theirs):
    assert kid(REAL[:500], FAKE).distance == pytest.approx(theirs["torch-fidelity kid"], rel=1e-4)


def test_precision_and_its_kin_are_prdc_s(theirs):
    assert prdc(REAL, FAKE)._asdict() == pytest.approx(theirs["prdc"], abs=1e-12)


def test_torchmetrics_says_the_same_of_the_same_pictures_through_the_same_network():
    (local,) = networks.load_features(composed().features)
    local.net.num_features = local.net.dim
    sets = [procedural.draw(160, 32, seed=3, stream=stream)[0] for stream in ("train", "reference")]
    theirs = FrechetInceptionDistance(feature=local.net, input_img_size=(3, 32, 32))
    for pictures, real in zip(sets, (True, False), strict=True):
        theirs.update(torch.from_numpy(pictures), real=real)
    mine = frechet_distance(*(extract(local.net, pictures) for pictures in sets))
    assert mine == pytest.approx(theirs.compute().item(), rel=1e-4)


def test_torchmetrics_says_the_same_of_both_distances():
    whole = FrechetInceptionDistance(feature=_Identity(), normalize=True, input_img_size=(32, 1, 1))
    whole.set_dtype(torch.float64)
    kernel = KernelInceptionDistance(feature=_Identity(), subsets=1, subset_size=500, normalize=True)
    for metric, real in ((whole, REAL), (kernel, REAL[:500])):
        metric.update(real[:, :, None, None], real=True)
        metric.update(FAKE[:, :, None, None], real=False)
    assert frechet_distance(REAL, FAKE) == pytest.approx(whole.compute().item(), rel=1e-4)
    assert kid(REAL[:500], FAKE).distance == pytest.approx(kernel.compute()[0].item(), rel=1e-4)
