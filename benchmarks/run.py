"""One cell of the benchmark, from pictures to plots: `python -m benchmarks.run experiment=cpu`, or any Hydra override.

A cell is one (family, size, data, seed): trained once, measured at every `steps` x `guidance`. It writes one record a
measurement and rebuilds the report of `results/<name>` from all records there. What is already done is not done again.
"""

import sys
import time
import traceback
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import hydra
import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf

from benchmarks import build, data, latents, networks, records, report, sample, sample_batch, score, space, train
from benchmarks.checkpoints import Checkpoints
from benchmarks.cli import check, complain, finish, guarded, many, pick_device
from benchmarks.pictures import exchange
from benchmarks.reports import grids, plots
from benchmarks.store import BadInput, Diverged, OutOfTime, digest, read_json
from metrics import flops, speed
from models.generator import Generator

VERSION = 6  # of the models, their training and drawing; raise it with any change to what comes out, rounding included
REPORTS: dict[Path, str | None] = {}  # what this process has last reported of each results folder; None: not since its last record
REPORT_EVERY = 60  # seconds: a sweep's report grows as it runs, but drawing it must not hold up the next cell


@dataclass
class Cell:
    """All that a configuration names, loaded: pictures, latents, judge and an untrained generator."""

    cfg: DictConfig
    device: torch.device
    dataset: data.Dataset
    space: space.LatentSpace
    encoded: latents.LatentSet
    judges: list[score.Judge]
    generator: Generator
    meta: Generator  # the same without data: calls on it cost nothing and are counted
    points: list[tuple[sample.Setting, score.Judge]]  # a measurement is one setting, seen by one judge
    key: str  # names the training
    machine: str  # names the untrained network on this machine: what is measured of both is kept under it

    @property
    def results(self) -> Path:
        return Path(self.cfg.results_dir) / str(self.cfg.name)

    @property
    def work(self) -> Path:
        return Path(self.cfg.cache_dir) / "cells" / f"{self.cfg.model.name}-{self.cfg.size.name}-{self.key}"

    @property
    def compile_file(self) -> Path:
        """What compiling this network's training step took and gave on this machine."""
        return Path(self.cfg.cache_dir) / "compile" / f"{self.machine}-{self.cfg.train.batch}.json"

    @property
    def failure(self) -> Path:
        """The record of a training or sampling that ended badly."""
        return self.results / "records" / f"{self.key[:12]}.json"

    def run_id(self, point: sample.Setting, judge: score.Judge) -> str:
        return digest(self.key, self.generator.sampling(), judge.features.key, self.dataset.key, point)[:12]


def run_cell(cfg: DictConfig) -> None:
    """The whole way of a picture, once: prepare, train, draw, score, record, report."""
    if late(cfg):
        raise OutOfTime(f"{cfg.model.name} {cfg.size.name} seed {cfg.seed} is not begun")
    cell = prepare(cfg)
    failure = read_json(cell.failure) or {}
    diverged = failure.get("row", {}).get("status") == "diverged"
    missing = [point for point in cell.points if not recorded(cell, *point)]
    print(
        f"{cfg.model.name} {cfg.size.name} seed {cfg.seed}: {len(cell.points) - len(missing)} of {len(cell.points)} measurements are there",
        flush=True,
    )
    if missing and diverged:
        before = f"{cfg.model.name} {cfg.size.name} seed {cfg.seed} diverged before: {failure.get('reason')}"
        complain(f"{before}; remove {cell.failure} to try again", diverged=True)
    try:
        if missing and not diverged:
            train_and_measure(cell, missing)
    finally:  # a run whose time is up has a report too, of what is there
        REPORTS[cell.results] = None
        summary = cell.results / "summary.md"
        if not summary.exists() or time.time() - summary.stat().st_mtime > REPORT_EVERY:
            rebuild(cell.results)


def rebuild(folder: Path) -> None:
    """The report of a folder, from all records there."""
    with speed.stage("report"):
        REPORTS[folder] = report.build(folder)


def late(cfg: DictConfig) -> bool:
    """Whether the time that the run was given is up."""
    return cfg.stop_at is not None and time.time() > cfg.stop_at


def train_and_measure(cell: Cell, missing: list[tuple[sample.Setting, score.Judge]]) -> None:
    """Train (or load what is trained), then measure each missing point; one that fails takes no other with it."""
    cfg = cell.cfg
    try:
        with speed.stage("training"):
            trained = train.train(
                build.place(cell.generator, cell.device),
                cell.encoded.to(cell.device),
                cfg.train,
                lr=cfg.model.lr,
                seed=cfg.seed,
                forward_macs=build.forward_macs(cell.meta),
                folder=cell.work,
                key=cell.key,
                device=cell.device,
                compile_file=cell.compile_file,
                stop_at=cfg.stop_at,
            )
    except (BadInput, OutOfTime):
        raise
    except Exception as error:
        return record_failure(cell, error)
    cell.failure.unlink(missing_ok=True)
    loaded, files = 1.0, Checkpoints(cell.work, cell.key)
    for i, point in enumerate(missing):
        if late(cfg):
            raise OutOfTime(f"{cfg.model.name} {cfg.size.name} seed {cfg.seed} is trained; {len(missing) - i} measurement(s) are left")
        try:
            if point[0].share != loaded:
                trained, loaded = files.at_share(cell.generator, trained, point[0].share), point[0].share
            measure(cell, *point, trained)
        except Exception as error:
            record_failure(cell, error, *point)


def prepare(cfg: DictConfig) -> Cell:
    """Pictures to latents and judge (each cached), and a freshly initialised generator."""
    check(cfg)
    device = pick_device(cfg.device)
    shape = space.latent_shape(cfg.autoencoder, cfg.data.image_size)
    features = networks.load_features(cfg.features)
    with speed.stage("pictures"):
        dataset = data.load(cfg.data, num_samples=cfg.num_samples, cache=cfg.cache_dir)
    with speed.stage("latents"):
        latent_space = space.load(cfg.autoencoder, dataset, cache=cfg.cache_dir, device=device)
        encoded = latents.prepare(dataset, latent_space, cache=cfg.cache_dir, device=device)
    with speed.stage("judge and floors"):
        judges = []
        for one in features:
            split = networks.probe_split(cfg, one, dataset.classes)
            rebuilt = partial(score.reconstruct, dataset.floor, latent_space, encoded, device)
            judges.append(score.prepare(one, dataset, rebuilt, key=encoded.key, cache=cfg.cache_dir, device=device, split=split))

    torch.manual_seed(cfg.seed)
    codebook = latent_space.codebook.whitened(encoded.mean, encoded.std)
    generator = build.generator(cfg.model, shape, len(dataset.classes), codebook, label_dropout=cfg.train.label_dropout)
    build.choose_sampler(generator, cfg)
    recipe = {k: v for k, v in OmegaConf.to_container(cfg.train, resolve=True).items() if k not in records.NO_RECIPE}
    libraries = {name: records.versions().get(name) for name in ("torch", "diffusers", "transformers")}
    key = digest(
        "cell", VERSION, libraries, build.arguments(cfg.model), float(cfg.model.lr), recipe, int(cfg.seed), encoded.key, device.type
    )
    machine = digest("network", build.arguments(cfg.model), shape, cfg.train.precision, records.device_name(device), libraries["torch"])
    latent_space = latent_space.to(device)
    if cfg.sample_batch == "auto":
        file = Path(cfg.cache_dir) / "sample_batch" / f"{machine}.json"
        network = build.place(generator, device)
        batch = sample_batch.best(network, latent_space, encoded, device, precision=cfg.train.precision, file=file)
        cfg = OmegaConf.merge(cfg, {"sample_batch": batch})
    points = [(point, judge) for point in settings(cfg, generator) for judge in judges]
    meta = build.on_meta(generator)
    return Cell(cfg, device, dataset, latent_space, encoded, judges, generator, meta, points, key, machine)


def settings(cfg: DictConfig, generator: Generator) -> list[sample.Setting]:
    """The points of the sweep that this family can honour; those it cannot are named. Raises BadInput where none is left."""
    requested, guidance = many(cfg.steps), many(cfg.guidance)
    honoured = generator.step_counts(requested)
    left_out = [n for n in requested if n not in honoured]
    if not honoured:
        try:
            generator.nfe(requested[0], 1.0)
        except ValueError as error:
            raise BadInput(f"model={cfg.model.name}: {error}") from None
    if left_out:
        print(f"{cfg.model.name}: measured at {honoured} steps; it cannot honour {left_out}")
    shared = dict(count=cfg.num_samples, batch=cfg.sample_batch, precision=cfg.train.precision)
    seeds = many(cfg.sampling_seeds)
    whole = [sample.Setting(steps=n, guidance=float(g), seed=s, **shared) for n in honoured for g in guidance for s in seeds]
    if generator.sampler != generator.samplers[0]:
        return whole
    kept = sample.Setting(steps=max(honoured), guidance=1.0, seed=seeds[0], **shared)  # the same for all, whatever is swept
    wanted = [kept] * (bool(cfg.train.snapshots) and kept not in whole)  # where the weights kept on the way lead
    return whole + wanted + [kept._replace(share=float(share)) for share in cfg.train.snapshots]


def recorded(cell: Cell, point: sample.Setting, judge: score.Judge) -> bool:
    """Whether this measurement has a whole record of today's scoring, and its pictures are where `export` wants them."""
    run_id = cell.run_id(point, judge)
    record = read_json(cell.results / "records" / f"{run_id}.json")
    if not isinstance(record, dict) or record.get("row", {}).get("status") != "ok" or record.get("judge") != judge.key:
        return False
    return all(exchange.place(cell.results / "export" / run_id, kind).exists() for kind in many(cell.cfg.export))


def measure(cell: Cell, point: sample.Setting, judge: score.Judge, trained: dict) -> None:
    """Draw one setting (once for all judges), count and score it, and write its record."""
    run_id = cell.run_id(point, judge)
    path = cell.work / f"samples-{digest(trained['weights'], cell.generator.sampling(), point)[:12]}.safetensors"
    with speed.stage("sampling"):
        drawn = sample.cached_draw(path, path.stem, cell.generator, cell.space, cell.encoded, point, cell.device)
    labels = sample.labels_for(point.count, cell.generator.num_classes)
    with speed.stage("counting"):
        counted = build.image_cost(cell.meta, cell.space.autoencoder, point.steps, point.guidance)
    with speed.stage("scoring"):
        scores = judge.score(drawn.images.numpy(), labels)
    row = identity(cell) | judge.ceilings | scores.row
    row |= {
        "run_id": run_id,
        "status": "ok",
        "features": judge.features.name,
        "train_fraction": point.share,
        **{f"train_{name}": trained[name] for name in ("images", "flops", "seconds", "images_per_second", "utilisation")},
        "steps": point.steps,
        "nfe": cell.generator.nfe(point.steps, point.guidance),
        "guidance": point.guidance,
        **counted,
        "seconds_per_image": drawn.seconds_per_image,
        "images_per_second": 1 / drawn.seconds_per_image,
        "latency_seconds": drawn.latency_seconds,
        "peak_memory_mb": drawn.peak_memory_mb,
        **drawn.made,
    }
    keep_pictures(cell, run_id, drawn.images.numpy(), labels.numpy(), scores.pairs)
    made_by = {"train_log": trained["log"], "trained_by": trained["trained_by"], "compile": trained.get("compile")}
    made_by["sampling_seed"] = point.seed
    for name in ("kid_per_class", "fd_per_class"):
        scores.diagnostics[name] = {cell.dataset.classes[k]: found for k, found in scores.diagnostics[name].items()}
    judged = {"selection": scores.selection, "diagnostics": scores.diagnostics}
    records.write(cell.results, row, **judged, **made_by, **details(cell, judge))
    drawing = f", sampling seed {point.seed}" * (len(many(cell.cfg.sampling_seeds)) > 1)
    print(
        f"  {point.steps} steps, guidance {point.guidance:g}{drawing}: {plots.distance_name(judge.features.name)} {row['fd']:.2f}",
        flush=True,
    )


def keep_pictures(cell: Cell, run_id: str, images: np.ndarray, labels: np.ndarray, pairs: list[tuple[int, int]]) -> None:
    """The first samples, and those closest to training pictures beside these, for the report; all of them where `export` asks."""
    grids.strip(images, cell.results / "records" / f"{run_id}.png")
    if pairs:
        drawn, nearest = (list(rows) for rows in zip(*pairs, strict=True))
        pictures = score.train_pictures(cell.dataset)[nearest]
        grids.pairs_strip(images[drawn], pictures, cell.results / "records" / f"{run_id}-nearest.png")
    for kind in many(cell.cfg.export):
        exchange.write(images, labels, cell.results / "export" / run_id, kind)


def record_failure(cell: Cell, error: Exception, point: sample.Setting | None = None, judge: score.Judge | None = None) -> None:
    """A cell, or one point of it, that diverged or broke is a row with its status and reason, never an absence."""
    status = "diverged" if isinstance(error, Diverged) else "failed"
    reason = " ".join(f"{type(error).__name__}: {error}".split())
    run_id = cell.run_id(point, judge) if point and judge else cell.failure.stem
    row = identity(cell) | records.provenance(cell.device) | {"run_id": run_id, "status": status, "started_at": records.now()}
    if point and judge:
        row |= {"steps": point.steps, "guidance": point.guidance, "features": judge.features.name, "train_fraction": point.share}
    records.write(cell.results, row, reason=reason, traceback=traceback.format_exc(), **details(cell, judge))
    complain(
        f"{cell.cfg.model.name} {cell.cfg.size.name} seed {cell.cfg.seed} {status}: {reason} (traceback in the record {run_id})",
        diverged=status == "diverged",
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
        "objective": getattr(generator, "objective", None),
        "sampler": generator.drawn_by(),
        "num_samples": cfg.num_samples,
        "reference_images": len(cell.dataset.reference),
        "dtype": cfg.train.precision,
    }


def details(cell: Cell, judge: score.Judge | None) -> dict[str, Any]:
    """What a record holds beside its row: the resolved configuration, and fingerprints of everything it rests on."""
    config: Any = OmegaConf.to_container(cell.cfg, resolve=True)
    records.shorten_paths(config)
    del config["stop_at"]  # of this process, not of what it measured
    prints = {"data": cell.dataset.key, "latents": cell.space.key, "training": cell.key}
    if judge:
        prints |= {"features": judge.features.key, **{f"features_{k}": v for k, v in judge.features.fingerprint.items()}}
    return {
        "config": config,
        "fingerprints": prints,
        "skipped": cell.dataset.skipped,
        "aside": cell.dataset.aside,
        "overlap": networks.overlap(cell.cfg, cell.dataset.classes),
        "shipped": networks.shipped_parts(cell.cfg, judge.features if judge else None),
        "probe_split": judge.probe_split if judge else None,
        "judge": judge.key if judge else None,
    }


@hydra.main(version_base="1.3", config_path=str(records.ROOT / "conf"), config_name="config")
def job(cfg: DictConfig) -> None:
    """One cell of a run or sweep."""
    speed.free_memory()
    guarded(run_cell, cfg)


def main() -> None:
    """Add the default preset where none is asked for, run the cells, print each report once."""
    if not any(argument.lstrip("+").startswith("experiment=") for argument in sys.argv[1:]):
        preset = "gpu" if torch.cuda.is_available() else "cpu"
        print(f"preset {preset} ({'CUDA device found' if preset == 'gpu' else 'no CUDA device'})", flush=True)
        first = next((i for i, a in enumerate(sys.argv) if i and "=" in a and not a.startswith("-")), len(sys.argv))
        sys.argv.insert(first, f"experiment={preset}")  # beside the other overrides: argparse wants them in one run
    started = time.perf_counter()
    speed.SPENT.clear()
    records.git_state()  # the code that runs is the code there is now, whatever is pulled while it runs
    speed.keep_memory()
    job()
    for folder in [folder for folder, text in REPORTS.items() if text is None]:
        rebuild(folder)
    print("\n".join(text for _, text in sorted(REPORTS.items())), flush=True)
    speed.SPENT["the rest"] = time.perf_counter() - started - sum(speed.SPENT.values())
    print("seconds spent: " + ", ".join(f"{name} {spent:.1f}" for name, spent in speed.SPENT.items()), flush=True)
    finish()


if __name__ == "__main__":
    main()
