"""What distances and curves are called, and in which order curves stand."""

from typing import Any

import pandas as pd

from benchmarks.results.columns import BY_NAME

# what may tell curves apart
CURVE = ["model", "size", "seed", "objective", "sampler", "guidance", "budget", "dtype", "variant"]
FAMILIES = ["unet", "dit", "ar"]  # the order of curves and rows; others follow by name
FEW = "N or M < 2d: mostly bias"


def distance_name(features: str) -> str:
    """FID only for the FID Inception network's features, FD[...] for any other."""
    return "FID" if features == "inception" else f"FD[{features}]"


def distance_label(row: pd.Series) -> str:
    """What an axis shows: which distance, of how many samples, against how many images."""
    better = "lower" if BY_NAME["fd"].better < 0 else "higher"
    name = f"{distance_name(row['features'])} ({better} is better)"
    sizes = f"N={row['num_samples']:.0f}, M={row['reference_images']:.0f}, {row['data']}"
    return "\n".join([name, sizes, FEW] if too_few(row) else [name, sizes])


def too_few(row: pd.Series) -> bool:
    """Whether N or M is below twice the features' dimensions, where the distance is mostly bias."""
    smaller = min(row["num_samples"], row["reference_images"])
    return bool(smaller < 2 * (row["features_dim"] or 0))


def curve_names(rows: pd.DataFrame) -> pd.Series:
    """One name per row: the model, and whatever else tells its curves apart.

    Rows of a choice (`verdicts.own_best`) are named by their `pick`. Others are named by sampler
    and guidance; the latter is in every name where it differs for any model.
    """
    columns = [name for name in CURVE if name not in ("model", "variant")]
    if "pick" in rows:
        columns = [name for name in columns if name not in ("sampler", "guidance")]
    varies = rows.groupby("model", dropna=False)[columns].nunique(dropna=False) > 1
    if "guidance" in columns:
        varies["guidance"] = varies["guidance"].any()

    def name(row: pd.Series) -> str:
        words = [str(row["model"])]
        words += [_setting(c, row[c]) for c in columns if varies.loc[row["model"], c]]
        words += [row["variant"], row.get("pick")]
        return ", ".join(word for word in words if word)

    return rows.apply(name, axis=1)


def _setting(column: str, value: Any) -> str:
    return f"{column} {value:.3g}" if isinstance(value, float) else f"{column} {value}"


def names_without_seeds(rows: pd.DataFrame) -> pd.Series:
    """`curve_names` that leave the training seed out: for what is averaged over seeds."""
    return curve_names(rows.assign(seed=0))


def in_order(rows: pd.DataFrame) -> list[str]:
    """The values of `curve`, by family, then by name."""
    family = rows.groupby("curve")["family"].first()
    rank = {name: place for place, name in enumerate(FAMILIES)}
    return sorted(family.index, key=lambda name: (rank.get(family[name], len(FAMILIES)), name))
