"""What `make perf` measures with: rows, ratios, and baselines that do what the suite's own code does."""

import time

import pandas as pd
import pytest
import torch

from benchmarks.perf import baselines, gains, stages, turns
from benchmarks.train import Average
from metrics.frechet import frechet_distance
from models import layers
from models.autoregressive import Rotary
from models.dit import GELU, DiT
from models.generator import Batch
from models.unet import QuickAttention

CPU = torch.device("cpu")


def batches(tokens: int = 16):
    rng = torch.Generator().manual_seed(0)
    while True:
        yield Batch(torch.randn(4, 4, 4, 4, generator=rng), torch.randint(32, (4, tokens), generator=rng), torch.arange(4) % 3)


def test_rows_say_who_was_compared_with_whom_and_how_fast():
    bench = turns.Bench(CPU, True, lambda: 1e12)
    calls = {"ours": lambda: time.sleep(0.01), "slow": lambda: time.sleep(0.03), "fast": lambda: time.sleep(0.005)}
    bench.compare("train", calls, 8, 1e9, model="dit", family="dit", size="s", batch=8, dtype="bf16")
    table = pd.DataFrame(bench.rows)[turns.COLUMNS]
    assert table["role"].tolist() == ["ours", "ours", "baseline", "baseline"] and table["baseline"].tolist() == [
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
    encode = lambda images: (images.float().reshape(1, 4, 4, 4), torch.zeros(1, 16, dtype=torch.long))  # noqa: E731
    decode = lambda file: torch.full((64,), file[0], dtype=torch.uint8).numpy()  # noqa: E731
    batch = next(baselines.decoding_batches(files, decode, encode, 4, CPU))
    assert sorted(batch.latents[:, 0, 0, 0].tolist()) == [0, 1, 2, 3] and batch.tokens.shape == (4, 16) and batch.labels.shape == (4,)


def test_two_ways_of_ours_are_compared_with_every_baseline_and_the_second_with_the_first():
    bench = turns.Bench(CPU, True, lambda: 1e12)
    calls = {"ours": lambda: time.sleep(0.02), "theirs": lambda: time.sleep(0.04), "ours, compiled": lambda: time.sleep(0.005)}
    bench.compare("train", calls, 8, 1e9, model="dit", family="dit", size="s", batch=8, dtype="bf16")
    table = pd.DataFrame(bench.rows).set_index(["role", "dtype", "baseline"])["ratio"]
    assert set(table.index) == {
        ("ours", "bf16", "theirs"),
        ("baseline", "bf16", "theirs"),
        ("ours", "bf16, compiled", "ours"),
        ("ours", "bf16, compiled", "theirs"),
    }
    assert table["ours", "bf16, compiled", "ours"] > 2 < table["ours", "bf16, compiled", "theirs"] and table["ours", "bf16", "theirs"] > 1.5


def test_the_matrix_square_root_reads_the_same_distance():
    real, fake = (torch.randn(300, 12, generator=torch.Generator().manual_seed(s)).double() + s for s in (0, 1))
    assert baselines.sqrtm_distance(real.numpy(), fake.numpy()) == pytest.approx(frechet_distance(real, fake), rel=1e-6)


def test_the_stages_run_and_fill_every_column():
    top = turns.ceiling(CPU)
    bench = turns.Bench(CPU, True, lambda: top)
    stages.training(bench, "dit", "xs", 4, 2, compiled=False)
    stages.sampling_tokens(bench, "xs", 4, 2)
    stages.sampling_diffusion(bench, "dit", "xs", 4, 2, steps=2)
    stages.scoring(bench, 40, d=16)
    stages.encoding(bench, 4)
    table = pd.DataFrame(bench.rows)[turns.COLUMNS]
    assert set(table["role"]) == {"ours", "baseline"} and (table["images_per_second"] > 0).all()
    assert (table["utilisation"].dropna() <= 1).all()
    assert table[table["role"] == "ours"]["baseline"].nunique() >= 7
    assert all(0 < low <= high for low, high in bench.ceilings.values()) and "train 4x4 dit" in bench.ceilings


def test_what_is_taken_away_for_a_choice_comes_back():
    """Each lack reaches the code that runs, and nothing of it stays."""
    bench, seen = turns.Bench(CPU, True, lambda: 1.0), []
    before = layers.PLAIN, GELU.forward, DiT.embed, Rotary.forward, QuickAttention.__call__, Average.step
    look = lambda: seen.append(before != (layers.PLAIN, GELU.forward, DiT.embed, Rotary.forward, QuickAttention.__call__, Average.step))  # noqa: E731
    for lacks in gains.OF_A_MODEL.values():
        for lack in lacks.values():
            gains.without(look, lack)()
    gains.without(look, gains.FUSED)()
    assert seen == [True] * 5
    look()
    assert not seen[-1]
    for name in ("dit", "ar", "unet"):
        gains.training(bench, name, "xs", 4, 2)
    gains.drawn(bench, "ar", "xs", 4, 2)
    gains.halves(bench, "unet", "xs", 4, 2)
    table = pd.DataFrame(bench.rows)
    assert set(table["role"]) == {"ours", "baseline"} and (table[table["role"] == "ours"]["ratio"] > 0).all()
    assert table[table["role"] == "ours"].groupby(["stage", "model"]).size().to_dict() == {
        ("choice: train 4x4", "dit"): 5,
        ("choice: train 4x4", "ar"): 4,
        ("choice: train 4x4", "unet"): 4,
        ("choice: sample 4x4", "ar"): 2,
        ("choice: one guided evaluation 4x4", "unet"): 1,
    }
