"""Comparisons by settings that are no columns, of several seeds, and of what has no records."""

import json

import pytest
from test_compare import _record, _trainings, compared

from benchmarks.commands import compare
from benchmarks.core.errors import BadInput
from benchmarks.core.store import write_sealed
from benchmarks.reports import comparison
from benchmarks.results import archive, records


def test_compare_pools_the_seeds_both_sides_have(tmp_path, capsys):
    """Samplings of a training are averaged first: three values of each, and not six. Learning rates
    are not pooled with each other.
    """
    for seed, base in enumerate((5.0, 5.2, 4.9)):
        for sampling in (0, 1):
            for side, fd in (("a", base), ("b", 1.5 * base)):
                own = {"recipe": side, "run_id": f"{side}{seed}{sampling}", "sampling": sampling}
                _record(tmp_path / side, fd + 0.01 * sampling * seed, seed=seed, **own)
    lines, counts = compared(capsys, tmp_path / "a", tmp_path / "b")
    assert (counts["matched"], counts["rows"], counts["worse"]) == (6, 1, 1)
    assert "dit xs, 3 seeds" in lines[2] and "3 and 3 trainings" in lines[2]
    for side in ("c", "d"):
        for rate in (1e-3, 2e-3):
            _trainings(tmp_path / side, 5.0, 6.0, name=rate, train={"lr": rate})
    assert compared(capsys, tmp_path / "c", tmp_path / "d")[1]["rows"] == 2


def test_compare_takes_settings_that_are_no_columns(tmp_path, capsys):
    """Two learning rates of one model, from the records' configuration; each row says what tells it
    apart.
    """
    for rate, distances in ((1e-3, (9.0, 9.1, 9.2)), (2e-3, (5.0, 5.1, 5.2))):
        for fraction in (0.5, 1.0):
            settings = {"train": {"lr": rate}, "train_fraction": fraction}
            _trainings(tmp_path, *distances, name=f"{rate}{fraction}", **settings)
    given = ("--where-a", "train.lr=1e-3", "--where-b", "train.lr=2e-3")
    lines, counts = compared(capsys, tmp_path, *given)
    assert (counts["matched"], counts["rows"], counts["better"]) == (6, 2, 2)
    assert sum("at 0.5 of the training" in line for line in lines) == 1
    for side in ("c", "d"):
        for rate in (1e-3, 2e-3):
            _record(tmp_path / side, 5.0, train={"lr": rate}, run_id=f"{rate}")
    lines, counts = compared(capsys, tmp_path / "c", tmp_path / "d")
    assert counts["rows"] == 2 and "lr 0.001" in lines[2] and "lr 0.002" in lines[3]


def test_what_both_filters_say_alike_is_no_choice(tmp_path, capsys):
    """model=dit on both sides: samplers are matched with their own, not called ambiguous."""
    for sampler in ("euler", "heun"):
        for guidance in (1.0, 4.0):
            _record(
                tmp_path,
                9.0 - guidance,
                guidance=guidance,
                sampler=sampler,
                run_id=f"{sampler}{guidance}",
            )
    given = ("--where-a", "model=dit", "guidance=1", "--where-b", "model=dit", "guidance=4")
    assert compared(capsys, tmp_path, *given)[1]["better"] == 2


def test_a_value_with_spaces_is_quoted_where_it_is_asked_for(tmp_path, capsys):
    """The line can be typed as it stands."""
    for sampler in ("raster", "raster, top_k 100"):
        _record(tmp_path, 9.0, sampler=sampler, run_id=sampler)
    with pytest.raises(SystemExit, match=r"--where-a 'sampler=raster, top_k 100'"):
        compared(capsys, tmp_path, "--where-a", "model=dit", "--where-b", "sampler=raster")


def test_a_value_may_hold_spaces():
    words = ["guidance=1", "sampler=random-order, schedule cosine", "steps=8"]
    assert compare._wanted(words) == {
        "guidance": "1",
        "sampler": "random-order, schedule cosine",
        "steps": "8",
    }


@pytest.mark.parametrize("samples, warned", [(100, True), (300, False)])
def test_compare_warns_of_too_few_images(samples, warned, tmp_path, capsys):
    for side in ("a", "b"):
        _record(tmp_path / side, 5.0, dim=128, num_samples=samples, reference_images=400)
    lines, _ = compared(capsys, tmp_path / "a", tmp_path / "b")
    assert any("N or M < 2d" in line for line in lines) == warned


def test_a_folder_kept_without_its_records_is_read_from_results_json(tmp_path):
    _record(tmp_path / "a", 9.0)
    _record(tmp_path / "a", 8.0, steps=4)
    written = records.read(tmp_path / "a")
    archive.write(tmp_path / "kept" / "results.json", written)
    assert len(written) == 2 and records.read(tmp_path / "kept") == written
    assert records.read(tmp_path / "nothing") == []


def test_budgets_are_matched_with_their_own(tmp_path):
    """Twice the budget beside the once: neither is dropped; where each side has one, another budget
    is what is compared.
    """
    for folder in ("a", "b"):
        for budget in (3e13, 6e13):
            _record(tmp_path / folder, 9.0, budget=budget, run_id=f"r{budget}")
    both = compare.match(*(records.read(tmp_path / folder) for folder in ("a", "b")))
    assert (
        len(both[0]) == 2
        and both[1:] == (0, 0)
        and all(records.budget(x) == records.budget(y) for x, y in both[0])
    )
    _record(tmp_path / "c", 9.0, budget=1e13)
    _record(tmp_path / "d", 9.0, budget=2e13)
    assert len(compare.match(*(records.read(tmp_path / folder) for folder in ("c", "d")))[0]) == 1


def test_records_of_another_version_are_named_and_not_read_in_part(tmp_path, capsys):
    """Columns that are not today's would be lost in silence."""
    _record(tmp_path, 9.0)
    path = next((tmp_path / "records").glob("*.json"))
    stored = json.loads(path.read_text())
    stored["row"]["fd_sd"] = stored["row"].pop("fd_generator_std")
    write_sealed(path, stored)
    with pytest.raises(BadInput, match=r"another version of the suite \(columns fd_sd\); remove"):
        records.read(tmp_path)
    _record(tmp_path, 8.0, steps=4)
    assert [record["row"]["steps"] for record in records.read(tmp_path)] == [4]
    assert f"1 record(s) are left out, e.g. {path}" in capsys.readouterr().out


def test_the_generator_costs_apart_from_the_decoder(tmp_path):
    """A generator four times as dear makes an image twice as dear where the decoder costs 2."""
    for side, generator in (("a", 1.0), ("b", 4.0)):
        whole = 2 * (generator + 2.0)
        _record(tmp_path / side, 4.0, gmacs_generator=generator, gflops_per_image=whole)
    sides = [records.read(tmp_path / side) for side in "ab"]
    lines, _ = comparison.table(compare.match(*sides)[0])
    assert lines[2].split(" | ")[-3:-1] == ["4", "2"]


def test_seconds_of_two_machines_are_not_compared(tmp_path):
    for side, device in (("a", "one CPU"), ("b", "another CPU")):
        _record(tmp_path / side, 4.0, device=device)
    sides = [records.read(tmp_path / side) for side in "ab"]
    lines, _ = comparison.table(compare.match(*sides)[0])
    assert "other machine" in lines[2] and "| 1 |" in lines[2], "GFLOPs compare anywhere"
    same = [sides[0], sides[0]]
    lines, _ = comparison.table(compare.match(*same)[0])
    assert "other machine" not in lines[2]


def test_tuned_settings_that_are_not_alike_are_warned_of(tmp_path, capsys):
    for name, guidance in (("a", 1.5), ("b", 4.0)):
        _record(tmp_path / name, 10.0, settings="tuned", guidance=guidance)
    lines, _ = compared(capsys, str(tmp_path / "a"), str(tmp_path / "b"))
    assert any("of 1 measurement(s) that match both are tuned, but to other" in x for x in lines)
    lines, _ = compared(capsys, str(tmp_path / "a"), str(tmp_path / "a"))
    assert not any("are tuned, but to other" in x for x in lines)


def test_what_keeps_all_rows_from_matching_is_named(tmp_path):
    for name, count in (("a", 40), ("b", 512)):
        _record(tmp_path / name, 10.0, num_samples=count)
    with pytest.raises(SystemExit, match=r"in common .*: num_samples is 40 in A and 512 in B$"):
        compare.main([str(tmp_path / "a"), str(tmp_path / "b")])


def test_one_training_made_by_two_machines_is_two_trainings(tmp_path, capsys):
    """Rounding made other networks of it: what their samples share says nothing of the recipe."""
    for name, machine in (("a", "one"), ("b", "another")):
        _record(tmp_path / name, 10.0 if name == "a" else 10.1)
        (path,) = (tmp_path / name / "records").glob("*.json")
        write_sealed(path, records.load(path) | {"trained_by": {"device": machine}})
    _, line = compared(capsys, str(tmp_path / "a"), str(tmp_path / "b"))
    assert line["not_judged"] == line["rows"] == 1
