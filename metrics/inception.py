"""The features of FID itself (arXiv 1706.08500): the 2048 pooled activations of the 2015 TensorFlow
Inception-v3, as torch-fidelity rebuilt it.

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

PUBLISHED = "6726825d"  # how the published file's sha256 begins; its name says so
# the same file as torch-fidelity and as pytorch-fid name it
NAMES = (
    f"weights-inception-2015-12-05-{PUBLISHED}.pth",
    f"pt_inception-2015-12-05-{PUBLISHED}.pth",
)
URL = f"https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{NAMES[0]}"


class InceptionFeatures(nn.Module):
    """uint8 (B, 3, H, W) of any size -> float32 (B, 2048).

    Resized to 299 px by torch-fidelity, as TensorFlow 1 did.
    """

    dim = 2048
    resize = "tensorflow1-bilinear-299"

    def __init__(self, weights: str | Path):
        """From a .pth or .safetensors file.

        Raises ValueError for a file that is not the network's state dict, ImportError without
        torch-fidelity.
        """
        super().__init__()
        state = _state_dict(Path(weights))
        # torch-fidelity unpickles the file it is given: give it a copy of what was loaded safely.
        with tempfile.TemporaryDirectory() as folder:
            copy = Path(folder) / "inception.pth"
            torch.save(state, copy)
            try:
                self.net = extractor_class()(
                    "inception-v3-compat", ["2048"], feature_extractor_weights_path=str(copy)
                )
            except RuntimeError:
                raise ValueError(f"{weights} holds another network's weights") from None

    def forward(self, images: Tensor) -> Tensor:
        return self.net(images)[0].float()


def extractor_class() -> type[nn.Module]:
    """torch-fidelity's FeatureExtractorInceptionV3. Raises ImportError without torch-fidelity.

    Its package's __init__ needs torchvision, and is not run: an empty package stands in for it
    while the one module is imported.
    """
    spec = importlib.util.find_spec("torch_fidelity")
    if spec is None:
        raise ImportError("features=inception needs torch-fidelity: pip install -e '.[fid]'")
    loaded = sys.modules.get("torch_fidelity")
    sys.modules["torch_fidelity"] = loaded or importlib.util.module_from_spec(spec)
    try:
        module = importlib.import_module("torch_fidelity.feature_extractor_inceptionv3")
        return module.FeatureExtractorInceptionV3
    finally:
        if loaded is None:
            del sys.modules["torch_fidelity"]


def _state_dict(path: Path) -> dict[str, Tensor]:
    """The tensors of a weights file by name. Raises ValueError for anything else."""
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        # A pickle may run code; with `weights_only` it cannot.
        return dict(torch.load(path, map_location="cpu", weights_only=True))
    except Exception as error:  # torch and safetensors raise many kinds for a damaged file
        reason = " ".join(str(error).split())[:100]
        raise ValueError(f"{path} is not a whole weights file ({reason})") from None


def published_weights() -> Path:
    """The published file: in torch's hub cache, or downloaded into it.

    Raises OSError where it cannot be downloaded.
    """
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    for name in NAMES:
        if (folder / name).exists():
            return folder / name
    folder.mkdir(parents=True, exist_ok=True)
    # The hash is checked while it comes: a broken download is never taken for the file.
    torch.hub.download_url_to_file(
        URL, str(folder / NAMES[0]), hash_prefix=PUBLISHED, progress=False
    )
    return folder / NAMES[0]
