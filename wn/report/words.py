"""Numbers -> words: what the tables of every kind have in common."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from wn.experiments import Experiment


def command(experiment: Experiment, norm: str | None = None) -> str:
    """What to type to train the experiment's runs, or those of one norm; finished ones are skipped."""
    return f"python -m wn.train +experiment={experiment.name}" + (f" norm={norm}" if norm else "")


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Rows of text as columns: the first flush left, the others flush right."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))]
        )
        for row in rows
    )


def in_markdown(rows: Sequence[Sequence[str]]) -> str:
    """Rows of text, the first of them headings, as a table in Markdown."""
    heading, *rest = rows
    rule = ["---", *["---:"] * (len(heading) - 1)]
    return "\n".join("| " + " | ".join(row) + " |" for row in (heading, rule, *rest))


def learning_rate(lr: float) -> str:
    """A learning rate in the fewest digits."""
    return "–" if np.isnan(lr) else f"{lr:g}"


def interval(mean: float, half_width: float, digits: int) -> str:
    """A mean and the half-width of its interval."""
    if np.isnan(mean):
        return "–"
    return f"{mean:.{digits}f} ± {'n/a' if np.isnan(half_width) else f'{half_width:.{digits}f}'}"


def probability(p: float) -> str:
    """The p of a test."""
    if np.isnan(p):
        return "–"
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def is_pending(line: dict[str, Any]) -> bool:
    """Whether a line of a table of rows has nothing to show yet, but will have."""
    complete = line["planned"] and line["runs"] == line["planned"]
    return not line["n"] and not complete


def lr_of(line: dict[str, Any]) -> str:
    """A line's learning rate, and whether a validation split chose it."""
    if np.isnan(line["lr"]):
        return "to be chosen" if is_pending(line) else "–"
    return learning_rate(line["lr"]) + (" (chosen)" if line["chosen"] else "")


def progress(line: dict[str, Any]) -> str:
    """How many of a line's runs are done, and how many of them diverged."""
    if not line["runs"]:
        return "pending"
    done = "done" if line["runs"] == line["planned"] else f"{line['runs']} of {line['planned']} done"
    return done + (f", {line['diverged']} diverged" if line["diverged"] else "")
