"""`make perf`: how near each stage comes to the machine's ceiling, and how it compares with what a
user would otherwise run.

Writes results/perf/perf.csv, and perf.json: machine, versions, least and most of each stage's
ceilings and of each ratio over the turns. A row of role `ours` is the suite's own code; `baseline`
names what `ratio` (ours over baseline, in speed, the median of the turns) compares it with; rows of
role `baseline` are those. `peak_memory_mb` is CUDA's only: on a CPU it is the process's, which
holds all that is compared. `utilisation` is counted FLOP/s over the ceiling: the better of two
large square bf16 matrix products, the best of those taken in turns with the stage, because a
machine's clock drifts. Stages named `choice` compare the suite with itself lacking one thing
(`gains.py`). bars.csv holds what was measured against what is promised of one H100 or H200.
`--quick` is shorter in every stage, for two cores, and compiles nothing. How cost grows is
`growth.py`: growth.csv and growth.png.

What is measured is kept after every stage; with `--stop-at` it ends after the stage in which that
time is reached (exit code 75), and the next call on the same machine and code goes on. A stage that
fails costs no other one (exit code 1).
"""

import argparse
import shutil
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from benchmarks.core import cli
from benchmarks.core.environment import device_name, library_versions, pick_device, provenance
from benchmarks.core.session import TO_BE_CONTINUED
from benchmarks.core.store import atomic_file, read_json, write_json
from benchmarks.perf import ablations, bars, comparisons, growth
from benchmarks.perf.bench import COLUMNS, Bench, ceiling
from benchmarks.results import records
from benchmarks.results.tables import markdown
from metrics import speed

Stage = Callable[[Bench], Any]


def arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = cli.parser("perf", __doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument(
        "--rehearse",
        action="store_true",
        help="everything as small as it can be, to see that it runs",
    )
    parser.add_argument("--size", default="s")
    parser.add_argument("--side", type=int, default=16, help="of the latents")
    parser.add_argument("--batch", type=int, help="of training; 16 on a CPU, 128 on CUDA")
    parser.add_argument("--stop-at", type=float, help="seconds since the epoch")
    parser.add_argument("--out", type=Path, default=Path("results/perf"))
    return parser.parse_args(argv)


def plan(args: argparse.Namespace, device: torch.device) -> dict[str, Stage]:
    """The stages by name, most valuable first."""
    cuda = device.type == "cuda"
    if args.rehearse:
        args.size, args.side, args.batch = "xs", 4, 2
    batch = args.batch or (128 if cuda else 16)
    short = (
        args.side if cuda or args.rehearse else max(4, args.side // 2) if args.quick else args.side
    )
    compiled = not args.quick and not args.rehearse and (cuda or shutil.which("g++") is not None)
    shapes = [(args.size, args.side, batch)] + (
        [("s", args.side, 256)] if cuda and args.size != "s" else []
    )
    shapes += [] if cuda else [("xs", 8, 32)] if not args.rehearse else []
    wanted: dict[str, Stage] = {}
    for size, side, many in shapes:
        for name in ("dit", "ar", "unet"):
            wanted[f"train {name} {size} {side}"] = partial(
                comparisons.training, name=name, size=size, side=side, batch=many, compiled=compiled
            )
    for many in (1, 64 if cuda else 32):
        wanted[f"tokens {many}"] = partial(
            comparisons.sampling_tokens,
            size=args.size,
            side=short,
            batch=2 if args.rehearse else many,
        )
    for name in ("dit", "unet"):
        wanted[f"diffusion {name}"] = partial(
            comparisons.sampling_diffusion,
            name=name,
            size=args.size,
            side=short,
            batch=2 if args.rehearse else 32,
        )
    wanted["encode"] = partial(
        comparisons.encoding, count=4 if args.rehearse else 500 if args.quick else 2000
    )
    for n in (
        (40,) if args.rehearse else () if cuda else (1000,) if args.quick else (1000, 5000)
    ):  # on the host, whatever the device
        wanted[f"score {n}"] = partial(comparisons.scoring, n=n, d=16 if args.rehearse else 2048)
    if not args.rehearse and not cuda:  # on CUDA hardly any of the choices changes anything
        wanted["choices"] = partial(ablations.measure, size=args.size, side=args.side, batch=batch)
    repeats = 1 if args.rehearse else 2 if args.quick else 5
    wanted["growth"] = partial(growth.measure, repeats=repeats, out=args.out)
    if cuda or args.rehearse:
        wanted["launches"] = partial(
            comparisons.launch_bounds, size=args.size, side=short, batch=2 if args.rehearse else 1
        )
    return wanted


def main(argv: Sequence[str]) -> None:
    args = arguments(argv)
    device = pick_device("auto")
    speed.keep_memory()
    bench = Bench(
        device, args.quick or args.rehearse, partial(ceiling, device), rehearse=args.rehearse
    )
    wanted = plan(args, device)
    done = resume(bench, args.out, list(wanted))
    print(
        f"{device_name(device)}, torch {torch.__version__}: ceiling {bench.ceiling() / 1e9:.4g} GFLOP/s in bf16",
        flush=True,
    )
    for name, stage in wanted.items():
        if name in done:
            continue
        if args.stop_at is not None and time.time() > args.stop_at:
            print(
                f"out of time: left are {', '.join(other for other in wanted if other not in done)}",
                flush=True,
            )
            sys.exit(TO_BE_CONTINUED)
        try:
            stage(bench)
        except Exception as error:  # of one stage: the others are still worth their minutes
            traceback.print_exc()
            bench.failed.append(f"{name}: {type(error).__name__}: {str(error).strip()[:200]}")
        done.append(name)
        write(bench, args.out, list(wanted), done)
    report(bench, args.out)
    if bench.failed:
        sys.exit("\n".join(f"latentbench: perf: {line.splitlines()[0]}" for line in bench.failed))


def report(bench: Bench, out: Path) -> None:
    """Everything as Markdown."""
    table = pd.DataFrame(bench.rows).reindex(columns=COLUMNS)
    print(
        "\n".join(
            markdown(COLUMNS, table.astype(object).where(table.notna(), None).values.tolist())
        )
    )
    if bench.device.type == "cuda":
        held = pd.read_csv(out / "bars.csv")
        print(
            "\n".join(
                [
                    "",
                    *markdown(
                        held.columns, held.astype(object).where(held.notna(), None).values.tolist()
                    ),
                ]
            )
        )
    print("\n".join(str(path) for path in sorted(out.iterdir())))


def resume(bench: Bench, out: Path, wanted: list[str]) -> list[str]:
    """The stages that an earlier call of the same code on this machine measured, whose figures
    `bench` then holds.

    A stage of which something failed is measured again in a call of its own: when all others are
    done.
    """
    known = read_json(out / "perf.json")
    same = provenance(bench.device) | {"wanted": wanted}
    if not isinstance(known, dict) or any(known.get(name) != value for name, value in same.items()):
        return []
    if known["done"] == wanted and known["failed"]:
        return []
    bench.rows, bench.failed = known["rows"], known["failed"]
    bench.ceilings, bench.ratios, bench.figures = (
        known["ceilings_flops"],
        known["ratios"],
        known["figures"],
    )
    print(f"going on after {', '.join(known['done'])}", flush=True)
    return list(known["done"])


def write(bench: Bench, out: Path, wanted: list[str], done: list[str]) -> None:
    """perf.csv, perf.json and bars.csv of what has been measured so far."""
    table = pd.DataFrame(bench.rows).reindex(columns=COLUMNS)
    with atomic_file(out / "perf.csv") as path:
        table.to_csv(path, index=False)
    if bench.device.type == "cuda" or bench.rehearse:
        with atomic_file(out / "bars.csv") as path:
            bars.table(bench, table).to_csv(path, index=False)
    measured = {"ceilings_flops": bench.ceilings, "ratios": bench.ratios, "figures": bench.figures}
    about = provenance(bench.device) | {"versions": library_versions()}
    state = {
        "wanted": wanted,
        "done": done,
        "failed": bench.failed,
        "rows": records.clean(bench.rows),
    }
    write_json(out / "perf.json", about | measured | state)
