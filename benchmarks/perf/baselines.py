"""What a user would run without this suite, from libraries as they come: the plain code that `perf`
measures against.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import scipy.linalg
import torch
import torch.nn.functional as F
from diffusers import DiTTransformer2DModel, FlowMatchEulerDiscreteScheduler
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

from models.generator import Batch, GenerativeModel


def eager_step(
    model: GenerativeModel, batches: Iterator[Batch], *, autocast: bool = False
) -> Callable[[], Any]:
    """A training step of the same network as tutorials write it: AdamW with its defaults, float32
    unless `autocast`, no EMA.
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    rng = torch.Generator()

    def step() -> None:
        batch = next(batches)
        with torch.autocast(batch.labels.device.type, torch.bfloat16, enabled=autocast):
            loss = model(batch, rng=rng)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


class _Encoded(Dataset):
    """PNG files decoded and encoded to latents one image at a time, whenever it is asked for."""

    def __init__(
        self,
        files: list[bytes],
        decode: Callable[[bytes], np.ndarray],
        encode: Callable[[Tensor], tuple[Tensor, Tensor]],
    ):
        self.files, self.decode, self.encode = files, decode, encode

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor, int]:
        latents, tokens = self.encode(torch.from_numpy(self.decode(self.files[i]))[None])
        return latents[0], tokens[0], i % 10


def decoding_batches(
    files: list[bytes],
    decode: Callable[[bytes], np.ndarray],
    encode: Callable[[Tensor], tuple[Tensor, Tensor]],
    batch: int,
    device: torch.device,
) -> Iterator[Batch]:
    """Batches from a DataLoader that decodes and encodes every image in every epoch."""
    loader = DataLoader(_Encoded(files, decode, encode), batch, shuffle=True, drop_last=True)
    while True:
        for latents, tokens, labels in loader:
            yield Batch(latents.to(device), tokens.to(device), labels.to(device))


class DiffusersDiT(nn.Module):
    """diffusers' DiT of a width, depth and heads as a flow-matching model."""

    def __init__(
        self,
        latent_shape: tuple[int, int, int],
        num_classes: int,
        *,
        width: int,
        depth: int,
        heads: int,
    ):
        super().__init__()
        channels, side, _ = latent_shape
        # patch 1 and the class embedding of adaLN-Zero: the shape that ours has
        self.net = DiTTransformer2DModel(
            num_attention_heads=heads,
            attention_head_dim=width // heads,
            in_channels=channels,
            out_channels=channels,
            num_layers=depth,
            sample_size=side,
            patch_size=1,
            num_embeds_ada_norm=num_classes,
        )

    def denoise(self, x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        return self.net(x, timestep=t, class_labels=labels).sample

    def forward(self, batch: Batch, *, rng: torch.Generator) -> Tensor:
        noise = torch.randn_like(batch.latents)
        # logit-normal timesteps, as in the same paper
        t = torch.sigmoid(torch.randn(len(noise), device=noise.device))
        # flow matching (arXiv 2403.03206): x_t = (1 - t) x + t noise, and the network's target is
        # the velocity noise - x, in float32 whatever autocast does
        mixed = torch.lerp(batch.latents, noise, t[:, None, None, None])
        velocity = self.denoise(mixed, 1000 * t, batch.labels).float()
        return F.mse_loss(velocity, noise - batch.latents)


@torch.inference_mode()
def pipeline_loop(
    denoise: Callable[..., Tensor], latent_shape: tuple[int, ...], labels: Tensor, steps: int
) -> Tensor:
    """The loop of diffusers' pipelines: scheduler.timesteps, the network, scheduler.step."""
    scheduler = FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(steps, device=labels.device)
    x = torch.randn(len(labels), *latent_shape, device=labels.device)
    for t in scheduler.timesteps:
        x = scheduler.step(denoise(x, t.expand(len(x)), labels).float(), t, x).prev_sample
    return x


def llama(
    tokens: int, vocabulary: int, *, width: int, depth: int, heads: int, mlp: int
) -> LlamaForCausalLM:
    """transformers' decoder of the same shape, with its own embedding and head; class tokens are
    ids beyond the vocabulary.
    """
    # without an end token `generate()` never stops early
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=mlp,
        num_hidden_layers=depth,
        num_attention_heads=heads,
        max_position_embeddings=tokens + 1,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=0,
    )
    return LlamaForCausalLM(config).eval()


@torch.inference_mode()
def generate(model: LlamaForCausalLM, labels: Tensor, tokens: int) -> Tensor:
    """`generate()` with its default cache, sampling; ids (B, tokens)."""
    # plain sampling of exactly so many tokens: no early end, and no truncation of the distribution
    settings = GenerationConfig(
        max_new_tokens=tokens, min_new_tokens=tokens, do_sample=True, top_k=0, pad_token_id=0
    )
    prompt = labels[:, None]
    ids = model.generate(prompt, attention_mask=torch.ones_like(prompt), generation_config=settings)
    return ids[:, 1:]  # without the prompt


def sqrtm_distance(real: np.ndarray, fake: np.ndarray) -> float:
    """FID's arithmetic as most code has it: two covariances and a matrix square root."""
    real_covariance, fake_covariance = np.cov(real, rowvar=False), np.cov(fake, rowvar=False)
    # of a product that is not symmetric; rounding leaves it an imaginary part
    root = scipy.linalg.sqrtm(real_covariance @ fake_covariance)
    means = ((real.mean(0) - fake.mean(0)) ** 2).sum()
    traces = np.trace(real_covariance) + np.trace(fake_covariance)
    return float(means + traces - 2 * np.trace(root).real)
