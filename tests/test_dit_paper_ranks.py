"""The DiT paper's models: which rows are theirs, and how ranks are compared, on the paper's own
numbers.
"""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import spearmanr

from benchmarks.analysis import dit_paper_ranks
from models.dit import PAPER_SIZES

GMACS = {
    "s": (0.36, 1.41, 6.06),
    "b": (1.42, 5.56, 23.01),
    "l": (5.01, 19.70, 80.71),
    "xl": (7.39, 29.05, 118.64),
}  # the paper's table 4


def measured(distances: dict[tuple[str, int], float]) -> tuple[pd.DataFrame, dict]:
    """Rows of the paper's models on 4x16x16 latents with these distances, and their records."""
    rows, found = [], {}
    for (size, tokens), fd in distances.items():
        run, patch = f"{size}{tokens}", {16: 4, 64: 2, 256: 1}[tokens]
        macs = 1e9 * GMACS[size][(16, 64, 256).index(tokens)]
        rows.append(
            {
                "run_id": run,
                "model": "dit",
                "size": size,
                "guidance": 1.0,
                "steps": 25,
                "fd_generator": fd,
                "distance": fd,
                "distance_std": 1e-6,
                "chosen": False,
            }
        )
        rows[-1] |= {
            "latent_shape": "4x16x16",
            "train_flops": 6 * macs * 1000,
            "train_images": 1000,
            "features": "local",
        }
        found[run] = {"config": {"model": {"lr": 1e-4, "denoiser": {"patch": patch}}}}
    return pd.DataFrame(rows), found


def test_the_sizes_are_those_of_the_models():
    assert (
        set(dit_paper_ranks.SIZES) == {size.lower() for size in PAPER_SIZES}
        and len(dit_paper_ranks.PUBLISHED) == 12
    )


def test_what_needs_no_training_ranks_the_paper_s_models_as_the_design_says():
    table = dit_paper_ranks.models_of_the_paper(*measured(dit_paper_ranks.PUBLISHED))
    found = {
        name: spearmanr(values, table["published"]).statistic
        for name, values in dit_paper_ranks.predictors(table).items()
    }
    assert found["GMACs alone"] == pytest.approx(0.916, abs=1e-3) and found[
        "tokens, then width"
    ] == pytest.approx(0.944, abs=1e-3)


def test_the_right_order_correlates_fully_and_noise_widens_the_interval():
    table = dit_paper_ranks.models_of_the_paper(
        *measured({pair: fid / 10 for pair, fid in dit_paper_ranks.PUBLISHED.items()})
    )
    rng = np.random.default_rng
    assert dit_paper_ranks.agreement(table, rng(0)) == pytest.approx((1.0, 1.0, 1.0))
    same, low, high = dit_paper_ranks.agreement(table.assign(distance_std=5.0), rng(0))
    assert same == pytest.approx(1) and low < 0.95
    shuffled = table.assign(distance=rng(1).permutation(table["distance"]))
    ours, low, high = dit_paper_ranks.agreement(shuffled, rng(0))
    assert (
        ours == pytest.approx(spearmanr(shuffled["distance"], shuffled["published"]).statistic)
        and low < ours < high < 0.9
    )


def test_the_report_says_what_was_left_out_and_nothing_of_too_few():
    some = {pair: fid for pair, fid in dit_paper_ranks.PUBLISHED.items() if pair[1] == 16}
    header, rows, lines = dit_paper_ranks.section(*measured(some))
    assert [row[0] for row in rows] == [
        "DiT-S, 16 tokens",
        "DiT-B, 16 tokens",
        "DiT-L, 16 tokens",
        "DiT-XL, 16 tokens",
    ]
    assert (
        header[4] == "generator-only FD[local]"
        and "over 4 of the paper's 12 models: 1.000" in lines[0]
        and "8 models were not trained" in lines[-1]
    )
    assert dit_paper_ranks.section(*measured(dict(list(some.items())[:2]))) == ([], [], [])
    part, found = measured(some)
    assert dit_paper_ranks.section(part.assign(model="unet"), found) == ([], [], [])
    assert dit_paper_ranks.section(part.assign(latent_shape="4x8x8"), found) == ([], [], []), (
        "4 tokens at patch 4: none of the paper's"
    )


def test_ranks_are_not_taken_over_unlike_trainings():
    part, found = measured(dit_paper_ranks.PUBLISHED)
    twice = pd.concat([part, part.iloc[:1].assign(run_id="again")])
    assert dit_paper_ranks.section(
        twice, found | {"again": {"config": {"model": {"lr": 2e-4, "denoiser": {"patch": 4}}}}}
    ) == ([], [], [])
    fewer = part.assign(
        train_images=np.r_[500, [1000] * 11], train_flops=part["train_flops"] * np.r_[0.5, [1] * 11]
    )
    assert dit_paper_ranks.section(fewer, found) == ([], [], []), (
        "equal FLOPs are not equal pictures"
    )
    assert len(dit_paper_ranks.section(part, found)[1]) == 12
