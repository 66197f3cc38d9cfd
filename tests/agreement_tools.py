"""What other people's tools say of two sets of features: python agreement_tools.py TOOLS FEATURES.

In a process of its own, because they import torchvision, which is not installed; nothing of it is
used on features. TOOLS is the folder they are installed in, FEATURES an npz of real and fake.
Prints JSON.
"""

import importlib.metadata
import json
import sys
from unittest.mock import MagicMock

import numpy as np
import torch

sys.path.append(sys.argv[1])
for name in ("", ".transforms", ".transforms.functional", ".datasets", ".models"):
    sys.modules["torchvision" + name] = MagicMock()
sys.modules["pytorch_fid.inception"] = MagicMock()

from prdc import compute_prdc  # noqa: E402
from pytorch_fid.fid_score import calculate_frechet_distance  # noqa: E402
from torch_fidelity.metric_fid import (  # noqa: E402
    fid_features_to_statistics,
    fid_statistics_to_metric,
)
from torch_fidelity.metric_kid import kid_features_to_metric  # noqa: E402

TOOLS = (
    "pytorch-fid",
    "torch-fidelity",
    "prdc",
    "scipy",
    "scikit-learn",
    "efficientnet-lite-pytorch",
)


def moments(features: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Mean and covariance, in float64."""
    rows = features.double().numpy()
    return rows.mean(0), np.cov(rows, rowvar=False)


def main() -> None:
    real, fake = (torch.from_numpy(x) for x in np.load(sys.argv[2]).values())
    n = min(len(real), len(fake))
    first, second = real[:n].double(), fake[:n].double()
    statistics = [fid_features_to_statistics(x.double()) for x in (real, fake)]
    fid = fid_statistics_to_metric(*statistics, False)
    kid = kid_features_to_metric(first, second, kid_subsets=1, kid_subset_size=n, verbose=False)
    said = {
        "pytorch-fid": float(calculate_frechet_distance(*moments(real), *moments(fake))),
        "torch-fidelity": fid["frechet_inception_distance"],
        "torch-fidelity kid": kid["kernel_inception_distance_mean"],
        "prdc": compute_prdc(first.numpy(), second.numpy(), nearest_k=5),
        "versions": {name: importlib.metadata.version(name) for name in TOOLS},
    }
    print(json.dumps(said))


if __name__ == "__main__":
    main()
