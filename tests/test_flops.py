"""Counted FLOPs against hand formulas: the paper's DiT table, all three families, whole sampling
calls, matched sizes.
"""

from collections.abc import Sequence

import pytest
import torch
from conftest import FAMILIES, TOKENS, rng, tiny

from benchmarks.commands import count_flops
from benchmarks.core.settings import compose
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
K = 2048
MODELS = ["unet", "dit", "ar", "ar_block", "ar_any", "masked"]


def configured(
    name: str, size: str, shape=(4, 16, 16), classes: int = 1000, overrides: Sequence[str] = ()
):
    cfg = compose(f"model={name}", f"size={size}", *overrides)
    with torch.device("meta"):
        model = build_model(cfg.model, shape, classes, Codebook(K))
    return cfg, model.to("meta").eval()


def dit_macs(width: int, depth: int, tokens: int, patch: int, out_channels: int) -> int:
    blocks = depth * (12 * width**2 * tokens + 2 * tokens**2 * width + 6 * width**2)
    return (
        blocks
        + 2 * width**2
        + width**2
        + 256 * width
        + (4 + out_channels) * patch**2 * width * tokens
    )


def ar_macs(width: int, depth: int, mlp: int, tokens: int, block: int | None = None) -> int:
    """`block`: drawn so many at a time, each meeting with a cache only what is there already and
    its own block.
    """
    pairs = (
        sum(block * (start + block) for start in range(0, tokens, block)) if block else tokens**2
    )
    return (
        depth * (4 * width**2 * tokens + 2 * pairs * width + 3 * width * mlp * tokens)
        + width * K * tokens
    )


def any_order_macs(
    width: int, depth: int, mlp: int, tokens: int, counts: list[int] | None = None
) -> int:
    """Half the blocks self-attention, half cross-attention at one shared set of keys and values.
    `counts`: tokens drawn per step.
    """
    pairs = (
        tokens**2
    )  # of a query and a key; with a cache a step's few meet only what is there already
    if counts is not None:
        known = [1 + sum(counts[:n]) for n in range(len(counts))]
        fed = [1, *counts[:-1]]
        pairs, crossed = (
            sum(a * b for a, b in zip(few, known, strict=True)) for few in (fed, counts)
        )
    else:
        crossed = pairs
    mlps = depth * 3 * width * mlp * tokens
    first, second = (
        depth // 2 * (4 * width**2 * tokens + 2 * pairs * width),
        depth // 2 * (2 * width**2 * tokens + 2 * crossed * width),
    )
    return mlps + first + second + 2 * width**2 * tokens + width * K * tokens


def masked_macs(width: int, depth: int, mlp: int, tokens: int) -> int:
    seen = tokens + 1  # and the class
    return (
        depth * (4 * width**2 * seen + 2 * seen**2 * width + 3 * width * mlp * seen)
        + width * K * tokens
    )


def unet_macs(channels: list[int], layers: int, side: int, latent_channels: int = 4) -> int:
    """UNet2DModel by hand: convolutions, time projections, and attention at every level but the
    highest.
    """
    wide = 4 * channels[0]

    def resnet(a: int, b: int, s: int) -> int:
        return 9 * a * b * s**2 + 9 * b * b * s**2 + wide * 2 * b + (a * b * s**2 if a != b else 0)

    def attention(c: int, s: int) -> int:
        return 4 * c * c * s**2 + 2 * s**4 * c

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


def hand_count(cfg, side: int) -> int:
    size = cfg.size[cfg.model.name.replace("ar_block", "ar")]
    if cfg.model.name in ("ar_any", "masked"):
        count = any_order_macs if cfg.model.name == "ar_any" else masked_macs
        return count(size.width, size.depth, size.mlp, side**2)
    if cfg.model.family == "dit":
        return dit_macs(size.width, size.depth, side**2, 1, 4)
    if cfg.model.family == "ar":
        return ar_macs(size.width, size.depth, size.mlp, side**2)
    return unet_macs(list(size.channels), size.layers, side)


def test_the_paper_s_dit_table_is_reproduced():
    counted = {(row[2], row[3]): row[7] for row in count_flops.paper()}
    for size, figures in PAPER_TABLE.items():
        for patch, gmacs in zip((8, 4, 2), figures, strict=True):
            rounding = 0.005 / gmacs  # the paper prints two decimals
            assert counted[size, patch] == pytest.approx(gmacs, rel=max(0.005, rounding)), (
                size,
                patch,
            )


def test_the_paper_s_dit_table_is_the_hand_formula():
    counted = {(row[2], row[3]): row[7] for row in count_flops.paper()}
    for size, (width, depth, _) in PAPER_SIZES.items():
        for patch in (8, 4, 2):
            assert counted[size, patch] * 1e9 == dit_macs(
                width, depth, (32 // patch) ** 2, patch, 8
            )


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("size, side", [("xs", 8), ("s", 16)])
def test_a_forward_pass_is_the_hand_formula(name, size, side):
    cfg, model = configured(name, size, (4, side, side))
    assert forward_macs(model) == hand_count(cfg, side)


@pytest.mark.parametrize("size, side", [("xs", 8), ("s", 16), ("b", 16), ("l", 16), ("xl", 16)])
def test_one_size_costs_the_same_in_every_family(size, side):
    counts = [forward_macs(configured(name, size, (4, side, side))[1]) for name in MODELS]
    assert max(counts) / min(counts) < 1.05, counts


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
            assert sampling_macs(model, steps, guidance) == pytest.approx(
                evaluations * hand_count(cfg, 8), rel=0.01
            ), name


@pytest.mark.parametrize("guidance, times", [(1.0, 1), (2.0, 2)])
@pytest.mark.parametrize("block", [1, 4, 16])
def test_a_whole_raster_call_is_one_forward_pass_less_what_comes_later(block, guidance, times):
    """N / k cached steps of k tokens: together one pass over N tokens whose attention, about half
    of it, is what came before.
    """
    cfg, model = configured("ar_block", "xs", (4, 8, 8), overrides=[f"model.block={block}"])
    assert model.nfe(64 // block, guidance) == times * 64 // block
    size, counted = cfg.size.ar, sampling_macs(model, 64 // block, guidance)
    assert (
        counted
        == times * ar_macs(size.width, size.depth, size.mlp, 64, block)
        < times * hand_count(cfg, 8)
    )
    assert counted == times * (forward_macs(model) - count_flops.later_macs(cfg.model, 64)), (
        "how `make cost` counts it"
    )


@pytest.mark.parametrize("guidance, times", [(1.0, 1), (2.0, 2)])
@pytest.mark.parametrize("steps", [1, 8, 64])
def test_a_whole_any_order_call_is_never_more_than_a_forward_pass_and_a_masked_one_is_as_many_as_steps(
    steps, guidance, times
):
    """What the any-order model draws goes through either pass once; the masked model looks at
    everything again each step.
    """
    cfg, model = configured("ar_any", "xs", (4, 8, 8))
    size, counts = cfg.size.ar_any, schedule("arccos", 64, steps)
    assert model.nfe(steps, guidance) == times * steps
    # one step feeds the class alone through pass 1: no token is ever looked at again
    fed = 1 + sum(counts[:-1])
    unfed = (64 - fed) * (
        size.depth // 2 * (4 * size.width**2 + 3 * size.width * size.mlp) + 2 * size.width**2
    )
    expected = any_order_macs(size.width, size.depth, size.mlp, 64, counts) - unfed
    assert sampling_macs(model, steps, guidance) == pytest.approx(times * expected, rel=0.01)
    assert 0.5 * hand_count(cfg, 8) < expected <= hand_count(cfg, 8), (
        "a step fewer saves feeding its tokens, no more"
    )
    cfg, model = configured("masked", "xs", (4, 8, 8))
    assert sampling_macs(model, steps, guidance) == pytest.approx(
        times * steps * hand_count(cfg, 8), rel=0.01
    )


def test_attention_is_not_counted_as_zero():
    """On the CPU the counter sees no scaled_dot_product_attention; on meta it must see 2 T^2 d."""
    q = torch.empty(1, 4, 64, 32, device="meta")
    assert (
        count_macs(lambda: torch.nn.functional.scaled_dot_product_attention(q, q, q))
        == 2 * 64**2 * 128
    )


def test_the_autoencoder_stays_within_its_bounds():
    """At 64 px: encoding at most 0.4 and decoding at most 0.9 GMACs."""
    meta = Autoencoder().to("meta")
    assert (
        count_macs(lambda: meta.encode(torch.empty(1, 3, 64, 64, dtype=torch.uint8, device="meta")))
        <= 0.4e9
    )
    assert 0 < decoder_macs(Autoencoder(), (4, 16, 16)) <= 0.9e9


@pytest.mark.parametrize("name", [*FAMILIES, "unet-unipc", "dit-v-heun"])
def test_what_is_counted_once_and_multiplied_is_what_the_whole_call_counts(name):
    model = on_meta(tiny(name))
    labels = torch.zeros(1, dtype=torch.long, device="meta")
    for steps in model.supported_steps([1, 3, 8, 16, TOKENS])[:3]:
        for guidance in (1.0, 3.0, 5.0):
            whole = count_macs(
                lambda: model.sample(labels, steps=steps, guidance=guidance, rng=rng())
            )
            assert sampling_macs(model, steps, guidance) == whole > 0
