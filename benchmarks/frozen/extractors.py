"""The feature networks behind a distance: which there are, whose weights, and what they may have
seen before.
"""

import re
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import nn

from benchmarks.core.errors import BadInput
from benchmarks.core.session import session
from benchmarks.core.store import digest, file_digest, load_weights, read_json
from benchmarks.frozen.autoencoder import SHIPPED_FOLDER
from benchmarks.images import hub, procedural
from metrics.features import WEIGHTS, LocalFeatures

DINOV2_FILES = ("config.json", "model.safetensors")


class Unavailable(BadInput):
    """A feature network that is not on this machine and could not be fetched: others may still be
    measured.
    """


@dataclass(frozen=True)
class FeatureExtractor:
    """A feature network and what names it: two distances compare only where name, weights, resize
    and dtype are the same.
    """

    name: str
    net: nn.Module
    weights: str  # sha256
    dtype: str = "float32"

    @property
    def fingerprint(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "weights_sha256": self.weights,
            "resize": self.net.resize,
            "dtype": self.dtype,
            "dim": self.net.dim,
        }

    @property
    def key(self) -> str:
        return digest("features", self.fingerprint)


def load_extractors(cfg: Any) -> list[FeatureExtractor]:
    """The feature networks of `conf/features/*.yaml`, one or several. Raises BadInput for weights
    that do not fit.

    Of several, one that is not to be had is named in one line and left out; where none is left,
    that is an error.
    """
    loaders = {"local": _local, "inception": _inception, "dinov2": _dinov2}
    wanted = [name for name in loaders if name in cfg]
    if not wanted:
        raise BadInput(f"features: none of {', '.join(loaders)} is asked for")
    found, reasons = [], []
    for name in wanted:
        try:
            found.append(loaders[name](cfg[name]))
        except Unavailable as error:
            reasons.append(str(error))
    if not found:
        raise BadInput("; ".join(reasons))
    for reason in reasons:
        session.print_once(f"not measured: {reason}")
    return found


def _local(cfg: Any) -> FeatureExtractor:
    path = Path(cfg.get("weights") or WEIGHTS).expanduser()
    try:
        with safe_open(str(path), "pt") as file:
            classes, _ = file.get_slice("head.weight").get_shape()
    except (OSError, ValueError, SafetensorError) as error:
        mend = "the local judge's; FID's go to features.inception.weights"
        raise BadInput(
            f"features.weights: {path} is not a whole safetensors file of {mend} ({error})"
        ) from None
    return FeatureExtractor(
        "local", load_weights(LocalFeatures(classes), path, "features.weights"), file_digest(path)
    )


def _published() -> Path:
    """FID's weights. Raises OSError, in one line, where they cannot be fetched or come damaged."""
    from metrics import inception

    try:
        if "inception" not in session.unreachable:
            return inception.published_weights()
    except (
        OSError,
        RuntimeError,
        HTTPException,
    ) as error:  # torch.hub raises the second for a wrong hash
        session.unreachable["inception"] = " ".join(str(error).split())[:100]
    raise OSError(session.unreachable["inception"])


def _inception(cfg: Any) -> FeatureExtractor:
    """Called `inception` over the published weights only; any other file's distances are
    FD[inception-<its hash>].
    """
    from metrics import inception

    mend = f"download {inception.URL} elsewhere and give the file as features.inception.weights"
    path = Path(cfg.weights).expanduser() if cfg.get("weights") else None
    if path and not path.is_file():
        raise BadInput(f"features.inception.weights={path}: no such file")
    try:
        inception.extractor_class()
        path = path or _published()
        net, weights = inception.InceptionFeatures(path), file_digest(path)
    except ImportError as error:
        raise Unavailable(str(error)) from None
    except OSError as error:
        raise Unavailable(
            f"features=inception: its weights could not be fetched ({error}); {mend}"
        ) from None
    except ValueError as error:
        raise BadInput(f"features.inception.weights: {error}") from None
    name = "inception" if weights.startswith(inception.PUBLISHED) else f"inception-{weights[:8]}"
    return FeatureExtractor(name, net, weights)


def _dinov2(cfg: Any) -> FeatureExtractor:
    from metrics.dinov2 import Dinov2Features

    try:
        folder = hub.folder(str(cfg.path), DINOV2_FILES, "features.dinov2.path")
    except hub.Unreachable as error:
        raise Unavailable(str(error)) from None
    try:
        return FeatureExtractor(
            "dinov2", Dinov2Features(folder), file_digest(*(folder / name for name in DINOV2_FILES))
        )
    except ValueError as error:
        raise BadInput(f"features.dinov2.path: {error}") from None


def shipped_parts(cfg: Any, features: FeatureExtractor | None) -> list[str]:
    """Which of the networks behind a measurement are the shipped ones."""
    autoencoder = cfg.autoencoder.kind == "shipped" and not cfg.autoencoder.get("weights")
    codebook = (
        autoencoder
        and not cfg.autoencoder.get("codebook")
        and not cfg.autoencoder.get("codebook_size")
    )
    judge = (
        features is not None and features.name == "local" and not cfg.features.local.get("weights")
    )
    return [
        name
        for name, is_shipped in (
            ("autoencoder", autoencoder),
            ("codebook", codebook),
            ("judge", judge),
        )
        if is_shipped
    ]


def overlap(cfg: Any, classes: list[str]) -> list[str] | None:
    """Classes of the data that the shipped weights were trained on; None where their names cannot
    tell.
    """
    seen = set((read_json(SHIPPED_FOLDER / "data.json") or {}).get("classes", []))
    comparable = cfg.data.source == "procedural" or all(
        re.fullmatch(r"n\d{8}", name) for name in classes
    )  # WordNet ids
    return [name for name in classes if name in seen] if comparable else None


def probe_split(cfg: Any, features: FeatureExtractor, classes: list[str]) -> str:
    """Where the probe's real pictures come from: `train` if the judge has certainly not trained on
    those, else `holdout`.
    """
    if cfg.data.source == "procedural":
        unseen = features.name != "local" or cfg.data.seed != procedural.WEIGHTS_SEED
    else:
        unseen = "judge" in shipped_parts(cfg, features) and overlap(cfg, classes) == []
    return "train" if unseen else "holdout"
