"""An entry of the plan as the commands that make it: for real, or in miniature to see that they
run.
"""

import re
import sys
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.core.errors import BadInput
from benchmarks.core.store import atomic_folder, digest
from benchmarks.images import procedural
from benchmarks.reference.plan import Entry

CONFIGURED = ("bench", "study", "reconstruct")  # these take Hydra overrides
# the first word of a run -> what is started; other words are commands of benchmarks
MODULES = {"bench": ["benchmarks", "run"], "tests": ["pytest"]}
STOPPABLE = ("bench", "perf")  # these end by themselves at a given time, and go on from there
# What conf/rehearse/mini.yaml cannot shrink, because entries may give it on the command line, which
# comes last
REHEARSAL = [
    "rehearse=mini",
    "num_samples=10",
    "data.reference_images=10",
    "steps=[2,16,64]",
    "guidance=[2]",
]
REHEARSAL += ["train.budget=2", "train.batch=4", "train.snapshots=[]", "sample_batch=8"]
REHEARSED_STUDY = ["num_samples=200", "data.reference_images=200", "data.images_per_class=20"]
# of a rehearsal's images: the stream of drawings, and how many a class
SPLITS = {"train": ("train", 64), "val": ("reference", 20)}


@dataclass(frozen=True)
class Places:
    """Where commands read and write. `work` holds a folder an entry; what is kept for good goes to
    `published`.
    """

    work: Path
    cache: Path
    published: Path
    images: Path | None
    rehearse: bool = False

    def out(self, entry: Entry) -> Path:
        return self.work / entry.name


def command(entry: Entry, line: str, places: Places, stop_at: float | None) -> list[str]:
    """One run of an entry as an argument list; `stop_at` is when it should end by itself, seconds
    since the epoch.
    """
    kind, *given = line.split()
    given = [word.replace("{data}", quoted(places.images)) for word in given]
    call = [sys.executable, "-m", *MODULES.get(kind, ["benchmarks", kind]), *given]
    if kind in CONFIGURED:
        results = places.work if kind == "bench" else places.out(entry)
        call += [f"cache_dir={places.cache}", f"results_dir={results}"]
        call += [f"name={entry.name}"] if kind == "bench" else []
        call += [f"stop_at={stop_at:.0f}"] if kind == "bench" and stop_at else []
        shrunk = REHEARSAL + (REHEARSED_STUDY if kind == "study" else [])
        return call + (shrunk if places.rehearse else [])
    if kind == "tests":
        report = f"--junit-xml={places.out(entry) / 'tests.xml'}"
        return [
            *call,
            report,
            *(["--on=cpu", "-k", "test_cuda and not smoke"] if places.rehearse else []),
        ]
    call += ["--out", str(places.out(entry))]
    call += ["--stop-at", f"{stop_at:.0f}"] if kind == "perf" and stop_at else []
    return call + (["--rehearse"] if places.rehearse else [])


def quoted(path: Path | None) -> str:
    """A path as a value of a Hydra override, whatever characters it has."""
    text = str(path)
    return (
        text
        if re.fullmatch(r"[\w./@%+-]+", text)
        else "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
    )


def images(given: str, cache: Path) -> Path:
    """The folder of images that DATA names; a tar is unpacked once, beside the caches. Raises
    BadInput for anything else.
    """
    path = Path(given).expanduser().absolute()
    if path.is_dir():
        return _checked(path, given)
    if not path.is_file():
        raise BadInput(
            f"DATA={given}: give a folder with train/<class>/* and val/<class>/*, or a tar of one"
        )
    folder = (
        cache.absolute()
        / "reference"
        / digest(str(path), path.stat().st_size, path.stat().st_mtime_ns)
        / path.name.split(".")[0]
    )
    if not folder.is_dir():
        try:
            with atomic_folder(folder) as temporary, tarfile.open(path) as tar:
                tar.extractall(temporary, filter="data")
        except (tarfile.TarError, OSError, EOFError) as error:
            raise BadInput(
                f"DATA={given}: not a whole tar of an image folder ({type(error).__name__})"
            ) from None
    inside = [part for part in folder.iterdir() if part.is_dir()]
    alone = len(inside) == 1 and inside[0].name not in ("train", "val")  # a folder around it
    return _checked(inside[0] if alone else folder, given)


def _checked(folder: Path, given: str) -> Path:
    """The folder, if it has classes. Raises BadInput for one without folders."""
    if not any(part.is_dir() for part in folder.iterdir()):
        raise BadInput(
            f"DATA={given}: no folders in it; train/<class>/* and val/<class>/* are needed"
        )
    return folder


def stand_in(folder: Path) -> Path:
    """A small image folder to rehearse with: ten classes of drawings, named as ImageNet's are."""
    for split, (stream, each) in SPLITS.items():
        drawn, labels = procedural.generate(
            len(procedural.CLASSES) * each, 64, seed=0, stream=stream
        )
        for i, (pixels, label) in enumerate(zip(drawn, labels, strict=True)):
            _save(pixels, folder / split / f"n{label:08d}" / f"{i}.png")
    return folder


def _save(pixels: np.ndarray, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.transpose(1, 2, 0)).save(path)


def stoppable(kinds: Sequence[str]) -> bool:
    """Whether all of an entry's commands end by themselves when they should."""
    return set(kinds) <= set(STOPPABLE)
