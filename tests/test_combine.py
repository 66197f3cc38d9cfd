"""Several results folders, of one machine or of two, in one report."""

import shutil

import pandas as pd
import pytest

from benchmarks.commands import report
from benchmarks.core.store import ROOT, read_json, seal, write_json
from benchmarks.reports import summary
from benchmarks.results import records

PUBLISHED = ROOT / "results" / "reference" / "cpu-procedural"


@pytest.fixture(autouse=True)
def no_figures(monkeypatch):
    """Plots take most of the time of a report, and are tested elsewhere."""
    monkeypatch.setattr(summary, "_figures", lambda report, place: [])


@pytest.fixture(scope="module")
def ours(tmp_path_factory):
    """Some measurements by two judges, in a folder called as the published one."""
    folder = tmp_path_factory.mktemp("ours") / PUBLISHED.name
    for record in records.read(PUBLISHED):
        if record["row"]["steps"] == 4:
            write_json(records.path_of(folder, record["row"]["run_id"]), record)
    return folder


@pytest.fixture
def theirs(ours, tmp_path):
    """The same measurements, as another machine made them: twice as fast, and a little closer."""
    folder = tmp_path / "theirs"
    for record in records.read(ours):
        row = record["row"] | {"device": "Another CPU (8 threads)"}
        row["fd_generator"] *= 0.99
        row["seconds_per_image"] /= 2
        write_json(records.path_of(folder, row["run_id"]), seal(record | {"row": row}))
    return folder


def test_two_machines_stand_side_by_side_and_their_seconds_apart(ours, theirs, tmp_path, capsys):
    both, own = tmp_path / "both", len(records.read(ours))
    report.main([str(ours), str(theirs), "--into", str(both)])
    table = pd.read_csv(both / "results.csv")
    assert len(table) == 2 * own and table["run_id"].is_unique
    assert table["device"].value_counts().to_dict() == dict.fromkeys(table["device"].unique(), own)
    pages = (both / "summary.md").read_text()
    assert pages.startswith("# cpu") or pages.startswith("# both")
    titles = [line for line in pages.splitlines() if line.startswith("## ") and ", on " in line]
    assert len(titles) == 4, "two judges, two machines"
    assert sum("Another CPU" in title for title in titles) == 2
    assert "Another CPU" in capsys.readouterr().out


def test_two_people_with_one_kind_of_machine_and_other_versions_stay_apart(ours, tmp_path, capsys):
    """Neither is an older state of the other; and one's seeds are not more seeds of the other."""
    theirs, both, own = tmp_path / "theirs", tmp_path / "both", records.read(ours)
    for record in own:
        row = record["row"] | {"started_at": "2030-01-01T00:00:00", "torch": "3.0"}
        row["device"] = row["device"].replace("2 threads", "8 threads")
        name = f"{records.training(record)}, by another torch"
        other = record | {"fingerprints": record["fingerprints"] | {"training": name}}
        row["run_id"] = f"their-{row['run_id']}"
        write_json(records.path_of(theirs, row["run_id"]), seal(other | {"row": row}))
    for _ in range(2):  # and made once more
        report.main([str(ours), str(theirs), "--into", str(both)])
    table = pd.read_csv(both / "results.csv")
    assert len(table) == 2 * len(own) and "left out" not in capsys.readouterr().out
    whose = table["device"].str.rsplit(", of ", n=1).str[1].value_counts().to_dict()
    assert whose == {"cpu-procedural": len(own), "theirs": len(own)}
    assert (both / "summary.md").read_text().count(", of theirs") >= 2, "sections of their own"
    again = table["device"].tolist()
    report.main([str(both)])
    assert pd.read_csv(both / "results.csv")["device"].tolist() == again


def test_a_record_that_two_folders_have_is_there_once(ours, tmp_path):
    report.combine([ours, ours], tmp_path / "once")
    assert len(records.read(tmp_path / "once")) == len(records.read(ours))


def test_two_folders_by_themselves_are_one_report_which_can_be_made_again(
    ours, theirs, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    own = len(records.read(ours))
    for count in (2 * own, 2 * own - 1):
        report.main([str(ours), str(theirs)])
        assert len(pd.read_csv("results/cpu-procedural+theirs/results.csv")) == count
        assert "cpu-procedural+theirs/summary.md" in capsys.readouterr().out
        next((theirs / "records").glob("*.json")).unlink()
    with pytest.raises(SystemExit, match="of other results; give a new --into"):
        report.main([str(theirs), "--into", "results/cpu-procedural+theirs"])
    report.main([str(theirs)])
    assert (theirs / "results.csv").exists(), "one folder has its report where it is"


def test_of_one_measurement_made_twice_by_one_machine_the_newer_is_there(ours, tmp_path, capsys):
    """Not their mean, under the error of one."""
    older = tmp_path / "older"
    for record in records.read(ours):
        row = record["row"] | {"started_at": "2026-01-01T00:00:00"}
        row["fd_generator"] *= 3
        write_json(records.path_of(older, row["run_id"]), seal(record | {"row": row}))
    for folders in ([ours, older], [older, ours]):
        report.combine(folders, tmp_path / f"from-{folders[0].name}")
        assert "machines of one name, and differ: the newer" in capsys.readouterr().out
        both = records.read(tmp_path / f"from-{folders[0].name}")
        distances = {r["row"]["run_id"]: r["row"]["fd_generator"] for r in both}
        assert distances == {
            r["row"]["run_id"]: r["row"]["fd_generator"] for r in records.read(ours)
        }


def test_all_results_in_one_report_do_not_count_that_report(theirs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(report, "build_report", lambda folder: str(folder))
    for name in ("a", "b"):
        shutil.copytree(theirs, tmp_path / "results" / name)
    for _ in range(2):
        report.main(["--into", "results/all"])
        assert read_json(tmp_path / "results/all/made_of.json") == [
            str(tmp_path / "results" / name) for name in ("a", "b")
        ]
        (tmp_path / "results/all/README.md").write_text("What we think of it.")
    assert (tmp_path / "results/all/README.md").exists()


def test_what_is_there_is_not_written_over(ours, tmp_path):
    (tmp_path / "there").mkdir()
    with pytest.raises(SystemExit, match=r"there: it is there already"):
        report.main([str(ours), "--into", str(tmp_path / "there")])
    with pytest.raises(SystemExit, match="no records there"):
        report.main([str(tmp_path / "there"), "--into", str(tmp_path / "new")])
    assert not (tmp_path / "new").exists()
