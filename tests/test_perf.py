"""What `perf` measures with: rows, ratios, and baselines that do what the suite's own code does."""

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import pandas as pd
import pytest
import torch
import torch.nn.functional as F

from benchmarks.perf import ablations, bars, baselines, bench, comparisons
from benchmarks.perf.stage_list import extent_on, stage_list
from benchmarks.stages.train_state import build_train_state
from metrics import speed
from metrics.frechet import frechet_distance
from models import autoregressive, layers
from models.dit import Block as DiTBlock
from models.generator import Batch

CPU = torch.device("cpu")
COLUMNS = dict(model="dit", family="dit", size="s", batch=8, dtype="bf16")


@dataclass
class Clock:
    """Made-up time: it passes only in the calls that this clock makes."""

    now: float = 0.0
    order: list[str] = field(default_factory=list)  # of the calls that were made

    def calls(self, **seconds: float) -> dict[str, Callable[[], None]]:
        """Calls that take so long, by name."""
        return {name: self.call(name, took) for name, took in seconds.items()}

    def call(self, name: str, seconds: float) -> Callable[[], None]:
        def spend() -> None:
            self.order.append(name)
            self.now += seconds

        return spend

    def timed(self, call: Callable[[], Any], device: torch.device) -> tuple[Any, float]:
        """As `metrics.speed.timed`."""
        began = self.now
        return call(), self.now - began


@pytest.fixture
def clock(monkeypatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(speed, "timed", clock.timed)
    return clock


def bench_of(*, quick: bool = True, ceiling: float = 1e12) -> bench.Bench:
    return bench.Bench(device=CPU, quick=quick, ceiling=lambda: ceiling)


def batches(tokens: int = 16):
    rng = torch.Generator().manual_seed(0)
    while True:
        yield Batch(
            torch.randn(4, 4, 4, 4, generator=rng),
            torch.randint(32, (4, tokens), generator=rng),
            torch.arange(4) % 3,
        )


# Rows and ratios


def test_rows_say_who_was_compared_with_whom_and_how_fast(clock):
    """Ratios are of speed, ours over the baseline's; utilisation is FLOP/s over the ceiling."""
    measured = bench_of()
    calls = clock.calls(ours=0.01, slow=0.03, fast=0.005)
    measured.compare("train", calls, 8, 1e9, **COLUMNS)
    table = pd.DataFrame(measured.rows)[bench.COLUMNS]
    assert table["role"].tolist() == ["ours", "ours", "baseline", "baseline"]
    assert table["baseline"].tolist() == ["slow", "fast", "slow", "fast"]
    ours = table[table["role"] == "ours"].set_index("baseline")
    assert ours["ratio"].to_dict() == pytest.approx({"slow": 3.0, "fast": 0.5})
    assert ours["images_per_second"]["slow"] == pytest.approx(800)
    assert ours["utilisation"]["slow"] == pytest.approx(0.1)
    assert measured.ceilings == {"train dit s 8": [1e12, 1e12]}


def test_a_second_way_of_ours_is_compared_with_every_baseline_and_with_the_first(clock):
    """And the first not with the second; what is compiled says so in its dtype."""
    measured = bench_of()
    calls = {
        "ours": clock.call("ours", 0.02),
        "theirs": clock.call("theirs", 0.04),
        "ours, compiled": clock.call("ours, compiled", 0.005),
    }
    measured.compare("train", calls, 8, 1e9, **COLUMNS)
    table = pd.DataFrame(measured.rows).set_index(["role", "dtype", "baseline"])["ratio"]
    assert table.dropna().to_dict() == pytest.approx(
        {
            ("ours", "bf16", "theirs"): 2.0,
            ("ours", "bf16, compiled", "ours"): 4.0,
            ("ours", "bf16, compiled", "theirs"): 8.0,
        }
    )
    assert table[table.isna()].index.tolist() == [("baseline", "bf16", "theirs")]


def test_calls_take_turns_in_every_order_and_short_ones_are_repeated(clock, monkeypatch):
    monkeypatch.setattr(bench, "LEAST", 0.03)
    measured = bench_of(quick=False)
    measured.compare("train", clock.calls(ours=0.002, slow=0.02), 1, **COLUMNS)
    turns = clock.order[2 * bench.WARMUPS :]
    names = [name for name, _ in groupby(turns)]
    assert names == ["ours", "slow"] * 4, "each turn begins with the other one"
    assert turns.count("ours") == 15 * bench.TURNS and turns.count("slow") == 2 * bench.TURNS
    assert measured.ratios["train dit s 8: ours / slow"] == pytest.approx([10.0, 10.0])


def test_a_call_that_fails_is_left_out_and_the_others_still_count(clock):
    def broken() -> None:
        raise RuntimeError("no memory\nand more lines")

    measured = bench_of()
    calls = clock.calls(ours=0.01, theirs=0.02) | {"broken": broken}
    medians = measured.compare("train", calls, 1, **COLUMNS)
    assert medians == pytest.approx({"ours": 0.01, "theirs": 0.02})
    assert measured.failed == ["broken: RuntimeError: no memory"]


def test_bars_are_met_by_the_best_row_of_their_network_and_empty_where_nothing_was_measured():
    measured = bench_of()
    measured.figures["ar b 64 times generate()"] = 9.0
    row = {"stage": "train 16x16", "role": "ours", "model": "dit", "size": "b"}
    rows = pd.DataFrame(
        [
            row | {"utilisation": 0.4},
            row | {"utilisation": 0.46},
            row | {"utilisation": 0.9, "role": "baseline"},
            row | {"utilisation": 0.9, "stage": "sample 8 steps"},
        ]
    )
    table = bars.table(measured, rows).set_index("what")
    trained = table.loc["training DiT-B at 256 tokens, fraction of the ceiling"]
    assert (trained["measured"], trained["met"]) == (0.46, True)
    decoded = table.loc["decoding AR-B at batch 64, times generate()"]
    assert (decoded["measured"], decoded["met"]) == (9.0, False)
    missing = table.loc["training AR-B at 256 tokens, fraction of the ceiling"]
    assert pd.isna(missing["measured"]) and missing["met"] is None


# Baselines


def test_diffusers_dit_trains_and_samples_like_ours():
    torch.manual_seed(0)
    net = baselines.DiffusersDiT((4, 4, 4), 3, width=32, depth=2, heads=2)
    step = baselines.eager_step(net.train(), batches(), autocast=True)
    before = [p.clone() for p in net.parameters()]
    step()
    assert any(not torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))
    x = baselines.pipeline_loop(net.eval().denoise, (4, 4, 4), torch.tensor([0, 1, 2]), 3)
    assert x.shape == (3, 4, 4, 4) and x.isfinite().all()


def test_generate_samples_as_many_tokens_as_asked_and_not_always_the_same():
    torch.manual_seed(0)
    model = baselines.llama(16, 32, width=16, depth=2, heads=2, mlp=32)
    first, second = (baselines.generate(model, torch.tensor([1, 2, 3]), 16) for _ in range(2))
    assert first.shape == (3, 16) and first.max() < 32 and not torch.equal(first, second)


def test_a_decoding_loader_gives_the_latents_of_its_files():
    files = [bytes([i]) for i in range(4)]

    def decode(file: bytes):
        return torch.full((64,), file[0], dtype=torch.uint8).numpy()

    def encode(images: torch.Tensor):
        return images.float().reshape(1, 4, 4, 4), torch.zeros(1, 16, dtype=torch.long)

    batch = next(baselines.decoding_batches(files, decode, encode, 4, CPU))
    assert sorted(batch.latents[:, 0, 0, 0].tolist()) == [0, 1, 2, 3]
    assert batch.tokens.shape == (4, 16) and batch.labels.shape == (4,)


def test_the_matrix_square_root_gives_the_same_distance():
    real, fake = (
        torch.randn(300, 12, generator=torch.Generator().manual_seed(seed)).double() + seed
        for seed in (0, 1)
    )
    distance = baselines.sqrtm_distance(real.numpy(), fake.numpy())
    assert distance == pytest.approx(frechet_distance(real, fake), rel=1e-6)


# Stages


def test_the_stages_run_and_fill_every_column():
    measured = bench_of(ceiling=bench.ceiling(CPU))
    comparisons.training(measured, "dit", "xs", 4, 2, compiled=False)
    comparisons.sampling_tokens(measured, "xs", 4, 2)
    comparisons.sampling_diffusion(measured, "dit", "xs", 4, 2, steps=2)
    comparisons.scoring(measured, 40, d=16)
    comparisons.encoding(measured, 4)
    table = pd.DataFrame(measured.rows)[bench.COLUMNS]
    assert measured.failed == []
    assert set(table["role"]) == {"ours", "baseline"} and (table["images_per_second"] > 0).all()
    assert (table["utilisation"].dropna() <= 1).all()
    assert table[table["role"] == "ours"]["baseline"].nunique() >= 7
    assert all(0 < least <= most for least, most in measured.ceilings.values())
    assert "train 4x4 dit xs 2" in measured.ceilings


@pytest.mark.parametrize("kind", ["cpu", "cuda"])
def test_a_device_has_the_stages_that_mean_something_there(kind, tmp_path):
    extent = extent_on(torch.device(kind), "b", 16, None)
    names = list(stage_list(extent, 16, tmp_path))
    assert names[:3] == ["train dit b 16", "train ar b 16", "train unet b 16"]
    assert ("choices" in names, "score 5000" in names) == (kind == "cpu", kind == "cpu")
    assert (names[-1] == "launches") == (kind == "cuda"), "a profiler slows down what comes after"


# Ablations


def observed(model: torch.nn.Module, call: Callable[[], Any]) -> dict[str, set]:
    """What a call shows of the choices: GELU's form, whether the first block's and the
    convolutions' inputs are contiguous, and q's type.
    """
    seen: dict[str, set] = {"gelu": set(), "stream": set(), "convolutions": set(), "q": set()}

    def watch(module: torch.nn.Module, key: str):
        return module.register_forward_pre_hook(
            lambda _, inputs: seen[key].add(inputs[0].is_contiguous())
        )

    gelu, attend = F.gelu, layers.attend

    def watched_gelu(x, approximate="none"):
        seen["gelu"].add(approximate)
        return gelu(x, approximate=approximate)

    def watched_attend(q, *inputs, **options):
        seen["q"].add(q.dtype)
        return attend(q, *inputs, **options)

    blocks = [module for module in model.modules() if isinstance(module, DiTBlock)]
    convolutions = [module for module in model.modules() if isinstance(module, torch.nn.Conv2d)]
    hooks = [watch(module, "stream") for module in blocks[:1]]
    hooks += [watch(module, "convolutions") for module in convolutions]
    with (
        ablations.swapped(F, "gelu", watched_gelu),
        ablations.swapped(autoregressive, "attend", watched_attend),
    ):
        call()
    for hook in hooks:
        hook.remove()
    return seen


@pytest.mark.parametrize(
    "name, variant, key, ours, theirs",
    [
        ("dit", "tanh form of GELU", "gelu", {"none"}, {"tanh"}),
        ("dit", "patches left transposed", "stream", {True}, {False}),
        ("ar", "rotation in float32", "q", {torch.bfloat16}, {torch.float32}),
        ("unet", "attention's output left channels-last", "convolutions", {True}, {True, False}),
        ("unet", "input channels-last", "convolutions", {True}, {True, False}),
    ],
)
def test_each_variant_changes_what_it_says_and_nothing_of_it_stays(
    name, variant, key, ours, theirs
):
    model, cfg = bench.generator(name, "xs", 4, CPU)
    state = build_train_state(model, cfg.train, 1e-4, CPU)
    batch = bench.random_latents(model.latent_shape, 32, CPU, 8).batch(0, 0, 2)

    def step() -> None:
        state.step(batch, torch.Generator())

    changed = ablations.under(ablations.MODEL_VARIANTS[name][variant], step)
    assert observed(model, step)[key] == ours
    assert observed(model, changed)[key] == theirs
    assert observed(model, step)[key] == ours


def test_a_variant_is_gone_after_a_failure_too():
    variant = ablations.TORCH_ATTENTION["torch's fused attention"]
    with pytest.raises(ZeroDivisionError):
        ablations.under(variant, lambda: 1 / layers.PLAIN)()
    assert layers.PLAIN > 0


@pytest.mark.parametrize("cast, dtype", [(True, torch.bfloat16), (False, torch.float32)])
def test_a_batch_is_sampled_with_weights_cast_once_or_left_to_autocast(cast, dtype):
    model, _ = bench.generator("dit", "xs", 4, CPU)
    linear = model.denoiser.blocks[0].mlp[0]
    seen = set()
    linear.register_forward_pre_hook(lambda module, _: seen.add(module.weight.dtype))
    sample = bench.single_batch_sampler(model.eval(), torch.arange(2), CPU, cast=cast)
    sample(1)
    assert seen == {dtype} and linear.weight.dtype == torch.float32


def test_the_choices_are_compared_with_ours_and_every_optimiser_is_the_one_it_says(monkeypatch):
    states = []

    def kept_state(*arguments):
        states.append(build_train_state(*arguments))
        return states[-1]

    monkeypatch.setattr(ablations, "build_train_state", kept_state)
    measured = bench_of(ceiling=1.0)
    for name in ("dit", "ar", "unet"):
        ablations.training(measured, name, "xs", 4, 2)
    ablations.sampling(measured, "ar", "xs", 4, 2)
    ablations.guidance_halves(measured, "unet", "xs", 4, 2)
    assert [state.optimizer.param_groups[0]["fused"] for state in states] == [None, True] * 3
    table = pd.DataFrame(measured.rows)
    ours = table[table["role"] == "ours"]
    assert measured.failed == [] and (ours["ratio"] > 0).all()
    assert ours.groupby(["stage", "model"]).size().to_dict() == {
        ("choice: train 4x4", "dit"): 5,
        ("choice: train 4x4", "ar"): 4,
        ("choice: train 4x4", "unet"): 5,
        ("choice: sample 4x4", "ar"): 2,
        ("choice: one guided evaluation 4x4", "unet"): 1,
    }
