"""A column of a table as one thing: its key in a row, its heading, how its number is written.

A table is rows of text, the headings first, for a terminal or in Markdown.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

Row = dict[str, Any]


class Column(NamedTuple):
    """What of a row is shown."""

    key: str
    heading: str
    text: Callable[[Row], str] | None = None
    """The cell; None writes the value of ``key`` as it is."""
    known: bool = False
    """Shown even while nothing of the row is measured."""
    front: bool = False
    """Among the few of the project's front page."""

    def cell(self, row: Row) -> str:
        if row.get("pending") and not self.known:
            return "pending"
        return self.text(row) if self.text else str(row[self.key])


def table(columns: Sequence[Column], rows: Iterable[Row]) -> list[list[str]]:
    """Headings, then cells."""
    return [[column.heading for column in columns]] + [[c.cell(row) for c in columns] for row in rows]


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Rows of text for a terminal: the first column flush left, the others flush right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip() for row in rows
    )


def in_markdown(rows: Sequence[Sequence[str]]) -> str:
    """Rows of text as a table in Markdown."""
    heading, *rest = rows
    rule = ["---", *["---:"] * (len(heading) - 1)]
    return "\n".join(
        "| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in (heading, rule, *rest)
    )


def missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def number(key: str, form: str) -> Callable[[Row], str]:
    """A number in a format, or a dash."""
    return lambda row: "–" if missing(row.get(key)) else f"{row[key]:{form}}"


def interval(key: str, digits: int) -> Callable[[Row], str]:
    """A mean and the half-width of its interval, which takes two seeds."""

    def text(row: Row) -> str:
        mean, half = row.get(key), row.get(f"{key}_half_width")
        if missing(mean):
            return "–"
        return f"{mean:.{digits}f} ± {'n/a' if missing(half) else f'{half:.{digits}f}'}"

    return text


def probability(key: str) -> Callable[[Row], str]:
    """The p of a test."""
    return lambda row: "–" if missing(row.get(key)) else "<0.001" if row[key] < 0.001 else f"{row[key]:.3f}"


def at_least(key: str, form: str) -> Callable[[Row], str]:
    """A number, with ``≥`` where it reaches an end of the grid."""
    return lambda row: ("≥ " if row.get(f"{key}_open") else "") + number(key, form)(row)
