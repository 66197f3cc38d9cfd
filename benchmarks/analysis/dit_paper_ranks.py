"""Does a brief run rank the DiT paper's twelve models as 400,000 steps did? Our leading distances
beside its FID-50K (arXiv 2212.09748, table 4).

At patch 4, 2 and 1, 4x16x16 latents make the token counts and GMACs of the paper's patch 8, 4 and 2
on 4x32x32.
"""

from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import spearmanr

from benchmarks.analysis.curves import distance_title

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


def models_of_the_paper(rows: pd.DataFrame, by_id: dict[str, dict[str, Any]]) -> pd.DataFrame:
    """One row for each of the paper's models among these: without guidance, at its most steps,
    seeds and samplings averaged.

    Columns size, tokens, gmacs (of a forward pass), published, distance, distance_std, lr. Empty
    where a model was trained in more than one way, or the models on different numbers of images:
    ranks would then be of something else.
    """
    wanted = (rows["model"] == "dit") & rows["size"].isin(SIZES) & (rows["guidance"] == 1)
    wanted &= ~rows["chosen"].astype(bool)
    table = pd.DataFrame(
        [
            _of_row(row, by_id[row["run_id"]]["config"]["model"])
            for _, row in rows[wanted].iterrows()
        ]
    )
    if table.empty:
        return table
    table = table[[pair in PUBLISHED for pair in _pairs(table)]]
    groups = table.groupby(["size", "tokens"])
    table = table[table["steps"] == groups["steps"].transform("max")]
    several_ways = (table.groupby(["size", "tokens"])["way"].nunique() > 1).any()
    if several_ways or table["train_images"].nunique() > 1:
        return table.iloc[:0]
    measures = ["gmacs", "distance", "distance_std", "lr"]
    table = table.groupby(["size", "tokens"], as_index=False)[measures].mean()
    table["published"] = [PUBLISHED[pair] for pair in _pairs(table)]
    return table.sort_values("published", ascending=False, ignore_index=True)


def _of_row(row: pd.Series, model: dict[str, Any]) -> dict[str, Any]:
    _, height, width = map(int, row["latent_shape"].split("x"))
    lr = model.get("lr")
    return {
        **row[["size", "steps", "distance", "distance_std", "train_images"]],
        "tokens": height * width // model["denoiser"]["patch"] ** 2,
        "gmacs": row["train_flops"] / row["train_images"] / 6e9,  # 3 passes, 2 FLOPs a MAC
        "way": (row.get("objective"), row.get("sampler"), row["train_images"], lr),
        "lr": lr,
    }


def _pairs(table: pd.DataFrame) -> list[tuple[str, int]]:
    return list(zip(table["size"], table["tokens"], strict=True))


def predictors(table: pd.DataFrame) -> dict[str, np.ndarray]:
    """What needs no training, each so that less predicts a lower FID."""
    order = table["tokens"] * len(SIZES) + table["size"].map(SIZES.index)
    return {"GMACs alone": -table["gmacs"].to_numpy(), "tokens, then width": -order.to_numpy(float)}


def agreement(table: pd.DataFrame, rng: np.random.Generator) -> tuple[float, float, float]:
    """Spearman correlation of `distance` with `published`, and its 95% interval: models resampled,
    distances moved by their errors.
    """
    ours, published, count = table["distance"].to_numpy(), table["published"].to_numpy(), len(table)
    errors = table["distance_std"].to_numpy()
    correlations: list[float] = []
    while len(correlations) < RESAMPLED:
        resample = rng.integers(count, size=count)
        if len(set(resample)) < 2:
            continue  # one model alone has no rank
        moved = ours + errors * rng.standard_normal(count)
        correlations.append(spearmanr(moved[resample], published[resample]).statistic)
    low, high = np.quantile(correlations, [0.025, 0.975])
    return float(spearmanr(ours, published).statistic), float(low), float(high)


def section(
    rows: pd.DataFrame, by_id: dict[str, dict[str, Any]]
) -> tuple[list[str], list[list[object]], list[str]]:
    """Header and rows of the table, and what follows from it in words; all empty for fewer than
    three of the paper's models.
    """
    table = models_of_the_paper(rows, by_id)
    if len(table) < FEWEST:
        return [], [], []
    ours, low, high = agreement(table, np.random.default_rng(0))
    lines = [
        f"Spearman correlation with the published FID over {len(table)} of the paper's "
        f"{len(PUBLISHED)} models: {ours:.3f} (95% interval {low:.3f} to {high:.3f})."
    ]
    for name, values in predictors(table).items():
        correlation = spearmanr(values, table["published"]).statistic
        lines.append(f"{name}: {correlation:.3f} on the same models.")
    if missing := len(PUBLISHED) - len(table):
        lines.append(f"{missing} models were not trained: nothing is known of their place.")
    names = [f"DiT-{size.upper()}, {tokens} tokens" for size, tokens in _pairs(table)]
    values = table[["gmacs", "lr", "published", "distance", "distance_std"]].to_numpy().tolist()
    header = ["model", "GMACs", "learning rate", "published FID-50K at 400K steps"]
    generator = bool(rows["fd_generator"].notna().any())
    header += [distance_title(rows["features"].iloc[0], generator), "± SD"]
    return header, [[name, *row] for name, row in zip(names, values, strict=True)], lines
