"""Rows -> tables: a sweep has a row per norm (and facets), a list of rows a row per learning rate of each.

Numbers of the metric are in the units that are shown (see :meth:`Metric.shown`). Every learning rate is
decided before a test number is read: the experiment's file declares it, or validation images chose it.
"""

from __future__ import annotations

from collections import Counter
from typing import Any, NamedTuple

import numpy as np

from wn import experiments
from wn.report import statistics
from wn.report.collect import Row
from wn.report.columns import Column, at_least, interval, missing, number, probability, table
from wn.report.plan import Group, Plan
from wn.report.statistics import ROUNDING, Sweep

Runs = dict[str, Row]

BASELINE = "none"
"""The norm that the rows of a sweep are tested against."""

BASELINES = {"bn": "batch_norm", "normal": "none_init"}
"""Those that a list of rows is: ``p_vs_bn``, ``p_vs_normal`` (the paper's ``normal``)."""

ENOUGH = 3
"""Seeds that it takes to say whether a mean is in its band."""


def sweep_of(group: Group, runs: Runs, metric_key: str) -> Sweep:
    """A group's runs as arrays, over the seeds that are complete."""
    lrs = group.lrs
    seeds = [seed for seed in group.seeds if all(group.ids.get((lr, seed)) in runs for lr in lrs)]

    def array(column: str) -> statistics.Array:
        cells = [[_number(runs[group.ids[lr, seed]].get(column)) for seed in seeds] for lr in lrs]
        return np.array(cells, dtype=float).reshape(len(lrs), len(seeds))

    flags = [[runs[group.ids[lr, seed]]["status"] == "diverged" for seed in seeds] for lr in lrs]
    diverged = np.array(flags, dtype=bool).reshape(len(lrs), len(seeds))
    worst = np.where(diverged, np.inf, 0.0)
    valid, loss = (np.nan_to_num(array(f"valid_{k}"), nan=np.inf) + worst for k in (metric_key, "loss"))
    initial, test = array("initial_valid_loss"), array(f"test_{metric_key}")
    return Sweep(np.array(lrs), tuple(seeds), diverged, valid, loss, initial, test)


def best_of(sweep: Sweep) -> int | None:
    """The chosen learning rate; where there is but one, and it is stable, that needs no validation images."""
    if len(sweep.lrs) == 1 and sweep.seeds and sweep.stable[0]:
        return 0
    return statistics.best_lr(sweep)


# Sweeps --------------------------------------------------------------------------------------------------


def sweep_table(plan: Plan, runs: Runs) -> list[Row]:
    """A row per group. ``runs`` (done) of ``planned``, ``diverged`` of these; the rest over ``n`` seeds."""
    key = plan.metric.key
    sweeps = {group.name: sweep_of(group, runs, key) for group in plan.groups}
    tested = {group.name: _tested(sweeps[group.name]) for group in plan.groups}
    normal = {group.facet: tested[group.name] for group in plan.groups if group.norm == BASELINE}
    odd = {group.name for group in plan.groups if plan.experiment is None and _unlike(plan, group)}
    rows = []
    for group in plan.groups:
        sweep = sweeps[group.name]
        own = [runs[run_id] for run_id in group.configs if run_id in runs]
        row: Row = {**dict(zip(plan.facets, group.facet, strict=True)), "norm": group.norm}
        row |= {"runs": len(own), "planned": len(group.configs), "n": len(sweep.seeds)}
        row |= _sweep_row(plan, sweep)
        row["diverged"] = sum(one["status"] == "diverged" for one in own)
        baseline = {} if group.norm == BASELINE else normal.get(group.facet, {})
        row["p_vs_none"] = statistics.paired_p(tested[group.name], baseline)
        rows.append(row | {"name": group.name, "odd": group.name in odd, "pending": not sweep.seeds})
    return rows


def _sweep_row(plan: Plan, sweep: Sweep) -> Row:
    """What the table says of a row by itself; nothing where some seed diverged at every learning rate."""
    metric, row = plan.metric, dict[str, Any]()
    if sweep.seeds and sweep.stable.any():
        row["largest_stable_lr"] = float(np.max(sweep.lrs[sweep.stable]))
        row["largest_stable_lr_open"] = bool(sweep.stable[-1]) and len(sweep.lrs) > 1
    best = best_of(sweep)
    if best is None:
        return row
    means = sweep.valid.mean(axis=1)
    test = statistics.estimate(np.array([metric.shown(f"test_{metric.key}", x) for x in sweep.test[best]]))
    row |= {"best_lr": float(sweep.lrs[best]), "edge": len(sweep.lrs) > 1 and best in (0, len(sweep.lrs) - 1)}
    row |= {f"valid_{metric.column}": metric.shown(f"valid_{metric.key}", float(means[best]))}
    row |= {f"test_{metric.column}": test.mean, f"test_{metric.column}_half_width": test.half_width}
    if len(sweep.lrs) > 1:
        cost = statistics.estimate(statistics.sensitivity(sweep))
        row |= {"sensitivity": cost.mean, "sensitivity_half_width": cost.half_width}
        for name, (_, a, b) in metric.widths.items():
            threshold = a + b * float(means[best]) + ROUNDING
            row[name], row[f"{name}_open"] = statistics.usable_width(sweep.lrs, means, threshold)
    return row


def _tested(sweep: Sweep) -> dict[int, float]:
    """The test metric of every seed at the best learning rate."""
    best = best_of(sweep)
    return {} if best is None else dict(zip(sweep.seeds, sweep.test[best].tolist(), strict=True))


def _shape(group: Group) -> tuple[tuple[float, ...], tuple[int, ...]]:
    return tuple(group.lrs), tuple(sorted(group.seeds))


def _unlike(plan: Plan, group: Group) -> str:
    """How a group's learning rates and seeds are unlike those of most, or unlike each other; or nothing."""
    lrs, seeds = (Counter(_shape(g)[i] for g in plan.groups).most_common(1)[0][0] for i in (0, 1))
    own_lrs, own_seeds = _shape(group)
    found = []
    if own_lrs != lrs:
        found.append(f"learning rates {_listed(own_lrs)} where most rows have {_listed(lrs)}")
    if own_seeds != seeds:
        found.append(f"seeds {_listed(own_seeds)} where most rows have {_listed(seeds)}")
    partial = [s for s in own_seeds if not all((lr, s) in group.ids for lr in own_lrs)]
    if partial:
        found.append(
            f"no run at some of its learning rates with seeds {_listed(partial)}, which do not count"
        )
    return "; ".join(found)


def _listed(numbers: Any) -> str:
    return ", ".join(f"{one:g}" for one in numbers)


def sweep_columns(plan: Plan) -> list[Column]:
    """What is shown of :func:`sweep_table`."""
    metric = plan.metric
    test = f"test_{metric.column}"

    def best(row: Row) -> str:
        return number("best_lr", "g")(row) + " (edge)" * bool(row.get("edge"))

    return [
        *(Column(facet, facet, known=True, front=True) for facet in plan.facets),
        Column("norm", "norm", lambda row: row["norm"] + " *" * row["odd"], known=True, front=True),
        Column("best_lr", "best lr", best, front=True),
        Column(test, metric.heading, interval(test, 2), front=True),
        Column("n", "n", known=True, front=True),
        Column("p_vs_none", "p vs none", probability("p_vs_none")),
        Column("sensitivity", "S (nats)", interval("sensitivity", 3), front=True),
        *(Column(key, heading, at_least(key, ".2f")) for key, (heading, _, _) in metric.widths.items()),
        Column("largest_stable_lr", "largest stable lr", at_least("largest_stable_lr", "g"), front=True),
        Column("diverged", "diverged", lambda row: f"{row['diverged']}/{row['runs']}", known=True),
    ]


# Lists of rows -------------------------------------------------------------------------------------------


class Line(NamedTuple):
    """A line of the table: a row at one learning rate."""

    group: Group
    lr: float | None
    """None: to be chosen."""
    declared: bool
    """Whether the experiment's file names the learning rate."""
    chosen: bool
    """Whether a validation split chose it."""

    @property
    def label(self) -> str:
        return self.group.name if self.lr is None else f"{self.group.name}, lr {self.lr:g}"

    def runs(self, runs: Runs, status: tuple[str, ...] = ("finished",)) -> list[Row]:
        """The line's runs."""
        ids = [run_id for run_id, config in self.group.configs.items() if config.optim.lr == self.lr]
        return [runs[i] for i in ids if i in runs and runs[i]["status"] in status]


def lines_of(plan: Plan, runs: Runs) -> list[Line]:
    """The declared learning rates of each row, then a chosen one that is another.

    Where the experiment itself holds images out, a row is shown at the learning rate that they choose alone.
    """
    experiment, lines = plan.experiment, []
    if experiment is None or not experiment.rows:  # every learning rate of an ad-hoc sweep or grid
        return [Line(group, lr, True, False) for group in plan.groups for lr in group.lrs]
    for group, row in zip(plan.groups, experiment.rows, strict=True):
        chosen = row.chosen
        if experiment.chosen_by == experiment.name:
            sweep = sweep_of(group, runs, plan.metric.key)
            best = best_of(sweep)
            chosen = None if best is None else float(sweep.lrs[best])
            declared = []
        else:
            declared = row.lrs
        lines += [Line(group, lr, True, lr == chosen) for lr in declared]
        if experiment.chosen_by and chosen not in declared:
            lines.append(Line(group, chosen, False, True))
    return lines


def rows_table(plan: Plan, runs: Runs) -> list[Row]:
    """A row per :class:`Line`; of the last epoch, over the ``n`` finished runs, in the units that are shown."""
    metric, experiment = plan.metric, plan.experiment
    assert experiment is not None
    lines = lines_of(plan, runs)
    test, key = f"test_{metric.column}", f"test_{metric.key}"
    tested = [
        {one["seed"]: metric.shown(key, _number(one[key])) for one in line.runs(runs)} for line in lines
    ]
    curves, table = experiments.published(experiment), []
    for line, own in zip(lines, tested, strict=True):
        values = np.array(list(own.values()))
        mean = statistics.estimate(values)
        row = _published(plan, line, curves) | _counts(plan, line, runs)
        row |= {"n": mean.n, test: mean.mean, f"{test}_half_width": mean.half_width}
        row |= {
            f"{test}_sd": float(values.std(ddof=1)) if mean.n > 1 else np.nan,
            **_more(plan, line.runs(runs)),
        }
        for name, norm in BASELINES.items():
            there = _counterpart(line, lines, norm)
            theirs = {} if there is None else tested[there]
            row[f"p_vs_{name}"] = statistics.paired_p(own, theirs)
            above = [own[seed] - theirs[seed] for seed in own if seed in theirs]
            row[f"above_{name}"] = float(np.mean(above)) if above else np.nan
        row["pending"] = not mean.n and not (row["planned"] and row["runs"] == row["planned"])
        table.append(row)
    return table


def _published(plan: Plan, line: Line, curves: dict[str, list[experiments.Point]]) -> Row:
    """What the file says of a line: of a VAE the point of the paper's curve at the last epoch, if any."""
    row = line.group.row
    assert row is not None
    last = [p for p in curves.get(row.name, []) if p.epoch == line.group.first.trainer.epochs]
    paper = last[0].value if last and plan.metric.key == "loss" else row.paper
    low, high = row.band or (np.nan, np.nan)
    facts = {"row": row.name, "norm": line.group.norm, "lr": line.lr, "declared": line.declared}
    facts |= {"chosen": line.chosen, "paper": paper, "paper_bar": last[0].bar if last else np.nan}
    return facts | {"rerun": row.rerun, "band_low": low, "band_high": high}


def _counts(plan: Plan, line: Line, runs: Runs) -> Row:
    """The runs that a line rests on: at its learning rate, or at all where the experiment itself chooses it."""
    mine = [
        run_id
        for run_id, config in line.group.configs.items()
        if not line.declared
        and plan.experiment
        and plan.experiment.chosen_by == plan.name
        or config.optim.lr == line.lr
    ]
    done = [runs[run_id]["status"] for run_id in mine if run_id in runs]
    return {"runs": len(done), "planned": len(mine), "diverged": done.count("diverged")}


def _more(plan: Plan, own: list[Row]) -> Row:
    """Further means. An IWAE bound counts if it was taken with the samples and images that the heading says."""
    metric = plan.metric

    def mean(name: str) -> float:
        values = [_number(one.get(name)) for one in own]
        return metric.shown(name, float(np.mean(values))) if values else np.nan

    if metric.key == "error":
        return {"train_error_percent": mean("train_error")}
    trainer = plan.groups[0].first.trainer
    said = trainer.iwae_samples, trainer.iwae_images
    same = [one for one in own if (one.get("iwae_samples"), one.get("iwae_images")) == said]
    nll = [metric.shown("test_nll", _number(one.get("test_nll"))) for one in same]
    iwae = statistics.estimate(np.array(nll))
    return {
        "iwae_bound": iwae.mean,
        "iwae_bound_half_width": iwae.half_width,
        "reconstruction": mean("test_reconstruction"),
        "kl": mean("test_kl"),
        "bits_per_dim": metric.bits * float(np.mean([_number(r["test_loss"]) for r in own]))
        if own
        else np.nan,
    }


def _counterpart(line: Line, lines: list[Line], norm: str) -> int | None:
    """Place of the first line of another norm at its learning rate of the same kind, declared or chosen."""
    for i, other in enumerate(lines):
        if other.group.norm == norm and (other.declared if line.declared else other.chosen):
            return None if other.group is line.group else i
    return None


def rows_columns(plan: Plan, table: list[Row]) -> list[Column]:
    """What is shown of :func:`rows_table`; a published column that is empty goes."""
    metric = plan.metric
    digits, test, trainer = metric.digits, f"test_{metric.column}", plan.groups[0].first.trainer
    images = f", {trainer.iwae_images} images" if trainer.iwae_images else ""

    def lr(row: Row) -> str:
        if missing(row["lr"]):
            return "to be chosen" if row["pending"] else "–"
        return f"{row['lr']:g}" + " (chosen)" * row["chosen"]

    def band(row: Row) -> str:
        low, high, mean = row["band_low"], row["band_high"], row[test]
        verdict = f": {'in' if low <= mean <= high else 'out'}" if row["n"] >= ENOUGH else ""
        return "–" if missing(low) else f"{low:.1f} to {high:.1f}{verdict}"

    def spread(row: Row) -> str:
        own = "n/a" if row["n"] == 1 else number(f"{test}_sd", f".{digits + 1}f")(row)
        return own if missing(row["paper_bar"]) else f"{own} ({row['paper_bar']:.{digits + 1}f})"

    def progress(row: Row) -> str:
        if not row["runs"]:
            return "pending"
        done = "done" if row["runs"] == row["planned"] else f"{row['runs']} of {row['planned']} done"
        return done + f", {row['diverged']} diverged" * bool(row["diverged"])

    error = metric.key == "error"
    paper = [
        Column(
            "paper", "paper %" if error else "paper", number("paper", f".{digits}f"), known=True, front=True
        ),
        Column("rerun", "RMSNorm authors' rerun %", number("rerun", ".2f"), known=True, front=True),
    ]
    mean = Column(test, metric.heading, interval(test, digits), front=True)
    columns = [Column("row", "row", known=True, front=True), Column("lr", "lr", lr, known=True, front=True)]
    columns += [column for column in paper if not all(missing(row[column.key]) for row in table)]
    columns += [mean, Column("n", "n", known=True, front=True)]
    if error:
        if not all(missing(row["band_low"]) for row in table):
            columns.append(Column("band_low", "expected %", band, known=True))
        columns += [
            Column("train_error_percent", "training error %", number("train_error_percent", ".2f")),
            Column("p_vs_bn", "p vs BN", probability("p_vs_bn")),
            Column("p_vs_normal", "p vs normal", probability("p_vs_normal")),
        ]
    else:
        bars = " (paper's bar)" * any(not missing(row["paper_bar"]) for row in table)
        columns += [
            Column("sd", "sd" + bars, spread, known=bool(bars)),
            Column("above_normal", "above normal", number("above_normal", f"+.{digits}f"), front=True),
            Column("p_vs_normal", "p", probability("p_vs_normal")),
            Column("iwae", f"IWAE bound, k = {trainer.iwae_samples}{images}", interval("iwae_bound", digits)),
            Column("reconstruction", "reconstruction", number("reconstruction", f".{digits}f")),
            Column("kl", "KL", number("kl", f".{digits}f")),
        ]
        if not missing(metric.bits):
            columns.append(Column("bits_per_dim", "bits/dim", number("bits_per_dim", ".3f")))
    return [*columns, Column("status", "status", progress, known=True, front=True)]


def _number(value: Any) -> float:
    return np.nan if value is None else float(value)


class Table(NamedTuple):
    """A table with what is to be said below it."""

    columns: list[Column]
    rows: list[Row]
    notes: list[str]

    def keys(self) -> list[str]:
        """Of ``table.csv``."""
        hidden = ("name", "odd", "edge", "pending")
        return [key for key in dict.fromkeys(key for row in self.rows for key in row) if key not in hidden]

    def cells(self, front: bool = False) -> list[list[str]]:
        return table([column for column in self.columns if column.front or not front], self.rows)


def table_of(plan: Plan, runs: Runs) -> Table:
    """The table of a plan."""
    if not plan.is_sweep:
        rows = rows_table(plan, runs)
        return Table(rows_columns(plan, rows), rows, [])
    rows, notes = sweep_table(plan, runs), []
    if plan.experiment is None:
        notes = [f"* {group.name}: {odd}" for group in plan.groups if (odd := _unlike(plan, group))]
    if not plan.one_lr and any(g.first.data.valid_fraction == 0 for g in plan.groups):
        notes.append("nothing is held out (data.valid_fraction=0): no learning rate is chosen")
    return Table(sweep_columns(plan), rows, notes)
