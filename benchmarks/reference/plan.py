"""plan.yaml, the plan of the reference results: what each study answers, how it is made, and
whether it is made by today's code.
"""

import itertools
import json
import re
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
import yaml

from benchmarks.commands.publish import MOST_FIGURES
from benchmarks.core import versions
from benchmarks.core.environment import device_name, git_state, now
from benchmarks.core.errors import BadInput
from benchmarks.core.files import atomic_file
from benchmarks.core.settings import model_settings
from benchmarks.core.store import ROOT, SHIPPED_FOLDERS, digest

PLAN = ROOT / "results" / "reference" / "plan.yaml"
DEVICES = ("cpu", "cuda", "either")
PRESETS = ROOT / "conf" / "experiment"
# the keys of an entry and the type of their values
NEEDED = {
    "name": str,
    "answers": str,
    "device": str,
    "data": str,
    "minutes": int | float,
    "priority": int,
    "runs": list,
}
OPTIONAL = {"machine": str, "made": dict | None, "figures": list, "by_name": bool}
KINDS = {"": "", "cpu": "cpu", "gpu": "cuda", "cuda": "cuda"}  # what ONLY may be, but for names
# which of today's versions, of core/versions.py, a command's results depend on
DEPENDS = {
    "bench": ("models", "scoring", "search", "weights"),
    "perf": ("models",),
    "cost": ("models",),
    "tests": ("models",),
    "study": ("scoring", "weights"),
    "reconstruct": ("weights",),
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
    by_name: bool = False  # made only where it is named

    @property
    def needs_images(self) -> bool:
        return any("{data}" in line for line in self.runs)

    @property
    def kinds(self) -> list[str]:
        """The first word of each run."""
        return [line.split()[0] for line in self.runs]

    def suits(self, device: torch.device) -> bool:
        """Whether this machine is of the kind that the entry wants."""
        # seconds of another processor do not continue a table of this one's
        name = device_name(device)
        return self.device in (device.type, "either") and name.startswith(self.machine)

    def is_todays(self, made: dict[str, Any] | None) -> bool:
        """Whether a line `made` is of today's versions of all that the entry depends on."""
        if made is None:
            return False
        today = todays_versions()
        needed = {name for kind in self.kinds for name in DEPENDS[kind]}
        then = made.get("networks") or {}
        return all(made.get(name) == today[name] for name in needed) and all(
            then.get(name) == versions.NETWORKS[name] for name in self.networks()
        )

    def networks(self) -> list[str]:
        """The networks of `versions.NETWORKS` that are trained for it."""
        texts = [line for line in self.runs if line.startswith("bench ")]
        for line in list(texts):
            preset = re.search(r"\bexperiment=(\w+)", line)
            if preset and " model=" not in line:  # then the preset says which
                texts.append((PRESETS / f"{preset[1]}.yaml").read_text(encoding="utf-8"))
        words = set(re.findall(r"\w+", " ".join(texts)))
        return [name for name in versions.NETWORKS if words & _models_with(name)]

    def state(self, folder: Path) -> str:
        """`made`, `out of date` or `missing`; `folder` is results/reference."""
        if self.made is None or not (folder / self.name).is_dir():
            return "missing"
        return "made" if self.is_todays(self.made) else "out of date"


@cache
def _models_with(network: str) -> set[str]:
    """The models of conf/ that have this class as their network."""
    target = "denoiser._target_"
    return {name for name, said in model_settings().items() if said.get(target) == network}


def todays_versions() -> dict[str, Any]:
    """Today's versions of the models and their training, of networks that changed alone, of the
    scoring, of the search for settings of sampling, and of the weights that come with the suite.
    """
    return {
        "models": versions.TRAINING,
        "networks": dict(versions.NETWORKS),
        "scoring": versions.SCORING,
        "search": versions.SEARCH,
        "weights": _shipped_weights(),
    }


@cache
def _shipped_weights() -> str:
    """A short digest of all shipped networks, by what their cards say of their files."""
    cards = [card for folder in SHIPPED_FOLDERS for card in folder.glob("*.json")]
    contents = [json.loads(card.read_text(encoding="utf-8")) for card in cards]
    return digest(sorted(card["sha256"] for card in contents if "sha256" in card))[:8]


def load(path: Path = PLAN) -> list[Entry]:
    """The plan, most valuable first. Raises BadInput, in one line, for what cannot be one."""
    try:
        entries = [
            _entry(given, path) for given in yaml.safe_load(path.read_text(encoding="utf-8"))
        ]
    except (OSError, yaml.YAMLError, TypeError) as error:
        reason = str(error).splitlines()[0]
        raise BadInput(
            f"{path} cannot be read as a list of studies ({reason}); restore it"
        ) from None
    names = [entry.name for entry in entries]
    for name in sorted(names):
        if names.count(name) > 1:
            raise BadInput(f"{path}: two entries are called {name}; names are folders and differ")
    return sorted(entries, key=lambda entry: entry.priority)


def _entry(given: Any, path: Path) -> Entry:
    """An entry of the file. Raises BadInput, naming it, for what cannot be one."""
    if not isinstance(given, dict):
        raise BadInput(f"{path}: entry {given}: needs {', '.join(NEEDED)}")
    reason = _key_fault(given) or _value_fault(given)
    if reason:
        raise BadInput(f"{path}: entry {given.get('name')}: {reason}")
    return Entry(**given)


def _key_fault(given: dict[str, Any]) -> str | None:
    """What is wrong with an entry's keys, or with the types of their values."""
    types = NEEDED | OPTIONAL
    if not set(NEEDED) <= set(given) <= set(types):
        may = f"may have {', '.join(OPTIONAL)}; nothing else"
        return f"needs {', '.join(NEEDED)}, and {may}"
    for key, value in given.items():
        if not isinstance(value, types[key]):
            return f"{key}: {value!r} is not what belongs there"
    return None


def _value_fault(given: dict[str, Any]) -> str | None:
    """What is wrong with the values of an entry whose keys and types are right."""
    # a name becomes a folder: no separators, nothing that leads upwards
    if not re.fullmatch(r"[\w.-]+", given["name"]) or given["device"] not in DEVICES:
        return f"the name is a folder's, the device one of {', '.join(DEVICES)}"
    lines = [str(line).split() for line in given["runs"]]
    if not lines or any(not words or words[0] not in DEPENDS for words in lines):
        return f"each of runs begins with one of {', '.join(DEPENDS)}"
    if len(given.get("figures", [])) > MOST_FIGURES:
        return f"at most {MOST_FIGURES} figures are kept"
    # a preset that is gone would be noticed only when its turn comes, on a machine that costs
    for word in itertools.chain(*lines):
        key, _, preset = word.partition("=")
        if key == "experiment" and not (PRESETS / f"{preset}.yaml").exists():
            return f"{word}: conf/experiment has no such preset; mend or remove the entry"
    return None


def made_now(device: torch.device) -> dict[str, Any]:
    """What the line `made` says of something made now, here."""
    git = git_state()
    commit = str(git["git_sha"])
    if git["git_dirty"]:
        commit += "-dirty"
    date, _, _ = now().partition("T")
    return todays_versions() | {
        "commit": commit,
        "date": date,
        "device": device_name(device),
    }


def mark(name: str, made: dict[str, Any], path: Path = PLAN) -> None:
    """Write an entry's line `made`; all else in the file, comments too, stays as it is. Raises
    BadInput where it has no such line.
    """
    # on one line, however long, so that it can be replaced line by line
    value = yaml.safe_dump(made, default_flow_style=True, sort_keys=False, width=1000).strip()
    lines = path.read_text(encoding="utf-8").splitlines()
    inside, marked = False, 0
    for i, line in enumerate(lines):
        if line.startswith("- name:"):
            inside = line.split(":", 1)[1].strip() == name
        elif inside and line.startswith("  made:"):
            lines[i] = f"  made: {value}"
            marked += 1
    # a `made` over several lines would leave its rest behind
    if marked != 1:
        raise BadInput(f"{path}: entry {name} needs one line `made:`, in one line; it has {marked}")
    with atomic_file(path) as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")


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
        of_kind = [entry for entry in entries if kind in ("", entry.device)]
        mine = [entry for entry in of_kind if entry.suits(device) and not entry.by_name]
        return [entry for entry in mine if entry.state(folder) != "made"]
    wanted = named(entries, only)
    for entry in wanted:
        if not entry.suits(device):
            wants = ", ".join(word for word in (entry.device, entry.machine) if word)
            here = f"this machine is {device_name(device)}"
            raise BadInput(f"ONLY={only}: {entry.name} is for {wants}; {here}")
    return wanted


def named(entries: list[Entry], only: str) -> list[Entry]:
    """The entries of these names, separated by commas, in the plan's order. Raises BadInput for a
    name that the plan does not have.
    """
    wanted = [name for name in re.split(r"[,\s]+", only) if name]
    planned = [entry.name for entry in entries]
    for name in wanted or [only]:
        if name not in planned:
            choices = f"give cpu, or gpu, or names: {', '.join(planned)}"
            raise BadInput(f"ONLY={only}: the plan has no {name}; {choices}")
    return [entry for entry in entries if entry.name in wanted]
