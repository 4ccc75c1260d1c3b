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
from wn.report.columns import Row, missing
from wn.report.plan import Group, Plan, of_experiment
from wn.report.statistics import Estimate, estimate
from wn.report.status import records_in
from wn.report.tables import grid, rows_of, sweep_of

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
    mine = Group((), [c for i in told["runs"] if (c := collect.config_of(records[i]))], card["name"])
    mine.norm = card["name"]  # so that it is drawn as none of the others
    plan = dataclasses.replace(
        others, groups=[mine, *(g for g in others.groups if not {*g.ids.values()} & {*mine.configs})]
    )
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
    """A sweep's table, with the width's interval, step times, and differences to the first row."""
    lines = rows_of(plan, rows.runs)
    width, (_, a, b) = next(iter(plan.metric.widths.items()))
    for group, line in zip(plan.groups, lines, strict=True):
        sweep = sweep_of(group, rows.runs, plan.metric.key)
        if width in line:
            threshold = a + b * line[f"valid_{plan.metric.key}"] + statistics.ROUNDING
            found = [statistics.usable_width(sweep.lrs, one, threshold) for one in sweep.valid.T]
            line["width"], line["width_half_width"], _ = estimate([width for width, _ in found])
            line["width_open"] = any(at_end for _, at_end in found)
        ratios = told["step_ratios"].get("" if group is plan.groups[0] else group.name, [])
        if ratios:
            line["step"], line["step_half_width"], _ = estimate(ratios)
        line["difference"], line["p"] = difference(plan, rows, lines[0], line, group)
        regrets = statistics.sensitivity(sweep) if "sensitivity" in line else np.nan
        line["sensitivities"] = pd.Series(regrets, sweep.seeds, dtype=float)
        line["sensitivity_p"] = statistics.paired_p(
            (lines[0]["sensitivities"] - line["sensitivities"]).dropna()
        )
    for key in ("p", "sensitivity_p"):
        for line, p in zip(lines, statistics.holm([line[key] for line in lines]), strict=True):
            line[key] = p
    return lines


def difference(plan: Plan, rows: Rows, mine: Row, other: Row, group: Group) -> tuple[Estimate, float]:
    """The test metric of the norm in question less another's, by seed, each at its best learning rate."""
    key = f"test_{plan.metric.key}"

    def tested(group: Group, line: Row) -> Any:
        if missing(line["lr"]):
            return grid(group, rows.runs, key).iloc[0] * np.nan
        return plan.metric.shown(key, grid(group, rows.runs, key).loc[line["lr"]])

    apart = (tested(plan.groups[0], mine) - tested(group, other)).dropna()
    if group is plan.groups[0]:
        apart = apart[:0]
    return estimate(apart), statistics.paired_p(apart)
