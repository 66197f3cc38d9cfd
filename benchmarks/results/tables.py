"""Numbers and tables as text."""

from collections.abc import Iterable

import numpy as np
import pandas as pd

from benchmarks.core.text import in_cell


def show(value: object) -> str:
    """Three significant digits, without an exponent where the number can be read without one."""
    if value is None or (isinstance(value, float) and pd.isna(value)):
        return ""
    if not isinstance(value, int | float):
        return in_cell(str(value))
    if float(value).is_integer() and abs(value) < 1e6:
        return str(int(value))
    if 1e-3 <= abs(value) < 1e6:
        return np.format_float_positional(value, precision=3, fractional=False, trim="-")
    return f"{value:.2e}"


def markdown(header: Iterable[str], rows: Iterable[Iterable[object]]) -> list[str]:
    """A Markdown table as lines."""
    header = [in_cell(name) for name in header]
    lines = ["| " + " | ".join(header) + " |", "|" + " --- |" * len(header)]
    return lines + ["| " + " | ".join(show(value) for value in row) + " |" for row in rows]
