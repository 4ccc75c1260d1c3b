"""Learning curves: a metric by epoch per row, the published curve under it; the seeds at the end; and what of
all figures a plan has."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from wn import experiments
from wn.report.collect import Row, Rows
from wn.report.figures import DASHES, caption, look, sweep_figure, trajectory_figure
from wn.report.plan import Group, Plan
from wn.report.statistics import ENOUGH
from wn.report.tables import Line, lines_of

TICKS = (0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100)
"""Of an axis of errors in %, on a logarithmic scale; an error of zero is drawn at the first."""

LABELS = {
    "train_error": "training error (%)",
    "valid_error": "validation error (%)",
    "test_loss": "test ELBO (nats)",
    "valid_loss": "validation ELBO (nats)",
    "train_loss": "training ELBO (nats)",
    "test_reconstruction": "reconstruction, test (nats)",
    "test_kl": "KL from the prior, test (nats)",
}

PUBLISHED = ("train_error", "test_loss")
"""What the paper's figures 1 and 3 show by epoch."""

EARLY, REACH = 0.1, 4
"""Axes of ELBOs leave out the first epochs, a share EARLY, where they are far lower, and go down from the
best at most REACH times as far as to the median row's lowest."""


class Curve(NamedTuple):
    """A line's finished runs by epoch: epochs (E,) and values (E, S) as they are shown."""

    line: Line
    epochs: Any
    values: Any


def curves_of(plan: Plan, rows: Rows, name: str) -> list[Curve]:
    """One for each line that has such numbers, over the epochs that all its runs have."""
    found = []
    for line in all_lines(plan, rows):
        own = [
            {row["epoch"]: row["value"] for row in rows.curves[run["run_id"]] if row["name"] == name}
            for run in line.runs(rows.runs)
        ]
        if epochs := sorted(set.intersection(*map(set, own))) if own else []:
            values = [[plan.metric.shown(name, seed[epoch]) for seed in own] for epoch in epochs]
            found.append(Curve(line, np.array(epochs, dtype=float), np.array(values)))
    return found


def all_lines(plan: Plan, rows: Rows) -> list[Line]:
    """The lines of the table; of a sweep, a line at each learning rate."""
    if plan.is_sweep:
        return [Line(group, lr) for group in plan.groups for lr in group.lrs]
    return lines_of(plan, rows.runs)


def by_epoch(plan: Plan, rows: Rows, panels: list[tuple[str, Group | None]], columns: int) -> Figure:
    """A panel per metric and row, or per metric for all rows together."""
    shape = -(-len(panels) // columns), columns
    together = panels[0][1] is None
    known = {name: curves_of(plan, rows, name) for name, _ in panels}
    first = [curve.line.group for curve in known[panels[0][0]]]
    entries, legend_columns = sum(max(1, first.count(g)) for g in plan.groups), 2 if columns == 1 else 3
    under = 0.8 + 0.19 * -(-entries // legend_columns) if together else 0.75  # inches, of words
    width, high = (1.2 + 5.3 * columns, 4.2) if together else (0.9 + 2.6 * columns, 2.5)
    figure = Figure(figsize=(width, high * shape[0] + under))
    total = figure.get_figheight()
    places = {"left": 0.85 / width, "right": 0.985, "top": 1 - 0.3 / total, "bottom": under / total}
    figure.subplots_adjust(**places, wspace=0.24 if together else 0.08, hspace=0.25)
    grid = figure.subplots(*shape, sharey=not together, squeeze=False)
    for i, (axes, (name, only)) in enumerate(zip(grid.flat, panels, strict=False)):
        note = _panel(axes, plan, known[name], name, only)
        axes.set_ylabel(LABELS[name] + note if together or not i % columns else "", fontsize=9)
        if only:
            axes.set_title(only.name, color=look(plan, only)["color"], fontsize=9)
            axes.legend(fontsize=7, frameon=False, loc="upper right")
    for axes in grid.flat[len(panels) :]:
        axes.remove()
    if together:
        style: dict[str, Any] = {
            "bbox_to_anchor": (0.5, 0.25 / total),
            "ncols": legend_columns,
            "frameon": False,
            "fontsize": 8,
        }
        figure.legend(*grid[0, 0].get_legend_handles_labels(), loc="lower center", **style)
    drawn = plan.experiment and plan.experiment.curves and panels[0][0] in PUBLISHED
    theirs = "; broad and pale: the paper's curve" * bool(drawn)
    caption(figure, f"against the epoch; line: mean over the seeds, band: lowest to highest{theirs}")
    return figure


def _panel(axes: Axes, plan: Plan, every: list[Curve], name: str, only: Group | None) -> str:
    """Draw the curves, of one row or of all, on axes that take all of them; what to add to the label."""
    theirs = experiments.published(plan.experiment) if plan.experiment and name in PUBLISHED else {}
    floor = TICKS[0] if name.endswith("error") else -np.inf
    extent = []  # [epoch, value] of all that is drawn in any panel
    for group in plan.groups:
        shown, color = only in (None, group), look(plan, group)["color"]
        points = np.array([p for p in theirs.get(group.name, []) if p.epoch > 0], dtype=float).reshape(-1, 3)
        if len(points):
            extent.append(points[:, :2])
        if len(points) and shown:
            pale: dict[str, Any] = {"color": color, "alpha": 0.3, "linewidth": 4, "elinewidth": 4}
            axes.errorbar(points[:, 0], points[:, 1], np.nan_to_num(points[:, 2]), **pale, zorder=1.5)
        curves = [curve for curve in every if curve.line.group is group]
        for i, (line, epochs, values) in enumerate(curves):
            low, mean, high = (np.maximum(how(values, 1), floor) for how in (np.min, np.mean, np.max))
            extent += [np.stack([epochs, side], 1) for side in (low, high)]
            if shown:
                label = (f"lr {line.lr:g}" if only else line.label) + f", n = {values.shape[1]}"
                axes.plot(epochs, mean, color=color, linestyle=DASHES[i % len(DASHES)], label=label)
                axes.fill_between(epochs, low, high, color=color, alpha=0.15, linewidth=0)
        if shown and not curves:
            axes.plot([], [], color=color, label="pending" if only else f"{group.name} (pending)")
    ends = [curve.epochs[-1] for curve in every] or [line[-1, 0] for line in extent] or [1.0]
    extent = [line[line[:, 0] <= max(ends)] for line in extent]
    axes.set_xlim(0, 1.02 * max(ends))
    axes.xaxis.set_major_locator(MaxNLocator(nbins="auto", integer=True, steps=[1, 2, 5, 10]))
    return _dress_errors(axes, extent) if name.endswith("error") else _dress_elbos(axes, extent)


def _dress_errors(axes: Axes, extent: list[Any]) -> str:
    """An error on a logarithmic scale, between the ticks that enclose all that is drawn."""
    values = np.concatenate([line[:, 1] for line in extent] or [np.array([1.0, 100.0])])
    low, high = (float(np.clip(value, TICKS[0], TICKS[-1])) for value in (values.min(), values.max()))
    axes.set_yscale("log")
    axes.set_ylim(max(t for t in TICKS if t <= low), min(t for t in TICKS if t >= high) * 1.001)
    axes.yaxis.set_major_locator(FixedLocator(list(TICKS)))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    return ""


def _dress_elbos(axes: Axes, extent: list[Any]) -> str:
    """An ELBO on a linear scale of the late epochs."""
    late = [values for line in extent if len(values := line[line[:, 0] >= EARLY * axes.get_xlim()[1], 1])]
    if not late:
        return ""
    lowest, high = [float(values.min()) for values in late], max(float(values.max()) for values in late)
    low = max(min(lowest), high - REACH * (high - float(np.median(lowest))))
    margin = 0.04 * (high - low) or 0.1
    axes.set_ylim(low - margin, high + margin)
    return "\nlower ones are cut off" * (low > min(lowest))


def seeds_figure(plan: Plan, table: list[Row], rows: Rows) -> Figure:
    """A strip per line of the table: every seed's test metric, their mean with its interval, the paper's."""
    metric, key, lines = plan.metric, f"test_{plan.metric.key}", lines_of(plan, rows.runs)
    shown = [(line, row) for line, row in zip(lines, table, strict=True) if line.lr]
    total = 1.15 + 0.34 * len(shown)
    figure = Figure(figsize=(7.5, total))
    axes = figure.add_axes((0.3, 0.85 / total, 0.67, 1 - 0.95 / total))
    for i, (line, row) in enumerate(shown):
        color = look(plan, line.group)["color"]
        values = [metric.shown(key, run[key]) for run in line.runs(rows.runs)]
        axes.plot(values, [i] * len(values), "o", color=color, alpha=0.35, markersize=4)
        half = row[f"{metric.test}_half_width"] if row["n"] >= ENOUGH else 0
        axes.errorbar(row[metric.test], i, xerr=half, fmt="d", color=color, capsize=3)
        for name, shade in (("paper", "#000000"), ("rerun", "#9a9a9a")):
            mark: dict[str, Any] = {"color": shade, "markersize": 13, "markeredgewidth": 2}
            axes.plot([] if row[name] is None else row[name], [] if row[name] is None else i, "|", **mark)
    names = [line.label + " (chosen)" * line.chosen for line, _ in shown]
    axes.set_yticks(range(len(shown)), names, fontsize=8)
    axes.set_ylim(len(shown) - 0.5, -0.5)
    axes.set_xlabel(metric.heading.replace(" %", " (%)"))
    note = f"dots: seeds, diamond: their mean, with its 95% interval from n = {ENOUGH} on"
    theirs = "\nbar: the paper (black), the RMSNorm authors' rerun (grey)"
    caption(figure, note + theirs * any(row["paper"] is not None for row in table))
    return figure


def points_by_epoch(plan: Plan, rows: Rows, names: list[str]) -> list[Row]:
    """A row per line and epoch: the means over the finished ``runs``."""
    found: dict[tuple[str, float], Row] = {}
    for name in names:
        for line, epochs, values in curves_of(plan, rows, name):
            for epoch, mean in zip(epochs, values.mean(1), strict=True):
                row = {"line": line.label, "epoch": int(epoch), "runs": values.shape[1]}
                found.setdefault((line.label, epoch), row)[name] = mean
    return list(found.values())


def points_by_lr(plan: Plan, rows: Rows) -> list[Row]:
    """A row per group and learning rate: ``runs`` (done) of which ``diverged``, median ``initial_loss``.

    Over the seeds that did not diverge: median, lowest and highest final validation ``loss`` (nats) and
    ``error`` (%).
    """

    def over(how: Callable[..., Any], runs: list[Row], name: str, unit: float = 1) -> float:
        values = [unit * run[name] for run in runs if run.get(name) is not None]
        return float(how(values)) if values else np.nan

    found = []
    for line in all_lines(plan, rows):
        group, finished = line.group, line.runs(rows.runs)
        own = [rows.runs[i] for i, c in group.configs.items() if c.optim.lr == line.lr and i in rows.runs]
        point: Row = {
            "line": group.name,
            "norm": group.norm,
            **dict(zip(plan.facets, group.facet, strict=True)),
        }
        point |= {"lr": line.lr, "runs": len(own), "diverged": len(own) - len(finished)}
        point["initial_loss"] = over(np.median, own, "initial_valid_loss")
        for name, unit in (("error", 100), ("loss", 1)):
            for end, how in (("", np.median), ("_min", np.min), ("_max", np.max)):
                point[name + end] = over(how, finished, f"valid_{name}", unit)
        found += [point] * bool(own)
    return found


def draw(plan: Plan, table: list[Row], rows: Rows) -> tuple[dict[str, Figure], dict[str, Any]]:
    """The figures of a plan; and the ``points`` of its main one, and which of their keys are its axes."""
    known, error = {row["name"] for own in rows.curves.values() for row in own}, plan.metric.key == "error"
    if plan.is_sweep and not plan.one_lr:
        points, names = points_by_lr(plan, rows), ["error", "loss"] if error else ["loss"]
        figures = {name: sweep_figure(plan, table, points, name) for name in names}
        x, y = "lr", names[0]
    else:
        curves = [name for name in LABELS if name in known and name.endswith("error") == error]
        main = curves[:2] if error else curves[:1]
        points, x, y = points_by_epoch(plan, rows, curves), "epoch", (curves or [""])[0]
        figures = {"curves": by_epoch(plan, rows, [(name, None) for name in main], len(main))} if main else {}
    if not plan.is_sweep:
        if "train_error" in known and error:
            figures["rows"] = by_epoch(plan, rows, [("train_error", group) for group in plan.groups], 4)
        if "test_kl" in known:
            parts = ("test_reconstruction", "test_kl", "train_loss")
            figures["parts"] = by_epoch(plan, rows, [(name, None) for name in parts], 3)
        figures["seeds"] = seeds_figure(plan, table, rows)
    if "w_norm_mean" in known:
        figures["trajectories"] = trajectory_figure(plan, rows)
    return figures, {"x": x, "y": y, "line": "line", "points": points}
