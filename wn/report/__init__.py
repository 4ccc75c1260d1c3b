"""The report: records -> rows -> table, figures and page. Alone in knowing pandas and matplotlib.

Two stages, kept apart. :mod:`wn.report.collect` reduces records to the rows that are committed under
``results/<experiment>/``; everything else is made from those rows and the experiment's file alone, so
that whoever has no records can make it again. pandas and matplotlib are loaded when a report is made.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from wn import experiments


@dataclasses.dataclass(frozen=True)
class Built:
    """What a report is made of, for whoever shows it elsewhere."""

    text: str
    """The table for a terminal."""
    table: list[dict[str, Any]]
    """A row per norm, as in ``table.csv`` (see :func:`wn.report.statistics.table`); missing is None."""
    curves: list[dict[str, Any]]
    """A row per norm and learning rate (see :func:`wn.report.statistics.curves`); missing is None."""
    figures: list[Path]
    """PNG files; none where no run is done."""


def build(experiment_name: str, runs_dir: Path | str, results_dir: Path | str) -> Built:
    """Rebuild ``results/<experiment>/`` and ``results/README.md`` from the records.

    Raises:
        UserError: there is no such experiment, a record is unreadable, or two fill the same cell.
    """
    from wn.report import collect, figures, page, statistics

    experiment = experiments.load(experiment_name)
    statistics.check(experiment)
    folder = Path(results_dir) / experiment.name
    rows = collect.merge(experiment, collect.local_records(experiment, Path(runs_dir)), folder)
    if len(rows.runs):
        collect.write(rows, folder)
    table = statistics.table(rows.runs, experiment)
    curves = statistics.curves(rows.runs, experiment)
    pictures = []
    if len(rows.runs):
        page.write_tables(table, experiment, folder)
        pictures = figures.draw(experiment, table, curves, rows, folder)
    page.write_readme(Path(results_dir))
    page.write_front_page(Path(results_dir) / "../README.md", Path(results_dir))
    return Built(page.text(table, experiment), _plain(table), _plain(curves), pictures)


def _plain(frame: Any) -> list[dict[str, Any]]:
    """The frame's rows as plain Python values."""
    rows: list[dict[str, Any]] = frame.astype(object).where(frame.notna(), None).to_dict("records")
    return rows
