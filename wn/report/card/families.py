"""A family of models of a report card: its runs, what is done of them, and the numbers of its table."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from wn import experiments
from wn.records import Record
from wn.report import collect, statistics
from wn.report.collect import Rows
from wn.report.columns import Row
from wn.report.plan import Group, Plan, of_experiment
from wn.report.statistics import estimate
from wn.report.status import records_in
from wn.report.tables import lines_of, rows_of

FAMILIES = {"mlp": "MLP", "mlp_vae": "VAE", "transformer": "transformer", "convnet": "ConvNet"}
"""In the order of the page."""

RESULTS = experiments.FOLDER.parent / "results/compare"


class Family(NamedTuple):
    """One family: its plan, whose first group is the norm in question, and what is done of it."""

    name: str
    plan: Plan
    rows: Rows
    table: list[Row]
    told: dict[str, Any]
    """Of card.json: step times, in multiples of plain weights', and the device."""


def family_of(runs_dir: Path, card: dict[str, Any], name: str) -> Family:
    """The norm in question beside the others of the family's experiment, less those that it is itself."""
    others, told = of_experiment(f"compare/{name}"), card["families"][name]
    records, _ = records_in(runs_dir / name)
    own = [config for i in told["runs"] if (config := collect.config_of(records[i]))]
    mine = Group((), own, card["name"], norm=card["name"])  # a norm that is drawn as none of the others
    rest = [group for group in others.groups if not group.configs.keys() & mine.configs.keys()]
    plan = dataclasses.replace(others, groups=[mine, *rest])
    rows = _rows(plan, records)
    return Family(name, plan, rows, _lines(plan, rows, told), told)


def publish(runs_dir: Path, name: str) -> Path:
    """Commit the rows of the others, as those of any experiment."""
    others = of_experiment(f"compare/{name}")
    folder = RESULTS / name
    folder.mkdir(parents=True, exist_ok=True)
    collect.write(others, _rows(others, records_in(runs_dir / name)[0]), folder)
    return folder


def _rows(plan: Plan, records: dict[str, Record]) -> Rows:
    """What is done here of a plan, and what is committed of the rest."""
    here = {run_id: record for run_id, record in records.items() if run_id in plan.group_of}
    return collect.merged(
        plan, collect.of_records(plan, here), collect.committed(plan, RESULTS.parent / plan.name)[0]
    )


def _lines(plan: Plan, rows: Rows, told: dict[str, Any]) -> list[Row]:
    """A sweep's table, with the width's interval, step times, and differences to the first row.

    A difference is of the test metric, by seed, each norm at its best learning rate.
    """
    own, lines, key = lines_of(plan, rows.runs), rows_of(plan, rows.runs), f"test_{plan.metric.key}"
    tested = [plan.metric.shown(key, one.runs(rows.runs).set_index("seed")[key]) for one in own]
    width, (_, a, b) = next(iter(plan.metric.widths.items()))
    for (group, *_, sweep), test, line in zip(own, tested, lines, strict=True):
        assert sweep
        if width in line:
            threshold = a + b * line[f"valid_{plan.metric.key}"] + statistics.ROUNDING
            found = [statistics.usable_width(sweep.lrs, one, threshold) for one in sweep.valid.T]
            line["width"], line["width_half_width"], _ = estimate([width for width, _ in found])
            line["width_open"] = any(at_end for _, at_end in found)
        ratios = told["step_ratios"].get("" if group is plan.groups[0] else group.name, [])
        if ratios:
            line["step"], line["step_half_width"], _ = estimate(ratios)
        apart = test[:0] if line is lines[0] else (tested[0] - test).dropna()
        line["difference"], line["p"] = estimate(apart), statistics.paired_p(apart)
        regrets = statistics.sensitivity(sweep) if "sensitivity" in line else np.nan
        line["sensitivities"] = pd.Series(regrets, sweep.seeds, dtype=float)
        line["sensitivity_p"] = statistics.paired_p(
            (lines[0]["sensitivities"] - line["sensitivities"]).dropna()
        )
    for key in ("p", "sensitivity_p"):
        for line, p in zip(lines, statistics.holm([line[key] for line in lines]), strict=True):
            line[key] = p
    return lines
