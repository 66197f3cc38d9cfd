"""Counted FLOPs against hand formulas: the paper's DiT table, all three families, whole sampling
calls, matched sizes.
"""

from collections.abc import Sequence
from functools import cache, partial

import pytest
import torch
from conftest import FAMILIES, TOKENS, rng, tiny
from omegaconf import OmegaConf

from benchmarks.commands import count_flops
from benchmarks.core.settings import CONF, compose
from benchmarks.stages.model import build_model, decoder_macs, forward_macs, on_meta, sampling_macs
from metrics.flops import count_macs
from models import schedulers
from models.autoencoder import Autoencoder
from models.codebook import Codebook
from models.dit import PAPER_SIZES
from models.tokens import schedule

# GMACs at patch 8, 4, 2 on 4x32x32 latents: "Gflops" of arXiv 2212.09748, table 4, to the digits
# printed there
PAPER_TABLE = {
    "s": (0.36, 1.41, 6.06),
    "b": (1.42, 5.56, 23.01),
    "l": (5.01, 19.70, 80.71),
    "xl": (7.39, 29.05, 118.64),
}
K = 2048  # entries of the codebook, where a size has none of its own
MODELS = ["unet", "dit", "ar", "ar_block", "ar_any", "masked", "unet_flowmap", "dit_flowmap"]
MODELS += ["unet_conv", "uvit", "ar_scale"]
CONTINUOUS = [
    (name, head) for name in ("ar_continuous", "masked_continuous") for head in ("gmm", "flow")
]


def configured(name: str, size: str, shape=(4, 16, 16), overrides: Sequence[str] = ()):
    """A configuration and its model on the meta device, for 1000 classes."""
    cfg = compose(f"model={name}", f"size={size}", *overrides)
    with torch.device("meta"):
        model = build_model(cfg.model, shape, 1000, Codebook(cfg.size.get("codebook_size", K)))
    return cfg, model.to("meta").eval()


@cache
def _composed_once(*overrides: str):
    return compose(*overrides)


def of_size(size: str, *overrides: str):
    """The configuration of a model in a size. Composed once for all sizes, which takes longer."""
    cfg = _composed_once(*overrides).copy()
    cfg.size = OmegaConf.load(CONF / "size" / f"{size}.yaml")
    return cfg


def dit_macs(width: int, depth: int, tokens: int, patch: int, out_channels: int) -> int:
    """DiT by hand; its modulations are made once per image, not per token."""
    blocks = depth * (12 * width**2 * tokens + 2 * tokens**2 * width + 6 * width**2)
    last_modulation, timestep = 2 * width**2, 256 * width + width**2
    patches = (4 + out_channels) * patch**2 * width * tokens  # in and out
    return blocks + last_modulation + timestep + patches


def ar_macs(width: int, depth: int, mlp: int, tokens: int, block: int | None = None) -> int:
    """The raster model by hand: a forward pass; or, with `block`, sampling so many at a time.

    With a cache a block meets only what is there already and itself.
    """
    pairs = tokens**2  # of a query and a key
    if block:
        pairs = sum(block * (start + block) for start in range(0, tokens, block))
    layer = 4 * width**2 * tokens + 2 * pairs * width + 3 * width * mlp * tokens
    return depth * layer + width * K * tokens


def any_order_macs(
    width: int, depth: int, mlp: int, tokens: int, counts: list[int] | None = None
) -> int:
    """The any-order model by hand: a forward pass; or, with `counts` of tokens per step, sampling.

    Half the blocks are self-attention, half cross-attention at one shared set of keys and values.
    With a cache the few tokens of a step meet only what is there already.
    """
    self_pairs = cross_pairs = tokens**2  # of a query and a key
    if counts is not None:
        self_pairs, cross_pairs, cached, fed = 0, 0, 0, 1  # the class token is fed first
        for count in counts:
            cached += fed
            self_pairs += fed * cached
            cross_pairs += count * cached
            fed = count
    mlps = depth * 3 * width * mlp * tokens
    first = depth // 2 * (4 * width**2 * tokens + 2 * self_pairs * width)
    second = depth // 2 * (2 * width**2 * tokens + 2 * cross_pairs * width)
    shared = 2 * width**2 * tokens
    return mlps + first + second + shared + width * K * tokens


def masked_macs(width: int, depth: int, mlp: int, tokens: int) -> int:
    """The masked model by hand."""
    seen = tokens + 1  # and the class
    layer = 4 * width**2 * seen + 2 * seen**2 * width + 3 * width * mlp * seen
    return depth * layer + width * K * tokens


def unet_macs(
    channels: list[int], layers: int, side: int, *, attends: bool = True, latent_channels: int = 4
) -> int:
    """UNet2DModel by hand: convolutions, time projections, attention below the highest level."""
    wide = 4 * channels[0]  # of the time embedding

    def resnet(a: int, b: int, s: int) -> int:
        skip = a * b * s**2 if a != b else 0
        return 9 * a * b * s**2 + 9 * b * b * s**2 + wide * 2 * b + skip

    def attention(c: int, s: int) -> int:
        return attends * (4 * c * c * s**2 + 2 * s**4 * c)

    total = channels[0] * wide + wide * wide + 9 * latent_channels * channels[0] * side**2
    skips, current = [channels[0]], channels[0]
    for level, c in enumerate(channels):
        for _ in range(layers):
            total += resnet(current, c, side) + (attention(c, side) if level else 0)
            current = c
            skips.append(c)
        if level < len(channels) - 1:
            side //= 2
            total += 9 * c * c * side**2
            skips.append(c)
    total += 2 * resnet(current, current, side) + attention(current, side)
    for level, c in reversed(list(enumerate(channels))):
        for _ in range(layers + 1):
            total += resnet(current + skips.pop(), c, side) + (attention(c, side) if level else 0)
            current = c
        if level:
            side *= 2
            total += 9 * c * c * side**2
    return total + 9 * channels[0] * latent_channels * side**2


def dit_pixels_macs(width: int, depth: int, tokens: int, bottleneck: int) -> int:
    """DiT of patches of 48 pixel values, which enter through a bottleneck."""
    ends = 48 * bottleneck + bottleneck * width + 48 * width
    return dit_macs(width, depth, tokens, 1, 4) + (ends - 2 * 4 * width) * tokens


def scale_macs(width: int, depth: int, mlp: int, entries: int, side: int) -> int:
    """The transformer over scales by hand: as many tokens as all of them have, which are looked up
    while training.
    """
    tokens = sum(4**n for n in range(side.bit_length()))
    layer = (4 * width**2 + 2 * tokens * width + 3 * width * mlp) * tokens
    return depth * layer + (4 * width + entries * width + entries * 4) * tokens


def uvit_macs(width: int, depth: int, mlp: int, side: int) -> int:
    """U-ViT by hand: time and label are tokens, too; half of the blocks join a skip."""
    tokens, patches = side**2 + 2, side**2
    block = 4 * width**2 * tokens + 2 * tokens**2 * width + 2 * width * mlp * tokens
    skips = depth // 2 * 2 * width**2 * tokens
    timestep, ends = 256 * width + width**2, 2 * 4 * width * patches
    return depth * block + skips + timestep + ends + 9 * 4 * 4 * patches


def hand_count(cfg, side: int) -> int:
    """MACs of a forward pass of a configuration's model, by hand."""
    name = cfg.model.name.removesuffix("_flowmap")
    own = {"ar_block": "ar", "dit_pixels": "dit"}.get(name, name)
    tokens, size = side**2, cfg.size[own]
    if name != cfg.model.name:  # span and guidance are embedded as the time is
        plain = of_size(cfg.size.name, f"model={name}")
        wide = size.width if name == "dit" else 4 * size.channels[0]
        return hand_count(plain, side) + 2 * (256 * wide + wide**2)
    if name in ("unet", "unet_conv"):
        return unet_macs(list(size.channels), size.layers, side, attends=name == "unet")
    if name == "dit":
        return dit_macs(size.width, size.depth, tokens, 1, 4)
    if name == "dit_pixels":
        return dit_pixels_macs(size.width, size.depth, tokens, 32)
    if name == "ar_scale":
        return scale_macs(size.width, size.depth, size.mlp, size.entries, side)
    if name == "uvit":
        return uvit_macs(size.width, size.depth, size.mlp, side)
    count = {"ar_any": any_order_macs, "masked": masked_macs}.get(name, ar_macs)
    fewer = K - cfg.size.get("codebook_size", K)  # entries that the head has less
    return count(size.width, size.depth, size.mlp, tokens) - size.width * fewer * tokens


def continuous_macs(cfg, tokens: int) -> int:
    """The transformers that predict latent vectors by hand, with their heads."""
    size, head = cfg.size.ar_continuous, cfg.model.head
    w, h, mlp = size.width, size.head_width, size[head]
    there = tokens + (cfg.model.name == "masked_continuous")  # the class is a token of its own
    layer = 4 * w**2 * there + 2 * there**2 * w + 3 * w * mlp * there
    # raster: the last token enters nothing
    entering = 4 * w * (tokens - (cfg.model.name == "ar_continuous"))
    heads = {
        "gmm": w * 16 * (1 + 2 * 4) * tokens,
        # of two noises each: a time, blocks of two layers and three modulations, the way in and out
        "flow": 2 * tokens * (h * h + h * h + 3 * (2 + 3) * h * h + 2 * h * h + 2 * 4 * h)
        + tokens * w * h,
    }
    return size.depth * layer + entering + heads[head]


@pytest.mark.parametrize("name, head", CONTINUOUS)
@pytest.mark.parametrize("size, side", [("xs", 8), ("xs16", 16), ("s", 16)])
def test_a_pass_of_latent_vectors_is_the_hand_formula(name, head, size, side):
    cfg, model = configured(name, size, (4, side, side), [f"model.head={head}"])
    assert forward_macs(model) == continuous_macs(cfg, side**2)


def test_the_paper_s_dit_table_is_reproduced_and_is_the_hand_formula():
    counted = {(row[2], row[3]): row[7] for row in count_flops.paper()}
    for size, figures in PAPER_TABLE.items():
        width, depth, _ = PAPER_SIZES[size]
        for patch, gmacs in zip((8, 4, 2), figures, strict=True):
            by_hand = dit_macs(width, depth, (32 // patch) ** 2, patch, 8)
            assert counted[size, patch] * 1e9 == by_hand
            tolerance = max(0.005, 0.005 / gmacs)  # the paper prints two decimals
            assert counted[size, patch] == pytest.approx(gmacs, rel=tolerance), (size, patch)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("size, side", [("xs", 8), ("xs16", 16), ("s", 16)])
def test_a_forward_pass_is_the_hand_formula(name, size, side):
    cfg, model = configured(name, size, (4, side, side))
    assert forward_macs(model) == hand_count(cfg, side)


def test_a_pass_of_patches_of_pixels_is_the_hand_formula():
    cfg, pixels = configured("dit_pixels", "xs", (48, 8, 8))
    assert forward_macs(pixels) == hand_count(cfg, 8)


@pytest.mark.parametrize(
    "size, side", [("xs", 8), ("xs16", 16), ("s", 16), ("b", 16), ("l", 16), ("xl", 16)]
)
def test_one_size_costs_the_same_in_every_family(size, side):
    """By the hand formulas, which the tests above hold to what is counted."""
    counts = {}
    for name in (*MODELS, "dit_pixels"):
        counts[name] = hand_count(of_size(size, f"model={name}"), side)
    for name, head in CONTINUOUS:
        cfg = of_size(size, f"model={name}", f"model.head={head}")
        counts[name, head] = continuous_macs(cfg, side**2)
    assert max(counts.values()) / min(counts.values()) < 1.05, counts


@pytest.mark.parametrize("guidance, times", [(1.0, 1), (2.0, 2)])
@pytest.mark.parametrize("sampler", schedulers.samplers("flow"))
def test_a_whole_diffusion_call_is_the_hand_formula(sampler, guidance, times):
    """Every evaluation counts, Heun's 2n - 1 among them, and twice under guidance."""
    for name in ("unet", "dit"):
        cfg, model = configured(name, "xs", (4, 8, 8))
        model.set_sampler(sampler)
        for steps in (1, 3, 8):
            evaluations = times * (2 * steps - 1 if sampler == "heun" else steps)
            assert model.nfe(steps, guidance) == evaluations
            by_hand = evaluations * hand_count(cfg, 8)
            assert sampling_macs(model, steps, guidance) == pytest.approx(by_hand, rel=0.01), name


@pytest.mark.parametrize("guidance, times", [(1.0, 1), (2.0, 2)])
@pytest.mark.parametrize("block", [1, 4, 16])
def test_a_whole_raster_call_is_one_forward_pass_less_what_comes_later(block, guidance, times):
    """N / k cached steps of k tokens are together one pass over N tokens.

    Its attention is about half of the pass's: to what came before.
    """
    cfg, model = configured("ar_block", "xs", (4, 8, 8), overrides=[f"model.block={block}"])
    assert model.nfe(64 // block, guidance) == times * 64 // block
    size, counted = cfg.size.ar, sampling_macs(model, 64 // block, guidance)
    assert counted == times * ar_macs(size.width, size.depth, size.mlp, 64, block)
    assert counted < times * hand_count(cfg, 8)
    by_difference = forward_macs(model) - count_flops.later_macs(cfg.model, 64)
    assert counted == times * by_difference, "how `make cost` counts it"


@pytest.mark.parametrize("guidance, times", [(1.0, 1), (2.0, 2)])
@pytest.mark.parametrize("steps", [1, 8, 64])
def test_a_whole_any_order_call_is_never_more_than_a_forward_pass(steps, guidance, times):
    """What the model samples goes through either pass once."""
    cfg, model = configured("ar_any", "xs", (4, 8, 8))
    size, counts = cfg.size.ar_any, schedule("cosine", 64, steps)
    assert model.nfe(steps, guidance) == times * steps
    # The last step's tokens never go through pass 1: nothing looks at them.
    fed = 1 + sum(counts[:-1])
    layer = 4 * size.width**2 + 3 * size.width * size.mlp
    saved = (64 - fed) * (size.depth // 2 * layer + 2 * size.width**2)
    expected = any_order_macs(size.width, size.depth, size.mlp, 64, counts) - saved
    assert sampling_macs(model, steps, guidance) == pytest.approx(times * expected, rel=0.01)
    assert 0.5 * hand_count(cfg, 8) < expected <= hand_count(cfg, 8)


@pytest.mark.parametrize("guidance, times", [(1.0, 1), (2.0, 2)])
@pytest.mark.parametrize("steps", [1, 8, 64])
def test_a_whole_masked_call_is_a_forward_pass_a_step(steps, guidance, times):
    """The masked model looks at everything again each step."""
    cfg, model = configured("masked", "xs", (4, 8, 8))
    by_hand = times * steps * hand_count(cfg, 8)
    assert sampling_macs(model, steps, guidance) == pytest.approx(by_hand, rel=0.01)


@pytest.mark.parametrize("guidance, times", [(1.0, 1), (2.0, 2)])
def test_a_whole_call_over_scales_is_a_forward_pass_less_what_comes_later(guidance, times):
    """A scale's tokens look at those of the scales up to their own, and none is looked up."""
    cfg, model = configured("ar_scale", "xs", (4, 8, 8))
    size, ends = cfg.size.ar_scale, [1, 5, 21, 85]
    unseen = (
        2 * size.width * sum(n * (85 - end) for n, end in zip([1, 4, 16, 64], ends, strict=True))
    )
    expected = hand_count(cfg, 8) - size.depth * unseen - size.entries * 4 * 85
    assert model.nfe(4, guidance) == 4 * times
    assert sampling_macs(model, 4, guidance) == times * expected


def test_attention_is_not_counted_as_zero():
    """On the CPU the counter sees no scaled_dot_product_attention; on meta it must see 2 T^2 d."""
    q = torch.empty(1, 4, 64, 32, device="meta")
    counted = count_macs(lambda: torch.nn.functional.scaled_dot_product_attention(q, q, q))
    assert counted == 2 * 64**2 * 128


def test_the_autoencoder_stays_within_its_bounds():
    """At 64 px: encoding at most 0.4 and decoding at most 0.9 GMACs."""
    meta = Autoencoder().to("meta")
    images = torch.empty(1, 3, 64, 64, dtype=torch.uint8, device="meta")
    assert count_macs(lambda: meta.encode(images)) <= 0.4e9
    assert 0 < decoder_macs(Autoencoder(), (4, 16, 16)) <= 0.9e9


# a flow head's many steps are counted in tests/test_continuous.py, on fewer tokens
COUNTED = [name for name in FAMILIES if name != "raster-flow"]


@pytest.mark.parametrize("name", [*COUNTED, "unet-unipc", "dit-v-heun"])
def test_what_is_counted_once_and_multiplied_is_what_the_whole_call_counts(name):
    """At step counts and scales of guidance apart, of which the scale costs nothing."""
    model = on_meta(tiny(name))
    labels = torch.zeros(1, dtype=torch.long, device="meta")
    fewest, *more = model.supported_steps([1, 3, 4, 16, TOKENS])
    cases = [(fewest, 1.0), (fewest, 3.0), (fewest, 5.0)]
    if more:
        cases += [(more[0], 1.0), (more[0], 3.0)]
    for steps, guidance in cases:
        call = partial(model.sample, labels, steps=steps, guidance=guidance, rng=rng())
        assert sampling_macs(model, steps, guidance) == count_macs(call) > 0
