"""The one training loop: repeatable, resumable at any point, and never fooled by a damaged or
foreign file.
"""

import json
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import CLASSES, ENTRIES, PRECISIONS, SHAPE, TOKENS, tiny

from benchmarks.core.errors import BadInput, Diverged
from benchmarks.frozen.latents import LatentSet
from benchmarks.stages import train as train_module
from benchmarks.stages.budget import make_budget
from benchmarks.stages.checkpoint import Checkpoints
from benchmarks.stages.train import _loss, train
from metrics import speed

CFG = SimpleNamespace(
    budget=60,
    unit="steps",
    batch=4,
    accumulate=1,
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
MACS = 1000  # of a made-up forward pass
KILLED_AT = 47  # a step between two checkpoints, which are at 40 and 60


def cfg_with(**changes) -> SimpleNamespace:
    """The configuration, but for these settings."""
    return SimpleNamespace(**vars(CFG) | changes)


def latent_set() -> LatentSet:
    rng = torch.Generator().manual_seed(0)
    latents = torch.randn(2, 30, *SHAPE, generator=rng)
    tokens = torch.randint(ENTRIES, (2, 30, TOKENS), generator=rng, dtype=torch.int32)
    labels = torch.arange(30) % CLASSES
    return LatentSet(latents, tokens, labels, torch.zeros(4), torch.ones(4), "k")


def run(folder: Path, name: str, data: LatentSet | None = None, *, cfg=CFG, **changes):
    """Train a tiny model; returns copies of its weights, and the summary."""
    options = dict(lr=1e-3, seed=0, forward_macs=MACS, key="key", device=torch.device("cpu"))
    model = tiny(name)
    summary = train(model, data or latent_set(), cfg, folder=folder, **options | changes)
    return state_of(model), summary


def state_of(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Copies of its tensors."""
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(a: dict, b: dict) -> bool:
    """Whether two states are equal, bit for bit."""
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


class _Killed(LatentSet):
    """Stops the run the hard way, in the middle of a stretch between two checkpoints."""

    def batch(self, seed, step, size, rows=None):
        if step == KILLED_AT:
            raise KeyboardInterrupt
        return super().batch(seed, step, size, rows)


def run_killed(folder: Path, name: str, *, cfg=CFG) -> None:
    """A training that leaves a checkpoint and nothing else."""
    with pytest.raises(KeyboardInterrupt):
        run(folder, name, _Killed(**vars(latent_set())), cfg=cfg)


@pytest.mark.parametrize("name", ["unet", "dit", "ar", "any", "masked"])
def test_a_resumed_run_is_the_run(tmp_path, name):
    whole, summary = run(tmp_path / "whole", name)
    broken = tmp_path / "broken"
    run_killed(broken, name)
    checkpoint = torch.load(broken / "checkpoint.pt", weights_only=True)
    assert checkpoint["progress"]["step"] == 40
    resumed, again = run(broken, name)
    assert same(whole, resumed)
    # but for the seconds
    assert [row[:4] for row in summary["log"]] == [row[:4] for row in again["log"]]
    assert not (broken / "checkpoint.pt").exists()


@pytest.mark.parametrize("kept", [None, 1, 3])
def test_a_training_that_went_on_says_how_many_processes_it_had(tmp_path, kept):
    """By the seconds that each had; a checkpoint of an earlier version says nothing of them."""
    run_killed(tmp_path, "dit")
    path = tmp_path / "checkpoint.pt"
    checkpoint = torch.load(path, weights_only=True)
    progress = checkpoint["progress"]
    assert progress["process_seconds"] == pytest.approx(progress["seconds"])
    if kept is None:
        del progress["process_seconds"]
    else:
        progress |= {"seconds": 100.0, "process_seconds": 100.0 * kept}
    torch.save(checkpoint, path)
    _, summary = run(tmp_path, "dit")
    seconds = summary["seconds"]
    mean = (100 * (kept or 1) + seconds - 100) / seconds
    assert summary["processes"] == (pytest.approx(mean, abs=0.001) if kept == 3 else 1)
    flops = summary["utilisation"] * speed.ceiling_flops(torch.device("cpu"))
    assert flops * summary["processes"] == pytest.approx(summary["flops"] / seconds, rel=0.01)


def test_weights_kept_on_the_way_are_the_average_then_and_survive_a_kill(tmp_path):
    cfg = cfg_with(snapshots=[0.25, 0.5])
    weights, summary = run(tmp_path / "whole", "dit", cfg=cfg)
    assert same(weights, run(tmp_path / "without", "dit")[0]), "keeping some changes nothing"
    snapshots = summary["snapshots"]
    assert [snapshots[fraction]["images"] for fraction in ("0.25", "0.5")] == [60, 120]
    assert snapshots["0.5"]["flops"] == 120 * 6 * MACS

    broken = tmp_path / "broken"
    run_killed(broken, "dit", cfg=cfg)
    _, resumed = run(broken, "dit", cfg=cfg)
    model, states = tiny("dit"), []
    for fraction in (0.25, 0.5):
        then = Checkpoints(broken, "key").load_at_fraction(model, resumed, fraction)
        states.append(state_of(model))
        assert then["images"] == 240 * fraction
        assert then["weights"] == snapshots[f"{fraction:g}"]["weights"]
    assert not same(*states) and not same(states[1], weights)


def test_a_fraction_asked_for_later_trains_again_to_the_same_weights(tmp_path, capsys):
    """Neither a finished training nor a checkpoint that did not keep it will do."""
    cfg = cfg_with(snapshots=[0.5])
    before, _ = run(tmp_path / "a", "dit")
    after, summary = run(tmp_path / "a", "dit", cfg=cfg)
    assert same(before, after) and "0.5" in summary["snapshots"]
    run_killed(tmp_path / "b", "dit")
    _, again = run(tmp_path / "b", "dit", cfg=cfg)
    assert "was to keep weights at []" in capsys.readouterr().out
    assert again["snapshots"]["0.5"]["weights"] == summary["snapshots"]["0.5"]["weights"]
    assert run(tmp_path / "a", "dit")[1] == summary, "fewer fractions need nothing new"


def test_weights_kept_on_the_way_that_are_gone_are_a_clear_error(tmp_path):
    _, summary = run(tmp_path, "dit", cfg=cfg_with(snapshots=[0.5]))
    (tmp_path / "weights-0.5.safetensors").unlink()
    with pytest.raises(BadInput, match="gone or damaged"):
        Checkpoints(tmp_path, "key").load_at_fraction(tiny("dit"), summary, 0.5)


@pytest.mark.parametrize("damage", ["gone", "cut"])
def test_weights_kept_on_the_way_that_are_lost_are_made_again(tmp_path, damage):
    cfg = cfg_with(snapshots=[0.5])
    _, summary = run(tmp_path, "dit", cfg=cfg)
    path = tmp_path / "weights-0.5.safetensors"
    whole = path.read_bytes()
    path.unlink() if damage == "gone" else path.write_bytes(whole[: len(whole) // 2])
    again = run(tmp_path, "dit", cfg=cfg)[1]
    assert again["snapshots"]["0.5"]["weights"] == summary["snapshots"]["0.5"]["weights"]
    assert path.read_bytes() == whole


def test_training_learns(tmp_path):
    _, summary = run(tmp_path, "dit", cfg=cfg_with(budget=300), lr=1e-2)
    losses = [row[2] for row in summary["log"]]
    assert losses[-1] < 0.9 * losses[0]
    assert summary["images"] == 1200 and summary["flops"] == 1200 * 6 * MACS


def test_the_seed_matters(tmp_path):
    assert not same(run(tmp_path / "a", "dit")[0], run(tmp_path / "b", "dit", seed=1)[0])


def test_a_finished_training_is_loaded_not_repeated(tmp_path):
    first, summary = run(tmp_path, "dit")
    written = (tmp_path / "weights.safetensors").stat().st_mtime_ns
    second, again = run(tmp_path, "dit")
    assert same(first, second) and summary == again
    assert (tmp_path / "weights.safetensors").stat().st_mtime_ns == written


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> dict[str, torch.Tensor]:
    """The weights of the unbroken run of `dit`."""
    return run(tmp_path_factory.mktemp("trained"), "dit")[0]


CHECKPOINT_DAMAGES = {
    "empty": lambda content: b"",
    "half": lambda content: content[: len(content) // 2],
    "not a checkpoint": lambda content: b"hello",
}
FOREIGN_STATES = {
    "another's": {"key": "someone else's"},
    "other tensors": {"model": {"w": torch.ones(2)}},
}


@pytest.mark.parametrize("damage", [*CHECKPOINT_DAMAGES, *FOREIGN_STATES])
def test_a_checkpoint_that_cannot_be_used_is_not(tmp_path, damage, trained, capsys):
    run_killed(tmp_path, "dit")
    path = tmp_path / "checkpoint.pt"
    if damage in CHECKPOINT_DAMAGES:
        path.write_bytes(CHECKPOINT_DAMAGES[damage](path.read_bytes()))
    else:
        state = torch.load(path, weights_only=True)
        torch.save(state | FOREIGN_STATES[damage], path)
    weights, _ = run(tmp_path, "dit")
    printed = capsys.readouterr().out
    assert "checkpoint.pt cannot be used" in printed and "resuming" not in printed
    assert same(weights, trained)


@pytest.mark.parametrize("damage", ["cut", "another's", "no summary"])
def test_finished_weights_that_cannot_be_used_are_trained_again(tmp_path, damage):
    expected, _ = run(tmp_path, "dit")
    weights, summary = tmp_path / "weights.safetensors", tmp_path / "train.json"
    if damage == "cut":
        weights.write_bytes(weights.read_bytes()[:-50])
    elif damage == "another's":
        summary.write_text(json.dumps(json.loads(summary.read_text()) | {"key": "x"}))
    else:
        summary.unlink()
    assert same(run(tmp_path, "dit")[0], expected)


@pytest.mark.parametrize("name", ["dit", "unet", "ar", "any", "masked"])
def test_weights_that_know_less_than_nothing_are_a_divergence(tmp_path, name, monkeypatch):
    """Finite though they are: tokens of exploded logits decode to images like any others."""
    usual = train_module.learning_rate

    def rate(done, cfg, peak):
        return 30.0 if done < 0.5 else usual(done, cfg, peak)

    monkeypatch.setattr(train_module, "learning_rate", rate)
    cfg = cfg_with(grad_clip=1e9, ema_decay=0.5)
    with pytest.raises(Diverged, match=r"untrained|loss was|not finite"):
        run(tmp_path, name, cfg=cfg)
    assert not (tmp_path / "weights.safetensors").exists()


def test_a_checkpoint_whose_kept_weights_are_damaged_starts_over(tmp_path, capsys):
    cfg = cfg_with(snapshots=[0.25])
    whole, _ = run(tmp_path / "whole", "dit", cfg=cfg)
    run_killed(tmp_path / "broken", "dit", cfg=cfg)
    kept = tmp_path / "broken" / "weights-0.25.safetensors"
    kept.write_bytes(kept.read_bytes()[:-50])
    assert same(run(tmp_path / "broken", "dit", cfg=cfg)[0], whole)
    assert "are damaged); starting over" in capsys.readouterr().out


def test_weights_kept_on_the_way_are_judged_as_the_last_are(tmp_path, monkeypatch):
    usual = train_module.Checkpoints.keep

    def keep(self, generator, ema, *others):
        healthy = [parameter.clone() for parameter in ema.shadow_params]
        for parameter in ema.shadow_params:
            parameter.mul_(30)
        usual(self, generator, ema, *others)
        ema.shadow_params = healthy

    monkeypatch.setattr(train_module.Checkpoints, "keep", keep)
    run(tmp_path / "none", "ar")
    with pytest.raises(Diverged, match="the weights at 50% of the budget have a loss"):
        run(tmp_path / "one", "ar", cfg=cfg_with(snapshots=[0.5]))
    assert not (tmp_path / "one" / "weights.safetensors").exists()


def test_a_loss_that_is_not_finite_is_a_divergence(tmp_path):
    with pytest.raises(Diverged, match=r"loss was|not finite"):
        run(tmp_path, "dit", lr=1e30)
    assert not (tmp_path / "weights.safetensors").exists()


def test_a_compiled_training_takes_no_budget_in_minutes():
    with pytest.raises(BadInput, match="compiling would eat"):
        make_budget(cfg_with(unit="minutes", compile=True), MACS)


def compiled_without_code(traced: list):
    """torch.compile that traces, without code being generated, which needs a compiler."""

    def keep(graph, inputs):
        traced.append(graph)
        return graph.forward

    return partial(torch.compile, backend=keep)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", ["unet", "dit", "ar", "any", "masked"])
def test_a_compiled_training_is_the_same_training(tmp_path, name, precision, monkeypatch):
    """The loss log is that of the run as it is; nothing else is wrapped."""
    traced = []
    monkeypatch.setattr(torch, "compile", compiled_without_code(traced))
    short = dict(budget=4, precision=precision)
    plain, summary = run(tmp_path / "plain", name, cfg=cfg_with(**short))
    compiled, again = run(tmp_path / "compiled", name, cfg=cfg_with(**short, compile=True))
    torch.compiler.reset()
    assert traced, "something was compiled"
    losses = [[row[2] for row in training["log"]] for training in (summary, again)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)
    assert compiled.keys() == plain.keys()


def test_the_check_of_what_was_learnt_takes_a_batch_in_as_many_parts_as_a_step():
    model, batch = tiny("dit"), latent_set().batch(0, 0, 20)
    cfgs = [cfg_with(accumulate=parts) for parts in (1, 4)]
    whole, parts = (_loss(model, [batch], cfg, torch.device("cpu")) for cfg in cfgs)
    assert parts == pytest.approx(whole, rel=1e-5)
