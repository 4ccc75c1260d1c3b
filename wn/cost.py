"""What training would cost (``trainer.dry_run=true``): runs, stacks, minutes on this device, gigabytes."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from wn.config import Config, VAEConfig
from wn.data import Dataset, sources
from wn.probes import measure
from wn.records import Record, to_json
from wn.resources import device_name, uncompiled
from wn.timings import Timings, spoken
from wn.trainer import Trainer

ROW = 300  # bytes of a line of metrics
MEASURED = 0.5  # seconds for which steps are repeated, after one to warm up


def to_download(configs: Sequence[Config]) -> str | None:
    """The data sets that are not there, with their sizes; None where all are."""
    lacking = {c.data.name: sources.megabytes(c.data) for c in configs}
    texts = [f"{name} ({size} MB)" for name, size in lacking.items() if size]
    return f"to download first: {', '.join(texts)}; then ask again for time and space" if texts else None


def estimate(
    stacks: list[list[Config]], device: torch.device, data: Dataset, workers: int
) -> tuple[str, str]:
    """Time and space that these stacks will take on one device, in a line each."""
    folders = {Path(c.runs_dir) for stack in stacks for c in stack}
    timings = Timings(Record.peek(path.parent) for f in folders for path in f.glob("*/*/record.json"))
    name = device_name(device, threads=max(1, torch.get_num_threads() // workers))  # as a worker's
    seconds, space, while_training = 0.0, 0.0, 0.0
    known: dict[str, tuple[float, float, float]] = {}
    for stack in stacks:
        one, size = stack[0], len(stack)
        took = timings.seconds(one, name, size)
        if took is None:
            if one.stack_key not in known:
                known[one.stack_key] = _one_step(stack, device, data, workers)
            measured, record, checkpoint = known[one.stack_key]
            while_training = max(while_training, 2 * checkpoint * size * workers)  # the newest two
        seconds += size * (measured if took is None else took)
        space += size * (timings.bytes(one) or record)
    how = "by a measured step, uncompiled" if known else "as finished runs took"
    many = f", in {workers} processes" * (workers > 1)
    return (
        f"time: {spoken(seconds / workers)} on {name}{many}, {how}",
        f"space: {space / 1e9:.2g} GB of records"
        + f", and {while_training / 1e9:.2g} GB for checkpoints while it trains" * bool(while_training),
    )


def _one_step(
    stack: list[Config], device: torch.device, data: Dataset, workers: int
) -> tuple[float, float, float]:
    """Of a member: seconds, bytes of its record, bytes of its checkpoint."""
    settings = stack[0].trainer
    threads = torch.get_num_threads()
    torch.set_num_threads(max(1, threads // workers))  # as each worker will have
    try:
        trainer = uncompiled(stack, device, data)  # an upper bound
        batch = trainer.batches(1)[0]
        step = _seconds(lambda: trainer.update(batch), trainer)
        part = data.valid if len(data.valid.x) else data.test
        evaluation = _seconds(lambda: trainer.evaluate("valid" if part is data.valid else "test"), trainer)
        probes = sum(map(trainer._probe_is_due, range(1, settings.epochs + 1))) + 1
        rows = len(to_json(measure(trainer.stack, None, trainer.optimizer.hyper["lr"])[0]))
        tensors = [t for tree in trainer._trees().values() for t in tree.values()]
    finally:
        torch.set_num_threads(threads)
    image = evaluation / len(part.x)
    each = image * (len(data.valid.x) + len(data.test.x) / (settings.test_every or math.inf))
    epochs = settings.epochs * (trainer.steps_per_epoch * step + each)
    at_end = settings.iwae_samples if isinstance(stack[0].model, VAEConfig) else 1
    seconds = epochs + at_end * image * min(settings.iwae_images or math.inf, len(data.test.x))
    checkpoint = sum(t.numel() * t.element_size() for t in tensors) / len(stack)
    return seconds / len(stack), settings.epochs * ROW + probes * rows, checkpoint


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
