"""One cell of the benchmark, from pictures to plots: `python -m benchmarks.run experiment=cpu`, or any Hydra override.

A cell is one (family, size, data, seed): trained once, measured at every `steps` x `guidance`. It writes one record a
measurement and rebuilds the report of `results/<name>` from all records there. What is already done is not done again.
"""

import sys
import traceback
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import hydra
import torch
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from benchmarks import build, data, latents, plots, records, report, sample, score, train
from benchmarks.store import BadInput, digest, read_json
from metrics import flops, speed
from models.generator import Generator

REPORTS: dict[Path, str] = {}  # what this process has last reported of each results folder
ERRORS: list[str] = []  # one line for each cell that ended badly


@dataclass
class Cell:
    """All that a configuration names, loaded: pictures, latents, judge and an untrained generator."""

    cfg: DictConfig
    device: torch.device
    dataset: data.Dataset
    space: latents.LatentSpace
    encoded: latents.LatentSet
    judge: score.Judge
    generator: Generator
    meta: Generator  # the same without data: calls on it cost nothing and are counted
    points: list[sample.Setting]
    key: str  # names the training

    @property
    def results(self) -> Path:
        return Path(self.cfg.results_dir) / self.cfg.name

    @property
    def work(self) -> Path:
        return Path(self.cfg.cache_dir) / "cells" / f"{self.cfg.model.name}-{self.cfg.size.name}-{self.key}"

    def run_id(self, point: sample.Setting) -> str:
        return digest(self.key, self.generator.sampler, self.judge.fingerprint, self.dataset.key, point)[:12]


def run_cell(cfg: DictConfig) -> None:
    """The whole way of a picture, once: prepare, train, draw, score, record, report."""
    cell = prepare(cfg)
    missing = [point for point in cell.points if not recorded(cell, point)]
    print(
        f"{cfg.model.name} {cfg.size.name} seed {cfg.seed}: {len(cell.points) - len(missing)} of {len(cell.points)} measurements are there",
        flush=True,
    )
    if missing:
        try:
            trained = train.train(
                cell.generator.to(cell.device),
                cell.encoded.to(cell.device),
                cfg.train,
                lr=cfg.model.lr,
                seed=cfg.seed,
                forward_macs=build.forward_macs(cell.meta),
                folder=cell.work,
                key=cell.key,
                device=cell.device,
            )
            for point in missing:
                measure(cell, point, trained)
            (cell.results / "records" / f"{cell.key[:12]}.json").unlink(missing_ok=True)  # an earlier failure of this cell
        except BadInput:
            raise
        except Exception as error:
            record_failure(cell, error)
    REPORTS[cell.results] = report.build(cell.results)


def prepare(cfg: DictConfig) -> Cell:
    """Pictures to latents and judge (each cached), and a freshly initialised generator."""
    device = pick_device(cfg.device)
    space = latents.load_space(cfg.autoencoder)
    shape = latents.latent_shape(space, cfg.data.image_size)
    dataset = data.load(cfg.data, num_samples=cfg.num_samples, cache=cfg.cache_dir)
    encoded = latents.prepare(dataset, space, cache=cfg.cache_dir, device=device)
    judge = score.prepare(cfg.features, dataset, space, encoded, cache=cfg.cache_dir, device=device)

    torch.manual_seed(cfg.seed)
    codebook = space.codebook.whitened(encoded.mean, encoded.std)
    generator = build.generator(cfg.model, shape, len(dataset.classes), codebook, label_dropout=cfg.train.label_dropout)
    if cfg.sampler.name in generator.samplers:
        generator.sampler = cfg.sampler.name
    else:
        print(f"sampler={cfg.sampler.name} is not one of {cfg.model.name}'s; using {generator.sampler}")
    recipe = {k: v for k, v in OmegaConf.to_container(cfg.train).items() if k != "checkpoint_seconds"}
    key = digest("cell", 1, build.arguments(cfg.model), float(cfg.model.lr), recipe, int(cfg.seed), encoded.key, device.type)
    points = settings(cfg, generator)
    return Cell(cfg, device, dataset, space.to(device), encoded, judge, generator, build.on_meta(generator), points, key)


def settings(cfg: DictConfig, generator: Generator) -> list[sample.Setting]:
    """The points of the sweep that this family can honour; those it cannot are named. Raises BadInput where none is left."""
    requested = [cfg.steps] if isinstance(cfg.steps, int) else list(cfg.steps)
    guidance = [cfg.guidance] if isinstance(cfg.guidance, int | float) else list(cfg.guidance)
    honoured = generator.step_counts(requested)
    left_out = [n for n in requested if n not in honoured]
    if not honoured or not guidance:
        try:
            generator.nfe(requested[0] if requested else 0, 1.0)
        except ValueError as error:
            raise BadInput(f"model={cfg.model.name}: {error}") from None
        raise BadInput("guidance=[]: give at least one guidance scale; 1 is none")
    if left_out:
        print(f"{cfg.model.name}: measured at {honoured} steps; it cannot honour {left_out}")
    shared = dict(count=cfg.num_samples, batch=cfg.sample_batch, seed=cfg.seed, precision=cfg.train.precision)
    return [sample.Setting(steps=n, guidance=float(g), **shared) for n in honoured for g in guidance]


def recorded(cell: Cell, point: sample.Setting) -> bool:
    """Whether this measurement has a whole record."""
    record = read_json(cell.results / "records" / f"{cell.run_id(point)}.json")
    return isinstance(record, dict) and record.get("row", {}).get("status") == "ok"


def measure(cell: Cell, point: sample.Setting, trained: dict) -> None:
    """Draw one setting, count and score it, and write its record."""
    started, run_id = now(), cell.run_id(point)
    path = cell.work / f"samples-{digest(cell.key, cell.generator.sampler, point)[:12]}.safetensors"
    drawn = sample.cached_draw(path, path.stem, cell.generator, cell.space, cell.encoded, point, cell.device)
    labels = sample.labels_for(point.count, cell.generator.num_classes)
    gmacs_generator = build.sampling_macs(cell.meta, point.steps, point.guidance) / 1e9
    gmacs_decoder = build.decoder_macs(cell.space.autoencoder, cell.generator.latent_shape) / 1e9
    row = identity(cell) | cell.judge.ceilings | cell.judge.score(drawn.images, labels)
    row |= {
        "run_id": run_id,
        "status": "ok",
        "train_images": trained["images"],
        "train_flops": trained["flops"],
        "train_fraction": 1.0,
        "train_seconds": trained["seconds"],
        "train_images_per_second": trained["images_per_second"],
        "train_utilisation": trained["utilisation"],
        "steps": point.steps,
        "nfe": cell.generator.nfe(point.steps, point.guidance),
        "guidance": point.guidance,
        "gmacs_generator": gmacs_generator,
        "gmacs_decoder": gmacs_decoder,
        "gmacs_per_image": gmacs_generator + gmacs_decoder,
        "gflops_per_image": 2 * (gmacs_generator + gmacs_decoder),
        "seconds_per_image": drawn.seconds_per_image,
        "images_per_second": 1 / drawn.seconds_per_image,
        "latency_seconds": drawn.latency_seconds,
        "peak_memory_mb": drawn.peak_memory_mb,
        "started_at": started,
    }
    plots.strip(drawn.images.numpy(), cell.results / "records" / f"{run_id}.png")
    records.write(cell.results, row, train_log=trained["log"], **details(cell))
    print(f"  {point.steps} steps, guidance {point.guidance:g}: {plots.distance_name(cell.judge.name)} {row['fd']:.2f}", flush=True)


def record_failure(cell: Cell, error: Exception) -> None:
    """A cell that diverged or broke is a row with its status and reason, never an absence."""
    status = "diverged" if isinstance(error, train.Diverged) else "failed"
    reason = " ".join(f"{type(error).__name__}: {error}".split())
    row = identity(cell) | {"run_id": cell.key[:12], "status": status, "started_at": now()}
    records.write(cell.results, row, reason=reason, traceback=traceback.format_exc(), **details(cell))
    complain(
        f"{cell.cfg.model.name} {cell.cfg.size.name} seed {cell.cfg.seed} {status}: {reason} (traceback in the record {cell.key[:12]})"
    )


def identity(cell: Cell) -> dict[str, Any]:
    """The columns that say which cell a row belongs to."""
    cfg, generator = cell.cfg, cell.generator
    return {
        "family": cfg.model.family,
        "model": cfg.model.name,
        "size": cfg.size.name,
        "params_m": flops.params(generator) / 1e6,
        "seed": cfg.seed,
        "data": cell.dataset.name,
        "num_classes": len(cell.dataset.classes),
        "image_size": cell.dataset.image_size,
        "autoencoder": cell.space.name,
        "latent_shape": "x".join(map(str, generator.latent_shape)),
        "objective": getattr(generator, "objective", "next-token"),
        "sampler": generator.sampler,
        "num_samples": cfg.num_samples,
        "reference_images": len(cell.dataset.reference),
        "features": cell.judge.name,
        "device": records.device_name(cell.device),
        "dtype": cfg.train.precision,
        "torch": torch.__version__,
        **records.git_state(),
    }


def details(cell: Cell) -> dict[str, Any]:
    """What a record holds beside its row: the resolved configuration, and fingerprints of everything it rests on."""
    seen = read_json(latents.SHIPPED / "data.json") or {}
    overlap = sorted(set(cell.dataset.classes) & set(seen.get("classes", [])))
    prints = {"data": cell.dataset.key, "latents": cell.space.key, "features": cell.judge.fingerprint, "training": cell.key}
    return {
        "config": OmegaConf.to_container(cell.cfg, resolve=True),
        "fingerprints": prints,
        "skipped": cell.dataset.skipped,
        "overlap": overlap,
    }


def pick_device(wanted: str) -> torch.device:
    """`auto` is CUDA where there is one. Raises BadInput for a device that is not there."""
    if wanted not in ("auto", "cpu", "cuda"):
        raise BadInput(f"device={wanted}: one of auto, cpu, cuda")
    if wanted == "cuda" and not torch.cuda.is_available():
        raise BadInput("device=cuda: no CUDA device found; use device=cpu or device=auto")
    return torch.device("cuda" if wanted != "cpu" and torch.cuda.is_available() else "cpu")


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def complain(line: str) -> None:
    """One line on stderr, once, and a non-zero exit at the end."""
    if line not in ERRORS:
        ERRORS.append(line)
        print(f"latentbench: {line}", file=sys.stderr, flush=True)


@hydra.main(version_base="1.3", config_path=str(records.ROOT / "conf"), config_name="config")
def job(cfg: DictConfig) -> None:
    """One cell of a run or sweep; bad input and failures become one line, so that the cells after it still run."""
    try:
        run_cell(cfg)
    except BadInput as error:
        complain(str(error))
    except OmegaConfBaseException as error:
        complain(f"configuration: {str(error).splitlines()[0]}")


def main() -> None:
    """Add the default preset where none is asked for, run the cells, print each report once."""
    if not any(argument.lstrip("+").startswith("experiment=") for argument in sys.argv[1:]):
        preset = "gpu" if torch.cuda.is_available() else "cpu"
        print(f"preset {preset} ({'CUDA device found' if preset == 'gpu' else 'no CUDA device'})", flush=True)
        sys.argv.append(f"experiment={preset}")
    speed.keep_memory()
    job()
    print("\n".join(text for _, text in sorted(REPORTS.items())))
    sys.exit(1 if ERRORS else 0)


if __name__ == "__main__":
    main()
