"""The token models: what they may see, what their caches hold, how ids are sampled."""

import math

import pytest
import torch
import torch.nn.functional as F
from conftest import CLASSES, ENTRIES, SHAPE, TOKENS, rng, tiny

from benchmarks.core.settings import compose
from benchmarks.stages.model import build_model
from models.any_order import AnyOrder
from models.codebook import Codebook
from models.generator import Batch
from models.layers import grid_angles, rotate, rotation_of
from models.randomness import spawn
from models.tokens import filter_logits, inverse_cdf, schedule

LABELS = torch.tensor([0, 3, 1])


def raster_numbers(count: int, seed: int) -> torch.Tensor:
    """The uniform numbers (count, TOKENS) that the raster model draws from `rng(seed)`."""
    return torch.stack([torch.rand(TOKENS, generator=own) for own in spawn(rng(seed), count)])


def any_order_numbers(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The orders and the uniform numbers that the any-order model draws from `rng(seed)`."""
    orders, numbers = [], []
    for own in spawn(rng(seed), count):
        orders.append(torch.rand(TOKENS, generator=own).argsort())
        numbers.append(torch.rand(TOKENS, generator=own))
    return torch.stack(orders), torch.stack(numbers)


def inverted(logits, uniform) -> torch.Tensor:
    """Ids (B, T) from logits (B, T, K), each at its uniform number (B, T)."""
    columns = range(uniform.shape[1])
    return torch.stack([inverse_cdf(logits[:, n], uniform[:, n]) for n in columns], dim=1)


def guided_logits(model, ids, guidance, *order) -> torch.Tensor:
    """Teacher-forced logits of LABELS, u + w (c - u)."""
    with torch.no_grad():
        conditional = model.logits(ids, LABELS, *order)
        unconditional = model.logits(ids, torch.full_like(LABELS, CLASSES), *order)
    return unconditional + guidance * (conditional - unconditional)


@pytest.mark.parametrize("guidance", [1.0, 2.5])
@pytest.mark.parametrize("block", [1, 4])
def test_blocks_sampled_with_the_cache_are_those_of_the_full_forward_pass(block, guidance):
    model = tiny("ar-block4" if block == 4 else "ar").eval()
    ids = model.sample_tokens(LABELS, steps=TOKENS // block, guidance=guidance, rng=rng(2))
    expected = inverted(guided_logits(model, ids, guidance), raster_numbers(3, 2))
    assert torch.equal(ids, expected)
    assert ids.unique().numel() > ENTRIES // 4, "a constant would agree with anything"


def test_a_block_sees_the_blocks_before_it_and_nothing_of_itself():
    model = tiny("ar-block4").eval()
    tokens = torch.randint(ENTRIES, (1, TOKENS), generator=rng())
    changed = tokens.clone()
    changed[:, 20] = (changed[:, 20] + 1) % ENTRIES
    with torch.no_grad():
        before = model.logits(tokens, torch.tensor([0]))
        after = model.logits(changed, torch.tensor([0]))
    moved = (before - after).abs().amax(dim=(0, 2)) > 1e-4
    assert not moved[:24].any(), "blocks 0 to 5, of which token 20 is one, do not see it"
    assert moved[24:].all()


@pytest.mark.parametrize("guidance", [1.0, 2.5])
def test_any_order_in_all_steps_is_exact_autoregression(guidance):
    """With as many steps as tokens, cached sampling is the teacher-forced pass over that order."""
    model = tiny("any").eval()
    model.set_sampler(guidance_schedule="constant")
    ids = model.sample_tokens(LABELS, steps=TOKENS, guidance=guidance, rng=rng(2))
    order, uniform = any_order_numbers(3, 2)
    expected = inverted(guided_logits(model, ids, guidance, order), uniform)
    assert torch.equal(ids.gather(1, order), expected)
    assert ids.unique().numel() > ENTRIES // 4


@pytest.mark.parametrize("train", [True, False])
def test_any_order_never_sees_its_target_nor_what_comes_later(train):
    """Nor in validation, into whose loss masks that follow the training mode would leak."""
    model = tiny("any").train(train)
    tokens = torch.randint(ENTRIES, (1, TOKENS), generator=rng())
    order = torch.rand(1, TOKENS, generator=rng(1)).argsort(dim=1)
    changed = tokens.scatter(1, order[:, 20:21], (tokens.gather(1, order[:, 20:21]) + 1) % ENTRIES)
    with torch.no_grad():
        before = model.logits(tokens, torch.tensor([0]), order)
        after = model.logits(changed, torch.tensor([0]), order)
    moved = (before - after).abs().amax(dim=(0, 2)) > 1e-5
    assert not moved[:21].any() and moved[21:].all()


def test_any_order_targets_of_one_step_do_not_see_each_other():
    """One step samples all tokens from the class alone: each has a first token's distribution."""
    model = tiny("any").eval()
    ids = model.sample_tokens(LABELS, steps=1, guidance=1.0, rng=rng(2))
    orders, uniform = any_order_numbers(3, 2)
    for place in (0, 17, 63):
        order = torch.arange(TOKENS).roll(-place).expand(3, -1)  # `place` comes first
        with torch.no_grad():
            first = model.logits(torch.zeros_like(ids), LABELS, order)[:, 0]
        assert torch.equal(ids[:, place], inverse_cdf(first, uniform[orders == place]))


@pytest.mark.parametrize("guidance", [1.0, 2.5])
def test_any_order_in_some_steps_is_the_same_without_a_cache(guidance):
    """Eight steps, linear guidance: each step's ids follow from one pass over all before it."""
    model = tiny("any").eval()
    ids = model.sample_tokens(LABELS, steps=8, guidance=guidance, rng=rng(2))
    order, uniform = any_order_numbers(3, 2)
    ordered, counts = ids.gather(1, order), schedule("cosine", TOKENS, 8)
    expected, start = [], 0
    for step, count in enumerate(counts):
        targets = order[:, start : start + count]
        conditional, unconditional = (
            _scores_without_cache(model, labels, order, ordered, counts[:step], targets)
            for labels in (LABELS, torch.full_like(LABELS, CLASSES))
        )
        scale = 1 + (guidance - 1) * (start + count) / TOKENS
        logits = unconditional + scale * (conditional - unconditional)
        expected.append(inverted(logits, uniform[:, start : start + count]))
        start += count
    assert torch.equal(ordered, torch.cat(expected, dim=1))


@torch.no_grad()
def _scores_without_cache(model, labels, order, ordered, counts, targets) -> torch.Tensor:
    """Logits of targets after steps of these counts, from one pass over all they sampled.

    Each input sees what its own step and those before it fed: the class token, then the tokens of
    each step in the next.
    """
    done = sum(counts)
    x = torch.cat([model.classes(labels)[:, None], model.embed(ordered[:, :done])], dim=1)
    class_angle = model.angles[:1].expand(len(labels), 1, -1)
    angles = torch.cat([class_angle, model.angles[1 + order[:, :done]]], dim=1)
    fed = torch.repeat_interleave(torch.arange(1 + len(counts)), torch.tensor([1, *counts]))
    seen = fed[:, None] >= fed
    attend = F.scaled_dot_product_attention
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            F, "scaled_dot_product_attention", lambda q, k, v, **_: attend(q, k, v, attn_mask=seen)
        )
        memory = model.memory(x, angles, causal=False, caches=[None] * len(model.remember))
    return model.scores(targets, labels, *memory, causal=False)


def test_any_order_knows_where_its_targets_are():
    """By rotation alone, without the learned vectors. The class token has its own place too."""
    model = tiny("any").eval()
    torch.nn.init.zeros_(model.positions)
    order = torch.arange(TOKENS)[None]
    swapped = order.clone()
    swapped[:, [40, 50]] = swapped[:, [50, 40]]
    tokens = torch.zeros(1, TOKENS, dtype=torch.long)
    with torch.no_grad():
        here = model.logits(tokens, torch.tensor([0]), order)
        there = model.logits(tokens, torch.tensor([0]), swapped)
    assert not torch.allclose(here[:, 40], there[:, 40], atol=1e-4)
    assert len(torch.unique(grid_angles(8, 8, 16), dim=0)) == 65


@pytest.mark.parametrize("name", ["ar", "ar_any", "masked"])
def test_matrices_begin_with_the_variance_of_their_width(name):
    """After 200 steps at width 96 ar_any's loss is 4.9 nats; with Llama's 0.02, 6.1."""
    cfg = compose(f"model={name}", "size=xs")
    torch.manual_seed(0)
    model = build_model(cfg.model, (4, 8, 8), 10, Codebook(64))
    matrices = []
    for parameter, weight in model.named_parameters():
        is_matrix = weight.ndim == 2 and min(weight.shape) >= 96
        if is_matrix and "head" not in parameter and "embed" not in parameter:
            matrices.append(weight)
    assert len(matrices) >= 16
    for matrix in matrices:
        assert matrix.std().item() == pytest.approx(matrix.shape[1] ** -0.5, rel=0.05)
    embedding = model.transformer.embed_tokens if name == "ar" else model.embed
    assert embedding.weight.std().item() == pytest.approx(0.02, rel=0.1)
    batch = Batch(torch.randn(4, 4, 8, 8), torch.randint(64, (4, 64)), torch.arange(4))
    tolerance = 0.01 if name == "ar" else 1e-6
    loss = model(batch, rng=rng()).item()
    assert loss == pytest.approx(math.log(64), rel=tolerance), "all ids are as likely"


@pytest.mark.parametrize("name", ["ar", "any", "masked"])
def test_the_class_is_known_at_every_position_without_attention(name):
    """With attention cut off nothing comes from the class token; the logits still depend on it."""
    model = tiny(name).eval()
    for parameter, weight in model.named_parameters():
        if parameter.endswith(("attention.out.weight", "self_attn.o_proj.weight")):
            torch.nn.init.zeros_(weight)
    tokens = torch.zeros(2, TOKENS, dtype=torch.long)
    order = [torch.arange(TOKENS).expand(2, -1)] if name == "any" else []
    with torch.no_grad():
        first, second = model.logits(tokens, torch.tensor([0, 1]), *order)
    assert ((first - second).abs().amax(-1) > 1e-3).all()


def test_rotation_keeps_lengths_and_depends_on_differences_only():
    angles = grid_angles(8, 8, 16)
    q, k = torch.randn(1, 1, 1, 16), torch.randn(1, 1, 1, 16)

    def at(x: torch.Tensor, place: int) -> torch.Tensor:
        return rotate(x, rotation_of(angles[None, place : place + 1]))

    def product(i: int, j: int) -> float:
        return (at(q, i) * at(k, j)).sum().item()

    # one row down and one column on, from anywhere
    assert product(1, 1 + 9) == pytest.approx(product(20, 20 + 9), abs=1e-4)
    # a step right is not a step down
    assert product(1, 2) != pytest.approx(product(1, 9), abs=1e-3)
    assert at(q, 5).norm().item() == pytest.approx(q.norm().item(), rel=1e-5)


@pytest.mark.parametrize(
    "top_k, top_p, kept",
    [
        (0, 1.0, [0, 1, 2, 3]),
        (2, 1.0, [0, 2]),
        (0, 0.6, [0, 2]),
        (0, 0.01, [0]),
        (0, 0.75, [0, 2, 3]),
    ],
)
def test_filters_keep_the_likeliest(top_k, top_p, kept):
    logits = torch.tensor([[0.4, 0.1, 0.3, 0.2]]).log()
    filtered = filter_logits(logits, top_k, top_p)
    assert filtered[0].isfinite().nonzero()[:, 0].tolist() == kept


def test_temperature_sharpens_and_flattens():
    model = tiny("ar")
    logits = torch.tensor([0.0, 1.0]).expand(50_000, 2)
    for temperature in (0.5, 2.0):
        model.set_sampler(temperature=temperature)
        ids = model.sample_ids(logits, torch.rand(50_000, generator=rng()))
        expected = 1 / (1 + math.exp(-1 / temperature))
        assert ids.float().mean().item() == pytest.approx(expected, abs=0.01)


def test_linear_guidance_grows_with_the_fraction_of_tokens_sampled():
    model = tiny("ar")
    model.set_sampler(guidance_schedule="linear")
    both = torch.tensor([[1.0], [0.0]])  # conditional, unconditional: the guided value is the scale
    scales = model.guidance_scales(5.0)
    guided = [model.apply_cfg(both, scales[n]).item() for n in (0, TOKENS // 2, TOKENS)]
    assert guided == pytest.approx([1.0, 3.0, 5.0])


def test_the_sampling_key_holds_every_option_and_the_label_those_that_were_changed():
    """Or a changed default would be given another's samples; and 10 and 10.0 are one value."""
    model = tiny("masked")
    assert ("choice_temperature", 4.5) in model.sampling_key()
    assert model.sampler_label() == "confidence"
    model.set_sampler(top_k=10.0, temperature=1)
    assert ("top_k", 10) in model.sampling_key()
    assert model.sampler_label() == "confidence, top_k 10"


@pytest.mark.parametrize(
    "options, message",
    [
        ({"temperature": 0.0}, "temperature"),
        ({"top_p": 1.5}, "top_p"),
        ({"top_k": -1}, "top_k"),
        ({"guidance_schedule": "cubic"}, "constant or linear"),
        ({"shift": 3.0}, "sampler.shift"),
        ({"top_k": 2.5}, "a value like 0"),
        ({"temperature": "hot"}, "a value like 1.0"),
    ],
)
def test_an_option_out_of_range_is_a_clear_error(options, message):
    with pytest.raises(ValueError, match=message):
        tiny("ar").set_sampler(**options)


def test_what_a_token_model_cannot_do_is_a_clear_error():
    with pytest.raises(ValueError, match="arccos or cosine"):
        tiny("masked").set_sampler(schedule="linear")
    with pytest.raises(ValueError, match="choice_temperature"):
        tiny("masked").set_sampler(choice_temperature=-1.0)
    with pytest.raises(ValueError, match="one of raster"):
        tiny("ar").set_sampler("heun")
    with pytest.raises(ValueError, match="does not divide"):
        tiny("ar", block=5)
    with pytest.raises(ValueError, match="must be even"):
        AnyOrder(SHAPE, CLASSES, codebook=tiny("ar").codebook, width=32, depth=3, heads=2, mlp=64)
