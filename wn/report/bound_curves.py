"""The figures of a table of bounds: the paper's figure 3 with ours over it, and the parts of the bound."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from wn import experiments
from wn.experiments import Experiment
from wn.report.bound_lines import each_run
from wn.report.figures import house_style, save
from wn.report.learning_curves import DASHES, colour_of
from wn.report.lines import ENOUGH
from wn.report.statistics import Array

PARTS = {
    "reconstruction": "reconstruction (nats)",
    "kl": "KL from the prior (nats)",
    "train_bound": "training bound (nats)",
}

EARLY = 0.1
"""Share of the epochs that does not decide what an axis shows: the first bounds are far lower."""

REACH = 4
"""An axis goes down from the best bound at most this many times as far as to the median line's lowest."""


def draw(experiment: Experiment, rows: Any, folder: Path) -> list[Path]:
    """Draw the figures of an experiment into its results folder.

    Returns:
        The PNG files; beside each is the same figure as SVG.
    """
    every = each_run(rows, experiment)
    with house_style():
        figures = {"bound": bound_figure(experiment, every), "parts": parts_figure(experiment, every)}
        return [save(figure, folder / name) for name, figure in figures.items()]


def bound_figure(experiment: Experiment, every: Any) -> Figure:
    """Test bounds of all rows over the published ones."""
    figure = Figure(figsize=(7.5, 5.6))
    axes = figure.subplots(gridspec_kw={"left": 0.11, "right": 0.97, "top": 0.97, "bottom": 0.24})
    theirs = _draw_published(axes, experiment)
    _dress(axes, "bound on the test set (nats)", _draw_rows(axes, experiment, every, "bound"), theirs)
    _legend(figure, axes, bool(theirs))
    return figure


def parts_figure(experiment: Experiment, every: Any) -> Figure:
    """A panel per part of the bound, and one of the bound in training."""
    figure = Figure(figsize=(10.5, 4.4))
    places = {"left": 0.07, "right": 0.99, "top": 0.97, "bottom": 0.3, "wspace": 0.27}
    panels = figure.subplots(1, len(PARTS), gridspec_kw=places)
    for axes, (part, label) in zip(panels, PARTS.items(), strict=True):
        _dress(axes, label, _draw_rows(axes, experiment, every, part), [])
    _legend(figure, panels[0], False)
    return figure


def _legend(figure: Figure, axes: Axes, with_published: bool) -> None:
    handles, labels = axes.get_legend_handles_labels()
    title = f"mean over the seeds, bar: their standard deviation (fewer than {ENOUGH} seeds: a line each)"
    title += "\nbroad and pale: the paper's figure 3, with its bars" * with_published
    figure.legend(handles, labels, loc="lower center", ncols=2, frameon=False, title=title, title_fontsize=8)


def _draw_published(axes: Axes, experiment: Experiment) -> list[Array]:
    """Draw the paper's curves, but for the bound before training, and return their points [epochs, 2]."""
    curves = experiments.published(experiment)
    drawn = []
    for row in (row for row in experiment.rows if row.name in curves):
        points = np.array([point for point in curves[row.name] if point.epoch > 0]).reshape(-1, 3)
        epoch, bound, bar = points.T
        style: dict[str, Any] = {"color": colour_of(row), "alpha": 0.3, "zorder": 1.5}
        axes.errorbar(epoch, bound, np.nan_to_num(bar), linewidth=4, elinewidth=4, **style)
        drawn.append(points[:, :2])
    return drawn


def _draw_rows(axes: Axes, experiment: Experiment, every: Any, part: str) -> list[Array]:
    """Draw of each row and learning rate the mean over the seeds with their deviation, or few seeds
    themselves, and return what is drawn [epochs, 2]."""
    drawn = []
    for row in experiment.rows:
        style: dict[str, Any] = {"color": colour_of(row), "marker": ".", "markersize": 4, "linewidth": 1.2}
        own = every[every["row"] == row.name]
        if not len(own):
            axes.plot([], [], **style, label=f"{row.name} (pending)")
        for (lr, line), dashes in zip(own.groupby("lr", sort=False), DASHES, strict=False):
            seeds = line.pivot(index="epoch", columns="seed", values=part)
            label, mean = f"{row.name}, lr {lr:g}, n = {seeds.shape[1]}", seeds.mean(axis=1)
            if seeds.shape[1] >= ENOUGH:
                axes.errorbar(
                    seeds.index, mean, seeds.std(axis=1), capsize=2, linestyle=dashes, label=label, **style
                )
            else:
                first, *_ = axes.plot(seeds.index, seeds.to_numpy(), linestyle=dashes, **style)
                first.set_label(label)
            drawn.append(mean.dropna().reset_index().to_numpy(dtype=float))
    return drawn


def _dress(axes: Axes, label: str, ours: list[Array], theirs: list[Array]) -> None:
    """Axes as long as our runs, or up to the first published point, that show the late epochs of these."""
    axes.set(xlabel="epoch", ylabel=label)
    axes.xaxis.set_major_locator(MaxNLocator(nbins="auto", integer=True, steps=[1, 2, 5, 10]))
    ours = [line for line in ours if len(line)]
    ends = [line[-1, 0] for line in ours] + [line[0, 0] for line in theirs]
    if not ends:
        return
    last = max(ends)
    axes.set_xlim(0, (1.12 if theirs else 1.03) * last)  # so that the published curve can be seen to begin
    late = [line[(EARLY * last <= line[:, 0]) & (line[:, 0] <= last), 1] for line in ours + theirs]
    late = [values for values in late if len(values)]
    lowest, high = [float(values.min()) for values in late], max(float(values.max()) for values in late)
    low = max(min(lowest), high - REACH * (high - float(np.median(lowest))))
    margin = 0.04 * (high - low) or 0.1
    axes.set_ylim(low - margin, high + margin)
    if low > min(lowest):
        axes.set_ylabel(f"{label}\nlower ones are cut off")
