"""What `make perf` measures with: rows, ratios, and baselines that do what the suite's own code
does.
"""

import time
from itertools import groupby

import pandas as pd
import pytest
import torch
import torch.nn.functional as F

from benchmarks.perf import ablations, baselines, bench, comparisons
from benchmarks.stages.train import build_train_state
from metrics.frechet import frechet_distance
from models import autoregressive, layers
from models.dit import Block as DiTBlock
from models.generator import Batch

CPU = torch.device("cpu")


def batches(tokens: int = 16):
    rng = torch.Generator().manual_seed(0)
    while True:
        yield Batch(
            torch.randn(4, 4, 4, 4, generator=rng),
            torch.randint(32, (4, tokens), generator=rng),
            torch.arange(4) % 3,
        )


def test_rows_say_who_was_compared_with_whom_and_how_fast():
    one = bench.Bench(CPU, True, lambda: 1e12)
    calls = {
        "ours": lambda: time.sleep(0.01),
        "slow": lambda: time.sleep(0.03),
        "fast": lambda: time.sleep(0.005),
    }
    one.compare("train", calls, 8, 1e9, model="dit", family="dit", size="s", batch=8, dtype="bf16")
    table = pd.DataFrame(one.rows)[bench.COLUMNS]
    assert table["role"].tolist() == ["ours", "ours", "baseline", "baseline"] and table[
        "baseline"
    ].tolist() == [
        "slow",
        "fast",
        "slow",
        "fast",
    ]
    ours = table[table["role"] == "ours"].set_index("baseline")
    assert 2 < ours["ratio"]["slow"] < 4 and 0.3 < ours["ratio"]["fast"] < 0.8
    assert ours["images_per_second"]["slow"] == pytest.approx(800, rel=0.3)
    assert ours["utilisation"]["slow"] == pytest.approx(0.1, rel=0.3)


def test_diffusers_dit_trains_and_samples_like_ours():
    torch.manual_seed(0)
    net = baselines.DiffusersDiT((4, 4, 4), 3, width=32, depth=2, heads=2)
    step = baselines.eager_step(net.train(), batches(), autocast=True)
    before = [p.clone() for p in net.parameters()]
    step()
    assert any(not torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))
    x = baselines.pipeline_loop(net.eval().denoise, (4, 4, 4), torch.tensor([0, 1, 2]), 3)
    assert x.shape == (3, 4, 4, 4) and x.isfinite().all()


def test_generate_draws_as_many_tokens_as_asked_and_not_always_the_same():
    torch.manual_seed(0)
    model = baselines.llama(16, 32, width=16, depth=2, heads=2, mlp=32)
    drawn = [baselines.generate(model, torch.tensor([1, 2, 3]), 16) for _ in range(2)]
    assert drawn[0].shape == (3, 16) and drawn[0].max() < 32 and not torch.equal(*drawn)


def test_a_decoding_loader_gives_the_latents_of_its_files():
    files = [bytes([i]) for i in range(4)]
    encode = lambda images: (
        images.float().reshape(1, 4, 4, 4),
        torch.zeros(1, 16, dtype=torch.long),
    )
    decode = lambda file: torch.full((64,), file[0], dtype=torch.uint8).numpy()  # noqa: E731
    batch = next(baselines.decoding_batches(files, decode, encode, 4, CPU))
    assert (
        sorted(batch.latents[:, 0, 0, 0].tolist()) == [0, 1, 2, 3]
        and batch.tokens.shape == (4, 16)
        and batch.labels.shape == (4,)
    )


def test_two_ways_of_ours_are_compared_with_every_baseline_and_the_second_with_the_first():
    one = bench.Bench(CPU, True, lambda: 1e12)
    calls = {
        "ours": lambda: time.sleep(0.02),
        "theirs": lambda: time.sleep(0.04),
        "ours, compiled": lambda: time.sleep(0.005),
    }
    one.compare("train", calls, 8, 1e9, model="dit", family="dit", size="s", batch=8, dtype="bf16")
    table = pd.DataFrame(one.rows).set_index(["role", "dtype", "baseline"])["ratio"]
    assert set(table.index) == {
        ("ours", "bf16", "theirs"),
        ("baseline", "bf16", "theirs"),
        ("ours", "bf16, compiled", "ours"),
        ("ours", "bf16, compiled", "theirs"),
    }
    assert (
        table["ours", "bf16, compiled", "ours"] > 2 < table["ours", "bf16, compiled", "theirs"]
        and table["ours", "bf16", "theirs"] > 1.5
    )


def test_the_matrix_square_root_reads_the_same_distance():
    real, fake = (
        torch.randn(300, 12, generator=torch.Generator().manual_seed(s)).double() + s
        for s in (0, 1)
    )
    assert baselines.sqrtm_distance(real.numpy(), fake.numpy()) == pytest.approx(
        frechet_distance(real, fake), rel=1e-6
    )


def test_the_stages_run_and_fill_every_column():
    top = bench.ceiling(CPU)
    one = bench.Bench(CPU, True, lambda: top)
    comparisons.training(one, "dit", "xs", 4, 2, compiled=False)
    comparisons.sampling_tokens(one, "xs", 4, 2)
    comparisons.sampling_diffusion(one, "dit", "xs", 4, 2, steps=2)
    comparisons.scoring(one, 40, d=16)
    comparisons.encoding(one, 4)
    table = pd.DataFrame(one.rows)[bench.COLUMNS]
    assert set(table["role"]) == {"ours", "baseline"} and (table["images_per_second"] > 0).all()
    assert (table["utilisation"].dropna() <= 1).all()
    assert table[table["role"] == "ours"]["baseline"].nunique() >= 7
    assert (
        all(0 < low <= high for low, high in one.ceilings.values())
        and "train 4x4 dit xs 2" in one.ceilings
    )


def seen_by(model, call):
    """What a call shows of the choices: GELU's form, whether the first block's and the
    convolutions' inputs are contiguous, q's type.
    """
    seen = {"gelu": set(), "stream": set(), "convolutions": set(), "q": set()}
    look = lambda key: lambda part, given: seen[key].add(given[0].is_contiguous())  # noqa: E731
    hooks = [
        part.register_forward_pre_hook(look("convolutions"))
        for part in model.modules()
        if isinstance(part, torch.nn.Conv2d)
    ]
    hooks += [
        part.register_forward_pre_hook(look("stream"))
        for part in model.modules()
        if isinstance(part, DiTBlock)
    ][:1]
    gelu, attend = F.gelu, layers.attend
    with (
        ablations.swapped(
            F,
            "gelu",
            lambda x, approximate="none": (
                seen["gelu"].add(approximate) or gelu(x, approximate=approximate)
            ),
        ),
        ablations.swapped(
            autoregressive,
            "attend",
            lambda q, *a, **k: seen["q"].add(q.dtype) or attend(q, *a, **k),
        ),
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
    state, data = (
        build_train_state(model, cfg.train, 1e-4, CPU),
        bench.random_latents(model.latent_shape, 32, CPU, 8),
    )
    step = lambda: state.step(data.batch(0, 0, 2), torch.Generator())  # noqa: E731
    assert seen_by(model, step)[key] == ours
    assert (
        seen_by(model, ablations.under(ablations.MODEL_VARIANTS[name][variant], step))[key]
        == theirs
    )
    assert seen_by(model, step)[key] == ours


def test_a_variant_is_gone_after_a_failure_too():
    with pytest.raises(ZeroDivisionError):
        ablations.under(
            ablations.TORCH_ATTENTION["torch's fused attention"], lambda: 1 / layers.PLAIN
        )()
    assert layers.PLAIN > 0


def test_the_choices_are_compared_with_ours_and_every_optimiser_is_the_one_it_says(monkeypatch):
    fused, kits = [], []
    original = build_train_state
    monkeypatch.setattr(
        "benchmarks.stages.train.build_train_state",
        lambda *a: kits.append(original(*a)) or kits[-1],
    )
    monkeypatch.setattr(bench, "LEAST", 0.0)
    one = bench.Bench(CPU, True, lambda: 1.0)
    for name in ("dit", "ar", "unet"):
        ablations.training(one, name, "xs", 4, 2)
        fused.append([state.optimizer.param_groups[0]["fused"] for state in kits[-2:]])
    ablations.drawn(one, "ar", "xs", 4, 2)
    ablations.guidance_halves(one, "unet", "xs", 4, 2)
    table = pd.DataFrame(one.rows)
    assert fused == [[None, True]] * 3
    assert (
        set(table["role"]) == {"ours", "baseline"}
        and (table[table["role"] == "ours"]["ratio"] > 0).all()
    )
    assert table[table["role"] == "ours"].groupby(["stage", "model"]).size().to_dict() == {
        ("choice: train 4x4", "dit"): 5,
        ("choice: train 4x4", "ar"): 4,
        ("choice: train 4x4", "unet"): 5,
        ("choice: sample 4x4", "ar"): 2,
        ("choice: one guided evaluation 4x4", "unet"): 1,
    }


def test_calls_take_turns_in_every_order_and_short_ones_are_repeated(monkeypatch):
    monkeypatch.setattr(bench, "LEAST", 0.03)
    order, one = [], bench.Bench(CPU, False, lambda: 1.0)
    calls = {
        name: lambda name=name: (order.append(name), time.sleep(0.002 if name == "ours" else 0.02))
        for name in ("ours", "slow")
    }
    one.compare("train", calls, 1, model="dit", family="dit", size="s", batch=8, dtype="bf16")
    assert [name for name, _ in groupby(order[4:])] == ["ours", "slow"] * 4, (
        "each turn begins with the other one"
    )
    assert order.count("ours") > 5 * 7 > order.count("slow")
    ranges = one.ratios["train dit s 8: ours / slow"]
    assert ranges[0] <= one.rows[0]["ratio"] <= ranges[1]
