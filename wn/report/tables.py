"""Rows -> tables: a sweep has a line per norm (and facets), a list of rows a line per learning rate of each.

Numbers of the metric are as :meth:`Metric.shown` has them. Every learning rate is decided before a test
number is read: the experiment's file declares it, or validation images chose it.
"""

from __future__ import annotations

import math
from collections import Counter
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from wn import experiments
from wn.report import statistics
from wn.report.columns import Column, Row, missing, rows_columns, sweep_columns, table
from wn.report.plan import Group, Plan
from wn.report.statistics import ENOUGH, ROUNDING, Sweep

BASELINES = {"bn": "batch_norm", "normal": "none_init", "none": "none"}
"""Norms that the others are tested against: ``p_vs_none`` in a sweep, the other two in a list of rows."""

CHANCE = 0.97
"""Of the metric before training: a threshold above it takes in networks that have learned nothing."""


def grid(group: Group, runs: pd.DataFrame, name: str) -> pd.DataFrame:
    """A column of a group's runs, by learning rate and seed; NaN where a run is not done."""
    own = runs[runs["row"] == group.name].pivot(index="lr", columns="seed", values=name)
    return own.reindex(index=group.lrs, columns=group.seeds)


def sweep_of(group: Group, runs: pd.DataFrame, key: str) -> Sweep:
    """A group's runs as arrays, over the seeds that are complete; ``key`` is the metric's."""
    status = grid(group, runs, "status").dropna(axis="columns")
    finished, seeds = status.eq("finished"), list(status)
    valid, loss = (
        grid(group, runs, name)[seeds].where(finished).fillna(np.inf).to_numpy(float)
        for name in (f"valid_{key}", "valid_loss")
    )
    before = [grid(group, runs, f"initial_valid_{name}")[seeds].to_numpy(float) for name in (key, "loss")]
    return Sweep(np.array(group.lrs), seeds, finished.all(axis=1).to_numpy(), valid, loss, *before)


class Line(NamedTuple):
    """A line of the table: a group at one learning rate, NaN while it is to be chosen.

    The experiment's file may have ``declared`` it, a validation split ``chosen``; ``sweep`` has all rates
    where these runs themselves choose.
    """

    group: Group
    lr: float
    declared: bool = False
    chosen: bool = False
    sweep: Sweep | None = None

    @property
    def label(self) -> str:
        return self.group.name if missing(self.lr) else f"{self.group.name}, lr {self.lr:g}"

    def runs(self, runs: pd.DataFrame) -> pd.DataFrame:
        """The line's finished runs; of a sweep, of the seeds that are complete."""
        own = runs[
            (runs["row"] == self.group.name) & (runs["lr"] == self.lr) & (runs["status"] == "finished")
        ]
        return own if self.sweep is None else own[own["seed"].isin(self.sweep.seeds)]


def lines_of(plan: Plan, runs: pd.DataFrame) -> list[Line]:
    """The lines of the table; of a list of rows the declared learning rates, then a chosen other one."""
    lines = []
    for group in plan.groups:
        if plan.chooses_itself:
            sweep = sweep_of(group, runs, plan.metric.key)
            best = statistics.best_lr(sweep)
            lr = np.nan if best is None else group.lrs[best]
            lines.append(Line(group, lr, chosen=True, sweep=sweep))
            continue
        assert group.row is not None
        chosen = group.row.chosen
        lines += [Line(group, lr, True, lr == chosen) for lr in group.row.lrs]
        if plan.experiment and plan.experiment.chosen_by and chosen not in group.row.lrs:
            lines.append(Line(group, np.nan if chosen is None else chosen, chosen=True))
    return lines


def rows_of(plan: Plan, runs: pd.DataFrame) -> list[Row]:
    """A row per line, of the last epoch.

    ``runs`` (done) of ``planned``, ``diverged`` of these: the runs that the line rests on. Over ``n`` seeds:
    the test metric, the half-width of its interval and its sd; p, by Holm's correction over the rows, and
    mean difference to :data:`BASELINES`.
    Then what is published, or what a sweep says of all learning rates.
    """
    metric, rows, lines = plan.metric, [], lines_of(plan, runs)
    finished = [line.runs(runs) for line in lines]
    key = f"test_{metric.key}"
    tested = [metric.shown(key, own.set_index("seed")[key]) for own in finished]
    curves = plan.published
    # A best learning rate of another grid is no fair comparison.
    comparable = [t[:0] if unlike(plan, line.group) else t for t, line in zip(tested, lines, strict=True)]
    for line, own, test, fair in zip(lines, finished, tested, comparable, strict=True):
        group, of_sweep = line.group, line.sweep if plan.is_sweep else None
        mine = [i for i, c in group.configs.items() if line.sweep is not None or c.optim.lr == line.lr]
        done = runs["status"].reindex(mine).dropna()
        names = dict(zip(plan.facets, group.facet, strict=True)) if of_sweep else {"row": group.name}
        row: Row = {**names, "norm": plan.norm_of(group), "lr": line.lr, "chosen": line.chosen}
        row |= {"runs": len(done), "planned": len(mine), "diverged": int(done.eq("diverged").sum())}
        row |= {"n": len(of_sweep.seeds) if of_sweep else len(test), **_estimated(metric.test, test)}
        row[f"{metric.test}_sd"] = test.std()
        for name, norm in BASELINES.items():
            if (name == "none") == plan.is_sweep:
                above = (fair - _baseline(line, lines, comparable, norm)).dropna()
                row |= {f"p_vs_{name}": statistics.paired_p(above), f"above_{name}": above.mean()}
        row["pending"] = not row["n"] and not 0 < row["planned"] == row["runs"]
        row |= _of_sweep(plan, of_sweep) if of_sweep else _published(plan, line, curves, row) | _cost(own)
        rows.append(row | _means(plan, own) | {"unlike": unlike(plan, group)})
    for name in BASELINES:  # a table's comparisons with one row are a family of tests
        key = f"p_vs_{name}"
        for row, p in zip(rows, statistics.holm([row.get(key, math.nan) for row in rows]), strict=True):
            if key in row:
                row[key] = p
    return rows


def _estimated(name: str, values: Any) -> Row:
    mean = statistics.estimate(values)
    return {name: mean.mean, f"{name}_half_width": mean.half_width}


def _baseline(line: Line, lines: list[Line], tested: list[pd.Series], norm: str) -> pd.Series:
    """Test numbers of the first line of another norm, among the same facets and kind of learning rate."""
    for other, numbers in zip(lines, tested, strict=True):
        same_kind = other.declared if line.declared else other.chosen
        if other.group.norm == norm and same_kind and other.group.facet == line.group.facet:
            return numbers[:0] if other.group is line.group else numbers
    return pd.Series(dtype=float)


def _of_sweep(plan: Plan, sweep: Sweep) -> Row:
    """What a sweep says of a group; little where some seed diverged at every learning rate."""
    row: Row = {}
    if sweep.seeds and sweep.stable.any():
        row |= {"largest_stable_lr": float(np.max(sweep.lrs[sweep.stable]))}
        row |= {"largest_stable_lr_open": bool(sweep.stable[-1]) and len(sweep.lrs) > 1}
    if len(sweep.lrs) == 1 or not np.isfinite(sweep.valid_loss).any():
        return row  # one rate, no complete seed, or nothing that trained
    row |= _estimated("sensitivity", statistics.sensitivity(sweep))
    best = statistics.best_lr(sweep)
    if best is None:
        return row
    means = sweep.valid.mean(axis=1)
    row |= {"edge": best in (0, len(sweep.lrs) - 1), f"valid_{plan.metric.key}": float(means[best])}
    for name, (_, a, b) in plan.metric.widths.items():
        threshold = a + b * float(means[best]) + ROUNDING
        if threshold < CHANCE * sweep.initial.mean():
            row[name], row[f"{name}_open"] = statistics.usable_width(sweep.lrs, means, threshold)
    return row


def _published(plan: Plan, line: Line, curves: dict[str, list[experiments.Point]], ours: Row) -> Row:
    """What others have published of a row; of a VAE the point of the paper's curve at the last epoch."""
    assert line.group.row
    row, epochs = line.group.row, line.group.first.trainer.epochs
    curve = curves.get(row.curve or row.name, []) if plan.metric.key == "loss" else []
    last = [p for p in curve if p.epoch == epochs]
    low, high = row.band or (np.nan, np.nan)
    paper = {"paper": last[0].value, "paper_bar": last[0].bar} if last else {"paper": row.paper}
    judged = row.band and ours["n"] >= ENOUGH
    inside = low - ROUNDING <= ours[plan.metric.test] <= high + ROUNDING if judged else None
    band = {"band_low": low, "band_high": high, "inside": inside}
    return {"paper_bar": np.nan, **paper, "rerun": row.rerun, **band}


def _cost(own: pd.DataFrame) -> Row:
    """Mean seconds a run, by the clock, and on which devices."""
    return {"seconds": own["seconds"].mean(), "device": "; ".join(sorted(own["device"].dropna().unique()))}


def _means(plan: Plan, own: pd.DataFrame) -> Row:
    """Further means. An IWAE bound counts if it is of as many samples and images as the heading says."""
    metric, trainer = plan.metric, plan.groups[0].first.trainer
    if metric.key == "error":
        return {"train_error_percent": 100 * own["train_error"].mean()}
    images = own["iwae_images"].fillna(0)
    same = own["iwae_samples"].eq(trainer.iwae_samples) & images.eq(trainer.iwae_images or 0)
    row = _estimated("iwae_bound", metric.shown("test_nll", own["test_nll"][same]))
    row |= {name: metric.shown(name, own[f"test_{name}"].mean()) for name in ("reconstruction", "kl")}
    return row | {"bits_per_dim": metric.bits * own["test_loss"].mean()}


def unlike(plan: Plan, group: Group) -> str:
    """How a group's learning rates and seeds are unlike those of most, or of each other; or nothing."""
    if plan.experiment:
        return ""
    every = [(tuple(g.lrs), tuple(sorted(g.seeds))) for g in plan.groups]
    usual, own = Counter(every).most_common(1)[0][0], every[plan.groups.index(group)]
    found = [
        f"{word} {_listed(mine)} where most rows have {_listed(most)}"
        for word, mine, most in zip(("learning rates", "seeds"), own, usual, strict=True)
        if mine != most
    ]
    partial = [s for s in group.seeds if not all((lr, s) in group.ids for lr in group.lrs)]
    if partial:
        found.append(f"seeds {_listed(sorted(partial))} lack some of its learning rates and do not count")
    return "; ".join(found)


def _listed(numbers: Any) -> str:
    return ", ".join(f"{one:g}" for one in numbers)


class Table(NamedTuple):
    """A table, and what is to be said below it."""

    columns: list[Column]
    rows: list[Row]
    notes: list[str]

    def cells(self, front: bool = False) -> list[list[str]]:
        """Text of all columns and rows; on the front page of some, and of the rows that are measured."""
        rows = [row for row in self.rows if not (front and row["pending"])]
        return table([column for column in self.columns if column.front or not front], rows or self.rows)


def table_of(plan: Plan, runs: pd.DataFrame) -> Table:
    """The table of a plan, without the columns that can have no number."""
    rows = rows_of(plan, runs)
    optional = {"paper", "rerun", "band_low", *(["bits_per_dim"] * missing(plan.metric.bits))}
    if plan.experiment is None:
        optional |= {"p_vs_none", "sensitivity", *plan.metric.widths}
    empty = {key for key in optional if all(missing(row.get(key)) for row in rows)}
    columns = sweep_columns(plan) if plan.is_sweep else rows_columns(plan)
    notes = [f"*: {group.name}: {text}" for group in plan.groups if (text := unlike(plan, group))]
    if plan.experiment:
        notes += [f"{name}: norm={norm}" for norm, name in plan.experiment.labels.items()]
    if plan.is_sweep and not plan.one_lr and any(not g.first.data.valid_fraction for g in plan.groups):
        notes.append("nothing is held out (data.valid_fraction=0): no learning rate is chosen")
    return Table([column for column in columns if column.key not in empty], rows, notes)
