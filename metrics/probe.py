"""A linear probe on features: does a generated image show the class it was asked for?"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import LongTensor, Tensor


class Probe(NamedTuple):
    """Logistic regression on standardised features."""

    mean: Tensor  # (d,)
    std: Tensor  # (d,)
    weight: Tensor  # (K, d)
    bias: Tensor  # (K,)

    def accuracy(self, features: Tensor, labels: LongTensor) -> float:
        """Fraction of features (N, d) whose highest score is their label (N,), 0 to 1."""
        scores = F.linear((features - self.mean) / self.std, self.weight, self.bias)
        return (scores.argmax(1) == labels).float().mean().item()


def fit_probe(
    features: Tensor,
    labels: LongTensor,
    num_classes: int,
    *,
    decay: float = 1e-3,
    iterations: int = 100,
) -> Probe:
    """Multinomial logistic regression on features (N, d) and labels (N,) in 0..num_classes-1.

    By L-BFGS, at most `iterations` steps; `decay` times the squared weights is added to the loss.
    """
    std, mean = torch.std_mean(features, dim=0)
    std = std.clamp(min=1e-6)  # a dead feature
    x = (features - mean) / std
    weight = torch.zeros(num_classes, x.shape[1], requires_grad=True)
    bias = torch.zeros(num_classes, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [weight, bias], max_iter=iterations, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(F.linear(x, weight, bias), labels) + decay * weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return Probe(mean, std, weight.detach(), bias.detach())
