"""Which autoencoder and codebook: shipped, from a file, pretrained from the hub or a folder, or
trained and fitted on the data itself.
"""

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from benchmarks.core import versions
from benchmarks.core.errors import BadInput, Diverged
from benchmarks.core.locks import load_or_make
from benchmarks.core.settings import is_whole
from benchmarks.core.store import (
    ROOT,
    digest,
    file_digest,
    load_weights,
    read_json,
    read_tensors,
    tensors_digest,
    write_tensors,
)
from benchmarks.frozen import train_autoencoder
from benchmarks.images import hub
from benchmarks.images.stored import Dataset
from metrics import speed
from models.autoencoder import Autoencoder
from models.codebook import Codebook
from models.pixels import Pixels
from models.pretrained import CLASSES, load_pretrained

SHIPPED_FOLDER = ROOT / "models" / "weights"  # of the autoencoder and codebook of the suite
PRETRAINED_FILES = ("config.json", "diffusion_pytorch_model.safetensors")
DEFAULT_SIZE = 2048  # entries of a codebook that is fitted where nobody says how many
SMALLEST, LARGEST = 2, 65536  # entries of a codebook
MOST_AT_ONCE = 128  # images of 64 px to encode or decode together


@dataclass(frozen=True)
class LatentSpace:
    """The frozen autoencoder, its codebook, their names and fingerprints."""

    autoencoder: nn.Module
    codebook: Codebook
    name: str  # of the autoencoder
    codebook_name: str  # where it comes from, and its entries
    key: str  # of both
    autoencoder_key: str

    def to(self, device: torch.device) -> "LatentSpace":
        return replace(
            self, autoencoder=self.autoencoder.to(device), codebook=self.codebook.to(device)
        )

    def at_once(self, image_size: int) -> int:
        """Images to encode or decode together: as many pixels as 128 images of 64 px have."""
        return max(1, min(MOST_AT_ONCE, MOST_AT_ONCE * 64**2 // image_size**2))


def shipped_codebook_size() -> int:
    """Entries of the codebook in models/weights."""
    return len(load_codebook(SHIPPED_FOLDER / "codebook.safetensors").entries)


def latent_shape(cfg: Any, image_size: int) -> tuple[int, int, int]:
    """(C, H, W) of the latents of square images under `conf/autoencoder/*.yaml`.

    Raises BadInput for a size or an autoencoder that cannot be used.
    """
    autoencoder = Autoencoder() if cfg.kind == "trained" else load_autoencoder(cfg)[0]
    factor, side = autoencoder.factor, image_size // autoencoder.factor
    if image_size % factor or side < 4:  # a U-Net halves the latents' side twice
        name = f"autoencoder={cfg.name}"
        if cfg.get("patch"):
            name += f" with autoencoder.patch={cfg.patch}"
        raise BadInput(
            f"data.image_size={image_size}: {name} takes multiples of {factor} "
            f"from {4 * factor} px up"
        )
    return autoencoder.channels, side, side


def load_autoencoder(cfg: Any) -> tuple[nn.Module, str]:
    """An autoencoder that needs no training, frozen, and the sha256 of its files.

    Raises BadInput for files that do not fit.
    """
    if cfg.kind == "shipped":
        path = Path(cfg.get("weights") or SHIPPED_FOLDER / "autoencoder.safetensors").expanduser()
        return load_weights(Autoencoder(), path, "autoencoder.weights"), file_digest(path)
    if cfg.kind == "pixels":
        return Pixels(cfg.patch), digest("pixels", cfg.patch)
    if cfg.kind not in CLASSES:
        known = ", ".join(["shipped", "trained", "pixels", *CLASSES])
        raise BadInput(f"autoencoder.kind={cfg.kind}: one of {known}")
    # `path` may name the hub or a folder; both end as a folder on this machine
    folder = hub.folder(str(cfg.path), PRETRAINED_FILES, "autoencoder.path")
    try:
        autoencoder = load_pretrained(cfg.kind, folder)
    except ValueError as error:
        reason = str(error)[:200]
        raise BadInput(f"autoencoder.path={cfg.path}: not a {cfg.kind}: {reason}") from None
    return autoencoder, file_digest(*(folder / name for name in PRETRAINED_FILES))


def load_codebook(path: Path) -> Codebook:
    """A codebook from its file, frozen. Raises BadInput for one that does not fit."""
    # the shape says how large a Codebook to build before its weights can be loaded
    try:
        with safe_open(str(path), "pt") as file:
            shape = file.get_slice("entries").get_shape()
    except (OSError, SafetensorError) as error:
        raise BadInput(f"autoencoder.codebook: {path} is not a codebook ({error})") from None
    if len(shape) != 2:
        raise BadInput(
            f"autoencoder.codebook: {path} is not a codebook "
            f"(its entries are {len(shape)}-dimensional)"
        )
    return load_weights(Codebook(*shape), path, "autoencoder.codebook")


def load_latent_space(
    cfg: Any, dataset: Dataset, *, cache: str | Path, device: torch.device
) -> LatentSpace:
    """The latent space of `conf/autoencoder/*.yaml` for one data set; what is trained or fitted on
    its images is cached.

    A codebook file is read where one is given; else one is fitted where `codebook_size` is set or
    the autoencoder has none. Raises BadInput.
    """
    cache = Path(cache)
    if cfg.kind == "trained":
        autoencoder, key = _train(cfg.images, cfg.get("seed"), dataset, cache, device)
    else:
        autoencoder, key = load_autoencoder(cfg)
    codebook, codebook_key, source = _codebook(cfg, autoencoder, key, dataset, cache, device)
    # one name for each autoencoder: reports group by it
    own = key[:6] if cfg.get("weights") else cfg.get("patch")
    return LatentSpace(
        autoencoder,
        codebook,
        name=str(cfg.name) if own is None else f"{cfg.name}-{own}",
        codebook_name=f"{source} {codebook.size}",
        key=digest(key, codebook_key),
        autoencoder_key=digest(key),
    )


def _codebook(
    cfg: Any,
    autoencoder: nn.Module,
    key: str,
    dataset: Dataset,
    cache: Path,
    device: torch.device,
) -> tuple[Codebook, str, str]:
    """The codebook for the latents of an autoencoder whose sha256 is `key`; the codebook's sha256,
    and where it comes from.
    """
    file, size = cfg.get("codebook"), cfg.get("codebook_size")
    # a reference to another setting is a default of conf/, which nobody has asked for
    asked = size is not None and not OmegaConf.is_interpolation(cfg, "codebook_size")
    if file:
        if asked:
            raise BadInput(
                "autoencoder.codebook names a file, autoencoder.codebook_size asks for a new one: "
                "set one of them"
            )
        codebook, codebook_key = _load_matching(Path(file).expanduser(), autoencoder, key)
        return codebook, codebook_key, codebook_key[:6]
    if size is None and cfg.kind == "shipped" and not cfg.get("weights"):
        path = SHIPPED_FOLDER / "codebook.safetensors"
        codebook, codebook_key = _load_matching(path, autoencoder, key)
        return codebook, codebook_key, "shipped"
    size = DEFAULT_SIZE if size is None else _checked("codebook_size", size, SMALLEST, LARGEST)
    codebook, codebook_key = _fit(autoencoder.to(device), key, size, dataset, cache, device)
    return codebook, codebook_key, "fitted"


def _load_matching(path: Path, autoencoder: nn.Module, key: str) -> tuple[Codebook, str]:
    """A codebook file and its sha256. Raises BadInput for one that is of other latents, as far as
    its channels and its card tell.
    """
    codebook = load_codebook(path)
    channels = codebook.entries.shape[1]
    if channels != autoencoder.channels:
        raise BadInput(
            f"autoencoder.codebook: {path} has {channels} channels, "
            f"the latents {autoencoder.channels}"
        )
    # tokens of other latents would be of the right shape, and nonsense
    stated = (read_json(path.with_suffix(".json")) or {}).get("autoencoder_sha256")
    if stated and stated != key:
        raise BadInput(
            f"autoencoder.codebook: {path} was fitted on the latents of another autoencoder "
            f"({stated[:12]}...), says its card"
        )
    return codebook, file_digest(path)


def _train(
    images: Any, seed: Any, dataset: Dataset, cache: Path, device: torch.device
) -> tuple[Autoencoder, str]:
    """The shipped architecture, trained on this data's training images and cached; and the sha256
    of its weights.

    `images` is how many to train on, repeats included. Raises BadInput, and Diverged for weights
    that are not finite.
    """
    least = train_autoencoder.BATCH
    if not isinstance(images, int) or images < least:
        raise BadInput(
            f"autoencoder.images={images}: how many images to train on, repeats included; "
            f"{least} or more"
        )
    _checked("seed", seed, 0)
    model = Autoencoder()
    # the shapes, so that another architecture is another artefact
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    recipe = [versions.AUTOENCODER, shapes, images, seed, dataset.train_key]
    key = digest("autoencoder", *recipe, device.type, speed.faster_in_bf16(device))
    path = cache / "autoencoder" / f"{key}.safetensors"

    def make() -> tuple[dict[str, Tensor], dict[str, str]]:
        trained = train_autoencoder.train_autoencoder(
            dataset.train, count=images, device=device.type, seed=seed
        )
        # a cache must never hold what diverged: the next run would take it for good
        if not all(p.isfinite().all() for p in trained.parameters()):
            raise Diverged(f"autoencoder=trained on {dataset.name}: its weights are not finite")
        write_tensors(path, key, trained.state_dict())
        return trained.state_dict(), {}

    weights, _ = load_or_make(path, partial(read_tensors, path, key), make)
    model.load_state_dict(weights)
    return model.eval().requires_grad_(False), tensors_digest(model.state_dict())


def _checked(name: str, value: Any, least: int, most: int | None = None) -> int:
    """A setting of the autoencoder that must be a whole number. Raises BadInput naming it."""
    if not is_whole(value, least) or (most is not None and value > most):
        bounds = f"{least} up" if most is None else f"{least} to {most}"
        raise BadInput(f"autoencoder.{name}={value}: a whole number from {bounds}")
    return value


def _fit(
    autoencoder: nn.Module, key: str, size: int, dataset: Dataset, cache: Path, device: torch.device
) -> tuple[Codebook, str]:
    """A codebook fitted on the latents of this data's training images and cached, and the sha256
    of its entries.

    The entries name it, not the key: machines round differently, and k-means magnifies that.
    """
    key = digest("codebook", versions.CODEBOOK, key, size, dataset.train_key, device.type)
    path = cache / "codebook" / f"{key}.safetensors"

    def make() -> tuple[dict[str, Tensor], dict[str, str]]:
        try:
            fitted = train_autoencoder.fit_codebook(
                autoencoder, dataset.train, size, device=device.type
            )
        except ValueError as error:
            raise BadInput(
                f"autoencoder.codebook_size={size}: {error}; lower it, add training images or, of "
                "the shipped autoencoder, give null for the shipped codebook"
            ) from None
        write_tensors(path, key, fitted.state_dict())
        return fitted.state_dict(), {}

    entries, _ = load_or_make(path, partial(read_tensors, path, key), make)
    codebook = Codebook(*entries["entries"].shape)
    codebook.load_state_dict(entries)
    return codebook.requires_grad_(False), tensors_digest(codebook.state_dict())
