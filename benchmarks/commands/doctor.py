"""Look at this machine and at an image folder, and say what a bench will make of them.

    python -m benchmarks doctor
    python -m benchmarks doctor data=imagefolder data.path=/images num_samples=1000

The preset is the one that a bench would take, `cpu` or `gpu`. Nothing is trained or written. The
exit code is 1 where a bench would fail, or its numbers mislead.
"""

import functools
from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig

from benchmarks.core import machine
from benchmarks.core.cli import run_hydra
from benchmarks.core.machine import Finding, as_lines
from benchmarks.core.session import session
from benchmarks.core.settings import check, with_preset
from benchmarks.images.inspect import inspect_images


def examine(cfg: DictConfig) -> None:
    """Print every finding, once where cells of a sweep have the same."""
    check(cfg)
    findings = _of_machine(Path(cfg.cache_dir), Path(cfg.results_dir))
    if cfg.data.source == "imagefolder":
        findings = findings + inspect_images(cfg.data, num_samples=cfg.num_samples)
    for line in as_lines(findings):
        session.print_once(line)
    bad = [finding.topic for finding in findings if finding.bad]
    if bad:
        session.complain(f"look at: {', '.join(bad)} (marked ! above)")


@functools.cache  # a preset is a sweep, and all its cells have one machine
def _of_machine(cache: Path, results: Path) -> list[Finding]:
    return machine.everything(cache, results)


def main(argv: Sequence[str]) -> None:
    run_hydra("doctor", __doc__, examine, with_preset(argv))
