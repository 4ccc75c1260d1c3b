"""What training would cost (``trainer.dry_run=true``): runs, stacks, and minutes on this device."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from wn.config import Config, VAEConfig
from wn.data import Dataset, sources
from wn.records import Record
from wn.resources import device_name, uncompiled
from wn.timings import Timings, spoken
from wn.trainer import Trainer

MEASURED = 0.5  # seconds for which steps are repeated, after one to warm up


def to_download(configs: Sequence[Config]) -> str | None:
    """The data sets that are not there, with their sizes; None where all are."""
    lacking = {c.data.name: sources.megabytes(c.data) for c in configs}
    texts = [f"{name} ({size} MB)" for name, size in lacking.items() if size]
    return f"to download first: {', '.join(texts)}; then ask again for the time" if texts else None


def estimate(stacks: list[list[Config]], device: torch.device, data: Dataset, workers: int) -> str:
    """A line that says how long these stacks will take on one device."""
    folders = {Path(c.runs_dir) for stack in stacks for c in stack}
    timings = Timings(Record.peek(path.parent) for f in folders for path in f.glob("*/*/record.json"))
    name = device_name(device, threads=max(1, torch.get_num_threads() // workers))  # as a worker's
    seconds, known = 0.0, dict[str, float]()
    for stack in stacks:
        one, size = stack[0], len(stack)
        took = timings.seconds(one, name, size)
        if took is None:
            if one.stack_key not in known:
                known[one.stack_key] = _one_step(stack, device, data, workers)
            took = known[one.stack_key]
        seconds += size * took
    how = "by a measured step, uncompiled" if known else "as finished runs took"
    many = f", in {workers} processes" * (workers > 1)
    return f"time: {spoken(seconds / workers)} on {name}{many}, {how}"


def _one_step(stack: list[Config], device: torch.device, data: Dataset, workers: int) -> float:
    """Seconds of a member."""
    settings = stack[0].trainer
    threads = torch.get_num_threads()
    torch.set_num_threads(max(1, threads // workers))  # as each worker will have
    try:
        trainer = uncompiled(stack, device, data)  # an upper bound
        batch = trainer.batches(1)[0]
        step = _seconds(lambda: trainer.update(batch), trainer)
        part = data.valid if len(data.valid.x) else data.test
        evaluation = _seconds(lambda: trainer.evaluate("valid" if part is data.valid else "test"), trainer)
    finally:
        torch.set_num_threads(threads)
    image = evaluation / len(part.x)
    each = image * (len(data.valid.x) + len(data.test.x) / (settings.test_every or math.inf))
    epochs = settings.epochs * (trainer.steps_per_epoch * step + each)
    at_end = settings.iwae_samples if isinstance(stack[0].model, VAEConfig) else 1
    seconds = epochs + at_end * image * min(settings.iwae_images or math.inf, len(data.test.x))
    return seconds / len(stack)


def _seconds(work: Callable[[], object], trainer: Trainer) -> float:
    work()
    times: list[float] = []
    while sum(times) < MEASURED:
        trainer.totals.sum().item()  # waits for a GPU
        began = time.perf_counter()
        work()
        trainer.totals.sum().item()
        times.append(time.perf_counter() - began)
    return min(times)
