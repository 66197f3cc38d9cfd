"""Whether the learning rates behind a panel were searched at its size, and by which study."""

import math
from typing import Any, NamedTuple

from benchmarks.results.records import learning_rate
from benchmarks.results.tables import show

# the objectives that rates were searched for; others go with the rate of `flow`
USUAL_OBJECTIVES = {"unet": "flow", "dit": "flow", "unet_conv": "flow", "uvit": "flow"}
SWEPT = "several are compared here"
FAR = 1.5  # a budget is another one where it is so many times larger or smaller


class Search(NamedTuple):
    """A study that trained each model of a size at several learning rates, once each."""

    size: str
    study: str  # in results/reference
    images: str
    budget: float  # training FLOPs
    # by model, as in conf/size: without guidance the best that was tried, or not told apart from it
    rates: dict[str, float]
    # models that have changed since: with today's network their rate was not tried between others
    of_earlier_networks: tuple[str, ...] = ()


# tests/test_searched_rates.py holds them to these studies and to conf/size
SEARCHES = [
    Search(
        "xs",
        "lr_sweep",
        "procedural images of 32 px",
        7.4e12,
        {
            "unet": 2e-3,
            "dit": 8e-3,
            "ar": 4e-3,
            "ar_any": 4e-3,
            "masked": 2e-3,
            "unet_conv": 2e-3,
            "unet_flowmap": 2e-3,
            "dit_flowmap": 4e-3,
            "uvit": 4e-3,
            "ar_continuous": 4e-3,
            "masked_continuous": 2e-3,
            "ar_scale": 8e-3,
            "dit_pixels": 8e-3,
        },
    ),
    Search(
        "xs16",
        "lr_sweep-tiny-imagenet-20",
        "photographs of 64 px",
        3e13,
        {"unet": 2e-3, "dit": 4e-3, "ar": 4e-3, "ar_any": 2e-3, "ar_block": 4e-3, "masked": 4e-3},
        ("ar_any", "masked"),
    ),
]


def rate_notes(records: list[dict[str, Any]]) -> list[str]:
    """How the learning rates of a panel's records came about, in lines of Markdown: from a search
    at their size, or from none.
    """
    rates = [(record, learning_rate(record)) for record in records]
    rates = [(record, rate) for record, rate in rates if not math.isnan(rate)]
    tried: dict[tuple, set[float]] = {}
    for record, rate in rates:
        tried.setdefault(_compared(record), set()).add(rate)
    origins: dict[str, list[str]] = {}
    for record, rate in rates:
        swept = len(tried[_compared(record)]) > 1
        models = origins.setdefault(SWEPT if swept else _origin(record, rate), [])
        name = f"`{record['row']['model']}` {rate:g}"
        if name not in models:
            models.append(name)
    if not origins:
        return []
    lines = [f"- {', '.join(models)}: {origin}." for origin, models in origins.items()]
    return ["Learning rates:", "", *lines, ""]


def _compared(record: dict[str, Any]) -> tuple:
    """What trainings of a sweep of rates have in common: a size and an objective have their own."""
    return tuple(record["row"].get(name) for name in ("model", "size", "objective"))


def _origin(record: dict[str, Any], rate: float) -> str:
    """How the learning rate of a record's training came about."""
    row = record["row"]
    search = next((one for one in SEARCHES if one.size == row["size"]), None)
    wider = record["config"].get("match") == "params" and row["model"] != "dit"
    usual = row.get("objective") == USUAL_OBJECTIVES.get(row["model"], row.get("objective"))
    if search is None or row["model"] not in search.rates or wider or not usual:
        return f"not searched at size {row['size']} for what was trained here"
    if search.rates[row["model"]] != rate:
        return f"not the rate that a search chose at size {row['size']}"
    ratio = row["train_flops"] / search.budget
    changed = row["model"] in search.of_earlier_networks
    earlier = ", all or some of a slightly other network" if changed else ""
    other = "" if 1 / FAR < ratio < FAR else f"; these trainings have {show(ratio)} times as many"
    return (
        f"without guidance the best of a search at size {search.size}, or not told apart from it "
        f"(results/reference/{search.study}: {search.images}, {search.budget:.2g} FLOPs, "
        f"one training a rate{earlier}{other})"
    )
