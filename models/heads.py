"""Heads of the transformers that predict latent vectors themselves, with no codebook: from a hidden
state (..., width) to a distribution of one token, a vector of `channels` numbers.

Each has a loss, and samples with guidance and a temperature from random numbers it is given.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.layers import TimestepEmbedder
from models.randomness import rand, randn
from models.schedulers import CHAIN
from models.tokens import inverse_cdf

CANDIDATES = 128  # of which a guided mixture chooses one


class MixtureHead(nn.Module):
    """A mixture of Gaussians with diagonal covariances, as GIVT (arXiv 2312.02116). No inner loop.

    `components` is how many. Deviations are at least `LEAST_DEVIATION` of a whitened latent's, so
    that no density grows without end.
    """

    LEAST_DEVIATION = 0.02
    objective, inner_steps = "mixture", None
    sampler_defaults: dict[str, float] = {}

    def __init__(self, width: int, channels: int, components: int = 16):
        super().__init__()
        if components < 1:
            raise ValueError(f"model.components={components}: 1 or more")
        self.channels, self.components = channels, components
        self.out = nn.Linear(width, components * (1 + 2 * channels))
        # Untrained: means apart from each other, deviations about 1.
        nn.init.normal_(self.out.weight, std=0.02)
        nn.init.zeros_(self.out.bias)
        with torch.no_grad():
            self.out.bias[components : components * (1 + channels)].normal_(std=0.5)

    def mixture(self, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Log-weights (..., K), means and deviations (..., K, C), float32."""
        sizes = [self.components, *[self.components * self.channels] * 2]
        logits, means, raw = self.out(hidden).float().split(sizes, dim=-1)
        shape = (self.components, self.channels)
        # softplus(0.54) = 1
        deviations = F.softplus(raw + 0.54) + self.LEAST_DEVIATION
        return logits.log_softmax(-1), means.unflatten(-1, shape), deviations.unflatten(-1, shape)

    def log_density(self, hidden: Tensor, values: Tensor) -> Tensor:
        """Log-density, in nats, of values (..., M, C) by hidden states (..., width): (..., M)."""
        weights, means, deviations = self.mixture(hidden)
        scaled = (values.float().unsqueeze(-2) - means.unsqueeze(-3)) / deviations.unsqueeze(-3)
        normaliser = deviations.log().sum(-1) + 0.5 * self.channels * math.log(2 * math.pi)
        gaussians = -0.5 * scaled.square().sum(-1) - normaliser.unsqueeze(-2)
        return torch.logsumexp(weights.unsqueeze(-2) + gaussians, dim=-1)

    def inputs(self, count: int, tokens: int, *, rng: torch.Generator) -> tuple[Tensor, ...]:
        """Nothing is random in the loss."""
        return ()

    def error(self, hidden: Tensor, values: Tensor) -> Tensor:
        """Negative log-likelihood of values (B, T, C), in nats per token: (B, T)."""
        return -self.log_density(hidden, values[..., None, :])[..., 0]

    def noise(
        self, tokens: int, rngs: list[torch.Generator], device: torch.device
    ) -> tuple[Tensor, Tensor]:
        """What sampling `tokens` tokens is a function of: of M candidates normal numbers (B, T, M,
        C) and uniform ones (B, T, M), and one more by which one is taken (B, T, M + 1).
        """
        normal = randn((tokens, CANDIDATES, self.channels), rngs, device)
        return normal, rand((tokens, CANDIDATES + 1), rngs, device)

    def sample(
        self,
        hidden: Tensor,
        noise: tuple[Tensor, ...],
        *,
        scale: float | None,
        options: dict[str, Any],
    ) -> Tensor:
        """Tokens (B, n, C) from hidden states (B, n, width); (2B, n, width) with a `scale`.

        The temperature multiplies the deviations. A guided mixture is no mixture: of CANDIDATES
        from the conditional one, one is taken, with weights (p(label) / p(no label))^(w - 1):
        importance sampling. Without guidance, the weights are equal.
        """
        normal, uniform = noise
        conditional = hidden if scale is None else hidden.chunk(2)[0]
        weights, means, deviations = self.mixture(conditional)
        # The same mixture for each candidate.
        weights = weights.unsqueeze(-2).expand(*normal.shape[:-1], -1)
        chosen = inverse_cdf(weights.flatten(0, -2), uniform[..., :-1].flatten())
        place = chosen.view(*normal.shape[:-1], 1).expand_as(normal)
        deviation = options["temperature"] * deviations.gather(-2, place)
        values = means.gather(-2, place) + deviation * normal
        log_weights = torch.zeros(normal.shape[:-1], device=normal.device)
        if scale is not None:
            label, no_label = (self.log_density(half, values) for half in hidden.chunk(2))
            log_weights = (scale - 1) * (label - no_label)
        # a weight that is not a number would take one of them without a word
        values = values.masked_fill(log_weights.isnan().any(-1)[..., None, None], math.nan)
        taken = inverse_cdf(log_weights.flatten(0, -2), uniform[..., -1].flatten())
        taken = taken.view(*values.shape[:-2], 1, 1).expand(*values.shape[:-2], 1, self.channels)
        return values.gather(-2, taken)[..., 0, :]


class _Residual(nn.Module):
    """x + gate * MLP(adaLN(x)), conditioned per token (arXiv 2406.11838, appendix)."""

    def __init__(self, width: int):
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.modulation = nn.Linear(width, 3 * width)
        nn.init.zeros_(self.modulation.weight)  # a new block is the identity
        nn.init.zeros_(self.modulation.bias)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        shift, scale, gate = self.modulation(condition).chunk(3, dim=-1)
        return x + gate * self.mlp(torch.addcmul(shift, self.norm(x), 1 + scale))


class FlowHead(nn.Module):
    """A small network that integrates a flow from noise to the token, as MAR's (arXiv 2406.11838),
    with flow matching in the place of its diffusion loss.

    `blocks` of width `head_width`. In training each hidden state serves `repeats` noises; sampling
    a token takes `head_steps` Euler steps, an option of sampling.
    """

    objective, inner_steps = "flow head", "head_steps"
    sampler_defaults = {"head_steps": 25}

    def __init__(
        self, width: int, channels: int, head_width: int = 64, blocks: int = 3, repeats: int = 2
    ):
        super().__init__()
        self.channels, self.repeats = channels, repeats
        self.enter = nn.Linear(channels, head_width)
        self.time = TimestepEmbedder(head_width, frequencies=head_width)
        self.condition = nn.Linear(width, head_width)
        self.blocks = nn.ModuleList(_Residual(head_width) for _ in range(blocks))
        self.norm = nn.LayerNorm(head_width, elementwise_affine=False, eps=1e-6)
        self.modulation = nn.Linear(head_width, 2 * head_width)
        self.out = nn.Linear(head_width, channels)
        for layer in (self.modulation, self.out):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def velocity(self, x: Tensor, time: Tensor, hidden: Tensor) -> Tensor:
        """Noise minus data, float32: of x (..., C) at times (..., 1) in [0, 1]."""
        embedded = self.time(time.flatten() * CHAIN).view(*time.shape[:-1], -1)
        condition = F.silu(embedded + self.condition(hidden))
        x = self.enter(x)
        for block in self.blocks:
            x = block(x, condition)
        shift, scale = self.modulation(condition).chunk(2, dim=-1)
        return self.out(torch.addcmul(shift, self.norm(x), 1 + scale)).float()

    def inputs(self, count: int, tokens: int, *, rng: torch.Generator) -> tuple[Tensor, ...]:
        """Noise (B, repeats, T, C) and logit-normal times (B, repeats, T, 1), on the CPU."""
        shape = (count, self.repeats, tokens)
        noise = torch.randn(*shape, self.channels, generator=rng)
        return noise, torch.sigmoid(torch.randn(*shape, 1, generator=rng))

    def error(self, hidden: Tensor, values: Tensor, noise: Tensor, time: Tensor) -> Tensor:
        """Mean squared error of the velocity, per token (B, T), over the repeats."""
        values = values[:, None].float()
        noisy = torch.lerp(values.expand_as(noise), noise, time.expand_as(noise))
        velocity = self.velocity(noisy, time, hidden[:, None])
        return (velocity - (noise - values)).square().mean((1, 3))

    def noise(
        self, tokens: int, rngs: list[torch.Generator], device: torch.device
    ) -> tuple[Tensor, ...]:
        """What sampling `tokens` tokens is a function of: normal numbers (B, T, C)."""
        return (randn((tokens, self.channels), rngs, device),)

    def sample(
        self,
        hidden: Tensor,
        noise: tuple[Tensor, ...],
        *,
        scale: float | None,
        options: dict[str, Any],
    ) -> Tensor:
        """Tokens (B, n, C) from hidden states (B, n, width); (2B, n, width) with a `scale`.

        The temperature multiplies the noise that the flow starts from; guidance acts on velocities.
        """
        steps, x = options["head_steps"], options["temperature"] * noise[0]
        for step in range(steps):
            both = x if scale is None else x.repeat(2, 1, 1)
            time = torch.full_like(both[..., :1], 1 - step / steps)
            velocity = self.velocity(both, time, hidden)
            if scale is not None:
                conditional, unconditional = velocity.chunk(2)
                velocity = torch.lerp(unconditional, conditional, scale)
            x = x - velocity / steps
        return x
