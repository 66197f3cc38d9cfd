"""When a training goes on compiled, how many images are sampled at once, and what a run does whose time is up."""

import json
import time
from types import SimpleNamespace

import pytest
import torch
from conftest import composed
from test_train import CFG, latent_set, run, same

from benchmarks import compiling, sample_batch
from benchmarks import run as bench
from benchmarks.cli import BadInput, check
from benchmarks.compiling import GUESS, TIMED, WARMUP, Compiler, Payback
from benchmarks.store import OutOfTime

CPU = torch.device("cpu")


def test_compiling_pays_where_it_saves_more_than_its_start_costs():
    payback = Payback(startup_seconds=60, gain=0.25)
    assert payback.pays(steps=2500, step_seconds=0.1)
    assert not payback.pays(steps=2300, step_seconds=0.1)
    assert not Payback(0.0, -0.1).pays(10**6, 1.0), "what makes steps slower never pays"


class Kit(SimpleNamespace):
    """A train state whose model takes its time."""

    def _replace(self, **changes):
        return Kit(**vars(self) | changes)


def kit_of(seconds: float) -> Kit:
    accelerator, optimizer = SimpleNamespace(backward=lambda loss: None), SimpleNamespace(zero_grad=lambda: None)
    return Kit(model=lambda batch, rng: time.sleep(seconds), accelerator=accelerator, optimizer=optimizer)


def trained_with(compiler: Compiler, kit: Kit, steps: int) -> tuple[Kit, list[int]]:
    """The train state in the end, and after which steps another one took over."""
    changes = []
    for step in range(1, steps + 1):
        kit.model(None, None)
        after = compiler.after(kit, step, None)
        if after is not kit:
            changes.append(step)
        kit = after
    return kit, changes


@pytest.fixture
def quick_compiler(monkeypatch):
    """A compiler that makes steps of 2 ms of those of 6."""
    monkeypatch.setattr(torch, "compile", lambda model: lambda batch, rng: time.sleep(0.002))


def test_a_long_training_goes_on_compiled_and_keeps_what_that_gave(tmp_path, quick_compiler):
    file = tmp_path / "one.json"
    compiler = Compiler(True, 10**6, CPU, file)
    _, changes = trained_with(compiler, kit_of(0.006), 4 * (WARMUP + TIMED))
    assert changes == [WARMUP + TIMED], "it decides once, after the steps it timed"
    known = json.loads(file.read_text())
    assert 0.3 < known["gain"] < 0.9 and known["startup_seconds"] < 1
    assert compiler.summary()["compiled"] and compiler.summary()["step_seconds"] > compiler.summary()["compiled_step_seconds"]


def test_a_short_training_stays_as_it_is_until_a_measurement_says_otherwise(tmp_path, quick_compiler):
    file, steps = tmp_path / "one.json", 2000  # 12 s, of which the guess saves less than its 60 s
    assert trained_with(Compiler(True, steps, CPU, file), kit_of(0.006), 60)[1] == []
    file.write_text(json.dumps({"startup_seconds": 0.1, "gain": 0.5}))
    assert len(trained_with(Compiler(True, steps, CPU, file), kit_of(0.006), 60)[1]) == 1
    assert Compiler(True, steps, CPU).payback() == GUESS


@pytest.mark.parametrize("auto, steps", [(False, 10**6), (True, None)])
def test_neither_a_choice_made_nor_a_budget_in_minutes_is_compiled_by_itself(auto, steps, quick_compiler):
    assert trained_with(Compiler(auto, steps, CPU), kit_of(0.001), 60)[1] == []


def test_a_compiler_that_fails_costs_nothing_but_a_line(monkeypatch, capsys):
    def broken(model):
        def fails(batch, rng):
            raise RuntimeError("no C++ compiler")

        return fails

    monkeypatch.setattr(torch, "compile", broken)
    compiler = Compiler(True, 10**7, CPU)
    assert trained_with(compiler, kit_of(0.002), 60)[1] == [] and not compiler.summary()["compiled"]
    assert "going on uncompiled (RuntimeError: no C++ compiler)" in capsys.readouterr().out


def test_a_training_that_goes_on_compiled_is_the_same_training(tmp_path, monkeypatch):
    """The trial's gradients are thrown away, and its random numbers are its own."""
    monkeypatch.setattr(compiling, "GUESS", Payback(0.0, 0.5))
    traced = []
    compiled = torch.compile
    monkeypatch.setattr(torch, "compile", lambda m: compiled(m, backend=lambda graph, inputs: traced.append(graph) or graph.forward))
    cfg = SimpleNamespace(**vars(CFG) | {"budget": 2 * (WARMUP + TIMED), "compile": "auto"})
    weights, _ = run(tmp_path / "plain", "dit", cfg=cfg)
    made = Compiler.__init__
    monkeypatch.setattr(Compiler, "__init__", lambda self, auto, *a, **k: made(self, True, *a, **k))
    again, summary = run(tmp_path / "compiled", "dit", cfg=cfg)
    torch.compiler.reset()
    assert traced and summary["compile"]["compiled"]
    for name, value in weights.items():
        torch.testing.assert_close(again[name], value, atol=1e-5, rtol=1e-4)


def test_a_training_whose_time_is_up_leaves_a_checkpoint_and_goes_on_from_it(tmp_path):
    whole, _ = run(tmp_path / "whole", "dit")
    with pytest.raises(OutOfTime, match=r"trained to 33%"):
        run(tmp_path / "broken", "dit", latent_set(), stop_at=time.time() - 1)
    assert (tmp_path / "broken" / "checkpoint.pt").exists()
    assert same(run(tmp_path / "broken", "dit")[0], whole)


def test_a_cell_whose_time_is_up_is_not_begun():
    with pytest.raises(OutOfTime, match="is not begun"):
        bench.run_cell(composed("experiment=smoke", f"stop_at={time.time() - 1}"))


@pytest.mark.parametrize("seconds, batch", [({32: 1.0, 64: 0.5, 128: 0.49}, 64), ({32: 1.0, 64: 0.99, 128: 0.1}, 32), ({32: 1.0}, 32)])
def test_the_sampling_batch_grows_as_long_as_that_makes_it_faster(seconds, batch):
    assert sample_batch.chosen(seconds) == batch


def test_on_a_cpu_the_sampling_batch_is_what_it_was(tmp_path):
    found = sample_batch.best(None, None, None, CPU, precision="bf16", file=tmp_path / "x.json")
    assert found == 128 and not (tmp_path / "x.json").exists()


@pytest.mark.parametrize("override, message", [("sample_batch=0", "or auto"), ("sample_batch=many", "or auto"), ("stop_at=soon", "epoch")])
def test_what_cannot_be_a_batch_or_a_time_is_refused(override, message):
    with pytest.raises(BadInput, match=message):
        check(composed(override))


def test_the_batch_is_found_once_and_memory_s_end_ends_the_search(tmp_path, monkeypatch):
    tried = []

    def seconds(generator, space, data, setting, device):
        tried.append(setting.batch)
        if setting.batch > 128:
            raise torch.cuda.OutOfMemoryError("no more")
        return 1.0  # a batch of any size: the larger the better

    monkeypatch.setattr(sample_batch.sample, "seconds_of_a_batch", seconds)
    generator = SimpleNamespace(latent_shape=(4, 8, 8), step_counts=lambda wanted: list(wanted), eval=lambda: None)
    best = lambda: sample_batch.best(generator, None, None, torch.device("cuda"), precision="bf16", file=tmp_path / "x.json")  # noqa: E731
    assert best() == 128 and tried == [32, 64, 128, 256]
    assert best() == 128 and len(tried) == 4
