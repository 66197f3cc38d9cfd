"""The plan of the reference results: what each study answers, how it is made, and whether it is
made by today's code.
"""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml

from benchmarks.commands.publish import MOST_FIGURES
from benchmarks.core import versions
from benchmarks.core.environment import device_name, git_state, now
from benchmarks.core.errors import BadInput
from benchmarks.core.store import ROOT, atomic_file

PLAN = ROOT / "results" / "reference" / "plan.yaml"
DEVICES = ("cpu", "cuda", "either")
NEEDED = {
    "name": str,
    "answers": str,
    "device": str,
    "data": str,
    "minutes": int | float,
    "priority": int,
    "runs": list,
}
OPTIONAL = {"machine": str, "made": dict | None, "figures": list}
KINDS = {"": "", "cpu": "cpu", "gpu": "cuda", "cuda": "cuda"}  # what ONLY may be, but for names
# which of today's versions a command's results depend on
DEPENDS = {
    "bench": ("models", "scoring"),
    "perf": ("models",),
    "cost": ("models",),
    "tests": ("models",),
    "study": ("scoring",),
    "reconstruct": (),
}


@dataclass(frozen=True)
class Entry:
    """One study of the plan; the fields are described at the head of plan.yaml."""

    name: str
    answers: str
    device: str
    data: str
    minutes: float
    priority: int
    runs: list[str]
    machine: str = ""
    made: dict[str, Any] | None = None
    figures: list[str] = field(default_factory=list)

    @property
    def needs_images(self) -> bool:
        return any("{data}" in line for line in self.runs)

    @property
    def kinds(self) -> list[str]:
        """The first word of each run."""
        return [line.split()[0] for line in self.runs]

    def suits(self, device: torch.device) -> bool:
        """Whether this machine is of the kind that the entry wants."""
        name = device_name(device)
        return self.device in (device.type, "either") and name.startswith(self.machine)

    def is_todays(self, made: dict[str, Any] | None) -> bool:
        """Whether what `made` says was made by today's versions of all that the entry depends on."""
        wanted = {name for kind in self.kinds for name in DEPENDS[kind]}
        return made is not None and all(
            made.get(name) == todays_versions()[name] for name in wanted
        )

    def state(self, folder: Path) -> str:
        """`made`, `out of date` or `missing`; `folder` is results/reference."""
        if self.made is None or not (folder / self.name).is_dir():
            return "missing"
        return "made" if self.is_todays(self.made) else "out of date"


def todays_versions() -> dict[str, int]:
    """Today's versions of the models and their training, and of the scoring."""
    return {"models": versions.TRAINING, "scoring": versions.SCORING}


def load(path: Path = PLAN) -> list[Entry]:
    """The plan, most valuable first. Raises BadInput, in one line, for what cannot be one."""
    try:
        entries = [_entry(given, path) for given in yaml.safe_load(path.read_text())]
    except (OSError, yaml.YAMLError, TypeError) as error:
        raise BadInput(
            f"{path} cannot be read as a list of studies ({str(error).splitlines()[0]}); restore it"
        ) from None
    names = [entry.name for entry in entries]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise BadInput(
            f"{path}: two entries are called {twice[0]}; names are folders and must differ"
        )
    return sorted(entries, key=lambda entry: entry.priority)


def _entry(given: Any, path: Path) -> Entry:
    name = given.get("name") if isinstance(given, dict) else given
    if not isinstance(given, dict) or not set(NEEDED) <= set(given) <= set(NEEDED) | set(OPTIONAL):
        raise BadInput(
            f"{path}: entry {name}: needs {', '.join(NEEDED)}, and may have {', '.join(OPTIONAL)}; nothing else"
        )
    for key, value in given.items():
        if not isinstance(value, (NEEDED | OPTIONAL)[key]):
            raise BadInput(f"{path}: entry {name}: {key}: {value!r} is not what belongs there")
    if not re.fullmatch(r"[\w.-]+", given["name"]) or given["device"] not in DEVICES:
        raise BadInput(
            f"{path}: entry {name}: the name is a folder's, the device one of {', '.join(DEVICES)}"
        )
    if not given["runs"] or any(
        not str(line).split() or str(line).split()[0] not in DEPENDS for line in given["runs"]
    ):
        raise BadInput(
            f"{path}: entry {name}: each of runs begins with one of {', '.join(DEPENDS)}"
        )
    if len(given.get("figures", [])) > MOST_FIGURES:
        raise BadInput(f"{path}: entry {name}: at most {MOST_FIGURES} figures are kept")
    presets = [
        word.removeprefix("experiment=")
        for line in given["runs"]
        for word in line.split()
        if word.startswith("experiment=")
    ]
    if gone := [
        preset
        for preset in presets
        if not (ROOT / "conf" / "experiment" / f"{preset}.yaml").exists()
    ]:
        raise BadInput(
            f"{path}: entry {name}: experiment={gone[0]}: conf/experiment has no such preset; mend or remove the entry"
        )
    return Entry(**given)


def made_now(device: torch.device) -> dict[str, Any]:
    """What the line `made` says of something made now, here."""
    git = git_state()
    commit = f"{git['git_sha']}{'-dirty' if git['git_dirty'] else ''}"
    return todays_versions() | {
        "commit": commit,
        "date": now()[:10],
        "device": device_name(device),
    }


def mark(name: str, made: dict[str, Any], path: Path = PLAN) -> None:
    """Write an entry's line `made`; all else in the file, comments too, stays as it is. Raises
    BadInput where it has no such line.
    """
    lines, here, marked = path.read_text().splitlines(), False, 0
    for i, line in enumerate(lines):
        if line.startswith("- name:"):
            here = line.split(":", 1)[1].strip() == name
        elif here and line.startswith("  made:"):
            marked += 1
            lines[i] = (
                "  made: "
                + yaml.safe_dump(made, default_flow_style=True, sort_keys=False, width=1000).strip()
            )
    if marked != 1:
        raise BadInput(f"{path}: entry {name} needs one line `made:`, in one line; it has {marked}")
    with atomic_file(path) as temporary:
        temporary.write_text("\n".join(lines) + "\n")


def chosen(entries: list[Entry], only: str, device: torch.device, folder: Path) -> list[Entry]:
    """What to make on this machine: of all that it suits what is missing or out of date; entries
    that are named are made in any case.

    `only` is empty, a kind of device (cpu, gpu, cuda), or names. Raises BadInput for a name that
    the plan does not have, and for an entry that is named and does not suit this machine.
    """
    kind = KINDS.get(only)
    if kind == "cuda" and device.type != "cuda":
        raise BadInput(
            f"ONLY={only}: no CUDA device found; REHEARSE=1 runs these in miniature on any machine"
        )
    if kind is not None:
        mine = [entry for entry in entries if entry.suits(device) and entry.state(folder) != "made"]
        return [entry for entry in mine if kind in ("", entry.device)]
    wanted = named(entries, only)
    if unsuited := [entry for entry in wanted if not entry.suits(device)]:
        entry = unsuited[0]
        wants = f"{entry.device}{', ' + entry.machine if entry.machine else ''}"
        raise BadInput(
            f"ONLY={only}: {entry.name} is for {wants}; this machine is {device_name(device)}"
        )
    return wanted


def named(entries: list[Entry], only: str) -> list[Entry]:
    """The entries of these names, separated by commas, in the plan's order. Raises BadInput for a
    name that the plan does not have.
    """
    wanted, known = (
        [name for name in re.split(r"[,\s]+", only) if name],
        [entry.name for entry in entries],
    )
    if unknown := [name for name in wanted or [only] if name not in known]:
        raise BadInput(
            f"ONLY={only}: the plan has no {unknown[0]}; give cpu, or gpu, or names: {', '.join(known)}"
        )
    return [entry for entry in entries if entry.name in wanted]
