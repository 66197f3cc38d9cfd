"""The main tables of a panel: what was measured, and what training it took."""

import re

import pandas as pd

from benchmarks.analysis.choices import is_borrowed
from benchmarks.analysis.curves import FEW, distance_name, too_few
from benchmarks.analysis.panel import Panel
from benchmarks.core.text import printable
from benchmarks.results.columns import BY_NAME, ERRORS, is_busy, is_unsteady
from benchmarks.results.tables import show

MEASURED = [
    "steps",
    "nfe",
    "guidance",
    "trainings",
    "fd_generator",
    "kid_generator",
    "fd",
    "recall",
    "label_accuracy",
    "gmacs_generator",
    "gmacs_decoder",
    "gflops_per_image",
    "seconds_per_image",
    "images_per_second",
    "latency_seconds",
    "peak_memory_mb",
]
IN_TERMINAL = ["steps", "nfe", "guidance", "fd_generator", "kid_generator", "fd"]
IN_TERMINAL += ["gmacs_generator", "gmacs_decoder", "seconds_per_image", "latency_seconds"]
TRAINED = [
    "model",
    "size",
    "seed",
    "objective",
    "dtype",
    "variant",
    "params_m",
    "train_images",
    "train_flops",
    "train_seconds",
    "train_processes",
    "train_images_per_second",
    "train_utilisation",
]
WHERE_VARIED = ["objective", "dtype", "variant"]  # of these columns
# what depends on the features is called by their name
NAMED = {
    "fd_generator": "generator-only {distance}",
    "kid_generator": "generator-only KID[{features}]",
    "fd": "{distance}, decoder included",
    "kid": "KID[{features}], decoder included",
}
ARROWS = {-1: "↓", 1: "↑", 0: ""}  # towards better


def heading(name: str, features: str) -> str:
    """A column's heading: its name, its unit, and an arrow towards better."""
    column = BY_NAME.get(name)
    if column is None:
        return "differs in" if name == "variant" else name
    label = re.sub("_(m|mb|seconds)$", "", name).replace("_", " ")
    if name in NAMED:
        label = NAMED[name].format(distance=distance_name(features), features=features)
    # "seconds per image" says its unit already
    unit = f"({column.unit})" if column.unit and " per " not in label else ""
    return " ".join(word for word in (label, unit, ARROWS[column.better]) if word)


def measured(panel: Panel, wanted: list[str] = MEASURED) -> tuple[list[str], list[list[object]]]:
    """Header and rows of what was measured, a block a curve, in the panel's order; each measure of
    quality with its error.
    """
    columns = [name for name in wanted if panel.shown[name].notna().any()]
    if (panel.by_training.groupby("model")["sampler"].nunique() > 1).any():
        columns.insert(columns.index("guidance"), "sampler")
    header = ["model", *(heading(name, panel.features) for name in columns)]
    if too_few(panel.first):
        header = [f"{name} ({FEW})" if "FD[" in name else name for name in header]
    rows = []
    for name in panel.names:
        for _, row in panel.curve(name).sort_values(["steps", "guidance"]).iterrows():
            rows.append([name, *(cell(row, column) for column in columns)])
    return header, rows


def cell(row: pd.Series, column: str) -> object:
    """A value, with its error where it has one; seconds that may be too high are marked, and step
    counts that have the settings of others.
    """
    if column == "steps" and is_borrowed(row):
        return f"{show(row[column])}, settings of {show(row['tuned_at'])}"
    if is_busy(row, column):
        return f"{show(row[column])} (busy)"
    if is_unsteady(row, column):
        return f"{show(row[column])} (unsteady)"
    if column not in ERRORS or pd.isna(row[column]):
        return row[column]
    return f"{show(row[column])} ± {row[ERRORS[column]]:.2g}"


def trained(panel: Panel) -> tuple[list[str], list[list[object]]]:
    """Header and rows of the training table: one row per trained network."""
    rows = panel.rows.drop_duplicates("training")
    varied = rows[WHERE_VARIED].groupby(rows["model"]).nunique(dropna=False).max()
    columns = [name for name in TRAINED if name not in WHERE_VARIED or varied[name] > 1]
    if not (rows["train_processes"] > 1).any():
        columns.remove("train_processes")
    cells = [[cell(row, name) for name in columns] for _, row in rows.iterrows()]
    return [heading(name, "") for name in columns], cells


def as_text(panel: Panel) -> list[str]:
    """The table of what was measured, for a terminal."""
    header, rows = measured(panel, IN_TERMINAL)
    cells = [header] + [[show(value) for value in row] for row in rows]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    lines = ["", panel.title.replace("\n", ", ")]
    for row in cells:
        lines.append("  ".join(c.rjust(w) for c, w in zip(row, widths, strict=True)))
    return lines


def explained() -> list[str]:
    """What each column of both tables means, one line each."""
    names = [name for name in [*MEASURED, *TRAINED] if name in BY_NAME]
    return [f"- {heading(name, 'local')}: {BY_NAME[name].meaning}" for name in names]


def failures(records: list[dict], variants: list[str]) -> list[str]:
    """One line for each record that failed or diverged: which network, which measurement, why."""
    lines = []
    for record, variant in zip(records, variants, strict=True):
        row = record["row"]
        if row["status"] == "ok":
            continue
        words = [f"{row['model']} {row['size']} seed {row['seed']}", variant]
        if row.get("steps"):
            words.append(f"{row['steps']} steps, guidance {row['guidance']:g}, {row['sampler']}")
        name = ", ".join(word for word in words if word)
        lines.append(f"{row['status']}: {name}: {printable(record.get('reason') or '')}")
    return lines


def code_versions(rows: pd.DataFrame) -> list[str]:
    """By which commits and versions of torch these rows were made, and a warning where by several
    states of the code.
    """
    lines = []
    versions = rows[["git_sha", "git_dirty", "torch"]].drop_duplicates().astype(str)
    for sha, dirty, torch in versions.values.tolist():
        changed = " with uncommitted changes" if dirty == "True" else ""
        code = "Code of an unknown commit" if sha in ("None", "nan") else f"Code {sha}"
        lines.append(f"{code}{changed}, torch {torch}.")
    commits = rows["git_sha"].astype(str) + rows["git_dirty"].astype(str)
    states = rows["code_digest"].fillna(commits).nunique()
    if states > 1:
        lines.append(
            f"WARNING: these rows are of {states} states of the code. They compare only where no "
            "version number should have been raised between them; people raise these by hand."
        )
    return lines
