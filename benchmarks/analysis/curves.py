"""What distances and curves are called, and in which order curves stand."""

import re
from typing import Any

import pandas as pd

# what may tell curves apart
CURVE = ["model", "size", "seed", "objective", "sampler", "guidance", "budget", "dtype", "variant"]
FAMILIES = ["unet", "dit", "ar"]  # the order of curves and rows; others follow by name
HEAD = "head "  # begins what a variant says of the head of a network
FEW = "N or M < 2d: mostly bias"


def distance_name(features: str) -> str:
    """FID only for the FID Inception network's features, FD[...] for any other."""
    return "FID" if features == "inception" else f"FD[{features}]"


def distance_title(features: str, generator: bool) -> str:
    """What the leading distance is called: of the generator alone where there is such a one."""
    name = distance_name(features)
    return f"generator-only {name}" if generator else name


def distance_label(row: pd.Series, name: str) -> str:
    """What an axis shows: which distance, of how many samples, against how many images."""
    title = f"{name} (lower is better)"
    sizes = f"N={row['num_samples']:.0f}, M={row['reference_images']:.0f}, {row['data']}"
    return "\n".join([title, sizes, FEW] if too_few(row) else [title, sizes])


def too_few(row: pd.Series) -> bool:
    """Whether N or M is below twice the features' dimensions, where the distance is mostly bias."""
    smaller = min(row["num_samples"], row["reference_images"])
    return bool(smaller < 2 * (row["features_dim"] or 0))


def curve_names(rows: pd.DataFrame) -> pd.Series:
    """One name per row: the model, and whatever else tells its curves apart.

    Rows whose settings were chosen are named by their `pick`. Others are named by sampler and
    guidance where these differ among them; guidance is in every name where it differs for any.
    """
    pick = rows["pick"] if "pick" in rows else pd.Series("", index=rows.index)
    columns = [name for name in CURVE if name != "model"]
    settings = ["sampler", "guidance"]
    network = [name for name in columns if name not in (*settings, "variant")]
    varies = rows.groupby("model", dropna=False)[network].nunique(dropna=False) > 1
    as_set = rows[pick == ""].groupby("model", dropna=False)[settings].nunique(dropna=False) > 1
    as_set["guidance"] = as_set["guidance"].any()

    def name(row: pd.Series, choice: str) -> str:
        words = [str(row["model"])]
        # what a head is trained for is said by its name
        told = [c for c in network if c != "objective" or HEAD not in row["variant"]]
        words += [_setting(c, row[c]) for c in told if varies.loc[row["model"], c]]
        if not choice:
            words += [_setting(c, row[c]) for c in settings if as_set.loc[row["model"], c]]
        words += [row["variant"], choice]
        return ", ".join(word for word in words if word)

    named = [name(row, choice) for (_, row), choice in zip(rows.iterrows(), pick, strict=True)]
    return pd.Series(named, index=rows.index)


def _setting(column: str, value: Any) -> str:
    return f"{column} {value:.3g}" if isinstance(value, float) else f"{column} {value}"


def names_without_seeds(rows: pd.DataFrame) -> pd.Series:
    """`curve_names` that leave the training seed out: for what is averaged over seeds."""
    return curve_names(rows.assign(seed=0))


def in_order(rows: pd.DataFrame) -> list[str]:
    """The values of `curve`, by family, then by name, whose numbers count as numbers."""
    family = rows.groupby("curve")["family"].first()
    rank = {name: place for place, name in enumerate(FAMILIES)}

    def place(name: str) -> tuple:
        # every second part is a number, so that texts meet texts: block 2 before block 16
        parts = re.split(r"(\d+\.?\d*(?:e[-+]?\d+)?)", name)
        parts[1::2] = map(float, parts[1::2])
        return rank.get(family[name], len(FAMILIES)), parts

    return sorted(family.index, key=place)
