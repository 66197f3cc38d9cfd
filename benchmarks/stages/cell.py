"""A cell: everything that a configuration names, loaded, and the measurements it asks for."""

from dataclasses import dataclass
from pathlib import Path

import torch
from omegaconf import DictConfig

from benchmarks.core.errors import BadInput
from benchmarks.core.session import session
from benchmarks.core.settings import many
from benchmarks.core.store import digest
from benchmarks.frozen.autoencoder import LatentSpace
from benchmarks.frozen.latents import LatentSet
from benchmarks.images.stored import Dataset
from benchmarks.stages.model import sampler_settings
from benchmarks.stages.sample import SamplingConfig
from benchmarks.stages.score import Evaluator
from models.generator import GenerativeModel
from models.image_model import ImageModel


@dataclass
class Cell:
    """One (model, size, data, seed), before training."""

    cfg: DictConfig
    device: torch.device
    dataset: Dataset
    latent_space: LatentSpace | None  # None of a model that was trained elsewhere
    latents: LatentSet | None  # of the training images
    model: GenerativeModel | ImageModel  # freshly initialised, or trained elsewhere
    meta_model: GenerativeModel | ImageModel  # without data: calls on it cost nothing, are counted
    evaluators: list[Evaluator]  # one for each feature extractor
    unguided: list[SamplingConfig]  # as configured but for guidance: each step count, each seed
    grid: list[SamplingConfig]  # what is measured as configured
    key: str  # names the training
    machine_key: str  # names the untrained network on this machine: for what is timed of both

    @property
    def trained_elsewhere(self) -> bool:
        return isinstance(self.model, ImageModel)

    @property
    def results(self) -> Path:
        return results_folder(self.cfg)

    @property
    def work(self) -> Path:
        """Checkpoints, weights and samples."""
        name = f"{self.cfg.model.name}-{self.cfg.size.name}-{self.key}"
        return Path(self.cfg.cache_dir) / "cells" / name

    @property
    def compile_file(self) -> Path:
        """What compiling this network's training step took and gave on this machine."""
        name = f"{self.machine_key}-{self.cfg.train.batch}.json"
        return Path(self.cfg.cache_dir) / "compile" / name

    @property
    def failure_file(self) -> Path:
        """The record of a training that ended badly."""
        return self.results / "records" / f"{self.key[:12]}.json"

    def run_id(self, config: SamplingConfig, evaluator: Evaluator, *, chosen: bool = False) -> str:
        """Twelve hex digits that name a measurement.

        A chosen setting goes by what it was chosen for: another choice takes its place. Who guides
        is no choice of the search.
        """
        named: tuple = config
        if chosen:
            guides = tuple(one for one in config.options if one[0] == "guide")
            named = ("chosen", *config._replace(guidance=1.0, sampler=None, options=guides))
        extractor = evaluator.extractor.key
        return digest(self.key, extractor, self.dataset.key, named)[:12]

    def set_sampler(self, config: SamplingConfig) -> None:
        """Set both models to sample as a sampling config says."""
        for model in (self.model, self.meta_model):
            model.set_sampler(config.sampler, **dict(config.options))


def results_folder(cfg: DictConfig) -> Path:
    """Where the records and the report of a configuration go."""
    return Path(cfg.results_dir) / str(cfg.name)


def sampling_grid(
    cfg: DictConfig, model: GenerativeModel
) -> tuple[list[SamplingConfig], list[SamplingConfig]]:
    """Every supported step count with every seed, unguided; and what is measured as configured:
    these at each guidance, and weights kept on the way.

    Raises BadInput where no step count is supported; those that are not are named.
    """
    unguided = unguided_configs(cfg, model, _supported_steps(cfg, model))
    scales = _supported_guidance(cfg, model)
    grid = [_guided(config, scale) for config in unguided for scale in scales]
    unguided = [_guided(config, 1.0) for config in unguided]
    fractions = [float(fraction) for fraction in cfg.train.snapshots]
    if not fractions or model.sampler != model.samplers[0]:
        return unguided, grid
    # weights kept on the way, and those they lead to, are measured alike whatever is swept
    most = max(config.steps for config in unguided)
    last = next(config for config in unguided if config.steps == most)
    if last not in grid:
        grid.append(last)
    return unguided, grid + [last._replace(train_fraction=fraction) for fraction in fractions]


def _guided(config: SamplingConfig, scale: float) -> SamplingConfig:
    """At this scale of guidance; at 1 nobody guides, whoever is configured to."""
    options = tuple(one for one in config.options if scale != 1 or one[0] != "guide")
    return config._replace(guidance=scale, options=options)


def unguided_configs(
    cfg: DictConfig, model: GenerativeModel | ImageModel, counts: list[int]
) -> list[SamplingConfig]:
    """Every step count with every sampling seed, sampled as the model is set to."""
    return [
        SamplingConfig(
            steps=steps,
            guidance=1.0,
            count=cfg.num_samples,
            batch=cfg.sample_batch,
            seed=seed,
            precision=cfg.sample_precision,
            training_seed=cfg.seed,
            **sampler_settings(model),
        )
        for steps in counts
        for seed in many(cfg.sampling_seeds)
    ]


def _supported_guidance(cfg: DictConfig, model: GenerativeModel | ImageModel) -> list[float]:
    """Those of the requested scales that the model supports; the others are named.

    Raises BadInput where it supports none of them.
    """
    requested, name = [float(scale) for scale in many(cfg.guidance)], cfg.model.name
    supported = [scale for scale in requested if model.supports_guidance(scale)]
    left_out = [scale for scale in requested if scale not in supported]
    if left_out and not supported:
        try:
            model.nfe(_supported_steps(cfg, model)[0], left_out[0])  # says which there are
        except ValueError as error:
            raise BadInput(f"model={name}: {error}") from None
    if left_out:
        session.print_once(
            f"{name}: measured at guidance {supported}; it does not support {left_out}"
        )
    return supported


def _supported_steps(cfg: DictConfig, model: GenerativeModel) -> list[int]:
    """Those of the requested counts that the model supports, or the only one that there is."""
    requested, name = many(cfg.steps), cfg.model.name
    supported = model.supported_steps(requested)
    if not supported:
        height, width = model.latent_shape[1:]
        supported = model.supported_steps(range(1, height * width + 1))
        if len(supported) != 1:
            try:
                model.nfe(requested[0], 1.0)  # says which steps there are
            except ValueError as error:
                raise BadInput(f"model={name}: {error}") from None
        session.print_once(
            f"{name}: measured at {supported[0]} steps, as it supports no other count"
        )
        return supported
    left_out = [steps for steps in requested if steps not in supported]
    if left_out:
        session.print_once(f"{name}: measured at {supported} steps; it does not support {left_out}")
    return supported
