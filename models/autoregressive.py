"""The autoregressive family: a Llama decoder over codebook tokens in raster order (as LlamaGen, arXiv 2406.06525).

A class token stands first; position n predicts token n. Sampling draws one token a step with a key/value cache.
"""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import LongTensor, Tensor, nn
from transformers import LlamaConfig, LlamaModel, StaticCache

from models.codebook import Codebook
from models.generator import Batch, Generator, spawn


class Autoregressive(Generator):
    """Next-token prediction; `steps` is always the number of tokens, H * W.

    `codebook` speaks whitened latents (`Codebook.whitened`): it turns the drawn ids into the latents `sample` returns.
    """

    samplers = ("raster",)

    def __init__(
        self,
        latent_shape: tuple[int, int, int],
        num_classes: int,
        *,
        codebook: Codebook,
        width: int,
        depth: int,
        heads: int,
        mlp: int,
        label_dropout: float = 0.1,
    ):
        super().__init__(latent_shape, num_classes, label_dropout=label_dropout)
        self.tokens = latent_shape[1] * latent_shape[2]
        self.codebook = codebook
        config = LlamaConfig(
            vocab_size=codebook.size,
            hidden_size=width,
            intermediate_size=mlp,
            num_hidden_layers=depth,
            num_attention_heads=heads,
            max_position_embeddings=self.tokens,
            attn_implementation="sdpa",
        )
        self.transformer = LlamaModel(config)
        self.classes = nn.Embedding(num_classes + 1, width)
        self.positions = nn.Parameter(torch.zeros(self.tokens, width))
        self.head = nn.Linear(width, codebook.size, bias=False)
        nn.init.normal_(self.classes.weight, std=0.02)
        nn.init.normal_(self.head.weight, std=0.02)

    def logits(self, tokens: LongTensor, labels: LongTensor) -> Tensor:
        """Teacher-forced next-token scores (B, H*W, K) of whole sequences (B, H*W)."""
        embedded = self.transformer.embed_tokens(tokens[:, :-1])
        embedded = torch.cat([self.classes(labels)[:, None], embedded], dim=1) + self.positions
        # A 4-D mask is taken as it is: the library then looks at no values, which it could not on the meta device.
        causal = torch.ones(1, 1, self.tokens, self.tokens, dtype=torch.bool, device=tokens.device).tril()
        places = torch.arange(self.tokens, device=tokens.device)[None]
        out = self.transformer(inputs_embeds=embedded, attention_mask=causal, position_ids=places, use_cache=False)
        return self.head(out.last_hidden_state)

    def loss(self, batch: Batch, *, rng: torch.Generator) -> Tensor:
        """Mean cross-entropy per token, in nats. The continuous latents are not looked at."""
        return F.cross_entropy(self.logits(batch.tokens, batch.labels).float().flatten(0, 1), batch.tokens.flatten())

    @torch.inference_mode()
    def draw(self, labels: LongTensor, *, guidance: float, rng: torch.Generator) -> LongTensor:
        """Token ids (B, H*W). Guidance acts on the logits; each id inverts its distribution at one uniform number."""
        uniform = torch.stack([torch.rand(self.tokens, generator=g) for g in spawn(rng, len(labels))]).to(labels.device)
        if guidance != 1:
            labels = torch.cat([labels, torch.full_like(labels, self.num_classes)])
        cache = StaticCache(config=self.transformer.config, max_cache_len=self.tokens)
        seen = torch.ones(self.tokens, self.tokens, dtype=torch.bool, device=labels.device).tril()
        places = torch.arange(self.tokens, device=labels.device)
        # Under autocast the cache wants keys and values of one type, which they are where the residual stream is of it.
        kind = labels.device.type
        autocast = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
        dtype = torch.get_autocast_dtype(kind) if autocast else self.positions.dtype
        embedded, ids = self.classes(labels), []
        for n in range(self.tokens):
            out = self.transformer(
                inputs_embeds=(embedded + self.positions[n])[:, None].to(dtype),
                attention_mask=seen[None, None, n : n + 1],
                position_ids=places[None, n : n + 1],
                past_key_values=cache,
                use_cache=True,
            )
            logits = self.head(out.last_hidden_state[:, 0]).float()
            if guidance != 1:
                conditional, unconditional = logits.chunk(2)
                logits = torch.lerp(unconditional, conditional, guidance)
            ids.append(invert(logits, uniform[:, n]))
            embedded = self.transformer.embed_tokens(ids[-1])
            if guidance != 1:
                embedded = embedded.repeat(2, 1)
        return torch.stack(ids, dim=1)

    def sample(self, labels: LongTensor, *, steps: int, guidance: float, rng: torch.Generator) -> Tensor:
        self.nfe(steps, guidance)  # refuses what cannot be honoured
        return self.codebook.detokenize(self.draw(labels, guidance=guidance, rng=rng))

    def step_counts(self, requested: Iterable[int]) -> list[int]:
        """One step a token: H * W, where it was asked for."""
        return [n for n in requested if n == self.tokens]

    def nfe(self, steps: int, guidance: float) -> int:
        if steps != self.tokens:
            raise ValueError(f"steps={steps}: this model draws one token a step, {self.tokens} in all; ask for steps={self.tokens}")
        return steps * (1 if guidance == 1 else 2)


def invert(logits: Tensor, uniform: Tensor) -> LongTensor:
    """Inverse-transform sampling: ids (B,) from logits (B, K) and uniform numbers (B,) in [0, 1)."""
    cumulative = logits.softmax(-1).cumsum(-1)
    ids = torch.searchsorted(cumulative, (uniform[:, None] * cumulative[:, -1:]).contiguous(), right=True)
    return ids[:, 0].clamp(max=logits.shape[-1] - 1)
