"""Cells that one of Hydra's launchers runs in other processes, on this machine or on others, and
how the process that launched them learns what became of them.
"""

import os
import secrets
import shutil
import socket
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from benchmarks.core.environment import code_digest, conf_digest, variable
from benchmarks.core.errors import BadInput
from benchmarks.core.files import OLD, runs
from benchmarks.core.session import session
from benchmarks.core.store import read_json, write_json

LAUNCHERS_CACHE = "cache_dir.txt"  # beside the outcomes: which cache the launching process has


def _this_process() -> tuple[str, int]:
    return socket.gethostname(), os.getpid()


@dataclass(frozen=True)
class Job:
    """What Hydra calls with every configuration of one command; a launcher can send it elsewhere.

    In another process than the one that made it, it leaves a file for `merge_outcomes`.
    """

    task: Callable[[DictConfig], None]  # a function of a module
    full_error: str  # the value of HYDRA_FULL_ERROR: "1" shows the traceback of a cell
    launched_by: tuple[str, int] = field(default_factory=_this_process)
    name: str = field(default_factory=lambda: secrets.token_hex(4))  # of this call of the command
    code: str = field(default_factory=code_digest)
    conf: str = field(default_factory=conf_digest)

    def __call__(self, cfg: DictConfig) -> None:
        elsewhere = _this_process() != self.launched_by
        if elsewhere:
            session.launched_by = self.launched_by
            _refuse_other_disks(cfg, self.name)
            take_card(Path(tempfile.gettempdir()))
        with variable("HYDRA_FULL_ERROR", self.full_error):
            session.guard(self._as_it_began, cfg)
        if elsewhere:
            host, number = _this_process()
            folder = _outcomes(Path(HydraConfig.get().sweep.dir), self.name)
            write_json(folder / f"{host}-{number}.json", session.outcome())

    def _as_it_began(self, cfg: DictConfig) -> None:
        """The task. Raises BadInput where the code or the configurations are not what the command
        began with: a cell may have waited for its turn while files were edited or pulled.
        """
        now = {"code": (code_digest(), self.code), "folder conf/": (conf_digest(), self.conf)}
        for what, (here, there) in now.items():
            if here != there:
                raise BadInput(
                    f"the {what} on {socket.gethostname()} is not what this command began with: "
                    "start it again"
                )
        self.task(cfg)


def _refuse_other_disks(cfg: DictConfig, name: str) -> None:
    """Raises BadInput where the results or the cache of the launching process are not seen here."""
    folder = _outcomes(Path(HydraConfig.get().sweep.dir), name)
    _refuse_another_disk(folder, "results_dir")
    noted = folder / LAUNCHERS_CACHE
    # a sweep may give a cell a cache of its own
    if noted.exists() and str(cfg.cache_dir) == noted.read_text():
        _refuse_another_disk(_outcomes(Path(cfg.cache_dir), name), "cache_dir")


def _refuse_another_disk(folder: Path, key: str) -> None:
    """Raises BadInput where the folder that the launching process made is not seen: what is done
    here would be lost, or what is there would be made once more.
    """
    if not folder.is_dir():
        raise BadInput(
            f"{key}: {socket.gethostname()} does not see {folder.parent}, which the launching "
            "process made: results_dir and cache_dir must be on a disk that all machines share"
        )


def take_card(folder: Path) -> None:
    """Of several GPUs, `cuda` means one that no other launched process has, as long as this process
    lives; where all are taken, the first, as without a launcher.
    """
    if session.card or not torch.cuda.is_available() or torch.cuda.device_count() == 1:
        return
    for card in range(torch.cuda.device_count()):
        # the system frees it whatever becomes of the process
        # by its own name: its number depends on which cards this process may see
        name = getattr(torch.cuda.get_device_properties(card), "uuid", card)
        lock = FileLock(folder / f"latentbench-{os.getuid()}-cuda-{name}.lock")
        with suppress(Timeout):
            lock.acquire(timeout=0)
            session.card = lock
            torch.cuda.set_device(card)
            return


class NoteSweep(Callback):
    """Of conf/config.yaml. Hydra calls it in the process that launches, as a sweep begins."""

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        if config.hydra.launcher._target_.endswith("BasicLauncher"):
            return  # every cell runs in this process
        session.sweep_folder = Path(config.hydra.sweep.dir)
        session.sweep_cache = Path(config.cache_dir)
        if session.job_name:  # what cannot be written is said by whoever writes there first
            with suppress(OSError):
                _meet(session.sweep_folder, session.job_name)
                _meet(session.sweep_cache, session.job_name)
                noted = _outcomes(session.sweep_folder, session.job_name) / LAUNCHERS_CACHE
                noted.write_text(str(session.sweep_cache))


def _meet(folder: Path, name: str) -> None:
    """Make in a shared folder what the cells of a call must see there."""
    own = _outcomes(folder, name)
    own.mkdir(parents=True)
    _remove_forgotten(own.parent)


def _remove_forgotten(folder: Path) -> None:
    """Remove what launchers left that were lost, and whose cells have long been done."""
    for path in folder.iterdir():
        if time.time() - path.stat().st_mtime > OLD:
            shutil.rmtree(path, ignore_errors=True)


def launcher_may_be_gone() -> bool:
    """Whether nobody may be left to build the report of this launched process's cell."""
    if session.launched_by is None:
        return False
    machine, process = session.launched_by
    return machine != socket.gethostname() or not runs(process)


def merge_outcomes(job: Job) -> None:
    """Take into this session what became of a job's cells in other processes.

    Where the launcher gave up, cells may still run or wait for their turn: the folder stays, in
    which they say what became of them.
    """
    if session.sweep_folder is None:
        return
    folder = _outcomes(session.sweep_folder, job.name)
    for path in sorted(folder.glob("*.json")):
        session.merge(read_json(path) or {})
    if session.cells_left:
        return
    for shared in filter(None, (session.sweep_folder, session.sweep_cache)):
        folder = _outcomes(shared, job.name)
        shutil.rmtree(folder, ignore_errors=True)
        with suppress(OSError):  # the folder of another call's is there, too
            folder.parent.rmdir()


def _outcomes(shared: Path, name: str) -> Path:
    return shared / "outcomes" / name
