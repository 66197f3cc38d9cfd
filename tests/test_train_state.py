"""What a step of training goes by: the learning rate, and the average of the weights."""

from types import SimpleNamespace

import pytest
import torch
from conftest import tiny
from diffusers.training_utils import EMAModel

from benchmarks.stages.train import learning_rate
from benchmarks.stages.train_state import InPlaceEMA


def test_the_learning_rate_warms_up_and_decays_to_zero():
    cfg = SimpleNamespace(warmup=0.1)
    rates = [learning_rate(i / 1000, cfg, 1.0) for i in range(1001)]
    assert rates[0] < 0.02
    assert max(rates) == pytest.approx(1, abs=1e-3)
    assert rates[-1] == pytest.approx(0, abs=1e-9)
    assert rates.index(max(rates)) == 100


def test_the_average_in_place_is_diffusers_own():
    """Ten steps of both from the same weights, one frozen, one frozen and of whole numbers; the
    decay ramps as (1 + s) / (10 + s).
    """
    model = tiny("dit")
    model.denoiser.out.bias.requires_grad_(False)
    model.counted = torch.nn.Parameter(torch.zeros(3, dtype=torch.long), requires_grad=False)
    parameters = list(model.parameters())
    mine = InPlaceEMA(parameters, decay=0.999, foreach=True)
    theirs = EMAModel(parameters, decay=0.999, foreach=True)
    for seed in range(10):
        torch.manual_seed(seed)
        with torch.no_grad():
            for parameter in parameters:
                floating = parameter.is_floating_point()
                parameter += torch.randn_like(parameter) if floating else 1
        mine.step(parameters)
        theirs.step(parameters)
    for a, b in zip(mine.shadow_params, theirs.shadow_params, strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)
    assert mine.state_dict().keys() == theirs.state_dict().keys()
    assert mine.cur_decay_value == theirs.cur_decay_value
    pairs = zip(mine.shadow_params, parameters, strict=True)
    lagging = [not torch.equal(mean, parameter) for mean, parameter in pairs]
    assert sum(lagging) == len(lagging) - 2, "all but the frozen ones"
