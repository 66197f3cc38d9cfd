"""Two results folders side by side: `make compare A=results/x B=results/y`; rows that measured the same are matched.

The last line on stdout is JSON: `matched`, `ties`, `better`, `worse` (of B against A), `inconclusive`, `unknown`, `not_comparable`,
`only_a`, `only_b`.
"""

import argparse
import json
import sys
from collections import Counter
from pathlib import Path

from benchmarks import records
from benchmarks.report import markdown
from benchmarks.reports.paired import difference
from benchmarks.reports.plots import distance_name

SAME = ("model", "size", "seed", "data", "num_classes", "image_size", "objective", "sampler", "steps", "guidance", "train_fraction")
SAME += ("num_samples", "reference_images", "features")


def matched(first: list[dict], second: list[dict]) -> tuple[list[tuple[dict, dict]], int, int]:
    """Pairs of records that measured the same thing, and how many of each side have no match.

    Settings that differ within a side (learning rates, codebooks, budgets) tell its records apart, those that differ between the sides
    do not.
    """
    several = any(len({records.budget(r) for r in found}) > 1 for found in (first, second))
    a, b = (_by_identity(found, several) for found in (first, second))
    both = [key for key in a if key in b]
    return [(a[key], b[key]) for key in both], len(a) - len(both), len(b) - len(both)


def _by_identity(found: list[dict], budgets: bool) -> dict[tuple, dict]:
    named = zip(found, records.variants(found), strict=True)
    return {
        (*(r["row"].get(n) for n in SAME), r.get("sampling_seed", r["row"].get("seed")), variant, budgets and records.budget(r)): r
        for r, variant in named
        if r["row"]["status"] == "ok"
    }


def table(pairs: list[tuple[dict, dict]]) -> tuple[list[str], Counter]:
    """The matched rows as Markdown, and how often each verdict was given."""
    rows, verdicts = [], Counter()
    for one, other in sorted(pairs, key=lambda pair: [str(pair[0]["row"].get(n)) for n in ("data", "features", "model", "size")]):
        first, second, found = one["row"], other["row"], difference(one, other)
        verdict = found.verdict if _same_judge(one, other) else "not comparable"
        verdicts[verdict] += 1
        name = f"{first['model']} {first['size']}, seed {first['seed']}"
        setting = f"{first['steps']} steps, guidance {first['guidance']:g}, {first['sampler']}"
        costs = [_ratio(first, second, column) for column in ("gflops_per_image", "seconds_per_image", "label_accuracy")]
        distances = [distance_name(first["features"]), first["fd"], second["fd"], found.value, f"{found.error:.3g} ({found.basis})"]
        rows.append([name, setting, *distances, verdict, *costs])
    header = ["network", "setting", "distance", "A", "B", "B - A", "± SD", "B is", "GFLOPs B/A", "seconds B/A", "label accuracy B/A"]
    return markdown(header, rows), verdicts


def _same_judge(one: dict, other: dict) -> bool:
    """Whether both distances are to the same pictures over the same features; never where that is not recorded."""
    prints = [[record.get("fingerprints", {}).get(name) for name in ("data", "features")] for record in (one, other)]
    return prints[0] == prints[1] and None not in prints[0]


def _ratio(first: dict, second: dict, column: str) -> float | None:
    return second[column] / first[column] if first.get(column) and second.get(column) is not None else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("a", type=Path)
    parser.add_argument("b", type=Path)
    args = parser.parse_args()
    found = [records.current(records.read(folder)) for folder in (args.a, args.b)]
    for folder, these in zip((args.a, args.b), found, strict=True):
        if not these:
            sys.exit(f"latentbench: {folder}: no records there; give folders such as results/cpu that `make bench` wrote")
    pairs, only_a, only_b = matched(*found)
    if not pairs:
        sys.exit(f"latentbench: {args.a} and {args.b} have no measurement in common ({only_a} and {only_b} of their own)")
    lines, verdicts = table(pairs)
    print("\n".join(lines))
    if verdicts["not comparable"]:
        print("Not comparable: the reference pictures or the features are not the same, or not recorded.")
    if any(len({record.get("fingerprints", {}).get("training") for record in pair}) > 1 for pair in pairs):
        print("Errors are of the pictures drawn: where A and B were trained apart, another training seed moves both.")
    said = ("tie", "better", "worse", "inconclusive", "unknown", "not comparable")
    counts = {"ties" if word == "tie" else word.replace(" ", "_"): verdicts[word] for word in said}
    print(json.dumps({"matched": len(pairs), **counts, "only_a": only_a, "only_b": only_b}))


if __name__ == "__main__":
    main()
