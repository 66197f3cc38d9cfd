"""The committed counts of results/reference/cost: those of today, and those of their page."""

import pandas as pd
import pytest

from benchmarks.commands import count_flops
from benchmarks.core.settings import trained_models
from benchmarks.core.store import ROOT
from benchmarks.stages.model import latents_of, sampling_macs

ENTRIES = 2048  # of the codebook, where a size has none of its own
SIZES = ["xs", "xs16", "s", "b", "l", "xl"]
COST_TABLES = [
    ("GMACs of one evaluation", "cost.csv", "size", "gmacs", SIZES),
    ("Millions of parameters", "cost.csv", "size", "params_m", SIZES),
    ("GFLOPs of one image", "resolution.csv", "side", "gflops_per_image", [8, 16, 32, 64]),
]


@pytest.mark.parametrize("title, file, across, column, heads", COST_TABLES)
def test_tables_of_costs_are_those_of_the_committed_counts(title, file, across, column, heads):
    counted = pd.read_csv(ROOT / "results" / "reference" / "cost" / file)
    if file == "cost.csv":  # without the paper's models
        counted = counted[counted["latent_shape"] != "4x32x32"]
    wide = counted.pivot(index="model", columns=across, values=column)
    page = (ROOT / "docs" / "models.md").read_text()
    lines = page[page.index(title) :].split("\n\n")[1].splitlines()[2:]
    told = {}
    for line in lines:
        names, *cells = line.strip("| ").split(" | ")
        told |= {name.strip("`"): [float(cell) for cell in cells] for name in names.split(", ")}
    assert sorted(told) == trained_models()
    for name, numbers in told.items():
        assert numbers == pytest.approx(wide.loc[name, heads].tolist(), rel=0.005), name


def test_the_committed_counts_are_today_s():
    """results/reference/cost, by the smallest size; `make cost` counts the others again."""
    committed = pd.read_csv(ROOT / "results" / "reference" / "cost" / "cost.csv")
    committed = committed[committed["size"] == "xs"].set_index("model")
    today = {row[0]: row[6:] for row in count_flops.configured(ENTRIES, ["xs"])}
    assert today.keys() == set(committed.index)
    for name, numbers in today.items():
        row = committed.loc[name, ["params_m", "gmacs"]].tolist()
        assert numbers == pytest.approx(row, rel=1e-9), name


def test_an_image_costs_what_sampling_it_is_counted_to(monkeypatch):
    """Also of models whose steps are summed by a formula, because each would take long to count:
    here those of more than four.
    """
    monkeypatch.setattr(count_flops, "STEPS", 4)
    for name, _, size, side, steps, gflops, _ in count_flops.resolutions("xs", ENTRIES, [4]):
        shape = latents_of(name, side)
        model = count_flops.on_meta(name, size, shape, ENTRIES)
        counted = 2 * sampling_macs(model, steps, 1.0) / 1e9
        assert gflops == pytest.approx(counted, rel=1e-3), f"{name} at {side}"
