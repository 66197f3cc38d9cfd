"""Names that users bring, as text that can be shown."""

import os
import re

LONGEST_NAME = 100  # bytes; file systems end at 255, and a folder's name may join two names


def printable(name: str) -> str:
    """A file's or a class's name in one line of valid text.

    A file system allows any bytes in a name: those that are no UTF-8, and control characters, are
    shown as escapes.
    """
    text = os.fsencode(name).decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def file_name(name: str) -> str:
    """A name that users bring as part of a file's name: printable, LONGEST_NAME bytes at most."""
    return printable(name).encode()[:LONGEST_NAME].decode(errors="ignore")


def safe_markdown(line: str) -> str:
    """A line of Markdown in which nothing that a user brought is markup: no HTML, link or formula.

    Links and images are added after it.
    """
    line = re.sub(r"<(?=[A-Za-z/!?])", "&lt;", line)  # "N < 2d" is none
    return line.replace("](", "]\\(").replace("$", "\\$")


def in_cell(text: str) -> str:
    """Text for a cell of a Markdown table: one line, and no bar that would end the cell."""
    # a backslash before a bar would take away the one that is put there
    return re.sub(r"(\\*)\|", r"\1\1\\|", " ".join(text.split()))
