"""Which files of a folder are images: the one lister of every command.

What is listed is what a person would list. Whatever else lies there is counted, and said.
"""

import os
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from benchmarks.core.errors import BadInput
from benchmarks.core.text import printable
from benchmarks.images.decode import is_image

SUFFIXES = {
    *(".jpeg", ".jpg", ".jpe", ".jfif", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff"),
    *(".ppm", ".pgm", ".avif", ".jp2", ".tga"),
}
REASONS_SHOWN = 6


class Children(NamedTuple):
    """What is in a folder, but for what is left out."""

    folders: list[Path]
    images: list[Path]


@dataclass
class Walk:
    """One listing of one or several folders: what was left out, and where it has been."""

    setting: str  # the setting that names the folder, and its value, for errors
    left_out: dict[str, list[str]] = field(default_factory=dict)  # reason -> names
    # device and inode of each folder that was listed, with the path that led there
    visited: dict[tuple[int, int], Path] = field(default_factory=dict)
    looked_at: dict[Path, Children] = field(default_factory=dict)

    def leave_out(self, reason: str, path: Path) -> None:
        self.left_out.setdefault(reason, []).append(printable(path.name))

    def take_back(self, path: Path) -> None:
        """A file that was left out of the images has been used for something else."""
        for reason, names in list(self.left_out.items()):
            if printable(path.name) in names:
                names.remove(printable(path.name))
            if not names:
                del self.left_out[reason]

    def enter(self, folder: Path) -> bool:
        """Whether a folder is met for the first time. Raises BadInput for a loop of links."""
        found = folder.stat()
        place = (found.st_dev, found.st_ino)
        before = self.visited.get(place)
        if before is None:
            self.visited[place] = folder
            return True
        if folder.is_relative_to(before):
            raise BadInput(
                f"{self.setting}: {printable(str(folder))} is a link to a folder that it lies in; "
                "remove the link"
            )
        self.leave_out("folder that another name leads to", folder)
        return False

    def summary(self) -> str | None:
        """What was left out, in part of a line; None where nothing was."""
        counts = sorted(self.left_out.items(), key=lambda reason: -len(reason[1]))
        shown = [f"{len(names)} {reason} ({names[0]})" for reason, names in counts[:REASONS_SHOWN]]
        if len(counts) > REASONS_SHOWN:
            shown.append(f"{sum(len(names) for _, names in counts[REASONS_SHOWN:])} others")
        return ", ".join(shown) or None


def look(folder: Path, walk: Walk) -> Children:
    """The folders and the images in a folder, by name, linked ones too.

    Whatever else lies there is counted as left out. Raises BadInput for a folder that cannot be
    read.
    """
    if folder in walk.looked_at:
        return walk.looked_at[folder]
    try:
        with os.scandir(folder) as children:
            by_name = sorted(children, key=lambda child: child.name)
    except OSError as error:
        reason = f"cannot be listed ({error.strerror}); mend its permissions or leave it out"
        raise BadInput(f"{walk.setting}: {printable(str(folder))} {reason}") from None
    found = walk.looked_at[folder] = Children([], [])
    for child in by_name:
        path = Path(child.path)
        # what editors, notebooks and file managers leave behind
        if child.name.startswith("."):
            walk.leave_out("hidden", path)
        elif _is_folder(child):
            found.folders.append(path)
        elif _is_wanted(path, walk):
            found.images.append(path)
    return found


def _is_folder(child: os.DirEntry) -> bool:
    """Of most file systems without asking the disk again; a link to itself leads nowhere."""
    try:
        return child.is_dir()
    except OSError:
        return False


def list_images(folder: Path, walk: Walk) -> list[Path]:
    """The images of a folder and of the folders in it, in the order of their names.

    Links are followed, each folder once. Raises BadInput for links that lead back to a folder that
    they lie in, and for folders that cannot be read.
    """
    if not walk.enter(folder):
        return []
    found = look(folder, walk)
    inside = [path for child in found.folders for path in list_images(child, walk)]
    return sorted([*found.images, *inside])


def _is_wanted(path: Path, walk: Walk) -> bool:
    """Whether a file is an image by its name or, without a suffix, by its first bytes."""
    try:
        mode = path.stat().st_mode
    except OSError:
        walk.leave_out("broken link", path)
        return False
    if not stat.S_ISREG(mode):  # opening a pipe would wait for ever
        walk.leave_out("no regular file", path)
        return False
    suffix = path.suffix.lower()
    if suffix in SUFFIXES or (not suffix and is_image(path)):
        return True
    walk.leave_out(printable(suffix) or "without suffix and no image", path)
    return False
