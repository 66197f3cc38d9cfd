"""report.html: the whole of summary.md on one page that needs no other file."""

import importlib.util
import re
from html.parser import HTMLParser

import pytest
from PIL import Image

from benchmarks.commands import report as command
from benchmarks.core.store import ROOT, write_json
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
    "- dit: 4 steps are best.",
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
    places = [made.index(text) for text in ("4 steps are best", "<img", "<table", "fast &amp;")]
    assert places == sorted(places) and read.tags.count("img") == 1
    assert read.tags[:2] == ["html", "head"] and "mine: 2 measurements" in read.texts


def test_a_page_needs_nothing_else_and_its_links_lead_somewhere(folder):
    read = Reader(page.html_page(TEXT, ["![a](plots/a%20plot.png)"], folder))
    for address in read.addresses:
        assert address.startswith("data:image/png;base64,") or address[1:] in read.ids, address
    assert not re.search(r"https?:|@import|url\(", page.STYLE + page.SORT)


def test_what_a_user_brought_is_no_markup(folder):
    text = [line.replace("dit", "<script>alert(1)</script> [x](http://x)") for line in TEXT]
    read = Reader(page.html_page(text, [], folder))
    assert read.tags.count("script") == 1, "our own"


def test_the_page_of_a_report_has_every_table_of_its_summary(tmp_path, monkeypatch):
    monkeypatch.setattr(summary, "_figures", lambda report, place: [])
    for record in records.read(PUBLISHED)[::4]:
        write_json(records.path_of(tmp_path, record["row"]["run_id"]), record)
    command.main([str(tmp_path)])
    text = (tmp_path / "summary.md").read_text(encoding="utf-8")
    read = Reader((tmp_path / page.NAME).read_text(encoding="utf-8"))
    assert read.tags.count("table") == len(re.findall(r"^\| ---", text, re.MULTILINE)) > 4
    rows = len(re.findall(r"^\| ", text, re.MULTILINE)) - read.tags.count("table")
    assert read.tags.count("tr") == rows
    titles = [line[3:] for line in text.splitlines() if line.startswith("## ")]
    assert set(titles) - {"Plots"} <= set(read.texts)


def test_a_machine_that_lacks_the_library_has_a_report_without_the_page(monkeypatch, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert not page.can_be_made()
    assert "report.html is not written: markdown-it-py is not installed" in capsys.readouterr().out


def test_a_published_folder_has_no_page():
    assert not list((ROOT / "results" / "reference").rglob(page.NAME))
