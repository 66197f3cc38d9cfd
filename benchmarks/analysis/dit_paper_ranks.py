"""Does a brief run rank the DiT paper's twelve models as 400,000 steps did? Our distances beside
its FID-50K (arXiv 2212.09748, table 4).

At patch 4, 2 and 1, 4x16x16 latents make the token counts and GMACs of the paper's patch 8, 4 and 2
on 4x32x32.
"""

from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import spearmanr

from benchmarks.analysis.curves import distance_name

TOKENS = (16, 64, 256)
FID = {  # FID-50K at 400K steps without guidance, at these tokens
    "s": (153.60, 100.41, 68.40),
    "b": (122.74, 68.38, 43.47),
    "l": (118.87, 45.64, 23.33),
    "xl": (106.41, 43.01, 19.47),
}
SIZES = list(FID)
PUBLISHED = {
    (size, tokens): fid
    for size, row in FID.items()
    for tokens, fid in zip(TOKENS, row, strict=True)
}
FEWEST = 3  # models, below which ranks say nothing at all
RESAMPLED = 2000


def rungs(part: pd.DataFrame, found: dict[str, dict[str, Any]]) -> pd.DataFrame:
    """One row for each of the paper's models among these: without guidance, at its most steps,
    seeds and drawings averaged.

    Columns size, tokens, gmacs (of a forward pass), published, fd, fd_std, lr. Empty where a model
    was trained in more than one way, or the models on different numbers of pictures: ranks would
    then be of something else.
    """
    part = part[(part["model"] == "dit") & part["size"].isin(SIZES) & (part["guidance"] == 1)]
    rows = []
    for _, row in part.iterrows():
        model = found[row["run_id"]]["config"]["model"]
        _, height, width = map(int, row["latent_shape"].split("x"))
        tokens, gmacs = (
            height * width // model["denoiser"]["patch"] ** 2,
            row["train_flops"] / row["train_images"] / 6e9,
        )
        way = (row.get("objective"), row.get("sampler"), row["train_images"], model.get("lr"))
        rows.append(
            {
                **row[["size", "steps", "fd", "fd_std", "train_images"]],
                "tokens": tokens,
                "gmacs": gmacs,
                "way": way,
                "lr": way[-1],
            }
        )
    table = pd.DataFrame(rows)
    if table.empty:
        return table
    table = table[[pair in PUBLISHED for pair in zip(table["size"], table["tokens"], strict=True)]]
    table = table[table["steps"] == table.groupby(["size", "tokens"])["steps"].transform("max")]
    if (table.groupby(["size", "tokens"])["way"].nunique() > 1).any() or table[
        "train_images"
    ].nunique() > 1:
        return table.iloc[:0]
    table = table.groupby(["size", "tokens"], as_index=False)[
        ["gmacs", "fd", "fd_std", "lr"]
    ].mean()
    table["published"] = [
        PUBLISHED[pair] for pair in zip(table["size"], table["tokens"], strict=True)
    ]
    return table.sort_values("published", ascending=False, ignore_index=True)


def predictors(table: pd.DataFrame) -> dict[str, np.ndarray]:
    """What needs no training, each so that less predicts a lower FID."""
    order = table["tokens"] * len(SIZES) + table["size"].map(SIZES.index)
    return {"GMACs alone": -table["gmacs"].to_numpy(), "tokens, then width": -order.to_numpy(float)}


def agreement(table: pd.DataFrame, rng: np.random.Generator) -> tuple[float, float, float]:
    """Spearman correlation of `fd` with `published`, and its 95% interval: models resampled,
    distances moved by their errors.
    """
    fd, published, count = table["fd"].to_numpy(), table["published"].to_numpy(), len(table)
    drawn = []
    while len(drawn) < RESAMPLED:
        some = rng.integers(count, size=count)
        if len(set(some)) < 2:
            continue  # one model alone has no rank
        moved = fd + table["fd_std"].to_numpy() * rng.standard_normal(count)
        drawn.append(spearmanr(moved[some], published[some]).statistic)
    low, high = np.quantile(drawn, [0.025, 0.975])
    return float(spearmanr(fd, published).statistic), float(low), float(high)


def section(
    part: pd.DataFrame, found: dict[str, dict[str, Any]]
) -> tuple[list[str], list[list[object]], list[str]]:
    """Header and rows of the table, and what follows from it in words; all empty for fewer than
    three of the paper's models.
    """
    table = rungs(part, found)
    if len(table) < FEWEST:
        return [], [], []
    ours, low, high = agreement(table, np.random.default_rng(0))
    missing = len(PUBLISHED) - len(table)
    lines = [
        f"Spearman correlation with the published FID over {len(table)} of the paper's 12 models: {ours:.3f} "
        f"(95% interval {low:.3f} to {high:.3f}).",
        *(
            f"{name}: {spearmanr(values, table['published']).statistic:.3f} on the same models."
            for name, values in predictors(table).items()
        ),
    ]
    lines += [f"{missing} models were not trained: nothing is known of their place."] * bool(
        missing
    )
    names = [
        f"DiT-{size.upper()}, {tokens} tokens"
        for size, tokens in zip(table["size"], table["tokens"], strict=True)
    ]
    values = table[["gmacs", "lr", "published", "fd", "fd_std"]].to_numpy().tolist()
    header = [
        "model",
        "GMACs",
        "learning rate",
        "published FID-50K at 400K steps",
        distance_name(part["features"].iloc[0]),
        "± SD",
    ]
    return header, [[name, *row] for name, row in zip(names, values, strict=True)], lines
