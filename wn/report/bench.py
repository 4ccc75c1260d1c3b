"""The benchmarks' rows -> ``results/bench/*.md`` and a figure. (``scripts/bench.py`` measures.)"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl
import pandas as pd
from matplotlib.figure import Figure

from wn.records import write_atomically
from wn.report import figures
from wn.report.collect import write_csv
from wn.report.words import in_markdown

KEYS = {
    "sweep": ["device", "launcher"],
    "training": ["device", "model", "norm"],
    "growth": ["device", "model", "members"],
    "convnet": ["device", "norm", "engine"],
    "vae": ["device", "norm", "engine"],
}
"""What tells the rows of a benchmark apart: a new measurement replaces the old."""

TITLES = {
    "sweep": """\
# A whole sweep: 5 norms x 13 learning rates x 5 seeds, MLP 64-128-128-10 on digits, 30 epochs

From the start of the process to the written table, W&B's mirror included, one launcher after the other.""",
    "training": """\
# Pure training: a step of a run, in stacks and one after another

No start, no evaluation, no records. Alone: one process, with the number of threads that is fastest.
Stacked: as the launcher does it, with `members` a stack and `workers` processes of one thread each.""",
    "growth": """\
# Growth: a stack of weight-normalised MLPs against its number of members

Memory as predicted before the run and as measured (peak of the process, less what it held before).

![Time and memory against the number of members](growth.svg)""",
    "convnet": """\
# A training step of the paper's ConvNet: full width, 100 images, forward, backward and Adam

Ours: bfloat16, channels last, data on the device, the step compiled (and on a GPU replayed as a graph) where
it says so. Usual: a DataLoader with two workers, torch's own layers and weight normalisation, eager, float32
(TF32 on a GPU), `loss.item()` after each step. The paper says that batch normalisation was about 16% slower
than the plain network and weight normalisation not noticeably so.""",
    "vae": """\
# A training step of the VAE of section 5.2 on MNIST: 100 images, forward, backward, Adamax and average

One loop, run by Python operation by operation in float32 (eager); or, on a GPU, in bfloat16, compiled and
replayed as a graph (ours). An epoch is 600 steps; evaluation is not counted.""",
}

PEAKS = {"H100": 989.0, "H200": 989.0}
"""Dense bfloat16 peak of a GPU in TFLOP/s, by a word of its name (the SXM cards')."""


def record(kind: str, rows: list[dict[str, Any]], folder: Path) -> str:
    """Add rows to a benchmark's, replacing those of the same device; returns the new table."""
    path = folder / f"{kind}.csv"
    new = pd.DataFrame(rows)
    old = pd.read_csv(path, dtype={"commit": str}) if path.exists() else new[:0]
    both = [frame for frame in (old, new) if len(frame)]
    merged = pd.concat(both).drop_duplicates(KEYS[kind], keep="last")
    folder.mkdir(parents=True, exist_ok=True)
    write_csv(merged, path)
    return build(kind, folder)


def build(kind: str, folder: Path) -> str:
    """Write a benchmark's table, and its figure, from its rows; returns the table."""
    rows = pd.read_csv(folder / f"{kind}.csv", dtype={"commit": str})
    parts = [TITLES[kind]]
    for device, part in rows.groupby("device", sort=False):
        commits = ", ".join(sorted({str(c)[:10] for c in part["commit"]}))
        torch = ", ".join(sorted(set(part["torch"])))
        parts.append(f"## {device}\n\ntorch {torch}, commit {commits}, `{_command(kind)}`")
        parts.append(in_markdown(_TABLES[kind](part)))
    if not rows["device"].str.contains("NVIDIA").any() and kind != "sweep":
        parts.append(f"## CUDA GPU\n\npending: `{_command(kind)} --device cuda`")
    text = "\n\n".join(parts) + "\n"
    write_atomically(folder / f"{kind}.md", text.encode())
    if kind == "growth":
        _draw(rows, folder)
    return text


def _command(kind: str) -> str:
    own = kind in ("convnet", "vae")
    return f"python scripts/bench_{kind}.py" if own else f"python scripts/bench.py {kind}"


def _sweep(rows: pd.DataFrame) -> list[list[str]]:
    basic = rows.set_index("launcher")["seconds"].get("basic", float("nan"))
    cells = [
        [row["launcher"], str(row["runs"]), f"{row['seconds']:.1f}", f"{basic / row['seconds']:.1f}x"]
        for row in rows.to_dict("records")
    ]
    return [["launcher", "runs", "seconds", "against basic"], *cells]


def _training(rows: pd.DataFrame) -> list[list[str]]:
    heading = ["model", "norm", "alone (ms)", "threads", "stacked (ms)", "members", "workers", "ratio"]
    cells = []
    for model, part in rows.groupby("model", sort=False):
        for row in part.to_dict("records"):
            cells.append([model, row["norm"], *_times(row["alone_ms"], row["threads"], row["stacked_ms"])])
            cells[-1][-1:-1] = [str(row["members"]), str(row["workers"])]
        cells.append([model, "all", *_times(part["alone_ms"].sum(), "", part["stacked_ms"].sum())])
        cells[-1][-1:-1] = ["", ""]
    return [heading, *cells]


def _times(alone: float, threads: Any, stacked: float) -> list[str]:
    return [f"{alone:.3f}", str(threads), f"{stacked:.3f}", f"{alone / stacked:.1f}x"]


def _growth(rows: pd.DataFrame) -> list[list[str]]:
    heading = ["model", "members", "step (ms)", "a member (ms)", "predicted (MiB)", "measured (MiB)"]
    cells = [
        [
            row["model"],
            str(row["members"]),
            f"{row['step_ms']:.2f}",
            f"{row['step_ms'] / row['members']:.3f}",
            f"{row['predicted_mib']:.0f}",
            f"{row['measured_mib']:.0f}",
        ]
        for row in rows.to_dict("records")
    ]
    return [heading, *cells]


def _convnet(rows: pd.DataFrame) -> list[list[str]]:
    ms = rows.set_index(["norm", "engine"])["step_ms"]
    plain, gflop = ms["none", "ours"], rows["gflop"].iloc[0]
    peak = next((p for name, p in PEAKS.items() if name in rows["device"].iloc[0]), None)
    heading = ["norm", "engine", "step (ms)", "against plain", "against usual", "TFLOP/s", "200 epochs (h)"]
    cells = []
    for row in rows.to_dict("records"):
        norm, step = row["norm"], row["step_ms"]
        usual = ms.get((norm, "usual"))
        speed = gflop / step
        cells.append(
            [
                norm,
                row["engine"] + (", compiled" if row["engine"] == "ours" and row["compiled"] else ""),
                f"{step:.2f}",
                f"{step / (plain if row['engine'] == 'ours' else ms['none', 'usual']):.3f}",
                f"{usual / step:.2f}x" if usual is not None else "–",
                f"{speed:.2f}" + (f" ({speed / peak:.0%} of the peak)" if peak else ""),
                f"{step * 1e-3 * 500 * 200 / 3600:.3f}",
            ]
        )
    return [heading, *cells]


def _vae(rows: pd.DataFrame) -> list[list[str]]:
    ms = rows.set_index(["norm", "engine"])["step_ms"]
    heading = ["norm", "engine", "step (ms)", "an epoch (s)", "against eager", "against plain"]
    cells = [
        [
            row["norm"],
            row["engine"],
            f"{row['step_ms']:.2f}",
            f"{0.6 * row['step_ms']:.2f}",
            f"{ms[row['norm'], 'eager'] / row['step_ms']:.2f}x",
            f"{row['step_ms'] / ms['none', row['engine']]:.3f}",
        ]
        for row in rows.to_dict("records")
    ]
    return [heading, *cells]


_TABLES = {"sweep": _sweep, "training": _training, "growth": _growth, "convnet": _convnet, "vae": _vae}


def _draw(rows: pd.DataFrame, folder: Path) -> None:
    """Time and memory of a stack against its members, both axes logarithmic: linear growth has slope 1."""
    with figures.house_style():
        figure = Figure(figsize=(8, 3.4), layout="constrained")
        time, memory = figure.subplots(1, 2)
        for color, ((device, model), part) in zip(
            ("#0072B2", "#D55E00", "#009E73", "#CC79A7"),
            rows.groupby(["device", "model"], sort=False),
            strict=False,
        ):
            label = f"{model}, {str(device).partition(' (')[0]}"
            time.plot(part["members"], part["step_ms"], "o-", color=color, label=label)
            memory.plot(part["members"], part["measured_mib"], "o-", color=color)
            memory.plot(part["members"], part["predicted_mib"], "x--", color=color)
        for axes, quantity in ((time, "time of a step (ms)"), (memory, "memory (MiB)")):
            axes.set(xscale="log", yscale="log", xlabel="members of the stack", ylabel=quantity)
            members = sorted(set(rows["members"]))
            axes.set_xticks(members, [str(m) for m in members])
            axes.xaxis.set_minor_locator(mpl.ticker.NullLocator())
        time.legend(frameon=False, fontsize=8)
        black = {"color": "black"}
        measured = memory.plot([], [], "o-", **black)
        predicted = memory.plot([], [], "x--", **black)
        memory.legend([*measured, *predicted], ["measured", "predicted"], frameon=False, fontsize=8)
        figures.save(figure, folder / "growth")
