"""What is written down of a measurement, or of what failed: a row of results.csv and everything it
takes to repeat it.
"""

import traceback
from typing import Any

from omegaconf import OmegaConf

from benchmarks.core.environment import now, provenance
from benchmarks.core.errors import Diverged, raise_if_stopped
from benchmarks.core.session import session
from benchmarks.core.settings import shorten_paths
from benchmarks.frozen.extractors import overlap, shipped_parts
from benchmarks.results import records
from benchmarks.stages import elsewhere
from benchmarks.stages.cell import Cell
from benchmarks.stages.own_codebook import own_codebook, own_floors
from benchmarks.stages.sample import Samples, SamplingConfig
from benchmarks.stages.score import Evaluator, Scores
from metrics import flops

TRAINED = ("images", "flops", "seconds", "images_per_second", "others_cpu", "utilisation")


def record_measurement(
    cell: Cell,
    config: SamplingConfig,
    evaluator: Evaluator,
    trained: dict[str, Any],
    samples: Samples,
    cost: dict[str, float],
    scores: Scores,
    tuning: dict[str, Any] | None = None,
) -> None:
    """One row, and beside it what else a careful reader may ask.

    `tuning` says what the settings were chosen from; None where they are as configured.
    """
    row = identity(cell) | sampling_columns(cell, config, evaluator)
    row |= {
        "run_id": cell.run_id(config, evaluator, chosen=tuning is not None),
        "settings": records.TUNED if tuning else "configured",
        "status": "ok",
        "nfe": cell.model.nfe(config.steps, config.guidance),
        "seconds_per_image": samples.seconds_per_image,
        "images_per_second": 1 / samples.seconds_per_image,
        "latency_seconds": samples.latency_seconds,
        "peak_memory_mb": samples.peak_memory_mb,
    }
    row |= {} if cell.trained_elsewhere else training_columns(trained)
    row |= evaluator.row_constants | own_floors(cell, evaluator) | scores.row | cost | samples.made
    records.write(
        cell.results,
        row,
        selection=scores.selection,
        floors_of=own_codebook(cell),
        tuning=tuning,
        diagnostics=named_diagnostics(scores, cell.dataset.classes) | _labels(cell),
        train_log=trained.get("log"),
        trained_by=trained.get("trained_by"),
        compile=trained.get("compile"),
        sampling_seed=config.seed,
        **record_metadata(cell, evaluator),
    )


def training_columns(trained: dict[str, Any]) -> dict[str, Any]:
    """The columns that say what a training took."""
    processes = trained.get("processes", 1)
    return {f"train_{name}": trained[name] for name in TRAINED} | {
        "train_processes": processes,
        "train_images_per_second_each": trained["images_per_second"] / processes,
    }


def named_diagnostics(scores: Scores, classes: list[str]) -> dict[str, Any]:
    """The diagnostics of a measurement, each class by its name."""
    diagnostics = dict(scores.diagnostics)
    for name in ("kid_per_class", "fd_per_class"):
        diagnostics[name] = {classes[k]: value for k, value in diagnostics[name].items()}
    return diagnostics


def _labels(cell: Cell) -> dict[str, Any]:
    """How the labels of a model that was trained elsewhere were matched to the classes."""
    how = getattr(cell.model, "labels_by", None)
    return {"labels_by": how, "labels": list(cell.model.labels)} if how else {}


def record_failure(
    cell: Cell,
    error: Exception,
    config: SamplingConfig | None = None,
    evaluator: Evaluator | None = None,
    *,
    chosen: bool = False,
) -> None:
    """A cell, or one measurement of it, that diverged or broke is a row too, never an absence."""
    raise_if_stopped(error)
    status = "diverged" if isinstance(error, Diverged) else "failed"
    reason = " ".join(f"{type(error).__name__}: {error}".split())
    row = identity(cell) | provenance(cell.device)
    row |= {"run_id": cell.failure_file.stem, "status": status, "started_at": now()}
    if config and evaluator:
        row |= sampling_columns(cell, config, evaluator)
        row["settings"] = records.TUNED if chosen else "configured"
        row["run_id"] = cell.run_id(config, evaluator, chosen=chosen)
    text, metadata = traceback.format_exc(), record_metadata(cell, evaluator)
    records.write(cell.results, row, reason=reason, traceback=text, **metadata)
    name = f"{cell.cfg.model.name} {cell.cfg.size.name} seed {cell.cfg.seed}"
    line = f"{name} {status}: {reason} (traceback in the record {row['run_id']})"
    session.complain(line, diverged=status == "diverged")


def _codebook_name(cell: Cell) -> str | None:
    """Whose codebook a model's tokens are of; None of a model without."""
    shared = cell.latent_space and cell.model.uses_tokens
    return own_codebook(cell) or (cell.latent_space.codebook_name if shared else None)


def identity(cell: Cell) -> dict[str, Any]:
    """The columns that say which cell a row belongs to."""
    cfg, model, space = cell.cfg, cell.model, cell.latent_space
    cell.set_sampler(cell.unguided[0])
    return {
        "family": cfg.model.family,
        "model": cfg.model.name,
        "size": elsewhere.ITS_OWN if cell.trained_elsewhere else cfg.size.name,
        "params_m": flops.params(model) / 1e6,
        "seed": cfg.seed,
        "data": cell.dataset.name,
        "num_classes": len(cell.dataset.classes),
        "image_size": cell.dataset.image_size,
        "autoencoder": space.name if space else elsewhere.ITS_OWN,
        "codebook": _codebook_name(cell),
        "latent_shape": "x".join(map(str, model.latent_shape)) if space else None,
        "objective": getattr(model, "objective", None),
        "sampler": model.sampler_label(),
        "num_samples": cfg.num_samples,
        "reference_images": len(cell.dataset.reference),
        "dtype": None if cell.trained_elsewhere else cfg.train.precision,
    }


def sampling_columns(cell: Cell, config: SamplingConfig, evaluator: Evaluator) -> dict[str, Any]:
    """The columns that say which measurement of its cell a row is."""
    cell.set_sampler(config)
    return {
        "sampler": cell.model.sampler_label(),
        "steps": config.steps,
        "guidance": config.guidance,
        "sample_batch": config.batch,
        "sample_dtype": config.precision,
        "features": evaluator.extractor.name,
        "train_fraction": config.train_fraction,
    }


def record_metadata(cell: Cell, evaluator: Evaluator | None) -> dict[str, Any]:
    """The resolved configuration, and fingerprints of everything a measurement rests on."""
    config: Any = OmegaConf.to_container(cell.cfg, resolve=True)
    shorten_paths(config)
    space = cell.latent_space
    if cell.trained_elsewhere:  # what would be trained here says nothing of it
        del config["train"]
    del config["stop_at"]  # of this process, not of what it measured
    fingerprints = {
        "data": cell.dataset.key,
        "autoencoder": space.autoencoder_key if space else elsewhere.ITS_OWN,
        "latents": space.key if space else None,
        "training": cell.key,
    }
    extractor = evaluator.extractor if evaluator else None
    if extractor:
        named = {f"features_{name}": value for name, value in extractor.fingerprint.items()}
        fingerprints |= {"features": extractor.key} | named
    return {
        "config": config,
        "fingerprints": fingerprints,
        "left_out": cell.dataset.left_out,
        "skipped": cell.dataset.skipped,
        "repeated": cell.dataset.repeated,
        "aside": cell.dataset.aside,
        "overlap": overlap(cell.cfg.data.source, cell.dataset.classes),
        "shipped": shipped_parts(space and cell.cfg.autoencoder, extractor),
        "probe_split": evaluator.probe_split if evaluator else None,
        "evaluator": evaluator.key if evaluator else None,
    }
