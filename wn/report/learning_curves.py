"""The figures of a table of test errors: training curves beside published ones, and the errors by seed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from wn import experiments
from wn.experiments import Experiment, Row
from wn.report import statistics
from wn.report.figures import OTHER_STYLE, STYLE, house_style, save
from wn.report.lines import ENOUGH

TICKS = (0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100)
"""Of an axis of errors in %, on a logarithmic scale: the late epochs differ by tenths of a percent."""

FLOOR = TICKS[0]
"""An error of zero is drawn here, in %."""

PART = {"train_error": "training error (%), noise and dropout on", "valid_error": "validation error (%)"}

DASHES = ("-", "--", ":", "-.")
"""Of a row's learning rates."""


def draw(experiment: Experiment, table: Any, curves: Any, runs: Any, folder: Path) -> list[Path]:
    """Draw the figures of an experiment into its results folder.

    Args:
        table: see :func:`wn.report.lines.table`.
        curves: see :func:`wn.report.lines.curves`.
        runs: the rows of ``runs.csv``.

    Returns:
        The PNG files; beside each is the same figure as SVG.
    """
    with house_style():
        figures = {
            "training_error": together(experiment, curves),
            "rows": row_by_row(experiment, curves),
            "test_error": test_errors(experiment, table, runs),
        }
        return [save(figure, folder / name) for name, figure in figures.items()]


def together(experiment: Experiment, curves: Any) -> Figure:
    """All rows in one panel, each at its first learning rate; a second panel where images are held out."""
    parts = [part for part in PART if part == "train_error" or curves[part].notna().any()]
    figure = Figure(figsize=(1.2 + 5.6 * len(parts), 5.2))
    places = {
        "left": 0.75 / figure.get_figwidth(),
        "right": 0.97,
        "top": 0.97,
        "bottom": 0.24,
        "wspace": 0.18,
    }
    panels = figure.subplots(1, len(parts), squeeze=False, gridspec_kw=places)[0]
    theirs = experiments.published(experiment)
    for axes, part in zip(panels, parts, strict=True):
        for row in experiment.rows:
            own = curves[curves["row"] == row.name]
            if part == "train_error":
                _draw_published(axes, theirs.get(row.name), colour_of(row), linestyle=":", linewidth=1.2)
            label = f"{row.name}, lr {own['lr'].iloc[0]:g}" if len(own) else f"{row.name} (pending)"
            own = own[own["lr"] == own["lr"].iloc[0]] if len(own) else own
            _draw_own(axes, own, part, color=colour_of(row), label=label)
        _dress(axes, curves, part, theirs if part == "train_error" else {})
    title = "line: mean, band: lowest to highest, over the seeds"
    title += "; dotted: the paper's figure 1" * bool(theirs)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncols=3, frameon=False, title=title, title_fontsize=8)
    return figure


def row_by_row(experiment: Experiment, curves: Any) -> Figure:
    """A panel per row, with all its learning rates over the published curve."""
    columns = min(3, len(experiment.rows))
    shape = -(-len(experiment.rows) // columns), columns
    figure = Figure(figsize=(0.9 + 3.1 * columns, 0.7 + 2.7 * shape[0]), layout="constrained")
    grid = figure.subplots(*shape, sharex=True, sharey=True, squeeze=False)
    theirs = experiments.published(experiment)
    for axes, row in zip(grid.flat, experiment.rows, strict=False):
        _draw_published(
            axes, theirs.get(row.name), "#000000", alpha=0.35, linewidth=3, label="the paper's figure 1"
        )
        own = curves[curves["row"] == row.name]
        for (lr, line), dashes in zip(own.groupby("lr", sort=False), DASHES, strict=False):
            label = f"lr {lr:g}, n = {line['runs'].max()}"
            _draw_own(axes, line, "train_error", color=colour_of(row), linestyle=dashes, label=label)
        if not len(own):
            axes.text(0.5, 0.5, "pending", transform=axes.transAxes, ha="center", color="#7f7f7f")
        axes.set_title(row.name, color=colour_of(row), fontsize=9)
        _dress(axes, curves, "train_error", theirs)
        axes.set(xlabel="", ylabel="")
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize=7, frameon=False, loc="upper right")
    for axes in grid.flat[len(experiment.rows) :]:
        axes.remove()
    figure.supxlabel("epoch", fontsize=9)
    figure.supylabel(PART["train_error"], fontsize=9)
    return figure


def test_errors(experiment: Experiment, table: Any, runs: Any) -> Figure:
    """A strip per line of the table: every seed's test error, their mean with its interval, the paper's."""
    lines = table[table["lr"].notna()].to_dict("records")
    runs = statistics.numeric(runs)
    figure = Figure(figsize=(7.5, 1.1 + 0.34 * len(lines)), layout="constrained")
    axes = figure.subplots()
    names = []
    for i, line in enumerate(lines):
        colour = STYLE.get(line["norm"], OTHER_STYLE)["color"]
        own = runs[(runs["norm"] == line["norm"]) & (runs["optim.lr"] == line["lr"])]
        axes.plot(100 * own["test_error"], [i] * len(own), "o", color=colour, alpha=0.35, markersize=4)
        half = 100 * line["test_error_half_width"] if line["n"] >= ENOUGH else 0
        axes.errorbar(100 * line["test_error"], i, xerr=half, fmt="d", color=colour, capsize=3)
        axes.plot(line["paper"], i, "|", color="#000000", markersize=13, markeredgewidth=2)
        axes.plot(line["rerun"], i, "|", color="#9a9a9a", markersize=13, markeredgewidth=2)
        names.append(f"{line['row']}, lr {line['lr']:g}" + " (chosen)" * line["chosen"])
    axes.set_yticks(range(len(lines)), names, fontsize=8)
    axes.set_ylim(len(lines) - 0.5, -0.5)
    axes.set_xlabel("test error (%)")
    note = f"dots: seeds, diamond: their mean, with its 95% interval from n = {ENOUGH} on"
    published = "\nbar: the paper (black), the RMSNorm authors' rerun (grey)"
    axes.set_title(note + published * bool(table["paper"].notna().any()), fontsize=8)
    return figure


def colour_of(row: Row) -> str:
    """The colour of a row's norm."""
    return STYLE.get(row.norm, OTHER_STYLE)["color"]


def _draw_published(axes: Axes, points: Any, colour: str, **style: Any) -> None:
    if points:
        epoch, error, _ = np.array(points).T
        axes.plot(epoch, error, color=colour, zorder=1.5, **style)


def _draw_own(axes: Axes, line: Any, part: str, **style: Any) -> None:
    """Mean over the seeds, and a band from the lowest to the highest."""
    epochs = line["epoch"].astype(float)
    low, high = (100 * line[f"{part}_{end}"].clip(lower=FLOOR / 100) for end in ("min", "max"))
    axes.plot(epochs, 100 * line[part].clip(lower=FLOOR / 100), **style)
    axes.fill_between(epochs, low, high, color=style["color"], alpha=0.15, linewidth=0)


def _dress(axes: Axes, curves: Any, part: str, published: dict[str, Any]) -> None:
    """Axes: an error on a logarithmic scale, between the ticks that enclose all that is drawn."""
    drawn = [100 * curves[f"{part}_min"].min(), 100 * curves[f"{part}_max"].max()]
    drawn += [point.value for points in published.values() for point in points]
    drawn = [max(error, FLOOR) for error in drawn if np.isfinite(error)] or [1.0, 100.0]
    axes.set_yscale("log")
    axes.set_ylim(
        max(tick for tick in TICKS if tick <= min(drawn)), min(tick for tick in TICKS if tick >= max(drawn))
    )
    axes.set_xlim(left=0)
    axes.xaxis.set_major_locator(MaxNLocator(nbins="auto", integer=True, steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_locator(FixedLocator(list(TICKS)))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set(xlabel="epoch", ylabel=PART[part])
