"""What the hand-written pages of results/reference say, held to the numbers beside them."""

import math
import re
from pathlib import Path
from statistics import mean, variance

import pytest

from benchmarks.results import records

ROOT = Path(__file__).parent.parent
REFERENCE = ROOT / "results" / "reference"
# whose tables have no distances with their errors
WITHOUT = {"no_codebook-tiny-imagenet-20", "null_test", "precision"}
OF_THE_README = ["tradeoff-tiny-imagenet-20", "cpu-procedural"]  # whose tables it shows
NUMBER = r"(?<![\w.])\d[\d,]*\.?\d*(?:e-\d+)?(?![\w.])"
STUDIES = sorted(
    page.parent.name
    for page in REFERENCE.glob("*/README.md")
    if (page.parent / "summary.md").is_file()
)


def model_in(cell: str) -> str | None:
    """The model that a cell of a table names in backticks, or None."""
    found = re.match(r"\s*`([a-z_0-9]+)`", cell)
    return found[1] if found else None


def measured(page: str) -> list[tuple[str, str, str]]:
    """(model, steps, number) of every distance with its error in the tables of a page: "a ± b"
    where the row names the model, if anything does, "a, b" where the column does. Empty for a
    model or for steps that are not named.
    """
    triples, heads = [], []
    for line in page.splitlines():
        if not line.startswith("|"):
            heads = []
            continue
        cells = line.strip("| ").split(" | ")
        heads = heads or cells
        steps = next((c for h, c in zip(heads, cells, strict=False) if plain(h) == "steps"), "")
        for head, cell in zip(heads[1:], cells[1:], strict=False):
            cell = cell.replace("*", "")
            of_head = re.match(r"(\d+) steps?$", head)  # of the table of changes
            at = of_head[1] if of_head else steps
            if found := re.match(rf"({NUMBER}) ±", cell):
                triples.append((model_in(cells[0]) or "", at, found[1]))
            elif model_in(head) and re.fullmatch(rf"{NUMBER}, {NUMBER}", cell):
                triples += [(model_in(head), at, number) for number in re.findall(NUMBER, cell)]
    return triples


def plain(cell: str) -> str:
    """A cell without its link."""
    return re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", cell).strip()


def rows_of(summary: str, model: str, steps: str) -> str:
    """The rows of a report's tables that are of a model and of a step count, where given."""
    begins = rf"\| {model}\b" if model else r"\|"
    rows = re.findall(f"^{begins}.*", summary, flags=re.MULTILINE)
    if not steps:
        return "\n".join(rows)
    named = rf"\| {steps}( \||, settings of)|, {steps} steps?\b"
    return "\n".join(row for row in rows if re.search(named, row))


def is_among(number: str, text: str) -> bool:
    """Whether a number of the text rounds to this one."""
    places = len(number.split(".")[1]) if "." in number else 0
    others = [float(other.replace(",", "")) for other in re.findall(NUMBER, text)]
    half = 0.5 * 10**-places + 1e-9
    return any(abs(other - float(number)) <= half for other in others)


@pytest.mark.parametrize("page", [*STUDIES, "the README"])
def test_every_distance_of_a_page_is_one_of_its_model_in_the_report(page):
    studies = OF_THE_README if page == "the README" else [page]
    file = ROOT / "README.md" if page == "the README" else REFERENCE / page / "README.md"
    reports = [(REFERENCE / study / "summary.md").read_text("utf-8") for study in studies]
    for model, steps, number in measured(file.read_text(encoding="utf-8")):
        rows = rows_of("\n".join(reports), model, steps)
        assert is_among(number, rows), f"{page}: {model} at {steps} steps has no {number}"


def test_these_pages_have_distances_and_a_wrong_one_is_seen():
    page = "| model | FD |\n| --- | --- |\n| `dit` | 1.24 ± 0.1 |\n"
    assert measured(page) == [("dit", "", "1.24")]
    assert is_among("1.24", "| dit | 1.2377 |") and not is_among("1.25", "| dit | 1.2377 |")
    by_column = "| steps | `dit` |\n| --- | --- |\n| 4 | 1.35, 0.05 |\n"
    assert measured(by_column) == [("dit", "4", "1.35"), ("dit", "4", "0.05")]
    report = "| dit | 4 | 1.35 |\n| dit | 16 | 1.5 |\n| unet | 4 | 2 |\n"
    assert rows_of(report, "dit", "4") == "| dit | 4 | 1.35 |"
    pages = {study: (REFERENCE / study / "README.md").read_text("utf-8") for study in STUDIES}
    without = {study for study, text in pages.items() if not measured(text)}
    assert without == WITHOUT


def test_the_bars_of_few_steps_are_met_or_missed_as_its_page_says():
    page = (REFERENCE / "few_steps-procedural" / "README.md").read_text(encoding="utf-8")
    found = records.read(REFERENCE / "few_steps-procedural")
    for model, rate, place in (("unet", None, 1), ("dit", 4e-3, 2)):
        for steps, said in ((1, "1 step"), (2, "2 steps"), (64, "64 steps")):
            flow = [math.log(fd) for fd in distances(found, model, steps)]
            flow_map = [math.log(fd) for fd in distances(found, f"{model}_flowmap", steps, rate)]
            assert len(flow) == len(flow_map) == 3
            difference = mean(flow_map) - mean(flow)
            error = math.sqrt((variance(flow) + variance(flow_map)) / 3)
            met = difference <= math.log(1.1) if steps == 64 else -difference >= 3 * error
            row = next(line for line in page.splitlines() if line.startswith(f"| {said} |"))
            verdict = row.strip("| ").split(" | ")[place]
            assert ("missed" not in verdict) == met, (model, steps, verdict)
            figure = 100 * (math.exp(difference) - 1) if steps == 64 else -difference / error
            assert is_among(re.findall(NUMBER, verdict)[0], f"{figure:.4f}"), (verdict, figure)


def distances(found, model: str, steps: int, rate: float | None = None) -> list[float]:
    """Generator-only FD of a model's trainings at a step count, as tuned where that was done."""
    mine = [one for one in found if (one["row"]["model"], one["row"]["steps"]) == (model, steps)]
    if rate:
        mine = [one for one in mine if math.isclose(one["config"]["model"]["lr"], rate)]
    chosen = [one for one in mine if one["row"]["settings"] == "tuned"] or mine
    return [one["row"]["fd_generator"] for one in chosen]
