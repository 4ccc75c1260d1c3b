"""Benchmarks of the stacked launcher: measure, then write ``results/bench/``.

    python scripts/bench.py sweep        # a whole sweep of 325 runs under both launchers: ten minutes
    python scripts/bench.py training     # pure training: stacks against one run after another
    python scripts/bench.py growth       # time and memory against the number of members
    python scripts/bench.py step         # a stack's step on one core, beside JAX's if JAX is installed
    python scripts/bench.py width        # a ConvNet's step on one core by its width, alone and in a stack
    python scripts/bench.py overhead     # what a run costs beside its training

Each replaces the rows of this device in ``results/bench/*.csv`` and makes the tables and the figure again.
Ratios are of times taken side by side in one call. ``--device cuda`` fills the cells of a GPU.
"""

from __future__ import annotations

import argparse
import functools
import multiprocessing
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import bench_step  # noqa: E402
import bench_table as bench  # noqa: E402
import torch  # noqa: E402 - the project is found first

from wn.config import Config  # noqa: E402
from wn.config.compose import compose  # noqa: E402
from wn.records import read_experiment  # noqa: E402
from wn.resources import configure_torch, largest_stack, resolve  # noqa: E402
from wn.sweep import train_sweep  # noqa: E402
from wn.trainer import Observer, Trainer  # noqa: E402

Row = dict[str, Any]

MODELS = {
    "64-128-128-10 (digits)": {"data": "digits", "model.widths": [128, 128]},
    "784-256-256-10 (MNIST)": {"data": "mnist", "model.widths": [256, 256]},
}
NORMS = ("none", "batch_norm", "weight_norm", "weight_norm_init", "mean_only_bn")
LRS = 13
SEEDS = 5
MEMBERS = (1, 4, 16, 64, 256)
SWEEP = [
    f"norm={','.join(NORMS)}",
    "optim.lr=1e-4,2e-4,5e-4,1e-3,2e-3,5e-3,1e-2,2e-2,5e-2,0.1,0.2,0.5,1.0",
    "seed=0,1,2,3,4",
]
"""On the default model and data: an MLP 64-128-128-10 on digits, 30 epochs of SGD with momentum 0.9."""

LAUNCHERS = {
    "stacked": [],
    "one by one": ["hydra.launcher.members=1", "hydra.launcher.workers=1"],
}


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["sweep", "training", "growth", "overhead", "step", "width"])
    parser.add_argument("--device", type=bench.device, default="auto")
    parser.add_argument("--data-root", help="where MNIST lies; without it, it is downloaded to data/")
    parser.add_argument("--steps", type=int, default=30, help="steps that are timed (training)")
    parser.add_argument("--models", nargs="+", choices=["digits", "mnist"], default=["digits", "mnist"])
    options = parser.parse_args()
    device = options.device
    place = {"trainer.device": str(device), "data.root": options.data_root}
    models = {name: {**s, **place} for name, s in MODELS.items() if s["data"] in options.models}
    measure: dict[str, Callable[[], list[Row]]] = {
        "sweep": lambda: sweep(str(device)),
        "training": lambda: training(models, options.steps),
        "growth": lambda: growth(models),
        "overhead": overhead,
        "step": bench_step.step,
        "width": bench_step.width,
    }
    if options.what in bench.ONE_CORE:
        bench_step.on_one_core()  # before the device is named, threads and all
        device = torch.device("cpu")
    origin = bench.origin(device)
    rows = [{**origin, **row} for row in measure[options.what]()]
    print(bench.record(options.what, rows, ROOT / "results" / "bench"))


def overhead() -> list[Row]:
    """Milliseconds that a run costs beside its training: the slope between 20 and 2,000 runs of one epoch."""
    tiny = {"model.widths": [4], "trainer.epochs": 1, "trainer.batch_size": 500, "trainer.progress": False}
    seconds: dict[int, dict[str, float]] = {}
    for runs in (20, 2000):
        with tempfile.TemporaryDirectory() as folder:
            base = compose({**tiny, "tracking.mode": "disabled", "runs_dir": folder, "trainer.device": "cpu"})
            configs = [base.model_copy(update={"seed": seed}) for seed in range(runs)]
            took = {"first call": _seconds_of(lambda c=configs: train_sweep(c, workers=1))}
            took["second call"] = _seconds_of(lambda c=configs: train_sweep(c, workers=1))
            took["reading records"] = _seconds_of(lambda f=folder: list(read_experiment(Path(f), "adhoc")))
            seconds[runs] = took
    return [
        {"what": what, "ms_a_run": round((seconds[2000][what] - seconds[20][what]) / 1980 * 1000, 3)}
        for what in seconds[20]
    ]


def _seconds_of(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def sweep(device: str) -> list[Row]:
    """Seconds from process start to printed table, in stacks and one by one, in folders of their own."""
    rows = []
    for launcher, limits in LAUNCHERS.items():
        with tempfile.TemporaryDirectory() as folder:
            train = ["wn.train", "-m", *SWEEP, f"runs_dir={folder}/runs", *limits]
            words = [sys.executable, "-m", *train, "trainer.progress=false", f"trainer.device={device}"]
            started = time.perf_counter()
            subprocess.run(words, check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
            seconds = time.perf_counter() - started
        print(f"{launcher}: {seconds:.1f} s", flush=True)
        rows.append({"launcher": launcher, "runs": len(NORMS) * LRS * SEEDS, "seconds": round(seconds, 1)})
    return rows


def training(models: dict[str, Row], steps: int) -> list[Row]:
    """Milliseconds that a step of a run takes, alone and in stacks of the launcher's choice."""
    rows = []
    cores = torch.get_num_threads()
    for model, settings in models.items():
        for norm in NORMS:
            group = _group(compose({**settings, "norm": norm}))
            device, dataset = resolve(group[0])
            workers = cores if device.type == "cpu" else 1
            size = largest_stack(group[0], device, dataset)
            count = min(len(group), workers * -(-len(group) // (size * workers)))
            stacks = [group[i::count] for i in range(count)]
            some = group[:: max(1, len(group) // 5)]
            alone = {threads: _seconds([[c] for c in some], steps, 1, threads) for threads in {1, cores}}
            stacked = _seconds(stacks, steps, workers, 1)
            best = min(alone, key=lambda threads: alone[threads])
            row = {
                "model": model,
                "norm": norm,
                "alone_ms": alone[best] / len(some) / steps * 1000,
                "threads": best,
                "stacked_ms": stacked / len(group) / steps * 1000,
                "members": len(stacks[0]),
                "workers": workers,
            }
            print(row, flush=True)
            rows.append({key: round(v, 4) if isinstance(v, float) else v for key, v in row.items()})
    return rows


def growth(models: dict[str, Row]) -> list[Row]:
    """Time of a step and memory of stacks of growing size, each in a process of its own."""
    rows = []
    for model, settings in models.items():
        config = compose({**settings, "norm": "weight_norm"})
        for members in MEMBERS:
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                measured = pool.apply(_grow, (config, members))
            rows.append({"model": model, "members": members, **measured})
            print(rows[-1], flush=True)
    return rows


def _grow(config: Config, members: int) -> Row:
    """Time of a step of a stack, and what the process takes for it beyond what it held before."""
    device, _ = resolve(config)
    cuda = device.type == "cuda"
    before = torch.cuda.memory_allocated() if cuda else _resident()
    seconds = min(_time_steps(_group(config)[:1] * members, 5) for _ in range(3)) / 5
    if cuda:
        measured = torch.cuda.max_memory_allocated() - before
    else:
        measured = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
    return {"step_ms": round(seconds * 1000, 3), "measured_mib": round(measured / 2**20, 1)}


def _resident() -> int:
    """Memory that this process has now, in bytes (Linux)."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def _group(config: Config) -> list[Config]:
    """The runs of a sweep over learning rates and seeds."""
    lrs = [config.optim.model_copy(update={"lr": 10 ** (-4 + i / 3)}) for i in range(LRS)]
    return [config.model_copy(update={"optim": o, "seed": s}) for o in lrs for s in range(SEEDS)]


def _seconds(stacks: list[list[Config]], steps: int, processes: int, threads: int) -> float:
    """Time in which some processes train all stacks for some steps, the fastest of three; they are warm."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(processes, torch.set_num_threads, (threads,)) as pool:
        times = []
        for n in (2, steps, steps, steps):
            spent = pool.map(functools.partial(_time_steps, steps=n), stacks, chunksize=1)
            times.append(sum(spent) / processes)
        return min(times[1:])  # the first was the warm-up


def _time_steps(stack: list[Config], steps: int) -> float:
    """Seconds that the steps of a stack take, without what comes before and after."""
    device, dataset = resolve(stack[0])
    configure_torch(stack[0].trainer, device)
    trainer = Trainer(stack, dataset, device, Observer())
    trainer.optimizer.set_epoch(0, 1)
    batches = list(_batches(trainer, steps + 1))
    trainer.update(batches[0])
    if device.type == "cuda":
        torch.cuda.synchronize()
    started = time.perf_counter()
    for batch in batches[1:]:
        trainer.update(batch)
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def _batches(trainer: Trainer, count: int) -> Iterator[torch.Tensor]:
    epoch = 0
    while count > 0:
        epoch += 1
        whole = trainer.batches(epoch)
        yield from whole[:count]
        count -= len(whole)


if __name__ == "__main__":
    main()
