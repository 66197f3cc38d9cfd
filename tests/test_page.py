"""report.html: the whole of summary.md on one page that needs no other file."""

import importlib.util
import re
from html.parser import HTMLParser

import pytest
from PIL import Image

from benchmarks.commands import report as command
from benchmarks.core.store import ROOT, seal, write_json
from benchmarks.reports import page, summary
from benchmarks.results import records

PUBLISHED = ROOT / "results" / "reference" / "cpu-procedural"
TEXT = [
    "# mine: 2 measurements",
    "",
    "## first, on a CPU",
    "",
    "| model | steps |",
    "| --- | --- |",
    "| dit | 4 |",
    "",
    "### What they say",
    "",
    "- dit is lowest.",
    "",
    "### How many steps are enough",
    "",
    "| model | lowest at |",
    "| --- | --- |",
    "| dit | 4 (5.1) |",
    "",
    "### Training",
    "",
    "fast & good",
]
VOID = {"meta", "img", "br", "hr"}


class Reader(HTMLParser):
    """The tags, texts and addresses of a page; every tag must be closed, in order."""

    def __init__(self, text: str):
        super().__init__()
        self.open, self.tags, self.addresses, self.ids, self.texts = [], [], [], [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        values = dict(attrs)
        self.addresses += [values[name] for name in ("src", "href") if name in values]
        self.ids += [values["id"]] if "id" in values else []
        self.open += [] if tag in VOID else [tag]

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "plots").mkdir()
    Image.new("RGB", (4, 4), "red").save(tmp_path / "plots" / "a plot.png")
    return tmp_path


def test_words_come_before_pictures_and_pictures_before_the_rest(folder):
    pictures = ["## Plots", "", "![a](plots/a%20plot.png)", "![gone](plots/gone.png)"]
    made = page.html_page(TEXT, pictures, folder)
    read = Reader(made)
    places = [
        made.index(text) for text in ("dit is lowest", "4 (5.1)", "<img", 'id="first', "fast &amp;")
    ]
    assert places == sorted(places) and read.tags.count("img") == 1
    assert read.tags[:2] == ["html", "head"] and "mine: 2 measurements" in read.texts


def test_a_page_needs_nothing_else_and_its_links_lead_somewhere(folder):
    read = Reader(page.html_page(TEXT, ["![a](plots/a%20plot.png)"], folder))
    for address in read.addresses:
        assert address.startswith("data:image/png;base64,") or address[1:] in read.ids, address
    assert len(set(read.ids)) == len(read.ids)
    assert not re.search(r"https?:|@import|url\(", page.STYLE + page.SCRIPT)


def test_two_sections_of_one_title_have_links_of_their_own(folder):
    made = page.html_page([*TEXT, *TEXT[2:]], [], folder)
    assert [part.split('"')[0] for part in made.split('<a href="')[1:]] == [
        "#first-on-a-cpu",
        "#first-on-a-cpu--2",
    ]
    read = Reader(made)
    assert len(set(read.ids)) == len(read.ids)


def test_warnings_and_whether_judges_agree_stand_on_top(folder):
    text = [*TEXT[:2], "## Do the judges agree?", "", "- They do not.", "", *TEXT[2:]]
    text += ["", "- WARNING: seconds are too high.", "- Its floor is 1."]
    top = page.html_page(text, [], folder).split("<nav>")[0]
    assert all(words in top for words in ("They do not.", "WARNING: seconds", "4 (5.1)"))
    assert "Its floor" not in top


def test_what_a_heading_adds_about_the_judge_stands_on_top_too(folder):
    text = [f"{line} (by a judge that fails)" if "###" in line else line for line in TEXT]
    text[3:3] = ["", "- WARNING: the seconds are too high."]
    top = page.html_page(text, [], folder).split("<nav>")[0]
    assert "first, on a CPU (by a judge that fails)" in top and "dit is lowest" in top
    assert "WARNING: the seconds" in top
    assert top.count("first, on a CPU") == 1, "a warning stands beside the verdicts it is about"


def rebuilt(folder, monkeypatch, **changed):
    """A report of some published measurements, with these columns changed."""
    monkeypatch.setattr(summary, "_figures", lambda report, place: [])
    for record in records.read(PUBLISHED)[::4]:
        row = record["row"] | changed
        write_json(records.path_of(folder, row["run_id"]), seal(record | {"row": row}))
    command.main([str(folder)])
    return Reader((folder / page.NAME).read_text(encoding="utf-8"))


def test_what_a_user_brought_is_no_markup(tmp_path, monkeypatch):
    data = "<b>a</b>&<script>alert(1)</script> [x](http://x) $1$ *b*"
    read = rebuilt(tmp_path, monkeypatch, data=data)
    assert read.tags.count("script") == 1 and "b" not in read.tags, "our own"
    assert all(address.startswith("#") for address in read.addresses)
    assert any(text.startswith("<b>a</b>&<script>alert(1)</script> [x](") for text in read.texts)


def test_the_page_of_a_report_has_every_table_of_its_summary(tmp_path, monkeypatch):
    rebuilt(tmp_path, monkeypatch)
    text = (tmp_path / "summary.md").read_text(encoding="utf-8")
    read = Reader((tmp_path / page.NAME).read_text(encoding="utf-8"))
    # those of step counts stand on top, too
    text += "".join(part.split("\n#")[0] for part in text.split(page.STEPS)[1:])
    assert read.tags.count("table") == len(re.findall(r"^\| ---", text, re.MULTILINE)) > 4
    rows = len(re.findall(r"^\| ", text, re.MULTILINE)) - read.tags.count("table")
    assert read.tags.count("tr") == rows
    titles = [line[3:] for line in text.splitlines() if line.startswith("## ")]
    assert set(titles) - {"Plots"} <= set(read.texts)


def test_a_machine_that_lacks_the_library_has_a_report_without_a_page(
    tmp_path, monkeypatch, capsys
):
    rebuilt(tmp_path, monkeypatch)
    found = importlib.util.find_spec
    lacking = lambda name, *rest: None if name == "markdown_it" else found(name, *rest)  # noqa: E731
    monkeypatch.setattr(importlib.util, "find_spec", lacking)
    command.main([str(tmp_path)])
    assert "report.html is not written: markdown-it-py is not installed" in capsys.readouterr().out
    assert not (tmp_path / page.NAME).exists(), "nor one of earlier results"
