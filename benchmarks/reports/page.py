"""summary.md as one HTML page that needs no other file: `report.html`, to open in a browser or to
send. What the numbers say comes first, then the pictures, then all the rest. A click on a column's
head sorts a table, one on a picture shows it in its full size.
"""

import base64
import html
import importlib.util
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote

from benchmarks.core.session import session

if TYPE_CHECKING:  # imported where it is used: a machine without an index may lack it
    from markdown_it import MarkdownIt
    from markdown_it.token import Token

NAME = "report.html"
# in summary.md
ANSWERS, STEPS = "### What they say", "### How many steps are enough"
JUDGES, WARNING = "## Do the judges agree?", "WARNING: "
NUMBER = re.compile(r"^[<>~]?\s*[-+]?\d")
WIDE = 5  # columns from which a table's first one stays in sight
STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, sans-serif; color: #1a1a1a; margin: 0 auto; max-width: 76rem;
  padding: 1rem 1.5rem 4rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.25rem; margin-top: 3rem; }
h2, nav { border-top: 1px solid #ddd; padding-top: .8rem; } h3 { font-size: 1.05rem; }
p, ul { max-width: 56rem; } nav ul { columns: 2 24rem; padding-left: 1.2rem; }
a { color: #0b57a4; } code { background: #f2f2f2; padding: 0 .2em; }
img { max-width: 100%; height: auto; }
.pictures p { display: grid; gap: 1.5rem; max-width: none;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 30rem), 1fr)); align-items: start; }
.pictures { overflow-x: auto; } .pictures img { cursor: zoom-in; }
.pictures img.large { cursor: zoom-out; max-width: none; grid-column: 1 / -1; order: -1; }
.table { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; font-size: .86rem; font-variant-numeric: tabular-nums; }
th, td { border-bottom: 1px solid #e4e4e4; padding: .25rem .6rem; text-align: left; }
th { cursor: pointer; vertical-align: bottom; background: #fafafa; }
th[aria-sort=ascending]::after { content: " \\25B4"; }
th[aria-sort=descending]::after { content: " \\25BE"; }
td.number { text-align: right; white-space: nowrap; }
.wide td:first-child, .wide th:first-child { position: sticky; left: 0; background: #fff; }
"""
SCRIPT = """
for (const picture of document.querySelectorAll(".pictures img"))
  picture.addEventListener("click", () => picture.classList.toggle("large"));
const value = cell => {
  const text = cell.textContent.trim().replace(/,(?=\\d{3})/g, ""), number = parseFloat(text);
  return text === "" ? null : Number.isNaN(number) ? text : number;
};
const order = (a, b) => a === null ? (b === null ? 0 : 1) : b === null ? -1
  : typeof a === typeof b ? (a < b ? -1 : a > b ? 1 : 0) : typeof a === "number" ? -1 : 1;
for (const head of document.querySelectorAll("th")) {
  head.tabIndex = 0;
  const sort = () => {
    const rows = [...head.closest("table").tBodies[0].rows], place = head.cellIndex;
    const up = head.getAttribute("aria-sort") !== "ascending";
    for (const other of head.parentNode.cells) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    const key = row => value(row.cells[place]), sign = up ? 1 : -1;
    rows.sort((a, b) => key(a) === null || key(b) === null
      ? order(key(a), key(b)) : sign * order(key(a), key(b)));
    head.closest("table").tBodies[0].append(...rows);
  };
  head.addEventListener("click", sort);
  head.addEventListener("keydown", event => { if (event.key === "Enter") sort(); });
}
"""


def can_be_made() -> bool:
    """Whether the library that reads Markdown is there; a line says so where it is not."""
    there = importlib.util.find_spec("markdown_it") is not None
    if not there:
        session.print_once(f"{NAME} is not written: markdown-it-py is not installed")
    return there


def html_page(text: Sequence[str], pictures: Sequence[str], folder: Path) -> str:
    """The page of a report: `text` and `pictures` are lines of its summary.md, and paths in them
    lie in `folder`. A picture that is not there is left out.
    """
    from markdown_it import MarkdownIt

    parser = MarkdownIt("commonmark", {"html": False}).enable("table")
    head, rest = _split_at_first_section(text)
    title = _plain(parser, head[0].removeprefix("# ")) if head else folder.name
    anchors: Counter[str] = Counter()
    top = _rendered(parser, [*head, *_first_to_read(rest)], folder, anchors)
    shown = _rendered(parser, pictures, folder, anchors)
    sections: list[tuple[str, str]] = []
    below = _rendered(parser, rest, folder, anchors, sections)
    links = "".join(
        f'<li><a href="#{anchor}">{html.escape(_plain(parser, heading))}</a></li>'
        for anchor, heading in sections
    )
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width">\n<title>{html.escape(title)}</title>'
        f"\n<style>{STYLE}</style>\n</head>\n<body>\n{top}<nav><ul>{links}</ul></nav>\n"
        f'<div class="pictures">{shown}</div>\n{below}'
        f"<script>{SCRIPT}</script>\n</body>\n</html>\n"
    )


def _split_at_first_section(text: Sequence[str]) -> tuple[Sequence[str], Sequence[str]]:
    """The lines before the first heading of the second rank, and those from it on."""
    first = next((i for i, line in enumerate(text) if line.startswith("## ")), len(text))
    return text[:first], text[first:]


def _first_to_read(text: Sequence[str]) -> list[str]:
    """Of each section what it says in words and what it warns of, under the section's title; and
    whether the judges agree.
    """
    sentences: dict[str, list[str]] = {}
    judged_by: dict[str, str] = {}  # what a section's headings add about its judge
    section = heading = ""
    for line in text:
        if line.startswith("#"):
            heading = line
            section = line.removeprefix("## ") if line.startswith("## ") else section
        elif heading.startswith((ANSWERS, STEPS, JUDGES)):
            if " (" in heading:
                judged_by[section] = heading[heading.find(" (") :]
            sentences.setdefault(section, []).append(line)
        elif line.startswith("- ") and WARNING in line:
            sentences.setdefault(section, []).append(line)
    lines = []
    for title, own in sentences.items():
        lines += ["", f"**{title}{judged_by.get(title, '')}**", "", *own]
    return ["", "## What the numbers say", *lines] if lines else []


def _plain(parser: "MarkdownIt", heading: str) -> str:
    """The text of a line of Markdown without its markup."""
    (inline,) = parser.parseInline(heading)
    return "".join(token.content for token in inline.children or [])


def _rendered(
    parser: "MarkdownIt",
    lines: Iterable[str],
    folder: Path,
    anchors: Counter[str],
    sections: list[tuple[str, str]] | None = None,
) -> str:
    """HTML of Markdown, with what a page of its own needs. `anchors` counts those of the page, and
    `sections` takes those of the headings of the second rank, each with the heading.
    """
    tokens = parser.parse("\n".join(lines))
    for place, token in enumerate(tokens):
        content = tokens[place + 1].content if place + 1 < len(tokens) else ""
        if token.type == "heading_open":
            anchor = _anchor(content, anchors)
            token.attrSet("id", anchor)
            if sections is not None and token.tag == "h2":
                sections.append((anchor, content))
        elif token.type == "td_open" and NUMBER.match(content):
            token.attrSet("class", "number")
        elif token.type == "table_open" and _columns(tokens, place) >= WIDE:
            token.attrSet("class", "wide")
        elif token.type == "inline":
            token.children = [child for child in token.children or [] if _embed(child, folder)]
    page = parser.renderer.render(tokens, parser.options, {})
    page = re.sub(r"(<table[^>]*>)", r'<div class="table">\1', page)
    return page.replace("</table>", "</table></div>")


def _columns(tokens: Sequence["Token"], table: int) -> int:
    """How many columns the table has that begins at this place."""
    end = next(i for i in range(table, len(tokens)) if tokens[i].type == "thead_close")
    return sum(token.type == "th_open" for token in tokens[table:end])


def _embed(token: "Token", folder: Path) -> bool:
    """Put the file of an image into the page; whether the token can stay."""
    if token.type != "image":
        return True
    try:
        data = (folder / unquote(str(token.attrGet("src")))).read_bytes()
    except FileNotFoundError:
        return False
    token.attrSet("src", f"data:image/png;base64,{base64.b64encode(data).decode('ascii')}")
    return True


def _anchor(heading: str, taken: Counter[str]) -> str:
    """A heading as an address within the page; of one that is there already, with a number."""
    name = re.sub(r"\W+", "-", heading.lower()).strip("-")
    taken[name] += 1
    return name if taken[name] == 1 else f"{name}--{taken[name]}"
