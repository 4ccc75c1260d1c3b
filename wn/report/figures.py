"""Figures of a sweep, and the style of all: SVG for pages, beside a local one also PNG for W&B.

The same rows give the same bytes: no date, a fixed salt for the names inside the SVG, and letters as paths,
so that what a reader sees depends on no font. No pyplot, hence no global state and no display.
"""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogFormatter, MaxNLocator, NullLocator

from wn.records import write_atomically
from wn.report.collect import Rows
from wn.report.columns import Row
from wn.report.plan import Group, Plan

STYLE: dict[str, tuple[str, str, str]] = {
    "none": ("#000000", "o", "-"),
    "none_init": ("#7f7f7f", "p", "--"),
    "scaled_init": ("#b0b0b0", "h", ":"),
    "batch_norm": ("#D55E00", "s", "-"),
    "weight_norm": ("#0072B2", "^", "-"),
    "weight_norm_init": ("#56B4E9", "v", "--"),
    "mean_only_bn": ("#E69F00", "D", "-."),
    "mean_only_bn_init": ("#C9B500", "d", "--"),
    "weight_norm_mean_only_bn": ("#009E73", "P", "-."),
    "weight_norm_mean_only_bn_init": ("#66C2A5", "*", "--"),
    "exp_weight_norm": ("#332288", "<", "-"),
    "centered_weight_norm": ("#6699CC", ">", "-"),
    "arpit_weight_norm": ("#4477AA", "8", "--"),
    "bounded_weight_norm": ("#882255", "H", "-."),
    "forced_weight_norm": ("#AA4499", "p", "-"),
    "spectral_norm": ("#CC6677", "<", "--"),
    "scaled_weight_standardization": ("#999933", ">", "--"),
    "batch_renorm": ("#A05000", "s", "--"),
    "layer_norm": ("#117733", "8", "-"),
    "group_norm": ("#44AA99", "H", "-"),
    "instance_norm": ("#7FBF7B", "<", ":"),
    "rms_norm": ("#CC79A7", "h", "--"),
    "instance_rms_norm": ("#E7B0D0", ">", ":"),
    "dyt": ("#661100", "8", ":"),
    "weight_standardization": ("#DDCC77", "H", "--"),
}
"""Colour, marker and line of a norm, in every figure: Okabe and Ito's colours, which colour-blind readers can
tell apart, and paler ones beside them; marker and line tell them apart in grey."""

OTHERS, MARKERS = ("#C2185B", "#4B0082", "#008080", "#808000", "#B22222", "#2F4F4F"), "8XHPD*"
"""Of any other norm, by its place."""
DASHES = ("-", "--", ":", "-.")
"""Of facets, and of a row's learning rates."""

RC: Any = {
    **{"svg.fonttype": "path", "svg.hashsalt": "wn", "font.size": 9, "lines.markersize": 5},
    **{"axes.spines.top": False, "axes.spines.right": False, "axes.axisbelow": True},
    **{"axes.grid": True, "grid.color": "#e4e4e4", "grid.linewidth": 0.6},
}
SMALL: Any = {"fontsize": 7.5, "color": "#444444"}
PLAIN = FuncFormatter(lambda value, _: f"{value:g}")

ERRORS, LINEAR = (0, 0.5, 1, 2, 5, 10, 20, 30, 50, 70, 100), 0.5
"""Ticks of an axis of final errors in %, and up to where it is linear."""

TRAJECTORIES = {
    "weight": "‖v‖ (plain: ‖w‖)",
    "g_mean": "gain g",
    "effective_lr": "effective lr of w",
    "direction_lr": "lr of the direction",
    "relative_update": "relative update",
}
"""Panels, from top to bottom, of the probed quantities; ``weight`` is the norm of what is trained."""
MISSING = {"g_mean": "no g", "direction_lr": "not recorded"}
MOST_BANDS = 12
"""Of more lines the bands would only hide each other."""

COLUMNS = 12
"""Of the figure of trajectories, at most: the first of the table's rows that are measured."""


@contextlib.contextmanager
def house_style() -> Iterator[None]:
    """Inside, figures are drawn in this style, whatever the reader's own matplotlibrc says."""
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(RC)
        yield


def save(figure: Figure, path: Path) -> None:
    """Write a figure as SVG or PNG, as the name of the file says."""
    file, svg = io.BytesIO(), path.suffix == ".svg"
    metadata = {"Date": None, "Creator": None} if svg else {"Software": None}
    figure.savefig(file, format=path.suffix[1:], dpi=150, metadata=metadata)
    write_atomically(path, numbered(file.getvalue()) if svg else file.getvalue())


def numbered(svg: bytes) -> bytes:
    """The figure with its clip paths numbered.

    Matplotlib names them by a hash of coordinates, in whose last digits CPUs differ.
    """
    for i, name in enumerate(re.findall(rb'<clipPath id="(\w+)"', svg)):
        svg = svg.replace(name, b"clip%d" % i)
    return svg


def look(plan: Plan, group: Group) -> dict[str, Any]:
    """How a group is drawn: colour and marker by norm, line by facet; by place where norms repeat."""
    place, facets = plan.groups.index(group), list(dict.fromkeys(g.facet for g in plan.groups))
    every, other = list(STYLE.values()), place % len(OTHERS)
    color, marker, line = STYLE.get(group.norm, (OTHERS[other], MARKERS[other], "-."))
    norms, cells = {g.norm for g in plan.groups}, {(g.norm, g.facet) for g in plan.groups}
    if len(norms) == 1 < len(plan.groups) or len(cells) < len(plan.groups):
        color, marker, line = (every[3:] + every[:3])[place % len(every)]  # the greys last
    if len(facets) > 1:
        line = DASHES[facets.index(group.facet) % len(DASHES)]
    return {"color": color, "marker": marker, "linestyle": line}


def sweep_figure(plan: Plan, table: list[Row], points: pd.DataFrame, name: str) -> Figure:
    """Error or loss against learning rate: a line per group, its name and divergences in a strip above."""
    n, lrs = len(plan.groups), sorted({lr for group in plan.groups for lr in group.lrs})
    figure = Figure(figsize=(8, 4.5 + 0.19 * n), layout="constrained")
    strip, main = figure.subplots(2, 1, sharex=True, height_ratios=[0.19 * n, 3.4])
    for i, (group, row) in enumerate(zip(plan.groups, table, strict=True)):
        style = look(plan, group)
        own = points[points["line"] == group.name]
        main.plot(own["lr"], own[name], **style, mfc="white")
        if n <= MOST_BANDS:
            band = own[f"{name}_min"], own[f"{name}_max"]
            main.fill_between(own["lr"], *band, color=style["color"], alpha=0.13, linewidth=0)
        sample = {"transform": strip.get_yaxis_transform(), "clip_on": False}
        strip.plot([-0.055, -0.03, -0.005], [i] * 3, **style, **sample, markevery=[1], mfc="white")
        strip.plot(row["lr"], i, **style)
        if own.empty:
            strip.text(0.01, i, "pending", transform=strip.get_yaxis_transform(), va="center", **SMALL)
        for point in own[own["diverged"] > 0].itertuples():
            strip.plot(point.lr, i, "x", color=style["color"], markeredgewidth=1.5)
            count = f"{point.diverged}/{point.runs}" * (point.diverged < point.runs)
            strip.annotate(count, (point.lr, i), (4, -2.5), textcoords="offset points", fontsize=6)
    strip.set_ylim(n - 0.4, -0.6)
    strip.set_yticks(range(n), [group.name for group in plan.groups], fontsize=7)
    strip.tick_params(axis="both", which="both", length=0, labelbottom=False)
    strip.tick_params(axis="y", pad=33)
    strip.spines[["left", "bottom"]].set_visible(False)
    main.set_xscale("log")
    main.set_xlim(lrs[0] / 1.6, lrs[-1] * 1.6)
    main.set_xlabel("learning rate")
    scale_metric(main, plan, points, name)
    bands = ", band: lowest to highest" * (n <= MOST_BANDS)
    words = f"line: median over the seeds that did not diverge{bands}; above, filled: best "
    figure.supxlabel(f"{words}lr,\n×: diverged (all seeds, or as many as written)", **SMALL)
    return figure


def tick_errors(axes: Axes, ticks: Sequence[float]) -> None:
    axes.yaxis.set_major_locator(FixedLocator(list(ticks)))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(PLAIN)


def log_scale(axes: Axes) -> None:
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(PLAIN)
    axes.yaxis.set_minor_formatter(LogFormatter(labelOnlyBase=False, minor_thresholds=(1.5, 0.5)))


def scale_metric(main: Axes, plan: Plan, points: pd.DataFrame, name: str) -> None:
    if name == "error":
        main.set_yscale("symlog", linthresh=LINEAR, linscale=0.3)
        tick_errors(main, ERRORS)
    elif points[f"{name}_min"].min() > 0:
        log_scale(main)
    label, limits = limits_of(plan, points, name, main.get_ylim()[1])
    main.set_ylabel(label)
    if limits:
        main.set_ylim(*limits)


def limits_of(
    plan: Plan, points: pd.DataFrame, name: str, top: float
) -> tuple[str, tuple[float, float] | None]:
    """Label and limits of an axis that reaches to ``top`` by itself; None: it may.

    An error that may be 0 is on a scale that is linear near 0; a loss on a logarithmic one, cut off.
    """
    lowest = float(points[f"{name}_min"].min())
    if name == "error":
        return "final validation error (%)", (max(t for t in ERRORS if not t > min(90, lowest)), 105)
    label = f"final validation {'loss' if plan.metric.key == 'error' else '−ELBO'} (nats)"
    highest = float(plan.metric.cut * points["initial_loss"].max())
    if not (lowest > 0 and 0.9 * lowest < highest < top):
        return label, None
    times = f"{plan.metric.cut} × " if plan.metric.cut > 1 else ""
    return f"{label}\ncut off at {times}that before training", (0.9 * lowest, highest)


def middle_layer(probes: pd.DataFrame) -> pd.DataFrame:
    """Of a run's probes, those of its middle layer, in the model's order."""
    layers = list(probes["layer"].unique())
    return probes[probes["layer"].isin(layers[len(layers) // 2 :][:1])]


def path_of(probes: pd.DataFrame) -> pd.DataFrame:
    """A layer's quantities by epoch, a column each; ``weight`` is the norm of what is trained."""
    path = probes.pivot(index="epoch", columns="name", values="value")
    return path.assign(weight=path.get("v_norm_mean", path.get("w_norm_mean", np.nan)))


def trajectory_figure(plan: Plan, rows: Rows) -> Figure:
    """What the middle layer did over the epochs: a column per group, a line per learning rate."""
    probed = rows.curves.dropna(subset="layer")
    known = {*probed["run_id"]}
    groups = plan.groups
    if len(groups) > COLUMNS:  # those that are pending give way
        groups = [group for group in groups if known & group.configs.keys()][:COLUMNS]
    probes, paths = [], {}
    probed = probed[probed["run_id"].isin({run_id for group in groups for run_id in group.configs})]
    for run_id, own in probed.groupby("run_id"):
        probes.append(middle_layer(own))
        paths[run_id] = path_of(probes[-1])
        if not has_effective_lr(plan.group_of[run_id]):
            paths[run_id] = paths[run_id].drop(columns="effective_lr", errors="ignore")
    shown = [name for name in TRAJECTORIES if any(name in path for path in paths.values())]
    lrs = sorted({lr for group in groups for lr in group.lrs})
    scale = LogNorm(lrs[0] / 1.1, lrs[-1] * 1.1)
    colours = ListedColormap(mpl.colormaps["viridis_r"](np.linspace(0.1, 1, 256)))  # less the palest
    width = max(1.7 * len(groups) + 2.3, 7.5)  # inches
    height = 1.1 + 1.6 * len(shown)
    figure = Figure(figsize=(width, height))
    top, bottom = 1 - 0.55 / height, 0.75 / height
    figure.subplots_adjust(left=1 / width, right=1 - 0.7 / width, top=top, bottom=bottom, wspace=0.12)
    grid = figure.subplots(len(shown), len(groups), sharex=True, sharey="row", squeeze=False)
    finished = rows.runs["status"].eq("finished")
    for i, name in enumerate(shown):
        own = {run_id: path[name].dropna() for run_id, path in paths.items() if name in path}
        grid[i, 0].set_ylabel(TRAJECTORIES[name])
        ends = [path.to_numpy() for run_id, path in own.items() if finished[run_id]]
        _leave_out_explosions(grid[i, 0], name, np.concatenate([np.empty(0), *ends]))
        for axes, group in zip(grid[i], groups, strict=True):
            drawn = {run_id: own[run_id] for run_id in group.configs if len(own.get(run_id, ()))}
            measured = any(run_id in paths for run_id in group.configs)
            note = "" if drawn else "pending" if not measured else MISSING.get(name, "–")
            axes.text(0.5, 0.5, note, transform=axes.transAxes, ha="center", color="#7f7f7f")
            for run_id, path in drawn.items():
                color = colours(scale(group.configs[run_id].optim.lr))
                axes.plot(path.index, path, color=color, linewidth=1.1)
                if not finished[run_id]:
                    last = np.clip(path.iloc[-1], *axes.get_ylim())
                    axes.plot(path.index[-1], last, "x", color=color, clip_on=False)
    for axes, group in zip(grid[0], groups, strict=True):
        broken = re.sub(r", | (?=\S+=)", "\n", group.name)
        axes.set_title(broken.replace("norm_mean", "norm_\nmean"), fontsize=8)
    figure.align_ylabels(grid[:, 0])
    figure.colorbar(
        ScalarMappable(scale, colours), ax=grid, label="learning rate", aspect=60, fraction=0.03, pad=0.02
    )
    grid[0, 0].xaxis.set_major_locator(MaxNLocator(nbins=4, integer=True))
    layers = ", ".join(sorted({layer for own in probes for layer in own["layer"]}))
    where = f"against the epoch; layer {layers}, mean over its units; first seed; ×: diverged"
    first = "the first " * (groups == plan.groups[: len(groups)])
    where += f"; {first}{len(groups)} of {len(plan.groups)} rows" * (len(groups) < len(plan.groups))
    figure.supxlabel(f"{where}\n{_rates_of(groups, shown)}", **SMALL)
    return figure


def has_effective_lr(group: Group) -> bool:
    """Whether ``lr (g/‖v‖)²`` is what w sees: it takes plain gradient steps, and a length that matters."""
    return not group.first.optim.adaptive and group.first.norm.statistics not in ("batch", "batch_renorm")


def _rates_of(groups: Sequence[Group], shown: Sequence[str]) -> str:
    """What the panels of learning rates show."""
    adaptive = {group.first.optim.adaptive for group in groups}
    direction = " or ".join("lr/‖v‖" if one else "lr/‖v‖²" for one in sorted(adaptive))
    if len(adaptive) > 1:
        direction += " (adaptive)"
    told = {
        "effective_lr": "effective lr of w: lr (g/‖v‖)², plain: lr, none under batch statistics",
        "direction_lr": f"lr of the direction: {direction}, of plain weights ‖w‖ for ‖v‖",
    }
    return "; ".join(text for name, text in told.items() if name in shown)


def _leave_out_explosions(axes: Axes, name: str, finished: Any) -> None:
    if extent := extent_of(name, finished):
        axes.set_yscale("linear" if name == "g_mean" else "log")
        axes.set_ylim(*extent)


def extent_of(name: str, finished: Any) -> tuple[float, float] | None:
    """Limits by runs that did not explode or collapse: weights that do pass through 1e±30. None: no run."""
    linear = name == "g_mean"
    values = finished if linear else np.log(finished[finished > 0])
    if not len(values):
        return None
    low, high = np.quantile(values, (0.02, 0.98))
    limits = np.array([low, high]) + np.array([-1, 1]) * (0.06 * (high - low) or 0.1)
    low, high = map(float, limits if linear else np.exp(limits))
    return low, high
