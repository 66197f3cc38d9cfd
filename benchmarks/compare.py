"""Two results folders side by side: `make compare A=results/x B=results/y`; rows that measured the same are matched.

The last line on stdout is JSON: `matched`, `ties`, `better`, `worse` (of B against A), `only_a`, `only_b`.
"""

import argparse
import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from benchmarks import records
from benchmarks.paired import difference
from benchmarks.plots import distance_name
from benchmarks.report import markdown

SAME = ("model", "size", "seed", "data", "num_classes", "image_size", "objective", "sampler", "steps", "guidance", "train_fraction")
SAME += ("num_samples", "reference_images", "features")


def matched(first: list[dict], second: list[dict]) -> tuple[list[tuple[dict, dict]], int, int]:
    """Pairs of records that measured the same thing, and how many of each side have no match. Within a side the latest record counts."""
    a, b = ({_identity(r): r for r in found if r["row"]["status"] == "ok"} for found in (first, second))
    both = [key for key in a if key in b]
    return [(a[key], b[key]) for key in both], len(a) - len(both), len(b) - len(both)


def _identity(record: dict[str, Any]) -> tuple:
    return (*(record["row"].get(name) for name in SAME), record.get("sampling_seed", record["row"].get("seed")))


def table(pairs: list[tuple[dict, dict]], a: Path, b: Path) -> tuple[list[str], Counter]:
    """The matched rows as Markdown, and how often each verdict was given."""
    rows, verdicts = [], Counter()
    for one, other in sorted(pairs, key=lambda pair: [str(pair[0]["row"].get(n)) for n in ("data", "features", "model", "size")]):
        first, second = one["row"], other["row"]
        found = difference((a, one), (b, other))
        same = _same_judge(one, other)
        verdict = found.verdict if same else "not comparable: " + "another judge, latents or pictures"
        verdicts[found.verdict if same else "not comparable"] += 1
        name = " ".join(str(first[n]) for n in ("model", "size")) + f", seed {first['seed']}"
        setting = f"{first['steps']} steps, guidance {first['guidance']:g}, {first['sampler']}"
        costs = [_ratio(first, second, column) for column in ("gflops_per_image", "seconds_per_image", "label_accuracy")]
        error = f"{found.error:.3g}{'' if found.paired else ' (unpaired)'}"
        rows.append([name, setting, distance_name(first["features"]), first["fd"], second["fd"], found.value, error, verdict, *costs])
    header = ["network", "setting", "distance", "A", "B", "B - A", "± SD", "B is", "GFLOPs B/A", "seconds B/A", "label accuracy B/A"]
    return markdown(header, rows), verdicts


def _same_judge(one: dict, other: dict) -> bool:
    prints = [record.get("fingerprints", {}) for record in (one, other)]
    return all(prints[0].get(name) == prints[1].get(name) for name in ("data", "features"))


def _ratio(first: dict, second: dict, column: str) -> float | None:
    return second[column] / first[column] if first.get(column) and second.get(column) is not None else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("a", type=Path)
    parser.add_argument("b", type=Path)
    args = parser.parse_args()
    found = [records.read(folder) for folder in (args.a, args.b)]
    for folder, these in zip((args.a, args.b), found, strict=True):
        if not these:
            sys.exit(f"latentbench: {folder}: no records there; give folders such as results/cpu that `make bench` wrote")
    pairs, only_a, only_b = matched(*found)
    if not pairs:
        sys.exit(f"latentbench: {args.a} and {args.b} have no measurement in common ({only_a} and {only_b} of their own)")
    lines, verdicts = table(pairs, args.a, args.b)
    print("\n".join(lines))
    counts = {name: verdicts[word] for name, word in (("ties", "tie"), ("better", "better"), ("worse", "worse"))}
    print(json.dumps({"matched": len(pairs), **counts, "only_a": only_a, "only_b": only_b}))


if __name__ == "__main__":
    main()
