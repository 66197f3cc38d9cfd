"""Which rows stand for a network: its settings as configured, or those chosen by tuning; several
samplings and several trainings as their means.
"""

import math
import re
from typing import Any

import pandas as pd

from benchmarks.results.columns import ERRORS

# what is trained; another seed is the same again
RECIPE = ["model", "size", "objective", "budget", "dtype", "variant"]
CHOSEN = "tuned"  # the `pick` of rows whose settings were chosen
GUIDE = re.compile(r"guide snapshot:[\d.]+")  # in the name of a sampler: earlier weights guide
SEVERAL = "several"  # samplers, behind a mean
MEASURES = (
    "distance",
    *ERRORS,
    "fd_generator_full",
    "label_accuracy",
    "precision",
    "recall",
    "density",
    "coverage",
    "memorised_fraction",
    "nfe",
    "gmacs_generator",
    "gmacs_decoder",
    "gflops_per_image",
    "seconds_per_image",
    "images_per_second",
    "latency_seconds",
    "batch_seconds_spread",
    "others_cpu",
    "others_gpu",
    "peak_memory_mb",
)
WITH_ERRORS = {"distance": "distance_std"} | ERRORS


def picked(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows with a column `pick`, which names those whose settings were chosen, and is empty for
    settings as configured. Who guides was not chosen, so that it is a part of the name.
    """
    samplers = rows["sampler"] if "sampler" in rows else [""] * len(rows)
    guides = [GUIDE.search(str(sampler)) for sampler in samplers]
    names = [f"{CHOSEN}, {guide[0]}" if guide else CHOSEN for guide in guides]
    return rows.assign(
        pick=[name if chosen else "" for name, chosen in zip(names, rows["chosen"], strict=True)]
    )


def leading_rows(rows: pd.DataFrame) -> pd.DataFrame:
    """Of each recipe the rows of its chosen settings; where nothing was chosen, all of them."""
    recipe = [rows[name] for name in RECIPE if name in rows]
    tuned = rows["chosen"].groupby(recipe, dropna=False).transform("any")
    return rows[rows["chosen"] | ~tuned]


def is_borrowed(rows: pd.DataFrame | pd.Series) -> Any:
    """Whether settings were chosen at another step count than their own; of a row, or of each."""
    return pd.notna(rows["tuned_at"]) & (rows["tuned_at"] != rows["steps"])


def searched(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows whose settings are as configured, or were chosen at their own step count."""
    return rows[~is_borrowed(rows)]


def over_samplings(rows: pd.DataFrame) -> pd.DataFrame:
    """Several samplings of the same weights and setting as their mean; errors stay one's."""
    keys = ["training", "train_fraction", "steps", "guidance", "sampler", "pick"]
    samplings = rows.groupby([name for name in keys if name in rows], dropna=False)
    if samplings.ngroups == len(rows):
        return rows
    means = samplings[[name for name in MEASURES if name in rows]].transform("mean")
    errors = {
        name: samplings[name].transform(lambda std: (std**2).mean() ** 0.5)
        for name in WITH_ERRORS.values()
        if name in rows
    }
    return rows.assign(**means, **errors)[samplings.cumcount() == 0]


def over_trainings(rows: pd.DataFrame) -> pd.DataFrame:
    """One row for each curve and step count: means over its trainings, the errors of those means,
    and `trainings`, how many there are.

    Trainings differ by their samples, too, so their variance holds both. With few it may come out
    below the samples' own, which it cannot be: the larger is taken.
    """
    means = []
    for _, same in rows.groupby(["curve", "steps"], sort=False):
        count = same["training"].nunique()
        measures = [name for name in MEASURES if name in same]
        row = {**same.iloc[0], **same[measures].mean(), "trainings": count}
        # trainings may have chosen differently: no one's settings stand for all
        if "guidance" in same and same["guidance"].nunique() > 1:
            row["guidance"] = math.nan
        if "sampler" in same and same["sampler"].nunique() > 1:
            row["sampler"] = SEVERAL
        for name, error in WITH_ERRORS.items():
            if count > 1 and name in same and error in same:
                variance = max((same[error] ** 2).mean(), same[name].var())
                row[error] = math.sqrt(variance / count)
        means.append(row)
    return pd.DataFrame(means)
