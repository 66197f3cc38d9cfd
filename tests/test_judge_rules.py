"""What a report says of the judge behind a panel: what it was trained on. Made-up records."""

from test_diagnostics import panel_of, record

from benchmarks.reports.notes import notes


def test_a_judge_that_knows_the_classes_is_said_to_have_been_trained_on_them():
    """Which it was once said not to be known of, where its own head names the classes."""
    one = record("dit", 9.0) | {"probe_split": "head", "shipped": ["autoencoder"], "overlap": []}
    lines = notes(panel_of([one]), one)
    assert "- This judge was trained on ImageNet, which holds these classes." in lines
    assert "- Whether these classes are new to this codebook is not known." in lines
    other = one | {"probe_split": "holdout"}
    lines = notes(panel_of([other]), other)
    assert "- Whether these classes are new to this codebook and this judge is not known." in lines
    assert not any("ImageNet" in line for line in lines)
