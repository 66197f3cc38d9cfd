"""The autoregressive family in raster order: a Llama decoder over codebook tokens (as LlamaGen, arXiv 2406.06525).

Position n's output predicts token n from the tokens of the blocks before its own. A block of one token is the usual next-token
model; `block` tokens at a time are drawn independently of each other, in as many fewer steps. The class is added at every position,
not only put before the first: a brief training makes more of it, and so does guidance.
"""

from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import LongTensor, Tensor, nn
from transformers import AttentionInterface, LlamaConfig, LlamaModel
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from models.codebook import Codebook
from models.generator import Batch, spawn
from models.layers import Block, Cache, SelfAttention, attend, initialise, turns
from models.tokens import TokenGenerator, doubled


def _attend(module: nn.Module, q: Tensor, k: Tensor, v: Tensor, attention_mask: Tensor, **_: Any) -> tuple[Tensor, None]:
    """`attend` as transformers calls it, with a mask (1, 1, T, T) of what is seen; (B, T, heads, d)."""
    return attend(q, k, v, seen=attention_mask[0, 0]).transpose(1, 2), None


AttentionInterface.register("latentbench", _attend)


class Rotary(LlamaRotaryEmbedding):
    """Cosines and sines in autocast's type. transformers takes the embeddings', float32 under autocast, and would rotate in that."""

    def forward(self, x: Tensor, position_ids: LongTensor) -> tuple[Tensor, Tensor]:
        kind = x.device.type
        if kind != "meta" and torch.is_autocast_enabled(kind):
            x = x.to(torch.get_autocast_dtype(kind))
        return super().forward(x, position_ids)


class Autoregressive(TokenGenerator):
    """Next-block prediction; `steps` is always the number of blocks, H * W / block.

    The input at position n is the class, with token n - block where there is one. Raises ValueError where `block` does not tile the tokens.
    """

    samplers = ("raster",)
    cast_for_drawing = True  # bf16 weights give what autocast gives

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
        block: int = 1,
        label_dropout: float = 0.1,
    ):
        super().__init__(latent_shape, num_classes, codebook=codebook, label_dropout=label_dropout)
        if block < 1 or self.tokens % block:
            raise ValueError(f"model.block={block} does not divide the {self.tokens} tokens")
        self.block = block
        config = LlamaConfig(
            vocab_size=codebook.size,
            hidden_size=width,
            intermediate_size=mlp,
            num_hidden_layers=depth,
            num_attention_heads=heads,
            max_position_embeddings=self.tokens,
            attn_implementation="latentbench",
        )
        self.transformer = LlamaModel(config)
        self.transformer.rotary_emb = Rotary(config)
        self.classes = nn.Embedding(num_classes + 1, width)
        self.positions = nn.Parameter(torch.zeros(self.tokens, width))
        self.head = nn.Linear(width, codebook.size, bias=False)
        initialise(self)
        nn.init.normal_(self.head.weight, std=0.02)  # the first predictions are all but uniform

    def _seen(self, device: torch.device) -> Tensor:
        """Which positions (row) look at which (column): all of their own block and of those before it."""
        blocks = torch.arange(self.tokens, device=device) // self.block
        return blocks[:, None] >= blocks

    def logits(self, tokens: LongTensor, labels: LongTensor) -> Tensor:
        """Teacher-forced scores (B, H*W, K) of whole sequences (B, H*W)."""
        earlier = F.pad(self.transformer.embed_tokens(tokens[:, : -self.block]), (0, 0, self.block, 0))
        embedded = earlier + self.positions + self.classes(labels)[:, None]
        # A 4-D mask is taken as it is: the library then looks at no values, which it could not on the meta device.
        places = torch.arange(self.tokens, device=tokens.device)[None]
        seen = self._seen(tokens.device)[None, None]
        out = self.transformer(inputs_embeds=embedded, attention_mask=seen, position_ids=places, use_cache=False)
        return self.head(out.last_hidden_state)

    def loss(self, batch: Batch, *, rng: torch.Generator) -> Tensor:
        """Mean cross-entropy per token, in nats. The continuous latents are not looked at."""
        return F.cross_entropy(self.logits(batch.tokens, batch.labels).float().flatten(0, 1), batch.tokens.flatten())

    def _decoder(self) -> list[Block]:
        """The transformer's layers as the blocks of `layers.py`, which make fewer, larger products: what counts for a token at a time."""
        config, blocks = self.transformer.config, []
        for layer in self.transformer.layers:
            with torch.device("meta"):
                block = Block(SelfAttention(config.hidden_size, config.num_attention_heads), config.hidden_size, config.intermediate_size)
            own, mlp = layer.self_attn, layer.mlp
            weights = {
                "norm1": layer.input_layernorm.weight,
                "attention.qkv": torch.cat([own.q_proj.weight, own.k_proj.weight, own.v_proj.weight]),
                "attention.out": own.o_proj.weight,
                "norm2": layer.post_attention_layernorm.weight,
                "gate_up": torch.cat([mlp.gate_proj.weight, mlp.up_proj.weight]),
                "down": mlp.down_proj.weight,
            }
            block.load_state_dict({f"{name}.weight": weight for name, weight in weights.items()}, assign=True)
            blocks.append(block)
        return blocks

    @torch.inference_mode()
    def draw(self, labels: LongTensor, *, steps: int, guidance: float, rng: torch.Generator) -> LongTensor:
        """Token ids (B, H*W). Guidance acts on the logits; each id inverts its distribution at one uniform number."""
        uniform = torch.stack([torch.rand(self.tokens, generator=g) for g in spawn(rng, len(labels))]).to(labels.device)
        labels = doubled(labels, self.num_classes, guidance)
        blocks, caches = self._decoder(), [Cache(self.tokens) for _ in self.transformer.layers]
        places = torch.arange(self.tokens, device=labels.device)
        turn = turns((places[:, None] * self.transformer.rotary_emb.inv_freq)[None])
        classes, ids = self.classes(labels)[:, None], []
        earlier = torch.zeros_like(classes)
        for start in range(0, self.tokens, self.block):
            now = slice(start, start + self.block)
            x, turned = earlier + self.positions[now] + classes, turn.at(now)
            for block, cache in zip(blocks, caches, strict=True):
                x = block(x, turned, causal=False, cache=cache)
            logits = self.guided(self.head(self.transformer.norm(x)).float(), guidance, now.stop)
            ids.append(self.choose(logits, uniform[:, now]))
            earlier = self.transformer.embed_tokens(ids[-1] if guidance == 1 else ids[-1].repeat(2, 1))
        return torch.cat(ids, dim=1)

    def step_counts(self, requested: Iterable[int]) -> list[int]:
        """One step a block: H * W / block, where it was asked for."""
        return [n for n in requested if n == self.tokens // self.block]

    def honoured(self) -> str:
        many = "one token" if self.block == 1 else f"{self.block} tokens"
        count = self.tokens // self.block
        return f"this model draws {many} a step, {count} steps in all; ask for steps={count}"
