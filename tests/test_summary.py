"""The report of made-up records, whole: its summary, tables and axes."""

import pytest
from test_diagnostics import panel_of, record, said, summary_of, trained

from benchmarks.analysis.differences import NOT_JUDGED
from benchmarks.analysis.verdicts import MOST_LINES
from benchmarks.reports import plots
from benchmarks.reports.notes import notes
from benchmarks.reports.summary import build_report
from benchmarks.results import records


def test_the_summary_says_whether_the_judges_agree(tmp_path, no_figures):
    made_up = []
    for features, turned in (("local", 1), ("other", -1)):
        for model, fd in (("dit", 9.0 - turned), ("ar", 9.0 + turned)):
            one = record(model, fd)
            one["row"] |= {"features": features, "run_id": f"{model}{features}"}
            one["fingerprints"]["features"] = features
            made_up.append(one)
    text = summary_of(tmp_path, made_up)
    assert "## Do the judges agree?" in text
    assert "order 1 of 1 pairs differently: dit and ar." in text


@pytest.mark.parametrize(
    "judge, both", [("local", "local,efficientnet_lite0"), ("inception", "inception,local")]
)
def test_a_report_of_one_judge_says_so_and_what_to_add(judge, both, tmp_path, no_figures):
    made_up = [record("dit", 9.0), record("ar", 8.0)]
    for one in made_up:
        one["row"]["features"] = judge
    text = summary_of(tmp_path, made_up).split("## Do the judges agree?")[1].split("\n## ")[0]
    assert text.strip().startswith(f"- One judge only: {judge}.") and f"`features=[{both}]`" in text


def test_the_summary_of_single_trainings_names_no_winner(tmp_path, no_figures):
    """And has a row of step counts for each network, however many there are."""
    models = ["dit", "ar", *(f"net{i}" for i in range(12))]
    made_up = [
        record(model, (2.0 + place) * (16 / steps), steps=steps)
        for place, model in enumerate(models)
        for steps in (4, 8)
    ]
    text = summary_of(tmp_path, made_up)
    assert said(text) == [f"- Which network is better is {NOT_JUDGED}."]
    assert len(steps_in(text)) == 14
    assert all("in this training" in row for row in steps_in(text))
    compared = text.split("### Compared")[1].split("###")[0]
    pairs = [line for line in compared.splitlines() if " steps |" in line]
    assert len(pairs) == 28 and all(NOT_JUDGED in line for line in pairs)


def steps_in(text: str) -> list[str]:
    """The rows of all tables of step counts of a summary."""
    parts = text.split("### How many steps are enough")[1:]
    return [row for part in parts for row in part.split("\n\n")[1].splitlines()[2:]]


def test_two_judges_share_the_lines_on_budgets_and_each_has_all_rows_of_step_counts(
    tmp_path, no_figures
):
    """Of several trainings the lowest is named; of many networks no row is cut."""
    made_up = []
    for features in ("local", "other"):
        for place, model in enumerate(["dit", "ar", *(f"net{i}" for i in range(10))]):
            for steps in (4, 8):
                fd = (4.0 + place) * 16 / steps
                for one in trained(model, fd, 1.02 * fd, 0.99 * fd, steps=steps):
                    run_id = f"{one['row']['run_id']}-{features}"
                    one["row"] |= {"features": features, "run_id": run_id}
                    one["fingerprints"]["features"] = features
                    made_up.append(one)
    text = summary_of(tmp_path, made_up)
    assert text.count("### What they say") == 2 and len(said(text)) == 8 <= MOST_LINES
    assert len(steps_in(text)) == 24 and "left out" not in text
    assert sum("dit at 8 steps" in line and "is lowest" in line for line in said(text)) == 4


def test_rows_of_several_states_of_the_code_are_a_warning(tmp_path, no_figures):
    """Also where one commit was changed twice, which its name does not tell."""
    made_up = [record("dit", 9.0), record("ar", 9.0)]
    for one in made_up:
        one["row"] |= {"git_sha": "abc", "git_dirty": True, "code_digest": "0123"}
    assert "states of the code" not in summary_of(tmp_path / "one", made_up)
    made_up[1]["row"]["code_digest"] = "4567"
    assert "these rows are of 2 states of the code" in summary_of(tmp_path / "two", made_up)


@pytest.mark.parametrize("recall, refused", [(0.69, True), (0.7, False), (None, False)])
def test_behind_a_decoder_that_hides_too_much_no_verdict_is_given(
    recall, refused, tmp_path, no_figures
):
    made_up = trained("dit", 10.0, 10.3, 10.6) + trained("ar", 12.4, 13.0, 13.0)
    for one in made_up:
        one["row"]["recall_autoencoder"] = recall
    text = summary_of(tmp_path, made_up)
    assert ("### Compared" not in text) == ("is lowest" not in text) == refused
    if refused:
        (line,) = said(text)
        assert line.startswith("- No verdict: real images through the autoencoder have a recall of")
    assert "### Every measure" in text


def test_distances_above_those_of_mean_colours_are_warned_of():
    def warned(fd: float) -> bool:
        made_up = [record("dit", fd), record("ar", 60.0)]
        lines = notes(panel_of(made_up), made_up[0])
        return any("WARNING: even the lowest distance" in line for line in lines)

    assert warned(51.0) and not warned(49.0)


def test_where_mean_colours_are_closer_nothing_is_judged(tmp_path, no_figures):
    text = summary_of(tmp_path, trained("dit", 61.0, 61.2, 61.4) + trained("ar", 80, 80.3, 80.5))
    (line,) = said(text)
    assert line.startswith("- No verdict: images that keep only their mean colour")
    assert "### Compared" not in text


def test_the_report_has_every_table_and_one_curve_for_several_samplings(tmp_path):
    made_up = [
        record(model, fd + 0.1 * sampling, sampling=sampling, steps=steps)
        for model, fd in (("dit", 9.0), ("ar", 8.0))
        for sampling in range(2)
        for steps in (4, 8)
    ]
    summary = summary_of(tmp_path, made_up)
    for title in ("Every measure", "Between seeds", "Compared", "Classes", "What they say"):
        assert f"### {title}" in summary, title
    lines = build_report(tmp_path).splitlines()
    assert [line.split()[:1] for line in lines].count(["dit"]) == 2, "one row a step count"
    assert "mostly bias" in summary
    assert (tmp_path / "plots" / "fd_vs_steps.png").exists()


def test_a_measurement_that_failed_is_a_line_of_the_report_and_not_its_end(tmp_path):
    good = record("dit", 9.0, steps=4) | {"train_log": [[1, 2.0, 3.0, 4.0, 5.0]]}
    good["row"] |= {"objective": "flow", "train_flops": 2.0}
    bad = record("dit", 9.0, steps=8) | {"reason": "too wild"}
    measured = [name for name in bad["row"] if name.startswith(("fd", "train_flops"))]
    bad["row"] = {k: v for k, v in bad["row"].items() if k not in measured}
    bad["row"]["status"] = "diverged"
    text = summary_of(tmp_path, [good, bad])
    assert "too wild" in text and "| dit | 4 |" in text
    (diverged,) = (r for r in records.read(tmp_path) if r["row"]["status"] == "diverged")
    assert "train_log" not in diverged


def test_records_of_an_earlier_version_are_left_out_and_other_recipes_stay(tmp_path, capsys):
    recipe = {"name": "x", "model": {"lr": 1}, "train": {"budget": 1, "snapshots": []}}
    old = record("dit", 20.0, steps=4) | {"config": recipe}
    old["fingerprints"]["training"], old["row"]["started_at"] = "before", "2025"
    # when weights are kept changes nothing about what is trained
    kept = recipe | {"train": recipe["train"] | {"snapshots": [0.5]}}
    new = record("dit", 10.0, steps=8) | {"config": kept}
    other = record("dit", 15.0, steps=16) | {"config": recipe | {"model": {"lr": 2}}}
    other["fingerprints"]["training"] = "lr2"
    text = summary_of(tmp_path, [old, new, other])
    assert "1 record(s) are left out: the same trainings" in capsys.readouterr().out
    assert "| 4 |" not in text and "| dit, lr 1 | 8 |" in text and "| dit, lr 2 | 16 |" in text


def test_an_axis_shows_the_floors_near_the_curves_and_names_those_far_below():
    panel = panel_of([record("dit", 14.0, steps=4), record("dit", 30.0, steps=8)])
    low, high = plots._limits(panel)
    assert 1 < low < 14 and high > 50, "every curve and the anchor are on it"
    assert list(plots._floors(panel)) == [
        "floor: real images, 1 (off the axis)",
        "floor: codebook, 1.2 (off the axis)",
        "mean colours only, 50",
    ]
    near = panel_of([record("dit", 3.0)])
    assert "floor: real images, 1" in plots._floors(near), "a third of the curve is near"
