"""Keys and artefacts: each is named by what determines it, and carries a digest of what it holds.

What does not fit its own digest is as good as absent: it is made again.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from benchmarks.core.errors import BadInput
from benchmarks.core.files import atomic_file
from benchmarks.core.session import session

ROOT = Path(__file__).parents[2]  # of the clone
ABOUT = "latentbench"  # the entry of a safetensors file's metadata that holds ours
SEAL = "digest"  # the entry of a JSON object that holds its digest
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


def write_json(path: str | Path, value: Any) -> None:
    """Write JSON atomically; NaN and infinity are refused, so that any reader can parse it."""
    with atomic_file(path) as temporary:
        text = json.dumps(value, indent=1, allow_nan=False) + "\n"
        temporary.write_text(text, encoding="utf-8")


def as_json(value: Any) -> Any:
    """The value as it would be read back from a JSON file."""
    return json.loads(json.dumps(value))


def read_json(path: str | Path) -> Any | None:
    """The parsed file, or None where it is missing or cut short."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None


def first_line(error: Exception) -> str:
    """An error of some library in part of a line."""
    lines = str(error).strip().splitlines()
    return lines[0][:160] if lines else type(error).__name__


def seal(value: dict[str, Any]) -> dict[str, Any]:
    """The value with its own digest, as it will be read back from JSON."""
    plain = as_json({name: entry for name, entry in value.items() if name != SEAL})
    return plain | {SEAL: digest(plain)}


def is_sealed(value: Any) -> bool:
    """Whether a value read from JSON is the one that `seal` gave."""
    return isinstance(value, dict) and SEAL in value and value == seal(value)


def write_sealed(path: str | Path, value: dict[str, Any]) -> None:
    """`write_json`, with a digest of the value in it."""
    write_json(path, seal(value))


def read_sealed(path: str | Path) -> dict[str, Any] | None:
    """What `write_sealed` wrote, without its digest; None where the file is missing, and with a
    printed line where it is cut short or was changed.
    """
    value = read_json(path)
    if is_sealed(value):
        return {name: entry for name, entry in value.items() if name != SEAL}
    if Path(path).exists():
        print(f"{path} cannot be used (it was cut short, changed, or is of an earlier version)")
    return None


def write_tensors(
    path: str | Path, key: str, tensors: dict[str, torch.Tensor], **extra: str
) -> None:
    """A safetensors file that carries its key, other strings and a digest of all with it."""
    on_cpu = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    texts = extra | {"key": key}
    with atomic_file(path) as temporary:
        sealed = texts | {SEAL: tensors_digest(on_cpu, texts)}
        # one entry: the order of several would be left to chance, and so would the file's bytes
        save_file(on_cpu, str(temporary), metadata={ABOUT: json.dumps(sealed, sort_keys=True)})


def read_tensors(
    path: str | Path, key: str
) -> tuple[dict[str, torch.Tensor], dict[str, str]] | None:
    """Tensors and strings of `write_tensors`; None where the file is missing, and with a printed
    line where it is cut short, changed or another key's.
    """
    if not Path(path).exists():
        return None
    try:
        with safe_open(str(path), "pt") as file:
            texts = json.loads((file.metadata() or {}).get(ABOUT, "{}"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        stated = texts.pop(SEAL, None)
        if texts.get("key") != key:
            raise ValueError("another configuration's")
        # once a process: every cell of a sweep reads the latents
        if stamp_of(path) not in session.checked and stated != tensors_digest(tensors, texts):
            raise ValueError("it was changed, or is of an earlier version")
        session.checked.add(stamp_of(path))
    except MemoryError:
        raise
    except Exception as error:  # whatever a damaged file leads its reader to
        print(f"{path} cannot be used ({first_line(error)}); rebuilding it")
        return None
    return tensors, texts


def stamp_of(path: str | Path) -> tuple:
    """Changes with the file."""
    found = Path(path).stat()
    return str(path), found.st_size, found.st_mtime_ns, found.st_ino


def tensors_digest(tensors: dict[str, torch.Tensor], texts: dict[str, str] | None = None) -> str:
    """sha256 of names, types, shapes and bytes, in hex, and of strings beside them.

    It names what a file holds, whatever the file's format.
    """
    total = hashlib.sha256(json.dumps(texts or {}, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        on_cpu = tensor.detach().cpu().contiguous()
        total.update(f"{name} {on_cpu.dtype} {tuple(on_cpu.shape)}".encode())
        total.update(on_cpu.reshape(-1).view(torch.uint8).numpy())
    return total.hexdigest()


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
