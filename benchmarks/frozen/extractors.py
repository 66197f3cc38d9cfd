"""The feature extractors behind a distance: which there are, whose weights, and what they may have
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
from benchmarks.core.store import check_card, digest, file_digest, load_weights, read_json
from benchmarks.frozen.autoencoder import SHIPPED_FOLDER
from benchmarks.images import hub, procedural
from metrics.features import WEIGHTS, LocalFeatures

DINOV2_FILES = ("config.json", "model.safetensors")


class Unavailable(BadInput):
    """A feature extractor that is not on this machine and could not be fetched; others may still be
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
    shipped: bool = False  # its weights came with the suite: models/weights/data.json tells of what
    searched: int = 10_000  # training images that copies are looked for in

    @property
    def fingerprint(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "weights_sha256": self.weights,
            "resize": self.net.resize,
            "dtype": self.dtype,
            "dim": self.net.dim,
            # of what the Fréchet distance is taken over
            "frechet_dim": getattr(self.net, "frechet_dim", self.net.dim),
        }

    @property
    def key(self) -> str:
        return digest("features", self.fingerprint)


def load_extractors(cfg: Any) -> list[FeatureExtractor]:
    """The feature extractors of `conf/features/*.yaml`, one or several.

    Of several, one that is not to be had is named in one line and left out. Raises BadInput where
    none is left, and for weights that do not fit.
    """
    loaders = {
        "local": _local,
        "efficientnet_lite0": _efficientnet,
        "inception": _inception,
        "dinov2": _dinov2,
    }
    # several configurations merge into one, each under a key of its own
    wanted = [name for name in cfg if name in loaders]  # in the order that was asked for
    if not wanted:
        raise BadInput(f"features: none of {', '.join(loaders)} is asked for")
    extractors, reasons = [], []
    for name in wanted:
        try:
            extractors.append(loaders[name](cfg[name]))
        except Unavailable as error:
            reasons.append(str(error))
    if not extractors:
        raise BadInput("; ".join(reasons))
    # a sweep loads them for every cell
    for reason in reasons:
        session.print_once(f"not measured: {reason}")
    return extractors


def _local(cfg: Any) -> FeatureExtractor:
    """The classifier that came with the suite, or another one of its architecture."""
    path = Path(cfg.get("weights") or WEIGHTS).expanduser()
    try:
        # the number of classes that it was trained on, which the network has to be built with
        with safe_open(str(path), "pt") as file:
            classes, _ = file.get_slice("head.weight").get_shape()
    except (OSError, ValueError, SafetensorError) as error:
        raise BadInput(
            f"features.weights: {path} is not a whole safetensors file of the local feature "
            f"extractor's weights; FID's go to features.inception.weights ({error})"
        ) from None
    return FeatureExtractor(
        name="local",
        net=load_weights(LocalFeatures(classes), path, "features.weights"),
        weights=file_digest(path),
        shipped=not cfg.get("weights"),
    )


def _published() -> Path:
    """FID's weights. Raises OSError, in one line, where they cannot be fetched or come damaged."""
    from metrics import inception

    # a failed download is not tried again by the next cell of a sweep
    try:
        if "inception" not in session.unreachable:
            return inception.published_weights()
    except (OSError, RuntimeError, HTTPException) as error:  # the second is for a wrong hash
        session.unreachable["inception"] = " ".join(str(error).split())[:100]
    raise OSError(session.unreachable["inception"])


def _inception(cfg: Any) -> FeatureExtractor:
    """Called `inception` over the published weights only; any other file's distances are
    FD[inception-<its hash>].
    """
    from metrics import inception

    path = Path(cfg.weights).expanduser() if cfg.get("weights") else None
    if path and not path.is_file():
        raise BadInput(f"features.inception.weights={path}: no such file")
    try:
        inception.extractor_class()
        path = path or _published()
        net = inception.InceptionFeatures(path)
    except ImportError as error:
        raise Unavailable(str(error)) from None
    except OSError as error:
        raise Unavailable(
            f"features=inception: its weights could not be fetched ({error}); download "
            f"{inception.URL} elsewhere and give the file as features.inception.weights"
        ) from None
    except ValueError as error:
        raise BadInput(f"features.inception.weights: {error}") from None
    # a distance is FID only over the one network that published FIDs are of
    weights = file_digest(path)
    name = "inception" if weights.startswith(inception.PUBLISHED) else f"inception-{weights[:8]}"
    return FeatureExtractor(name=name, net=net, weights=weights)


def _efficientnet(cfg: Any) -> FeatureExtractor:
    """EfficientNet-Lite0 from the package that holds its weights, or from the same file."""
    from metrics import efficientnet

    check_card(efficientnet.PROJECTION, "features=efficientnet_lite0")
    try:
        path = Path(cfg.get("weights") or efficientnet.installed_weights("lite0")).expanduser()
        net = efficientnet.EfficientNetFeatures(path)
    except ImportError as error:
        raise Unavailable(f"features=efficientnet_lite0 {error}") from None
    except (OSError, ValueError) as error:
        raise BadInput(f"features.efficientnet_lite0.weights: {error}") from None
    weights = file_digest(path, efficientnet.PROJECTION)
    # it is slow: on two cores it sees a hundred images a second
    return FeatureExtractor(name="efficientnet_lite0", net=net, weights=weights, searched=2000)


def _dinov2(cfg: Any) -> FeatureExtractor:
    """DINOv2 from a folder or the hub; transformers is imported only where it is asked for."""
    from metrics.dinov2 import Dinov2Features

    try:
        folder = hub.folder(str(cfg.path), DINOV2_FILES, "features.dinov2.path")
    except hub.Unreachable as error:
        raise Unavailable(str(error)) from None
    try:
        net = Dinov2Features(folder)
    except ValueError as error:
        raise BadInput(f"features.dinov2.path: {error}") from None
    weights = file_digest(*(folder / name for name in DINOV2_FILES))
    return FeatureExtractor(name="dinov2", net=net, weights=weights)


def shipped_parts(autoencoder: Any, extractor: FeatureExtractor | None) -> list[str]:
    """Which of the networks behind a measurement came with the suite.

    `autoencoder` is its configuration, None where images came through another. Returns some of
    autoencoder, codebook and judge.
    """
    parts = []
    if autoencoder and autoencoder.kind == "shipped" and not autoencoder.get("weights"):
        parts.append("autoencoder")
        if not autoencoder.get("codebook") and not autoencoder.get("codebook_size"):
            parts.append("codebook")
    if extractor is not None and extractor.shipped:
        parts.append("judge")
    return parts


def overlap(source: str, classes: list[str]) -> list[str] | None:
    """Classes of the data (from `data.source`) that the shipped weights were trained on; None where
    their names cannot tell.
    """
    # WordNet ids mean the same everywhere; "dog" may be any dog
    named_by_wordnet = all(re.fullmatch(r"n\d{8}", name) for name in classes)
    if source != "procedural" and not named_by_wordnet:
        return None
    seen = set((read_json(SHIPPED_FOLDER / "data.json") or {}).get("classes", []))
    return [name for name in classes if name in seen]


def probe_split(data: Any, extractor: FeatureExtractor, classes: list[str]) -> str:
    """What says which class an image shows: `head`, the extractor's own, where it knows the
    classes; else a linear probe on `train` if the extractor has certainly not trained on those
    images, else on the `holdout`.

    `data` is the data set's configuration, `classes` its class names. A probe on images that an
    extractor knows by heart is too good.
    """
    if getattr(extractor.net, "knows", lambda names: False)(classes):
        return "head"
    if data.source == "procedural":
        unseen = extractor.name != "local" or data.seed != procedural.WEIGHTS_SEED
    else:
        # published extractors may have trained on any image of the web
        unseen = extractor.shipped and overlap(data.source, classes) == []
        # a probe must not be asked about images that it was fitted on
        unseen = unseen and data.get("reference_from") != "train"
    return "train" if unseen else "holdout"
