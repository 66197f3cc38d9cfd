"""Attention written out for bf16 on a CPU is torch's own to rounding, is used there only, and every
family uses it there.
"""

import pytest
import torch
import torch.nn.functional as F
from conftest import TOKENS, random_batch, rng, steps_of, tiny

from metrics.flops import count_macs
from models import layers
from models.layers import FEW, PLAIN, attend, plain_is_faster

BLOCKS = torch.arange(48) // 4  # of four, as the block model has
SEEN = BLOCKS[:, None] >= BLOCKS


def random_inputs(queries: int, keys: int, scale: float = 1.0) -> list[torch.Tensor]:
    """q, k and v, and the output's gradient; q and k are scaled."""
    counts = (queries, keys, keys, queries)
    q, k, v, gradient = (
        torch.randn(3, 4, n, 16, generator=rng(seed)) for seed, n in enumerate(counts)
    )
    return [scale * q, scale * k, v, gradient]


def exact(q, k, v, gradient, *, causal=False, seen=None) -> list[torch.Tensor]:
    """torch's output and its three gradients in float64, from inputs rounded to bf16."""
    q, k, v = (x.bfloat16().double().requires_grad_() for x in (q, k, v))
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=seen, is_causal=causal)
    return [out, *torch.autograd.grad(out, (q, k, v), gradient.double())]


def ours(q, k, v, gradient, **mask) -> list[torch.Tensor]:
    """The same by `attend` under autocast."""
    q, k, v = (x.bfloat16().requires_grad_() for x in (q, k, v))
    with torch.autocast("cpu", torch.bfloat16):
        out = attend(q, k, v, **mask)
    gradients = torch.autograd.grad(out, (q, k, v), gradient.to(out))
    return [x.double() for x in (out, *gradients)]


@pytest.mark.parametrize(
    "queries, keys, mask",
    [
        (48, 48, {}),
        (48, 48, {"causal": True}),
        (48, 48, {"seen": SEEN}),
        (20, 48, {}),
        (1, 48, {}),
        (FEW, 48, {}),
    ],
    ids=["all", "causal", "blocks", "fewer queries", "one query", "few queries"],
)
def test_it_is_torch_s_own_attention_to_rounding(queries, keys, mask):
    """Within 1% of float64 in norm: a bf16 mantissa is 0.4%."""
    inputs = random_inputs(queries, keys)
    for rounded, wanted in zip(ours(*inputs, **mask), exact(*inputs, **mask), strict=True):
        assert (rounded - wanted).norm() < 0.01 * wanted.norm()


def test_what_is_not_seen_has_no_weight_and_no_gradient():
    q, k, v, gradient = random_inputs(48, 48, scale=4.0)
    of_first_queries = gradient * (torch.arange(48) < 8)[:, None]
    _, _, grad_k, grad_v = ours(q, k, v, of_first_queries, seen=SEEN)
    assert (grad_k[:, :, 8:] == 0).all() and (grad_v[:, :, 8:] == 0).all()
    assert (grad_v[:, :, :8] != 0).any()


def test_it_is_written_out_on_a_cpu_in_bf16_only_and_not_for_long_sequences():
    x = torch.zeros(1)
    assert not plain_is_faster(x, 64**2), "no autocast: float32"
    with torch.autocast("cpu", torch.bfloat16):
        assert plain_is_faster(x, PLAIN)
        assert not plain_is_faster(x, PLAIN + 1)
        assert not plain_is_faster(x.to("meta"), 64**2)


@pytest.mark.parametrize("name", ["unet", "dit", "ar", "ar-block4", "any", "masked"])
def test_every_family_trains_and_samples_with_it(name, monkeypatch):
    """torch's fused kernel is never reached in training, and in sampling only in float32."""
    model, fused, dtypes = tiny(name), F.scaled_dot_product_attention, []

    def spy(q, *args, **kwargs):
        dtypes.append(q.dtype)
        return fused(q, *args, **kwargs)

    monkeypatch.setattr(F, "scaled_dot_product_attention", spy)
    with torch.autocast("cpu", torch.bfloat16):
        model(random_batch(), rng=rng()).backward()
        assert dtypes == []
        model.eval().sample(torch.tensor([0, 1]), steps=steps_of(model), guidance=2.0, rng=rng())
    assert set(dtypes) <= {torch.float32} and (dtypes or name in ("unet", "dit", "masked"))
    dtypes.clear()
    model.eval()(random_batch(), rng=rng())
    assert dtypes, "in float32 it is torch's own"


def test_flops_are_counted_alike_either_way(monkeypatch):
    """Two products of T x T x width each, written out or fused."""
    q = torch.empty(1, 4, TOKENS, 8, device="meta")
    fused = count_macs(lambda: attend(q, q, q))
    monkeypatch.setattr(layers, "plain_is_faster", lambda x, pairs: True)
    assert count_macs(lambda: attend(q, q, q)) == fused == 2 * TOKENS**2 * 32
