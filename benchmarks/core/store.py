"""Keys and atomic files: an artefact is named by what determines it, and is whole or absent."""

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from benchmarks.core.errors import BadInput

ROOT = Path(__file__).parents[2]  # of the clone
# the folders of the files that come with the suite
SHIPPED_FOLDERS = [ROOT / room / "weights" for room in ("models", "metrics")]


def digest(*parts: Any) -> str:
    """Sixteen hex digits that name a configuration: sha256 of its canonical JSON."""
    # what is no JSON, such as a path, goes by its text
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def seeded(*parts: Any) -> torch.Generator:
    """A CPU generator whose stream is a pure function of `parts`, such as ("noise", seed, step)."""
    # a seed has 63 bits: torch takes a signed number
    return torch.Generator().manual_seed(int(digest(*parts), 16) >> 1)


def file_digest(*paths: str | Path) -> str:
    """sha256 of a file's bytes, in hex; of several files, of their bytes one after the other."""
    total = hashlib.sha256()
    for path in paths:
        with open(path, "rb") as file:
            while chunk := file.read(1 << 20):
                total.update(chunk)
    return total.hexdigest()


@contextlib.contextmanager
def atomic_file(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it takes its place, on failure it goes."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        # else a power cut might leave the new name with nothing behind it
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """As `atomic_file`, for a folder of several files; an older folder of that name is replaced."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    older = path.with_name(f".{path.name}.{os.getpid()}.old")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        yield temporary
        if path.exists():  # the older one goes only when the newer one is in its place
            os.replace(path, older)
        os.replace(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(older, ignore_errors=True)


def write_json(path: str | Path, value: Any) -> None:
    """Write JSON atomically; NaN and infinity are refused, so that any reader can parse it."""
    with atomic_file(path) as temporary:
        temporary.write_text(json.dumps(value, indent=1, allow_nan=False) + "\n")


def as_json(value: Any) -> Any:
    """The value as it would be read back from a JSON file."""
    return json.loads(json.dumps(value))


def read_json(path: str | Path) -> Any | None:
    """The parsed file, or None where it is missing or cut short."""
    try:
        return json.loads(Path(path).read_text())
    except (OSError, ValueError):
        return None


def write_tensors(
    path: str | Path, key: str, tensors: dict[str, torch.Tensor], **extra: str
) -> None:
    """A safetensors file that carries its key (and other strings) with it."""
    on_cpu = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with atomic_file(path) as temporary:
        save_file(on_cpu, str(temporary), metadata=extra | {"key": key})


def read_tensors(
    path: str | Path, key: str
) -> tuple[dict[str, torch.Tensor], dict[str, str]] | None:
    """Tensors and strings of `write_tensors`; None where the file is missing, and with a printed
    line where it is cut short or another key's.
    """
    if not Path(path).exists():
        return None
    try:
        with safe_open(str(path), "pt") as file:
            extra = file.metadata() or {}
            if extra.get("key") != key:
                raise ValueError("another configuration's")
            names = list(file.keys())
            return {name: file.get_tensor(name) for name in names}, extra
    except (OSError, ValueError, SafetensorError) as error:
        print(f"{path} cannot be used ({str(error).splitlines()[0]}); rebuilding it")
        return None


def load_weights(module: nn.Module, path: str | Path, what: str) -> nn.Module:
    """Fill `module` from a safetensors file and freeze it.

    Raises BadInput, in one line, for a file that is missing, cut short, changed (see `check_card`)
    or another network's.
    """
    try:
        state = load_file(str(path))
    except FileNotFoundError:
        raise BadInput(f"{what}: no file {path}; `make train-frozen` writes it") from None
    except (SafetensorError, OSError) as error:
        raise BadInput(f"{what}: {path} is not a whole safetensors file ({error})") from None
    check_card(path, what)
    # files may be in half precision; all that is frozen computes in float32
    state = {k: v.float() if v.is_floating_point() else v for k, v in state.items()}
    try:
        module.load_state_dict(state)
    except RuntimeError:
        raise BadInput(f"{what}: {path} holds another network's weights") from None
    return module.eval().requires_grad_(False)


def check_card(path: str | Path, what: str) -> None:
    """Whether a file is the one that the model card beside it (the same name, .json) describes.

    It must have the sha256 that the card states; the files that came with the suite must have a
    card. Raises BadInput.
    """
    beside = Path(path).with_suffix(".json")
    card = read_json(beside)
    stated = card.get("sha256") if isinstance(card, dict) else None
    if stated is None and (beside.exists() or Path(path).resolve().parent in SHIPPED_FOLDERS):
        raise BadInput(
            f"{what}: the model card {beside} is missing or cut short, so that {path} cannot be "
            "checked; restore both"
        )
    if stated and stated != file_digest(path):
        raise BadInput(
            f"{what}: {path} is not the file its model card describes (sha256 {stated[:12]}...); "
            "restore it or write it anew"
        )
