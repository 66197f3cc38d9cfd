"""Where two judges disagree, and what a report leaves out of its sentences: made-up records."""

import pytest
from test_diagnostics import record

from benchmarks.analysis import agreement, choices, step_counts
from benchmarks.analysis.panel import Panel, panels
from benchmarks.reports import rows
from benchmarks.reports.notes import notes
from benchmarks.results import records


def judges(*orders: dict[str, float]) -> list[Panel]:
    """Panels of one setting, each with its own judge's distances by network."""
    made_up = []
    for place, distances in enumerate(orders):
        for model, fd in distances.items():
            one = record(model, fd)
            one["row"] |= {"features": f"judge{place}", "run_id": f"{model}{place}"}
            one["fingerprints"]["features"] = str(place)
            made_up.append(one)
    return panels(records.table(made_up))


def test_judges_that_agree_are_said_to():
    both = judges({"dit": 5.0, "ar": 6.0}, {"dit": 50.0, "ar": 60.0})
    (line,) = agreement.disagreement(both)
    first, second = "generator-only FD[judge0]", "generator-only FD[judge1]"
    assert line == f"{first} and {second} order 0 of 1 pairs differently."


def test_the_pairs_that_judges_turn_round_are_named():
    both = judges({"dit": 5.0, "ar": 6.0, "unet": 7.0}, {"dit": 60.0, "ar": 50.0, "unet": 70.0})
    (line,) = agreement.disagreement(both)
    assert line.endswith("order 1 of 3 pairs differently (rank correlation 0.50): dit and ar.")


def changed(*judges: list[tuple[float, int, bool]], **columns) -> list[Panel]:
    """Panels of one network, one for each judge: its distances, at steps, tuned or not. What is
    given by name is the second judge's alone, one value a measurement.
    """
    made_up = []
    for place, points in enumerate(judges):
        for number, (fd, steps, tuned) in enumerate(points):
            one = record("dit", fd, steps=steps)
            settings = {"settings": "tuned", "guidance": 2.0} if tuned else {}
            one["row"] |= {"features": f"judge{place}", "run_id": f"{place}{number}"} | settings
            one["fingerprints"]["features"] = str(place)
            if place:
                one["row"] |= {name: values[number] for name, values in columns.items()}
                one["fingerprints"] |= {"features_dim": 1280, "features_frechet_dim": 128}
            made_up.append(one)
    return panels(records.table(made_up))


def test_changes_that_one_judge_likes_and_the_other_does_not_are_named():
    """Chosen settings are better by the first judge only; more steps by the second only."""
    settings = [(8, False), (8, True), (16, False)]
    both = changed(
        *(
            [(fd, *at) for fd, at in zip(fds, settings, strict=True)]
            for fds in ((6.0, 3.0, 9.0), (60.0, 66.0, 30.0))
        )
    )
    line = agreement.disagreement(both)[0]
    assert line.startswith("Of 2 changes of settings or steps, 2 are better by one of")
    assert "dit at 8 steps, settings chosen (0.5 times; 1.1 times)" in line
    assert "dit from 8 to 16 steps (1.5 times; 0.5 times)" in line


@pytest.mark.parametrize("many, opposite", [(59.97, 0), (59.5, 1)])
def test_changes_are_compared_by_what_their_samples_share(many, opposite):
    """Each distance of the second judge has an error of 0.5, but most of it is the same in both."""
    line = agreement.disagreement(changed([(6, 8, False), (9, 16, False)], _points(60.0, many)))[0]
    assert line.startswith(f"Of 1 changes of settings or steps, {opposite} are better by one of")


def _points(few: float, many: float) -> list[tuple[float, int, bool]]:
    return [(few, 8, False), (many, 16, False)]


def test_changes_of_several_trainings_are_compared_within_each():
    """Trainings differ by more than the change; the judges are at odds in each of them."""
    made_up = []
    for place, factor in enumerate((0.9, 1.1)):
        for seed, start in enumerate((5.0, 10.0, 20.0)):
            for fd, steps in ((start, 8), (start * (factor + 0.003 * seed), 16)):
                one = record("dit", fd, steps=steps, seed=seed)
                one["row"] |= {"features": f"judge{place}", "run_id": f"{place}{seed}{steps}"}
                one["fingerprints"]["features"] = str(place)
                made_up.append(one)
    (line,) = agreement.disagreement(panels(records.table(made_up)))
    assert line.startswith("Of 1 changes of settings or steps, 1 are better")


def test_where_a_distance_sees_some_components_only_kid_is_asked_too():
    """The second judge's FD falls with more steps, as the first's does, and its KID rises."""
    points = _points(60.0, 30.0), _points(60.0, 30.0)
    kids = {"kid_generator": [-0.001, 0.15], "kid_generator_stderr": [0.004, 0.005]}
    by_fd, by_kid = agreement.disagreement(changed(*points, **kids))
    assert by_fd.startswith("Of 1 changes of settings or steps, 0 are better")
    assert (
        "1 are better by one of generator-only FD[judge0] and generator-only KID[judge1]" in by_kid
    )
    assert by_kid.endswith("dit from 8 to 16 steps (0.5 times; -0.001 to 0.15).")
    alike = {"kid_generator": [0.12, 0.13], "kid_generator_stderr": [0.004, 0.005]}
    assert ", 0 are better" in agreement.disagreement(changed(*points, **alike))[1]
    enough = {"fd_generator_full": [61.0, 31.0]} | kids
    assert len(agreement.disagreement(changed(*points, **enough))) == 1


def borrowed(steps: int, tuned_at: int, fd: float, seed: int = 0) -> dict:
    """A measurement whose settings were chosen at `tuned_at` steps."""
    one = record("dit", fd, steps=steps, seed=seed)
    one["row"] |= {"settings": "tuned", "run_id": f"{steps}-{seed}"}
    return one | {"tuning": {"steps": tuned_at, "features": "local", "trials": [], "chosen": 0}}


def test_step_counts_that_were_not_searched_are_marked_and_not_compared():
    counts = [(4, 4, 9.0), (8, 16, 3.0), (16, 16, 5.0)]
    (panel,) = panels(records.table([borrowed(*one) for one in counts]))
    header, cells = rows.measured(panel)
    assert [row[header.index("steps")] for row in cells] == [4, "8, settings of 16", 16]
    header, (row,) = step_counts.enough_steps(choices.searched(panel.leading))
    assert row[header.index("lowest at")].endswith("the most measured is best, 16 (5)"), "not 8"


def test_each_codebook_has_its_floor():
    made_up = [record("ar", 9.0, seed=seed) for seed in range(2)]
    for one, name, floor in zip(made_up, ("fitted 256", "shipped 2048"), (1.5, 1.2), strict=True):
        one["row"] |= {"codebook": name, "fd_generator_floor_codebook": floor}
    made_up.append(record("dit", 8.0))
    (panel,) = panels(records.table(made_up))
    found = panel.floors_through_codebooks("fd_generator_floor_codebook")
    assert found == {"shipped 2048": 1.2, "fitted 256": 1.5}
    (floors,) = [line for line in notes(panel, made_up[0]) if "Its floor" in line]
    assert "1.2 (shipped 2048) or 1.5 (fitted 256)" in floors
    (panel,) = panels(records.table([record("dit", 8.0)]))
    assert panel.floors_through_codebooks("fd_generator_floor_codebook") == {"": 1.2}


def test_judges_are_compared_on_what_both_have_seen_and_each_pair_of_judges_once():
    three = judges(*[{"dit": 5.0, "ar": 6.0}] * 2, {"dit": 5.0, "unet": 6.0})
    (line,) = agreement.disagreement(three)
    assert "judge0" in line and "judge1" in line, "of the third only one network is known"
    assert len(agreement.disagreement(judges(*[{"dit": 5.0, "ar": 6.0}] * 3))) == 3


def test_one_judge_of_two_sets_of_images_is_no_second_judge():
    """A folder whose images changed has two panels of one name: their judge is the same."""
    made_up = [record(model, fd) for model, fd in (("dit", 9.0), ("ar", 8.0))]
    for model, fd in (("dit", 7.0), ("ar", 8.0)):
        one = record(model, fd, seed=1)
        one["fingerprints"]["data"] = "other images"
        made_up.append(one)
    both = panels(records.table(made_up))
    assert len(both) == 2 and agreement.disagreement(both) == []
