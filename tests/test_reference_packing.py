"""Studies that travel: what is packed comes back whole, within the limits of the way, and nothing
else is put in place.
"""

import json
import tarfile
from pathlib import Path

import pytest
from made_up_studies import MADE, begun, made, plan_of

from benchmarks.core.errors import BadInput
from benchmarks.reference import packing, plan


def test_what_is_packed_comes_back_whole_and_is_marked(tmp_path):
    """A finished study in the place of an older one, the records of an unfinished one beside those
    that are here; what is published of it stays.
    """
    there, here, path = tmp_path / "there", tmp_path / "here", tmp_path / "plan.yaml"
    made(there / "ref", "one")
    begun(there / "results", "two", "a")
    begun(here / "results", "two", "b")
    (here / "ref" / "one").mkdir(parents=True)
    (here / "ref" / "one" / "README.md").write_text("by hand")
    (here / "ref" / "one" / "old.csv").write_text("older")
    made(here / "ref", "two")
    packing.pack({"one": MADE, "two": None}, there / "ref", there / "results", tmp_path)
    entries = plan_of(path, "one", "two", "three")
    lines = packing.unpack(tmp_path, entries, here / "ref", here / "results", path)
    assert lines == ["one: made", "two: begun"]
    plots = [folder / "ref" / "one" / "plots" / "a.png" for folder in (here, there)]
    assert plots[0].read_bytes() == plots[1].read_bytes()
    assert (here / "ref" / "one" / "README.md").read_text() == "by hand"
    assert not (here / "ref" / "one" / "old.csv").exists()
    assert (here / "ref" / "two" / "results.csv").read_text() == "two"
    records = {record.name for record in (here / "results" / "two" / "records").iterdir()}
    assert records == {"a.json", "b.json"}
    assert [study.made for study in plan.load(path)] == [MADE, None, None]


@pytest.fixture
def pack_named(tmp_path):
    """A function that packs some of five finished studies of 6 MB into `tmp_path`."""
    for i in range(5):
        made(tmp_path / "ref", f"s{i}", 6_000_000)

    def pack(*names: str) -> list[str]:
        studies = dict.fromkeys(names, MADE)
        return [path.name for path in packing.pack(studies, tmp_path / "ref", tmp_path, tmp_path)]

    return pack


def test_packs_are_few_files_of_under_sixteen_megabytes(tmp_path, pack_named):
    """Tars of an earlier, larger pack are gone."""
    paths = pack_named("s0", "s1", "s2", "s3", "s4")
    assert paths == ["reference-1.tar", "reference-2.tar", "reference-3.tar"]
    assert all((tmp_path / name).stat().st_size < 16 * 2**20 for name in paths)
    assert pack_named("s1") == ["reference-1.tar"]
    assert [path.name for path in tmp_path.glob("*.tar")] == ["reference-1.tar"]


def test_what_does_not_fit_is_one_line_and_what_was_packed_stays(tmp_path, pack_named, monkeypatch):
    pack_named("s1")
    monkeypatch.setattr(packing, "FILES", 2)
    with pytest.raises(BadInput, match="do not fit into 2 files"):
        pack_named("s0", "s1", "s2", "s3", "s4")
    assert packing.packed(tmp_path) == {"s1": MADE}


@pytest.fixture
def refused(tmp_path):
    """A function of a pack in a folder of its own: it is refused, and nothing is put in place."""
    path, here = tmp_path / "plan.yaml", tmp_path / "here"
    entries = plan_of(path, "one")

    def refuse(folder: Path, message: str) -> None:
        with pytest.raises(BadInput, match=message):
            packing.unpack(folder, entries, here, here, path)
        assert not (here / "one").exists()
        assert plan.load(path)[0].made is None

    return refuse


def packed_in(folder: Path, name: str, *, rehearsed: bool = False) -> Path:
    """The pack of one finished study, beside it in `folder`."""
    made(folder / "ref", name)
    (path,) = packing.pack({name: MADE}, folder / "ref", folder, folder, rehearsed=rehearsed)
    return path


def test_packs_of_another_plan_or_of_a_rehearsal_are_refused(tmp_path, refused):
    refused(tmp_path / "nothing", r"no reference-\*.tar there")
    packed_in(tmp_path / "a", "unknown")
    refused(tmp_path / "a", "the plan has no unknown")
    packed_in(tmp_path / "b", "one", rehearsed=True)
    refused(tmp_path / "b", "made by a rehearsal")


def test_a_pack_that_is_cut_short_is_refused(tmp_path, refused):
    whole = packed_in(tmp_path / "a", "one")
    whole.write_bytes(whole.read_bytes()[:700])
    refused(tmp_path / "a", "not a whole file|is not whole")


@pytest.mark.parametrize(
    "index", ["[]", "{", json.dumps({"rehearsed": False, "studies": {"one": {}}})]
)
def test_a_pack_that_is_damaged_or_reaches_out_is_refused(tmp_path, refused, index):
    """Nothing is written outside the study's folder."""
    (tmp_path / "index").write_text(index)
    (tmp_path / "evil").write_text("x")
    (tmp_path / "a").mkdir()
    with tarfile.open(tmp_path / "a" / "reference-1.tar", "w") as tar:
        tar.add(tmp_path / "index", arcname=packing.INDEX)
        tar.add(tmp_path / "evil", arcname="one/../../evil2")
    refused(tmp_path / "a", "not a whole file|is not whole")
    assert not (tmp_path / "evil2").exists()
