"""Which rows share a panel, and what their curves are called and how they are ordered."""

import pandas as pd

from benchmarks.results.columns import BY_NAME

GROUP = [
    "data",
    "image_size",
    "autoencoder",
    "features",
    "num_samples",
    "reference_images",
    "device",
    "judged_by",
]
CURVE = ["model", "size", "seed", "objective", "sampler", "guidance", "budget", "dtype", "variant"]
FEW = "N or M < 2d: mostly bias"
FAMILIES = ["unet", "dit", "ar"]  # the order of curves and rows; others follow by name


def groups(rows: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """Rows that may share an axis: same data, judge, sample sizes and machine; with a title that
    says which.
    """
    found = []
    for key, part in rows.groupby(GROUP, dropna=False, sort=True):
        data, size, autoencoder, features, n, m, device, _ = key
        found.append(
            (
                f"{data} {size:.0f} px, {autoencoder} latents, N={n:.0f}, M={m:.0f}, {features}\n{device}",
                part,
            )
        )
    return found


def curve_names(part: pd.DataFrame) -> pd.Series:
    """One name per row: the model, and whatever else tells its curves apart.

    Rows of a choice (`verdicts.own_best`) are named by their `pick`, others by sampler and
    guidance, the latter everywhere where it differs for one model.
    """
    columns = [
        name for name in CURVE[1:] if "pick" not in part or name not in ("sampler", "guidance")
    ]
    counts = part.groupby("model", dropna=False)[columns].nunique(dropna=False) > 1
    if "guidance" in columns:
        counts["guidance"] = counts["guidance"].any()

    def name(row: pd.Series) -> str:
        varying = [
            column for column in columns if column != "variant" and counts.loc[row["model"], column]
        ]
        extras = [
            f"{c} {row[c]:.3g}" if isinstance(row[c], float) else f"{c} {row[c]}" for c in varying
        ]
        return ", ".join(
            filter(None, [str(row["model"]), *extras, row["variant"], row.get("pick")])
        )

    return part.apply(name, axis=1)


def in_order(part: pd.DataFrame) -> list[str]:
    """Curve names of a panel, by family, then by name."""
    family = part.groupby("curve")["family"].first()
    return sorted(
        family.index,
        key=lambda name: (FAMILIES.index(family[name]) if family[name] in FAMILIES else 9, name),
    )


def distance_name(features: str) -> str:
    """FID only for the FID Inception network's features, FD[...] for any other."""
    return "FID" if features == "inception" else f"FD[{features}]"


def distance_label(part: pd.DataFrame) -> str:
    """What an axis shows: which distance, of how many pictures, against how many, and where that is
    mostly bias.
    """
    row = part.iloc[0]
    sizes = f"N={row['num_samples']:.0f} samples against M={row['reference_images']:.0f} {row['data']} pictures"
    few = f"\n{FEW}" * too_few(row)
    return f"{distance_name(row['features'])} ({'lower' if BY_NAME['fd'].better < 0 else 'higher'} is better)\n{sizes}{few}"


def too_few(row: pd.Series) -> bool:
    """Whether N or M is below twice the features' dimensions, where the distance is mostly bias."""
    return bool(min(row["num_samples"], row["reference_images"]) < 2 * (row["features_dim"] or 0))
