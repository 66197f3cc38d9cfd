"""The autoregressive family in raster order: a Llama decoder over codebook tokens (as LlamaGen,
arXiv 2406.06525).

Position n's output predicts token n from the tokens of the blocks before its own. A block of one
token is the usual next-token model; `block` tokens at a time are drawn independently of each other,
in as many fewer steps. The class is added at every position, not only put before the first: a brief
training makes more of it, and so does guidance.
"""

from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import LongTensor, Tensor, nn
from transformers import AttentionInterface, LlamaConfig, LlamaModel
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from models.codebook import Codebook
from models.decoding import Cache, put, take
from models.generator import Batch, rand, spawn
from models.layers import Block, SelfAttention, attend, initialise, turns
from models.tokens import TokenModel, with_null_labels


def _attend(
    module: nn.Module, q: Tensor, k: Tensor, v: Tensor, attention_mask: Tensor, **_: Any
) -> tuple[Tensor, None]:
    """`attend` as transformers calls it, with a mask (1, 1, T, T) of what is seen; (B, T, heads,
    d).

    On CUDA a next-token model asks for causal attention by name: torch's flash kernel takes no
    mask.
    """
    if q.is_cuda and module.config.tokens_a_step == 1:
        return attend(q, k, v, causal=True).transpose(1, 2), None
    return attend(q, k, v, seen=attention_mask[0, 0]).transpose(1, 2), None


AttentionInterface.register("latentbench", _attend)


class Rotary(LlamaRotaryEmbedding):
    """Cosines and sines in autocast's type. transformers takes the embeddings', float32 under
    autocast, and would rotate in that.
    """

    def forward(self, x: Tensor, position_ids: LongTensor) -> tuple[Tensor, Tensor]:
        kind, dtype = x.device.type, x.dtype
        if kind != "meta" and torch.is_autocast_enabled(kind):
            dtype = torch.get_autocast_dtype(kind)
        angles = position_ids[:, :, None].float() * self.inv_freq
        both = torch.cat([angles, angles], dim=-1)
        return both.cos().to(dtype), both.sin().to(dtype)


class Autoregressive(TokenModel):
    """Next-block prediction; `steps` is always the number of blocks, H * W / block.

    The input at position n is the class, with token n - block where there is one. Raises ValueError
    where `block` does not tile the tokens.
    """

    samplers = ("raster",)
    bf16_safe = True  # bf16 weights give what autocast gives

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
            tokens_a_step=block,
        )
        self.transformer = LlamaModel(config)
        self.transformer.rotary_emb = Rotary(config)
        self.classes = nn.Embedding(num_classes + 1, width)
        self.positions = nn.Parameter(torch.zeros(self.tokens, width))
        self.head = nn.Linear(width, codebook.size, bias=False)
        initialise(self)
        nn.init.normal_(self.head.weight, std=0.02)  # the first predictions are all but uniform

    def _seen(self, device: torch.device) -> Tensor:
        """Which positions (row) look at which (column): all of their own block and of those before
        it.
        """
        blocks = torch.arange(self.tokens, device=device) // self.block
        return blocks[:, None] >= blocks

    def logits(self, tokens: LongTensor, labels: LongTensor) -> Tensor:
        """Teacher-forced scores (B, H*W, K) of whole sequences (B, H*W)."""
        earlier = F.pad(
            self.transformer.embed_tokens(tokens[:, : -self.block]), (0, 0, self.block, 0)
        )
        embedded = earlier + self.positions + self.classes(labels)[:, None]
        # A 4-D mask is taken as it is: the library then looks at no values, which it could not on
        # the meta device.
        places = torch.arange(self.tokens, device=tokens.device)[None]
        seen = self._seen(tokens.device)[None, None]
        out = self.transformer(
            inputs_embeds=embedded, attention_mask=seen, position_ids=places, use_cache=False
        )
        return self.head(out.last_hidden_state)

    def inputs(self, batch: Batch, *, rng: torch.Generator) -> tuple[Tensor, ...]:
        """Tokens and labels. The continuous latents are not looked at."""
        return batch.tokens, batch.labels

    def error(self, tokens: LongTensor, labels: LongTensor) -> Tensor:
        """Mean cross-entropy per token, in nats."""
        return F.cross_entropy(self.logits(tokens, labels).float().flatten(0, 1), tokens.flatten())

    def _decoder(self) -> list[Block]:
        """The transformer's layers as the blocks of `layers.py`, which make fewer, larger products:
        what counts for a token at a time.
        """
        config, blocks = self.transformer.config, []
        for layer in self.transformer.layers:
            with torch.device("meta"):
                block = Block(
                    SelfAttention(config.hidden_size, config.num_attention_heads),
                    config.hidden_size,
                    config.intermediate_size,
                )
            own, mlp = layer.self_attn, layer.mlp
            weights = {
                "norm1": layer.input_layernorm.weight,
                "attention.qkv": torch.cat(
                    [own.q_proj.weight, own.k_proj.weight, own.v_proj.weight]
                ),
                "attention.out": own.o_proj.weight,
                "norm2": layer.post_attention_layernorm.weight,
                "gate_up": torch.cat([mlp.gate_proj.weight, mlp.up_proj.weight]),
                "down": mlp.down_proj.weight,
            }
            block.load_state_dict(
                {f"{name}.weight": weight for name, weight in weights.items()}, assign=True
            )
            blocks.append(block)
        return blocks

    @torch.inference_mode()
    def sample_tokens(
        self, labels: LongTensor, *, steps: int, guidance: float, rng: torch.Generator
    ) -> LongTensor:
        """Token ids (B, H*W). Guidance acts on the logits; each id inverts its distribution at one
        uniform number.
        """
        uniform = rand((self.tokens,), spawn(rng, len(labels)), labels.device)
        name = ("raster", len(labels), guidance, labels.device)
        decoding = self.kept(name, lambda: _Decoding(self, len(labels), guidance, labels.device))
        return decoding.run(with_null_labels(labels, self.num_classes, guidance), uniform)

    def supported_steps(self, requested: Iterable[int]) -> list[int]:
        """One step a block: H * W / block, where it was asked for."""
        return [n for n in requested if n == self.tokens // self.block]

    def supported_steps_text(self) -> str:
        many = "one token" if self.block == 1 else f"{self.block} tokens"
        count = self.tokens // self.block
        return f"this model draws {many} a step, {count} steps in all; ask for steps={count}"


class _Decoding:
    """One batch size of raster decoding: the fused blocks, the caches, and what a step reads and
    writes.
    """

    def __init__(self, model: Autoregressive, count: int, guidance: float, device: torch.device):
        self.model, self.steps = model, model.new_steps(device)
        self.blocks = model._decoder()
        self.caches = [Cache(model.tokens) for _ in self.blocks]
        places = torch.arange(model.tokens, device=device)
        self.turn = turns((places[:, None] * model.transformer.rotary_emb.inv_freq)[None])
        scales = model.scales(guidance)
        self.scales = None if scales is None else self.steps.table(scales)
        self.uniform = torch.empty(count, model.tokens, device=device)
        self.labels = torch.empty(
            count if scales is None else 2 * count, dtype=torch.long, device=device
        )
        self.ids = torch.zeros(count, model.tokens, dtype=torch.long, device=device)

    def run(self, labels: LongTensor, uniform: Tensor) -> LongTensor:
        """Ids (B, H*W) for labels (B,), or both halves of guidance (2B,), and uniform numbers (B,
        H*W).
        """
        model, block = self.model, self.model.block
        self.labels.copy_(labels)
        self.uniform.copy_(uniform)
        self.steps.begin()
        for start in range(0, model.tokens, block):
            self.steps.run(
                lambda first=start == 0: self.step(first),
                block,
                (start == 0, self.steps.rounded(start + block)),
            )
        return self.ids.clone()

    def step(self, first: bool) -> None:
        """The next block of tokens, from those of the block before it."""
        model, block = self.model, self.model.block
        now, window = self.steps.places(0, block), self.steps.window(0, block)
        classes = model.classes(self.labels)[:, None]
        if first:
            earlier = torch.zeros_like(classes)
        else:
            ids = take(self.ids, self.steps.places(-block, block), 1)
            earlier = model.transformer.embed_tokens(
                ids if self.scales is None else ids.repeat(2, 1)
            )
        x, turned = earlier + take(model.positions, now, 0) + classes, self.turn.at(now)
        for layer, cache in zip(self.blocks, self.caches, strict=True):
            x = layer(x, turned, causal=False, cache=cache, window=window)
        scale = None if self.scales is None else self.steps.of_step(self.scales, block)
        logits = model.apply_cfg(model.head(model.transformer.norm(x)).float(), scale)
        put(self.ids, now, 1, model.sample_ids(logits, take(self.uniform, now, 1)))
