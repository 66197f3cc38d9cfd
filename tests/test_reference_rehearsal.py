"""The GPU's studies are rehearsed, so that no minute of one is lost to a typo."""

from functools import partial

import pytest
from made_up_studies import plan_of
from preloaded import run_preloaded

from benchmarks.core.errors import BadInput
from benchmarks.reference import command, packing, plan


def run_until(call, deadline, log) -> int:
    """In the place of `command.run_until`, which starts a new interpreter for each command."""
    assert deadline is None
    return run_preloaded(call, log)


@pytest.mark.long
def test_the_gpus_entries_are_rehearsed_on_a_cpu(tmp_path, monkeypatch, capsys):
    """By the same command lines, in miniature; and what they make can be packed, and is refused
    where it would be taken for results.
    """
    wanted = [study.name for study in plan.load() if study.device == "cuda"]
    cache, out, log = tmp_path / "cache", tmp_path / "out", tmp_path / "log"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(command, "run_until", partial(run_until, log=log))
    places = ["--cache", str(cache), "--out", str(out)]
    code = command.go(command.arguments(["--rehearse", "--only", ",".join(wanted), *places]))
    printed = capsys.readouterr().out
    assert code == 0, (printed + log.read_text())[-4000:]
    assert f"made: {', '.join(wanted)}" in printed and "left:" not in printed

    assert list(packing.packed(out)) == wanted
    entries = plan_of(tmp_path / "plan.yaml", *wanted)
    with pytest.raises(BadInput, match="made by a rehearsal"):
        packing.unpack(out, entries, tmp_path, tmp_path, tmp_path / "plan.yaml")

    published = cache / "rehearsal" / "reference"
    for name in wanted:
        kept = {path.name for path in (published / name).rglob("*") if path.is_file()}
        tables = {"results.csv", "summary.md", "records.json.gz"}
        if name == "perf-gpu":
            tables = {"perf.csv", "bars.csv", "growth.csv"}
        assert tables <= kept
    rows = (published / "gpu-tiny-imagenet-20" / "results.csv").read_text()
    assert all(f",{family}," in rows for family in ("unet", "dit", "ar"))
