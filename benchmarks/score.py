"""The judge of one data set: features of its real pictures, its floors, and the scores of generated ones."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from benchmarks.data import Dataset, Split
from benchmarks.latents import LatentSet, LatentSpace
from benchmarks.sample import decode
from benchmarks.store import BadInput, digest, file_digest, read_tensors, seeded, write_tensors
from metrics.features import WEIGHTS, LocalFeatures, extract
from metrics.frechet import bootstrap_sd, frechet_bias, frechet_distance
from metrics.probe import Probe, fit_probe
from models.autoencoder import load_weights

PROBE_IMAGES = 5000


@dataclass(frozen=True)
class Judge:
    """Scores pictures against one data set's reference split."""

    name: str
    fingerprint: str
    net: nn.Module
    reference: Tensor  # (M, d) features
    probe: Probe
    ceilings: dict[str, float]  # columns that are the same for every row: the floors and the real label accuracy
    device: torch.device

    def score(self, images: Tensor, labels: Tensor) -> dict[str, float]:
        """Columns fd, fd_sd and label_accuracy of uint8 pictures (N, 3, H, W) drawn for `labels` (N,)."""
        features = extract(self.net, images.numpy(), device=self.device)
        rng = seeded("bootstrap", self.fingerprint)
        return {
            "fd": frechet_distance(self.reference, features),
            "fd_sd": bootstrap_sd(self.reference, features, rng=rng),
            "label_accuracy": self.probe.accuracy(features, labels),
        }


def load_features(cfg: Any) -> tuple[nn.Module, str]:
    """The feature network of `conf/features/*.yaml` and its fingerprint. Raises BadInput for weights that do not fit."""
    if cfg.name != LocalFeatures.name:
        raise BadInput(f"features.name={cfg.name}: the only feature network here is called {LocalFeatures.name}")
    path = Path(cfg.get("weights") or WEIGHTS)
    try:
        with safe_open(str(path), "pt") as file:
            classes = file.get_slice("head.weight").get_shape()[0]
        net = load_weights(LocalFeatures(classes), path, "features.weights")
    except (OSError, SafetensorError) as error:
        raise BadInput(f"features.weights: {path} is not a whole safetensors file ({error})") from None
    except ValueError as error:
        raise BadInput(str(error)) from None
    return net, digest("features", cfg.name, file_digest(path), "bilinear-antialias-64", "float32")


def prepare(cfg: Any, dataset: Dataset, space: LatentSpace, data: LatentSet, *, cache: str | Path, device: torch.device) -> Judge:
    """The judge of a data set: features of the real pictures, the probe and the floors, computed once and cached."""
    net, fingerprint = load_features(cfg)
    key = digest("judge", 1, fingerprint, dataset.key, data.key)
    path = Path(cache) / "judge" / f"{key}.safetensors"
    ready = read_tensors(path, key)
    tensors = ready[0] if ready else _measure(net, dataset, space, data, device)
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
    return Judge(cfg.name, fingerprint, net, reference, probe, ceilings, device)


def _measure(net: nn.Module, dataset: Dataset, space: LatentSpace, data: LatentSet, device: torch.device) -> dict[str, Tensor]:
    """Features of the reference, of the floor split as it is and rebuilt in two ways, and the probe fitted on training pictures."""
    some = torch.randperm(len(dataset.train), generator=seeded("probe"))[:PROBE_IMAGES].numpy()
    train = Split(dataset.train.pixels, dataset.train.index[some], dataset.train.labels[some])
    rebuilt = reconstruct(dataset.floor, space, data, device)
    pictures = {"reference": dataset.reference, "floor": dataset.floor} | {f"floor_{k}": v.numpy() for k, v in rebuilt.items()}
    tensors = {name: extract(net, images, device=device) for name, images in pictures.items()}
    labels = torch.from_numpy(train.labels.copy())
    probe = fit_probe(extract(net, train, device=device), labels, len(dataset.classes))
    return tensors | probe._asdict()


@torch.inference_mode()
def reconstruct(split: Split, space: LatentSpace, data: LatentSet, device: torch.device, batch: int = 128) -> dict[str, Tensor]:
    """A split's pictures through the autoencoder and through autoencoder and codebook, uint8 (N, 3, H, W) each."""
    space, out = space.to(device), {"autoencoder": [], "codebook": []}
    book = space.codebook.whitened(data.mean, data.std)
    for start in range(0, len(split), batch):
        images = torch.from_numpy(split[start : start + batch]).to(device)
        latents = space.autoencoder.encode(images)
        whitened = (latents - data.mean.to(device)[:, None, None]) / data.std.to(device)[:, None, None]
        out["autoencoder"].append(decode(space, data, whitened))
        out["codebook"].append(decode(space, data, book.detokenize(book.tokenize(whitened))))
    return {name: torch.cat(parts) for name, parts in out.items()}
