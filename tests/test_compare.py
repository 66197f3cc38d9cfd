"""Results folders, or two settings of one, compared row by row."""

import json

import pytest

from benchmarks.analysis.differences import NOT_JUDGED
from benchmarks.analysis.matching import differences_of
from benchmarks.commands import compare
from benchmarks.core.store import write_sealed
from benchmarks.reports import comparison
from benchmarks.results import records

ROW = {
    "status": "ok",
    "model": "dit",
    "size": "xs",
    "data": "procedural",
    "image_size": 32,
    "train_fraction": 1.0,
    "seed": 0,
    "steps": 8,
    "guidance": 1.0,
    "sampler": "euler",
    "features": "local",
    "fd_generator_std": 0.1,
    "gflops_per_image": 2.0,
    "seconds_per_image": 0.1,
}


def _record(
    folder,
    distance,
    budget=None,
    train=None,
    sampling=0,
    dim=None,
    recipe="",
    tune=None,
    **columns,
):
    """Write one measurement, of this generator-only distance.

    Networks of other settings, or of another `recipe`, were trained apart.
    """
    row = ROW | {"run_id": f"r{columns.get('steps', 8)}", "fd_generator": distance} | columns
    settings = dict(train or {})
    if budget:
        settings |= {"budget": budget, "unit": "flops"}
    prints = {
        "data": "d",
        "autoencoder": "a",
        "features": "f",
        "features_dim": dim,
        "training": f"{row['model']}{row['seed']}{settings}{recipe}",
    }
    config = {"train": settings, "tune": tune}
    tuning = {"features": "local"} if row.get("settings") == "tuned" else None
    records.write(
        folder, row, fingerprints=prints, sampling_seed=sampling, config=config, tuning=tuning
    )


def _trainings(folder, *distances, name="", **columns):
    """Write one measurement for each training of a recipe, seeds from 0."""
    for seed, fd in enumerate(distances):
        _record(folder, fd, seed=seed, run_id=f"{name}{columns.get('steps', 8)}-{seed}", **columns)


NONE = dict.fromkeys(
    (
        "ties",
        "better",
        "worse",
        "inconclusive",
        "unknown",
        "not_judged",
        "not_comparable",
        "refused",
        "same_measurement",
    ),
    0,
)


def compared(capsys, *arguments) -> tuple[list[str], dict]:
    """The lines that `compare` prints before its last, and that one as JSON."""
    compare.main([str(argument) for argument in arguments])
    *lines, last = capsys.readouterr().out.splitlines()
    return lines, json.loads(last)


def test_compare_matches_rows_and_gives_verdicts(tmp_path, capsys):
    """Both folders sampled the same network."""
    for folder, distances in (
        ("a", {1: 9.0, 2: 5.0, 4: 4.0, 8: 3.0}),
        ("b", {1: 8.0, 2: 5.05, 4: 5.0, 16: 2.0}),
    ):
        for steps, fd in distances.items():
            _record(tmp_path / folder, fd, steps=steps)
    lines, counts = compared(capsys, tmp_path / "a", tmp_path / "b")
    verdicts = NONE | {"ties": 1, "better": 1, "worse": 1}
    assert counts == {"matched": 3, "rows": 3, **verdicts, "only_a": 1, "only_b": 1}
    assert "generator-only FD[local]" in lines[2] and "| 0.889 (0.86 to 0.919) |" in lines[2], (
        "8 / 9"
    )
    with pytest.raises(SystemExit, match="no records there"):
        compared(capsys, tmp_path / "a", tmp_path / "c")


def test_compare_does_not_judge_networks_of_fewer_than_three_trainings(tmp_path, capsys):
    """However far apart; and two seeds of one recipe are two trainings as well."""
    _record(tmp_path / "a", 90.0)
    _record(tmp_path / "b", 5.0, recipe="other")
    lines, counts = compared(capsys, tmp_path / "a", tmp_path / "b")
    assert (counts["rows"], counts["not_judged"]) == (1, 1)
    assert f"| 0.0556 | {NOT_JUDGED} |" in lines[2], "the ratio, and no interval"
    _trainings(tmp_path / "seeds", 90.0, 5.0)
    given = ("--where-a", "seed=0", "--where-b", "seed=1")
    assert compared(capsys, tmp_path / "seeds", *given)[1]["not_judged"] == 1


def test_compare_judges_by_fd_where_there_is_no_generator_only_distance(tmp_path, capsys):
    for folder, fd in (("a", 9.0), ("b", 5.0)):
        _record(tmp_path / folder, None, fd=fd, fd_std=0.1)
    lines, counts = compared(capsys, tmp_path / "a", tmp_path / "b")
    assert counts["better"] == 1 and "| FD[local] | 9 | 5 |" in lines[2]


def test_a_distance_that_one_side_lacks_is_not_comparable(tmp_path, capsys):
    """As where the other folder has the distance of the system only."""
    columns = {"fd": 20.0, "fd_std": 0.1}
    _record(tmp_path / "a", 9.0, **columns)
    b = {key: value for key, value in ROW.items() if key != "fd_generator_std"} | columns
    prints = {"data": "d", "autoencoder": "a", "features": "f", "training": "dit0{}"}
    records.write(tmp_path / "b", b | {"run_id": "b"}, fingerprints=prints, sampling_seed=0)
    lines, counts = compared(capsys, tmp_path / "a", tmp_path / "b")
    assert (counts["rows"], counts["not_comparable"]) == (1, 1) and "not comparable" in lines[2]


def test_a_measurement_is_not_compared_with_itself(tmp_path, capsys):
    """Two results folders of one cache."""
    for folder in ("a", "b"):
        _record(tmp_path / folder, 3.0, started_at="2026-11-30")
    _, counts = compared(capsys, tmp_path / "a", tmp_path / "b")
    assert counts == {
        "matched": 1,
        "rows": 1,
        **NONE,
        "same_measurement": 1,
        "only_a": 0,
        "only_b": 0,
    }


def test_what_the_decoder_hides_gets_no_verdict(tmp_path, capsys):
    """The recall of real images through the autoencoder decides, on either side."""
    for folder, recall in (("a", 0.69), ("b", 0.71)):
        _trainings(tmp_path / folder, *((5.0, 5.1, 4.9) if folder == "a" else (9.0, 9.1, 8.9)))
        for path in (tmp_path / folder / "records").glob("*.json"):
            stored = json.loads(path.read_text())
            stored["row"]["recall_autoencoder"] = recall
            stored["fingerprints"]["training"] += folder
            write_sealed(path, stored)
    lines, counts = compared(capsys, tmp_path / "a", tmp_path / "b")
    assert counts["refused"] == counts["rows"] == 1 and counts["worse"] == 0
    assert "| refused |" in lines[2] and lines[3].startswith("Refused: ")
    for path in (tmp_path / "a" / "records").glob("*.json"):
        write_sealed(path, json.loads(path.read_text().replace("0.69", "0.71")))
    assert compared(capsys, tmp_path / "a", tmp_path / "b")[1]["worse"] == 1


def test_chosen_settings_are_matched_with_chosen_ones_whatever_was_chosen(tmp_path, capsys):
    for folder, scale, apart in (("a", 1.5, 0.0), ("b", 4.0, 3.0)):
        distances = [5.0 + apart, 5.1 + apart, 4.9 + apart]
        columns = {"guidance": scale, "recipe": folder, "settings": "tuned"}
        columns["tune"] = {"guidance": [1, scale]}
        _trainings(tmp_path / folder, *distances, name="t", **columns)
        # and beside them the same as configured, at the settings that A chose
        _trainings(tmp_path / folder, 7.0, 7.1, 6.9, name="c", guidance=1.5, recipe=folder)
    lines, counts = compared(capsys, tmp_path / "a", tmp_path / "b")
    assert (counts["rows"], counts["worse"], counts["matched"]) == (2, 1, 6)
    assert [line for line in lines if "8 steps, tuned" in line and "worse" in line]
    assert [line for line in lines if "8 steps, guidance 1.5" in line and "worse" not in line]
    assert "WARNING: not all settings were chosen by the same search (tune)." in lines


def test_what_tuning_gives_is_a_comparison_of_two_settings_of_one_network(tmp_path, capsys):
    _trainings(tmp_path, 9.0, 9.2, 9.4, name="c", guidance=1.0, settings="configured")
    columns = {"guidance": 2.5, "sampler": "dpmpp", "settings": "tuned"}
    _trainings(tmp_path, 7.0, 7.2, 7.4, name="t", **columns)
    given = ("--where-a", "settings=configured", "--where-b", "settings=tuned")
    lines, counts = compared(capsys, tmp_path, tmp_path, *given)
    assert (counts["rows"], counts["better"], counts["matched"]) == (1, 1, 3)
    assert "guidance 1" in lines[2] and "8 steps, tuned" in lines[2]


def test_the_more_rows_the_surer_each_verdict_must_be(tmp_path, capsys):
    """0.4 of 10 is 2.8 of its errors: enough alone, too little among twenty."""
    for steps in range(1, 21):
        for folder in ("a", "b"):
            apart = 0.4 if (steps, folder) == (1, "b") else 0.0
            _record(tmp_path / folder, 10.0 + apart, steps=steps)
    alone = ("--where-a", "steps=1", "--where-b", "steps=1")
    assert compared(capsys, tmp_path / "a", tmp_path / "b", *alone)[1]["worse"] == 1
    counts = compared(capsys, tmp_path / "a", tmp_path / "b")[1]
    assert (counts["worse"], counts["ties"]) == (0, 20)


def test_rows_that_cannot_be_compared_do_not_count_among_them(tmp_path, capsys):
    """The same, where the nineteen others are of other images."""
    for steps in range(1, 21):
        for folder in ("a", "b"):
            apart = 0.4 if (steps, folder) == (1, "b") else 0.0
            _record(tmp_path / folder, 10.0 + apart, steps=steps)
    for path in (tmp_path / "b" / "records").glob("*.json"):
        stored = json.loads(path.read_text())
        if stored["row"]["steps"] > 1:
            stored["fingerprints"]["data"] = "other images"
            write_sealed(path, stored)
    lines, counts = compared(capsys, tmp_path / "a", tmp_path / "b")
    assert (counts["worse"], counts["not_comparable"]) == (1, 19)
    assert any(line.startswith("Not comparable: ") for line in lines)


def test_networks_are_compared_by_the_spread_of_all_in_the_table(tmp_path, capsys):
    """A `unet` whose three trainings agree by chance has the error that those of `dit` give it."""
    for folder, first, second in (
        ("a", (5.0, 5.5, 4.6), (8.0, 8.0, 8.0)),
        ("b", (7.0, 7.7, 6.4), (8.4, 8.4, 8.4)),
    ):
        _trainings(tmp_path / folder, *first, name="d", recipe=folder)
        _trainings(tmp_path / folder, *second, name="u", recipe=folder, model="unet")
    lines, counts = compared(capsys, tmp_path / "a", tmp_path / "b")
    assert (counts["rows"], counts["worse"], counts["inconclusive"]) == (2, 1, 1)
    assert "3 seeds" in lines[2] and "3 and 3 trainings" in lines[2] and "worse" in lines[2]
    assert "| 1.05 (0.93 to 1.19) | 3 and 3 trainings |" in lines[3]


def test_a_training_counts_once_towards_the_spread(tmp_path):
    """At two step counts, on both sides, and with a seed missing at one: three trainings of `dit`,
    and twice three of `unet`. Another judge has a spread of its own.
    """
    for folder in ("a", "b"):
        for features in ("local", "other"):
            columns = {"features": features, "recipe": "", "name": features}
            _trainings(tmp_path / folder, 5.0, 5.2, 4.8, **columns)
            _trainings(tmp_path / folder, 4.0, 4.1, steps=16, **columns)
            columns |= {"recipe": folder, "model": "unet", "name": f"u{features}"}
            scale = 0.3 if features == "local" else 0.6
            _trainings(tmp_path / folder, 5.0, 5.0 + 0.3 * scale, 5.0 - 0.3 * scale, **columns)
    pairs, *_ = compare.match(*(records.read(tmp_path / folder) for folder in ("a", "b")))
    groups = comparison.groups_of(pairs)
    differences = differences_of(groups, "distance", 0.1)
    unets = {
        group[0][0]["row"]["features"]: difference
        for group, difference in zip(groups, differences, strict=True)
        if group[0][0]["row"]["model"] == "unet"
    }
    assert {one.freedom for one in unets.values()} == {6}
    assert unets["other"].error > 1.2 * unets["local"].error


def test_compare_takes_two_settings_of_one_model(tmp_path, capsys):
    """Guidance 1 against 4 at each step count: what is named need not be equal, everything else
    must. Of one network one training is enough.
    """
    for steps in (2, 8):
        for guidance, fd in ((1.0, 9.0), (2.0, 8.0), (4.0, 6.0 if steps == 8 else 12.0)):
            _record(tmp_path, fd, steps=steps, guidance=guidance, run_id=f"{steps}-{guidance}")
    lines, counts = compared(capsys, tmp_path, "--where-a", "guidance=1", "--where-b", "guidance=4")
    assert (counts["matched"], counts["better"], counts["worse"]) == (2, 1, 1)
    assert (counts["only_a"], counts["only_b"]) == (0, 0)
    assert "2 steps, guidance 1, euler; B: 2 steps, guidance 4, euler" in lines[2]
    assert "one training, its images" in lines[2]


def test_two_settings_of_several_trainings_are_compared_by_their_paired_differences(
    tmp_path, capsys
):
    """A tenth in each training, though the trainings differ by half."""
    for guidance, factor in ((1.0, 1.0), (4.0, 0.9)):
        distances = [factor * fd for fd in (5.0, 6.0, 7.01)]
        _trainings(tmp_path, *distances, name=guidance, guidance=guidance)
    _record(tmp_path, 6.32, seed=2, run_id="4.08-2", guidance=4.0)
    lines, counts = compared(capsys, tmp_path, "--where-a", "guidance=1", "--where-b", "guidance=4")
    assert (counts["matched"], counts["rows"], counts["better"]) == (3, 1, 1)
    assert "| 3 trainings, paired |" in lines[2]


def test_compare_takes_two_models_whose_samplers_have_other_names(tmp_path, capsys):
    ar = {"model": "ar", "sampler": "raster", "objective": "next-token"}
    other = {"model": "ar_any", "sampler": "random-order", "objective": "any-order"}
    _trainings(tmp_path, 9.0, 9.2, 9.1, name="a", **ar)
    _trainings(tmp_path, 5.0, 5.1, 5.2, name="b", **other)
    lines, counts = compared(capsys, tmp_path, "--where-a", "model=ar", "--where-b", "model=ar_any")
    assert (counts["matched"], counts["better"]) == (3, 1) and "3 and 3 trainings" in lines[2]


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


def test_trainings_that_scatter_are_inconclusive(tmp_path, capsys):
    """Means that hardly differ, but errors that would hide a tenth of the distance: no tie."""
    _trainings(tmp_path / "a", 5.0, 5.5, 4.5, recipe="a")
    _trainings(tmp_path / "b", 5.1, 4.6, 5.6, recipe="b")
    counts = compared(capsys, tmp_path / "a", tmp_path / "b")[1]
    assert (counts["rows"], counts["inconclusive"]) == (1, 1)


def test_label_accuracies_have_their_signs_and_errors_or_stay_empty(tmp_path, capsys):
    """One training's accuracy is not that of all three."""
    for folder, accuracy in (("a", 0.5), ("b", 0.8)):
        for seed in range(3):
            own = {"seed": seed, "recipe": folder, "run_id": f"{folder}{seed}"}
            measured = {"label_accuracy": accuracy + 0.01 * seed, "num_samples": 100}
            _record(tmp_path / folder, 5.0 + 0.1 * seed, **own, **measured)
    lines, _ = compared(capsys, tmp_path / "a", tmp_path / "b")
    assert "+0.300 ± 0.0082" in lines[2]
    (path,) = (tmp_path / "a" / "records").glob("a1.json")
    stored = json.loads(path.read_text())
    del stored["row"]["label_accuracy"]
    write_sealed(path, stored)
    lines, _ = compared(capsys, tmp_path / "a", tmp_path / "b")
    assert lines[2].split("|")[9].strip() == ""
