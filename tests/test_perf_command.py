"""`perf` as a command: what is measured is kept after every stage, and a later call goes on."""

import time

import pandas as pd
import pytest
import torch

from benchmarks.perf import command
from benchmarks.perf.bench import Bench

CPU = torch.device("cpu")


def fresh_bench() -> Bench:
    """As a new process has it."""
    return Bench(device=CPU, quick=True, ceiling=lambda: 1.0)


def stage(name: str):
    """A stage that adds one row."""
    return lambda bench: bench.rows.append({"stage": name, "role": "ours"})


def broken(bench: Bench) -> None:
    raise RuntimeError("no such kernel")


@pytest.fixture
def measured_stages(tmp_path):
    """The stages in perf.csv."""
    return lambda: pd.read_csv(tmp_path / "perf.csv")["stage"].tolist()


def test_a_stage_that_fails_costs_no_other_one(tmp_path, measured_stages):
    """And is measured again in a call of its own, when all others are done."""
    bench, done = fresh_bench(), []
    planned = {"first": stage("first"), "broken": broken, "last": stage("last")}
    assert command.measure(bench, planned, done, tmp_path, None)
    assert measured_stages() == ["first", "last"]
    assert bench.failed == ["broken: RuntimeError: no such kernel"]
    assert command.resume(fresh_bench(), tmp_path, list(planned)) == []


def test_a_call_whose_time_is_up_leaves_the_rest_to_the_next(tmp_path, measured_stages):
    planned = {"slow": stage("slow"), "later": stage("later")}
    bench, done = fresh_bench(), []
    past = time.time() - 1
    assert not command.measure(bench, planned, done, tmp_path, past) and done == []

    planned["slow"](bench)  # a call that got as far as this
    command.write(bench, tmp_path, list(planned), ["slow"])
    bench = fresh_bench()
    done = command.resume(bench, tmp_path, list(planned))
    assert done == ["slow"]
    assert command.measure(bench, planned, done, tmp_path, None)
    assert measured_stages() == ["slow", "later"]


def test_other_stages_or_another_commit_begin_anew(tmp_path, monkeypatch):
    bench = fresh_bench()
    command.measure(bench, {"one": stage("one")}, [], tmp_path, None)
    assert command.resume(fresh_bench(), tmp_path, ["one"]) == ["one"]
    assert command.resume(fresh_bench(), tmp_path, ["one", "two"]) == []
    monkeypatch.setattr(command, "provenance", lambda device: {"git_sha": "another"})
    assert command.resume(fresh_bench(), tmp_path, ["one"]) == []
