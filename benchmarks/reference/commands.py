"""An entry of the plan as the commands that make it: for real, or in miniature to see that they
run.
"""

import re
import sys
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml
from PIL import Image

from benchmarks.core.cli import quoted
from benchmarks.core.errors import BadInput
from benchmarks.core.files import atomic_folder
from benchmarks.core.store import digest
from benchmarks.images import procedural
from benchmarks.reference.plan import PRESETS, Entry

CONFIGURED = ("bench", "study", "reconstruct")  # these take Hydra overrides
# the first word of a run -> what is started; other words are commands of benchmarks
MODULES = {"bench": ["benchmarks", "run"], "tests": ["pytest"]}
STOPPABLE = ("bench", "perf")  # these end by themselves at a given time, and go on from there

# What conf/rehearse/mini.yaml cannot shrink, because entries may give it on the command line, which
# comes last. Its latents have 16 tokens: a raster model has 16 steps, one of four tokens a step 4.
REHEARSAL = [
    "rehearse=mini",
    "num_samples=10",
    "data.reference_images=10",
    "steps=[4,16]",
    "guidance=[2]",
    "train.budget=2",
    "train.batch=4",
    "train.snapshots=[]",
    "sample_batch=8",
]
# the study degrades training images, of which other runs of a rehearsal load four a class
REHEARSED_STUDY = ["num_samples=200", "data.reference_images=200", "data.images_per_class=20"]
# of tests/test_cuda.py all but the whole bench, which an entry runs by itself
REHEARSED_TESTS = ["--on=cpu", "-k", "test_cuda and not smoke"]
# of a rehearsal's images: the stream of procedural images, and how many a class
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
    kind, *words = line.split()
    words = [_with_images(word, places.images) for word in words]
    call = [sys.executable, "-m", *MODULES.get(kind, ["benchmarks", kind]), *words]
    out = places.out(entry)
    if kind in CONFIGURED:
        call += _overrides(kind, entry.name, places, stop_at)
        if places.rehearse:
            call += _rehearsal(kind, words)
        return call
    if kind == "tests":
        call.append(f"--junit-xml={out / 'tests.xml'}")
        return call + (REHEARSED_TESTS if places.rehearse else [])
    call += ["--out", str(out)]
    if kind == "perf" and stop_at:
        call += ["--stop-at", f"{stop_at:.0f}"]
    if places.rehearse:
        call.append("--rehearse")
    return call


def _overrides(kind: str, name: str, places: Places, stop_at: float | None) -> list[str]:
    """What a run that takes Hydra overrides gets beyond its line of the plan."""
    overrides = [f"cache_dir={places.cache}"]
    if kind == "bench":
        overrides += [f"results_dir={places.work}", f"name={name}"]
        if stop_at:
            overrides.append(f"stop_at={stop_at:.0f}")
    else:
        overrides.append(f"results_dir={places.work / name}")
    return overrides


def _rehearsal(kind: str, words: list[str]) -> list[str]:
    """What shrinks a run of these overrides.

    Of what its preset sweeps, but for models, only the first value and the last are rehearsed:
    between them no other code is run.
    """
    given = dict(word.split("=", 1) for word in words)
    overrides = [*REHEARSAL]
    for key, values in _preset_sweeps(given.get("experiment")).items():
        if key not in given and key != "model" and len(values) > 2:
            overrides.append(f"{key}={values[0]},{values[-1]}")
    if kind == "study":
        overrides += REHEARSED_STUDY
    return overrides


def _preset_sweeps(preset: str | None) -> dict[str, list[str]]:
    """The values that a preset of conf/experiment sweeps, by key."""
    if preset is None:
        return {}
    settings = yaml.safe_load((PRESETS / f"{preset}.yaml").read_text(encoding="utf-8"))
    params = settings.get("hydra", {}).get("sweeper", {}).get("params", {})
    return {key: str(values).split(",") for key, values in params.items()}


def _with_images(word: str, images: Path | None) -> str:
    """A word with `{data}`, or a folder in it such as `{data}/train`, as the path that it is."""
    return re.sub(r"\{data\}((?:/\w+)*)", lambda found: quoted(f"{images}{found[1]}"), word)


def images(data: str, cache: Path) -> Path:
    """The folder of images that DATA names; a tar is unpacked once, beside the caches. Raises
    BadInput for anything else.
    """
    path = Path(data).expanduser().absolute()
    if path.is_dir():
        return _checked(path, data)
    if not path.is_file():
        raise BadInput(
            f"DATA={data}: give a folder with train/<class>/* and val/<class>/*, or a tar of one"
        )
    stat = path.stat()
    # a copy may keep its date, but not the time of its last change
    key = digest(str(path), stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
    folder = cache.absolute() / "reference" / key / path.name.split(".")[0]
    if not folder.is_dir():
        try:
            with atomic_folder(folder) as temporary, tarfile.open(path) as tar:
                tar.extractall(temporary, filter="data")
        except (tarfile.TarError, OSError, EOFError) as error:
            reason = f"not a whole tar of an image folder ({type(error).__name__})"
            raise BadInput(f"DATA={data}: {reason}") from None
    folders = [path for path in folder.iterdir() if path.is_dir()]
    if len(folders) == 1 and folders[0].name not in ("train", "val"):  # a folder around the splits
        folder = folders[0]
    return _checked(folder, data)


def _checked(folder: Path, data: str) -> Path:
    """The folder, if it has classes. Raises BadInput for one without folders."""
    if not any(path.is_dir() for path in folder.iterdir()):
        raise BadInput(
            f"DATA={data}: no folders in it; train/<class>/* and val/<class>/* are needed"
        )
    return folder


def stand_in(folder: Path) -> Path:
    """A small image folder to rehearse with: ten classes of procedural images, 64 px, named as
    ImageNet's are.
    """
    for split, (stream, each) in SPLITS.items():
        count = len(procedural.CLASSES) * each
        pixels, labels = procedural.generate(count, 64, seed=0, stream=stream)
        for i, (image, label) in enumerate(zip(pixels, labels, strict=True)):
            path = folder / split / f"n{label:08d}" / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image.transpose(1, 2, 0)).save(path)
    return folder


def stoppable(kinds: Sequence[str]) -> bool:
    """Whether all of an entry's commands end by themselves when they should."""
    return set(kinds) <= set(STOPPABLE)
