"""Learning curves: a metric by epoch per row, the published curve under it; and the seeds at the end."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from wn import experiments
from wn.records import DONE
from wn.report.collect import Row, Rows
from wn.report.figures import DASHES, caption, look, sweep_figure, trajectory_figure
from wn.report.plan import Plan
from wn.report.tables import ENOUGH, Line, lines_of

TICKS = (0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100)
"""Of an axis of errors in %, on a logarithmic scale; an error of zero is drawn at the first."""

ERRORS = {"train_error": "training error (%)", "valid_error": "validation error (%)"}
ELBOS = {
    "test_loss": "test ELBO (nats)",
    "valid_loss": "validation ELBO (nats)",
    "train_loss": "training ELBO (nats)",
    "test_reconstruction": "reconstruction, test (nats)",
    "test_kl": "KL from the prior, test (nats)",
}

EARLY, REACH = 0.1, 4
"""The first epochs' share that decides no axis of ELBOs, which are far lower there; such an axis goes down from
the best at most REACH times as far as to the median row's lowest."""


class Curve(NamedTuple):
    """A line's runs by epoch."""

    line: Line
    epochs: Any
    """(E,)"""
    values: Any
    """(E, S), in the units that are shown."""


def curves_of(plan: Plan, rows: Rows, name: str) -> list[Curve]:
    """One for each line of the table with a finished run that has such numbers, over the epochs of all seeds."""
    found = []
    for line in lines_of(plan, rows.runs):
        own = [
            {row["epoch"]: row["value"] for row in rows.curves[run["run_id"]] if row["name"] == name}
            for run in line.runs(rows.runs)
        ]
        epochs = sorted(set.intersection(*map(set, own))) if own else []
        if epochs:
            values = [[plan.metric.shown(name, seed[epoch]) for seed in own] for epoch in epochs]
            found.append(Curve(line, np.array(epochs, dtype=float), np.array(values)))
    return found


def epoch_points(plan: Plan, rows: Rows) -> list[Row]:
    """A row per line and epoch: mean, lowest and highest over the finished ``runs``."""
    found: dict[tuple[str, float], Row] = {}
    for name in ERRORS if plan.metric.key == "error" else ELBOS:
        for curve in curves_of(plan, rows, name):
            label = curve.line.label
            for epoch, values in zip(curve.epochs, curve.values, strict=True):
                row = found.setdefault(
                    (label, epoch), {"line": label, "epoch": int(epoch), "runs": len(values)}
                )
                row |= {name: values.mean(), f"{name}_min": values.min(), f"{name}_max": values.max()}
    return list(found.values())


def by_epoch(plan: Plan, rows: Rows, names: list[str]) -> Figure:
    """A panel per metric, of all rows."""
    labels = ERRORS if plan.metric.key == "error" else ELBOS
    figure = Figure(figsize=(1.2 + 5.3 * len(names), 5.6))
    left = 0.85 / figure.get_figwidth()
    places = {"left": left, "right": 0.98, "top": 0.98, "bottom": 0.31, "wspace": 0.22}
    panels = figure.subplots(1, len(names), squeeze=False, gridspec_kw=places)[0]
    for axes, name in zip(panels, names, strict=True):
        published = name in ("train_error", "test_loss")
        _panel(axes, plan, curves_of(plan, rows, name), name, published=published)
        axes.set_ylabel(labels[name] + axes.get_ylabel())
        axes.set_xlabel("epoch")
    handles, legend = panels[0].get_legend_handles_labels()
    columns = 3 if max(map(len, legend), default=0) < 30 else 2
    figure.legend(
        handles,
        legend,
        loc="lower center",
        bbox_to_anchor=(0.5, 0.05),
        ncols=columns,
        frameon=False,
        fontsize=8,
    )
    theirs = "; broad and pale: the paper's curve" * bool(plan.experiment and plan.experiment.curves)
    caption(figure, "line: mean over the seeds, band: lowest to highest" + theirs)
    return figure


def row_by_row(plan: Plan, rows: Rows, name: str) -> Figure:
    """A panel per row, with all its learning rates over the published curve."""
    columns = min(4, len(plan.groups))
    shape = -(-len(plan.groups) // columns), columns
    figure = Figure(figsize=(0.9 + 2.6 * columns, 0.9 + 2.5 * shape[0]))
    figure.subplots_adjust(
        left=0.08, right=0.98, top=0.93, bottom=0.19 / shape[0] + 0.06, wspace=0.08, hspace=0.25
    )
    grid = figure.subplots(*shape, sharex=True, sharey=True, squeeze=False)
    every = curves_of(plan, rows, name)
    for axes, group in zip(grid.flat, plan.groups, strict=False):
        _panel(axes, plan, every, name, published=True, only=group.name)
        axes.set_title(group.name, color=look(plan, group)["color"], fontsize=9)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize=7, frameon=False, loc="upper right")
    for axes in grid.flat[len(plan.groups) :]:
        axes.remove()
    figure.supylabel(ERRORS[name], fontsize=9)
    caption(
        figure,
        "against the epoch; line: mean over the seeds, band: lowest to highest; broad and pale: the paper's curve",
    )
    return figure


def _panel(
    axes: Axes, plan: Plan, every: list[Curve], name: str, published: bool, only: str | None = None
) -> None:
    """Draw the curves, of one row or of all, and dress the axes for all."""
    theirs = experiments.published(plan.experiment) if published and plan.experiment else {}
    error, drawn = name.endswith("error"), []
    floor = TICKS[0] if error else -np.inf
    for group in plan.groups:
        style = {"color": look(plan, group)["color"]}
        points = np.array([p for p in theirs.get(group.name, []) if p.epoch > 0], dtype=float).reshape(-1, 3)
        curves = [curve for curve in every if curve.line.group is group]
        if len(points):
            drawn.append(points[:, :2])
        for curve in curves:
            drawn += [np.stack([curve.epochs, np.maximum(side, floor)], 1) for side in _sides(curve)]
        if only not in (None, group.name):
            continue
        if len(points):
            bars = np.nan_to_num(points[:, 2])
            axes.errorbar(*points[:, :2].T, bars, **style, alpha=0.3, linewidth=4, elinewidth=4, zorder=1.5)
        if not curves:
            axes.plot([], [], **style, label="pending" if only else f"{group.name} (pending)")
        for curve, dashes in zip(curves, DASHES, strict=False):
            label = (f"lr {curve.line.lr:g}" if only else curve.line.label) + f", n = {curve.values.shape[1]}"
            low, high = (np.maximum(side, floor) for side in _sides(curve))
            line = DASHES[0] if len(curves) == 1 and not plan.facets else dashes
            axes.plot(
                curve.epochs, np.maximum(curve.values.mean(1), floor), **style, linestyle=line, label=label
            )
            axes.fill_between(curve.epochs, low, high, **style, alpha=0.15, linewidth=0)
    (_dress_errors if error else _dress_elbos)(axes, drawn)
    axes.xaxis.set_major_locator(MaxNLocator(nbins="auto", integer=True, steps=[1, 2, 5, 10]))


def _sides(curve: Curve) -> tuple[Any, Any]:
    return curve.values.min(1), curve.values.max(1)


def _dress_errors(axes: Axes, drawn: list[Any]) -> None:
    """An error on a logarithmic scale, between the ticks that enclose all that is drawn."""
    values = np.concatenate([line[:, 1] for line in drawn] or [np.array([1.0, 100.0])])
    axes.set_yscale("log")
    low, high = max(TICKS[0], values.min()), values.max()
    axes.set_ylim(max(t for t in TICKS if t <= low), min((t for t in TICKS if t >= high), default=TICKS[-1]))
    axes.set_xlim(left=0)
    axes.yaxis.set_major_locator(FixedLocator(list(TICKS)))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _dress_elbos(axes: Axes, drawn: list[Any]) -> None:
    """An ELBO on a linear scale of the late epochs."""
    if not drawn:
        return
    last = max(line[-1, 0] for line in drawn)
    axes.set_xlim(0, 1.03 * last)
    late = [line[line[:, 0] >= EARLY * last, 1] for line in drawn]
    lowest, high = [float(v.min()) for v in late if len(v)], max(float(v.max()) for v in late if len(v))
    low = max(min(lowest), high - REACH * (high - float(np.median(lowest))))
    margin = 0.04 * (high - low) or 0.1
    axes.set_ylim(low - margin, high + margin)
    if low > min(lowest):
        axes.set_ylabel("\nlower ones are cut off")


def seeds_figure(plan: Plan, table: list[Row], rows: Rows) -> Figure:
    """A strip per line of the table: every seed's test metric, their mean with its interval, the paper's."""
    metric = plan.metric
    key, test = f"test_{metric.key}", f"test_{metric.column}"
    lines = [(line, row) for line, row in zip(lines_of(plan, rows.runs), table, strict=True) if line.lr]
    figure = Figure(figsize=(7.5, 1.15 + 0.34 * len(lines)))
    height = figure.get_figheight()
    axes = figure.subplots(
        gridspec_kw={"left": 0.3, "right": 0.97, "top": 1 - 0.1 / height, "bottom": 0.85 / height}
    )
    for i, (line, row) in enumerate(lines):
        colour = look(plan, line.group)["color"]
        values = [metric.shown(key, run[key]) for run in line.runs(rows.runs)]
        axes.plot(values, [i] * len(values), "o", color=colour, alpha=0.35, markersize=4)
        half = row[f"{test}_half_width"] if row["n"] >= ENOUGH else 0
        axes.errorbar(row[test], i, xerr=half, fmt="d", color=colour, capsize=3)
        for published, shade in (("paper", "#000000"), ("rerun", "#9a9a9a")):
            if row[published] is not None:
                axes.plot(row[published], i, "|", color=shade, markersize=13, markeredgewidth=2)
    axes.set_yticks(
        range(len(lines)), [line.label + " (chosen)" * line.chosen for line, _ in lines], fontsize=8
    )
    axes.set_ylim(len(lines) - 0.5, -0.5)
    axes.set_xlabel(metric.heading.replace(" %", " (%)"))
    published = "; bar: the paper (black), the RMSNorm authors' rerun (grey)"
    note = f"dots: seeds, diamond: their mean, with its 95% interval from n = {ENOUGH} on"
    caption(figure, note + published * any(row["paper"] is not None for row in table))
    return figure


def sweep_points(plan: Plan, rows: Rows) -> list[Row]:
    """A row per group and learning rate with a run that is done.

    ``runs`` of which ``diverged``; median ``initial_loss`` before training; over the seeds that did not diverge,
    median, lowest and highest final validation ``loss`` (nats) and ``error`` (%).
    """
    found = []
    for line in lines_of(plan, rows.runs):
        done, finished = line.runs(rows.runs, DONE), line.runs(rows.runs)
        own = {"line": line.group.name, "norm": line.group.norm, "lr": line.lr, "runs": len(done)}
        own |= dict(zip(plan.facets, line.group.facet, strict=True)) | {"diverged": len(done) - len(finished)}
        own["initial_loss"] = _over(np.median, done, "initial_valid_loss")
        for name in drawn(plan):
            unit = 100 if name == "error" else 1
            for end, how in (("", np.median), ("_min", np.min), ("_max", np.max)):
                own[name + end] = unit * _over(how, finished, f"valid_{name}")
        found += [own] * bool(done)
    return found


def drawn(plan: Plan) -> tuple[str, ...]:
    """What is drawn against the learning rate, a figure each."""
    return ("error", "loss") if plan.metric.key == "error" else ("loss",)


def _over(how: Callable[[list[float]], Any], runs: list[Row], name: str) -> float:
    values = [run[name] for run in runs if run.get(name) is not None]
    return float(how(values)) if values else np.nan


class Drawing(NamedTuple):
    """The figures of a plan, and the points of its main one with the keys of its axes."""

    figures: dict[str, Figure]
    points: list[Row]
    x: str
    y: str


def draw(plan: Plan, table: list[Row], rows: Rows) -> Drawing:
    """Draw what there is to be seen."""
    known = {row["name"] for own in rows.curves.values() for row in own}
    names = ["train_error", "valid_error"] if plan.metric.key == "error" else ["test_loss", "valid_loss"]
    names = [name for name in names if name in known][: 2 if plan.metric.key == "error" else 1]
    figures: dict[str, Figure] = {}
    if plan.is_sweep and not plan.one_lr:
        points, x, y = sweep_points(plan, rows), "lr", drawn(plan)[0]
        figures = {name: sweep_figure(plan, table, points, name) for name in drawn(plan)}
    else:
        points, x, y = epoch_points(plan, rows), "epoch", names[0] if names else ""
        if names:
            figures["curves"] = by_epoch(plan, rows, names)
    if not plan.is_sweep:
        if "train_error" in names:
            figures["rows"] = row_by_row(plan, rows, "train_error")
        if plan.metric.key == "loss" and "test_kl" in known:
            figures["parts"] = by_epoch(plan, rows, ["test_reconstruction", "test_kl", "train_loss"])
        figures["seeds"] = seeds_figure(plan, table, rows)
    if "w_norm_mean" in known:
        figures["trajectories"] = trajectory_figure(plan, rows)
    return Drawing(figures, points, x, y)
