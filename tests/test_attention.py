"""Attention written out for bf16 on a CPU is torch's own to rounding, is used there only, and every
family uses it there.
"""

import pytest
import torch
import torch.nn.functional as F
from conftest import TOKENS, random_batch, rng, steps_of, tiny

from models import layers
from models.layers import FEW, PLAIN, attend, plain_is_faster

SEEN = (
    torch.arange(48)[:, None] // 4 >= torch.arange(48) // 4
)  # blocks of four, as the block model has


def drawn(queries: int, keys: int, scale: float = 1.0) -> list[torch.Tensor]:
    """q, k and v, of which q and k are scaled, and what comes back for the output in the backward
    pass.
    """
    parts = [
        torch.randn(3, 4, n, 16, generator=rng(seed))
        for seed, n in enumerate((queries, keys, keys, queries))
    ]
    return [scale * parts[0], scale * parts[1], *parts[2:]]


def worked(q, k, v, back, kind=torch.float64, **how):
    """The output and the three gradients, all in float64 from bf16 inputs where `kind` is that;
    else as `attend` does under autocast.
    """
    q, k, v = (x.bfloat16().to(kind).requires_grad_() for x in (q, k, v))
    if kind == torch.float64:
        out = F.scaled_dot_product_attention(
            q, k, v, attn_mask=how.get("seen"), is_causal=how.get("causal", False)
        )
    else:
        with torch.autocast("cpu", torch.bfloat16):
            out = attend(q, k, v, **how)
    return [x.double() for x in (out, *torch.autograd.grad(out, (q, k, v), back.to(out)))]


@pytest.mark.parametrize(
    "queries, keys, how",
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
def test_it_is_torch_s_own_attention_to_rounding(queries, keys, how):
    """Within 1% of float64 in norm: a bf16 mantissa is 0.4%."""
    given = drawn(queries, keys)
    for mine, exact in zip(
        worked(*given, kind=torch.bfloat16, **how), worked(*given, **how), strict=True
    ):
        assert (mine - exact).norm() < 0.01 * exact.norm()


def test_what_is_not_seen_has_no_weight_and_no_gradient():
    q, k, v, back = drawn(48, 48, scale=4.0)
    _, _, to_k, to_v = worked(
        q, k, v, back * (torch.arange(48) < 8)[:, None], kind=torch.bfloat16, seen=SEEN
    )
    assert (
        (to_k[:, :, 8:] == 0).all() and (to_v[:, :, 8:] == 0).all() and (to_v[:, :, :8] != 0).any()
    )


def test_it_is_written_out_on_a_cpu_in_bf16_only_and_not_for_long_sequences():
    x = torch.zeros(1)
    assert not plain_is_faster(x, 64**2), "no autocast: float32"
    with torch.autocast("cpu", torch.bfloat16):
        assert plain_is_faster(x, PLAIN) and not plain_is_faster(x, PLAIN + 1) and not plain_is_faster(x.to("meta"), 64**2)


@pytest.mark.parametrize("name", ["unet", "dit", "ar", "ar-block4", "any", "masked"])
def test_every_family_trains_and_draws_with_it(name, monkeypatch):
    """torch's fused kernel is never reached in training, and in drawing only in float32."""
    model, fused, kinds = tiny(name), F.scaled_dot_product_attention, []
    monkeypatch.setattr(
        F,
        "scaled_dot_product_attention",
        lambda q, *a, **k: kinds.append(q.dtype) or fused(q, *a, **k),
    )
    with torch.autocast("cpu", torch.bfloat16):
        model(random_batch(), rng=rng()).backward()
        assert kinds == []
        model.eval().sample(torch.tensor([0, 1]), steps=steps_of(model), guidance=2.0, rng=rng())
    assert set(kinds) <= {torch.float32} and (kinds or name in ("unet", "dit", "masked"))
    kinds.clear()
    model.eval()(random_batch(), rng=rng())
    assert kinds, "in float32 it is torch's own"


def test_flops_are_counted_alike_either_way(monkeypatch):
    """Two products of T x T x width each, written out or fused."""
    from metrics.flops import count_macs

    q = torch.empty(1, 4, TOKENS, 8, device="meta")
    fused = count_macs(lambda: attend(q, q, q))
    monkeypatch.setattr(layers, "plain_is_faster", lambda x, pairs: True)
    assert count_macs(lambda: attend(q, q, q)) == fused == 2 * TOKENS**2 * 32
