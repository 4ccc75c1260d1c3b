"""Rows -> one HTML file: charts that filter and tell what is under the pointer, every run, every setting.

Charts are Vega-Lite, drawn by Vega, whose JavaScript is written into the file: 0.9 MB, a fifth of what Plotly
takes, and its Python package can draw the same charts without a browser, for tests. The page's security
policy allows no request to anywhere. ``web.html`` has the layout and the script that fills it.
"""

from __future__ import annotations

import functools
import html
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from wn.config import Config
from wn.records import public_config, to_json, write_atomically
from wn.report import collect, curves, page
from wn.report.charts import by_lr
from wn.report.charts_by_epoch import by_epoch, paper, trajectories
from wn.report.collect import Rows
from wn.report.figures import look
from wn.report.plan import Plan
from wn.report.tables import Line, Table

CAPTIONS = {
    "lr": "Line: the median of the seeds that did not diverge; band: lowest to highest; dot: one seed, named"
    " under the pointer. Above, filled: the best learning rate; ×: seeds diverged, pale where not all did.",
    "epoch": "Strong: the mean over the finished seeds; thin: one seed, named under the pointer; broad and"
    " pale: the published curve.",
}
TEMPLATE = Path(__file__).with_name("web.html")
Data = dict[str, Any]


def write(path: Path, plan: Plan, rows: Rows, table: Table, notes: Sequence[str] = ()) -> None:
    """Write the page of a plan's rows; below its head stand the table's notes, then these."""
    experiment = plan.experiment
    parts = {
        "title": html.escape(experiment.title if experiment else plan.name),
        "name": html.escape(plan.name),
        "claim": f"Claim examined: {html.escape(experiment.claim)}" if experiment else "",
        "facts": html.escape(page.facts_of(plan, rows)),
        "notes": "".join(f"<li>{html.escape(note)}</li>" for note in [*table.notes, *notes]),
        # inside <script> nothing is escaped, and the first </script> ends it
        "data": to_json(data_of(plan, rows, table)).replace("<", "\\u003c"),
        "library": _library().replace("</script", "<\\/script"),
    }
    filled = re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], TEMPLATE.read_text(encoding="utf-8"))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, filled.encode("utf-8"))


@functools.cache
def _library() -> str:
    import vl_convert  # 90 MB, for this page alone

    return vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")


def data_of(plan: Plan, rows: Rows, table: Table) -> Data:
    """All that the page shows. A table is ``columns`` and ``data``; runs and curves are those of the CSVs."""
    axis, names, points = curves.points_of(plan, rows)
    lines = [Line(group, lr) for group in plan.groups for lr in group.lrs]
    if axis == "lr":
        points = points.rename(columns={"line": "row"})
        charts = {name: by_lr(plan, points, name) for name in names}
    else:
        place = {line.label: (line.group.name, line.lr) for line in lines}
        places = [place[label] for label in points["line"]]
        points = points.assign(row=[row for row, _ in places], lr=[lr for _, lr in places])
        charts = {name: by_epoch(plan, rows, name) for name in names}
    columns = ["row", *(name for name in collect.columns(plan) if name != "row")]
    heading, *cells = table.cells()
    rates = zip(plan.groups, table.rows, strict=True) if plan.is_sweep else ()
    best = [{"row": group.name, "lr": row["lr"]} for group, row in rates]
    return {
        "filters": _filters(plan),
        "table": {"columns": heading, "data": cells},
        "runs": _tree(rows.runs[columns].reset_index()),
        "curves": _tree(rows.curves),
        "points": _tree(points),
        "best": _tree(pd.DataFrame(best, columns=["row", "lr"])),
        "paper": _tree(pd.DataFrame(paper(plan), columns=["row", "epoch", "value"])),
        "settings": settings_of(plan),
        "caption": CAPTIONS[axis],
        "charts": charts,
        "trajectories": trajectories(plan, rows),
    }


def _tree(table: pd.DataFrame) -> Data:
    """As JSON will have it: what is not known is null."""
    known = table.astype(object).where(table.notna(), None)
    return {"columns": list(table.columns), "data": known.values.tolist()}


def _filters(plan: Plan) -> list[Data]:
    """What the reader switches: a norm, or a row where norms do not tell rows apart; with its colour."""
    norms = {group.norm for group in plan.groups}
    found: dict[str, Data] = {}
    for group in plan.groups:
        label = group.norm if plan.facets and len(norms) > 1 else group.name
        found.setdefault(label, {"label": label, "color": look(plan, group)["color"], "rows": []})
        found[label]["rows"].append(group.name)
    return list(found.values())


def settings_of(plan: Plan) -> Data:
    """Every setting of the planned runs: its values in all rows, or in each where they differ."""
    every = [[_flat(config) for config in group.configs.values()] for group in plan.groups]
    keys = dict.fromkeys(key for own in every for one in own for key in one)
    rows = []
    for key in sorted(keys, key=lambda key: ("." in key, key)):
        cells = [", ".join(dict.fromkeys(one.get(key, "–") for one in own)) for own in every]
        same = len(set(cells)) == 1
        rows.append([key, cells[0], *[""] * len(cells)] if same else [key, "", *cells])
    return {"columns": ["setting", "in all rows", *(group.name for group in plan.groups)], "data": rows}


def _flat(config: Config) -> dict[str, str]:
    found: dict[str, str] = {}
    waiting: list[tuple[str, Any]] = [("", public_config(config))]
    while waiting:
        name, value = waiting.pop()
        if isinstance(value, dict):
            waiting += [(f"{name}.{key}" if name else key, one) for key, one in value.items()]
        else:
            found[name] = value if isinstance(value, str) else to_json(value)
    return found
