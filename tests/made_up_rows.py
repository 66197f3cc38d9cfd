"""Rows of made-up curves, for tests of what a report says of numbers."""

import pandas as pd

from benchmarks.analysis import choices


def rows(**columns) -> pd.DataFrame:
    """Points of made-up curves, `model` naming them; what is not given is the same for all."""
    count = len(next(iter(columns.values())))
    filled = {
        "guidance": [1.0] * count,
        "sampler": ["euler"] * count,
        "distance_std": [0.1] * count,
        "chosen": [False] * count,
        "training": columns["model"],
        "gflops_per_image": columns["steps"],
        "latency_seconds": columns["steps"],
        "train_flops": [1e12] * count,
        "sampling_seed": [0] * count,
    }
    table = choices.picked(pd.DataFrame(filled | columns))
    return table.assign(curve=table["model"])


def trained(distances: dict[str, dict[int, list[float]]], **columns) -> pd.DataFrame:
    """Rows of networks by name, at steps, one distance a training."""
    points = [
        (name, steps, f"{name}{seed}", distance)
        for name, at in distances.items()
        for steps, values in at.items()
        for seed, distance in enumerate(values)
    ]
    model, steps, training, distance = zip(*points, strict=True)
    values = dict(model=model, steps=steps, training=training, distance=distance)
    return rows(**{name: list(value) for name, value in values.items()} | columns)


TWO = trained({"a": {1: [9.0], 4: [5.0], 16: [4.95]}, "b": {1: [7.0], 4: [3.0]}})
