"""From a configuration to a cell: what it names, loaded or made."""

from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from benchmarks.core import team, versions
from benchmarks.core.environment import device_name, library_versions, pick_device
from benchmarks.core.errors import BadInput, raise_if_stopped
from benchmarks.core.session import in_words, session
from benchmarks.core.store import digest
from benchmarks.frozen.autoencoder import LatentSpace, latent_shape, load_latent_space
from benchmarks.frozen.extractors import FeatureExtractor, load_extractors, probe_split
from benchmarks.frozen.latents import LatentSet, prepare_latents
from benchmarks.images.dataset import load_dataset
from benchmarks.images.stored import Dataset
from benchmarks.results.records import NOT_OF_THE_TRAINING
from benchmarks.stages import elsewhere
from benchmarks.stages.cell import Cell, sampling_grid
from benchmarks.stages.faster_precision import faster_precision, faster_sampling
from benchmarks.stages.floors import prepare_evaluator, seen_through
from benchmarks.stages.guide import refuse_missing_snapshot
from benchmarks.stages.model import (
    build_model,
    choose_sampler,
    is_shipped,
    model_arguments,
    on_meta,
    place_on,
)
from benchmarks.stages.sample_batch import best_batch
from benchmarks.stages.score import Evaluator
from benchmarks.stages.through import images_through
from models.codebook import Codebook
from models.generator import GenerativeModel


def prepare(cfg: DictConfig) -> Cell:
    """Images to latents and evaluators (each cached), and a freshly initialised model, or one that
    was trained elsewhere.
    """
    device = pick_device(cfg.device)
    if cfg.model.family == elsewhere.FAMILY:
        return elsewhere.prepare(cfg, device)
    # what cannot be is refused before anything is computed
    team.refuse_batch(cfg.train.batch, cfg.train.accumulate)
    shape = latent_shape(cfg.autoencoder, cfg.data.image_size)
    refuse_unfit(cfg, shape)
    extractors = load_extractors(cfg.features)
    with session.stage("images"):
        dataset = load_dataset(cfg.data, num_samples=cfg.num_samples, cache=cfg.cache_dir)
    with session.stage("latents"):
        space = load_latent_space(cfg.autoencoder, dataset, cache=cfg.cache_dir, device=device)
        if team.size() > 1 and team.leads():  # the others are called for what follows
            team.together((dataset, space), _encode_share, cfg, device.type)
        latents = prepare_latents(dataset, space, cache=cfg.cache_dir, device=device)
    with session.stage("evaluators and floors"):
        evaluators = _evaluators(cfg, extractors, dataset, space, latents, device)

    model = _initial_model(cfg, shape, len(dataset.classes), space, latents)
    space = space.to(device)
    cfg = _as_measured(cfg, model, space, latents, device)
    unguided, grid = sampling_grid(cfg, model)
    return Cell(
        cfg=cfg,
        device=device,
        dataset=dataset,
        latent_space=space,
        latents=latents,
        model=model,
        meta_model=on_meta(model),
        evaluators=evaluators,
        unguided=unguided,
        grid=grid,
        key=_training_key(cfg, latents.key if model.uses_tokens else latents.images_key, device),
        machine_key=_machine_key(cfg, shape, device),
    )


def refuse_unfit(cfg: DictConfig, shape: tuple[int, int, int]) -> None:
    """Raises BadInput for a model that latents (C, H, W) do not fit, and for a sampler, a guide,
    steps or guidance that it does not have: before there are images, by a model without data.

    A user's own class is asked when its turn comes, as it may need data to be built.
    """
    if is_shipped(cfg.model):
        # how many classes and entries there are makes no difference; Llama warns of 2
        with torch.device("meta"):
            model = _configured(cfg, shape, 2, Codebook(16, shape[0]))
        sampling_grid(cfg, model)


def _encode_share(own: tuple[Dataset, LatentSpace] | None, cfg: DictConfig, device: str) -> None:
    """In every process of a team at once: encode the training images that no other one is at.

    Raises BadInput in all where one could not.
    """
    fault, here = None, pick_device(device)
    try:
        if own is None:
            dataset = load_dataset(cfg.data, num_samples=cfg.num_samples, cache=cfg.cache_dir)
            own = (
                dataset,
                load_latent_space(cfg.autoencoder, dataset, cache=cfg.cache_dir, device=here),
            )
        prepare_latents(*own, cache=cfg.cache_dir, device=here)
    except Exception as error:
        raise_if_stopped(error)
        fault = error
        session.complain(f"process {team.rank()}: {in_words(error)}")
    if team.anywhere(fault is not None):
        raise BadInput("a process could not encode its share; all need the same files") from fault


def _evaluators(
    cfg: DictConfig,
    extractors: list[FeatureExtractor],
    dataset: Dataset,
    space: LatentSpace,
    latents: LatentSet,
    device: torch.device,
) -> list[Evaluator]:
    """One for each feature extractor; images go through the autoencoder once for all, and only
    where something is not cached.
    """
    splits = seen_through(dataset)
    through = cache(partial(images_through, splits, space, latents, device))
    return [
        prepare_evaluator(
            extractor,
            dataset,
            through,
            autoencoder_key=space.autoencoder_key,
            key=latents.key,
            cache=cfg.cache_dir,
            device=device,
            split=probe_split(cfg.data, extractor, dataset.classes),
        )
        for extractor in extractors
    ]


def _initial_model(
    cfg: DictConfig,
    shape: tuple[int, int, int],
    num_classes: int,
    space: LatentSpace,
    latents: LatentSet,
) -> GenerativeModel:
    """The untrained model, a pure function of the seed, set to sample as configured."""
    torch.manual_seed(cfg.seed)
    # token models work in the same whitened units as the others
    codebook = space.codebook.whitened(latents.mean, latents.std)
    return _configured(cfg, shape, num_classes, codebook)


def _configured(
    cfg: DictConfig, shape: tuple[int, int, int], num_classes: int, codebook: Codebook
) -> GenerativeModel:
    """The model, set to sample as configured. Raises BadInput for what it refuses."""
    dropout = cfg.train.label_dropout
    model = build_model(cfg.model, shape, num_classes, codebook, label_dropout=dropout)
    choose_sampler(model, cfg)
    refuse_missing_snapshot(model.sampler_options, cfg)
    return model


def _as_measured(
    cfg: DictConfig,
    model: GenerativeModel,
    space: LatentSpace,
    latents: LatentSet,
    device: torch.device,
) -> DictConfig:
    """The configuration with what this machine is fastest at wherever it says `auto`."""
    model.guide_with(model)  # what is measured of untrained weights costs as much with any
    shape, settled = model.latent_shape, cfg.train.precision != "auto"
    if not settled:
        precision = _measured_precision(cfg, model, latents, device, shape)
        cfg = OmegaConf.merge(cfg, {"train": {"precision": precision}})
    machine_key = _machine_key(cfg, shape, device)
    if cfg.sample_precision == "auto":
        precision = cfg.train.precision  # who pins one means both
        if not settled:
            precision = _sampling_precision(cfg, model, space, latents, device, machine_key)
        cfg = OmegaConf.merge(cfg, {"sample_precision": precision})
    if cfg.sample_batch == "auto":
        batch = _measured_batch(cfg, model, space, latents, device, machine_key)
        cfg = OmegaConf.merge(cfg, {"sample_batch": batch})
    model.guide_with(None)
    return cfg


def _measured_precision(
    cfg: DictConfig,
    model: GenerativeModel,
    latents: LatentSet,
    device: torch.device,
    shape: tuple[int, int, int],
) -> str:
    """The precision that this network trains faster in on this machine."""
    name = f"{_machine_key(cfg, shape, device)}-{cfg.train.batch}.json"
    file = Path(cfg.cache_dir) / "precision" / name
    with session.stage("choosing the precision"):
        return faster_precision(model, latents, cfg, device, file)


def _sampling_precision(
    cfg: DictConfig,
    model: GenerativeModel,
    space: LatentSpace,
    latents: LatentSet,
    device: torch.device,
    machine_key: str,
) -> str:
    """The precision that this network samples faster in on this machine."""
    file = Path(cfg.cache_dir) / "precision" / f"sampling-{machine_key}.json"
    place_on(model, device)
    with session.stage("choosing the precision"):
        precision, line = faster_sampling(model, space, latents, device, file)
    session.print_once(f"{cfg.model.name} {cfg.size.name}: {line}")
    return precision


def _measured_batch(
    cfg: DictConfig,
    model: GenerativeModel,
    space: LatentSpace,
    latents: LatentSet,
    device: torch.device,
    machine_key: str,
) -> int:
    """The sampling batch that this network is fastest at on this machine."""
    file = Path(cfg.cache_dir) / "sample_batch" / f"{machine_key}-{cfg.sample_precision}.json"
    place_on(model, device)
    return best_batch(model, space, latents, device, precision=cfg.sample_precision, file=file)


def _training_key(cfg: DictConfig, data: str, device: torch.device) -> str:
    """Names everything that determines the trained weights; `data` names what is learned."""
    train: Any = OmegaConf.to_container(cfg.train, resolve=True)
    recipe = {name: value for name, value in train.items() if name not in NOT_OF_THE_TRAINING}
    installed = library_versions()
    libraries = {name: installed.get(name) for name in ("torch", "diffusers", "transformers")}
    model, lr, seed = model_arguments(cfg.model), float(cfg.model.lr), int(cfg.seed)
    return digest("cell", _version(cfg), libraries, model, lr, recipe, seed, data, device.type)


def _version(cfg: DictConfig) -> int | list[int]:
    """Of the models, and of this one's network where it has its own."""
    network = (cfg.model.get("denoiser") or {}).get("_target_")
    own = versions.NETWORKS.get(network)
    return versions.TRAINING if own is None else [versions.TRAINING, own]


def _machine_key(cfg: DictConfig, shape: tuple[int, int, int], device: torch.device) -> str:
    """Names an untrained network on this machine."""
    model, precision = model_arguments(cfg.model), cfg.train.precision
    torch_version = library_versions().get("torch")
    return digest("network", model, shape, precision, device_name(device), torch_version)
