"""The autoregressive family in raster order: a Llama decoder over codebook tokens, as LlamaGen
(arXiv 2406.06525).

Position n's output predicts token n from the tokens of the blocks before its own. A block of one
token is the usual next-token model. The tokens of a larger block are sampled independently of each
other, in as many fewer steps. The class is added at every position, where LlamaGen puts it before
the first token only: a brief training makes more of it, and so does guidance.
"""

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import LongTensor, Tensor, nn
from transformers import AttentionInterface, LlamaConfig, LlamaModel
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRotaryEmbedding

from models.codebook import Codebook
from models.decoding import Cache, Steps, put, take
from models.generator import Batch
from models.layers import Block, SelfAttention, attend, initialise, rotation_of
from models.options import GUIDE
from models.randomness import rand, spawn
from models.tokens import TokenModel


def _attend(
    module: nn.Module, q: Tensor, k: Tensor, v: Tensor, attention_mask: Tensor, **_: Any
) -> tuple[Tensor, None]:
    """`layers.attend` as transformers calls it: q, k, v (B, heads, T, d) -> (B, T, heads, d).

    `attention_mask` (1, 1, T, T) is True where a position (row) sees another (column).
    """
    # torch's flash kernel takes no mask, but knows causal attention by name.
    if q.is_cuda and module.config.tokens_a_step == 1:
        return attend(q, k, v, causal=True).transpose(1, 2), None
    return attend(q, k, v, seen=attention_mask[0, 0]).transpose(1, 2), None


AttentionInterface.register("latentbench", _attend)


class Rotary(LlamaRotaryEmbedding):
    """Cosines and sines of the rotary positions, in autocast's type.

    transformers takes the embeddings' type, which is float32 under autocast, and would rotate
    queries and keys in float32.
    """

    def forward(self, x: Tensor, position_ids: LongTensor) -> tuple[Tensor, Tensor]:
        kind, dtype = x.device.type, x.dtype
        # Autocast cannot be asked about on the meta device.
        if kind != "meta" and torch.is_autocast_enabled(kind):
            dtype = torch.get_autocast_dtype(kind)
        angles = position_ids[:, :, None].float() * self.inv_freq
        both_halves = torch.cat([angles, angles], dim=-1)
        return both_halves.cos().to(dtype), both_halves.sin().to(dtype)


class Autoregressive(TokenModel):
    """Next-block prediction. The one supported step count is the number of blocks, H * W / block.

    `width` is the residual stream's, `mlp` that inside the SwiGLU MLPs, `depth` the number of
    layers. Raises ValueError where `block` does not divide the number of tokens.
    """

    samplers = ("raster",)
    sampler_defaults = TokenModel.sampler_defaults | GUIDE
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
        # `attn_implementation` names the function registered above; `tokens_a_step` is for it.
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
        self.classes = nn.Embedding(num_classes + 1, width)  # the last is the null label's
        # Rotation alone tells a token's place relative to others, not where it is.
        self.positions = nn.Parameter(torch.zeros(self.tokens, width))
        self.head = nn.Linear(width, codebook.size, bias=False)
        initialise(self)
        nn.init.normal_(self.head.weight, std=0.02)  # the first predictions are all but uniform

    def _block_mask(self, device: torch.device) -> Tensor:
        """(T, T) bool: a position (row) sees all of its own block and of the blocks before it.

        Its own block is no leak: its inputs there are the tokens of the block before.
        """
        blocks = torch.arange(self.tokens, device=device) // self.block
        return blocks[:, None] >= blocks

    def logits(self, tokens: LongTensor, labels: LongTensor) -> Tensor:
        """Teacher-forced logits (B, H*W, K) of whole sequences (B, H*W) with labels (B,).

        The input at position n is the class, plus token n - block where there is one.
        """
        # The first block has nothing before it: zeros stand there.
        embedded = self.transformer.embed_tokens(tokens[:, : -self.block])
        earlier = F.pad(embedded, (0, 0, self.block, 0))
        x = earlier + self.positions + self.classes(labels)[:, None]
        # transformers takes a 4-D mask as it is. To make one itself it would look at values, which
        # the meta device does not have.
        out = self.transformer(
            inputs_embeds=x,
            attention_mask=self._block_mask(tokens.device)[None, None],
            position_ids=torch.arange(self.tokens, device=tokens.device)[None],
            use_cache=False,
        )
        return self.head(out.last_hidden_state)

    def inputs(self, batch: Batch, *, rng: torch.Generator) -> tuple[Tensor, ...]:
        """Tokens (B, H*W) and labels (B,). Nothing is random."""
        return batch.tokens, batch.labels

    def error(self, tokens: LongTensor, labels: LongTensor) -> Tensor:
        """Mean cross-entropy per token, in nats."""
        logits = self.logits(tokens, labels).float()
        return F.cross_entropy(logits.flatten(0, 1), tokens.flatten())

    @torch.inference_mode()
    def sample_tokens(
        self, labels: LongTensor, *, steps: int, guidance: float, rng: torch.Generator
    ) -> LongTensor:
        """Ids (B, H*W). Each id inverts its distribution at a uniform number of its own."""
        count, device = len(labels), labels.device
        uniform = rand((self.tokens,), spawn(rng, count), device)
        name = ("raster", count, guidance, device)
        decoding = self.kept(name, partial(_Decoding, self, labels, guidance))
        shown = [own for _, own in self.networks(labels, guidance)]
        return decoding.run(shown, uniform)

    def supported_steps(self, requested: Iterable[int]) -> list[int]:
        """One step a block: H * W / block, where it was asked for."""
        return [n for n in requested if n == self.tokens // self.block]

    def supported_steps_text(self) -> str:
        many = "one token" if self.block == 1 else f"{self.block} tokens"
        count = self.tokens // self.block
        return f"this model samples {many} a step, {count} steps in all; ask for steps={count}"


def _fused(layer: LlamaDecoderLayer, width: int, heads: int, mlp: int) -> Block:
    """A layer of transformers as a block of `layers.py`, with the same weights.

    It makes fewer and larger products (one for q, k and v; one for gate and up), which is what
    counts for a token at a time.
    """
    # Made without memory, because every weight is assigned.
    with torch.device("meta"):
        block = Block(SelfAttention(width, heads), width, mlp)
    attention, gated = layer.self_attn, layer.mlp
    qkv = [attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight]
    weights = {
        "norm1.weight": layer.input_layernorm.weight,
        "attention.qkv.weight": torch.cat(qkv),
        "attention.out.weight": attention.o_proj.weight,
        "norm2.weight": layer.post_attention_layernorm.weight,
        "gate_up.weight": torch.cat([gated.gate_proj.weight, gated.up_proj.weight]),
        "down.weight": gated.down_proj.weight,
    }
    block.load_state_dict(weights, assign=True)
    return block


class _Network:
    """One network's share of a decoding: fused blocks, keys and values so far, and the labels of
    `rows` images that it is shown.
    """

    def __init__(self, model: Autoregressive, rows: int, device: torch.device):
        self.model = model
        config = model.transformer.config
        self.blocks = [
            _fused(layer, config.hidden_size, config.num_attention_heads, config.intermediate_size)
            for layer in model.transformer.layers
        ]
        self.caches = [Cache(model.tokens) for _ in self.blocks]
        # The angles of all places, of which a step takes its own.
        places = torch.arange(model.tokens, device=device)
        angles = places[:, None] * model.transformer.rotary_emb.inv_freq
        self.rotation = rotation_of(angles[None])
        self.labels = torch.empty(rows, dtype=torch.long, device=device)

    def logits(self, earlier: LongTensor | None, steps: Steps) -> Tensor:
        """Of the next block, (rows, block, K), float32; `earlier` (B, block) are the ids before it,
        None where there are none.
        """
        model, block = self.model, self.model.block
        now, window = steps.places(0, block), steps.window(0, block)
        classes = model.classes(self.labels)[:, None]
        if earlier is None:
            embedded = torch.zeros_like(classes)
        else:
            embedded = model.transformer.embed_tokens(
                earlier.repeat(len(self.labels) // len(earlier), 1)
            )
        x = embedded + take(model.positions, now, 0) + classes  # as in `Autoregressive.logits`
        rotation = self.rotation.at(now)
        for layer, cache in zip(self.blocks, self.caches, strict=True):
            x = layer(x, rotation, causal=False, cache=cache, window=window)
        return model.head(model.transformer.norm(x)).float()


class _Decoding:
    """Cached raster decoding of one batch size: the networks, and a step's buffers.

    The buffers stay where they are, so that a step can be replayed as a CUDA graph (see
    `decoding.py`). Under guidance the rows of all networks are both halves, 2B.
    """

    def __init__(self, model: Autoregressive, labels: LongTensor, guidance: float):
        count, device = len(labels), labels.device
        self.model, self.steps = model, model.new_steps(device)
        self.networks = [
            _Network(network, len(shown), device)
            for network, shown in model.networks(labels, guidance)
        ]
        scales = model.guidance_scales(guidance)
        self.scales = None if scales is None else self.steps.table(scales)
        self.uniform = torch.empty(count, model.tokens, device=device)
        self.ids = torch.zeros(count, model.tokens, dtype=torch.long, device=device)

    def run(self, labels: Sequence[LongTensor], uniform: Tensor) -> LongTensor:
        """Ids (B, H*W) for the labels of each network and uniform numbers (B, H*W)."""
        block = self.model.block
        for network, shown in zip(self.networks, labels, strict=True):
            network.labels.copy_(shown)
        self.uniform.copy_(uniform)
        self.steps.begin()
        for start in range(0, self.model.tokens, block):
            first = start == 0
            # A graph's kernels depend on the inputs being zeros or tokens, and on how many keys.
            shape = (first, self.steps.rounded(start + block))
            self.steps.run(partial(self.step, first), block, shape)
        return self.ids.clone()  # the buffer itself is overwritten by the next batch

    def step(self, first: bool) -> None:
        """Sample the next block of tokens from those of the block before it."""
        model, block = self.model, self.model.block
        earlier = None if first else take(self.ids, self.steps.places(-block, block), 1)
        logits = torch.cat([network.logits(earlier, self.steps) for network in self.networks])
        scale = None if self.scales is None else self.steps.of_step(self.scales, block)
        now = self.steps.places(0, block)
        ids = model.sample_ids(model.apply_cfg(logits, scale), take(self.uniform, now, 1))
        put(self.ids, now, 1, ids)
