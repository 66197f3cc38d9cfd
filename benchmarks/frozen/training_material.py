"""What the shared networks are trained on and scored with: an image folder, procedural images, and
classes that no network has seen.
"""

from dataclasses import dataclass

import numpy as np
from omegaconf import OmegaConf

from benchmarks.core.errors import BadInput
from benchmarks.images import procedural
from benchmarks.images.dataset import load_dataset
from benchmarks.images.stored import Dataset, Split

SIZE = 64  # px: the side of every image
Scored = tuple[np.ndarray, np.ndarray, Split | None]  # images, labels, training images of a probe


@dataclass(frozen=True)
class Material:
    """What to train on, real and procedural images mixed, and what to score with."""

    train: np.ndarray  # uint8 (N, 3, 64, 64)
    labels: np.ndarray  # (N,)
    scored: dict[str, Scored]  # by what they are
    classes: list[str]  # the names of all


def folder_data(folder: str, cache: str, held_out: int) -> Dataset:
    """An image folder, `held_out` of its validation images as its reference split."""
    cfg = OmegaConf.create(
        {
            "source": "imagefolder",
            "name": "imagefolder",
            "path": folder,
            "image_size": SIZE,
            "reference_images": held_out,
        }
    )
    return load_dataset(cfg, num_samples=2, cache=cache)


def load_material(folder: str, unseen: str | None, cache: str, held_out: int = 2000) -> Material:
    """Everything to train on and to score with. Raises BadInput for folders that cannot be used."""
    real = folder_data(folder, cache, held_out)
    seed = procedural.WEIGHTS_SEED
    made, made_labels = procedural.generate(len(real.train) // 10, SIZE, seed=seed)
    held, held_labels = procedural.generate(held_out // 2, SIZE, seed=seed, stream="reference")
    first = len(real.classes)  # procedural classes come after the real ones
    scored: dict[str, Scored] = {
        "held-out images of the training classes": (
            real.reference[:],
            real.reference.labels,
            None,
        ),
        "procedural images": (held, held_labels + first, None),
    }
    if unseen:
        other = folder_data(unseen, cache, held_out // 2)
        overlap = sorted(set(other.classes) & set(real.classes))
        if overlap:
            raise BadInput(
                f"--unseen {unseen}: {len(overlap)} of its classes are trained on, "
                f"e.g. {overlap[0]}"
            )
        images, labels = other.reference[:], other.reference.labels
        scored["validation images of unseen classes"] = (images, labels, other.train)
    return Material(
        train=np.concatenate([real.train[:], made]),
        labels=np.concatenate([real.train.labels, made_labels + first]),
        scored=scored,
        classes=real.classes + procedural.CLASS_NAMES,
    )
