"""When a training goes on compiled, how many images are sampled at once, and what a run does whose
time is up.
"""

import json
import time
from types import SimpleNamespace

import pytest
import torch
from conftest import KIN, LOSSES, PRECISIONS, composed, partly_long, random_batch, rng, tiny
from test_train import cfg_with, compiled_without_code, run, same

from benchmarks import run as bench
from benchmarks.core.errors import BadInput, OutOfTime
from benchmarks.core.settings import check
from benchmarks.core.store import write_sealed
from benchmarks.stages import compiling, sample_batch
from benchmarks.stages.compiling import GUESS, TIMED, WARMUP, Compiler, Payback
from benchmarks.stages.sample_batch import best_batch, chosen_batch

CPU = torch.device("cpu")
PLAIN_SECONDS, COMPILED_SECONDS = 0.006, 0.002  # of a made-up step
ONE_TIMING = WARMUP + TIMED  # steps


def test_compiling_pays_where_it_saves_more_than_its_start_costs():
    payback = Payback(startup_seconds=60, gain=0.25)
    assert payback.pays(steps=2500, step_seconds=0.1)
    assert not payback.pays(steps=2300, step_seconds=0.1)
    slower = Payback(startup_seconds=0.0, gain=-0.1)
    assert not slower.pays(steps=10**6, step_seconds=1.0), "what makes steps slower never pays"


class Network:
    """A model whose loss takes 6 ms as it is and another time compiled, or cannot be compiled."""

    def __init__(self, compiled_seconds: float = COMPILED_SECONDS, broken: bool = False):
        self.seconds, self.compiled_seconds = PLAIN_SECONDS, compiled_seconds
        self.broken = broken

    def compile_error(self):
        self.seconds = self.compiled_seconds

    def uncompile_error(self):
        self.seconds = PLAIN_SECONDS

    def __call__(self, batch, rng):
        if self.broken and self.seconds != PLAIN_SECONDS:
            raise RuntimeError("no C++ compiler")
        time.sleep(self.seconds)


def trained_with(compiler: Compiler, steps: int, network: Network) -> list[int]:
    """The steps after which the loss changed from one form to the other."""
    state = SimpleNamespace(
        generator=network,
        model=network,
        backward=network,
        optimizer=SimpleNamespace(zero_grad=lambda: None),
    )
    changes, before = [], network.seconds
    for step in range(1, steps + 1):
        network(None, None)
        compiler.after(state, step, None)
        if network.seconds != before:
            changes.append(step)
        before = network.seconds
    return changes


def test_a_long_training_goes_on_compiled_and_keeps_what_that_gave(tmp_path):
    file = tmp_path / "one.json"
    compiler = Compiler(True, 10**6, CPU, file)
    changes = trained_with(compiler, 4 * ONE_TIMING, Network())
    assert changes == [ONE_TIMING], "it decides once, after the steps it timed"
    kept, summary = json.loads(file.read_text()), compiler.summary()
    assert 0.3 < kept["gain"] < 0.9 and kept["startup_seconds"] < 1
    assert summary["compiled"]
    assert summary["step_seconds"] > summary["compiled_step_seconds"]


def test_a_short_training_stays_as_it_is_until_a_measurement_says_otherwise(tmp_path):
    # 2000 steps take 12 s, of which the guess saves less than its 60 s
    file, steps = tmp_path / "one.json", 2000
    assert trained_with(Compiler(True, steps, CPU, file), 60, Network()) == []
    write_sealed(file, {"startup_seconds": 0.1, "gain": 0.5})
    assert len(trained_with(Compiler(True, steps, CPU, file), 60, Network())) == 1
    assert Compiler(True, steps, CPU).payback() == GUESS


@pytest.mark.parametrize("auto, steps", [(False, 10**6), (True, None)])
def test_neither_a_choice_made_nor_a_budget_in_minutes_is_compiled_by_itself(auto, steps):
    assert trained_with(Compiler(auto, steps, CPU), 60, Network()) == []


def test_a_compiled_step_that_is_slower_is_given_up_again():
    network, compiler = Network(compiled_seconds=0.009), Compiler(True, 10**6, CPU)
    assert len(trained_with(compiler, 4 * ONE_TIMING, network)) == 2
    assert network.seconds == PLAIN_SECONDS and not compiler.summary()["compiled"]


def test_a_compiler_that_fails_costs_nothing_but_a_line(capsys):
    compiler, network = Compiler(True, 10**7, CPU), Network(broken=True)
    assert trained_with(compiler, 60, network) == [] and not compiler.summary()["compiled"]
    assert "going on uncompiled (RuntimeError: no C++ compiler)" in capsys.readouterr().out


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", partly_long(LOSSES, KIN))
def test_a_loss_is_one_graph(name, precision):
    """Random numbers are drawn before it; a break would cost launches, and some versions of torch
    fail at one.
    """
    model, graphs = tiny(name).train(), []
    compiled = compiled_without_code(graphs)
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        expected = model(random_batch(), rng=rng())
        model.error = compiled(type(model).error.__get__(model), fullgraph=True)
        loss = model(random_batch(), rng=rng())
    torch.compiler.reset()
    assert len(graphs) == 1
    torch.testing.assert_close(loss, expected, atol=1e-4, rtol=1e-3)


def test_a_training_that_goes_on_compiled_is_the_same_training(tmp_path, monkeypatch):
    """The trial's gradients are thrown away, and its random numbers are its own."""
    monkeypatch.setattr(compiling, "GUESS", Payback(startup_seconds=0.0, gain=0.5))
    traced = []
    monkeypatch.setattr(torch, "compile", compiled_without_code(traced))
    cfg = cfg_with(budget=2 * ONE_TIMING, compile="auto")
    weights, _ = run(tmp_path / "plain", "dit", cfg=cfg)

    init = Compiler.__init__

    def as_on_cuda(self, auto, *args, **options):
        init(self, True, *args, **options)

    monkeypatch.setattr(Compiler, "__init__", as_on_cuda)
    again, summary = run(tmp_path / "compiled", "dit", cfg=cfg)
    torch.compiler.reset()
    # here it may not have paid, and is then given up again
    assert traced and summary["compile"]["compiled_step_seconds"] > 0
    for name, value in weights.items():
        torch.testing.assert_close(again[name], value, atol=1e-5, rtol=1e-4)


def test_a_training_whose_time_is_up_leaves_a_checkpoint_and_goes_on_from_it(tmp_path):
    whole, _ = run(tmp_path / "whole", "dit")
    broken = tmp_path / "broken"
    with pytest.raises(OutOfTime, match=r"trained to 2%"):
        run(broken, "dit", stop_at=time.time() - 1)
    assert (broken / "checkpoint.pt").exists()
    assert same(run(broken, "dit")[0], whole)


def test_a_cell_whose_time_is_up_is_not_begun():
    with pytest.raises(OutOfTime, match="is not begun"):
        bench.run_cell(composed("experiment=smoke", f"stop_at={time.time() - 1}"))


@pytest.mark.parametrize(
    "seconds, batch",
    [({32: 1.0, 64: 0.5, 128: 0.49}, 64), ({32: 1.0, 64: 0.99, 128: 0.1}, 32), ({32: 1.0}, 32)],
)
def test_the_sampling_batch_grows_as_long_as_that_makes_it_faster(seconds, batch):
    assert chosen_batch(seconds) == batch


def test_on_a_cpu_the_sampling_batch_is_fixed(tmp_path):
    batch = best_batch(None, None, None, CPU, precision="bf16", file=tmp_path / "x.json")
    assert batch == 128 and not (tmp_path / "x.json").exists()


@pytest.mark.parametrize(
    "override, message",
    [("sample_batch=0", "or auto"), ("sample_batch=many", "or auto"), ("stop_at=soon", "epoch")],
)
def test_what_cannot_be_a_batch_or_a_time_is_refused(override, message):
    with pytest.raises(BadInput, match=message):
        check(composed(override))


def test_the_batch_is_found_once_and_memory_s_end_ends_the_search(tmp_path, monkeypatch):
    tried = []

    def seconds(generator, space, data, config, device):
        tried.append(config.batch)
        if config.batch > 128:
            raise torch.cuda.OutOfMemoryError("no more")
        return 1.0  # a batch of any size: the larger the better

    monkeypatch.setattr(sample_batch, "seconds_of_a_batch", seconds)
    generator = SimpleNamespace(
        latent_shape=(4, 8, 8), supported_steps=lambda wanted: list(wanted), eval=lambda: None
    )

    def best() -> int:
        cuda, file = torch.device("cuda"), tmp_path / "x.json"
        return best_batch(generator, None, None, cuda, precision="bf16", file=file)

    assert best() == 128 and tried == [32, 64, 128, 256]
    assert best() == 128 and len(tried) == 4
