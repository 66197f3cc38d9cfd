"""What a report says of the judge behind a panel: which rule it breaks, what it was trained on.
Made-up records, but for the outcomes of the studies, which are held to their pages.
"""

import re

import pytest
from test_diagnostics import panel_of, record, summary_of, trained

from benchmarks.core.store import ROOT
from benchmarks.reports.judge_rules import PHOTOGRAPHS, PROCEDURAL, STUDIES, study_of
from benchmarks.reports.notes import notes

PAGES = sorted((ROOT / "results" / "reference" / "judge").glob("*/study.md"))


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


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.parent.name)
def test_every_study_is_among_those_that_reports_know(page):
    text = page.read_text(encoding="utf-8")
    judge, data, size = re.match(
        r"# Is FD\[(.*)\] worth listening to\? (.*), (\d+) px", text
    ).groups()
    images = PROCEDURAL if data == "procedural" else PHOTOGRAPHS
    (known,) = [s for s in STUDIES if (s.judge, s.images, s.size) == (judge, images, int(size))]
    rows = re.findall(r"\| (half of|so it does).* \| (pass|FAIL) \| (\S+) against (\S+) \|", text)
    assert [tuple(map(float, row[2:])) for row in rows] == [known.fd, known.kid]
    broken = [name for name, row in zip(("FD", "KID"), rows, strict=True) if row[1] == "FAIL"]
    assert broken == known.broken_by


def test_as_many_studies_as_pages():
    assert len(PAGES) == len(STUDIES)


@pytest.mark.parametrize(
    "judge, data, size, found",
    [
        ("local", "tiny-imagenet-20", 64, 64),
        ("local", "imagenet", 256, 64),  # what fails at fewer pixels is taken to fail at more
        ("local", "procedural", 32, 32),
        ("local", "procedural", 64, None),  # what holds at fewer pixels need not at more
        ("local", "tiny-imagenet-20", 48, None),
        ("efficientnet_lite0", "procedural", 32, 32),
        ("efficientnet_lite0", "procedural", 64, None),
        ("local", "icons", 32, None),  # neither kind of images was studied
        ("local", "procedural-mine", 32, None),
        ("inception", "imagenet", 256, None),
        ("dinov2", "imagenet", 256, None),
    ],
)
def test_which_study_speaks_of_a_panel(judge, data, size, found):
    study = study_of(judge, data, size)
    assert (study.size if study else None) == found


@pytest.mark.parametrize(
    "judge, size, added, noted",
    [
        ("local", 64, " (by a judge that fails the content rule)", "by FD and KID: half of"),
        (
            "efficientnet_lite0",
            64,
            " (by a judge that fails the content rule by KID)",
            "FD 23.6 against 20.3, holds; KID 0.0101 against 0.0235, fails",
        ),
        ("local", 32, "", None),
        ("inception", 64, " (no study of this judge on such images)", "No study of this judge"),
    ],
)
def test_verdicts_say_which_rule_their_judge_breaks(
    judge, size, added, noted, tmp_path, no_figures
):
    made_up = []
    for steps in (4, 8):
        made_up += trained("dit", 10.0, 10.3, 10.6, steps=steps)
        made_up += trained("ar", 12.4, 13.0, 13.0, steps=steps)
    for one in made_up:
        one["row"] |= {"features": judge, "image_size": size, "data": "tiny-imagenet-20"}
    text = summary_of(tmp_path, made_up)
    for heading in ("What they say", "How many steps are enough", "Compared, at the most steps"):
        assert f"\n### {heading}{added}\n" in text
    assert noted in text if noted else "content" not in text
