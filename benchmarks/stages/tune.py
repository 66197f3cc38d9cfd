"""Choose how a trained model is sampled: guidance first, then its other settings.

Every model has the same search, which starts from the model's own defaults. Each scale of
`tune.guidance` is tried; where the highest is the best, higher ones follow. Then each change that
`conf/model` lists under `tune` is tried on top of the best so far, and stays where it is better.
A number that is better is followed further, in equal ratios: 0.9 and then 0.81 of the default.

The best is what is closest to training images passed through the autoencoder (`fd_generator_train`
of the first feature extractor), among what keeps enough of the unguided samples' recall, so that
diversity is not given up for it.

Trials are sampled from a seed of their own. What is reported of the chosen settings is measured on
other samples, against other images, so a lucky trial gains nothing.
"""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import OmegaConf

from benchmarks.core.errors import BadInput, Diverged, OutOfTime
from benchmarks.core.files import check_writable
from benchmarks.core.session import session
from benchmarks.core.settings import many, out_of_time
from benchmarks.core.store import digest, read_sealed, write_sealed
from benchmarks.stages import jointly
from benchmarks.stages.cell import Cell
from benchmarks.stages.guide import refuse_missing_snapshot
from benchmarks.stages.model import sampler_settings
from benchmarks.stages.sample import SamplingConfig

SEED = -1  # of the trials' samples; seeds that are reported are from 0 up
HIGHER = 1.5  # what the highest scale is multiplied by where it is the best
MOST_HIGHER = 4  # so often at most
MOST_FURTHER = 3  # how often a change may be made at most, each time on top of the last


class Trial(NamedTuple):
    """A sampling config and what it is chosen by."""

    config: SamplingConfig
    distance: float  # fd_generator_train; infinite where the samples were not finite
    recall: float | None  # recall_train; None of too few samples


class Choice(NamedTuple):
    """The settings chosen for one step count."""

    best: Trial
    trials: list[Trial]
    features: str = ""  # whose distance chose

    @property
    def at_edge(self) -> bool:
        """Whether the best guidance is the highest that was tried, so that more may be better."""
        scales = [trial.config.guidance for trial in self.trials]
        return len(set(scales)) > 1 and self.best.config.guidance == max(scales)

    def summary(self) -> dict[str, Any]:
        """As a record keeps it."""
        return {
            "features": self.features,
            "steps": self.best.config.steps,
            "num_samples": self.best.config.count,
            "sampling_seed": self.best.config.seed,
            "trials": [_described(trial) for trial in self.trials],
            "chosen": self.trials.index(self.best),
            "at_edge": self.at_edge,
        }


class NotTried(Exception):
    """A trial whose result is not there yet."""


Score = Callable[[SamplingConfig], Trial]
# a sampling config with a setting changed once, or further; None where it goes no further
Change = Callable[[SamplingConfig, int], SamplingConfig | None]


def wanted(cell: Cell) -> bool:
    """Whether settings are to be chosen at all."""
    return bool(cell.cfg.tune.guidance)


def known(cell: Cell) -> dict[int, Choice] | None:
    """The choices by step count where all trials are there already, else None."""
    trials = read_sealed(_file(cell)) or {}

    def score(config: SamplingConfig) -> Trial:
        result = trials.get(_key(cell, config))
        if result is None:
            raise NotTried
        return _trial(config, result)

    try:
        return _choices(cell, score)
    except NotTried:
        return None


def choose(cell: Cell, weights: str) -> dict[int, Choice]:
    """The choices by step count; a trial that is there already is not made again.

    `weights` names the trained weights, which the cell's model holds. Raises OutOfTime.
    """
    trials = read_sealed(_file(cell)) or {}
    if trials.get("weights") != weights:  # trained again: what was tried says nothing of these
        trials = {"weights": weights}

    def score(config: SamplingConfig) -> Trial:
        key = _key(cell, config)
        if key not in trials:
            if out_of_time(cell.cfg):
                name = f"{cell.cfg.model.name} {cell.cfg.size.name} seed {cell.cfg.seed}"
                raise OutOfTime(f"{name} is trained; its settings are still to be chosen")
            check_writable(cell.work, "cache_dir")
            trials[key] = _tried(cell, config)
            write_sealed(_file(cell), trials)
        return _trial(config, trials[key])

    choices = _choices(cell, score)
    for steps, choice in choices.items():
        edge = " (the highest tried)" if choice.at_edge else ""
        print(f"  chosen at {steps} steps: {_label(cell, choice.best.config)}{edge}", flush=True)
    return choices


def configs(cell: Cell, choices: dict[int, Choice]) -> list[tuple[SamplingConfig, Choice]]:
    """What is reported of the choices: every step count, with each seed, at the settings of the
    nearest count that was tuned; and the choice it is by. Empty without choices.
    """
    measured = []
    for config in cell.unguided if choices else []:
        choice = choices[nearest(config.steps, list(choices))]
        best = choice.best.config
        settings = {"guidance": best.guidance, "sampler": best.sampler, "options": best.options}
        measured.append((config._replace(**settings), choice))
    return measured


def nearest(steps: int, counts: Sequence[int]) -> int:
    """The count closest to `steps` by their ratio; of two, the larger."""
    return min(sorted(counts, reverse=True), key=lambda count: abs(math.log(count / steps)))


def search(
    score: Score,
    start: SamplingConfig,
    guidance: Sequence[float],
    changes: Sequence[Change],
    least_recall: float,
    supports: Callable[[float], bool] = lambda scale: True,
) -> Choice:
    """The best of all trials from `start` on; `guidance` ascends from 1, and beyond what is listed
    as far as the model `supports` it.
    """
    trials = [score(start._replace(guidance=scale)) for scale in guidance]
    unguided = trials[0].recall

    def allowed(trial: Trial) -> bool:
        """Diversity must not be what the distance was bought with."""
        if unguided is None or trial.recall is None:
            return True
        return trial.recall >= least_recall * unguided

    def best() -> Trial:
        return min(filter(allowed, trials), key=lambda trial: trial.distance)

    for _ in range(MOST_HIGHER):
        highest = trials[-1].config.guidance
        if len(guidance) == 1 or best().config.guidance < highest:
            break
        if not supports(highest * HIGHER):
            break
        trials.append(score(start._replace(guidance=highest * HIGHER)))
    for change in changes:
        for times in range(1, MOST_FURTHER + 1):
            changed = change(best().config, times)
            if changed is None:
                break
            trials.append(score(changed))
            if best() is not trials[-1]:
                break
    return Choice(best(), trials)


def _choices(cell: Cell, score: Score) -> dict[int, Choice]:
    """The search of every step count that is tuned; empty where nothing is."""
    if not wanted(cell):
        return {}
    tune = cell.cfg.tune
    changes = [_change(cell, settings) for settings in _listed(cell)]
    choices = {}
    supports = cell.model.supports_guidance
    scales = [float(scale) for scale in many(tune.guidance) if supports(float(scale))]
    for steps in _tuned_steps(cell):
        start = next(config for config in cell.unguided if config.steps == steps)
        start = start._replace(seed=SEED, count=tune.num_samples, **_defaults(cell))
        choice = search(score, start, scales, changes, tune.recall, supports)
        choices[steps] = choice._replace(features=cell.evaluators[0].extractor.name)
    return choices


def _defaults(cell: Cell) -> dict[str, Any]:
    """The model's own sampler and options, whatever is configured, but for who guides: another
    guide is searched for by itself.
    """
    name = cell.cfg.sampler.name
    if name != "default" and not many(cell.cfg.guidance):
        session.print_once(
            f"sampler={name}: no row will have it, as the search starts from each model's own; "
            "add guidance=[1] for rows as configured"
        )
    configured = cell.cfg.sampler.get("guide")
    has_guides = "guide" in cell.model.sampler_defaults
    cell.model.set_sampler(**{"guide": configured} if configured and has_guides else {})
    return sampler_settings(cell.model)


def _tuned_steps(cell: Cell) -> list[int]:
    """The measured step counts that `tune.steps` names, and always the most, where models are
    compared.
    """
    measured = sorted({config.steps for config in cell.unguided})
    asked = measured if cell.cfg.tune.steps is None else many(cell.cfg.tune.steps)
    return [steps for steps in measured if steps in (*asked, measured[-1])]


def _listed(cell: Cell) -> list[dict[str, Any]]:
    """The changes that the model's configuration lists, each a sampler or options of it.

    What this model does not have with its objective is named and left out.
    """
    listed: Any = OmegaConf.to_container(cell.cfg.model, resolve=True).get("tune") or []
    if not listed:
        session.print_once(f"{cell.cfg.model.name}: no changes to tune, guidance only")
    own = cell.model.sampler_defaults
    changes = []
    for settings in listed:
        foreign = [name for name in settings if name != "sampler" and name not in own]
        if settings.get("sampler", cell.model.sampler) not in cell.model.samplers:
            foreign.append(f"sampler={settings['sampler']}")
        if foreign:
            name = f"{cell.cfg.model.name} with objective {cell.model.objective}"
            session.print_once(f"{name} has no {', '.join(foreign)}: left out of tuning")
        else:
            changes.append(settings)
    return changes


def _change(cell: Cell, settings: dict[str, Any]) -> Change:
    """A function that makes a change to a sampling config, keeping its other settings.

    Raises BadInput for a value out of range.
    """
    options = {name: value for name, value in settings.items() if name != "sampler"}
    defaults = dict(cell.model.sampler_defaults)

    def changed(config: SamplingConfig, times: int = 1) -> SamplingConfig | None:
        sampler = settings.get("sampler", config.sampler)
        reached = options if times == 1 else further(options, defaults, times)
        if reached is None:
            return None
        try:
            cell.model.set_sampler(sampler, **dict(config.options) | reached)
        except (ValueError, TypeError) as error:
            if times > 1:  # out of the setting's range
                return None
            raise BadInput(f"model={cell.cfg.model.name}, tune {settings}: {error}") from None
        refuse_missing_snapshot(cell.model.sampler_options, cell.cfg)
        return config._replace(**sampler_settings(cell.model))

    changed(cell.unguided[0])  # refused now, not after hours of training
    return changed


def further(
    options: dict[str, Any], defaults: dict[str, Any], times: int
) -> dict[str, float] | None:
    """A setting so many times as far from its default, in equal ratios; None for what is no single
    positive number.
    """
    if len(options) != 1:
        return None
    [(name, value)] = options.items()
    if not (_is_positive(value) and _is_positive(defaults.get(name))):
        return None
    return {name: float(f"{defaults[name] * (value / defaults[name]) ** times:.3g}")}


def _is_positive(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value > 0


def _tried(cell: Cell, config: SamplingConfig) -> dict[str, Any]:
    """Sample and score one trial, as it is kept in the file."""
    try:
        samples = jointly.sample(cell, config)
    except Diverged:
        return {"distance": None, "recall": 0.0}
    evaluator = cell.evaluators[0]
    scores = evaluator.selection(evaluator.features(samples.images.numpy()))
    distance = scores["fd_generator_train"]
    if not math.isfinite(distance):
        return {"distance": None, "recall": 0.0}
    return {"distance": distance, "recall": scores.get("recall_train")}


def _trial(config: SamplingConfig, result: dict[str, Any]) -> Trial:
    distance = result["distance"]
    return Trial(config, math.inf if distance is None else distance, result["recall"])


def _file(cell: Cell) -> Path:
    """What was tried of this training."""
    return cell.work / "trials.json"


def _key(cell: Cell, config: SamplingConfig) -> str:
    """Names a trial of this training."""
    return digest(cell.evaluators[0].key, config)


def _label(cell: Cell, config: SamplingConfig) -> str:
    """For people: the settings, such as `guidance 2.5, dpmpp, shift 2.0`."""
    cell.model.set_sampler(config.sampler, **dict(config.options))
    return f"guidance {config.guidance:g}, {cell.model.sampler_label()}"


def _described(trial: Trial) -> dict[str, Any]:
    """As a record keeps it: JSON has no word for an infinite distance."""
    return {
        "guidance": trial.config.guidance,
        "sampler": trial.config.sampler,
        "options": dict(trial.config.options),
        "fd_generator_train": trial.distance if math.isfinite(trial.distance) else None,
        "recall_train": trial.recall,
    }
