"""Counted FLOPs against hand formulas: the paper's DiT table, all three families, whole sampling
calls, matched sizes.
"""

from collections.abc import Sequence
from functools import partial

import pytest
import torch
from conftest import FAMILIES, KIN, TOKENS, partly_long, rng, tiny
from hand_counts import K, any_order_macs, ar_macs, continuous_macs, dit_macs, hand_count, of_size

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


@pytest.mark.parametrize("depth", [3, 4])
def test_a_pass_of_a_u_vit_without_skips_is_the_hand_formula(depth):
    """As many blocks as are asked for, an even number as well."""
    overrides = ["model.denoiser.skips=false", f"size.uvit.depth={depth}"]
    cfg, model = configured("uvit", "xs", (4, 8, 8), overrides)
    assert forward_macs(model) == hand_count(cfg, 8)


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
    head = size.width * (K - cfg.size.codebook_size) * 64  # that this size's codebook saves
    assert counted == times * (ar_macs(size.width, size.depth, size.mlp, 64, block) - head)
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
    saved += size.width * (K - cfg.size.codebook_size) * 64  # in the head
    expected = any_order_macs(size.width, size.depth, size.mlp, 64, counts) - saved
    assert sampling_macs(model, steps, guidance) == pytest.approx(times * expected, rel=0.01)
    assert 0.4 * hand_count(cfg, 8) < expected <= hand_count(cfg, 8)


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
# slow: one token a step, and each token's mixture by itself; `ar-block4` is counted as `ar` is
SLOW = ("ar", "raster-gmm")
COUNTED = [name for name in FAMILIES if name != "raster-flow"]


@pytest.mark.parametrize("name", partly_long([*COUNTED, "unet-unipc", "dit-v-heun"], (*KIN, *SLOW)))
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
