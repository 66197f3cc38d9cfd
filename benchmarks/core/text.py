"""Names that users bring, as text that can be shown."""

import os


def printable(name: str) -> str:
    """A file's or a class's name in one line of valid text.

    A file system allows any bytes in a name: those that are no UTF-8, and control characters, are
    shown as escapes.
    """
    text = os.fsencode(name).decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
