"""The processes that a launcher (torchrun, accelerate launch) started together for one run.

The first one leads: it alone reads settings, decides, prints and writes. The others follow: they
wait for its calls and do their share of what all do at once. They need the same cache folder.
"""

import os
import socket
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import timedelta
from itertools import pairwise
from typing import Any, TypeVar, cast

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from benchmarks.core.environment import RANKS
from benchmarks.core.errors import BadInput, Diverged, OutOfTime, raise_if_stopped
from benchmarks.core.session import in_words, session
from benchmarks.core.store import tensors_digest
from metrics import speed

Value = TypeVar("Value")
# for one process the others wait as long as it takes: to encode a data set, to choose settings
PATIENCE = timedelta(days=30)
NEEDED = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
CPU = torch.device("cpu")
# what every process raises at the same place, and lives on after
COMMON = (BadInput, Diverged, OutOfTime)


def size() -> int:
    """How many processes there are; 1 where no launcher started several."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """The number of this process, from 0, which leads."""
    return dist.get_rank() if dist.is_initialized() else 0


def leads() -> bool:
    """Whether this process is the one that decides, prints and writes."""
    return rank() == 0


def is_launched() -> bool:
    """Whether torchrun, or what sets the same variables, started this process beside others."""
    return os.environ.get("WORLD_SIZE", "1") not in ("", "1")


def start() -> None:
    """Meet the others, where there are any. Raises BadInput where the launcher told too little."""
    if not is_launched() or dist.is_initialized():
        return
    missing = [name for name in NEEDED if not os.environ.get(name)]
    if missing:
        raise BadInput(
            f"WORLD_SIZE is {os.environ['WORLD_SIZE']}, but {', '.join(missing)} is not set; "
            "start several processes by torchrun or accelerate launch"
        )
    if torch.cuda.is_available():
        cards, processes = torch.cuda.device_count(), int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        if processes > cards:
            raise BadInput(
                f"{processes} processes on this machine and {cards} GPU(s): each needs a card of "
                f"its own; start {cards}"
            )
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
        dist.init_process_group("cpu:gloo,cuda:nccl", timeout=PATIENCE)
    else:
        dist.init_process_group("gloo", timeout=PATIENCE)
    for name in RANKS:  # what is started from here on is no part of the team
        os.environ.pop(name, None)


def agree_on(arguments: Sequence[str], code: str) -> None:
    """All must have been started alike, or the leader's call would do something else elsewhere.

    Raises BadInput in the leader where they were not; the others end without a word.
    """
    try:
        same((list(arguments), code, torch.cuda.is_available()), "arguments, code or devices")
    except BadInput:
        if leads():
            session.team_lost = True  # nobody waits to be dismissed
            raise
        sys.exit(0)  # else torchrun would end the leader before it can speak


def together(own: Any, task: Callable[..., Value], *args: Any) -> Value:
    """In the leader: `task(own, *args)` here, and `task(None, *args)` in all other processes at
    once; its value here.

    `task` is a function of a module, and `args` can be pickled. What it raises of COMMON is raised
    everywhere. Anything else leaves the others waiting: it is raised here, to be recorded, and the
    run ends where all would have to work together again. Raises BadInput in a process that follows.
    """
    if size() == 1:
        return task(own, *args)
    if not leads():
        raise BadInput(  # it goes another way than the leader, who found a file ready
            "it does not see what the first process has made: cache_dir must be on a disk that all "
            "processes share"
        )
    if session.team_lost:
        session.complain(f"all {size()} processes end after that; the same command goes on")
        session.finish()
    dist.broadcast_object_list([(task, args)], src=0, device=CPU)
    try:
        return task(own, *args)
    except COMMON:
        raise
    except BaseException:
        session.team_lost = True
        raise


def follow() -> None:
    """In all others: do what the leader calls for, until it has ended."""
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115  (of the process, to its end)
    while True:
        call: list[Any] = [None]
        dist.broadcast_object_list(call, src=0, device=CPU)
        if call[0] is None:
            dist.destroy_process_group()
            return
        task, args = call[0]
        with suppress(*COMMON):
            task(None, *args)


def dismiss() -> None:
    """In the leader: the others may end, unless they were left in the middle of a task."""
    if size() > 1 and not session.team_lost:
        dist.broadcast_object_list([None], src=0, device=CPU)
        dist.destroy_process_group()


# --- within a task, by all processes


def wait() -> None:
    """Until all are here."""
    anywhere(False)


def agreed(value: float) -> float:
    """The leader's value, which all go by: clocks differ."""
    if size() == 1:
        return value
    shared = torch.tensor(value, dtype=torch.float64)
    dist.broadcast(shared, src=0)
    return shared.item()


def same(value: Value, what: str) -> Value:
    """The value, which must be the leader's everywhere. Raises BadInput in all where it is not."""
    if size() == 1:
        return value
    leaders: list[Any] = [value]
    dist.broadcast_object_list(leaders, src=0, device=CPU)
    if anywhere(leaders[0] != value):
        raise BadInput(
            f"processes see different {what}: all need the same command, files and cache_dir"
        )
    return value


def same_weights(module: nn.Module) -> None:
    """Raises BadInput in all where a process holds other weights than the leader."""
    if size() > 1:
        same(tensors_digest(module.state_dict()), "weights")


def alike(task: Callable[..., Value], *args: Any) -> Value:
    """`task(*args)`, which may wait for no other process; what stops one of them stops all.

    Raises in the leader what was raised there, and BadInput in all others.
    """
    fault, value = None, None
    try:
        value = task(*args)
    except Exception as error:
        raise_if_stopped(error)
        fault = error
        if not leads():
            session.complain(f"process {rank()}: {in_words(error)}")
    if anywhere(fault is not None):
        if fault is not None and leads():
            raise fault
        raise BadInput("a process could not do as the others; all need the same files")
    return cast(Value, value)


def anywhere(fact: bool) -> bool:
    """Whether it is a fact in any process."""
    if size() == 1:
        return fact
    shared = torch.tensor(int(fact))
    dist.all_reduce(shared, dist.ReduceOp.MAX)
    return bool(shared)


def of_others(watched: speed.OtherPrograms) -> float | None:
    """What other programs took of this machine's cores; the processes of a team are no others."""
    if size() == 1:
        return watched.share()
    all_own: list[Any] = [None] * size()
    dist.all_gather_object(all_own, (socket.gethostname(), watched.own_seconds()))
    return watched.share(sum(own for host, own in all_own if host == socket.gethostname()))


def on(device: str) -> str:
    """A device's name in a record, with the number of processes: rows of two and rows of one stand
    in sections of their own.
    """
    return device if size() == 1 else f"{device}, {size()} processes"


def mean(value: Tensor) -> Tensor:
    """The mean of all processes' values."""
    if size() == 1:
        return value
    total = value.clone()
    dist.all_reduce(total)
    return total / size()


def scattered(shares: list[Any] | None) -> Any:
    """This process's of the shares that the leader has, one for each."""
    own: list[Any] = [None]
    dist.scatter_object_list(own, shares, src=0)
    return own[0]


def share_of(images: Any, at_once: Callable[[int], int]) -> Any:
    """This process's part of the images (N, 3, H, W) that the leader has, and no other process.

    Whole batches of `at_once(W)` images, so that some processes may have none.
    """
    if size() == 1:
        return images
    shares = None
    if images is not None:
        batch = at_once(images[:1].shape[-1])
        batches = -(-len(images) // batch)
        bounds = [batch * (batches * i // size()) for i in range(size() + 1)]
        shares = [np.ascontiguousarray(images[a:b]) for a, b in pairwise(bounds)]
    return scattered(shares)


def gathered(share: Any) -> list[Any]:
    """In the leader: every process's share, in their order; elsewhere nothing."""
    if size() == 1:
        return [share]
    shares: list[Any] | None = [None] * size() if rank() == 0 else None
    dist.gather_object(share, shares, dst=0)
    return shares or []


def refuse_batch(count: int, accumulate: int) -> None:
    """Raises BadInput for a batch that cannot be divided among the processes and their passes."""
    if size() > 1 or accumulate > 1:
        rows(count, parts=accumulate)


def own_rows(count: int) -> slice | None:
    """Of a batch of `count` images those that this process needs; None: all of them."""
    return None if size() == 1 else rows(count)


def rows(count: int, part: int = 0, parts: int = 1) -> slice:
    """Of `count` images those that are this process's: its share, or `part` of `parts` of it.

    Raises BadInput where they cannot be divided equally.
    """
    pieces = size() * parts
    if count % pieces:
        raise BadInput(
            f"train.batch={count} cannot be divided among {size()} processes with "
            f"train.accumulate={parts}; give a multiple of {pieces}"
        )
    each = count // pieces
    first = (rank() * parts + part) * each
    return slice(first, first + each)
