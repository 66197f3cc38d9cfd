"""The Inception network of torch-fidelity against ours: a program of its own, run by
test_inception.py as `inception_wiring.py <repository> <torch-fidelity> <folder>`.

Apart, since torch-fidelity must not lie in torchmetrics' sight, and since the two feature
extractors need 100 MB of random weights.
"""

import sys
from pathlib import Path

REPOSITORY, TORCH_FIDELITY, FOLDER = sys.argv[1:]
sys.path[:0] = [REPOSITORY, TORCH_FIDELITY]

import torch  # noqa: E402
from omegaconf import OmegaConf  # noqa: E402
from safetensors.torch import save_file  # noqa: E402

from benchmarks.analysis.curves import distance_name  # noqa: E402
from benchmarks.core.errors import BadInput  # noqa: E402
from benchmarks.frozen.extractors import FeatureExtractor, load_extractors  # noqa: E402
from metrics import inception  # noqa: E402


def random_state(folder: Path) -> dict[str, torch.Tensor]:
    """Random weights in the layout of torch-fidelity's network, none of them without effect."""
    theirs = inception.extractor_class()
    empty = folder / "empty.pth"
    torch.save({}, empty)
    load = theirs.load_state_dict
    theirs.load_state_dict = lambda self, state: None  # keeps what it was initialised with
    torch.manual_seed(0)
    net = theirs("x", ["2048"], feature_extractor_weights_path=str(empty))
    theirs.load_state_dict = load
    state = net.state_dict()
    for name, value in state.items():
        if name.endswith("running_var"):
            value.uniform_(0.5, 2)
        elif value.is_floating_point() and value.ndim < 2:
            value.normal_(std=0.3)
    return state


def load_inception(path: Path) -> FeatureExtractor:
    settings = {"weights": None, "inception": {"weights": str(path)}}
    (extractor,) = load_extractors(OmegaConf.create(settings))
    return extractor


def check_features(folder: Path) -> None:
    """Ours are torch-fidelity's, to the last bit, from either kind of file."""
    images = torch.randint(256, (3, 3, 64, 64), dtype=torch.uint8)
    theirs = inception.extractor_class()
    net = theirs("x", ["2048"], feature_extractor_weights_path=str(folder / "random.pth"))
    expected = net(images)[0]
    assert expected.shape == (3, 2048) and expected.std() > 0
    for kind in ("pth", "safetensors"):
        ours = inception.InceptionFeatures(folder / f"random.{kind}")
        assert torch.equal(ours(images), expected), kind
        assert ours.dim == 2048


def check_refusals(folder: Path) -> None:
    """A file that is no whole Inception is one line that names the setting."""
    whole = (folder / "random.pth").read_bytes()
    (folder / "cut.pth").write_bytes(whole[:-5000])
    for bad in ("empty.pth", "cut.pth", "none.pth"):
        try:
            load_inception(folder / bad)
        except BadInput as error:
            assert "features.inception.weights" in str(error) and "\n" not in str(error), error
        else:
            raise AssertionError(f"{bad} was taken")


def main(folder: Path) -> None:
    assert "torchvision" not in sys.modules
    state = random_state(folder)
    torch.save(state, folder / "random.pth")
    save_file(state, folder / "random.safetensors")
    check_features(folder)
    named = distance_name(load_inception(folder / "random.pth").name)
    assert named.startswith("FD[inception-"), f"random weights are not FID's: {named}"
    check_refusals(folder)
    print("same features")


main(Path(FOLDER))
