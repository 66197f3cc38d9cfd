"""What a careful reader must know before quoting a panel's numbers."""

import pandas as pd

from benchmarks.analysis.curves import distance_name, too_few
from benchmarks.analysis.differences import LEAST_RECALL
from benchmarks.analysis.panel import Panel
from benchmarks.reports.judge_rules import rule_notes
from benchmarks.results.columns import BUSY, UNSTEADY
from benchmarks.results.records import ELSEWHERE
from benchmarks.results.tables import show

SHARED = ("autoencoder", "codebook", "judge")  # the networks that come with the suite


def notes(panel: Panel, record: dict) -> list[str]:
    """Markdown items; `record` is that of the panel's first row."""
    name = distance_name(panel.features)
    lines = _generator_floors(panel) + _system_floors(panel) + _accuracies(panel)
    lines.append(
        "± is the bootstrap over images, or the error of a mean over trainings where there are "
        f"several. {panel.rows['seed'].nunique()} training seed(s)."
    )
    if name != "FID":
        lines.append(
            f"{name} compares with other {name} values on the same images "
            "only, never with a published FID."
        )
    lines += rule_notes(panel)
    lines += _worse_than_colours(panel)
    lines += _few_images(panel.first) + _copies(panel.first)
    lines += _seen_before(panel, record)
    lines += _trained_elsewhere(panel)
    if record.get("probe_split") == "holdout":
        lines.append(
            "The probe behind label accuracy is fitted on the hold-out, because the feature "
            "extractor may have trained on the training images."
        )
    if record.get("probe_split") == "head":
        lines.append(
            "Label accuracy is by the feature extractor's own classifier, between these classes."
        )
    if record.get("skipped"):
        lines.append(
            f"{len(record['skipped'])} unreadable image(s) of the data were left out, "
            f"e.g. {record['skipped'][0]}."
        )
    lines += _beside_other_programs(panel.rows)
    if record.get("left_out"):
        lines.append(f"Left out of the data's folder: {record['left_out']}.")
    lines += [f"WARNING: {line}." for line in record.get("repeated", [])]
    return [f"- {line}" for line in lines]


def trained_on(records: list[dict]) -> list[str]:
    """Where the networks of a panel were trained, which need not be where they were sampled."""
    where = [record.get("trained_by") or {} for record in records]
    devices = sorted({machine["device"] for machine in where if machine.get("device")})
    return [f"Trained on {', '.join(devices)}.", ""] if devices else []


def _beside_other_programs(rows: pd.DataFrame) -> list[str]:
    """Warnings that some rows were timed while other programs ran."""
    lines = []
    busy = rows["others_cpu"].max()
    if busy > BUSY:
        lines.append(
            f"WARNING: other programs took up to {busy:.0%} of the CPU while some rows were timed. "
            "Their seconds, marked busy, are too high."
        )
    spread = rows["batch_seconds_spread"].max()
    if spread > UNSTEADY:
        lines.append(
            f"WARNING: batches of one row took up to {spread:.0%} longer, at the median, than the "
            "fastest of them, as where something else slows the machine. Seconds marked unsteady "
            "may be too high."
        )
    busy_gpu = rows["others_gpu"].max()
    if busy_gpu > BUSY:
        lines.append(
            f"WARNING: other programs held up to {busy_gpu:.0%} of the GPU's memory while some "
            "rows were timed. Their seconds, marked busy, are likely too high."
        )
    return lines


def refused(panel: Panel) -> str:
    """Why no verdict on quality may be drawn from a panel; empty where one may."""
    recall = panel.first["recall_autoencoder"]
    if pd.notna(recall) and recall < LEAST_RECALL:
        return (
            f"No verdict: real images through the autoencoder have a recall of {show(recall)} "
            f"against images as they are, below {LEAST_RECALL}. The decoder hides too much."
        )
    if _worse_than_colours(panel):
        return "No verdict: images that keep only their mean colour would have lower distances."
    return ""


def _generator_floors(panel: Panel) -> list[str]:
    """What the leading distance is, and what it is for real images."""
    row = panel.first
    if pd.isna(row["fd_generator"]):
        return []
    floors, kernels = (
        (
            show(row[f"{name}_floor_real"]),
            _by_codebook(panel.floors_through_codebooks(f"{name}_floor_codebook")),
        )
        for name in ("fd_generator", "kid_generator")
    )
    samples, reference = f"{row['num_samples']:.0f}", f"{row['reference_images']:.0f}"
    return [
        f"{panel.distance[0].upper() + panel.distance[1:]} is the distance to the {reference} "
        "reference images *passed through the autoencoder*: what the generator alone loses.",
        f"Its floor, of {samples} unseen real images: {floors[0]}; through the codebook, for "
        f"models of tokens: {floors[1]}. KID: {kernels[0]} and {kernels[1]}. Compare with these, "
        "not with zero: with as many images of every class both are a little below it for equals.",
    ]


def _by_codebook(floors: dict[str, float]) -> str:
    """Floors of one or several codebooks in words."""
    words = [f"{show(value)} ({name})" if name else show(value) for name, value in floors.items()]
    return " or ".join(words)


def _system_floors(panel: Panel) -> list[str]:
    """The distances that real images have to the reference images as they are."""
    row, name = panel.first, distance_name(panel.features)
    lines = [
        f"{name} is the distance to the reference images as they are: the system, decoder "
        f"included. Floor of unseen real images: {show(row['fd_floor_real'])} "
        f"(what N and M alone explain: {show(row['fd_floor_analytic'])}).",
    ]
    if pd.notna(row["fd_floor_autoencoder"]):
        lines.append(
            f"The same through the autoencoder: {show(row['fd_floor_autoencoder'])}; through the "
            f"codebook: {show(row['fd_floor_codebook'])}. Samples that undo its blur may go below."
        )
    anchor = _anchor(panel)
    if anchor:
        lines.append(f"Images that keep only their mean colour: {show(anchor)}.")
    return lines


def _accuracies(panel: Panel) -> list[str]:
    row = panel.first
    real, chance = show(row["label_accuracy_real"]), show(1 / row["num_classes"])
    ceiling = row["label_accuracy_ceiling"]
    through = "" if pd.isna(ceiling) else f"through the autoencoder {show(ceiling)}, "
    return [f"Label accuracy of real images: {through}as they are {real}; chance {chance}."]


def _anchor(panel: Panel) -> float | None:
    """The leading distance of images that keep only their mean colour."""
    diagnostics = panel.first["diagnostics"]
    return diagnostics.get("fd_generator_anchor") or diagnostics.get("fd_anchor")


def _worse_than_colours(panel: Panel) -> list[str]:
    """The warning that nothing here is worth a verdict."""
    anchor, best = _anchor(panel), panel.shown["distance"].min()
    if not anchor or best < anchor:
        return []
    return [
        f"WARNING: even the lowest distance, {show(best)}, is above that of images that keep only "
        "their mean colour: no verdict is given."
    ]


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


def _trained_elsewhere(panel: Panel) -> list[str]:
    """What is not known of models that were trained elsewhere, and whether their labels fit."""
    rows = panel.rows[panel.rows["family"] == ELSEWHERE]
    if rows.empty:
        return []
    lines = [
        "Trained elsewhere: the budget is unknown, and whether these very images were among those "
        "that it was trained on, too. Precision, recall, density and coverage are to the images as "
        "they are."
    ]
    real = panel.first["label_accuracy_real"]
    for name, of_model in rows.groupby("model"):
        how = of_model["diagnostics"].iloc[0].get("labels_by")
        if how:
            lines.append(f"{name}: its labels are matched to the classes {how}.")
        best = of_model["label_accuracy"].max()
        mend = "Give model.labels=[...]." if how else "Its class decides what a label means."
        if best < real / 2:
            lines.append(
                f"WARNING: the classifier finds the class that was asked for in {best:.0%} of the "
                f"samples of {name}, and in {real:.0%} of real images. Are the labels in another "
                f"order? {mend}"
            )
    return lines


def _seen_before(panel: Panel, record: dict) -> list[str]:
    """Which of the shared networks may have been trained on this panel's images or classes."""
    lines, row = [], panel.first
    shipped, overlap = record.get("shipped", []), record.get("overlap")
    aside = set(record.get("aside", [])) & {"reference", "holdout"}
    if aside and "judge" in shipped and overlap != []:
        lines.append(
            "WARNING: the reference or hold-out images were set aside from the training folder, "
            "which the shipped judge may have trained on."
        )
    shared = ("judge",) if row["family"] == ELSEWHERE else SHARED
    fitted = panel.rows["codebook"].astype(str).str.startswith("fitted").any()
    if fitted:
        lines.append("Codebooks that are called fitted were fitted on the training images.")
    known = {"codebook"} if fitted else set()
    if record.get("probe_split") == "head":  # its own classes are those of ImageNet
        lines.append("This judge was trained on ImageNet, which holds these classes.")
        known.add("judge")
    unknown = [
        name for name in shared if name not in known and (name not in shipped or overlap is None)
    ]
    if unknown:
        names = " and this ".join(unknown)
        lines.append(f"Whether these classes are new to this {names} is not known.")
    if overlap and shipped:
        examples = ", ".join(overlap[:3]) + (", ..." if len(overlap) > 3 else "")
        lines.append(
            f"The shipped weights ({', '.join(shipped)}) were trained on images of "
            f"{len(overlap)} of these {row['num_classes']:.0f} classes ({examples})."
        )
    return lines
