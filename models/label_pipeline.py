"""A class-conditional pipeline of diffusers (`DiTPipeline`, `ConsistencyModelPipeline`) that was
trained elsewhere, from a folder in the hub's format.

Nothing of the folder is run as code: classes are diffusers' own, weights are safetensors, and each
network must hold all of its weights.
"""

import inspect
import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import DiffusionPipeline, ModelMixin, SchedulerMixin
from diffusers.utils import logging
from torch import LongTensor, Tensor, nn

from models.image_model import ImageModel
from models.randomness import spawn

INDEX = "model_index.json"
IMAGENET_CLASSES = 1000
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


class LabelPipeline(ImageModel):
    """A pipeline that takes class labels, with its own scheduler as it was published.

    `labels` are the pipeline's labels of the data's classes, in their order. Without them they are
    found by the classes' names in the pipeline's `id2label`, else by ImageNet's numbers, else taken
    as they stand where both have equally many (`labels_by` says which). `weights` names the files.

    The pipeline starts from noise of one generator per image. A scheduler that adds noise on the
    way takes it from the batch, so that images then depend on the batch's size, too.

    Raises ValueError for a folder that holds no such pipeline, for one that makes images of another
    size, and for labels that do not fit.
    """

    def __init__(
        self,
        image_size: int,
        classes: Sequence[str],
        imagenet_labels: Sequence[int] | None,
        *,
        path: str,
        weights: str = "",
        labels: Sequence[int] | None = None,
        precision: str = "fp32",
    ):
        super().__init__(image_size, len(classes))
        if precision not in DTYPES:
            raise ValueError(f"precision={precision}: one of {', '.join(DTYPES)}")
        self.pipeline, index = load_pipeline(Path(path), DTYPES[precision])
        # registered, so that they are counted and moved with this module
        self.denoiser = denoiser_of(self.pipeline)
        self.decoder = getattr(self.pipeline, "vae", None)
        if self.decoder is not None:
            self.decoder.requires_grad_(False)  # parameters are counted without the decoder
        self._check_size(image_size)
        names = {int(key): name for key, name in (index.get("id2label") or {}).items()}
        own = self._own_classes()
        self.labels, self.labels_by = matched(classes, names, imagenet_labels, own, labels)
        self.takes = set(inspect.signature(type(self.pipeline).__call__).parameters)
        self._fingerprint = f"{weights} {precision} {self.labels}"

    def fingerprint(self) -> str:
        return self._fingerprint

    def _check_size(self, image_size: int) -> None:
        size, kind = self.denoiser.config.sample_size, type(self.pipeline).__name__
        if not isinstance(size, int):
            raise ValueError(f"its sample_size is {size}, where {kind} takes one number")
        side = size * self._factor()
        if side != image_size:
            raise ValueError(f"it makes images of {side} px, data.image_size is {image_size}")

    def _factor(self) -> int:
        """Pixels a latent along each side; 1 where it works on pixels."""
        return 1 if self.decoder is None else 2 ** (len(self.decoder.config.block_out_channels) - 1)

    def _own_classes(self) -> int:
        config = self.denoiser.config
        count = config.get("num_embeds_ada_norm") or config.get("num_class_embeds")
        if not count:
            raise ValueError("its network takes no class labels")
        return count

    # --- sampling

    @property
    def guided(self) -> bool:
        """Whether it can be guided at all."""
        return "guidance_scale" in self.takes

    @property
    def null_label_is_missing(self) -> bool:
        """Whether the label that diffusers has written into `DiTPipeline` stands for something else
        here.
        """
        of_dit = type(self.pipeline).__name__ == "DiTPipeline"
        return of_dit and self._own_classes() != IMAGENET_CLASSES

    def supported_steps(self, requested: Iterable[int]) -> list[int]:
        return [steps for steps in requested if self._timesteps(steps)]

    def _timesteps(self, steps: int) -> int:
        """How many steps its scheduler makes of `steps`; 0 where it cannot."""
        scheduler = self.pipeline.scheduler
        if not 1 <= steps <= scheduler.config.num_train_timesteps:
            return 0
        try:
            scheduler.set_timesteps(steps)
        except (ValueError, IndexError, ZeroDivisionError):
            return 0
        return len(scheduler.timesteps)

    def nfe(self, steps: int, guidance: float) -> int:
        if guidance < 1:
            raise ValueError(f"guidance={guidance:g}: a pipeline takes scales from 1 up")
        if guidance != 1 and not self.guided:
            name = type(self.pipeline).__name__
            raise ValueError(f"guidance={guidance:g}: {name} has no guidance; give guidance=[1]")
        if guidance != 1 and self.null_label_is_missing:
            raise ValueError(
                f"guidance={guidance:g}: DiTPipeline takes label 1000 for none, and this network "
                f"has {self._own_classes()} labels; give guidance=[1]"
            )
        evaluations = self._timesteps(steps)
        if not evaluations:
            raise ValueError(f"steps={steps}: its scheduler takes no such count")
        return evaluations * (1 if guidance == 1 else 2)

    def evaluation(self, labels: LongTensor) -> Tensor:
        config, like = self.denoiser.config, next(self.denoiser.parameters())
        shape = (len(labels), config.in_channels, config.sample_size, config.sample_size)
        noisy = torch.empty(shape, device=like.device, dtype=like.dtype)
        timestep = torch.zeros_like(labels)
        return self.denoiser(noisy, timestep, class_labels=labels, return_dict=False)[0]

    def decoding(self) -> Tensor | None:
        if self.decoder is None:
            return None
        config, like = self.denoiser.config, next(self.decoder.parameters())
        shape = (1, config.in_channels, config.sample_size, config.sample_size)
        latents = torch.empty(shape, device=like.device, dtype=like.dtype)
        return self.decoder.decode(latents, return_dict=False)[0]

    @torch.inference_mode()
    def sample(
        self, labels: LongTensor, *, steps: int, guidance: float, rng: torch.Generator
    ) -> Tensor:
        evaluations = self.nfe(steps, guidance)
        rngs = spawn(rng, len(labels))
        call = {
            "class_labels": [self.labels[label] for label in labels.tolist()],
            "num_inference_steps": steps,
            "generator": rngs,
            "output_type": "pt",
        }
        if "batch_size" in self.takes:
            call["batch_size"] = len(labels)
        if self.guided:
            call["guidance_scale"] = guidance
        with self._global_noise(rngs[0].initial_seed()), self._counted() as rows:
            images = self.pipeline(**call).images
        if sum(rows) != evaluations * len(labels):
            raise ValueError(
                f"its network was evaluated {sum(rows) / len(labels):g} times an image, "
                f"where {evaluations} are counted: this pipeline cannot be measured"
            )
        if not isinstance(images, Tensor):  # as earlier versions of diffusers gave them, 0.37 too
            images = torch.from_numpy(images).permute(0, 3, 1, 2)
        if not images.isfinite().all():  # as bytes they would be black, and scored
            raise FloatingPointError(f"its images are not finite, at {steps} steps")
        return (images.float().clamp(0, 1) * 255).round().to(torch.uint8)

    @contextmanager
    def _global_noise(self, seed: int) -> Iterator[None]:
        """Within, noise that a scheduler adds without a generator is a function of `seed`."""
        device = next(self.denoiser.parameters()).device
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(seed)
            yield

    @contextmanager
    def _counted(self) -> Iterator[list[int]]:
        """Within, the images of every evaluation are appended to the list."""
        rows: list[int] = []
        hook = self.denoiser.register_forward_hook(lambda _, args, __: rows.append(len(args[0])))
        try:
            yield rows
        finally:
            hook.remove()


def load_pipeline(folder: Path, dtype: torch.dtype) -> tuple[DiffusionPipeline, dict[str, Any]]:
    """The pipeline of a folder in the hub's format, and its index.

    Raises ValueError for what is no whole class-conditional pipeline of diffusers' own parts.
    """
    logging.set_verbosity_error()  # what it would warn of is an error below
    index = _read_index(folder)
    name = index.get("_class_name")
    kind = getattr(diffusers, name, None) if isinstance(name, str) else None
    if not (inspect.isclass(kind) and issubclass(kind, DiffusionPipeline)):
        what = f"its _class_name, {name}," if name else f"{INDEX} has no _class_name, which"
        raise ValueError(f"{what} is no pipeline of diffusers, and no other code is run")
    if "class_labels" not in inspect.signature(kind.__call__).parameters:
        raise ValueError(f"{name} takes no class labels")
    parts: dict[str, Any] = {}
    for part in inspect.signature(kind.__init__).parameters:
        if part in index and part != "id2label":
            parts[part] = _load_part(folder, part, index[part], dtype)
    try:
        pipeline = kind(**parts, **{k: index[k] for k in ("id2label",) if k in index})
    except TypeError as error:
        raise ValueError(f"{name} is not whole: {error}") from None
    pipeline.set_progress_bar_config(disable=True)
    return pipeline, index


def _read_index(folder: Path) -> dict[str, Any]:
    try:
        index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{INDEX} cannot be read ({error})") from None
    if not isinstance(index, dict):
        raise ValueError(f"{INDEX} is no table of parts")
    return index


def _load_part(folder: Path, name: str, named: Any, dtype: torch.dtype) -> Any:
    """A network or a scheduler of diffusers from its own folder. Raises ValueError."""
    library, kind_name = named if isinstance(named, list) and len(named) == 2 else (None, None)
    kind = getattr(diffusers, str(kind_name), None) if library == "diffusers" else None
    if not (inspect.isclass(kind) and issubclass(kind, ModelMixin | SchedulerMixin)):
        raise ValueError(f"its {name} is {named}, no network or scheduler of diffusers")
    weights = folder / name
    if not issubclass(kind, SchedulerMixin) and not any(weights.glob("*.safetensors")):
        raise ValueError(
            f"its {name} has no safetensors; where you trust the file, load it with diffusers "
            "elsewhere and write it anew with save_pretrained(..., safe_serialization=True)"
        )
    try:
        if issubclass(kind, SchedulerMixin):
            return kind.from_pretrained(folder / name, local_files_only=True)
        net, info = kind.from_pretrained(
            folder / name,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
            torch_dtype=dtype,
        )
    except Exception as error:  # diffusers raises many kinds for a damaged folder
        raise ValueError(f"its {name}: {' '.join(str(error).split())[:200]}") from None
    # diffusers would go on with random weights for these
    misfits = [*info["missing_keys"], *info["unexpected_keys"], *info["mismatched_keys"]]
    if misfits:
        raise ValueError(
            f"its {name} has another network's weights "
            f"({len(misfits)} names do not fit, e.g. {misfits[0]})"
        )
    return net.eval()


def denoiser_of(pipeline: DiffusionPipeline) -> nn.Module:
    """The network that is evaluated at every step. Raises ValueError where there is none."""
    for name in ("transformer", "unet"):
        if isinstance(getattr(pipeline, name, None), nn.Module):
            return getattr(pipeline, name)
    raise ValueError("it has neither a transformer nor a unet")


def matched(
    classes: Sequence[str],
    names: dict[int, str],
    imagenet_labels: Sequence[int] | None,
    own: int,
    given: Sequence[int] | None,
) -> tuple[list[int], str]:
    """The pipeline's label of each class, and by what they were matched.

    `names` are the pipeline's own, by label; `own` is how many labels it has. Raises ValueError
    where they cannot be matched, or do not exist.
    """
    called: dict[str, list[int]] = {}
    for label, name in names.items():  # ImageNet has two classes called crane
        called.setdefault(name, []).append(label)
    if given is not None:
        labels, how = list(given), "as given"
        if len(labels) != len(classes):
            raise ValueError(f"labels: {len(labels)} for {len(classes)} classes")
    elif all(len(called.get(name, [])) == 1 for name in classes):
        labels, how = [called[name][0] for name in classes], "by the names of the classes"
    elif imagenet_labels is not None and own == IMAGENET_CLASSES:
        labels, how = list(imagenet_labels), "by ImageNet's order of WordNet ids"
    elif len(classes) == own:
        _refuse_another_order(classes, called)
        labels, how = list(range(own)), _how_alike(classes, names)
    else:
        raise ValueError(
            f"it has {own} labels and the data {len(classes)} classes, of other names; "
            "give model.labels=[...], the pipeline's label of each class in order"
        )
    wrong = [label for label in labels if not 0 <= label < own]
    if wrong or len(set(labels)) < len(labels):
        reason = f"{wrong[0]} is not among its {own}" if wrong else "a label is given twice"
        raise ValueError(f"labels: {reason}")
    return labels, how


def _refuse_another_order(classes: Sequence[str], called: dict[str, list[int]]) -> None:
    """Raises ValueError where a class is there by its name, at another label than its own."""
    for label, name in enumerate(classes):
        if len(called.get(name, [])) == 1 and called[name] != [label]:
            raise ValueError(
                f"{name} is label {called[name][0]} there and {label} in the data, and other names "
                "fit nothing; give model.labels=[...], the pipeline's label of each class in order"
            )


def _how_alike(classes: Sequence[str], names: dict[int, str]) -> str:
    """Of labels in one order, how far the names of both agree with that."""
    alike = sum(names.get(label) == name for label, name in enumerate(classes))
    if alike:
        return f"in the order of both, where {alike} of {len(classes)} have the same name"
    if names:
        return "in the order of both, though no name is the same"
    return "in the order of both, which nothing has checked"
