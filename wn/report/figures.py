"""Numbers -> figures: ``*.svg`` to be committed, ``*.png`` for whoever shows them elsewhere.

The same rows give the same bytes: no date, a fixed salt for the names inside the SVG, and letters as paths,
so that what a reader sees depends on no font. No pyplot, hence no global state and no display.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, ListedColormap, LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogFormatter, NullLocator

from wn.experiments import Experiment
from wn.records import write_atomically
from wn.report import measures, statistics

STYLE: dict[str, dict[str, str]] = {
    "none": {"color": "#000000", "marker": "o", "linestyle": "-"},
    "none_init": {"color": "#7f7f7f", "marker": "p", "linestyle": "--"},
    "scaled_init": {"color": "#b0b0b0", "marker": "h", "linestyle": ":"},
    "batch_norm": {"color": "#D55E00", "marker": "s", "linestyle": "-"},
    "weight_norm": {"color": "#0072B2", "marker": "^", "linestyle": "-"},
    "weight_norm_init": {"color": "#56B4E9", "marker": "v", "linestyle": "--"},
    "mean_only_bn": {"color": "#E69F00", "marker": "D", "linestyle": "-."},
    "mean_only_bn_init": {"color": "#F0E442", "marker": "d", "linestyle": "--"},
    "weight_norm_mean_only_bn": {"color": "#009E73", "marker": "P", "linestyle": "-."},
    "weight_norm_mean_only_bn_init": {"color": "#66C2A5", "marker": "*", "linestyle": "--"},
}
"""How a norm is drawn, in every figure: Okabe and Ito's colours, which colour-blind readers can tell apart,
and paler ones beside them; marker and line tell them apart in grey."""

OTHER_STYLE = {"color": "#CC79A7", "marker": "X", "linestyle": ":"}
"""For a norm without a preset."""

RC: Any = {
    "svg.fonttype": "path",
    "svg.hashsalt": "wn",
    "font.family": "DejaVu Sans",  # comes with matplotlib
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "lines.linewidth": 1.5,
    "lines.markersize": 5,
}

QUANTITIES = {
    "error": ("final validation error (%)", 100.0),
    "loss": ("final validation loss (nats)", 1.0),
}
"""Label and unit of what is drawn against the learning rate."""

TRAJECTORIES = {
    "weight": "‖v‖ (plain: ‖w‖)",
    "g": "gain g",
    "effective_lr": "effective lr",
    "relative_update": "relative update",
}
"""Rows of the figure of trajectories: columns of the frame, but ``weight``: the norm of what is trained."""


def draw(experiment: Experiment, table: Any, curves: Any, rows: Any, folder: Path) -> list[Path]:
    """Draw the figures of an experiment into its results folder.

    Returns:
        The PNG files; beside each is the same figure as SVG.
    """
    quantities = measures.of(experiment).drawn
    with house_style():
        figures = {name: sweep_figure(experiment, table, curves, name) for name in quantities}
        figures["trajectories"] = trajectory_figure(experiment, rows)
        return [save(figure, folder / name) for name, figure in figures.items()]


@contextlib.contextmanager
def house_style() -> Iterator[None]:
    """Inside, figures are drawn in this style, whatever the reader's own matplotlibrc says."""
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(RC)
        yield


def save(figure: Figure, stem: Path) -> Path:
    """Write a figure as SVG and as PNG; the path of the latter."""
    for suffix in (".svg", ".png"):
        file = io.BytesIO()
        metadata = {"Date": None, "Creator": None} if suffix == ".svg" else {"Software": None}
        figure.savefig(file, format=suffix[1:], dpi=150, metadata=metadata)
        write_atomically(stem.with_suffix(suffix), file.getvalue())
    return stem.with_suffix(".png")


def sweep_figure(experiment: Experiment, table: Any, curves: Any, quantity: str) -> Figure:
    """Error or loss against learning rate: a line per norm, and above it where runs diverged."""
    label, unit = QUANTITIES[quantity]
    norms = [str(norm) for norm in experiment.grid["norm"]]
    columns = 4 if len(norms) < 9 else 3  # of the legend: the longest names come where all norms do
    lines = -(-len(norms) // columns)
    height = 4.1 + 0.19 * lines + 0.15 * len(norms)  # inches
    bottom = (0.8 + 0.19 * lines) / height
    figure = Figure(figsize=(8, height))
    places = {"left": 0.22, "right": 0.97, "top": 1 - 0.27 / height, "bottom": bottom, "hspace": 0.04}
    ratios = [0.19 * len(norms), 4]
    strip, main = figure.subplots(2, 1, sharex=True, height_ratios=ratios, gridspec_kw=places)
    best = dict(zip(table["norm"], table["best_lr"], strict=True))
    handles = []
    for i, norm in enumerate(norms):
        style = STYLE.get(norm, OTHER_STYLE)
        own = curves[curves["norm"] == norm].sort_values("lr")
        line = own[own[quantity].notna()]
        handles += main.plot(line["lr"], unit * line[quantity], **style, mfc="white", label=norm)
        band = unit * line[f"{quantity}_min"], unit * line[f"{quantity}_max"]
        main.fill_between(line["lr"], *band, color=style["color"], alpha=0.13, linewidth=0)
        chosen = line[line["lr"] == best[norm]]
        strip.plot(chosen["lr"], [i] * len(chosen), **style)
        _mark_diverged(strip, own, i, style["color"])
    _dress_strip(strip, norms)
    main.set_ylabel(label)
    main.set_xlabel("learning rate")
    _dress_main(main, experiment, curves, quantity)
    figure.legend(
        handles=handles,
        loc="lower center",
        ncols=columns,
        columnspacing=1.2,
        frameon=False,
        handlelength=3.2,
        title="line: median, band: lowest to highest, over the seeds that did not diverge",
        title_fontsize=8,
    )
    return figure


def _mark_diverged(strip: Axes, own: Any, height: int, colour: str) -> None:
    """A cross where runs diverged, and how many of how many."""
    for row in own[own["diverged"] > 0].to_dict("records"):
        strip.plot(row["lr"], height, marker="x", color=colour, markersize=5, markeredgewidth=1.5)
        if row["diverged"] < row["runs"]:
            count = f"{row['diverged']}/{row['runs']}"
            strip.annotate(count, (row["lr"], height), (5, -2.5), textcoords="offset points", fontsize=6.5)


def _dress_strip(strip: Axes, norms: list[str]) -> None:
    strip.set_title("filled: best learning rate; × diverged (all seeds, or as many as written)", fontsize=8)
    strip.set_ylim(len(norms) - 0.4, -0.6)
    strip.set_yticks(range(len(norms)), norms, fontsize=7)
    for tick, norm in zip(strip.get_yticklabels(), norms, strict=True):
        tick.set_color(STYLE.get(norm, OTHER_STYLE)["color"])
    strip.tick_params(axis="both", which="both", length=0, labelbottom=False)
    strip.spines[["left", "bottom"]].set_visible(False)


def _dress_main(main: Axes, experiment: Experiment, curves: Any, quantity: str) -> None:
    """Axes: decades of learning rate; an error that may be 0 on a scale that is linear near 0."""
    lrs = [float(lr) for lr in experiment.grid["optim.lr"]]
    main.set_xscale("log")
    main.set_xlim(min(lrs) / 1.4, max(lrs) * 1.6)
    if quantity == "error":
        ticks = [0, 0.5, 1, 2, 5, 10, 20, 50, 100]
        main.set_yscale("symlog", linthresh=0.5, linscale=0.3)
        lowest = float(np.nanmin([100 * curves["error_min"].min(), 90]))
        main.set_ylim(max(tick for tick in ticks if tick <= lowest), 105)
        main.yaxis.set_major_locator(FixedLocator(ticks))
        main.yaxis.set_minor_locator(NullLocator())
        main.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    elif (curves["loss"] > 0).any():
        main.set_yscale("log")
        cut = measures.of(experiment).cut
        highest = cut * float(curves["initial_loss"].max())
        main.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        main.yaxis.set_minor_formatter(LogFormatter(labelOnlyBase=False, minor_thresholds=(1.5, 0.5)))
        if highest < main.get_ylim()[1]:
            main.set_ylim(0.9 * float(curves["loss_min"].min()), highest)
            times = f"{cut} × " if cut > 1 else ""
            main.set_ylabel(f"{main.get_ylabel()}\ncut off at {times}that before training")


def trajectory_figure(experiment: Experiment, rows: Any) -> Figure:
    """What the middle layer did over the epochs: a column per norm, a line per learning rate."""
    frame = _with_settings(rows)
    norms = [str(norm) for norm in experiment.grid["norm"]]
    lrs = sorted(float(lr) for lr in experiment.grid["optim.lr"])
    scale = LogNorm(lrs[0], lrs[-1])
    colours = ListedColormap(mpl.colormaps["viridis_r"](np.linspace(0.1, 1, 256)))  # less the palest
    width = 1.7 * len(norms) + 1.9  # inches
    places = {"left": 0.8 / width, "right": 1 - 1.1 / width, "top": 0.94, "bottom": 0.08, "wspace": 0.12}
    figure = Figure(figsize=(width, 7.5))
    shape = len(TRAJECTORIES), len(norms)
    grid = figure.subplots(*shape, sharex=True, sharey="row", squeeze=False, gridspec_kw=places)
    for i, (measure, label) in enumerate(TRAJECTORIES.items()):
        grid[i, 0].set_ylabel(label)
        grid[i, 0].set_yscale("log" if measure != "g" and (frame[measure] > 0).any() else "linear")
        _leave_out_explosions(grid[i, 0], frame, measure)
        for axes, norm in zip(grid[i], norms, strict=True):
            own = frame[frame["norm"] == norm]
            _draw_runs(axes, own, measure, colours, scale)
            if measure == "g" and own["g"].isna().all():
                note = "no g" if len(own) else "pending"
                axes.text(0.5, 0.5, note, transform=axes.transAxes, ha="center", color="#7f7f7f")
    for axes, norm in zip(grid[0], norms, strict=True):
        title = norm if len(norm) < 20 else norm.replace("norm_mean", "norm_\nmean")
        axes.set_title(title, fontsize=8, color=STYLE.get(norm, OTHER_STYLE)["color"])
    figure.align_ylabels(grid[:, 0])
    place = figure.add_axes((1 - 0.85 / width, 0.08, 0.15 / width, 0.86))
    figure.colorbar(ScalarMappable(scale, colours), cax=place).set_label("learning rate")
    layer = ", ".join(sorted(frame["layer"].dropna().unique()))
    figure.supxlabel(
        f"epoch   (layer {layer}, mean over its units; seed {experiment.grid['seed'][0]}; "
        "effective lr = lr (g/‖v‖)², plain: lr; × diverged)",
        y=0.01,
        fontsize=9,
    )
    return figure


def _leave_out_explosions(axes: Axes, frame: Any, measure: str) -> None:
    """Scale a row of panels to runs that are sound: weights that explode, or die, pass through 1e±30."""
    finished = frame[frame["diverged"] == 0][measure].dropna()
    positive = finished[finished > 0]
    if len(positive) and axes.get_yscale() == "log":
        span = 30 if measure == "weight" else 3000
        positive = positive[(positive / positive.median()).between(1 / span, span)]
        axes.set_ylim(positive.min() / 1.7, positive.max() * 1.7)
    elif len(finished):
        margin = 0.06 * (finished.max() - finished.min()) or 0.1
        axes.set_ylim(finished.min() - margin, finished.max() + margin)


def _with_settings(rows: Any) -> Any:
    """The trajectories with the norm, learning rate and status of their runs, and ``weight``."""
    runs = statistics.numeric(rows.runs)[["run_id", "norm", "optim.lr", "diverged"]]
    frame = rows.series.merge(runs, on="run_id")
    return frame.assign(weight=frame["v_norm"].fillna(frame["w_norm"]))


def _draw_runs(axes: Axes, own: Any, measure: str, colours: Colormap, scale: LogNorm) -> None:
    """A line per run; one that diverged ends in a cross, at the edge of the panel where it left that."""
    for lr, run in own[own[measure].notna()].sort_values("epoch").groupby("optim.lr"):
        colour = colours(scale(lr))
        axes.plot(run["epoch"].astype(float), run[measure], color=colour, linewidth=1.1)
        if run["diverged"].iloc[-1]:
            last = run[measure].iloc[-1]
            shown = last if axes.get_autoscaley_on() else np.clip(last, *axes.get_ylim())
            axes.plot(float(run["epoch"].iloc[-1]), shown, "x", color=colour, markersize=5, clip_on=False)
