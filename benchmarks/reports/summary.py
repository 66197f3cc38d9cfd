"""Records to a report: tables, summary.md, plots and sample grids. `make report` does this alone.

A published folder (`publish.py`) stays one: its records stay compressed, and only the figures that
it keeps are drawn anew.
"""

import re
import tempfile
from pathlib import Path

import pandas as pd

from benchmarks.analysis import diagnostics, dit_paper_ranks, verdicts
from benchmarks.analysis.curves import FEW, curve_names, distance_name, groups, in_order, too_few
from benchmarks.core.store import atomic_file
from benchmarks.reports import grids, plots
from benchmarks.reports.shrink import FIGURE_BYTES, FIGURES, shrink
from benchmarks.results import archive, records
from benchmarks.results.columns import BY_NAME, NAMES
from benchmarks.results.tables import markdown, show


def build_report(folder: Path) -> str:
    """Rebuild everything in `folder` from its records; returns table and paths, for a terminal.

    Raises BadInput where the gathered records are damaged.
    """
    everything = records.read(folder)
    found = records.current(everything)
    if not found:
        return f"{folder}: no records yet"
    if len(found) < len(everything):
        print(
            f"{folder}: {len(everything) - len(found)} record(s) of earlier versions of the models or libraries are left out"
        )
    table = records.table(found)
    with atomic_file(folder / "results.csv") as path:
        table[NAMES].to_csv(path, index=False)
    good = table[table["status"] == "ok"]
    whole = good[good["train_fraction"] == 1]  # weights kept on the way have a plot of their own
    paths = [folder / "results.csv", records.gather(folder, found), folder / "summary.md"]
    if archive.is_published(folder):
        paths += _published_figures(table, found, folder)
    else:
        paths += _figures(table, found, folder / "plots")
    paths += _sample_grids(whole, folder) if len(whole) else []
    summary = "\n".join(_summary(table, whole, found, folder))
    with atomic_file(folder / "summary.md") as path:
        path.write_text(summary + "\n")
    return "\n".join([_terminal(whole), *_failures(found), "", *map(str, paths)])


def _figures(table: pd.DataFrame, found: list[dict], place: Path) -> list[Path]:
    """Every plot that these records allow, drawn into the folder `place`."""
    good = table[table["status"] == "ok"]
    whole = good[good["train_fraction"] == 1]
    paths = []
    if len(whole):
        paths += [plots.distance_plot(whole, x, place) for x in plots.AXES]
        paths += [plots.training_plot(good, place), plots.guidance_plot(whole, place)]
    pairs = zip(found, table["variant"], strict=True)
    logs = [pair for pair in pairs if pair[0]["row"].get("train_fraction") == 1]
    return list(filter(None, [*paths, plots.loss_plot(logs, place)]))


def _published_figures(table: pd.DataFrame, found: list[dict], folder: Path) -> list[Path]:
    """The figures that a published folder keeps (without any: `FIGURES`), drawn anew and small."""
    kept = {path.stem for path in (folder / "plots").glob("*.png")} or set(FIGURES)
    with tempfile.TemporaryDirectory() as place:
        drawn = [path for path in _figures(table, found, Path(place)) if path.stem in kept]
        return [shrink(path, folder / "plots" / path.name, FIGURE_BYTES) for path in drawn]


def _sample_grids(whole: pd.DataFrame, folder: Path) -> list[Path]:
    """The grids of samples, where the strips they are made of are still there.

    Grids of a group that is no more go then; without strips all grids stay as they are.
    """
    strips, place = folder / "records", folder / "samples"
    paths = grids.sample_grids(whole, strips, place) + grids.pairs_grid(whole, strips, place)
    for path in set(place.glob("*.png")) - set(paths) if paths else ():
        path.unlink()
    return paths


POINTS = [
    "steps",
    "nfe",
    "guidance",
    "fd",
    "fd_std",
    "label_accuracy",
    "gflops_per_image",
    "seconds_per_image",
]
POINTS += ["images_per_second", "latency_seconds", "peak_memory_mb"]
TRAINING = [
    "model",
    "size",
    "seed",
    "variant",
    "params_m",
    "train_images",
    "train_flops",
    "train_seconds",
]
TRAINING += ["train_images_per_second", "train_utilisation"]


def _header(name: str, features: str) -> str:
    """A column's heading: its name, its unit, and an arrow towards better."""
    column = BY_NAME.get(name)
    if column is None:
        return "differs in" if name == "variant" else name
    label = (
        distance_name(features)
        if name == "fd"
        else re.sub("_(m|mb|seconds)$", "", name).replace("_", " ")
    )
    unit = (
        f"({column.unit})" if column.unit and " per " not in label else ""
    )  # "seconds per image" says it already
    return " ".join(filter(None, [label, unit, {-1: "↓", 1: "↑", 0: ""}[column.better]]))


def _points(part: pd.DataFrame) -> tuple[list[str], list[list[object]]]:
    """Header and rows of the main table of one comparable group: of a sweep of guidance, each model
    without and at its own best.
    """
    part = verdicts.rows_to_show(part)
    columns = POINTS.copy()
    if (part.groupby("model")["sampler"].nunique() > 1).any():
        columns.insert(columns.index("guidance"), "sampler")
    header = ["model", *(_header(name, part["features"].iloc[0]) for name in columns)]
    header[1 + columns.index("fd")] += f" ({FEW})" * too_few(part.iloc[0])
    part = part.assign(curve=curve_names(part)).sort_values(["steps", "guidance"])
    rows = [
        part[part["curve"] == name][["curve", *columns]].values.tolist() for name in in_order(part)
    ]
    return header, [row for block in rows for row in block]


def _training(part: pd.DataFrame) -> tuple[list[str], list[list[object]]]:
    """Header and rows of the training table: one row per trained network."""
    columns = [name for name in TRAINING if name != "variant" or part["variant"].any()]
    part = part.assign(curve=curve_names(part)).drop_duplicates("training")
    return [_header(name, "") for name in columns], part[columns].values.tolist()


def _anchor(row: pd.Series) -> str:
    known = row["diagnostics"].get("fd_anchor")
    return (
        f"Pictures that have only a real picture's mean colour read {show(known)}. "
        if known
        else ""
    )


def _notes(part: pd.DataFrame, found: list[dict]) -> list[str]:
    """What a careful reader must know before quoting this group's numbers."""
    first = part.iloc[0]
    name = distance_name(first["features"])
    notes = [
        f"Floors, each {name} of {first['num_samples']:.0f} unseen real pictures against the same {first['reference_images']:.0f} reference "
        f"pictures: as they are {show(first['fd_floor_real'])} (analytic {show(first['fd_floor_analytic'])}), through the autoencoder "
        f"{show(first['fd_floor_autoencoder'])}, through the codebook {show(first['fd_floor_codebook'])}. "
        f"{_anchor(first)}Label accuracy of real held-out pictures: {show(first['label_accuracy_real'])}; chance: {show(1 / first['num_classes'])}.",
        f"± SD is the bootstrap over pictures; it does not cover retraining. {part['seed'].nunique()} training seed(s).",
    ]
    if name != "FID":
        notes.append(
            f"{name} compares with other {name} values on the same pictures only, never with a published FID."
        )
    details = next(r for r in found if r["row"]["run_id"] == first["run_id"])
    notes += _too_few(first)
    if first["diagnostics"].get("memorised_expected") is not None:
        said = first["diagnostics"]
        notes.append(
            f"Memorised share: of {said['train_images']} training pictures; {show(said['memorised_expected'])} is what no copying reads."
        )
    notes += _at_the_edge(part)
    notes += _seen_before(first, details)
    if details.get("probe_split") == "holdout":
        notes.append(
            "The probe behind label accuracy is fitted on the floor split, because the judge may have trained on the training pictures."
        )
    if details.get("skipped"):
        notes.append(
            f"{len(details['skipped'])} unreadable picture(s) of the data were left out, e.g. {details['skipped'][0]}."
        )
    return [f"- {note}" for note in notes]


def _too_few(first: pd.Series) -> list[str]:
    """The warning that a distance of so few pictures needs."""
    sizes = f"N = {first['num_samples']:.0f} or M = {first['reference_images']:.0f} is below twice the {first['features_dim']:.0f}"
    said = "feature dimensions: the distance is mostly bias, and the analytic floor, an expansion for many pictures, is too low."
    return [f"WARNING: {sizes} {said}"] if too_few(first) else []


def _at_the_edge(part: pd.DataFrame) -> list[str]:
    """Of a sweep over guidance, the models whose best at their most steps is the largest scale
    drawn, so that more may be better still.
    """
    if part["guidance"].nunique() < 2:
        return []
    part, best = (
        x.assign(curve=curve_names(_one(x)))
        for x in (verdicts.split_heun(part), verdicts.own_best(part))
    )
    best = best[best["steps"] == best.groupby("curve")["steps"].transform("max")].drop_duplicates(
        "curve"
    )
    most = part.groupby("curve")["guidance"].max()
    names = [
        f"{row['curve']} ({row['guidance']:g})"
        for _, row in best.iterrows()
        if 1 < row["guidance"] == most[row["curve"]]
    ]
    return (
        [
            f"Best at the largest guidance drawn, so perhaps better still beyond it: {', '.join(sorted(names))}."
        ]
        if names
        else []
    )


def _seen_before(first: pd.Series, details: dict) -> list[str]:
    """Which of the shared networks may have been trained on this group's pictures or classes."""
    notes = []
    if (
        set(details.get("aside", [])) & {"reference", "holdout"}
        and "judge" in details.get("shipped", [])
        and details.get("overlap") != []
    ):
        notes.append(
            "WARNING: the reference or floor pictures were set aside from the training folder, which the shipped judge may have trained on."
        )
    parts = details.get("shipped", [])
    if details.get("overlap") is None or len(parts) < 3:
        others = ", ".join(
            name
            for name in ("autoencoder", "codebook", "judge")
            if name not in parts or details.get("overlap") is None
        )
        notes.append(f"Whether these classes are new to this {others} is not known.")
    if details.get("overlap") and parts:
        seen, some = details["overlap"], ", ".join(details["overlap"][:3])
        notes.append(
            f"The shipped {', '.join(parts)} were trained on pictures of {len(seen)} of these "
            f"{first['num_classes']:.0f} classes ({some}{', ...' if len(seen) > 3 else ''}): they are not new to them."
        )
    return notes


def _failures(found: list[dict]) -> list[str]:
    """One line each: which network, by whatever tells it from others of its model, which point of
    it, and why.
    """
    lines = []
    for record, variant in zip(found, records.variants(found), strict=True):
        row = record["row"]
        if row["status"] != "ok":
            point = (
                f"{row['steps']} steps, guidance {row['guidance']:g}, {row['sampler']}"
                if row.get("steps")
                else ""
            )
            name = ", ".join(
                filter(None, [f"{row['model']} {row['size']} seed {row['seed']}", variant, point])
            )
            lines.append(f"{row['status']}: {name}: {record.get('reason', '')}")
    return lines


def _summary(table: pd.DataFrame, good: pd.DataFrame, found: list[dict], folder: Path) -> list[str]:
    preset = found[-1].get("config", {}).get("name", folder.name)
    lines = [f"# {preset}: {len(good)} measurements", ""]
    code = good[["git_sha", "git_dirty", "torch"]].drop_duplicates().astype(str).values.tolist()
    lines += [
        f"Code {sha}{' with uncommitted changes' * (dirty == 'True')}, torch {version}."
        for sha, dirty, version in code
    ] + [""]
    for title, part in groups(good) if len(good) else []:
        lines += [
            f"## {title.replace(chr(10), ', on ')}",
            "",
            *markdown(*_points(part)),
            "",
            *_notes(part, found),
            "",
        ]
        picked = verdicts.rows_to_show(part)
        picked = picked.assign(curve=curve_names(_one(picked)))
        said = verdicts.answers(picked, distance_name(part["features"].iloc[0]))
        lines += ["### What they say", "", *(f"- {line}" for line in said), ""] if said else []
        lines += _diagnostics(part, found)
        lines += ["### Training", "", *markdown(*_training(part)), ""]
    if len(good):
        lines += [
            "## Columns",
            "",
            *(
                f"- {_header(n, 'local')}: {BY_NAME[n].meaning}"
                for n in [*POINTS, *TRAINING]
                if n in BY_NAME
            ),
            "",
        ]
        pictures = [name for _, name in plots.AXES.values()] + [
            "fd_vs_training",
            "precision_recall",
            "loss_vs_flops",
        ]
        pictures = [name for name in pictures if (folder / "plots" / f"{name}.png").exists()]
        lines += ["## Plots", "", *(f"![{name}](plots/{name}.png)" for name in pictures), ""]
        lines += [
            f"![samples](samples/{path.name})"
            for path in sorted((folder / "samples").glob("*.png"))
        ]
    if bad := _failures(found):
        lines += ["", "## Failed or diverged", "", *(f"- {line}" for line in bad)]
    return lines


def _diagnostics(part: pd.DataFrame, found: list[dict]) -> list[str]:
    """The tables of `diagnostics`, and the ladder of the DiT paper's models, each under what it is;
    those with nothing to say left out.
    """
    best, chosen = verdicts.own_best(part), verdicts.chosen(part)
    named, best, chosen = (
        x.assign(curve=curve_names(y))
        for x, y in ((best, best), (best, _one(best)), (chosen, _one(chosen)))
    )
    by_id = {record["row"]["run_id"]: record for record in found}
    tables = {
        "Every measure, each model at its most steps and best setting": diagnostics.quality(named),
        "Between seeds": diagnostics.seeds(chosen),
        "Ties": diagnostics.ties(best, by_id),
        "Classes": diagnostics.classes(named),
    }
    lines = [
        line
        for title, (header, rows) in tables.items()
        if rows
        for line in ("### " + title, "", *markdown(header, rows), "")
    ]
    header, rows, said = dit_paper_ranks.section(part, by_id)
    return lines + (
        [
            "### Beside the DiT paper",
            "",
            *markdown(header, rows),
            "",
            *(f"- {line}" for line in said),
            "",
        ]
        if rows
        else []
    )


def _one(part: pd.DataFrame) -> pd.DataFrame:
    """As if all had one seed, so that names leave it out."""
    return part.assign(seed=0)


def _terminal(good: pd.DataFrame) -> str:
    parts = []
    for title, part in groups(good) if len(good) else []:
        header, rows = _points(part)
        cells = [header] + [[show(value) for value in row] for row in rows]
        widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
        parts += [
            "",
            title.replace("\n", ", "),
            *("  ".join(c.rjust(w) for c, w in zip(row, widths, strict=True)) for row in cells),
        ]
    return "\n".join(parts)
