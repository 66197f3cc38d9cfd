"""One bad record never takes the report, and nothing that was changed goes into a table."""

import json
import math

import pytest

from benchmarks.core.store import is_sealed, read_sealed, seal, write_sealed
from benchmarks.results import records

ROW = {
    "run_id": "a",
    "status": "ok",
    "model": "dit",
    "data": "procedural",
    "seed": 0,
    "image_size": 32,
    "steps": 8,
    "guidance": 1.0,
    "train_fraction": 1.0,
    "fd_generator": 2.0,
}


def test_a_record_reads_back_as_it_was_written(tmp_path):
    records.write(tmp_path, ROW, nested={"a": (1, 2.5, None)})
    (record,) = records.read(tmp_path)
    assert record["row"] == ROW and record["nested"] == {"a": [1, 2.5, None]}
    assert record == records.load(records.path_of(tmp_path, "a"))


@pytest.mark.parametrize("row", [{"fd_generator": 1.0}, {"guidance": 2.0}, {"status": "failed"}])
def test_an_edited_record_is_left_out_and_named(tmp_path, row, capsys):
    records.write(tmp_path, ROW | {"run_id": "good"})
    records.write(tmp_path, ROW)
    path = records.path_of(tmp_path, "a")
    stored = json.loads(path.read_text())
    stored["row"] |= row
    path.write_text(json.dumps(stored))
    assert [record["row"]["run_id"] for record in records.read(tmp_path)] == ["good"]
    assert f"{path} is left out: it was changed" in capsys.readouterr().out


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", "[" * 5000, '{"row": 3}', '{"row": {}}', "\x00\xff"]
)
def test_what_is_no_record_is_left_out(tmp_path, text):
    records.write(tmp_path, ROW)
    (tmp_path / "records" / "other.json").write_text(text, encoding="latin-1")
    assert [record["row"]["run_id"] for record in records.read(tmp_path)] == ["a"]


@pytest.mark.parametrize("name", ["fd_generator", "guidance", "steps", "seed"])
def test_a_measurement_without_its_numbers_is_left_out(tmp_path, name, capsys):
    """It counts as not measured, so that the next run measures it."""
    records.write(tmp_path, ROW | {name: float("nan")})
    assert records.read(tmp_path) == []
    missing = "fd" if name == "fd_generator" else name
    assert f"it has no {missing}" in capsys.readouterr().out


def test_every_flipped_byte_of_a_sealed_file_is_noticed(tmp_path):
    path = tmp_path / "x.json"
    write_sealed(path, {"distance": 1.25, "names": ["a", "b"], "none": None})
    whole = path.read_bytes()
    for place in range(len(whole)):
        changed = bytearray(whole)
        changed[place] ^= 1
        path.write_bytes(changed)
        read = read_sealed(path)
        # a space for another white space changes nothing that is read
        assert read is None or read == {"distance": 1.25, "names": ["a", "b"], "none": None}


def test_a_seal_is_of_what_json_reads_back():
    assert is_sealed(json.loads(json.dumps(seal({"a": (1, 2), 3: 0.1}))))
    assert not is_sealed(seal({"a": 1}) | {"b": 2}) and not is_sealed(["a"])


def test_records_hold_no_words_json_lacks_and_no_unknown_columns(tmp_path):
    row = {"run_id": "x", "model": "dit", "data": "d", "fd": math.nan, "status": "failed"}
    records.write(tmp_path, row, extra=[math.inf])
    (record,) = records.read(tmp_path)
    assert record["row"]["fd"] is None and record["extra"] == [None]
    with pytest.raises(ValueError, match="fid_score"):
        records.write(tmp_path, {"run_id": "y", "fid_score": 1.0})
