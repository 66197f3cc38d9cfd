"""Results folders, or two settings of one, compared row by row."""

import json

import pytest

from benchmarks.commands import compare
from benchmarks.core.errors import BadInput
from benchmarks.results import archive, records

ROW = {
    "status": "ok",
    "model": "dit",
    "size": "xs",
    "seed": 0,
    "steps": 8,
    "guidance": 1.0,
    "sampler": "euler",
    "features": "local",
    "fd_std": 0.1,
    "gflops_per_image": 2.0,
    "seconds_per_image": 0.1,
}


def _record(folder, fd, budget=None, train=None, sampling=0, dim=None, **columns):
    """Write one measurement."""
    row = ROW | {"run_id": f"r{columns.get('steps', 8)}", "fd": fd} | columns
    settings = dict(train or {})
    if budget:
        settings |= {"budget": budget, "unit": "flops"}
    prints = {
        "data": "d",
        "features": "f",
        "features_dim": dim,
        "training": f"{row['model']}{row['seed']}",
    }
    config = {"train": settings}
    records.write(folder, row, fingerprints=prints, sampling_seed=sampling, config=config)


def compared(capsys, *arguments) -> tuple[list[str], dict]:
    """The lines that `compare` prints before its last, and that one as JSON."""
    compare.main([str(argument) for argument in arguments])
    *lines, last = capsys.readouterr().out.splitlines()
    return lines, json.loads(last)


def test_compare_matches_rows_and_gives_verdicts(tmp_path, capsys):
    for folder, distances in (
        ("a", {1: 9.0, 2: 5.0, 4: 4.0, 8: 3.0}),
        ("b", {1: 8.0, 2: 5.2, 4: 5.0, 16: 2.0}),
    ):
        for steps, fd in distances.items():
            _record(tmp_path / folder, fd, steps=steps)
    _, counts = compared(capsys, tmp_path / "a", tmp_path / "b")
    none = {"inconclusive": 0, "unknown": 0, "not_comparable": 0}
    assert counts == {
        "matched": 3,
        "rows": 3,
        "ties": 1,
        "better": 1,
        "worse": 1,
        **none,
        "only_a": 1,
        "only_b": 1,
    }
    with pytest.raises(SystemExit, match="no records there"):
        compared(capsys, tmp_path / "a", tmp_path / "c")


def test_compare_takes_two_settings_of_one_model(tmp_path, capsys):
    """Guidance 1 against 4 at each step count: what is named need not be equal, everything else
    must.
    """
    for steps in (2, 8):
        for guidance, fd in ((1.0, 9.0), (2.0, 8.0), (4.0, 6.0 if steps == 8 else 12.0)):
            _record(tmp_path, fd, steps=steps, guidance=guidance, run_id=f"{steps}-{guidance}")
    lines, counts = compared(capsys, tmp_path, "--where-a", "guidance=1", "--where-b", "guidance=4")
    assert (counts["matched"], counts["better"], counts["worse"]) == (2, 1, 1)
    assert (counts["only_a"], counts["only_b"]) == (0, 0)
    assert "2 steps, guidance 1, euler; B: 2 steps, guidance 4, euler" in lines[2]
    assert not any("trained apart" in line for line in lines), "both are of one network"


def test_compare_takes_two_models_whose_samplers_have_other_names(tmp_path, capsys):
    _record(tmp_path, 9.0, run_id="a", model="ar", sampler="raster", objective="next-token")
    _record(
        tmp_path, 5.0, run_id="b", model="ar_any", sampler="random-order", objective="any-order"
    )
    lines, counts = compared(capsys, tmp_path, "--where-a", "model=ar", "--where-b", "model=ar_any")
    assert (counts["matched"], counts["better"]) == (1, 1) and "trained apart" in lines[-1]


@pytest.mark.parametrize(
    "given, message",
    [
        (("--where-a", "guidance=1", "--where-b", "steps=8"), "say which, as in --where-a steps="),
        (("--where-a", "guidnace=1"), "no column or setting guidnace"),
        (("--where-a", "guidance"), "give column=value"),
        (("--where-a", "euler", "guidance=1"), "give column=value"),
        (("--where-a", "guidance="), "give column=value"),
        (("--where-a", "guidance=1", "guidance=4"), "guidance is given twice"),
        (("--where-b", "guidance=7"), "no records there with guidance=7"),
    ],
)
def test_compare_says_what_a_filter_lacks(given, message, tmp_path, capsys):
    for steps in (2, 8):
        for guidance in (1.0, 4.0):
            _record(tmp_path, 9.0, steps=steps, guidance=guidance, run_id=f"{steps}-{guidance}")
    with pytest.raises(SystemExit, match=message):
        compared(capsys, tmp_path, *given)


def test_compare_pools_the_seeds_both_sides_have(tmp_path, capsys):
    """0.5 apart in every seed, though the seeds differ by more: worse. Learning rates are not
    pooled with each other.
    """
    for seed, base in enumerate((5.0, 6.0, 7.0)):
        for sampling_seed in (0, 1):
            for side, fd in (("a", base), ("b", base + 0.5)):
                _record(
                    tmp_path / side,
                    fd + 0.01 * sampling_seed * seed,
                    seed=seed,
                    sampling=sampling_seed,
                    run_id=f"{side}{seed}{sampling_seed}",
                )
    lines, counts = compared(capsys, tmp_path / "a", tmp_path / "b")
    assert (counts["matched"], counts["rows"], counts["worse"]) == (6, 1, 1)
    assert "dit xs, 3 seeds" in lines[2] and "SE over 3 training seeds" in lines[2]
    for side in ("c", "d"):
        for rate in (1e-3, 2e-3):
            for seed in (0, 1):
                _record(
                    tmp_path / side,
                    5.0 + seed,
                    seed=seed,
                    train={"lr": rate},
                    run_id=f"{side}{seed}{rate}",
                )
    assert compared(capsys, tmp_path / "c", tmp_path / "d")[1]["rows"] == 2


def test_compare_takes_settings_that_are_no_columns(tmp_path, capsys):
    """Two learning rates of one model, from the records' configuration; each row says what tells it
    apart.
    """
    for rate, fd in ((1e-3, 9.0), (2e-3, 5.0)):
        for fraction in (0.5, 1.0):
            _record(
                tmp_path,
                fd,
                train={"lr": rate},
                run_id=f"{rate}{fraction}",
                train_fraction=fraction,
            )
    lines, counts = compared(
        capsys, tmp_path, "--where-a", "train.lr=1e-3", "--where-b", "train.lr=2e-3"
    )
    assert (counts["matched"], counts["rows"], counts["better"]) == (2, 2, 2)
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


def test_seeds_that_scatter_are_inconclusive_and_unmeasured_accuracies_empty(tmp_path, capsys):
    """Differences -2, 0.1, 2.2 about 5: a mean of 0.1, but errors that would hide a tenth of the
    distance.
    """
    for seed, apart in enumerate((-2.0, 0.1, 2.2)):
        accuracies = {} if seed == 1 else {"label_accuracy": 0.5}
        _record(
            tmp_path / "a", 5.0, seed=seed, run_id=f"a{seed}", **accuracies | {"num_samples": 100}
        )
        _record(
            tmp_path / "b",
            5.0 + apart,
            seed=seed,
            run_id=f"b{seed}",
            **accuracies | {"num_samples": 100},
        )
    lines, counts = compared(capsys, tmp_path / "a", tmp_path / "b")
    assert (counts["rows"], counts["inconclusive"]) == (1, 1)
    assert lines[2].split("|")[9].strip() == "", "one seed's accuracy is not the three's"


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


def test_records_of_another_version_are_named_and_not_read_in_part(tmp_path):
    """Columns that are not today's would be lost in silence."""
    _record(tmp_path, 9.0)
    path = next((tmp_path / "records").glob("*.json"))
    stored = json.loads(path.read_text())
    stored["row"]["fd_sd"] = stored["row"].pop("fd_std")
    path.write_text(json.dumps(stored))
    with pytest.raises(BadInput, match=r"another version of the suite \(columns fd_sd\); remove"):
        records.read(tmp_path)
