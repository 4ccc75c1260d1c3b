"""The benchmarks' rows -> ``results/bench/*.csv``, ``*.md`` and a figure. (``scripts/bench*.py`` measure.)

python scripts/bench_table.py        # make all tables again from the rows that are there
"""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import pandas as pd  # noqa: E402 - the project is found first
import torch  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402
from matplotlib.ticker import NullLocator  # noqa: E402

from wn.config import UserError  # noqa: E402
from wn.provenance import git_state  # noqa: E402
from wn.records import write_atomically  # noqa: E402
from wn.report import figures  # noqa: E402
from wn.report.columns import Column, in_markdown, number, table  # noqa: E402
from wn.resources import device_name, pick_device  # noqa: E402

Row = dict[str, Any]

KEYS = {
    "sweep": ["device", "launcher"],
    "training": ["device", "model", "norm"],
    "growth": ["device", "model", "members"],
    "overhead": ["device", "what"],
    "convnet": ["device", "norm", "engine"],
    "vae": ["device", "norm", "engine"],
    "step": ["device", "norm"],
    "width": ["device", "width", "members"],
}
"""What tells the rows of a benchmark apart: a new measurement replaces the old."""

ONE_CORE = ("step", "width")
"""Those of one core of a CPU."""

TITLES = {
    "sweep": """\
# A whole sweep: 5 norms x 13 learning rates x 5 seeds, MLP 64-128-128-10 on digits, 30 epochs

From the start of the process to the printed table, W&B's offline mirror included: in stacks of the launcher's
choice, a process per core, and one run after another in one process.""",
    "training": """\
# Pure training: a step of a run, in stacks and one after another

No start, no evaluation, no records. Alone: one process, with the number of threads that is fastest.
Stacked: as the launcher does it, with `members` a stack and `workers` processes of one thread each.""",
    "growth": """\
# Growth: a stack of weight-normalised MLPs against its number of members

Memory: peak of the process, less what it held before.

![Time and memory against the number of members](growth.svg)""",
    "overhead": """\
# What a run costs beside its training

The slope between 20 and 2,000 runs of one epoch of a tiny MLP, W&B disabled, one process.""",
    "convnet": """\
# A training step of the paper's ConvNet: full width, 100 images, forward, backward and Adam

Ours: bfloat16, channels last, data on the device, the step compiled (and on a GPU replayed as a graph) where
it says so. Usual: a DataLoader with two workers, torch's own layers and weight normalisation, eager, float32
(TF32 on a GPU), `loss.item()` after each step. The paper says that batch normalisation was about 16% slower
than the plain network and weight normalisation not noticeably so.""",
    "vae": """\
# A training step of the VAE of section 5.2 on MNIST: 100 images, forward, backward, Adamax and average

One loop, run by Python operation by operation in float32 (eager); the same compiled; or, on a GPU, in
bfloat16, compiled and replayed as a graph (ours). An epoch is 600 steps; neither evaluation nor compiling is
counted.""",
    "step": """\
# A step of a stack on one core, beside JAX

33 members of the MLP 64-128-128-10 on digits, batch 100, SGD with momentum, float32, not compiled.
JAX: `jit(vmap(step))` of the same model and update (`scripts/jax_step.py`), compiled before. They take turns
in one process on one core; times are of the processor. JAX is optional; without it the cell says so.""",
    "width": """\
# A ConvNet's step on one core, by its width

Forward, backward and Adam on 100 images in float32, one thread, plain weights: what each member of a stack
takes, and the speed against that of the paper's width, 96. Operations counted: convolutions and products.""",
}

PEAKS = {"H100": 989.0, "H200": 989.0}
"""Dense bfloat16 peak of a GPU in TFLOP/s, by a word of its name (the SXM cards')."""


def device(name: str) -> torch.device:
    """The device of ``--device``: a type for argparse, which tells the user in a line where there is none."""
    try:
        return pick_device(name)
    except UserError:
        raise argparse.ArgumentTypeError(f"{name} is not available here") from None


def origin(device: torch.device) -> Row:
    """What each row says about where it was measured."""
    return {"device": device_name(device), "torch": torch.__version__, "commit": git_state()["commit"]}


def record(kind: str, rows: list[Row], folder: Path) -> str:
    """Add rows to a benchmark's, replacing those of the same device; returns the new table."""
    path = folder / f"{kind}.csv"
    both = [pd.read_csv(path, dtype={"commit": str})] if path.exists() else []
    merged = pd.concat([*both, pd.DataFrame(rows)]).drop_duplicates(KEYS[kind], keep="last")
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(path, merged.to_csv(index=False, lineterminator="\n").encode("utf-8"))
    return build(kind, folder)


def build(kind: str, folder: Path) -> str:
    """Write a benchmark's table, and its figure, from its rows; returns the table."""
    text = (folder / f"{kind}.csv").read_bytes()
    rows: list[Row] = pd.read_csv(io.BytesIO(text), dtype={"commit": str}).to_dict("records")
    command = f"python scripts/bench{f'_{kind}.py' if kind in ('convnet', 'vae') else f'.py {kind}'}"
    parts = [TITLES[kind]]
    for (device,), own in _grouped(rows, "device").items():
        versions, commits = (
            sorted({str(row[key])[:n] for row in own}) for key, n in (("torch", 99), ("commit", 10))
        )
        how = _command(command, kind, own)
        parts.append(f"## {device}\n\ntorch {', '.join(versions)}, commit {', '.join(commits)}, `{how}`")
        parts.append(in_markdown(table(*TABLES[kind](own))))
    if kind not in ("sweep", "overhead", *ONE_CORE) and not any(
        "NVIDIA" in str(row["device"]) for row in rows
    ):
        parts.append(f"## CUDA GPU\n\npending: `{command} --device cuda`")
    page = "\n\n".join(parts) + "\n"
    write_atomically(folder / f"{kind}.md", page.encode("utf-8"))
    if kind == "growth":
        _draw(rows, folder)
    return page


def _grouped(rows: list[Row], *keys: str) -> dict[tuple[str, ...], list[Row]]:
    """Rows by what they have under ``keys``, in order of the first of each."""
    groups: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(str(row[key]) for key in keys), []).append(row)
    return groups


def _command(command: str, kind: str, rows: list[Row]) -> str:
    """The command that measured rows of one device."""
    first, device = rows[0], str(rows[0]["device"])
    words = ["OMP_NUM_THREADS=1"] * ("(1 threads)" in device and kind not in ONE_CORE)
    cpu = "threads)" in device  # on a GPU the ConvNet's steps are compiled in any case
    compiled = any(row.get("engine") == "compiled" or (cpu and row.get("compiled") is True) for row in rows)
    words += [command, *["--compile"] * compiled]
    if first.get("rounds", 0) > 0:  # no number where rows of other devices alone have one
        words += [f"--rounds {first['rounds']:.0f} --steps {first['steps']:.0f}"]
    return " ".join(words)


Made = tuple[list[Column], list[Row]]


def _columns(*parts: str | tuple[str, str | Callable[[Row], str]]) -> list[Column]:
    """Columns of a key that is its own heading, or of a heading and ``key:format`` or a function of a row."""
    made = []
    for part in parts:
        heading, how = (part, f"{part}:") if isinstance(part, str) else part
        made.append(Column(heading, heading, number(*how.split(":")) if isinstance(how, str) else how))
    return made


def _sweep(rows: list[Row]) -> Made:
    basic = {row["launcher"]: row["seconds"] for row in rows}.get("one by one", float("nan"))
    ratio = ("speed-up", lambda row: f"{basic / row['seconds']:.1f}x")
    return _columns("launcher", "runs", ("seconds", "seconds:.1f"), ratio), rows


def _training(rows: list[Row]) -> Made:
    shown: list[Row] = []
    for (model,), own in _grouped(rows, "model").items():
        sums = {key: sum(row[key] for row in own) for key in ("alone_ms", "stacked_ms")}
        shown += [*own, {"model": model, "norm": "all", "threads": "", "members": "", "workers": "", **sums}]
    times = ("alone (ms)", "alone_ms:.3f"), "threads", ("stacked (ms)", "stacked_ms:.3f")
    ratio = ("ratio", lambda row: f"{row['alone_ms'] / row['stacked_ms']:.1f}x")
    return _columns("model", "norm", *times, "members", "workers", ratio), shown


def _growth(rows: list[Row]) -> Made:
    each = ("a member (ms)", lambda row: f"{row['step_ms'] / row['members']:.3f}")
    memory = ("memory (MiB)", "measured_mib:.0f")
    return _columns("model", "members", ("step (ms)", "step_ms:.2f"), each, memory), rows


def _overhead(rows: list[Row]) -> Made:
    return _columns("what", ("ms a run", "ms_a_run:.2f")), rows


def _convnet(rows: list[Row]) -> Made:
    ms = {(row["norm"], row["engine"]): row["step_ms"] for row in rows}
    peak = next((p for name, p in PEAKS.items() if name in rows[0]["device"]), None)

    def engine(row: Row) -> str:
        return row["engine"] + ", compiled" * (row["engine"] == "ours" and bool(row["compiled"]))

    def against_usual(row: Row) -> str:
        usual = ms.get((row["norm"], "usual"))
        return "–" if usual is None else f"{usual / row['step_ms']:.2f}x"

    def speed(row: Row) -> str:
        tflops = rows[0]["gflop"] / row["step_ms"]
        return f"{tflops:.2f}" + (f" ({tflops / peak:.0%} of the peak)" if peak else "")

    plain = ("against plain", lambda row: f"{row['step_ms'] / ms['none', row['engine']]:.3f}")
    hours = ("200 epochs (h)", lambda row: f"{row['step_ms'] * 1e-3 * 500 * 200 / 3600:.3f}")
    more = ("against usual", against_usual), ("TFLOP/s", speed), hours
    return _columns("norm", ("engine", engine), ("step (ms)", "step_ms:.2f"), plain, *more), rows


def _vae(rows: list[Row]) -> Made:
    ms = {(row["norm"], row["engine"]): row["step_ms"] for row in rows}
    epoch = ("an epoch (s)", lambda row: f"{0.6 * row['step_ms']:.2f}")
    eager = ("against eager", lambda row: f"{ms[row['norm'], 'eager'] / row['step_ms']:.2f}x")
    plain = ("against plain", lambda row: f"{row['step_ms'] / ms['none', row['engine']]:.3f}")
    return _columns("norm", "engine", ("step (ms)", "step_ms:.2f"), epoch, eager, plain), rows


def _step(rows: list[Row]) -> Made:
    def jax(row: Row) -> str:
        return "not installed" if pd.isna(row["jax_ms"]) else f"{row['jax_ms']:.3f} (JAX {row['jax']})"

    def ratio(row: Row) -> str:
        return "–" if pd.isna(row["jax_ms"]) else f"{row['ours_ms'] / row['jax_ms']:.2f}"

    ours = ("ours, a member (ms)", "ours_ms:.3f")
    return _columns("norm", "members", ours, ("JAX, a member (ms)", jax), ("ours / JAX", ratio)), rows


def _width(rows: list[Row]) -> Made:
    speed = {(row["width"], row["members"]): row["gflop"] / row["ms"] * 1000 for row in rows}
    full = speed[max(speed)]

    def alone(row: Row) -> str:
        return f"{speed[row['width'], 1] / speed[row['width'], row['members']]:.2f}x"

    def rate(row: Row) -> str:
        own = speed[row["width"], row["members"]]
        return f"{own:.0f} ({own / full:.0%})"

    size = ("members", "members:"), ("a member (GFLOP)", "gflop:.2f"), ("a member (ms)", "ms:.1f")
    return _columns("width", *size, ("GFLOP/s", rate), ("against alone", alone)), rows


TABLES = {
    "sweep": _sweep,
    "training": _training,
    "growth": _growth,
    "overhead": _overhead,
    "convnet": _convnet,
    "vae": _vae,
    "step": _step,
    "width": _width,
}


def _draw(rows: list[Row], folder: Path) -> None:
    """Time and memory of a stack against its members, both axes logarithmic: linear growth has slope 1."""
    with figures.house_style():
        figure = Figure(figsize=(8, 3.4), layout="constrained")
        time, memory = figure.subplots(1, 2)
        series = _grouped(rows, "device", "model").items()
        for color, ((device, model), own) in zip(
            ("#0072B2", "#D55E00", "#009E73", "#CC79A7"), series, strict=False
        ):
            members, step, used = ([row[k] for row in own] for k in ("members", "step_ms", "measured_mib"))
            time.plot(members, step, "o-", color=color, label=f"{model}, {str(device).partition(' (')[0]}")
            memory.plot(members, used, "o-", color=color)
        for axes, quantity in ((time, "time of a step (ms)"), (memory, "memory (MiB)")):
            axes.set(xscale="log", yscale="log", xlabel="members of the stack", ylabel=quantity)
            ticks = sorted({row["members"] for row in rows})
            axes.set_xticks(ticks, [str(m) for m in ticks])
            axes.xaxis.set_minor_locator(NullLocator())
        time.legend(frameon=False, fontsize=8)
        figures.save(figure, folder / "growth.svg")


if __name__ == "__main__":
    for path in sorted((ROOT / "results" / "bench").glob("*.csv")):
        build(path.stem, path.parent)
