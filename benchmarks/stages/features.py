"""Features of images, which all processes of a team extract together."""

import copy

import torch
from torch import Tensor, nn

from benchmarks.core import team
from benchmarks.core.environment import pick_device
from benchmarks.core.session import session
from benchmarks.frozen.extractors import FeatureExtractor
from metrics.features import extract

BATCH = 256  # images that go through a network together


def features_of(extractor: FeatureExtractor, images, device: torch.device) -> Tensor:
    """(N, d) float32 on the CPU, of anything that slices to uint8 (n, 3, H, W) arrays."""
    if team.size() == 1:
        return extract(extractor.net, images, batch=BATCH, device=device)
    net = None  # each is sent once
    if extractor.key not in session.from_leader:
        net = copy.deepcopy(extractor.net).cpu()
    return team.together(images, _share, extractor.key, net, device.type)


def _share(images, key: str, net: nn.Module | None, device: str) -> Tensor:
    """This process's part of `images`, which the leader has; all features in the leader."""
    if net is not None:
        session.from_leader[key] = net
    own = team.share_of(images, lambda size: BATCH)  # rounded as one process rounds them
    features = torch.empty(0)
    if len(own):
        features = extract(session.from_leader[key], own, batch=BATCH, device=pick_device(device))
    return torch.cat([part for part in team.gathered(features) if len(part)] or [features])
