"""The two figures of a report card: a panel per family, a line per norm."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from wn.report.card.families import FAMILIES, Family
from wn.report.columns import missing
from wn.report.curves import points_by_lr
from wn.report.figures import SMALL, log_scale, look, middle_layer, path_of, scale_metric
from wn.report.plan import Group, Plan

TRAJECTORIES = {"weight": "‖v‖ (plain: ‖w‖)", "g_mean": "gain g", "direction_lr": "lr of the direction"}


def drawn_as(plan: Plan, group: Group) -> dict[str, Any]:
    """As everywhere, the norm in question thicker and above the others."""
    first = group is plan.groups[0]
    return look(plan, group) | (
        {"linestyle": "-", "linewidth": 2.2, "zorder": 3} if first else {"linewidth": 1.2}
    )


def metric_figure(families: Sequence[Family]) -> Figure:
    """Final validation error or loss against learning rate."""
    figure, panels = _panels(families, 1, 3.6)
    for axes, family in zip(panels[0], families, strict=True):
        plan, points = family.plan, points_by_lr(family.plan, family.rows)
        name = plan.metric.key
        for group, line in zip(plan.groups, family.table, strict=True):
            own, style = points[points["line"] == group.name], drawn_as(plan, group)
            axes.plot(own["lr"], own[name], **style, mfc="white", label=group.name)
            axes.fill_between(
                own["lr"], own[f"{name}_min"], own[f"{name}_max"], color=style["color"], alpha=0.1, lw=0
            )
            best = own[own["lr"] == line["lr"]]
            axes.plot(best["lr"], best[name], **{**style, "linestyle": ""})
        axes.set_xscale("log")
        axes.set_xlabel("learning rate")
        scale_metric(axes, plan, points, name)
    _legend(figure, panels)
    words = "line: median over the seeds that did not diverge, band: lowest to highest; filled: best rate"
    figure.supxlabel(words, **SMALL)
    return figure


def trajectory_figure(families: Sequence[Family]) -> Figure:
    """‖v‖, gain and the direction's learning rate of the middle layer, each norm at its best rate."""
    figure, panels = _panels(families, len(TRAJECTORIES), 6.5)
    for row, (name, label) in zip(panels, TRAJECTORIES.items(), strict=True):
        row[0].set_ylabel(label)
        for axes, family in zip(row, families, strict=True):
            for group, line in zip(family.plan.groups, family.table, strict=True):
                path = _path(family, group, line["lr"], name)
                style = {**drawn_as(family.plan, group), "marker": ""}
                axes.plot(path.index, path.to_numpy(), **style, label=group.name)
            if name != "g_mean":
                log_scale(axes)
            axes.xaxis.set_major_locator(MaxNLocator(nbins=4, integer=True))
    for axes in panels[-1]:
        axes.set_xlabel("epoch")
    _legend(figure, panels)
    words = "middle layer, mean over its units, first seed, each norm at its best learning rate;\n"
    rates = (
        "lr of the direction: lr/‖v‖² (SGD) or lr/‖v‖ (Adam, Adamax); "
        "of the whole layer's v where that alone can be rescaled"
    )
    figure.supxlabel(words + rates, **SMALL)
    return figure


def _path(family: Family, group: Group, lr: float, name: str) -> pd.Series[float]:
    run_id = None if missing(lr) else group.ids.get((lr, group.seeds[0]))
    probes = family.rows.curves[family.rows.curves["run_id"].eq(run_id) & family.rows.curves["layer"].notna()]
    path = path_of(middle_layer(probes))
    return path[name].dropna() if name in path else pd.Series(dtype=float)


def _panels(families: Sequence[Family], rows: int, height: float) -> tuple[Figure, Any]:
    figure = Figure(figsize=(max(0.6 + 3.1 * len(families), 7), height), layout="constrained")
    panels = figure.subplots(rows, len(families), squeeze=False)
    for axes, family in zip(panels[0], families, strict=True):
        axes.set_title(FAMILIES[family.name], fontsize=10)
    return figure, panels


def _legend(figure: Figure, panels: Any) -> None:
    first: Axes = panels[0][0]
    handles, labels = first.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels), frameon=False)
