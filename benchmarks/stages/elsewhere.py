"""Models that were trained elsewhere: sampled on the same clock, counted on the same meta device
and scored by the same evaluators as ours, but neither trained nor tuned here.
"""

from pathlib import Path
from typing import Any

import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from benchmarks.core import versions
from benchmarks.core.environment import device_name, library_versions
from benchmarks.core.errors import BadInput
from benchmarks.core.session import session
from benchmarks.core.setting_types import one_component
from benchmarks.core.settings import many
from benchmarks.core.store import digest, file_digest
from benchmarks.frozen.extractors import load_extractors, probe_split
from benchmarks.images import hub
from benchmarks.images.dataset import load_dataset
from benchmarks.images.stored import Dataset
from benchmarks.results.records import ELSEWHERE
from benchmarks.stages.cell import Cell, unguided_configs
from benchmarks.stages.floors import prepare_evaluator
from benchmarks.stages.model import model_arguments, on_meta, place_on
from benchmarks.stages.sample import SamplingConfig
from metrics.efficientnet import imagenet_classes
from models.image_model import ImageModel
from models.label_pipeline import INDEX

FAMILY = ELSEWHERE  # what model.family says of such a model
ITS_OWN = "its own"  # its size, its autoencoder
PIPELINE = "models.label_pipeline.LabelPipeline"
PRECISIONS = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
BATCH = 32  # images at once where nobody says how many
# what a pipeline's folder on the hub is fetched for
PARTS = ("*/config.json", "scheduler/*.json", "*/*.safetensors", "*/*.safetensors.index.json")


def prepare(cfg: DictConfig, device: torch.device) -> Cell:
    """Images to evaluators (cached), and the model. Raises BadInput for a model that does not fit
    the data or what is asked of it.
    """
    extractors = load_extractors(cfg.features)
    with session.stage("images"):
        dataset = load_dataset(cfg.data, num_samples=cfg.num_samples, cache=cfg.cache_dir)
    model = load(cfg, dataset)
    cfg = _as_it_is(cfg, model)
    with session.stage("evaluators and floors"):
        evaluators = [
            prepare_evaluator(
                extractor,
                dataset,
                None,  # its images come through no autoencoder of ours
                autoencoder_key=ITS_OWN,
                key=ITS_OWN,
                cache=cfg.cache_dir,
                device=device,
                split=probe_split(cfg.data, extractor, dataset.classes),
            )
            for extractor in extractors
        ]
    unguided, grid = sampling_grid(cfg, model)
    key = _key(cfg, model, dataset, device)
    return Cell(
        cfg=cfg,
        device=device,
        dataset=dataset,
        latent_space=None,
        latents=None,
        model=place_on(model, device),
        meta_model=on_meta(model),
        evaluators=evaluators,
        unguided=unguided,
        grid=grid,
        key=key,
        machine_key=digest(FAMILY, key, device_name(device)),
    )


def _key(cfg: DictConfig, model: ImageModel, dataset: Dataset, device: torch.device) -> str:
    """Names everything that its images depend on, but for how it is sampled."""
    libraries = {name: library_versions().get(name) for name in ("torch", "diffusers")}
    # of a pipeline's path only what lies there counts, which the fingerprint says
    settings = model_arguments(cfg.model) | ({"path": ""} if _is_pipeline(cfg) else {})
    asked = (dataset.image_size, dataset.classes, settings, model.fingerprint())
    return digest(FAMILY, versions.TRAINING, libraries, asked, device.type)


def _is_pipeline(cfg: DictConfig) -> bool:
    """Whether it is one of diffusers', and not a class of a user's own."""
    return str(cfg.model._target_) == PIPELINE


def load(cfg: DictConfig, dataset: Dataset) -> ImageModel:
    """The model that `model` names, for the classes and the size of a data set. Raises BadInput."""
    settings = {k: v for k, v in model_arguments(cfg.model).items() if v is not None}
    if _is_pipeline(cfg):
        if cfg.sample_precision != "auto":
            settings.setdefault("precision", cfg.sample_precision)
        folder = hub.folder(str(settings["path"]), (INDEX,), "model.path", PARTS)
        settings |= {"path": str(folder), "weights": _digest_of(folder)}
    try:
        model = instantiate(
            settings,
            image_size=dataset.image_size,
            classes=list(dataset.classes),
            imagenet_labels=imagenet_labels(dataset.classes),
        )
    except InstantiationException as error:
        reason = " ".join(str(error.__cause__ or error).split())[:300]
        where = f"model.path={cfg.model.path}" if _is_pipeline(cfg) else f"model={cfg.model.name}"
        raise BadInput(f"{where}: {reason}") from error
    if not isinstance(model, ImageModel):
        kind = settings["_target_"]
        raise BadInput(f"model._target_={kind}: no models.image_model.ImageModel")
    how = getattr(model, "labels_by", None)
    if how:
        session.print_once(f"{cfg.model.name}: its labels are matched to the classes {how}")
    return model.eval()


def imagenet_labels(classes: list[str]) -> list[int] | None:
    """The numbers of classes, given by WordNet ids, among ImageNet's 1,000; None where one is not
    among them.
    """
    numbers = {name: number for number, name in enumerate(imagenet_classes())}
    return [numbers[name] for name in classes] if set(classes) <= set(numbers) else None


def _digest_of(folder: Path) -> str:
    """Of all files that a pipeline is loaded from."""
    files = {path for pattern in (INDEX, *PARTS) for path in folder.glob(pattern)}
    return file_digest(*sorted(files))


def _precision(cfg: DictConfig, model: ImageModel) -> str:
    """What it is sampled in. Raises BadInput for a class of a user's own that was asked for another
    precision than its weights have: only a pipeline is told.
    """
    asked = None if cfg.sample_precision == "auto" else cfg.sample_precision
    if _is_pipeline(cfg):
        return cfg.model.get("precision") or asked or "fp32"
    types = {tensor.dtype for tensor in model.parameters() if tensor.is_floating_point()}
    if not types:  # nothing can be said against what is asked for
        return asked or "fp32"
    own = " and ".join(sorted(PRECISIONS.get(one, str(one)) for one in types))
    if asked not in (None, own):
        raise BadInput(
            f"sample_precision={asked}: {cfg.model.name} is a class of your own with weights in "
            f"{own}; leave it out, or let the class make its weights so"
        )
    return own


def _as_it_is(cfg: DictConfig, model: ImageModel) -> DictConfig:
    """The configuration without what only a model that is trained here has."""
    if many(cfg.tune.guidance):
        session.print_once(f"{cfg.model.name} was trained elsewhere: it is measured, not tuned")
    if cfg.sampler.name != "default":
        print(f"{cfg.model.name}: sampler={cfg.sampler.name} is left out; it has its own")
    precision = _precision(cfg, model)
    batch = BATCH if cfg.sample_batch == "auto" else cfg.sample_batch
    changes = {
        "model": {"name": _name(cfg.model)},
        "tune": {"guidance": []},
        "train": {"precision": precision, "snapshots": []},
        "sample_precision": precision,
        "sample_batch": batch,
    }
    return OmegaConf.merge(cfg, changes)


def _name(model: DictConfig) -> str:
    """What reports call it: as configured, else the last part of its path."""
    if model.name != FAMILY or not model.get("path"):
        return model.name
    return one_component(str(model.path).rstrip("/").rpartition("/")[-1] or FAMILY)


def sampling_grid(
    cfg: DictConfig, model: ImageModel
) -> tuple[list[SamplingConfig], list[SamplingConfig]]:
    """As `cell.sampling_grid`, of what this model supports. Raises BadInput where that is nothing,
    and for a guidance that it does not have.
    """
    steps = model.supported_steps(many(cfg.steps))
    if not steps:
        raise BadInput(f"steps={cfg.steps}: {cfg.model.name} supports none of these counts")
    left_out = [count for count in many(cfg.steps) if count not in steps]
    if left_out:
        print(f"{cfg.model.name}: measured at {steps} steps; it does not support {left_out}")
    scales = [float(scale) for scale in many(cfg.guidance)]
    if not scales:
        raise BadInput(f"guidance=[]: {cfg.model.name} is not tuned; give guidance=[1] or others")
    try:
        for scale in scales:
            model.nfe(steps[0], scale)
    except ValueError as error:
        raise BadInput(f"model={cfg.model.name}: {error}") from None
    unguided = unguided_configs(cfg, model, steps)
    return unguided, [one._replace(guidance=scale) for one in unguided for scale in scales]


def trained(cell: Cell) -> dict[str, Any]:
    """What stands for the summary of a training: nothing is known of it but whose weights these
    are.
    """
    return {"weights": cell.key}
