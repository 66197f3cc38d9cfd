"""What is particular to a family: the paper's DiT, diffusers' schedulers, the AR model's cache."""

from functools import partial

import pytest
import torch
from conftest import (
    ALL,
    CLASSES,
    ENTRIES,
    FAMILIES,
    LOSSES,
    SHAPE,
    TOKENS,
    bf16_is_hopeless,
    random_batch,
    rng,
    steps_of,
    tiny,
)
from diffusers import DiTTransformer2DModel
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from benchmarks.stages.precision import bf16_weights
from models import autoregressive, layers
from models.diffusion import Diffusion
from models.dit import GELU, DiT
from models.generator import Batch


def _mapped_reference(ours: DiT, depth: int, heads: int, width: int, classes: int):
    """diffusers' DiT with our weights, and the paper's norm epsilon and timestep frequencies."""
    theirs = DiTTransformer2DModel(
        num_attention_heads=heads,
        attention_head_dim=width // heads,
        in_channels=4,
        out_channels=8,
        num_layers=depth,
        sample_size=16,
        patch_size=2,
        num_embeds_ada_norm=classes,
        norm_eps=1e-6,
    ).eval()
    theirs.pos_embed.proj.load_state_dict(ours.patches.state_dict())
    torch.testing.assert_close(theirs.pos_embed.pos_embed[0], ours.positions, atol=1e-5, rtol=0)
    for block, mine in zip(theirs.transformer_blocks, ours.blocks, strict=True):
        embedder = block.norm1.emb  # theirs has one in each block
        embedder.time_proj.downscale_freq_shift = 0
        embedder.timestep_embedder.linear_1.load_state_dict(ours.timesteps.mlp[0].state_dict())
        embedder.timestep_embedder.linear_2.load_state_dict(ours.timesteps.mlp[2].state_dict())
        embedder.class_embedder.embedding_table.load_state_dict(ours.labels.state_dict())
        _load_block(block, mine)
    theirs.proj_out_1.load_state_dict(ours.modulation[1].state_dict())
    theirs.proj_out_2.load_state_dict(ours.out.state_dict())
    for module in theirs.modules():
        if isinstance(module, torch.nn.LayerNorm):
            module.eps = 1e-6
    return theirs


def _load_block(theirs: torch.nn.Module, ours: torch.nn.Module) -> None:
    """The weights of our block in diffusers', which has q, k and v apart."""
    theirs.norm1.linear.load_state_dict(ours.modulation[1].state_dict())
    weights, biases = ours.attention.qkv.weight.chunk(3), ours.attention.qkv.bias.chunk(3)
    for i, name in enumerate(("to_q", "to_k", "to_v")):
        getattr(theirs.attn1, name).load_state_dict({"weight": weights[i], "bias": biases[i]})
    theirs.attn1.to_out[0].load_state_dict(ours.attention.out.state_dict())
    theirs.ff.net[0].proj.load_state_dict(ours.mlp[0].state_dict())
    theirs.ff.net[2].load_state_dict(ours.mlp[2].state_dict())


def test_dit_equals_diffusers_with_mapped_weights():
    width, depth, heads, classes = 64, 3, 4, 10
    torch.manual_seed(0)
    ours = DiT((4, 16, 16), classes, width=width, depth=depth, heads=heads, patch=2, out_channels=8)
    with torch.no_grad():
        for p in ours.parameters():
            p.normal_(std=0.1)
    theirs = _mapped_reference(ours, depth, heads, width, classes)
    x = torch.randn(3, 4, 16, 16)
    t, labels = torch.tensor([0, 17, 999]), torch.tensor([0, 4, classes])
    with torch.no_grad():
        expected = theirs(x, timestep=t, class_labels=labels).sample
        torch.testing.assert_close(ours(x, t, labels), expected, atol=1e-5, rtol=1e-5)
    assert expected.std() > 0.1, "an all-zero output would agree with anything"


def test_dit_at_its_start_is_zero_and_its_blocks_are_the_identity():
    """adaLN-Zero: every gate and the output start at zero (section 3.2 of the paper)."""
    net = DiT(SHAPE, CLASSES, width=32, depth=2, heads=2)
    x = torch.randn(2, 64, 32)
    assert torch.equal(net.blocks[0](x, torch.randn(2, 32)), x)
    out = net(torch.randn(2, *SHAPE), torch.tensor([1.0, 2.0]), torch.tensor([0, 1]))
    assert out.abs().max() == 0


def test_dit_s_gelu_is_the_released_one_and_in_bf16_on_a_cpu_within_half_a_thousandth_of_it():
    x = torch.linspace(-8, 8, 4001)
    released = torch.nn.functional.gelu(x.double(), approximate="tanh")
    torch.testing.assert_close(GELU()(x).double(), released, atol=1e-6, rtol=0)
    rounded = x.bfloat16()
    exact = torch.nn.functional.gelu(rounded.double(), approximate="tanh")
    assert ((GELU()(rounded).double() - exact).abs() <= 5e-4 + exact.abs() * 2**-8).all()
    assert torch.equal(GELU()(rounded), torch.nn.functional.gelu(rounded)), "the quick form"


NORMS = (torch.nn.LayerNorm, torch.nn.RMSNorm, LlamaRMSNorm, torch.nn.GroupNorm)


@pytest.mark.parametrize("name", ["unet", "dit", "ar", "any", "masked"])
def test_what_layers_hand_on_lies_in_order(name):
    """No layer is given a view with its axes swapped.

    It would spread through the residual stream, and each layer behind it would copy: 5% of a step
    of `dit`, 9% of `unet`'s.
    """
    model, looked_at, swapped = tiny(name), [], []

    def look(layer, inputs):
        looked_at.append(layer)
        for x in inputs:
            if sorted(x.stride(), reverse=True) != list(x.stride()):
                swapped.append(type(layer).__name__)

    for layer in model.modules():
        if isinstance(layer, (*NORMS, torch.nn.Conv2d)):
            layer.register_forward_pre_hook(look)
    with torch.autocast("cpu", torch.bfloat16):
        model(random_batch(), rng=rng())
    assert looked_at and not swapped


class _Oracle(torch.nn.Module):
    """The exact velocity of a data set of one point: straight lines from noise to it.

    `times` are those it was evaluated at.
    """

    def __init__(self, shape, num_classes, target):
        super().__init__()
        self.target, self.times = target, []

    def forward(self, x, t, labels):
        self.times.append(t[0].item())
        return (x - self.target) / (t / 1000)[:, None, None, None]


@pytest.mark.parametrize("steps", [1, 2, 4, 7])
def test_euler_spends_every_evaluation(steps):
    """The grid is 1, (n-1)/n, ..., 1/n: no evaluation is wasted near zero, the end is reached."""
    target = torch.randn(1, *SHAPE)
    model = Diffusion(SHAPE, CLASSES, denoiser=partial(_Oracle, target=target))
    out = model.sample(torch.tensor([0]), steps=steps, guidance=1.0, rng=rng())
    assert model.denoiser.times == pytest.approx([1000 * (steps - i) / steps for i in range(steps)])
    torch.testing.assert_close(out, target, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("objective", ["eps", "v", "x0"])
def test_every_objective_s_target_and_sampler_fit_together(objective):
    """A network that knows the answer (one data point) brings DDIM there from pure noise."""
    target = torch.randn(1, *SHAPE)

    class Oracle(torch.nn.Module):
        def __init__(self, shape, num_classes):
            super().__init__()

        def forward(self, x, t, labels):
            a = model.alphas[t.long()][:, None, None, None]
            noise = (x - a.sqrt() * target) / (1 - a).sqrt()
            if objective == "eps":
                return noise
            if objective == "x0":
                return target.expand_as(x)
            return a.sqrt() * noise - (1 - a).sqrt() * target

    model = Diffusion(SHAPE, CLASSES, denoiser=Oracle, objective=objective)
    batch = Batch(target.expand(8, -1, -1, -1), None, torch.zeros(8, dtype=torch.long))
    assert model.eval()(batch, rng=rng()).item() < 1e-8
    out = model.sample(torch.tensor([0]), steps=20, guidance=1.0, rng=rng())
    torch.testing.assert_close(out, target, atol=2e-2, rtol=1e-2)


def test_ar_does_not_see_the_future():
    model = tiny("ar").eval()
    tokens = torch.randint(ENTRIES, (1, TOKENS), generator=rng())
    changed = tokens.clone()
    changed[:, 20:] = (changed[:, 20:] + 1) % ENTRIES
    with torch.no_grad():
        before = model.logits(tokens, torch.tensor([0]))
        after = model.logits(changed, torch.tensor([0]))
    torch.testing.assert_close(before[:, :21], after[:, :21], atol=1e-5, rtol=1e-5)
    assert not torch.allclose(before[:, 21:], after[:, 21:], atol=1e-3)


def _two_samples(model) -> torch.Tensor:
    return model.sample(torch.tensor([0, 1]), steps=steps_of(model), guidance=2.0, rng=rng())


@pytest.mark.parametrize("name", ["ar", "ar-block4", "any", "masked"])
def test_token_models_sample_under_autocast(name):
    """The cache takes keys and values of one type: what a bf16 run on the CPU once broke on."""
    with torch.autocast("cpu", torch.bfloat16):
        assert _two_samples(tiny(name).eval()).isfinite().all()


def test_ar_decodes_with_the_residual_stream_it_was_trained_with(monkeypatch):
    """In bfloat16 the stream between blocks stays float32, in sampling as in training."""
    model, block = tiny("ar").eval(), layers.Block.forward
    trained, sampled = set(), set()

    def look(module, args, kwargs):
        trained.add(args[0].dtype)

    def spy(self, x, *args, **kwargs):
        sampled.add(x.dtype)
        return block(self, x, *args, **kwargs)

    for layer in model.transformer.layers:
        layer.register_forward_pre_hook(look, with_kwargs=True)
    monkeypatch.setattr(layers.Block, "forward", spy)
    with torch.autocast("cpu", torch.bfloat16):
        model.logits(torch.zeros(1, TOKENS, dtype=torch.long), torch.tensor([0]))
        model.sample(torch.tensor([0]), steps=TOKENS, guidance=1.0, rng=rng())
    assert trained == sampled == {torch.float32}


def test_ar_rotates_in_bf16_only_under_autocast(monkeypatch):
    model, dtypes, attend = tiny("ar").eval(), set(), autoregressive.attend

    def spy(q, *args, **kwargs):
        dtypes.add(q.dtype)
        return attend(q, *args, **kwargs)

    monkeypatch.setattr(autoregressive, "attend", spy)
    tokens, labels = torch.zeros(2, TOKENS, dtype=torch.long), torch.tensor([0, 1])
    model.logits(tokens, labels)
    assert dtypes == {torch.float32}
    dtypes.clear()
    with torch.autocast("cpu", torch.bfloat16):
        model.logits(tokens, labels)
    assert dtypes == {torch.bfloat16}


def test_ar_samples_in_bf16_from_the_logits_it_was_trained_with(monkeypatch):
    """To rounding: bf16 rounds by 0.4%, layer after layer."""
    model, cached = tiny("ar").eval(), []

    def spy(logits, scale):
        cached.append(logits)
        return logits

    monkeypatch.setattr(model, "apply_cfg", spy)
    labels = torch.tensor([0, 1])
    with torch.autocast("cpu", torch.bfloat16), torch.inference_mode():
        ids = model.sample_tokens(labels, steps=TOKENS, guidance=1.0, rng=rng())
        taught = model.logits(ids, labels).float()
    assert (torch.cat(cached, dim=1) - taught).norm() < 0.02 * taught.norm()


@pytest.mark.parametrize("name", FAMILIES)
def test_weights_cast_once_give_the_very_same_samples_and_are_left_as_they_were(name):
    """Under autocast, which rounds them alike."""
    model = tiny(name).eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with torch.autocast("cpu", torch.bfloat16):
        plain = _two_samples(model)
        with bf16_weights(model, "bf16"):
            dtypes = {p.dtype for p in model.parameters()}
            cast = _two_samples(model)
    if bf16_is_hopeless():  # such processors take another convolution for either
        torch.testing.assert_close(cast, plain, atol=0.1, rtol=0.1)
    else:
        assert torch.equal(cast, plain)
    assert torch.bfloat16 in dtypes
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    with bf16_weights(model, "fp32"):
        assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_a_weight_shared_with_an_embedding_is_not_cast():
    """And all weights are themselves again after an error."""

    class Own(torch.nn.Sequential):
        bf16_safe = True

    model = Own(torch.nn.Embedding(5, 8), torch.nn.Linear(8, 5), torch.nn.Linear(5, 5))
    model[1].weight = model[0].weight
    with pytest.raises(KeyError), bf16_weights(model, "bf16"):
        assert model[0].weight.dtype == torch.float32 and model[2].weight.dtype == torch.bfloat16
        raise KeyError
    assert model[2].weight.dtype == torch.float32, "also after an error"


def test_weights_of_classes_that_do_not_ask_for_it_are_not_cast():
    """Someone else's model may take a type from its weights, or leave autocast for a while."""
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), tiny("dit"))
    with bf16_weights(model, "bf16"):
        assert model[0].weight.dtype == torch.float32
        assert model[1].denoiser.out.weight.dtype == torch.bfloat16


@pytest.mark.parametrize("name", LOSSES)
def test_a_gradient_is_the_same_whenever_it_is_computed_again(name):
    """Bit for bit, on two threads: sums whose order depends on the threads would make every
    training of a seed another one.
    """
    model, batch, threads = tiny(name), random_batch(32), torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        first = None
        for _ in range(10 if ALL else 4):
            model.zero_grad()
            model(batch, rng=rng()).backward()
            gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
            first = first or gradients
            pairs = zip(first, gradients, strict=True)
            assert all(torch.equal(a, b) for a, b in pairs)
    finally:
        torch.set_num_threads(threads)
