"""From configurations to records: claim the runs, train them as one stack, write down what happens.

A stack that a kill cut short is resumed as the stack that it was, each member in its old place, so that
its numbers are those of an uninterrupted one to the last digit. Every record names the stack it trains
in; the stack's checkpoint lies in ``runs/<experiment>/stacks/``.
"""

from __future__ import annotations

import functools
import io
import logging
import os
import re
import time
import traceback
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from wn import data, memory, models, records, tracking
from wn.checkpoints import Checkpoints
from wn.config import Config, DataConfig, VAEConfig
from wn.objectives import Objective, objective_of
from wn.records import Record, Row
from wn.stops import Stopped, Watch
from wn.trainer import DTYPES, Trainer, pick_device, steps_per_epoch

log = logging.getLogger(__name__)

FLUSH_SECONDS = 5.0
"""How long rows may wait in memory. What a kill takes with them, the resumed run makes again."""


def check(configs: Iterable[Config]) -> None:
    """Refuse runs that cannot be trained here, before any of them is.

    Raises:
        UserError: there is no such device, the data cannot be had, or are too few or too small.
    """
    for config in {(c.model, c.data, c.trainer): c for c in configs}.values():
        prepare(config)


def train_stack(configs: Sequence[Config], resuming: bool = False) -> None:
    """Train runs that differ only in numbers as one stack; the records hold what came of it.

    Args:
        configs: the members. Those that are done, or that another process trains, are left out.
        resuming: whether these are all the members of a stack that was cut short. Then the done ones
            train along, unrecorded, and nothing happens while another process has one of them.

    Raises:
        UserError: the configurations cannot be trained here; no record says otherwise.
        Stopped: a signal or ``trainer.max_minutes`` asked for it; what was in training is saved.
    """
    with ExitStack() as claims:
        members = []
        for config in configs:
            record = Record.of(config)
            if record.claim():
                claims.callback(record.release)
                if resuming or not record.done:
                    members.append((config, record))
            elif resuming:
                return
        if any(not record.done for _, record in members):
            with Watch(configs[0].trainer.max_minutes) as watch:
                if stop := watch.stop(f"before {title(configs)}"):
                    raise stop
                _Session(members, watch).train()


class RunFailed(Exception):
    """A run ended with an exception; the traceback is in its record."""


def conclude(record: Record) -> float:
    """The validation loss that a run ended with; for a diverged one that of its start.

    Raises:
        RunFailed: the run failed.
    """
    if record.status == "failed":
        last = record.content["error"].splitlines()[-1]
        raise RunFailed(
            f"run {record.content['run_id']} failed: {last} (traceback: {record.folder}/record.json)"
        )
    stage = {"finished": "final", "diverged": "initial"}.get(record.status)
    loss = record.content[stage].get("valid_loss") if stage else None
    return float("nan") if loss is None else float(loss)


def prepare(config: Config) -> tuple[torch.device, data.Dataset]:
    """Device and data of a run, once it is clear that it can be trained on them.

    Raises:
        UserError: it cannot.
    """
    memory.keep_freed_memory()
    device = pick_device(config.trainer.device)
    _be_deterministic(config.trainer.deterministic)
    round_products(config.trainer.precision == "tf32")
    dataset = _load(
        config.data, device, DTYPES[config.trainer.precision], isinstance(config.model, VAEConfig)
    )
    models.check(config.model, dataset.shape)
    steps_per_epoch(config, dataset)
    return device, dataset


def _be_deterministic(wanted: bool) -> None:
    """Have torch take the operations that give the same bits each time, and refuse those that cannot."""
    if wanted:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it at its first product
    if wanted != torch.are_deterministic_algorithms_enabled():
        torch.use_deterministic_algorithms(wanted)


def round_products(wanted: bool) -> None:
    """Let a GPU round the factors of products in float32, or not: torch would for convolutions alone."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = wanted


class _Session:
    """One stack being trained: the trainer's observer, and the scribe of its members' records."""

    def __init__(self, members: list[tuple[Config, Record]], watch: Watch) -> None:
        self.watch = watch
        self.configs = [config for config, _ in members]
        self.records = [record for _, record in members]
        self.config = self.configs[0]
        self.objective = objective_of(self.config.model)
        self.open = {i for i, record in enumerate(self.records) if not record.done}
        self.rows: dict[int, tuple[list[Row], list[Row]]] = {i: ([], []) for i in self.open}
        self.started = self.flushed = time.monotonic()
        self.live: tracking.LiveMirror | None = None
        self.ids = [config.run_id for config in self.configs]
        self.checkpoints = self._checkpoints_of(self.ids)

    def _checkpoints_of(self, ids: list[str]) -> Checkpoints:
        """The checkpoints of a stack of this experiment."""
        return Checkpoints(Path(self.config.runs_dir) / self.config.experiment_name / "stacks", ids)

    def train(self) -> None:
        """Train to the end, or to a stop; an exception ends the members that are open as ``failed``."""
        device, dataset = prepare(self.config)
        self._begin(device_name(device))
        try:
            trainer = Trainer(self.configs, dataset, device, self)
            self._resume(trainer)
            self._run(trainer)
        except Stopped:
            if self.live is not None:
                self.live.pause()
            raise
        except Exception as error:
            self._fail(error)
        else:
            self.checkpoints.remove()
        if self.live is not None:
            self.live.finish(self.records[0])

    def _begin(self, device: str) -> None:
        """Name the stack and the device in its members' records.

        One that was cut short in another stack leaves that for good: its rows are this one's from here
        on, so the other, if it goes on, has to start anew and its checkpoint goes.
        """
        self.devices = [device]
        for i in sorted(self.open):
            left = self.records[i].content.get("stack", self.ids)
            if left != self.ids:
                self._checkpoints_of(left).remove()
            self.records[i].begin(self.configs[i], self.ids, device)

    def _run(self, trainer: Trainer) -> None:
        """Run the trainer under a progress bar; a run alone is copied to W&B as it goes."""
        if len(self.configs) == 1:
            self.live = tracking.open_live(self.records[0], self.config.tracking)
        shown = self.config.trainer.progress
        with tqdm(total=trainer.total, unit="step", leave=False, disable=None if shown else True) as self.bar:
            self.bar.set_description(title(self.configs))
            self.bar.update(trainer.step)
            trainer.run()

    def _resume(self, trainer: Trainer) -> None:
        """Go on from the newest checkpoint that is whole, else from the beginning."""

        def go_on(content: Row) -> None:
            seconds, devices = float(content["seconds"]), [*content["devices"], *self.devices]
            trainer.restore(content["trainer"])
            self.started -= seconds
            self.devices = list(dict.fromkeys(devices))
            log.info("%s: going on from step %d of %d", title(self.configs), trainer.step, trainer.total)

        self.checkpoints.restore(go_on)
        for i in self.open:
            self.records[i].rewind(trainer.step if trainer.step else -1)

    def stop(self, done: int, total: int) -> Stopped | None:
        """The stop that a signal or the clock asks for."""
        return self.watch.stop(f"{title(self.configs)}, step {done} of {total}")

    def on_step(self, done: int, total: int) -> None:
        """Move the progress bar."""
        self.bar.update(done - self.bar.n)

    def on_epoch(self, member: int, metrics: Row, probes: list[Row]) -> None:
        """Keep the rows, and write them down now and then."""
        if member not in self.open:
            return
        self.rows[member][0].append(metrics)
        self.rows[member][1].extend(probes)
        if self.live is not None:
            self.live.log([metrics], probes)
        criterion = self.objective.criterion
        shown = {"loss": metrics.get("train_loss"), f"valid {criterion}": metrics.get(f"valid_{criterion}")}
        self.bar.set_postfix({k: f"{v:.4f}" for k, v in shown.items() if v is not None}, refresh=False)
        if time.monotonic() - self.flushed > FLUSH_SECONDS:
            self._flush()

    def on_pictures(self, member: int, pictures: dict[str, Tensor]) -> None:
        """Write a member's pictures, each as a grid of images in the record's folder."""
        if member in self.open:
            for name, images in pictures.items():
                self.records[member].save_picture(name, png(images))

    def on_end(self, member: int, status: str, result: Row) -> None:
        """Write a member's result."""
        if member not in self.open:
            return
        self._flush()
        summary = _summary(self.records[member].metrics, self.objective)
        if status == "finished":
            summary["final"] |= result
        self._close(member, status, summary if status == "finished" else {**summary, "diverged_at": result})

    def on_checkpoint(self, state: Row) -> None:
        """Write the rows, then the state that stands behind them."""
        self._flush()
        seconds = time.monotonic() - self.started
        self.checkpoints.save({"trainer": state, "seconds": seconds, "devices": self.devices})

    def _fail(self, error: Exception) -> None:
        self._flush()
        for member in sorted(self.open):
            self._close(member, "failed", {"error": _describe(error)})

    def _close(self, member: int, status: str, result: Row) -> None:
        seconds = (time.monotonic() - self.started) / len(self.records)
        record = self.records[member]
        made = {**record.content["provenance"], "device": ", then ".join(self.devices)}
        record.save(status=status, seconds=round(seconds, 3), provenance=made, **result)
        self.open.remove(member)

    def _flush(self) -> None:
        for member in self.open:
            metrics, probes = self.rows[member]
            self.records[member].append(metrics, probes)
            self.rows[member] = ([], [])
        self.flushed = time.monotonic()


def _summary(rows: list[Row], objective: Objective) -> Row:
    """The numbers of ``record.json``: before training, after the last epoch, and at the best one."""
    train, valid = ([f"{part}_{name}" for name in objective.metrics] for part in ("train", "valid"))
    criterion = f"valid_{objective.criterion}"
    known = [row for row in rows if row.get(criterion) is not None]
    best = min(known, key=lambda row: row[criterion], default={})
    return {
        "initial": {key: rows[0].get(key) for key in valid},
        "final": {key: rows[-1].get(key) for key in train + valid},
        "best": {key: best.get(key) for key in ("epoch", criterion)},
        "steps": rows[-1]["step"],
    }


def _describe(error: Exception) -> str:
    """An exception and the lines that led to it, without a folder of this machine."""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [f"{'/'.join(Path(f.filename).parts[-2:])}:{f.lineno} in {f.name}: {f.line}" for f in frames]
    text = "\n".join([*lines, f"{type(error).__name__}: {' '.join(str(error).split())}"])
    return re.sub(r"(?<![\w/.~:])/(?:[^/\s'\"]+/)+", "", text)


def png(images: Tensor) -> bytes:
    """Images ``[images, channels, height, width]`` from 0 to 1 as one PNG of sixteen a row."""
    from torchvision.utils import save_image  # slow to import, and needed for pictures alone

    file = io.BytesIO()
    save_image(images.float(), file, format="png", nrow=16, padding=1, pad_value=0.5)
    return file.getvalue()


def title(configs: Sequence[Config]) -> str:
    """What to call a stack, or a run alone, on a screen."""
    one = configs[0]
    what = f"lr={one.optim.lr:g} seed={one.seed}" if len(configs) == 1 else f"({len(configs)} runs)"
    return f"{one.model.name} {one.norm.label} {one.optim.name} {what}"


def device_name(device: torch.device) -> str:
    """The kind of the processor: never the machine's name."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return (
        f"{records.cpu_name()} ({torch.get_num_threads()} threads)" if device.type == "cpu" else device.type
    )


@functools.lru_cache(maxsize=2)
def _load(config: DataConfig, device: torch.device, dtype: torch.dtype, unit: bool) -> data.Dataset:
    """The data, once for all the stacks of a sweep."""
    return data.load(config, device, dtype, unit)
