"""A column of a table as one thing: its key in a row, its heading, how its number is written.

A table is rows of text, the headings first, for a terminal or in Markdown.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from wn.timings import spoken

if TYPE_CHECKING:
    from wn.report.plan import Plan

Row = dict[str, Any]

NUMBER = re.compile(r"(\*\*)?(≥ |[-+–<>~(])?\d|–$|pending$|$")
"""How a cell begins that holds a number, an interval, or none."""


class Column(NamedTuple):
    """``text`` writes the cell (None: the value of ``key`` as it is); ``known``: shown even while nothing of
    the row is measured; ``front``: among the few of the project's front page."""

    key: str
    heading: str
    text: Callable[[Row], str] | None = None
    known: bool = False
    front: bool = False

    def cell(self, row: Row) -> str:
        if row.get("pending") and not self.known:
            return "pending"
        return self.text(row) if self.text else str(row[self.key])


def table(columns: Sequence[Column], rows: Iterable[Row]) -> list[list[str]]:
    return [[column.heading for column in columns]] + [[c.cell(row) for c in columns] for row in rows]


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Rows of text for a terminal: the first column flush left, the others flush right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    padded = ([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])] for row in rows)
    return "\n".join("  ".join(cells).rstrip() for cells in padded)


def in_markdown(rows: Sequence[Sequence[str]]) -> str:
    """The first column and those of words are flush left, those of numbers flush right."""
    heading, *rest = rows
    words = [i == 0 or not all(map(NUMBER.match, cells)) for i, cells in enumerate(zip(*rest, strict=True))]
    rule = ["---" if own else "---:" for own in words] or ["---"] * len(heading)
    safe = ([cell.replace("|", "\\|") for cell in row] for row in (heading, rule, *rest))
    return "\n".join(f"| {' | '.join(cells)} |" for cells in safe)


def missing(value: Any) -> bool:
    return value is None or value != value


def number(key: str, form: str) -> Callable[[Row], str]:
    """A number, with ``≥`` where it reaches an end of the grid."""

    def text(row: Row) -> str:
        return "≥ " * bool(row.get(f"{key}_open")) + ("–" if missing(row.get(key)) else f"{row[key]:{form}}")

    return text


def interval(key: str, digits: int) -> Callable[[Row], str]:
    """A mean and the half-width of its interval, which takes two seeds."""

    def text(row: Row) -> str:
        mean, half = row.get(key), row.get(f"{key}_half_width")
        if missing(mean):
            return "–"
        return f"{mean:.{digits}f} ± {'n/a' if missing(half) else f'{half:.{digits}f}'}"

    return text


def probability(key: str) -> Callable[[Row], str]:
    return lambda row: "–" if missing(row.get(key)) else "<0.001" if row[key] < 0.001 else f"{row[key]:.3f}"


def sweep_columns(plan: Plan) -> list[Column]:
    metric, lr = plan.metric, number("lr", "g")
    tested = any(group.norm == "none" for group in plan.groups)
    return [
        *(Column(facet, facet, known=True, front=True) for facet in plan.facets),
        Column("norm", "norm", lambda row: row["norm"] + " *" * bool(row["unlike"]), known=True, front=True),
        Column("lr", "best lr", lambda row: lr(row) + " (edge)" * bool(row.get("edge")), front=True),
        Column(metric.test, metric.heading, interval(metric.test, 2), front=True),
        Column("n", "n", known=True, front=True),
        *[Column("p_vs_none", "p vs none", probability("p_vs_none"))] * tested,
        Column("sensitivity", "S (nats)", interval("sensitivity", 3), front=True),
        *(Column(k, heading, number(k, ".2f"), front=True) for k, (heading, *_) in metric.widths.items()),
        Column("largest_stable_lr", "largest lr without NaN", number("largest_stable_lr", "g")),
        Column("diverged", "diverged", lambda row: f"{row['diverged']}/{row['runs']}", known=True),
    ]


def rows_columns(plan: Plan) -> list[Column]:
    metric, trainer = plan.metric, plan.groups[0].first.trainer
    digits, test, is_error = f".{metric.digits}f", metric.test, metric.key == "error"
    finer = f".{metric.digits + 1}f"

    def lr(row: Row) -> str:
        if missing(row["lr"]):
            return "to be chosen" if row["pending"] else "–"
        return f"{row['lr']:g}{' (chosen)' * row['chosen']}"

    def band(row: Row) -> str:
        verdict = {None: "", True: ": in", False: ": out"}[row["inside"]]
        return (
            "–" if missing(row["band_low"]) else f"{row['band_low']:.1f} to {row['band_high']:.1f}{verdict}"
        )

    def spread(row: Row) -> str:
        own = "pending" if row["pending"] else "n/a" if row["n"] == 1 else number(f"{test}_sd", finer)(row)
        return own + ("" if missing(row["paper_bar"]) else f" ({row['paper_bar']:{finer}})")

    def progress(row: Row) -> str:
        if not row["runs"]:
            return "pending"
        done = "done" if row["runs"] == row["planned"] else f"{row['runs']} of {row['planned']} done"
        return done + f", {row['diverged']} diverged" * bool(row["diverged"])

    def cost(row: Row) -> str:
        if missing(row["seconds"]):
            return "–"
        return ", ".join(filter(None, [spoken(row["seconds"]), row["device"]]))

    columns = [
        Column("row", "row", known=True, front=True),
        Column("lr", "lr", lr, known=True, front=True),
        Column("paper", "paper %" if is_error else "paper", number("paper", digits), known=True, front=True),
        Column("rerun", "RMSNorm authors' rerun %", number("rerun", ".2f"), known=True, front=True),
        Column(test, metric.heading, interval(test, metric.digits), front=True),
        Column("n", "n", known=True, front=True),
    ]
    if is_error:
        columns += [
            Column("band_low", "expected %", band, known=True),
            Column("train_error_percent", "training error %", number("train_error_percent", ".2f")),
            Column("p_vs_bn", "p vs BN", probability("p_vs_bn")),
            Column("p_vs_normal", "p vs normal", probability("p_vs_normal")),
        ]
    else:
        images = f", {trainer.iwae_images} images" if trainer.iwae_images else ""
        iwae = f"IWAE bound, k = {trainer.iwae_samples}{images}"
        columns += [
            Column(f"{test}_sd", "sd (paper's bar)", spread, known=True),
            Column("above_normal", "above normal", number("above_normal", f"+{digits}"), front=True),
            Column("p_vs_normal", "p", probability("p_vs_normal")),
            Column("iwae_bound", iwae, interval("iwae_bound", metric.digits)),
            Column("reconstruction", "reconstruction", number("reconstruction", digits)),
            Column("kl", "KL", number("kl", digits)),
            Column("bits_per_dim", "bits/dim", number("bits_per_dim", ".3f")),
        ]
    columns.append(Column("seconds", "a run takes", cost))
    return [*columns, Column("status", "status", progress, known=True, front=True)]
