"""Several results folders, of one machine or of two, in one report."""

import json
import shutil

import pandas as pd
import pytest

from benchmarks.commands import report
from benchmarks.commands.compare import compare
from benchmarks.core.errors import BadInput
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


def by_another_torch(found, folder, **changed):
    """The same measurements as another version made them later, on such a machine."""
    for record in found:
        row = record["row"] | {"started_at": "2030-01-01T00:00:00", "torch": "3.0"} | changed
        row["device"] = row["device"].replace("2 threads", "8 threads")
        row["run_id"] = f"{folder.name}-{row['run_id']}-{row['seed']}"
        prints = record["fingerprints"] | {"training": f"{records.training(record)}-{row['seed']}"}
        versions = record["versions"] | {"torch": "3.0"}
        other = record | {"row": row, "fingerprints": prints, "versions": versions}
        write_json(records.path_of(folder, row["run_id"]), seal(other))
    return folder


def sections(folder):
    """How many rows of results.csv are of each mark of versions."""
    devices = pd.read_csv(folder / "results.csv")["device"]
    return devices.str.extract(r"\[(.*)\]")[0].fillna("").value_counts().to_dict()


def test_other_versions_on_one_kind_of_machine_stand_apart(ours, tmp_path, capsys):
    """Neither is an older state of the other; their seeds are not more seeds of one network."""
    own = records.read(ours)
    theirs = by_another_torch(own, tmp_path / "theirs")
    more = by_another_torch(own, tmp_path / "more", seed=7)
    both, all_of_it = tmp_path / "both", tmp_path / "all"
    report.main([str(ours), str(theirs), "--into", str(both)])
    count, old = len(own), f"torch {own[0]['versions']['torch']}"
    assert sections(both) == {old: count, "torch 3.0": count}
    text = (both / "summary.md").read_text()
    assert "left out" not in capsys.readouterr().out and "[torch 3.0] (8 threads)" in text
    # a report of a report has every record once; what the same versions made stands together
    report.main([str(both), str(ours), str(more), "--into", str(all_of_it)])
    assert sections(all_of_it) == {old: count, "torch 3.0": 2 * count}
    # nothing is to be told apart where one version alone is there
    report.main([str(theirs), str(more), "--into", str(tmp_path / "theirs all")])
    assert sections(tmp_path / "theirs all") == {"": 2 * count}


def test_another_state_of_the_code_stands_apart_by_its_commit(ours, tmp_path):
    theirs = tmp_path / "theirs"
    for record in records.read(ours):
        row = record["row"] | {"git_sha": "0123456789ab", "run_id": f"x{record['row']['run_id']}"}
        prints = record["fingerprints"] | {"training": "another"}
        write_json(
            records.path_of(theirs, row["run_id"]),
            seal(record | {"row": row, "fingerprints": prints}),
        )
    report.main([str(ours), str(theirs), "--into", str(tmp_path / "both")])
    assert "code 0123456789ab" in sections(tmp_path / "both")


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


def test_two_versions_in_one_folder_are_not_compared_as_one(ours, tmp_path, capsys):
    own = records.read(ours)
    theirs, both = by_another_torch(own, tmp_path / "theirs"), tmp_path / "both"
    report.main([str(ours), str(theirs), "--into", str(both)])
    with pytest.raises(BadInput, match=r"A has several records that differ only in device: .*\["):
        compare(both, ours, {}, {})
    device = next(name for name in pd.read_csv(both / "results.csv")["device"] if "3.0" in name)
    compare(both, ours, {"device": device}, {})
    line = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert line["matched"] == len(own) and line["only_a"] == line["only_b"] == 0
