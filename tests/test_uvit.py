"""The transformer with a U-Net's skips."""

import itertools

import pytest
import torch
from conftest import CLASSES, SHAPE

from models.dit import sine_positions
from models.uvit import UViT


def uvit(**changes) -> UViT:
    torch.manual_seed(0)
    return UViT(SHAPE, CLASSES, **dict(width=32, depth=5, heads=2, mlp=64) | changes)


def test_the_last_block_s_skip_comes_from_the_first():
    """Without what the first block made, the last block's matrix sees zeros in its second half."""
    model, seen = uvit(), {}
    for name, block in (("first", model.first[0]), ("second", model.first[1])):
        block.register_forward_hook(lambda _, __, out, name=name: seen.update({name: out}))
    for name, block in (("fourth", model.second[0]), ("fifth", model.second[1])):
        block.register_forward_hook(lambda _, inputs, __, name=name: seen.update({name: inputs}))
    model(torch.randn(2, *SHAPE), torch.rand(2) * 1000, torch.arange(2))
    assert torch.equal(seen["fifth"][1], seen["first"])
    assert torch.equal(seen["fourth"][1], seen["second"])


def test_positions_begin_as_those_of_dit_and_are_learned():
    model = uvit()
    expected = sine_positions(32, *SHAPE[1:])
    torch.testing.assert_close(model.positions[2:].detach(), expected.view(-1, 32))
    assert model.positions.requires_grad and model.positions[:2].abs().max() < 0.1


def test_matrices_begin_by_their_shape():
    """Xavier's: at this width 0.02, as in the released code, would be a third of it."""
    layer = uvit(width=128, mlp=448).first[0].mlp[0]
    assert layer.weight.std().item() == pytest.approx((2 / (128 + 448)) ** 0.5, rel=0.05)


@pytest.mark.parametrize("depth", [1, 2, 4, 5])
def test_without_skips_no_block_sees_what_an_earlier_one_made(depth):
    """Of any depth: there is nothing that needs a partner."""
    model = uvit(skips=False, depth=depth)
    assert not any("skip" in name for name, _ in model.named_parameters())
    seen = []
    for block in (*model.first, *model.second):
        block.register_forward_hook(lambda _, inputs, out: seen.append((inputs[0], out)))
    model(torch.randn(2, *SHAPE), torch.rand(2) * 1000, torch.arange(2))
    assert len(seen) == depth
    for (_, before), (after, _) in itertools.pairwise(seen):
        assert torch.equal(before, after), "each has what the one before it made"


class Given(torch.nn.Module):
    """In the place of a layer: the same output, whatever comes in."""

    def __init__(self, output: torch.Tensor):
        super().__init__()
        self.output = output

    def forward(self, _: torch.Tensor) -> torch.Tensor:
        return self.output


def test_patches_go_back_to_their_places():
    """With an output that is a patch itself, every number comes back where it was."""
    model = uvit(patch=2)
    channels, side = SHAPE[0], SHAPE[1] // 2
    x = torch.randn(2, *SHAPE)
    patches = torch.nn.functional.pixel_unshuffle(x, 2)  # (B, C*p*p, H/p, W/p)
    tokens = patches.flatten(2).transpose(1, 2)
    model.norm = torch.nn.Identity()
    model.out = Given(tokens)
    with torch.no_grad():
        model.smooth.weight.copy_(torch.zeros_like(model.smooth.weight))
        for c in range(channels):
            model.smooth.weight[c, c, 1, 1] = 1
    out = model(x, torch.zeros(2), torch.arange(2))
    assert tokens.shape == (2, side * side, channels * 4) and torch.allclose(out, x)


@pytest.mark.parametrize(
    "changes, named",
    [
        ({"depth": 4}, "model.denoiser.depth=4"),
        ({"depth": 1}, "model.denoiser.depth=1"),
        ({"patch": 3}, "model.denoiser.patch=3"),
    ],
)
def test_what_cannot_be_is_refused_by_name(changes, named):
    with pytest.raises(ValueError, match=named):
        uvit(**changes)
