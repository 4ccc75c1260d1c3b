"""Rows -> tables: a sweep has a line per norm (and facets), a list of rows a line per learning rate of each.

Numbers of the metric are as :meth:`Metric.shown` has them. Every learning rate is decided before a test
number is read: the experiment's file declares it, or validation images chose it.
"""

from __future__ import annotations

from collections import Counter
from typing import Any, NamedTuple

import numpy as np

from wn import experiments
from wn.report import statistics
from wn.report.collect import Row
from wn.report.columns import Column, missing, rows_columns, sweep_columns, table
from wn.report.plan import Group, Plan
from wn.report.statistics import ROUNDING, Sweep

Runs = dict[str, Row]

BASELINES = {"bn": "batch_norm", "normal": "none_init", "none": "none"}
"""Norms that the others are tested against: in a list of rows ``p_vs_bn`` and ``p_vs_normal`` (the paper's
``normal``), in a sweep ``p_vs_none``."""


def float_of(value: Any) -> float:
    return np.nan if value is None else float(value)


def sweep_of(group: Group, runs: Runs, key: str) -> Sweep:
    """A group's runs as arrays, over the seeds that are complete; ``key`` is the metric's."""
    seeds = [seed for seed in group.seeds if all(group.ids.get((lr, seed)) in runs for lr in group.lrs)]
    cells = [[runs[group.ids[lr, seed]] for seed in seeds] for lr in group.lrs]

    def array(name: str) -> statistics.Array:
        return np.array([[float_of(run.get(name)) for run in row] for row in cells]).reshape(len(cells), -1)

    diverged = np.array([[run["status"] == "diverged" for run in row] for row in cells], dtype=bool)
    diverged = diverged.reshape(len(cells), -1)
    worst = np.where(diverged, np.inf, 0.0)
    valid, loss = (np.nan_to_num(array(f"valid_{name}"), nan=np.inf) + worst for name in (key, "loss"))
    initial, test = array("initial_valid_loss"), array(f"test_{key}")
    return Sweep(np.array(group.lrs), tuple(seeds), diverged, valid, loss, initial, test)


def best_of(sweep: Sweep) -> int | None:
    """Index of the chosen learning rate; the only one, if it is stable, needs no validation images."""
    if len(sweep.lrs) == 1 and sweep.seeds and sweep.stable[0]:
        return 0
    return statistics.best_lr(sweep)


class Line(NamedTuple):
    """A line of the table: a group at one learning rate."""

    group: Group
    lr: float | None
    """None: to be chosen."""
    declared: bool = False
    """Whether the experiment's file names the learning rate."""
    chosen: bool = False
    """Whether a validation split chose it."""
    sweep: Sweep | None = None
    """All learning rates, where these runs themselves choose."""

    @property
    def label(self) -> str:
        return self.group.name if self.lr is None else f"{self.group.name}, lr {self.lr:g}"

    def runs(self, runs: Runs) -> list[Row]:
        """The line's finished runs; of a sweep, of the seeds that are complete."""
        seeds = self.group.seeds if self.sweep is None else self.sweep.seeds
        own = [runs.get(self.group.ids.get((self.lr or 0.0, seed), "")) for seed in seeds]
        return [run for run in own if run and run["status"] == "finished"]


def lines_of(plan: Plan, runs: Runs) -> list[Line]:
    """The lines of the table; of a list of rows the declared learning rates, then a chosen other one."""
    lines = []
    for group in plan.groups:
        if plan.chooses_itself:
            sweep = sweep_of(group, runs, plan.metric.key)
            best = best_of(sweep)
            lines.append(Line(group, None if best is None else group.lrs[best], chosen=True, sweep=sweep))
            continue
        assert group.row is not None
        chosen = group.row.chosen
        lines += [Line(group, lr, True, lr == chosen) for lr in group.row.lrs]
        if plan.experiment and plan.experiment.chosen_by and chosen not in group.row.lrs:
            lines.append(Line(group, chosen, chosen=True))
    return lines


def rows_of(plan: Plan, runs: Runs) -> list[Row]:
    """A row per line, of the last epoch.

    ``runs`` (done) of ``planned``, ``diverged`` of these: the runs that the line rests on. Over ``n`` seeds:
    the test metric, the half-width of its interval and its sd; p and mean difference to :data:`BASELINES`.
    Then what is published, or what a sweep says of all learning rates.
    """
    metric, rows = plan.metric, []
    lines = lines_of(plan, runs)
    key, test = f"test_{metric.key}", metric.test
    finished = [line.runs(runs) for line in lines]
    tested = [{run["seed"]: metric.shown(key, float_of(run[key])) for run in own} for own in finished]
    curves = experiments.published(plan.experiment) if plan.experiment else {}
    for line, own in zip(lines, tested, strict=True):
        group = line.group
        mine = [i for i, c in group.configs.items() if line.sweep is not None or c.optim.lr == line.lr]
        done = [runs[i]["status"] for i in mine if i in runs]
        names = dict(zip(plan.facets, group.facet, strict=True)) if plan.is_sweep else {"row": group.name}
        row: Row = {**names, "norm": group.norm, "lr": line.lr, "chosen": line.chosen}
        row |= {"runs": len(done), "planned": len(mine), "diverged": done.count("diverged")}
        values = np.array(list(own.values()))
        mean = statistics.estimate(values)
        row |= {"n": len(line.sweep.seeds) if line.sweep and plan.is_sweep else mean.n, test: mean.mean}
        row[f"{test}_half_width"] = mean.half_width
        row[f"{test}_sd"] = float(values.std(ddof=1)) if mean.n > 1 else np.nan
        for name, norm in BASELINES.items() if plan.is_sweep else list(BASELINES.items())[:2]:
            theirs = _baseline(line, lines, tested, norm)
            above = [own[seed] - theirs[seed] for seed in own if seed in theirs]
            row[f"p_vs_{name}"] = statistics.paired_p(own, theirs)
            row[f"above_{name}"] = float(np.mean(above)) if above else np.nan
        row["pending"] = not row["n"] and not (row["planned"] and row["runs"] == row["planned"])
        row |= _of_sweep(plan, line.sweep) if plan.is_sweep and line.sweep else _published(plan, line, curves)
        row["mark"] = " *" * bool(plan.is_sweep and unlike(plan, group))
        rows.append(row | _means(plan, line.runs(runs)))
    return rows


def _baseline(line: Line, lines: list[Line], tested: list[dict[int, float]], norm: str) -> dict[int, float]:
    """Test numbers of the first line of another norm, among the same facets and kind of learning rate."""
    for other, numbers in zip(lines, tested, strict=True):
        same_kind = other.declared if line.declared else other.chosen
        if other.group.norm == norm and same_kind and other.group.facet == line.group.facet:
            return {} if other.group is line.group else numbers
    return {}


def _of_sweep(plan: Plan, sweep: Sweep) -> Row:
    """What a sweep says of a group; little where some seed diverged at every learning rate."""
    row: Row = {}
    if sweep.seeds and sweep.stable.any():
        row |= {"largest_stable_lr": float(np.max(sweep.lrs[sweep.stable]))}
        row |= {"largest_stable_lr_open": bool(sweep.stable[-1]) and len(sweep.lrs) > 1}
    best, means = best_of(sweep), sweep.valid.mean(axis=1) if sweep.seeds else sweep.lrs
    if best is None or len(sweep.lrs) == 1:
        return row
    cost = statistics.estimate(statistics.sensitivity(sweep))
    row |= {"edge": best in (0, len(sweep.lrs) - 1), f"valid_{plan.metric.key}": float(means[best])}
    row |= {"sensitivity": cost.mean, "sensitivity_half_width": cost.half_width}
    for name, (_, a, b) in plan.metric.widths.items():
        threshold = a + b * float(means[best]) + ROUNDING
        row[name], row[f"{name}_open"] = statistics.usable_width(sweep.lrs, means, threshold)
    return row


def _published(plan: Plan, line: Line, curves: dict[str, list[experiments.Point]]) -> Row:
    """What others have published of a row; of a VAE the point of the paper's curve at the last epoch."""
    assert line.group.row
    row, epochs = line.group.row, line.group.first.trainer.epochs
    last = [p for p in curves.get(row.name, []) if p.epoch == epochs and plan.metric.key == "loss"]
    low, high = row.band or (np.nan, np.nan)
    paper = {"paper": last[0].value, "paper_bar": last[0].bar} if last else {"paper": row.paper}
    return {"paper_bar": np.nan, **paper, "rerun": row.rerun, "band_low": low, "band_high": high}


def _means(plan: Plan, own: list[Row]) -> Row:
    """Further means. An IWAE bound counts if it is of as many samples and images as the heading says."""
    metric, trainer = plan.metric, plan.groups[0].first.trainer

    def mean(name: str, runs: list[Row]) -> statistics.Estimate:
        return statistics.estimate(np.array([metric.shown(name, float_of(run.get(name))) for run in runs]))

    if metric.key == "error":
        return {"train_error_percent": mean("train_error", own).mean}
    said = trainer.iwae_samples, trainer.iwae_images
    iwae = mean("test_nll", [run for run in own if (run.get("iwae_samples"), run.get("iwae_images")) == said])
    row: Row = {"iwae_bound": iwae.mean, "iwae_bound_half_width": iwae.half_width}
    row |= {name: mean(f"test_{name}", own).mean for name in ("reconstruction", "kl")}
    return row | {"bits_per_dim": metric.bits * (metric.shift - mean("test_loss", own).mean)}


def unlike(plan: Plan, group: Group) -> str:
    """How a group's learning rates and seeds are unlike those of most, or of each other; or nothing."""
    if plan.experiment:
        return ""
    found = []
    for word, of in (("learning rates", lambda g: g.lrs), ("seeds", lambda g: sorted(g.seeds))):
        most = Counter(tuple(of(g)) for g in plan.groups).most_common(1)[0][0]
        if tuple(of(group)) != most:
            found.append(f"{word} {_listed(of(group))} where most rows have {_listed(most)}")
    partial = [s for s in group.seeds if not all((lr, s) in group.ids for lr in group.lrs)]
    if partial:
        found.append(f"seeds {_listed(sorted(partial))} lack some of its learning rates and do not count")
    return "; ".join(found)


def _listed(numbers: Any) -> str:
    return ", ".join(f"{one:g}" for one in numbers)


HIDDEN = ("pending", "mark", "edge")


class Table(NamedTuple):
    """A table, and what is to be said below it."""

    columns: list[Column]
    rows: list[Row]
    notes: list[str]

    def keys(self) -> list[str]:
        return [key for key in dict.fromkeys(k for row in self.rows for k in row) if key not in HIDDEN]

    def cells(self, front: bool = False) -> list[list[str]]:
        return table([column for column in self.columns if column.front or not front], self.rows)


def table_of(plan: Plan, runs: Runs) -> Table:
    """The table of a plan, without the columns that can have no number."""
    rows, columns = rows_of(plan, runs), sweep_columns(plan) if plan.is_sweep else rows_columns(plan)
    optional = {"paper", "rerun", "band_low", "bits_per_dim"}
    if plan.experiment is None:
        optional |= {"p_vs_none", "sensitivity", *plan.metric.widths}
    empty = {key for key in optional if all(missing(row.get(key)) for row in rows)}
    if "bits_per_dim" in empty and plan.metric.bits == plan.metric.bits:
        empty.remove("bits_per_dim")
    notes = [f"*: {group.name}: {text}" for group in plan.groups if (text := unlike(plan, group))]
    if plan.is_sweep and not plan.one_lr and any(not g.first.data.valid_fraction for g in plan.groups):
        notes.append("nothing is held out (data.valid_fraction=0): no learning rate is chosen")
    return Table([column for column in columns if column.key not in empty], rows, notes)
