"""What a careful reader must know before quoting a panel's numbers."""

import pandas as pd

from benchmarks.analysis import verdicts
from benchmarks.analysis.curves import names_without_seeds, too_few
from benchmarks.analysis.panel import Panel
from benchmarks.results.tables import show

SHARED = ("autoencoder", "codebook", "judge")  # the networks that come with the suite


def notes(panel: Panel, record: dict) -> list[str]:
    """Markdown items; `record` is that of the panel's first row."""
    lines = _floors(panel)
    lines.append(
        "± SD is the bootstrap over images; it does not cover retraining. "
        f"{panel.rows['seed'].nunique()} training seed(s)."
    )
    if panel.distance != "FID":
        lines.append(
            f"{panel.distance} compares with other {panel.distance} values on the same images "
            "only, never with a published FID."
        )
    lines += _few_images(panel.first) + _copies(panel.first) + _at_the_edge(panel)
    lines += _seen_before(panel.first, record)
    if record.get("probe_split") == "holdout":
        lines.append(
            "The probe behind label accuracy is fitted on the hold-out, because the feature "
            "extractor may have trained on the training images."
        )
    if record.get("skipped"):
        lines.append(
            f"{len(record['skipped'])} unreadable image(s) of the data were left out, "
            f"e.g. {record['skipped'][0]}."
        )
    return [f"- {line}" for line in lines]


def _floors(panel: Panel) -> list[str]:
    """The distances that real images get, the anchor, and the label accuracy of real images."""
    row, name = panel.first, panel.distance
    lines = [
        f"Floors are the {name} of {row['num_samples']:.0f} unseen real images against the same "
        f"{row['reference_images']:.0f} reference images.",
        f"Floor of these images as they are: {show(row['fd_floor_real'])} "
        f"(what N and M alone explain: {show(row['fd_floor_analytic'])}).",
    ]
    if pd.notna(row["fd_floor_autoencoder"]):
        lines.append(
            f"Floor through the autoencoder: {show(row['fd_floor_autoencoder'])}; "
            f"through the codebook: {show(row['fd_floor_codebook'])}."
        )
    anchor = row["diagnostics"].get("fd_anchor")
    if anchor:
        lines.append(f"Images that keep only their mean colour: {show(anchor)}.")
    accuracy, chance = show(row["label_accuracy_real"]), show(1 / row["num_classes"])
    lines.append(f"Label accuracy of held-out real images: {accuracy}; chance: {chance}.")
    return lines


def _few_images(row: pd.Series) -> list[str]:
    """The warning that a distance of so few images needs."""
    if not too_few(row):
        return []
    sizes = f"N = {row['num_samples']:.0f} or M = {row['reference_images']:.0f}"
    return [
        f"WARNING: {sizes} is below twice the {row['features_dim']:.0f} feature dimensions: the "
        "distance is mostly bias, and the analytic floor, an expansion for many images, is too low."
    ]


def _copies(row: pd.Series) -> list[str]:
    diagnostics = row["diagnostics"]
    if diagnostics.get("memorised_expected") is None:
        return []
    return [
        f"Memorised fraction: of {diagnostics['train_images_searched']} training images; "
        f"without copying it is {show(diagnostics['memorised_expected'])}."
    ]


def _at_the_edge(panel: Panel) -> list[str]:
    """Of a sweep over guidance, the models whose best at their most steps is the largest scale
    tried, so that more may be better still.
    """
    if panel.rows["guidance"].nunique() < 2:
        return []
    rows = verdicts.split_heun(panel.rows)
    rows = rows.assign(curve=names_without_seeds(rows))
    largest = rows.groupby("curve")["guidance"].max()
    best = panel.best_of_seeds
    best = best[best["steps"] == best.groupby("curve")["steps"].transform("max")]
    names = []
    for _, row in best.drop_duplicates("curve").iterrows():
        if 1 < row["guidance"] == largest[row["curve"]]:
            names.append(f"{row['curve']} ({row['guidance']:g})")
    if not names:
        return []
    return [
        "Best at the largest guidance tried, so perhaps better still beyond it: "
        f"{', '.join(sorted(names))}."
    ]


def _seen_before(row: pd.Series, record: dict) -> list[str]:
    """Which of the shared networks may have been trained on this panel's images or classes."""
    lines = []
    shipped, overlap = record.get("shipped", []), record.get("overlap")
    aside = set(record.get("aside", [])) & {"reference", "holdout"}
    if aside and "judge" in shipped and overlap != []:
        lines.append(
            "WARNING: the reference or hold-out images were set aside from the training folder, "
            "which the shipped judge may have trained on."
        )
    unknown = [name for name in SHARED if name not in shipped or overlap is None]
    if unknown:
        lines.append(f"Whether these classes are new to this {', '.join(unknown)} is not known.")
    if overlap and shipped:
        examples = ", ".join(overlap[:3]) + (", ..." if len(overlap) > 3 else "")
        lines.append(
            f"The shipped {', '.join(shipped)} were trained on images of {len(overlap)} of these "
            f"{row['num_classes']:.0f} classes ({examples}): they are not new to them."
        )
    return lines
