"""How near each stage comes to the machine's ceiling, and how it compares with what a user would
otherwise run.

    python -m benchmarks perf
    python -m benchmarks perf --quick
    python -m benchmarks perf --size b --out results/perf-b
    python -m benchmarks perf --train dit,dit_flowmap,uvit --out results/perf-new

Writes results/perf/perf.csv, and perf.json: machine, versions, least and most of each stage's
ceilings and of each ratio over the turns. A row of role `ours` is the suite's own code; `baseline`
names what `ratio` (ours over baseline, in speed, the median of the turns) compares it with; rows of
role `baseline` are those. `peak_memory_mb` is CUDA's only: on a CPU it is the process's, which
holds all that is compared. `utilisation` is counted FLOP/s over the ceiling: the better of two
large square matrix products in the type that the machine multiplies fastest, the best of those
taken in turns with the stage, because a machine's clock drifts. (`utilisation` in the results of
`run` is of another ceiling: one product, taken once a process.) Stages named `choice` compare the
suite with itself lacking one thing. bars.csv holds what was measured against what is promised of
one H100 or H200. growth.csv and growth.png are of how cost grows. `--quick` is shorter in every
stage, for two cores, and compiles nothing.

What is measured is kept after every stage; with `--stop-at` it ends after the stage in which that
time is reached (exit code 75), and the next call on the same machine and code goes on. A stage that
fails costs no other one (exit code 1).
"""

import argparse
import sys
import time
import traceback
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import pandas as pd
import torch

from benchmarks.core import cli
from benchmarks.core.environment import (
    device_name,
    library_versions,
    pick_device,
    provenance,
    refuse_foreign_settings,
)
from benchmarks.core.errors import raise_if_stopped
from benchmarks.core.files import atomic_file, check_writable
from benchmarks.core.session import TO_BE_CONTINUED
from benchmarks.core.settings import config_names, trained_models
from benchmarks.core.store import read_json, write_json
from benchmarks.perf import bars
from benchmarks.perf.bench import COLUMNS, Bench, ceiling
from benchmarks.perf.stage_list import Stage, extent_on, stage_list
from benchmarks.results import records
from benchmarks.results.tables import markdown
from metrics import speed


def arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = cli.parser("perf", __doc__)
    parser.add_argument("--quick", action="store_true", help="shorter in every stage")
    parser.add_argument("--rehearse", action="store_true", help="small, to see that it runs")
    add = parser.add_argument
    add("--size", default="s", choices=config_names("size"), help="of the networks")
    # a U-Net halves the side twice, and --quick once more
    add("--side", type=int, default=16, choices=(4, 8, 16, 32, 64), help="of the latents")
    add("--batch", type=cli.whole, help="of training; 16 on a CPU, 128 on CUDA")
    models = "models whose training steps are measured, separated by commas, and nothing else"
    add("--train", type=_models, metavar="MODELS", help=models)
    add("--stop-at", type=cli.positive, help="seconds since the epoch")
    add("--out", type=cli.path, default=Path("results/perf"), help="results folder")
    return parser.parse_args(argv)


def _models(text: str) -> list[str]:
    """Names of models of latents, which argparse refuses by this function's error."""
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if name not in trained_models():
            known = ", ".join(trained_models())
            raise argparse.ArgumentTypeError(f"no model {name}; there are {known}")
    return names


def main(argv: Sequence[str]) -> None:
    args = arguments(argv)
    refuse_foreign_settings()
    check_writable(args.out, "--out")
    device = pick_device("auto")
    speed.keep_memory()  # as every run does
    bench = Bench(
        device=device,
        quick=args.quick or args.rehearse,
        ceiling=partial(ceiling, device, rehearse=args.rehearse),
        rehearse=args.rehearse,
    )
    extent = extent_on(
        device, args.size, args.side, args.batch, quick=args.quick, rehearse=args.rehearse
    )
    planned = stage_list(extent, args.side, args.out, args.train)
    done = resume(bench, args.out, list(planned))
    reached = f"ceiling {bench.ceiling() / 1e9:.4g} GFLOP/s"
    print(f"{device_name(device)}, torch {torch.__version__}: {reached}", flush=True)
    if not measure(bench, planned, done, args.out, args.stop_at):
        left = [name for name in planned if name not in done]
        print(f"out of time: left are {', '.join(left)}", flush=True)
        sys.exit(TO_BE_CONTINUED)
    report(bench, args.out)
    if bench.failed:
        sys.exit("\n".join(f"latentbench: perf: {line.splitlines()[0]}" for line in bench.failed))


def measure(
    bench: Bench, planned: dict[str, Stage], done: list[str], out: Path, stop_at: float | None
) -> bool:
    """Every stage that is not done, written to `out` one by one, and their names added to `done`.

    False where `stop_at`, seconds since the epoch, came before the last of them was begun.
    """
    for name, stage in planned.items():
        if name in done:
            continue
        if stop_at is not None and time.time() > stop_at:
            return False
        try:
            stage(bench)
        except Exception as error:  # of one stage: the others are still worth their minutes
            raise_if_stopped(error)
            traceback.print_exc()
            reason = str(error).strip()[:200]
            bench.failed.append(f"{name}: {type(error).__name__}: {reason}")
        done.append(name)
        write(bench, out, list(planned), done)
    return True


def report(bench: Bench, out: Path) -> None:
    """Print everything as Markdown."""
    print("\n".join(_markdown(pd.DataFrame(bench.rows).reindex(columns=COLUMNS))))
    if bench.device.type == "cuda":
        print("\n".join(["", *_markdown(pd.read_csv(out / "bars.csv"))]))
    print("\n".join(str(path) for path in sorted(out.iterdir())))


def _markdown(table: pd.DataFrame) -> list[str]:
    """Lines of a table whose missing values are empty cells."""
    # pandas writes None as NaN in a column of numbers, hence the objects
    filled = table.astype(object).where(table.notna(), None)
    return markdown(filled.columns, filled.values.tolist())


def resume(bench: Bench, out: Path, planned: list[str]) -> list[str]:
    """The stages that an earlier call of the same code on this machine measured, whose figures
    `bench` then holds.

    A stage of which something failed is measured again in a call of its own: when all others are
    done.
    """
    earlier = read_json(out / "perf.json")
    # ratios of another machine, another commit or other stages do not belong in one table
    own = provenance(bench.device) | {"wanted": planned}
    if not isinstance(earlier, dict):
        return []
    if any(earlier.get(name) != value for name, value in own.items()):
        return []
    if earlier["done"] == planned and earlier["failed"]:  # from the beginning, all of it
        return []
    bench.rows, bench.failed = earlier["rows"], earlier["failed"]
    bench.ceilings, bench.ratios = earlier["ceilings_flops"], earlier["ratios"]
    bench.figures = earlier["figures"]
    print(f"going on after {', '.join(earlier['done'])}", flush=True)
    return list(earlier["done"])


def write(bench: Bench, out: Path, planned: list[str], done: list[str]) -> None:
    """perf.csv, perf.json and bars.csv of what has been measured so far."""
    table = pd.DataFrame(bench.rows).reindex(columns=COLUMNS)
    with atomic_file(out / "perf.csv") as path:
        table.to_csv(path, index=False)
    if bench.device.type == "cuda" or bench.rehearse:  # the promises are a GPU's
        with atomic_file(out / "bars.csv") as path:
            bars.table(bench, table).to_csv(path, index=False)
    # `resume` reads it back: rows, and what is measured beside them, of every stage that is done
    about = provenance(bench.device) | {"versions": library_versions()}
    measured = {
        "ceilings_flops": bench.ceilings,
        "ratios": bench.ratios,
        "figures": bench.figures,
    }
    state = {
        "wanted": planned,
        "done": done,
        "failed": bench.failed,
        "rows": records.clean(bench.rows),
    }
    write_json(out / "perf.json", about | measured | state)
