"""Records in one file, and published folders."""

import copy
import gzip
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_diagnostics import record

from benchmarks.commands import compare, publish, report
from benchmarks.core.errors import BadInput
from benchmarks.core.store import seal
from benchmarks.reports.shrink import FIGURE_BYTES, FIGURES, shrink
from benchmarks.reports.summary import build_report
from benchmarks.results import archive, records

LINK = re.compile(r"\]\(([^)\s]+)\)")


def bench(folder: Path) -> list[dict]:
    """The results folder of a made-up bench: two models, two step counts, plots and two grids."""
    for model, seed in (("dit", 0), ("ar", 1)):
        for steps in (4, 8):
            one = record(model, 9.0 - 0.1 * steps, seed=seed, steps=steps)
            config = {"name": "made-up", "model": {"width": seed}, "train": {"budget": 1e12}}
            log = [[1, 1e9, 3.0, 0.1, 0.2], [2, 2e12, 2.0, 0.1, 0.4]]
            one["config"] = config
            row = one.pop("row") | {"objective": "flow", "started_at": f"2026-0{steps}"}
            records.write(folder, row, **one, train_log=log)
    build_report(folder)
    noise = np.random.default_rng(0).integers(0, 256, (300, 300, 3), dtype=np.uint8)
    (folder / "samples").mkdir()
    for name in ("nearest", "d-32-local", "d-32-local-2"):
        Image.fromarray(noise).save(folder / "samples" / f"{name}.png")
    with open(folder / "summary.md", "a") as file:
        file.writelines(f"![samples](samples/{p.name})\n" for p in (folder / "samples").iterdir())
    return records.read(folder)


def linked(path: Path) -> list[str]:
    """Relative links of a Markdown file."""
    return [link for link in LINK.findall(path.read_text(encoding="utf-8")) if "://" not in link]


def images(folder: Path) -> list[str]:
    """The PNGs of a folder, as its documents link to them."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.png"))


@pytest.mark.parametrize("name", [archive.PLAIN, archive.PACKED])
def test_gathered_records_read_back_exactly(name, tmp_path):
    """Either form gives back what went in, and the same bytes again; equal parts are in it once."""
    kept_records = bench(tmp_path / "bench")
    before = copy.deepcopy(kept_records)
    path = archive.write(tmp_path / "kept" / name, kept_records)
    data = path.read_bytes()
    assert (
        archive.read(tmp_path / "kept") == records.read(tmp_path / "kept") == before == kept_records
    )
    text = gzip.decompress(data).decode() if name == archive.PACKED else data.decode()
    assert text.count('"made-up"') == 2, "two configurations"
    assert text.count('"python"') == 1, "one set of versions"
    assert archive.write(path, archive.read(tmp_path / "kept")).read_bytes() == data


def test_compressed_bytes_say_nothing_but_the_records(tmp_path):
    """Neither time nor file name is in the header, so that equal records are no change to git."""
    first = archive.write(tmp_path / "a.json.gz", [{"row": {"run_id": "x"}}]).read_bytes()
    assert first == archive.write(tmp_path / "b.json.gz", [{"row": {"run_id": "x"}}]).read_bytes()
    assert first[4:8] == bytes(4) and b"json" not in first[:30]


FAILED = {"status": "failed", "model": "dit", "data": "procedural"}  # a row without numbers


def test_single_records_come_first_then_results_json_then_the_compressed_file(tmp_path):
    """Of several forms in one folder the freshest is read."""
    for name, run in ((archive.PACKED, "packed"), (archive.PLAIN, "plain")):
        archive.write(tmp_path / name, [seal({"row": FAILED | {"run_id": run}})])
        assert [r["row"]["run_id"] for r in records.read(tmp_path)] == [run]
    records.write(tmp_path, FAILED | {"run_id": "single"})
    assert [r["row"]["run_id"] for r in records.read(tmp_path)] == ["single"]


def test_records_that_were_changed_in_an_archive_are_left_out_and_named(tmp_path, capsys):
    whole, changed = (seal({"row": FAILED | {"run_id": name}}) for name in ("whole", "changed"))
    changed["row"]["seed"] = 7
    archive.write(tmp_path / archive.PLAIN, [whole, changed])
    assert [r["row"]["run_id"] for r in records.read(tmp_path)] == ["whole"]
    assert f"{tmp_path}: 1 record(s) are left out: it was changed" in capsys.readouterr().out


GOOD = gzip.compress(b'{"parts": {}, "records": [{"row": {}, "parts": {"config": "gone"}}]}')
DAMAGED = {
    "cut short": (archive.PACKED, GOOD[:-12]),
    "not compressed": (archive.PACKED, b"{}"),
    "a part is lost": (archive.PACKED, GOOD),
    "not JSON": (archive.PLAIN, b'{"parts": '),
    "a plain list": (archive.PLAIN, b'[{"row": {}}]'),
}


@pytest.mark.parametrize("what", DAMAGED)
def test_damaged_records_are_one_line_and_not_no_records(what, tmp_path):
    """The line names the file and the mend; report, compare and publish end with it."""
    name, data = DAMAGED[what]
    (tmp_path / name).write_bytes(data)
    with pytest.raises(BadInput, match=f"{name} is damaged .*; restore it") as error:
        records.read(tmp_path)
    assert len(str(error.value).splitlines()) == 1
    for module in (report, compare, publish):
        target = [str(tmp_path / "target")] if module is publish else []
        with pytest.raises(SystemExit) as ended:
            module.main([str(tmp_path), *target])
        line = str(ended.value)
        assert line.startswith("latentbench: ") and "is damaged" in line


def test_publishing_keeps_the_records_the_table_and_what_was_asked_for(tmp_path):
    """Everything else goes, from the summary too; publishing the result again changes nothing."""
    folder, target = tmp_path / "bench", tmp_path / "published"
    kept_records = bench(folder)
    target.mkdir()
    (target / "README.md").write_text("mine")
    written = publish.publish(folder, target, ["fd_vs_steps", "loss_vs_flops"])
    assert records.read(target) == kept_records and not (target / "results.json").exists()
    assert (target / "results.csv").read_bytes() == (folder / "results.csv").read_bytes()
    kept = ["plots/fd_vs_steps.png", "plots/loss_vs_flops.png", "samples/d-32-local.png"]
    assert images(target) == kept == sorted(linked(target / "summary.md"))
    assert (target / "README.md").read_text() == "mine"
    files = {path: path.read_bytes() for path in target.rglob("*") if path.is_file()}
    assert set(written) == files.keys() - {target / "README.md"}
    publish.publish(target, target, ["fd_vs_steps", "loss_vs_flops"])
    assert files == {path: path.read_bytes() for path in target.rglob("*") if path.is_file()}
    assert {path.name for path in tmp_path.iterdir()} == {"bench", "published"}, "nothing between"


@pytest.mark.parametrize(
    "figures, grid, message",
    [
        (["fd_vs_steps", "fd_vs_gflops", "loss_vs_flops"], None, "at most 2 figures"),
        (["fd_vs_tokens"], None, "no figure fd_vs_tokens; there are fd_vs_gflops"),
        ([], "d-64-local", "no grid d-64-local; there are d-32-local"),
    ],
)
def test_publishing_refuses_what_is_not_there(figures, grid, message, tmp_path):
    """One line, exit code 1, and a target that was there stays as it was."""
    bench(tmp_path / "bench")
    (tmp_path / "target").mkdir()
    (tmp_path / "target" / "summary.md").write_text("before")
    given = ["--figures", *figures, *(["--grid", grid] if grid else [])]
    folders = [str(tmp_path / "bench"), str(tmp_path / "target")]
    with pytest.raises(SystemExit) as ended:
        publish.main([*folders, *given])
    line = str(ended.value)  # sys.exit prints it on stderr and ends with 1
    assert line.startswith("latentbench: ") and message in line and "\n" not in line
    assert [path.name for path in (tmp_path / "target").iterdir()] == ["summary.md"]


def test_publishing_refuses_folders_without_results_and_targets_it_would_empty(tmp_path):
    """No records, no report, or a target whose other files would be lost."""
    with pytest.raises(BadInput, match="no records there"):
        publish.publish(tmp_path / "nothing", tmp_path / "target", [])
    kept_records = bench(tmp_path / "bench")
    with pytest.raises(BadInput, match=r"holds records, report\.html: publishing"):
        publish.publish(tmp_path / "bench", tmp_path / "bench", [])
    assert records.read(tmp_path / "bench") == kept_records
    theirs = tmp_path / "theirs"
    (theirs / "samples").mkdir(parents=True)
    for name in ("results.csv", "samples/photo.png"):
        (theirs / name).write_bytes(b"somebody's own")
    with pytest.raises(BadInput, match="but no records of this suite"):
        publish.publish(tmp_path / "bench", theirs, [])
    assert (theirs / "samples" / "photo.png").exists()
    (tmp_path / "bench" / "summary.md").unlink()
    with pytest.raises(BadInput, match=r"no summary\.md; `make report` writes it"):
        publish.publish(tmp_path / "bench", tmp_path / "target", [])


def test_a_report_rebuilds_a_published_folder_in_its_published_form(tmp_path):
    """Table, summary and its two figures come back from the .gz alone; grid and .gz stay."""
    bench(tmp_path / "bench")
    folder = tmp_path / "cpu"
    publish.publish(tmp_path / "bench", folder, ["fd_vs_gflops", "fd_vs_latency"])
    published = images(folder)
    kept = [folder / archive.PACKED, *(folder / "samples").iterdir()]
    before = [path.read_bytes() for path in kept]
    table = (folder / "results.csv").read_bytes()
    for name in ("results.csv", "summary.md"):
        (folder / name).unlink()
    (folder / "plots" / "fd_vs_gflops.png").write_bytes(b"")
    text = build_report(folder)
    assert (folder / "results.csv").read_bytes() == table and archive.PACKED in text
    assert [path.read_bytes() for path in kept] == before and len(kept) == 2
    assert not any((folder / name).exists() for name in ("results.json", "report.html"))
    assert images(folder) == published
    assert all(path.stat().st_size < FIGURE_BYTES for path in (folder / "plots").iterdir())
    assert set(linked(folder / "summary.md")) == set(images(folder))
    shutil.rmtree(folder / "plots")
    build_report(folder)
    assert images(folder / "plots") == [f"{name}.png" for name in FIGURES], "what it begins with"


def test_shrinking_keeps_sizes_and_saturated_colours_where_it_can(tmp_path):
    """Few colours stay exact, white stays white, and only what cannot fit loses pixels."""
    image = np.full((400, 400, 3), 255, dtype=np.uint8)
    image[:2, :2] = (255, 0, 0)  # rare and saturated
    Image.fromarray(image).save(tmp_path / "plot.png")
    small = shrink(tmp_path / "plot.png", tmp_path / "small.png", FIGURE_BYTES)
    assert (np.asarray(Image.open(small).convert("RGB")) == image).all()
    noise = np.random.default_rng(0).integers(0, 256, (300, 300, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png")
    shrink(tmp_path / "noise.png", tmp_path / "noise.png", 20_000)
    assert (tmp_path / "noise.png").stat().st_size < 20_000
    assert 32 < Image.open(tmp_path / "noise.png").width < 300
    (tmp_path / "noise.png").write_bytes(b"no image")
    with pytest.raises(BadInput, match=r"noise\.png is not a readable image"):
        shrink(tmp_path / "noise.png", tmp_path / "other.png", FIGURE_BYTES)
