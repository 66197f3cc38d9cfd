"""The one training loop: repeatable, resumable at any point, and never fooled by a damaged or
foreign file.
"""

import json
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from conftest import CLASSES, ENTRIES, SHAPE, TOKENS, tiny
from diffusers.training_utils import EMAModel

from benchmarks.core.errors import BadInput, Diverged
from benchmarks.frozen.latents import LatentSet
from benchmarks.stages.budget import make_budget
from benchmarks.stages.checkpoint import Checkpoints
from benchmarks.stages.train import learning_rate, train
from benchmarks.stages.train_state import InPlaceEMA

CFG = SimpleNamespace(
    budget=60,
    unit="steps",
    batch=4,
    precision="fp32",
    betas=[0.9, 0.99],
    weight_decay=0.01,
    warmup=0.1,
    grad_clip=1.0,
    ema_decay=0.999,
    checkpoint_seconds=0,
    snapshots=[],
    compile=False,
)


def latent_set() -> LatentSet:
    rng = torch.Generator().manual_seed(0)
    latents, tokens = (
        torch.randn(2, 30, *SHAPE, generator=rng),
        torch.randint(ENTRIES, (2, 30, TOKENS), generator=rng, dtype=torch.int32),
    )
    return LatentSet(
        latents, tokens, torch.arange(30) % CLASSES, torch.zeros(4), torch.ones(4), "k"
    )


def run(folder, name: str, data: LatentSet | None = None, **changes):
    model = tiny(name)
    options = (
        dict(
            lr=1e-3, seed=0, forward_macs=1000, folder=folder, key="key", device=torch.device("cpu")
        )
        | changes
    )
    summary = train(model, data or latent_set(), options.pop("cfg", CFG), **options)
    return {k: v.clone() for k, v in model.state_dict().items()}, summary


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


class _Killed(LatentSet):
    """Stops the run the hard way, in the middle of a stretch between two checkpoints."""

    def batch(self, seed, step, size):
        if step == 47:
            raise KeyboardInterrupt
        return super().batch(seed, step, size)


@pytest.mark.parametrize("name", ["unet", "dit", "ar", "any", "masked"])
def test_a_resumed_run_is_the_run(tmp_path, name):
    whole, summary = run(tmp_path / "whole", name)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "broken", name, _Killed(**vars(latent_set())))
    assert (
        torch.load(tmp_path / "broken" / "checkpoint.pt", weights_only=True)["progress"]["step"]
        == 40
    )
    resumed, again = run(tmp_path / "broken", name)
    assert same(whole, resumed)
    assert [row[:4] for row in summary["log"]] == [row[:4] for row in again["log"]]
    assert not (tmp_path / "broken" / "checkpoint.pt").exists()


def test_weights_kept_on_the_way_are_the_average_then_and_survive_a_kill(tmp_path):
    cfg = SimpleNamespace(**vars(CFG) | {"snapshots": [0.25, 0.5]})
    weights, summary = run(tmp_path / "whole", "dit", cfg=cfg)
    assert same(weights, run(tmp_path / "without", "dit")[0]), "keeping some changes nothing"
    assert [summary["snapshots"][s]["images"] for s in ("0.25", "0.5")] == [60, 120]
    assert summary["snapshots"]["0.5"]["flops"] == 120 * 6000
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "broken", "dit", _Killed(**vars(latent_set())), cfg=cfg)
    _, resumed = run(tmp_path / "broken", "dit", cfg=cfg)
    model, states = tiny("dit"), []
    for share in (0.25, 0.5):
        there = Checkpoints(tmp_path / "broken", "key").load_at_fraction(model, resumed, share)
        states.append({k: v.clone() for k, v in model.state_dict().items()})
        assert (
            there["images"] == 240 * share
            and there["weights"] == summary["snapshots"][f"{share:g}"]["weights"]
        )
    assert not same(*states) and not same(states[1], weights)


def test_a_share_asked_for_later_trains_again_to_the_same_weights(tmp_path, capsys):
    """Neither a finished training nor a checkpoint that did not keep it will do."""
    cfg = SimpleNamespace(**vars(CFG) | {"snapshots": [0.5]})
    before, _ = run(tmp_path / "a", "dit")
    after, summary = run(tmp_path / "a", "dit", cfg=cfg)
    assert same(before, after) and "0.5" in summary["snapshots"]
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "b", "dit", _Killed(**vars(latent_set())))
    _, again = run(tmp_path / "b", "dit", cfg=cfg)
    assert "was to keep weights at []" in capsys.readouterr().out
    assert again["snapshots"]["0.5"]["weights"] == summary["snapshots"]["0.5"]["weights"]
    assert run(tmp_path / "a", "dit")[1] == summary, "fewer shares need nothing new"


def test_weights_kept_on_the_way_that_are_gone_are_a_clear_error(tmp_path):
    _, summary = run(tmp_path, "dit", cfg=SimpleNamespace(**vars(CFG) | {"snapshots": [0.5]}))
    (tmp_path / "weights-0.5.safetensors").unlink()
    with pytest.raises(BadInput, match="gone or damaged"):
        Checkpoints(tmp_path, "key").load_at_fraction(tiny("dit"), summary, 0.5)


def test_training_learns_and_the_seed_matters(tmp_path):
    weights, summary = run(
        tmp_path / "a", "dit", cfg=SimpleNamespace(**vars(CFG) | {"budget": 300}), lr=1e-2
    )
    assert summary["log"][-1][2] < 0.9 * summary["log"][0][2]
    assert summary["images"] == 1200 and summary["flops"] == 1200 * 6000
    assert not same(weights, run(tmp_path / "b", "dit", seed=1)[0])


def test_a_finished_training_is_loaded_not_repeated(tmp_path):
    first, summary = run(tmp_path, "dit")
    stamp = (tmp_path / "weights.safetensors").stat().st_mtime_ns
    second, again = run(tmp_path, "dit")
    assert (
        same(first, second)
        and summary == again
        and (tmp_path / "weights.safetensors").stat().st_mtime_ns == stamp
    )


@pytest.mark.parametrize(
    "damage", ["empty", "half", "another's", "other tensors", "not a checkpoint"]
)
def test_a_checkpoint_that_cannot_be_used_is_not(tmp_path, damage, capsys):
    expected, _ = run(tmp_path / "whole", "dit")
    folder = tmp_path / "damaged"
    with pytest.raises(KeyboardInterrupt):
        run(folder, "dit", _Killed(**vars(latent_set())))
    path = folder / "checkpoint.pt"
    content = path.read_bytes()
    if damage in ("another's", "other tensors"):
        state = torch.load(path, weights_only=True)
        changed = (
            {"key": "someone else's"} if damage == "another's" else {"model": {"w": torch.ones(2)}}
        )
        torch.save(state | changed, path)
    else:
        path.write_bytes(
            {"empty": b"", "half": content[: len(content) // 2], "not a checkpoint": b"hello"}[
                damage
            ]
        )
    got, _ = run(folder, "dit")
    out = capsys.readouterr().out
    assert "checkpoint.pt cannot be used" in out and "resuming" not in out
    assert same(got, expected)


@pytest.mark.parametrize("damage", ["cut", "another's", "no summary"])
def test_finished_weights_that_cannot_be_used_are_trained_again(tmp_path, damage):
    expected, _ = run(tmp_path, "dit")
    if damage == "cut":
        (tmp_path / "weights.safetensors").write_bytes(
            (tmp_path / "weights.safetensors").read_bytes()[:-50]
        )
    elif damage == "another's":
        summary = json.loads((tmp_path / "train.json").read_text())
        (tmp_path / "train.json").write_text(json.dumps(summary | {"key": "x"}))
    else:
        (tmp_path / "train.json").unlink()
    assert same(run(tmp_path, "dit")[0], expected)


def test_a_loss_that_is_not_finite_is_a_divergence(tmp_path):
    with pytest.raises(Diverged, match=r"loss was|weights were"):
        run(tmp_path, "dit", lr=1e30)
    assert not (tmp_path / "weights.safetensors").exists()


def test_the_learning_rate_warms_up_and_decays_to_zero():
    cfg = SimpleNamespace(warmup=0.1)
    rates = [learning_rate(i / 1000, cfg, 1.0) for i in range(1001)]
    assert (
        rates[0] < 0.02
        and max(rates) == pytest.approx(1, abs=1e-3)
        and rates[-1] == pytest.approx(0, abs=1e-9)
    )
    assert rates.index(max(rates)) == 100


def test_the_average_in_place_is_diffusers_own():
    """Ten steps of both from the same weights, one frozen, one frozen and of whole numbers; the
    decay ramps as (1 + s) / (10 + s).
    """
    model = tiny("dit")
    model.denoiser.out.bias.requires_grad_(False)
    model.counted = torch.nn.Parameter(torch.zeros(3, dtype=torch.long), requires_grad=False)
    mine, theirs = (
        kind(model.parameters(), decay=0.999, foreach=True) for kind in (InPlaceEMA, EMAModel)
    )
    for seed in range(10):
        torch.manual_seed(seed)
        with torch.no_grad():
            for p in model.parameters():
                p += torch.randn_like(p) if p.is_floating_point() else 1
        mine.step(model.parameters()), theirs.step(model.parameters())
    for a, b in zip(mine.shadow_params, theirs.shadow_params, strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)
    assert (
        mine.state_dict().keys() == theirs.state_dict().keys()
        and mine.cur_decay_value == theirs.cur_decay_value
    )
    lagging = [
        not torch.equal(mean, p)
        for mean, p in zip(mine.shadow_params, model.parameters(), strict=True)
    ]
    assert sum(lagging) == len(lagging) - 2, "all but the frozen ones"


def test_a_compiled_training_takes_no_budget_in_minutes():
    with pytest.raises(BadInput, match="compiling would eat"):
        make_budget(SimpleNamespace(**vars(CFG) | {"unit": "minutes", "compile": True}), 1000)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", ["unet", "dit", "ar", "any", "masked"])
def test_a_compiled_training_is_the_same_training(tmp_path, name, precision, monkeypatch):
    """Traced, without code being generated, which needs a compiler: the loss log is that of the run
    as it is; nothing else is wrapped.
    """
    traced = []
    compiled = partial(
        torch.compile, backend=lambda graph, inputs: traced.append(graph) or graph.forward
    )
    monkeypatch.setattr(torch, "compile", compiled)
    cfg = SimpleNamespace(**vars(CFG) | {"budget": 4, "precision": precision})
    weights, plain = run(tmp_path / "plain", name, cfg=cfg)
    again, same = run(
        tmp_path / "compiled", name, cfg=SimpleNamespace(**vars(cfg) | {"compile": True})
    )
    assert traced, "something was compiled"
    assert [row[2] for row in same["log"]] == pytest.approx(
        [row[2] for row in plain["log"]], rel=1e-3
    )
    assert again.keys() == weights.keys()
    torch.compiler.reset()
