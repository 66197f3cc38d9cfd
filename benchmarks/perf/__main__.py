"""`make perf`: how near each stage comes to the machine's ceiling, and how it compares with what a user would otherwise run.

Writes results/perf/perf.csv, and perf.json: machine, versions, least and most of each stage's ceilings and of each ratio over the turns.
A row of role `ours` is the suite's own code; `baseline` names what `ratio` (ours over baseline, in speed, the median of the turns) compares it
with; rows of role `baseline` are those. `peak_memory_mb` is CUDA's only: on a CPU it is the process's, which holds all that is compared.
`utilisation` is counted FLOP/s over the ceiling: the better of 2048 and 4096 square bf16 matrix products, the best of those taken in turns
with the stage, because a machine's clock drifts. Stages named `choice` compare the suite with itself lacking one thing (`gains.py`).
`--quick` is shorter in every stage, for two cores, and compiles nothing. How cost grows is `growth.py`: growth.csv and growth.png.
"""

import argparse
import shutil
from functools import partial
from pathlib import Path

import pandas as pd
import torch

from benchmarks import records
from benchmarks.perf import gains, growth, stages
from benchmarks.perf.bench import COLUMNS, Bench, ceiling
from benchmarks.report import markdown
from benchmarks.store import atomic_file, write_json
from metrics import speed


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.perf", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--size", default="s")
    parser.add_argument("--side", type=int, default=16, help="of the latents")
    parser.add_argument("--batch", type=int, help="of training; 16 on a CPU, 256 on CUDA")
    parser.add_argument("--out", type=Path, default=Path("results/perf"))
    args = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    speed.keep_memory()
    bench = Bench(device, args.quick, partial(ceiling, device))
    print(f"{records.device_name(device)}, torch {torch.__version__}: ceiling {bench.ceiling() / 1e9:.4g} GFLOP/s in bf16", flush=True)
    batch = args.batch or (16 if device.type == "cpu" else 256)
    short = max(4, args.side // 2) if args.quick else args.side
    compiled = not args.quick and (device.type == "cuda" or shutil.which("g++") is not None)
    for name in ("dit", "ar", "unet"):
        stages.training(bench, name, args.size, args.side, batch, compiled=compiled)
        stages.training(bench, name, "xs", 8, 32, compiled=compiled)
    for many in (1, 32):
        stages.sampling_tokens(bench, args.size, short, many)
    for name in ("dit", "unet"):
        stages.sampling_diffusion(bench, name, args.size, short, 32)
    stages.encoding(bench, 500 if args.quick else 2000)
    for n in (1000,) if args.quick else (1000, 5000):
        stages.scoring(bench, n)
    write(bench, args.out)
    gains.measure(bench, args.size, args.side, batch)
    table = write(bench, args.out)
    print("\n".join(markdown(COLUMNS, table.astype(object).where(table.notna(), None).values.tolist())))
    grown = growth.write(growth.points(device, 2 if args.quick else 5), args.out)
    print("\n".join(["", *markdown(grown.columns, grown.values.tolist())]))
    print("\n".join(str(args.out / name) for name in ("perf.csv", "perf.json", "growth.csv", "growth.png")))


def write(bench: Bench, out: Path) -> pd.DataFrame:
    """perf.csv and perf.json of what has been measured so far; returns the table."""
    table = pd.DataFrame(bench.rows)[COLUMNS]
    with atomic_file(out / "perf.csv") as path:
        table.to_csv(path, index=False)
    ranges = {"ceilings_flops": bench.ceilings, "ratios": bench.ratios}
    write_json(out / "perf.json", records.provenance(bench.device) | {"versions": records.versions()} | ranges)
    return table


if __name__ == "__main__":
    main()
