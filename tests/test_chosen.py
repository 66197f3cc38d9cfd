"""The table of chosen settings, and what a panel says of where its networks were trained."""

import pytest

from benchmarks.reports.chosen import chosen
from benchmarks.reports.notes import trained_on


def record(tried: list[dict], best: int) -> dict:
    """A measurement at settings chosen from trials of these options."""
    trials = [
        {"guidance": 1.0, "sampler": "own", "options": options}
        | {"fd_generator_train": 9.0 - place, "recall_train": 0.5}
        for place, options in enumerate(tried)
    ]
    row = {"model": "ar", "size": "xs", "seed": 0, "status": "ok", "device": "a machine"}
    tuning = {"steps": 16, "trials": trials, "chosen": best, "features": "local"}
    return {"row": row, "tuning": tuning, "fingerprints": {"training": "x"}}


@pytest.mark.parametrize(
    "tried, said",
    [
        ([{"temperature": 1.0}, {"temperature": 0.9}], "temperature 0.9, the lowest tried"),
        ([{"shift": 1.0}, {"shift": 2.0}], "shift 2.0, the highest tried"),
        ([{"t": 1.0}, {"t": 0.8}, {"t": 0.9}], "t 0.9"),
        ([{"schedule": "cosine"}, {"schedule": "arccos"}], "schedule arccos"),
        ([{"top_p": None}, {"top_p": 0.9}, {"top_p": 0.95}], "top_p 0.95, the highest tried"),
    ],
)
def test_a_setting_beyond_which_nothing_was_tried_is_marked(tried, said):
    _, [row] = chosen([record(tried, best=len(tried) - 1)], [""])
    assert said in row


def test_the_machine_of_the_training_is_named_though_another_one_sampled():
    trained = [{"trained_by": {"device": "a CPU (1 threads)"}}] * 2
    assert trained_on([*trained, {}]) == ["Trained on a CPU (1 threads).", ""]
    assert trained_on([{}]) == []
