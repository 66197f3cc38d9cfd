"""Records to a report: results.csv, summary.md, plots and sample grids, and all of it as a page.

A published folder (see `commands/publish.py`) stays one: its records stay compressed, only the
figures that it keeps are plotted anew, and it has no page.
"""

import tempfile
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import pandas as pd

from benchmarks.analysis import agreement, diagnostics, dit_paper_ranks, step_counts, verdicts
from benchmarks.analysis.choices import is_borrowed, searched
from benchmarks.analysis.panel import Panel, panels
from benchmarks.core.files import atomic_file
from benchmarks.core.text import safe_markdown
from benchmarks.reports import beside, grids, page, plots, rates
from benchmarks.reports.chosen import chosen
from benchmarks.reports.judge_rules import qualified
from benchmarks.reports.notes import notes, refused, trained_on
from benchmarks.reports.rows import (
    as_text,
    code_versions,
    explained,
    failures,
    measured,
    trained,
)
from benchmarks.reports.searched_rates import rate_notes
from benchmarks.reports.shrink import FIGURE_BYTES, FIGURES, shrink
from benchmarks.results import archive, records
from benchmarks.results.columns import NAMES
from benchmarks.results.tables import markdown

# headings of a panel; page.py puts what stands under the first two on top
ANSWERS, STEPS = page.ANSWERS, page.STEPS
COMPARED = "Compared, at the most steps"
# what stands over the table of chosen settings
CHOSEN = [
    "Chosen by the distance to training images through the autoencoder, on samples that are not "
    "reported. Rows called *tuned* are measured with these settings, on other samples."
]


@dataclass(frozen=True)
class Report:
    """All that a report is made of."""

    folder: Path
    records: list[dict]  # of today's versions, oldest first
    table: pd.DataFrame  # one row per record
    panels: list[Panel]

    @property
    def by_id(self) -> dict[str, dict]:
        return {record["row"]["run_id"]: record for record in self.records}

    @property
    def failures(self) -> list[str]:
        return failures(self.records, list(self.table["variant"]))


def build_report(folder: Path) -> str:
    """Rebuild everything in `folder` from its records; returns tables and paths, for a terminal.

    Raises BadInput where the gathered records are damaged.
    """
    everything = records.read(folder)
    current = records.current(everything)
    if not current:
        return f"{folder}: no records yet"
    if left_out := len(everything) - len(current):
        since = "the same trainings were done later with other versions of models or libraries"
        print(f"{folder}: {left_out} record(s) are left out: {since}")
    table = records.table(current)
    report = Report(folder, current, table, panels(table))

    with atomic_file(folder / "results.csv") as path:
        table[NAMES].to_csv(path, index=False)
    paths = [folder / "results.csv", records.gather(folder, current), folder / "summary.md"]
    if archive.is_published(folder):
        paths += _published_figures(report)
    else:
        paths += _figures(report, folder / "plots")
    paths += _sample_grids(report)
    # last, because they show the plots and grids that are there now
    text, pictures = _summary(report), _images(folder) if report.panels else []
    with atomic_file(folder / "summary.md") as path:
        path.write_text("\n".join([*text, *pictures]) + "\n", encoding="utf-8")
    if page.can_be_made() and not archive.is_published(folder):
        paths.append(folder / page.NAME)
        with atomic_file(paths[-1]) as path:
            path.write_text(page.html_page(text, pictures, folder), encoding="utf-8")
    else:  # not one of earlier results
        (folder / page.NAME).unlink(missing_ok=True)
    lines = [line for panel in report.panels for line in as_text(panel)]
    return "\n".join([*lines, *report.failures, "", *map(str, paths)])


def _figures(report: Report, place: Path) -> list[Path]:
    """Every plot that these records allow, written into the folder `place`."""
    paths = []
    if report.panels:
        paths += [plots.distance_plot(report.panels, x, place) for x in plots.AXES]
        paths += beside.plots(report.panels, place)
        paths.append(plots.training_plot(report.panels, place))
        paths.append(plots.guidance_plot(report.panels, place))
        paths.append(rates.rate_plot(report.panels, place))
    variants = list(report.table["variant"])
    paths.append(plots.loss_plot(report.records, variants, place))
    return [path for path in paths if path is not None]


def _published_figures(report: Report) -> list[Path]:
    """The figures that a published folder keeps (without any: `FIGURES`), plotted anew, small."""
    folder = report.folder / "plots"
    kept = {path.stem for path in folder.glob("*.png")} or set(FIGURES)
    with tempfile.TemporaryDirectory() as place:
        wanted = [path for path in _figures(report, Path(place)) if path.stem in kept]
        return [shrink(path, folder / path.name, FIGURE_BYTES) for path in wanted]


def _sample_grids(report: Report) -> list[Path]:
    """The grids of samples, where the strips they are made of are still there.

    Grids of a panel that is no more go then; without strips all grids stay as they are.
    """
    strips, place = report.folder / "records", report.folder / "samples"
    paths = grids.sample_grids(report.panels, strips, place)
    paths += grids.pairs_grids(report.panels, strips, place)
    if paths:
        for path in set(place.glob("*.png")) - set(paths):
            if plots.is_ours(path):
                path.unlink()
    return paths


def _summary(report: Report) -> list[str]:
    """The lines of summary.md before its pictures."""
    measurements = sum(len(panel.rows) for panel in report.panels)
    names = {record.get("config", {}).get("name") for record in report.records}
    name = names.pop() if len(names) == 1 else None
    name = name or report.folder.name  # of several benches together, the folder's own
    lines = [f"# {name}: {measurements} measurements", ""]
    if report.panels:
        rows = report.table[report.table["status"] == "ok"]
        lines += code_versions(rows[rows["train_fraction"] == 1])
    lines.append("")
    lines += _judges(report.panels)
    if beside.alone(report.panels):
        lines += ["## Beside models trained elsewhere", "", *beside.ALONE, ""]
    for title, header, rows in beside.section(report.panels):
        lines += [f"## Beside models trained elsewhere: {title}", "", *beside.EXPLAINED, ""]
        lines += [*markdown(header, rows), ""]
    for panel in report.panels:
        lines += _section(panel, report)
    header, rows = chosen(report.records, list(report.table["variant"]))
    if rows:
        lines += ["## Chosen settings", "", *CHOSEN, "", *markdown(header, rows), ""]
    if report.panels:
        lines += ["## Columns", "", *explained(), ""]
    if report.failures:
        lines += ["## Failed or diverged", "", *(f"- {line}" for line in report.failures), ""]
    return [safe_markdown(line) for line in lines]


def _section(panel: Panel, report: Report) -> list[str]:
    """All that there is to say of one panel."""
    title = panel.title.replace("\n", ", on ")
    record = report.by_id[panel.first["run_id"]]
    lines = [f"## {title}", "", *markdown(*measured(panel)), "", *notes(panel, record), ""]
    lines += _in_words(panel, report)
    reason = refused(panel)
    tables = {
        "Every measure, at the most steps": diagnostics.quality(panel),
        "Between seeds": diagnostics.seeds(panel),
        COMPARED: ([], []) if reason else diagnostics.ties(panel),
        "Classes": diagnostics.classes(panel),
    }
    left_out = {COMPARED: diagnostics.unprinted(panel)}
    for name, (header, rows) in tables.items():
        if rows:
            below = [line for words in left_out.get(name, []) for line in (words, "")]
            by = qualified(panel) if name == COMPARED else ""
            lines += [f"### {name}{by}", "", *markdown(header, rows), "", *below]
    header, rows, words = dit_paper_ranks.section(panel.rows, report.by_id)
    if rows:
        lines += ["### Beside the DiT paper", "", *markdown(header, rows), ""]
        lines += [*(f"- {line}" for line in words), ""]
    records = [report.by_id[run_id] for run_id in panel.rows["run_id"]]
    lines += ["### Training", "", *trained_on(records), *markdown(*trained(panel)), ""]
    return [*lines, *rate_notes(records)]


def _in_words(panel: Panel, report: Report) -> list[str]:
    """What a panel says of budgets, a few lines, and of step counts, a row for each curve; or why
    nothing.
    """
    if reason := refused(panel):
        return [ANSWERS, "", f"- {reason}", ""]
    answering = sum(not refused(panel) for panel in report.panels)
    most = max(1, verdicts.MOST_LINES // answering)  # of many panels not none
    leading = searched(panel.leading)
    leading = leading.sort_values("curve", key=lambda x: x.map(panel.names.index), kind="stable")
    lines = [f"- {line}" for line in verdicts.answers(leading, _means_of(panel), most)]
    by = qualified(panel)
    lines = [f"{ANSWERS}{by}", "", *lines, ""] if lines else []
    header, rows = step_counts.enough_steps(leading)
    if rows:
        lines += [f"{STEPS}{by}", "", *markdown(header, rows), ""]
    if lines and is_borrowed(panel.leading).any():
        lines += ["Step counts that have the settings of another count are left out here.", ""]
    return lines


def _means_of(panel: Panel) -> pd.DataFrame:
    """The means over trainings of the leading curves, where their settings were searched."""
    return searched(panel.shown[panel.shown["curve"].isin(panel.leading["curve"].unique())])


def _judges(panels: list[Panel]) -> list[str]:
    """Whether feature extractors agree, of each group of panels that differ in them alone."""
    groups: dict[str, list[Panel]] = {}
    for panel in panels:
        groups.setdefault(panel.title.replace(f", {panel.features}", ""), []).append(panel)
    lines = []
    for title, group in groups.items():
        of_which = f"{title.splitlines()[0]}: " if len(groups) > 1 else ""
        judges = {panel.features for panel in group}
        sentences = agreement.disagreement(group) if len(judges) > 1 else [_only(*judges)]
        lines += [f"- {of_which}{line}" for line in sentences]
    return ["## Do the judges agree?", "", *lines, ""] if lines else []


def _only(judge: str) -> str:
    """What a report of one judge says in place of whether judges agree."""
    other = "local" if judge != "local" else "efficientnet_lite0"
    return (
        f"One judge only: {judge}. Whether another agrees is not known; add one with "
        f"`features=[{judge},{other}]`."
    )


def _images(folder: Path) -> list[str]:
    """Links to the plots and grids that are there."""
    names = [name for _, name in plots.AXES.values()]
    names += [*beside.PLOTTED.values(), "fd_vs_training", "precision_recall", rates.NAME]
    names.append("loss_vs_flops")
    there = [name for name in names if (folder / "plots" / f"{name}.png").exists()]
    lines = ["## Plots", "", *(f"![{name}](plots/{name}.png)" for name in there), ""]
    grids_there = sorted((folder / "samples").glob("*.png"))
    return lines + [f"![samples](samples/{quote(path.name)})" for path in grids_there]
