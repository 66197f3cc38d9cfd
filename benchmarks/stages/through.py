"""Real images through the autoencoder, which all processes of a team take there together."""

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from benchmarks.core import team
from benchmarks.core.environment import pick_device
from benchmarks.frozen.autoencoder import LatentSpace
from benchmarks.frozen.latents import LatentSet, reconstruct
from benchmarks.images.stored import Split

CPU = torch.device("cpu")
SPLITS = ("reference", "train", "holdout")
CODED = "holdout"  # goes through the codebook, too


def images_through(
    splits: dict[str, Split], space: LatentSpace, data: LatentSet, device: torch.device
) -> dict[str, np.ndarray]:
    """The images of SPLITS through the autoencoder, and those of CODED through its codebook, too:
    `reference_through`, ..., `holdout_codebook`, uint8 (N, 3, H, W) each.
    """
    sent = None
    if team.size() > 1:  # of the latents only what whitens them
        none = torch.empty(0)
        whitening = replace(data, latents=none, tokens=none, labels=none)
        sent = (copy.deepcopy(space).to(CPU), whitening, device.type)
    rebuilt = team.together((splits, space, data, device), _rebuild, sent)
    images = {f"{name}_through": rebuilt[name]["autoencoder"] for name in SPLITS}
    return images | {f"{CODED}_codebook": rebuilt[CODED]["codebook"]}


def _rebuild(own: Any, sent: Any) -> dict[str, dict[str, np.ndarray]]:
    """In every process at once: its part of each split; all of them in the leader, who has `own`.

    The others have what was `sent` to them.
    """
    if own is not None:
        splits, space, data, device = own
    else:
        splits, (space, data, device) = dict.fromkeys(SPLITS), sent
        device = pick_device(device)
    rebuilt = {}
    for name in SPLITS:
        # whole batches, so that they are rounded as one process rounds them
        images = team.share_of(splits[name], space.at_once)
        share = {}
        if len(images):
            share = reconstruct(images, name == CODED, space=space, data=data, device=device)
        shares = [share for share in team.gathered(share) if share]
        kinds = shares[0] if shares else {}
        rebuilt[name] = {kind: _joined([share[kind] for share in shares]) for kind in kinds}
    return rebuilt


def _joined(parts: list[torch.Tensor]) -> np.ndarray:
    """All images, without a copy where they are in one piece."""
    return (parts[0] if len(parts) == 1 else torch.cat(parts)).numpy()
