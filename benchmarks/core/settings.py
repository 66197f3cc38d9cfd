"""Settings: the configurations of conf/, composed, flattened, and checked before anything is
computed.
"""

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.errors import HydraException
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from benchmarks.core.errors import BadInput
from benchmarks.core.schema import first_fault, shown
from benchmarks.core.store import ROOT

CONF = ROOT / "conf"
# the last part of the keys whose values are paths; not in `model`, whose class takes what it will
PATHS = ("results_dir", "cache_dir", "path", "weights", "codebook")


def compose(*overrides: str, **options: Any) -> DictConfig:
    """The configuration of a command line of Hydra overrides. HydraException for one that fits
    none.
    """
    with initialize_config_dir(str(CONF), version_base="1.3"):
        try:
            return hydra_compose("config", list(overrides), **options)
        except ValueError as error:  # of `model=null`, say, where Hydra wants a name
            raise HydraException(str(error)) from None


def _results_home(path: Any) -> str:
    """`${home:...}` of conf/config.yaml: where results go, before anything is checked.

    Raises BadInput for what would make a folder of a strange name.
    """
    if not isinstance(path, str) or not path.strip():
        raise BadInput(f"results_dir={shown(path)}: a path")
    return in_home(path, f"results_dir={path}")


def _diffusion_class(objective: Any) -> str:
    """`${diffusion_class:...}` of conf/model: the class that trains with an objective."""
    return "models.flowmap.FlowMap" if objective == "flowmap" else "models.diffusion.Diffusion"


OmegaConf.register_new_resolver("home", _results_home, replace=True)
OmegaConf.register_new_resolver("diffusion_class", _diffusion_class, replace=True)


def model_settings() -> dict[str, dict[str, Any]]:
    """What the files of conf/model say, flat and unresolved, by model."""
    return {name: flatten(_model_file(name)) for name in config_names("model")}


def _model_file(name: str) -> dict[str, Any]:
    """What conf/model/<name>.yaml says, on top of the files that it begins with."""
    said = OmegaConf.load(CONF / "model" / f"{name}.yaml")
    earlier = [_model_file(str(other)) for other in said.pop("defaults", []) if other != "_self_"]
    merged = OmegaConf.merge(*earlier, said)
    return cast(dict[str, Any], OmegaConf.to_container(merged, resolve=False))


def config_names(group: str) -> list[str]:
    """The files of a config group, such as `model`, without `.yaml`, sorted."""
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


def trained_models() -> list[str]:
    """The files of conf/model that are trained here."""
    return [name for name in config_names("model") if name != "pretrained"]


def presets() -> dict[str, str]:
    """The files of conf/experiment, each with its first comment: what it is for."""
    found = {}
    for path in sorted((CONF / "experiment").glob("*.yaml")):
        comments = [
            line[1:].strip()
            for line in path.read_text(encoding="utf-8").splitlines()
            if line[:1] == "#"
        ]
        found[path.stem] = next((line for line in comments if not line.startswith("@")), "")
    return found


def many(value: Any) -> list[Any]:
    """A list of values, or a list of the one that was given."""
    return list(value) if isinstance(value, ListConfig) else [value]


def flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """Nested settings by their dotted names."""
    if not isinstance(value, dict):
        return {prefix: value}
    flat: dict[str, Any] = {}
    for name, inner in value.items():
        flat |= flatten(inner, f"{prefix}.{name}" if prefix else name)
    return flat


def shorten_paths(config: dict[str, Any]) -> None:
    """In place, every absolute path to its last name: a machine's folders do not travel."""
    for key, value in config.items():
        if isinstance(value, dict):
            shorten_paths(value)
        elif isinstance(value, str) and Path(value).is_absolute():
            config[key] = Path(value).name


def out_of_time(cfg: DictConfig) -> bool:
    """Whether the time that the run was given is up."""
    return cfg.stop_at is not None and time.time() > cfg.stop_at


def is_whole(value: Any, least: int) -> bool:
    """Whether it is a whole number (true and false are none) from `least` up."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def check(cfg: DictConfig) -> None:
    """Types and ranges of every setting, before anything is loaded; in place, `~` in a path
    becomes the home folder.

    Raises BadInput, in one line that names the key.
    """
    try:
        settings = {key: _plain(cfg[key]) for key in cfg if key != "hydra"}
    except OmegaConfBaseException as error:
        reason = str(error).splitlines()[0]
        raise BadInput(f"{error.full_key or 'a setting'}: {reason}") from None
    fault = first_fault(settings)
    if fault:
        raise BadInput(fault)
    for key, value in flatten(settings).items():
        group, _, name = key.rpartition(".")
        is_path = name in PATHS and not group.startswith("model")
        if is_path and isinstance(value, str) and value.startswith("~"):
            OmegaConf.update(cfg, key, in_home(value, f"{key}={value}"))


def _plain(value: Any) -> Any:
    """A setting, or a group of them, as plain values with all interpolations resolved."""
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value


def in_home(path: str, given: str) -> str:
    """A path with `~` at its start as the home folder.

    Raises BadInput, naming what was given, for the home of nobody.
    """
    whole = os.path.expanduser(path)
    if whole.startswith("~"):
        raise BadInput(f"{given}: nobody of that name has a home folder here; give the whole path")
    return whole


def with_preset(argv: Sequence[str]) -> list[str]:
    """The arguments, with the default preset where none is asked for."""
    arguments = list(argv)
    named = any(argument.lstrip("+").startswith("experiment=") for argument in arguments)
    if named or {"-h", "--help"} & set(arguments):
        return arguments
    preset, why = "cpu", "no CUDA device"
    if torch.cuda.is_available():
        preset, why = "gpu", "CUDA device found"
    print(f"preset {preset} ({why})", flush=True)
    # beside the other overrides, which argparse wants side by side
    overrides = [i for i, a in enumerate(arguments) if "=" in a and not a.startswith("-")]
    arguments.insert(overrides[0] if overrides else len(arguments), f"experiment={preset}")
    return arguments
