"""Several results folders, of one machine or of two, in one report."""

import pandas as pd
import pytest

from benchmarks.commands import report
from benchmarks.core.store import ROOT, seal, write_json
from benchmarks.reports import summary
from benchmarks.results import records

OURS = ROOT / "results" / "reference" / "cpu-procedural"


@pytest.fixture(autouse=True)
def no_figures(monkeypatch):
    """Plots take most of the time of a report, and are tested elsewhere."""
    monkeypatch.setattr(summary, "_figures", lambda report, place: [])


@pytest.fixture
def theirs(tmp_path):
    """The same measurements, as another machine made them: twice as fast, and a little closer."""
    folder = tmp_path / "theirs"
    for record in records.read(OURS):
        row = record["row"] | {"device": "Another CPU (8 threads)"}
        row["fd_generator"] *= 0.99
        row["seconds_per_image"] /= 2
        write_json(records.path_of(folder, row["run_id"]), seal(record | {"row": row}))
    return folder


def test_two_machines_stand_side_by_side_and_their_seconds_apart(theirs, tmp_path, capsys):
    both, own = tmp_path / "both", len(records.read(OURS))
    report.main([str(OURS), str(theirs), "--into", str(both)])
    table = pd.read_csv(both / "results.csv")
    assert len(table) == 2 * own and table["run_id"].is_unique
    assert table["device"].value_counts().to_dict() == dict.fromkeys(table["device"].unique(), own)
    pages = (both / "summary.md").read_text()
    assert pages.startswith("# cpu") or pages.startswith("# both")
    titles = [line for line in pages.splitlines() if line.startswith("## ") and ", on " in line]
    assert len(titles) == 4, "two judges, two machines"
    assert sum("Another CPU" in title for title in titles) == 2
    assert "Another CPU" in capsys.readouterr().out


def test_a_record_that_two_folders_have_is_there_once(tmp_path):
    report.combine([OURS, OURS], tmp_path / "once")
    assert len(records.read(tmp_path / "once")) == len(records.read(OURS))


def test_two_folders_by_themselves_are_one_report_which_can_be_made_again(
    theirs, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    own = len(records.read(OURS))
    for count in (2 * own, 2 * own - 1):
        report.main([str(OURS), str(theirs)])
        assert len(pd.read_csv("results/cpu-procedural+theirs/results.csv")) == count
        assert "cpu-procedural+theirs/summary.md" in capsys.readouterr().out
        next((theirs / "records").glob("*.json")).unlink()
    with pytest.raises(SystemExit, match="of other results; give a new --into"):
        report.main([str(theirs), "--into", "results/cpu-procedural+theirs"])
    report.main([str(theirs)])
    assert (theirs / "results.csv").exists(), "one folder has its report where it is"


def test_what_is_there_is_not_written_over(tmp_path):
    (tmp_path / "there").mkdir()
    with pytest.raises(SystemExit, match=r"there: it is there already"):
        report.main([str(OURS), "--into", str(tmp_path / "there")])
    with pytest.raises(SystemExit, match="no records there"):
        report.main([str(tmp_path / "there"), "--into", str(tmp_path / "new")])
    assert not (tmp_path / "new").exists()
