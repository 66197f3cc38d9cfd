"""Train, sample, score and report: one cell, or a Hydra sweep of many.

    python -m benchmarks run experiment=smoke
    python -m benchmarks run -m model=unet,dit,ar seed=0,1,2 steps=[4,16,64] guidance=[1,2]

A cell is one (model, size, data, seed): trained once, measured at every `steps` x `guidance`. Every
measurement becomes one record, and the report of results/<name> is built from all records there.
What is already done is not done again, and a run that was killed goes on where it stopped.

This file is the way of an image, from its file to the plot; read it first.
"""

import time
from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from omegaconf import DictConfig

from benchmarks.analysis.curves import distance_title
from benchmarks.core import machine, team
from benchmarks.core.cli import run_hydra
from benchmarks.core.environment import code_digest, git_state, refuse_foreign_settings
from benchmarks.core.errors import BadInput, OutOfTime
from benchmarks.core.files import check_writable, tidy
from benchmarks.core.jobs import launcher_may_be_gone
from benchmarks.core.locks import only_one
from benchmarks.core.session import session
from benchmarks.core.settings import check, config_names, many, out_of_time, with_preset
from benchmarks.core.store import as_json, digest
from benchmarks.images import import_export
from benchmarks.reports import grids
from benchmarks.reports.summary import build_report
from benchmarks.results import records
from benchmarks.results.columns import leading
from benchmarks.stages import elsewhere, jointly, tune
from benchmarks.stages.cell import Cell, results_folder
from benchmarks.stages.floors import train_images
from benchmarks.stages.model import image_cost, is_ar_without_codebook, takes_a_guide
from benchmarks.stages.own_codebook import own_codebook
from benchmarks.stages.prepare import prepare
from benchmarks.stages.record import record_failure, record_measurement
from benchmarks.stages.sample import SamplingConfig, labels_for, load_or_sample
from benchmarks.stages.score import Evaluator, Scores
from metrics import speed

REPORT_EVERY = 60  # seconds: a sweep's report grows as it runs, but must not hold up the next cell


class Measurement(NamedTuple):
    """One sampling config, scored by one evaluator."""

    config: SamplingConfig
    evaluator: Evaluator
    choice: tune.Choice | None  # that its settings are by; None: they are as configured


def run_cell(cfg: DictConfig) -> None:
    """The whole way of an image, once: prepare, train, sample, score, record, report."""
    check(cfg)
    check_writable(results_folder(cfg), "results_dir")
    if not session.begun:  # the first cell of this call
        session.begun = True
        lines = machine.as_lines(machine.headlines(Path(cfg.cache_dir), Path(cfg.results_dir)))
        session.print_once("\n".join(lines))
        tidy(Path(cfg.cache_dir))
        tidy(results_folder(cfg))
    refuse_foreign_settings()
    records.refuse_foreign(results_folder(cfg))
    speed.free_memory()  # what an earlier cell of this process held
    title = f"{cfg.model.name} {cfg.size.name} seed {cfg.seed}"
    if out_of_time(cfg):
        raise OutOfTime(f"{title} is not begun")
    cell = prepare(cfg)
    choices = tune.known(cell)
    asked = measurements(cell, choices or {})
    missing = [one for one in asked if not is_recorded(cell, one)]
    line = f"{title}: {len(asked) - len(missing)} of {len(asked)} measurements are there"
    print(line if choices is not None else f"{line}, and settings to choose", flush=True)

    # a training that diverged would diverge again
    failure = records.load(cell.failure_file)
    diverged = failure is not None and failure["row"]["status"] == "diverged"
    unfinished = bool(missing) or choices is None
    if unfinished and diverged:
        line = f"{title} diverged before: {failure.get('reason')}"
        session.complain(f"{line}; remove {cell.failure_file} to try again", diverged=True)
    try:
        if unfinished and not diverged:
            train_and_measure(cell)
    finally:  # a run whose time is up has a report too, of what is there
        session.reports[cell.results] = None
        summary = cell.results / "summary.md"
        old = not summary.exists() or time.time() - summary.stat().st_mtime > REPORT_EVERY
        if old or launcher_may_be_gone():
            rebuild_report(cell.results)


def train_and_measure(cell: Cell) -> None:
    """Train, or load what is trained, choose its settings, then make each missing measurement."""
    ready = (cell.work / "train.json").exists() and tune.known(cell) is not None
    # of two runs of one cell one trains and tunes, and the other waits; a whole cache is only read
    alone = only_one(cell.work, out_of_time=partial(out_of_time, cell.cfg))
    with nullcontext() if ready else alone:
        trained = load_or_train(cell)
        choices = choose_settings(cell, trained) if trained else {}
    if trained:
        measure_missing(cell, trained, choices)


def load_or_train(cell: Cell) -> dict | None:
    """The summary of the training, with its weights in the model; None where it failed."""
    if cell.trained_elsewhere:
        return elsewhere.trained(cell)
    try:
        with session.stage("training"):
            trained = jointly.train(cell)
        _say_by_how_many("trained", trained.get("processes", 1))
    except (BadInput, OutOfTime, OSError):  # of the setting or the machine, not of the training
        raise
    except Exception as error:
        record_failure(cell, error)
        return None
    cell.failure_file.unlink(missing_ok=True)
    return trained


def measure_missing(cell: Cell, trained: dict, choices: dict[int, tune.Choice]) -> None:
    """Each measurement of a trained cell that is not there. One that fails takes no other with it.

    Raises OutOfTime.
    """
    cfg, loaded_fraction = cell.cfg, 1.0
    asked = measurements(cell, choices)
    missing = [one for one in asked if not is_recorded(cell, one)]
    for i, one in enumerate(missing):
        config, evaluator, choice = one
        if out_of_time(cfg):
            name = f"{cfg.model.name} {cfg.size.name} seed {cfg.seed}"
            raise OutOfTime(f"{name} is trained; {len(missing) - i} measurement(s) are left")
        try:
            if config.train_fraction != loaded_fraction:  # weights kept on the way come last
                trained = jointly.load_at_fraction(cell, trained, config.train_fraction)
                loaded_fraction = config.train_fraction
            measure(cell, one, trained)
        except OSError:
            raise
        except Exception as error:
            record_failure(cell, error, config, evaluator, chosen=choice is not None)


def choose_settings(cell: Cell, trained: dict) -> dict[int, tune.Choice]:
    """The chosen settings by step count. Where the search fails, what is configured still runs."""
    try:
        with session.stage("tuning"):
            return tune.choose(cell, trained["weights"])
    except (BadInput, OutOfTime, OSError):
        raise
    except Exception as error:
        record_failure(cell, error)
        return {}


def measurements(cell: Cell, choices: dict[int, tune.Choice]) -> list[Measurement]:
    """Everything that is asked of a cell: chosen settings, then settings as configured."""
    configs: list[tuple[SamplingConfig, tune.Choice | None]] = [*tune.configs(cell, choices)]
    configs += [(config, None) for config in cell.grid]
    return [
        Measurement(config, evaluator, choice)
        for config, choice in configs
        for evaluator in cell.evaluators
    ]


def measure(cell: Cell, asked: Measurement, trained: dict) -> None:
    """Sample (once for all evaluators), count, score and record one sampling config."""
    config, evaluator, choice = asked
    run_id = cell.run_id(config, evaluator, chosen=choice is not None)
    key = digest(trained["weights"], config)[:12]
    path = cell.work / f"samples-{key}.safetensors"
    cell.set_sampler(config)
    with session.stage("sampling"):
        samples = load_or_sample(path, path.stem, partial(jointly.sample, cell, config))
    _say_by_how_many("samples", samples.made.get("sample_processes", 1))
    labels = labels_for(config.count, cell.model.num_classes)
    with session.stage("counting"):
        autoencoder = cell.latent_space and cell.latent_space.autoencoder
        cost = image_cost(cell.meta_model, autoencoder, config.steps, config.guidance)
    with session.stage("scoring"):
        scores = evaluator.score(samples.images.numpy(), labels)
    save_samples(cell, run_id, samples.images.numpy(), labels.numpy(), evaluator, scores)
    tuning = choice.summary() if choice else None
    record_measurement(cell, config, evaluator, trained, samples, cost, scores, tuning)

    setting = f"{config.steps} steps, guidance {config.guidance:g}"
    if len(many(cell.cfg.sampling_seeds)) > 1:
        setting += f", sampling seed {config.seed}"
    leads = leading(scores.row)
    name = distance_title(evaluator.extractor.name, generator=leads == "fd_generator")
    print(f"  {setting}: {name} {scores.row[leads]:.2f}", flush=True)


def _say_by_how_many(what: str, processes: float) -> None:
    """A line where something was in the cache, or begun, and its seconds are of another team."""
    if processes != team.size():
        session.print_once(
            f"{what}: found in the cache, of {processes:g} process(es) and not of {team.size()}"
        )


def is_recorded(cell: Cell, asked: Measurement) -> bool:
    """Whether there is a whole record of today's scoring, and its samples are where `export` wants
    them.
    """
    config, evaluator, choice = asked
    run_id = cell.run_id(config, evaluator, chosen=choice is not None)
    record = records.load(records.path_of(cell.results, run_id))
    if record is None or record["row"]["status"] != "ok":
        return False
    if record.get("evaluator") != evaluator.key:
        return False
    if record.get("floors_of") != own_codebook(cell):
        return False  # once its floors were those of the codebook that others share
    if choice and record.get("tuning") != as_json(choice.summary()):  # chosen anew since
        return False
    folder = cell.results / "export" / run_id
    return all(import_export.place(folder, kind).exists() for kind in many(cell.cfg.export))


def save_samples(
    cell: Cell,
    run_id: str,
    images: np.ndarray,
    labels: np.ndarray,
    evaluator: Evaluator,
    scores: Scores,
) -> None:
    """The first samples, and those closest to training images beside these, for the report.

    All of them where `export` asks.
    """
    folder = cell.results / "records"
    grids.strip(images, folder / f"{run_id}.png")
    if scores.pairs:
        sampled = [row for row, _ in scores.pairs]
        searched = train_images(cell.dataset, evaluator.extractor)
        nearest = searched[[row for _, row in scores.pairs]]
        grids.pairs_strip(images[sampled], nearest, folder / f"{run_id}-nearest.png")
    for kind in many(cell.cfg.export):
        import_export.write(images, labels, cell.results / "export" / run_id, kind)


def rebuild_report(folder: Path) -> None:
    """The report of a results folder, from all records there: of two at once, the later has both
    processes' records.
    """
    with session.stage("report"), only_one(folder / "report"):
        session.reports[folder] = build_report(folder)


def refuse_within_a_team(argv: Sequence[str]) -> None:
    """Raises BadInput for what would start processes, or choose a card, within one of several."""
    for word in argv if team.size() > 1 else ():
        if word.lstrip("+").startswith("hydra/launcher=") and not word.endswith("=basic"):
            raise BadInput(f"{word}: a launcher starts cells of one process each; leave out either")
        if word.startswith("device=cuda:"):
            raise BadInput(f"{word}: each process has the card of its number; give device=cuda")


def refuse_unused(argv: Sequence[str]) -> None:
    """Raises BadInput for what none of the models that are named would make use of: a codebook,
    where all are autoregressive ones without (diffusion is not mistaken for a model of tokens), and
    a guide that is not theirs. In a sweep of models that differ, it is left out with a line.
    """
    given = dict(word.lstrip("+").split("=", 1) for word in argv if "=" in word)
    models = [name for name in given.get("model", "").split(",") if name in config_names("model")]
    codebooks = [
        key for key in given if key.startswith(("autoencoder.codebook", "size.codebook_size"))
    ]
    asked = [f"{key}={given[key]}" for key in codebooks if given[key] != "null"]
    if asked and models and all(map(is_ar_without_codebook, models)):
        raise BadInput(
            f"{asked[0]}: {', '.join(models)} would make no use of it; leave it out, or choose a "
            "model that samples its entries, such as model=ar"
        )
    guide = given.get("sampler.guide", "")
    if "snapshot" in guide and models and not any(map(takes_a_guide, models)):
        raise BadInput(
            f"sampler.guide={guide}: {', '.join(models)} cannot be guided by earlier weights; "
            "leave it out, or choose a model that can, such as model=dit"
        )


def main(argv: Sequence[str]) -> None:
    """Run the cells, then print each report once."""
    speed.keep_memory()
    team.start()
    # asked now: the code that runs is the code there is now, whatever is pulled while it runs
    git_state()
    if team.size() > 1:
        team.agree_on(argv, code_digest())
    refuse_within_a_team(argv)
    refuse_unused(argv)
    if not team.leads():
        team.follow()
        return
    began = time.perf_counter()
    try:
        run_hydra("run", __doc__, run_cell, with_preset(argv))
    finally:
        team.dismiss()
    for folder, text in list(session.reports.items()):
        if text is None:
            rebuild_report(folder)
    print("\n".join(text or "" for _, text in sorted(session.reports.items())), flush=True)
    rest = time.perf_counter() - began - sum(session.seconds.values())
    spent = [f"{name} {seconds:.1f}" for name, seconds in session.seconds.items()]
    if rest > 0:  # the stages of several processes together may take longer than the clock
        spent.append(f"the rest {rest:.1f}")
    print("seconds spent:", ", ".join(spent), flush=True)
    if session.exit_code():  # whoever calls this function must notice, too
        session.finish()
