"""Which rules of the study a made-up table breaks, and how the study's page says so."""

import pandas as pd
import pytest

from benchmarks.studies.degradations import DEGRADATIONS, LABELS, RISES, amounts_of
from benchmarks.studies.findings import RULES, Setting, in_units, page, rules_as_table, weak_steps
from benchmarks.studies.material import REAL, REBUILT


def made_up() -> pd.DataFrame:
    """A table that keeps every rule."""
    rows = []
    for kind in (REAL, REBUILT):
        for degradation in DEGRADATIONS:
            for level, amount in enumerate(amounts_of(degradation)):
                rises = degradation.demand == RISES
                # missing classes cost most
                slope = {"missing classes": 3}.get(degradation.name, 1) * rises
                row = {"images": kind, "degradation": degradation.name, "unit": degradation.unit}
                row |= {"level": level, "amount": amount, "fd": 2.0 + slope * level, "fd_std": 0.1}
                row |= {"kid": 0.1 * slope * level, "kid_error": 0.05, "precision": 0.9}
                row |= {"recall": 0.8, "label_accuracy": 0.9}
                if degradation.kind == LABELS:
                    row["label_accuracy"] -= 0.1 * level
                if kind == REBUILT:
                    row |= {"fd_generator": 1 + slope * level, "fd_generator_std": 0.1}
                    row |= {"fd_generator_change_std": 0.1, "kid_generator": row["kid"]}
                    row |= {"kid_generator_error": 0.01}
                else:
                    row["fd_pixels"] = 100
                rows.append(row)
    return pd.DataFrame(rows)


SETTING = Setting("things", 32, 200, 300, "local", "0" * 64, "shipped")
# rule -> what breaks it: degradation, level, column, value; and what the page says then
BROKEN = {
    "half of the classes": ("missing classes", 4, "fd_generator", 1.5, "1.5 against 2"),
    "so it does by KID": ("missing classes", 4, "kid_generator", 0.05, "0.05 against 0.1"),
    "no sharpening": ("sharpening", 2, "fd_generator", 0.7, "sharpening 0.5 by 0.3 (3.0 SD)"),
    "every other": ("duplicates", 3, "fd_generator", 1.2, "duplicates (4 of 5)"),
    "label swaps": ("label swaps", 3, "label_accuracy", 0.85, "4 of 5 steps down"),
    "recall of real": ("Gaussian blur", 0, "recall", 0.69, "quality verdicts are refused here"),
}


def test_a_table_that_keeps_all_rules_passes_and_reconstructed_images_alone_decide():
    table = made_up()
    real = table["images"] == REAL
    table.loc[real & (table["level"] > 0), "fd"] = 0  # falls, which no rule forbids real images
    assert [check(table).passed for _, check in RULES] == [True] * len(RULES)
    assert not any("FAIL" in line for line in rules_as_table(table))


@pytest.mark.parametrize("rule", BROKEN)
def test_a_broken_rule_is_reported_as_failing_with_the_numbers(rule):
    name, level, column, value, says = BROKEN[rule]
    table = made_up()
    at = (table["images"] == REBUILT) & (table["degradation"] == name) & (table["level"] == level)
    table.loc[at, column] = value
    line = next(line for line in page(table, SETTING) if line.startswith(f"| {rule}"))
    assert "| FAIL |" in line and says in line


def test_a_fall_within_two_standard_deviations_is_no_gain():
    table = made_up()
    table.loc[table["degradation"] == "saturation", "fd_generator"] -= [0, 0, 0.19, 0, 0, 0] * 2
    assert "FAIL" not in "".join(rules_as_table(table))


def test_distances_are_weighed_in_units_of_the_undegraded_images():
    rows = made_up().query("images == 'real' and degradation == 'missing classes'")
    assert in_units(rows, "fd").tolist() == [1, 2.5, 4, 5.5, 7, 8.5]
    assert in_units(rows, "kid").tolist() == pytest.approx([0, 6, 12, 18, 24, 30])


def test_weak_steps_are_those_below_two_joint_standard_deviations():
    table = made_up()
    assert weak_steps(table, REAL) == []
    at = (table["images"] == REAL) & (table["degradation"] == "duplicates")
    table.loc[at, "fd"] = [1, 1.2, 3, 4, 5, 6]
    assert weak_steps(table, REAL) == ["duplicates 0 to 0.1 (1.4)"]


def test_results_of_another_autoencoder_have_a_folder_of_their_own():
    assert SETTING.name == "things-32-local"
    assert SETTING._replace(autoencoder="taesd-2048").name == "things-32-local-taesd-2048"
