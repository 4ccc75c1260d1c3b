"""The report: records -> rows -> tables -> figures -> page. Alone in knowing matplotlib; never imports torch.

:mod:`.plan` says which runs there should be, :mod:`.collect` which are done; :mod:`.tables` and
:mod:`.statistics` make numbers of them, :mod:`.figures` and :mod:`.curves` draw, :mod:`.page` writes, and
:mod:`.compare` holds a rerun against what is committed.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wn.records import Record
    from wn.report.collect import Rows
    from wn.report.page import Steps
    from wn.report.plan import Plan
    from wn.report.tables import Table

os.environ["MPLBACKEND"] = "agg"  # before matplotlib is imported: there is no display, and a wrong name fails


def build(
    plan: Plan, rows: Rows, table: Table, steps: Steps, folder: Path, records: Mapping[str, Record]
) -> dict[str, Any]:
    """Write the rows, table and figures of a plan into a folder.

    Returns:
        A summary to show elsewhere: ``x``, ``y`` and ``line`` are keys of the rows of ``points``; ``figures``
        are the names of PNG files.
    """
    from wn.records import write_atomically
    from wn.report import collect, curves, figures, page  # matplotlib takes a second

    folder.mkdir(parents=True, exist_ok=True)
    collect.write(plan, rows, folder)
    collect.write_csv(folder / f"table{plan.suffix}.csv", table.keys(), table.rows)
    write_atomically(folder / f"table{plan.suffix}.md", page.markdown(table, steps).encode("utf-8"))
    page.copy_pictures(plan, rows, records, folder)
    with figures.house_style():
        drawn, axes = curves.draw(plan, table.rows, rows)
        paths = [figures.save(figure, folder / (name + plan.suffix)) for name, figure in drawn.items()]
    return {**axes, "figures": [path.name for path in paths]}
