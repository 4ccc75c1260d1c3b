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
    """The rows of ``table.csv``, as the kind of report makes them; missing is None."""
    curves: list[dict[str, Any]]
    """The points of the report's curves; missing is None."""
    chart: tuple[str, str, str]
    """Keys of ``curves`` for a chart: x (positive, shown as its logarithm), y, and what names a line."""
    figures: list[Path]
    """PNG files; none where no run is done."""


def build(experiment_name: str, runs_dir: Path | str, results_dir: Path | str) -> Built:
    """Rebuild ``results/<experiment>/`` and ``results/README.md`` from the records.

    Raises:
        UserError: there is no such experiment, a record is unreadable, or two fill the same cell.
    """
    from wn.report import collect, page

    experiment = experiments.load(experiment_name)
    kind = page.KINDS[experiment.report]
    kind.check(experiment)
    folder = Path(results_dir) / experiment.name
    local = collect.local_records(experiment, Path(runs_dir))
    rows = collect.merge(experiment, local, folder)
    table, curves = kind.table(rows, experiment), kind.curves(rows, experiment)
    pictures = []
    if len(rows.runs):
        collect.write(rows, experiment, folder)
        if experiment.rows:
            collect.copy_pictures(rows, local, folder)
        page.write_tables(table, experiment, folder)
        pictures = kind.draw(experiment, table, rows, folder)
    page.write_readme(Path(results_dir))
    page.write_front_page(Path(results_dir) / "../README.md", Path(results_dir))
    return Built(
        page.text(table, experiment), _plain(table), _plain(curves), kind.chart(experiment), pictures
    )


def _plain(frame: Any) -> list[dict[str, Any]]:
    """The frame's rows as plain Python values."""
    rows: list[dict[str, Any]] = frame.astype(object).where(frame.notna(), None).to_dict("records")
    return rows
