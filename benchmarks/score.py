"""The judges of one data set: features of its real pictures, its floors, and the scores of generated ones."""

import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from benchmarks import hub, procedural
from benchmarks.data import Dataset, Split
from benchmarks.latents import LatentSet
from benchmarks.sample import decode
from benchmarks.space import SHIPPED, LatentSpace
from benchmarks.store import BadInput, digest, file_digest, load_weights, read_json, read_tensors, seeded, write_tensors
from metrics.features import WEIGHTS, LocalFeatures, extract
from metrics.frechet import bootstrap_sd, frechet_bias, frechet_distance
from metrics.prdc import NEIGHBOURS, prdc
from metrics.probe import Probe, fit_probe

PROBE_IMAGES = 5000
DINOV2_FILES = ("config.json", "model.safetensors")


class Unavailable(BadInput):
    """A feature network that is not on this machine and could not be fetched: others may still be measured."""


@dataclass(frozen=True)
class Features:
    """A feature network and what names it: two distances compare only where name, weights, resize and dtype are the same."""

    name: str
    net: nn.Module
    weights: str  # sha256
    dtype: str = "float32"

    @property
    def fingerprint(self) -> dict[str, Any]:
        return {"name": self.name, "weights_sha256": self.weights, "resize": self.net.resize, "dtype": self.dtype, "dim": self.net.dim}

    @property
    def key(self) -> str:
        return digest("features", self.fingerprint)


def load_features(cfg: Any) -> list[Features]:
    """The feature networks of `conf/features/*.yaml`, one or several. Raises BadInput for weights that do not fit.

    Of several, one that is not to be had is named in one line and left out; where none is left, that is an error.
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
        _say_once(f"not measured: {reason}")
    return found


@lru_cache
def _say_once(line: str) -> None:
    """Print a line, once in a process, however many cells of a sweep have the same to say."""
    print(line, flush=True)


def _local(cfg: Any) -> Features:
    path = Path(cfg.get("weights") or WEIGHTS).expanduser()
    try:
        with safe_open(str(path), "pt") as file:
            classes = file.get_slice("head.weight").get_shape()[0]
    except (OSError, SafetensorError) as error:
        mend = "the local judge's; FID's go to features.inception.weights"
        raise BadInput(f"features.weights: {path} is not a whole safetensors file of {mend} ({error})") from None
    return Features("local", load_weights(LocalFeatures(classes), path, "features.weights"), file_digest(path))


@lru_cache
def _asked() -> dict[str, str]:
    """What could not be fetched, so that the other cells of a sweep do not ask again."""
    return {}


def _published() -> Path:
    """FID's weights. Raises OSError, in one line, where they cannot be fetched or come damaged."""
    from metrics import inception

    try:
        if "inception" not in _asked():
            return inception.published_weights()
    except (OSError, RuntimeError) as error:  # torch.hub raises the latter for a wrong hash
        _asked()["inception"] = " ".join(str(error).split())[:100]
    raise OSError(_asked()["inception"])


def _inception(cfg: Any) -> Features:
    """Called `inception` over the published weights only; any other file's distances are FD[inception-<its hash>]."""
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
        raise Unavailable(f"features=inception: its weights could not be fetched ({error}); {mend}") from None
    except ValueError as error:
        raise BadInput(f"features.inception.weights: {error}") from None
    name = "inception" if weights.startswith(inception.PUBLISHED) else f"inception-{weights[:8]}"
    return Features(name, net, weights)


def _dinov2(cfg: Any) -> Features:
    from metrics.dinov2 import Dinov2Features

    try:
        folder = hub.folder(str(cfg.path), DINOV2_FILES, "features.dinov2.path")
    except hub.Unreachable as error:
        raise Unavailable(str(error)) from None
    try:
        return Features("dinov2", Dinov2Features(folder), file_digest(*(folder / name for name in DINOV2_FILES)))
    except ValueError as error:
        raise BadInput(f"features.dinov2.path: {error}") from None


@dataclass(frozen=True)
class Judge:
    """Scores pictures against one data set's reference split."""

    features: Features
    reference: Tensor  # (M, d) features
    train: Tensor  # of at most 5000 training pictures: what guidance is chosen by
    probe: Probe
    probe_split: str  # the split whose pictures it was fitted on
    ceilings: dict[str, float]  # columns that are the same for every row: the floors and the real label accuracy
    device: torch.device

    def score(self, images: Tensor, labels: Tensor) -> tuple[dict[str, float], dict[str, float]]:
        """Of uint8 pictures (N, 3, H, W) drawn for `labels` (N,): columns of results.csv, and what settings may be chosen by.

        Precision and its kin are of as many reference pictures as there are samples, the first ones of each class; empty below 8.
        """
        features = extract(self.features.net, images.numpy(), device=self.device)
        rng = seeded("bootstrap", self.features.key)
        near = prdc(self.reference, features)._asdict() if min(len(features), len(self.reference)) > NEIGHBOURS + 1 else {}
        return near | {
            "fd": frechet_distance(self.reference, features),
            "fd_sd": bootstrap_sd(self.reference, features, rng=rng),
            "label_accuracy": self.probe.accuracy(features, labels),
        }, {"fd_train": frechet_distance(self.train, features)}


def prepare(
    features: Features, dataset: Dataset, space: LatentSpace, data: LatentSet, *, cache: str | Path, device: torch.device, split: str
) -> Judge:
    """The judge of a data set: features of the real pictures, the probe and the floors, computed once and cached.

    The probe is fitted on pictures of `split`: see `probe_split`.
    """
    key = digest("judge", 3, features.key, dataset.key, data.key, split)
    path = Path(cache) / "judge" / f"{key}.safetensors"
    ready = read_tensors(path, key)
    tensors = ready[0] if ready else _measure(features.net, dataset, space, data, device, split)
    if not ready:
        write_tensors(path, key, tensors)
    probe, reference = Probe(*(tensors[name] for name in Probe._fields)), tensors["reference"]
    labels = torch.from_numpy(dataset.reference.labels.copy())
    ceilings = {
        "fd_floor_analytic": frechet_bias(reference, len(tensors["floor"]), len(reference)),
        "fd_floor_real": frechet_distance(reference, tensors["floor"]),
        "fd_floor_autoencoder": frechet_distance(reference, tensors["floor_autoencoder"]),
        "fd_floor_codebook": frechet_distance(reference, tensors["floor_codebook"]),
        "label_accuracy_real": probe.accuracy(reference, labels),
    }
    return Judge(features, reference, tensors["train"], probe, split, ceilings, device)


def shipped_parts(cfg: Any, features: Features | None) -> list[str]:
    """Which of the networks behind a measurement are the shipped ones."""
    autoencoder = cfg.autoencoder.kind == "shipped" and not cfg.autoencoder.get("weights")
    codebook = autoencoder and not cfg.autoencoder.get("codebook") and not cfg.autoencoder.get("codebook_size")
    judge = features is not None and features.name == "local" and not cfg.features.local.get("weights")
    return [name for name, is_shipped in (("autoencoder", autoencoder), ("codebook", codebook), ("judge", judge)) if is_shipped]


def overlap(cfg: Any, classes: list[str]) -> list[str] | None:
    """Classes of the data that the shipped weights were trained on; None where their names cannot tell."""
    seen = set((read_json(SHIPPED / "data.json") or {}).get("classes", []))
    comparable = cfg.data.source == "procedural" or all(re.fullmatch(r"n\d{8}", name) for name in classes)  # WordNet ids
    return [name for name in classes if name in seen] if comparable else None


def probe_split(cfg: Any, features: Features, classes: list[str]) -> str:
    """Where the probe's real pictures come from: `train` if the judge has certainly not trained on those, else `floor`."""
    if cfg.data.source == "procedural":
        unseen = features.name != "local" or cfg.data.seed != procedural.WEIGHTS_SEED
    else:
        unseen = "judge" in shipped_parts(cfg, features) and overlap(cfg, classes) == []
    return "train" if unseen else "floor"


def probe_pictures(dataset: Dataset, split: str) -> Split:
    """The real pictures that the probe is fitted on: at most 5000 of a split, at random but always the same."""
    whole = getattr(dataset, split)
    some = torch.randperm(len(whole), generator=seeded("probe"))[:PROBE_IMAGES].numpy()
    return Split(whole.pixels, whole.index[some], whole.labels[some])


def _measure(
    net: nn.Module, dataset: Dataset, space: LatentSpace, data: LatentSet, device: torch.device, probe_split: str
) -> dict[str, Tensor]:
    """Features of the reference, of the floor split as it is and rebuilt in two ways, and the probe fitted on real pictures."""
    rebuilt = reconstruct(dataset.floor, space, data, device)
    pictures = {"reference": dataset.reference, "floor": dataset.floor} | {f"floor_{k}": v.numpy() for k, v in rebuilt.items()}
    tensors = {name: extract(net, images, device=device) for name, images in pictures.items()}
    tensors["train"] = extract(net, probe_pictures(dataset, "train"), device=device)
    split = probe_pictures(dataset, probe_split)
    seen = tensors["train"] if probe_split == "train" else extract(net, split, device=device)
    probe = fit_probe(seen, torch.from_numpy(split.labels.copy()), len(dataset.classes))
    return tensors | probe._asdict()


@torch.inference_mode()
def reconstruct(split: Split, space: LatentSpace, data: LatentSet, device: torch.device) -> dict[str, Tensor]:
    """A split's pictures through the autoencoder and through autoencoder and codebook, uint8 (N, 3, H, W) each."""
    space, out = space.to(device), {"autoencoder": [], "codebook": []}
    book = space.codebook.whitened(data.mean, data.std)
    batch = space.at_once(split.pixels.shape[-1])
    for start in range(0, len(split), batch):
        images = torch.from_numpy(split[start : start + batch]).to(device)
        latents = space.autoencoder.encode(images)
        whitened = (latents - data.mean.to(device)[:, None, None]) / data.std.to(device)[:, None, None]
        out["autoencoder"].append(decode(space, data, whitened))
        out["codebook"].append(decode(space, data, book.detokenize(book.tokenize(whitened))))
    return {name: torch.cat(parts) for name, parts in out.items()}
