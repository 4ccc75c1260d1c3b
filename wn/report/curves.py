"""Learning curves: a metric by epoch, per row, over the published curve; and which figures a plan has."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from wn.report.collect import Rows
from wn.report.columns import Row
from wn.report.figures import DASHES, look, sweep_figure, tick_errors, trajectory_figure
from wn.report.plan import Plan
from wn.report.tables import Line, lines_of

TICKS = (0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 30, 50, 70, 100)
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

EARLY = 0.1
"""The share of epochs that axes of ELBOs leave out: the first, where bounds are far lower."""


def curves_of(plan: Plan, rows: Rows, name: str) -> list[tuple[Line, Any, Any]]:
    """Common epochs (E,) and values (E, S), as they are shown, of each line's finished runs."""
    found, curves = [], rows.curves[rows.curves["name"] == name]
    each = [Line(group, lr) for group in plan.groups for lr in group.lrs]
    lines = each if plan.is_sweep else lines_of(plan, rows.runs)
    for line in lines:
        ids = line.runs(rows.runs).index
        own = curves[curves["run_id"].isin(ids)].pivot(index="epoch", columns="run_id", values="value")
        values = own.reindex(columns=ids).dropna()
        if len(values):
            found.append((line, values.index.to_numpy(float), plan.metric.shown(name, values.to_numpy())))
    return found


def by_epoch(plan: Plan, rows: Rows, names: list[str]) -> Figure:
    """A panel per metric, of all rows; their legend below."""
    figure = Figure(figsize=(1.2 + 5.3 * len(names), 5 + 0.1 * len(plan.groups)), layout="constrained")
    panels = figure.subplots(1, len(names), squeeze=False)[0]
    for axes, name in zip(panels, names, strict=True):
        _panel(axes, plan, curves_of(plan, rows, name), name)
        axes.set_ylabel(LABELS[name])
    drawn = plan.experiment and plan.experiment.curves and names[0] in PUBLISHED
    theirs = ",\nbroad and pale: the paper's curve" * bool(drawn)
    words = f"against the epoch; line: mean over the seeds, band: lowest to highest{theirs}"
    style: Any = {"ncols": min(3, 1 + len(names)), "frameon": False, "fontsize": 8, "title_fontsize": 7.5}
    entries = panels[0].get_legend_handles_labels()
    figure.legend(*entries, loc="outside lower center", title=words, **style)
    return figure


def _panel(axes: Axes, plan: Plan, every: list[tuple[Line, Any, Any]], name: str) -> None:
    """Draw the curves of all rows, on axes that take them."""
    theirs = plan.published if name in PUBLISHED else {}
    floor = TICKS[0] if name.endswith("error") else -np.inf
    extent = []  # [epoch, value] of all that is drawn
    several = len({lr for group in plan.groups for lr in group.lrs}) > 1
    for group in plan.groups:
        color = look(plan, group)["color"]
        points = np.array([p for p in theirs.get(group.name, []) if p.epoch > 0], dtype=float).reshape(-1, 3)
        if len(points):
            extent.append(points[:, :2])
            pale: Any = {"color": color, "alpha": 0.3, "linewidth": 4, "elinewidth": 4, "zorder": 1.5}
            axes.errorbar(points[:, 0], points[:, 1], np.nan_to_num(points[:, 2]), **pale)
        curves = [curve for curve in every if curve[0].group is group]
        for i, (line, epochs, values) in enumerate(curves):
            low, mean, high = (np.maximum(how(values, 1), floor) for how in (np.min, np.mean, np.max))
            extent += [np.stack([epochs, side], 1) for side in (low, high)]
            label = f"{line.label if several else group.name}, n = {values.shape[1]}"
            axes.plot(epochs, mean, color=color, linestyle=DASHES[i % len(DASHES)], label=label)
            axes.fill_between(epochs, low, high, color=color, alpha=0.15, linewidth=0)
        if not curves:
            axes.plot([], [], color=color, label=f"{group.name} (pending)")
    last = max([epochs[-1] for _, epochs, _ in every] or [line[-1, 0] for line in extent] or [1.0])
    axes.set_xlim(0, 1.02 * last)
    axes.xaxis.set_major_locator(MaxNLocator(nbins="auto", integer=True, steps=[1, 2, 5, 10]))
    limits = extent_by_epoch(name, np.concatenate([np.empty((0, 2)), *extent]), last)
    if limits and name.endswith("error"):
        axes.set_yscale("log")
        axes.set_ylim(*limits)
        tick_errors(axes, TICKS)
    elif limits:
        axes.set_ylim(*limits)


def extent_by_epoch(name: str, shown: Any, last: float) -> tuple[float, float] | None:
    """Limits of an axis by points [epoch, value] up to the last epoch; None where there is none."""
    is_error = name.endswith("error")
    shown = shown[(shown[:, 0] >= (0 if is_error else EARLY * last)) & (shown[:, 0] <= last), 1]
    if not len(shown):
        return None
    low, high = float(shown.min()), float(shown.max())
    if is_error:
        low, high = np.clip([low, high], TICKS[0], TICKS[-1])
        return max(t for t in TICKS if t <= low), min(t for t in TICKS if t >= high) * 1.001
    margin = 0.04 * (high - low) or 0.1
    return low - margin, high + margin


def points_by_epoch(plan: Plan, rows: Rows, names: list[str]) -> pd.DataFrame:
    """A row per line and epoch: the means over the finished ``runs``."""
    found = [
        pd.DataFrame({"line": line.label, "epoch": epochs, "runs": len(values[0]), name: values.mean(1)})
        for name in names
        for line, epochs, values in curves_of(plan, rows, name)
    ]
    points = pd.concat([pd.DataFrame(columns=["line", "epoch"]), *found])
    return points.groupby(["line", "epoch"], sort=False, as_index=False).first()


def points_by_lr(plan: Plan, rows: Rows) -> pd.DataFrame:
    """A row per group and learning rate: ``runs`` (done) of which ``diverged``, median ``initial_loss``.

    Over the seeds that did not diverge: median, lowest and highest final validation ``loss`` (nats) and
    ``error`` (%).
    """
    runs, found = rows.runs, []
    for group in plan.groups:
        for lr, own in runs[runs["row"] == group.name].groupby("lr"):
            point: Row = {"line": group.name, "norm": group.norm}
            point |= {**dict(zip(plan.facets, group.facet, strict=True)), "lr": lr, "runs": len(own)}
            finished = own[own["status"] == "finished"]
            point |= {
                "diverged": len(own) - len(finished),
                "initial_loss": own["initial_valid_loss"].median(),
            }
            for part, unit in (("error", 100), ("loss", 1)):
                values = unit * finished.get(f"valid_{part}", pd.Series(dtype=float))
                point |= {part: values.median(), f"{part}_min": values.min(), f"{part}_max": values.max()}
            found.append(point)
    return pd.DataFrame(found)


def points_of(plan: Plan, rows: Rows) -> tuple[str, list[str], pd.DataFrame]:
    """What the main figure of a plan shows: against what, which columns of the points, the points."""
    known, error = set(rows.curves["name"]), plan.metric.key == "error"
    if plan.is_sweep and not plan.one_lr:
        return "lr", ["error", "loss"] if error else ["loss"], points_by_lr(plan, rows)
    names = [name for name in LABELS if name in known and name.endswith("error") == error]
    return "epoch", names, points_by_epoch(plan, rows, names)


def draw(plan: Plan, table: list[Row], rows: Rows) -> tuple[dict[str, Figure], dict[str, Any]]:
    """The figures of a plan; and the ``points`` of its main one, and which of their columns are its axes."""
    known, (x, names, points) = set(rows.curves["name"]), points_of(plan, rows)
    if x == "lr":
        figures = {name: sweep_figure(plan, table, points, name) for name in names}
    else:
        several = 2 if plan.metric.key == "error" else 1
        figures = {"curves": by_epoch(plan, rows, names[:several])} if names else {}
    if not plan.is_sweep and "test_kl" in known:
        figures["parts"] = by_epoch(plan, rows, ["test_reconstruction", "test_kl", "train_loss"])
    if "w_norm_mean" in known:
        figures["trajectories"] = trajectory_figure(plan, rows)
    return figures, {"x": x, "y": (names or [""])[0], "line": "line", "points": points}
