"""All records of a folder in one file: results.json, or records.json.gz where it is published.

Both hold `{"parts": {name: part, ...}, "records": [record, ...]}`. A part of a record (its
configuration, its library versions, its loss log, ...) that several records have equal is in
`parts` once, named by its digest. A record then names it:
`{"row": {...}, ..., "parts": {"config": name, ...}}`.
"""

import gzip
import io
import json
import zlib
from collections import Counter
from pathlib import Path
from typing import Any

from benchmarks.core.errors import BadInput
from benchmarks.core.files import atomic_file
from benchmarks.core.store import digest, write_json

PLAIN = "results.json"
PACKED = "records.json.gz"
# all that reading, decompressing, parsing and unpacking raise for a file cut short or changed
DAMAGE = (OSError, EOFError, zlib.error, ValueError, KeyError, TypeError, AttributeError)


def pack(records: list[dict[str, Any]]) -> dict[str, Any]:
    """Records in the stored form: parts that several records have equal appear once.

    ValueError for a record with an entry named `parts`, which the stored form needs itself.
    """
    if any("parts" in record for record in records):
        raise ValueError("a record may not have an entry named parts")
    digests = [_digests(record) for record in records]
    counts = Counter(name for names in digests for name in names.values())
    parts, stored = {}, []
    for record, names in zip(records, digests, strict=True):
        # what only one record has stays in it: a reader then finds it in one place
        shared = {k: name for k, name in names.items() if counts[name] > 1}
        for k, name in shared.items():
            parts.setdefault(name, record[k])
        own = {k: v for k, v in record.items() if k not in shared}
        stored.append(own | {"parts": shared})
    return {"parts": parts, "records": stored}


def _digests(record: dict[str, Any]) -> dict[str, str]:
    """By their keys, the digests of the parts that may be shared: not the row, nor mere words."""
    large = {k: v for k, v in record.items() if k != "row" and isinstance(v, dict | list) and v}
    return {k: digest(v) for k, v in large.items()}


def unpack(stored: dict[str, Any]) -> list[dict[str, Any]]:
    """The records that `pack` was given. KeyError, TypeError or AttributeError for another form."""
    records = []
    for record in stored["records"]:
        own = {k: v for k, v in record.items() if k != "parts"}
        shared = {k: stored["parts"][name] for k, name in record["parts"].items()}
        records.append(own | shared)
    return records


def write(path: Path, records: list[dict[str, Any]]) -> Path:
    """Write records to `path`, atomically, compressed where it ends in .gz; returns `path`.

    The bytes depend on the records alone: neither on the time nor on the file's name.
    """
    stored = pack(records)
    if path.suffix != ".gz":
        write_json(path, stored)
        return path
    text = json.dumps(stored, separators=(",", ":"), allow_nan=False)
    packed = io.BytesIO()
    # gzip's header would hold a name and the time: equal records would be a change to git
    with gzip.GzipFile(filename="", fileobj=packed, mode="wb", mtime=0) as file:
        file.write(text.encode())
    with atomic_file(path) as temporary:
        temporary.write_bytes(packed.getvalue())
    return path


def read(folder: Path) -> list[dict[str, Any]]:
    """The records of `folder/results.json`, else of `folder/records.json.gz`, else none.

    Raises BadInput, in one line, for a file that is damaged or of another form.
    """
    path = folder / (PLAIN if (folder / PLAIN).exists() else PACKED)
    if not path.exists():
        return []
    try:
        data = path.read_bytes()
        return unpack(json.loads(gzip.decompress(data) if path.name == PACKED else data))
    except DAMAGE as error:
        why = " ".join(f"{type(error).__name__}: {error}".split())
        raise BadInput(f"{path} is damaged or of another form ({why}); {_mend(path)}") from None


def _mend(path: Path) -> str:
    """How to get a damaged file back."""
    if path.name == PLAIN:
        return "restore it, or remove it and run `make bench` again"
    return "restore it, as with `git checkout`, or publish the results anew"


def place(folder: Path) -> Path:
    """The file that gathers a folder's records: results.json, or records.json.gz if published.

    A folder is published if it holds the latter and its records in no other form.
    """
    others = (folder / PLAIN).exists() or any((folder / "records").glob("*.json"))
    published = (folder / PACKED).exists() and not others
    return folder / (PACKED if published else PLAIN)


def is_published(folder: Path) -> bool:
    """Whether `folder` holds its records in the compressed file alone."""
    return place(folder).name == PACKED
