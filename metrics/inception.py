"""The features of FID itself: the 2048 pooled activations of the 2015 TensorFlow Inception-v3, as
torch-fidelity rebuilt it.

Optional: `pip install -e '.[fid]'`. Only distances over the published weights may be called FID.
"""

import importlib
import importlib.util
import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

URL = "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth"
PUBLISHED = "6726825d"  # how the published file's sha256 begins; its name says so
NAMES = (
    Path(URL).name,
    "pt_inception-2015-12-05-6726825d.pth",
)  # the same file from torch-fidelity and from pytorch-fid


class InceptionFeatures(nn.Module):
    """uint8 (B, 3, H, W) of any size -> float32 (B, 2048). Resized to 299 px by torch-fidelity, as
    TensorFlow 1 did.
    """

    dim = 2048
    resize = "tensorflow1-bilinear-299"

    def __init__(self, weights: str | Path):
        """Raises ValueError for a file that is not the network's state dict, ImportError without
        torch-fidelity.
        """
        super().__init__()
        state = _state_dict(Path(weights))
        with (
            tempfile.TemporaryDirectory() as folder
        ):  # torch-fidelity unpickles what it is given: give it what was loaded safely
            torch.save(state, Path(folder) / "inception.pth")
            try:
                self.net = extractor_class()(
                    "inception-v3-compat",
                    ["2048"],
                    feature_extractor_weights_path=str(Path(folder) / "inception.pth"),
                )
            except RuntimeError:
                raise ValueError(f"{weights} holds another network's weights") from None

    def forward(self, images: Tensor) -> Tensor:
        return self.net(images)[0].float()


def extractor_class() -> type[nn.Module]:
    """torch-fidelity's FeatureExtractorInceptionV3, without running its package's __init__, which
    needs torchvision.
    """
    spec = importlib.util.find_spec("torch_fidelity")
    if spec is None:
        raise ImportError("features=inception needs torch-fidelity: pip install -e '.[fid]'")
    loaded = sys.modules.get("torch_fidelity")
    sys.modules["torch_fidelity"] = loaded or importlib.util.module_from_spec(spec)
    try:
        return importlib.import_module(
            "torch_fidelity.feature_extractor_inceptionv3"
        ).FeatureExtractorInceptionV3
    finally:
        if loaded is None:
            del sys.modules["torch_fidelity"]


def _state_dict(path: Path) -> dict[str, Tensor]:
    try:
        state = (
            load_file(path)
            if path.suffix == ".safetensors"
            else torch.load(path, map_location="cpu", weights_only=True)
        )
        return dict(state)
    except Exception as error:  # torch and safetensors raise many kinds for a damaged file
        raise ValueError(
            f"{path} is not a whole weights file ({' '.join(str(error).split())[:100]})"
        ) from None


def published_weights() -> Path:
    """The published file: in torch's hub cache, or fetched into it. Raises OSError where it cannot
    be fetched.
    """
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    for name in NAMES:
        if (folder / name).exists():
            return folder / name
    folder.mkdir(parents=True, exist_ok=True)
    torch.hub.download_url_to_file(
        URL, str(folder / NAMES[0]), hash_prefix=PUBLISHED, progress=False
    )
    return folder / NAMES[0]
