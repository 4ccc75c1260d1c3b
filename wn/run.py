"""From configurations to records: claim the runs, train them as one stack, write down what happens.

A stack that a kill cut short is resumed as the stack that it was, each member in its old place, so that its
numbers are those of an uninterrupted one to the last digit. Every record names the stack that it trains in.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import logging
import re
import time
import traceback
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from wn import tracking, trained
from wn.checkpoints import Checkpoints
from wn.config import Config, UserError
from wn.config.errors import ends_training
from wn.metrics import objective_of
from wn.provenance import ROOT, THEN, began_with, code_of, provenance
from wn.records import Record, Row
from wn.resources import configure_torch, device_name, resolve
from wn.stops import Preempted, StopWatcher
from wn.trainer import Observer, Trainer

log = logging.getLogger(__name__)

FLUSH_SECONDS = 5.0  # that rows may wait in memory; those that a kill takes, the resumed run makes again


def train_stack(configs: Sequence[Config]) -> bool:
    """Train runs that differ only in numbers as one stack; the records hold what came of it.

    Runs that are done, or that another process trains, are left out. Where these are all the members of a
    stack that was cut short, those that are done by now, have gone on in another stack, or have lost their
    record train along, unrecorded, and nothing happens while another process has one of them. A stack that
    runs out of memory is split in two; one with a checkpoint fails and keeps it, and goes on from there when
    it is trained again, unless a member has ended since.

    Returns:
        Whether anything was trained here.

    Raises:
        UserError: the runs cannot be trained here, or not as they are to be; none counts as failed.
        Preempted: a signal or ``trainer.max_minutes`` asked for it; what was in training is saved.
    """
    ids = [config.run_id for config in configs]
    with contextlib.ExitStack() as claims:
        claimed = []
        for config, run_id in zip(configs, ids, strict=True):
            record = Record.unread(config, run_id)
            if record.claim():
                claims.callback(record.release)
                claimed.append((config, record))
            elif not claimed:  # of two processes that come to a stack at once, one takes all of it
                return False
        cut = {record.folder.name for _, record in claimed if _trains_in(record, ids)}
        if cut and len(claimed) < len(configs):
            return False
        members = [(config, record) for config, record in claimed if cut or not record.done]
        if all(record.done for _, record in members):
            return False
        with StopWatcher(configs[0].trainer.max_minutes) as watcher:
            if stop := watcher.stop(f"before {title(configs)}"):
                raise stop
            fits = _Session(members, cut, watcher).train()
    if not fits:
        log.warning("%s: out of memory; going on with two halves", title(configs))
        return any([train_stack([config for config, _ in half]) for half in (members[::2], members[1::2])])
    return True


def _trains_in(record: Record, stack: Sequence[str]) -> bool:
    """Whether a run was cut short as a member of this stack."""
    return record.status == "running" and record.content["stack"] == list(stack)


class RunFailed(Exception):
    """A run ended with an exception; the traceback is in its record."""


def raise_if_failed(record: Record) -> None:
    """RunFailed, with the way to the traceback."""
    if record.status == "failed":
        last, where = record.content["error"].splitlines()[-1], f"{record.folder}/record.json"
        raise RunFailed(f"run {record.content['run_id']} failed: {last} (traceback: {where})")


def final_loss(record: Record) -> float:
    """The validation loss that a run ended with (a diverged one: began with); RunFailed where it failed."""
    raise_if_failed(record)
    stage = {"finished": "final", "diverged": "initial"}.get(record.status)
    loss = record.content[stage].get("valid_loss") if stage else None
    return float("nan") if loss is None else float(loss)


class _Session(Observer):
    """One stack in training: observes the trainer and writes the records.

    ``cut`` are the runs of a stack that was cut short and go on; the others of it train along.
    """

    def __init__(self, members: list[tuple[Config, Record]], cut: set[str], watcher: StopWatcher) -> None:
        self.watcher = watcher
        self.configs = [config for config, _ in members]
        self.records = [record for _, record in members]
        self.config = self.configs[0]
        self.title = title(self.configs)
        self.objective = objective_of(self.config.model)
        self.selection = f"valid_{self.objective.selection_metric}"
        self.models: dict[int, Row] = {}
        self.started = self.flushed = time.monotonic()
        self.live: tracking.LiveMirror | None = None
        self.ids = [record.content["run_id"] for record in self.records]
        self.stacks = self.records[0].folder.parent / "stacks"
        self.checkpoints = Checkpoints(self.stacks, self.ids)
        elsewhere = {r.folder.name for r in self.records if cut and r.status == "running"} - cut
        left = {r.folder.name for r in self.records if not r.done} - elsewhere
        recorded = cut if cut and self.checkpoints.exist() else left  # without a checkpoint all begin anew
        self.open = {i for i, record in enumerate(self.records) if record.folder.name in recorded}
        self.rows: dict[int, tuple[list[Row], list[Row]]] = {i: ([], []) for i in self.open}

    def train(self) -> bool:
        """Train to the end; an exception fails the open members. False where memory ran out instead."""
        device, self.dataset = resolve(self.config)
        configure_torch(self.config.trainer, device)
        self.devices = [device_name(device)]
        self.made = [code_of(provenance(*self.devices))]
        left = {tuple(self.records[i].content.get("stack", self.ids)) for i in self.open} - {tuple(self.ids)}
        for i in sorted(self.open):
            self.records[i].begin(self.configs[i], self.ids, *self.devices)
        for stack in left:  # from now on its members here belong to this stack
            if not any(_trains_in(Record.of(self.config, run_id), stack) for run_id in stack):
                Checkpoints(self.stacks, stack).remove()
        try:
            trainer = Trainer(self.configs, self.dataset, device, self)
            self._resume(trainer)
            if len(self.configs) == 1:  # a run alone is copied to W&B as it goes
                self.live = tracking.LiveMirror(self.records[0], self.config.tracking)
            hidden = None if self.config.trainer.progress else True  # None: where nobody watches
            with tqdm(total=trainer.total, unit="step", leave=False, disable=hidden) as self.bar:
                self.bar.set_description(self.title)
                self.bar.update(trainer.step)
                trainer.run()
        except Preempted:
            self._pause()
            raise
        except Exception as error:
            # What the user can mend is no failure of the runs: they go on from their checkpoint.
            if ends_training(error) or isinstance(error, UserError):
                self._pause()
                raise
            stacked = len(self.configs) > 1 and isinstance(error, torch.OutOfMemoryError)
            if stacked and not self.checkpoints.exist():  # nothing that was saved is lost by a split
                return False
            remedy = "; if it comes again, train fewer together: hydra.launcher.members=N" * stacked
            self._flush(self.open)
            for member in sorted(self.open):
                self._close(member, "failed", {"error": _describe(error) + remedy})
        else:
            self.checkpoints.remove()
        if self.live is not None:
            self.live.finish(self.records[0])
        return True

    def _pause(self) -> None:
        if self.live is not None:
            self.live.pause()

    def _resume(self, trainer: Trainer) -> None:
        """Go on from the newest checkpoint that is whole, with the rows that were there; else start anew."""

        def go_on(content: Row) -> None:
            seconds, devices = float(content["seconds"]), [*content["devices"], *self.devices]
            made = [*content.get("made", []), *self.made]
            if missing := [self.ids[i] for i in self.open if self.ids[i] not in content["sizes"]]:
                raise ValueError(f"run {missing[0]} had ended when it was written")
            for i in self.open:
                self.records[i].rewind(content["sizes"][self.ids[i]])
            trainer.restore(content["trainer"])
            self.started -= seconds
            self.devices = list(dict.fromkeys(devices))
            self.made = [one for one, _ in itertools.groupby(made)]
            if told := began_with(self.made):
                log.warning("%s: %s", self.title, told)
            log.info("%s: going on from step %d of %d", self.title, trainer.step, trainer.total)

        if not self.checkpoints.restore(go_on):
            for i in self.open:
                self.records[i].rewind([0, 0])

    def stop(self, done: int, total: int) -> Preempted | None:
        return self.watcher.stop(f"{self.title}, step {done} of {total}")

    def on_step(self, done: int, total: int) -> None:
        self.bar.update(done - self.bar.n)

    def on_epoch(self, member: int, metrics: Row, probes: list[Row]) -> None:
        if member not in self.open:
            return
        self.rows[member][0].append(metrics)
        self.rows[member][1].extend(probes)
        if self.live is not None:
            self.live.log([metrics], probes)
        shown = {"loss": metrics.get("train_loss"), self.selection: metrics.get(self.selection)}
        self.bar.set_postfix({k: f"{v:.4f}" for k, v in shown.items() if v is not None}, refresh=False)
        if time.monotonic() - self.flushed > FLUSH_SECONDS:
            self._flush(self.open)

    def on_bounds(self, done: int, total: int) -> None:
        self.bar.set_postfix_str(f"IWAE bound: {done} of {total} images")

    def on_pictures(self, member: int, pictures: dict[str, Tensor]) -> None:
        if member in self.open:
            for name, images in pictures.items():
                self.records[member].save_picture(name, png(images))

    def on_model(self, member: int, state: dict[str, Tensor]) -> None:
        if member in self.open and self.config.trainer.save:
            self.models[member] = trained.save(self.records[member], state, self.dataset)

    def on_end(self, member: int, status: str, result: Row) -> None:
        """Record the numbers before training, after the last epoch, and at the best one."""
        if member not in self.open:
            return
        self._flush([member])
        rows = self.records[member].metrics
        train, valid = ([f"{part}_{name}" for name in self.objective.names] for part in ("train", "valid"))
        known = [row for row in rows if row.get(self.selection) is not None]
        best = min(known, key=lambda row: row[self.selection], default={})
        summary: Row = {
            "initial": {key: rows[0].get(key) for key in valid},
            "final": {key: rows[-1].get(key) for key in train + valid},
            "best": {key: best.get(key) for key in ("epoch", self.selection)},
            "steps": rows[-1]["step"],
        }
        if status == "finished":
            summary["final"] |= result
            summary |= {"model": self.models.pop(member)} if member in self.models else {}
        else:
            summary["diverged_at"] = result
        self._close(member, status, summary)

    def on_checkpoint(self, state: Row) -> None:
        """Write the rows, then the state that they lead to."""
        self._flush(self.open)
        made = {"seconds": time.monotonic() - self.started, "devices": self.devices, "made": self.made}
        sizes = {self.ids[i]: self.records[i].sizes() for i in self.open}
        self.checkpoints.save({"trainer": state, **made, "sizes": sizes})

    def _close(self, member: int, status: str, result: Row) -> None:
        record = self.records[member]
        seconds = round((time.monotonic() - self.started) / len(self.records), 3)
        made = record.content["provenance"] | {"device": THEN.join(self.devices)}
        if before := self.made[:-1]:
            dirty = any(one["dirty"] for one in self.made)
            made |= {"before": before, "dirty": dirty or made["dirty"]}
        record.save(status=status, seconds=seconds, provenance=made, **result)
        self.open.remove(member)

    def _flush(self, members: Iterable[int]) -> None:
        for member in members:
            self.records[member].append(*self.rows[member])
            self.rows[member] = ([], [])
        self.flushed = time.monotonic()


def _describe(error: Exception) -> str:
    """An exception and the lines that led to it, without a folder of this machine."""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [f"{_place(Path(f.filename))}:{f.lineno} in {f.name}: {f.line}" for f in frames]
    text = "\n".join([*lines, f"{type(error).__name__}: {' '.join(str(error).split())}"])
    for find in (Path.cwd, Path.home):  # whose names may have spaces in them
        with contextlib.suppress(OSError, RuntimeError):  # it is gone, or nobody's
            if (folder := find()).name:
                text = re.sub(re.escape(str(folder)) + r"(?![\w.-])", "~", text)
    starts = r"(?:(?<![\w/.~:])|(?<=file:)|(?<=:)(?!//))/{1,3}"  # not those of an address, https://...
    return re.sub(rf"~/(?:[^/\s'\"]+/)*|{starts}(?:[^/\s'\"]+/)+", "", text)


def _place(file: Path) -> str:
    """Module and folder, where the folder is a package's and not the user's."""
    if file.is_relative_to(ROOT):
        file = file.relative_to(ROOT)
    elif not {"site-packages", "dist-packages"} & {*file.parts}:
        return file.name
    return "/".join(file.parts[-2:])


def png(images: Tensor) -> bytes:
    """Images ``[images, channels, height, width]`` from 0 to 1 as one PNG of sixteen a row.

    Of more than four channels it shows the mean.
    """
    from torchvision.utils import save_image  # slow to import, and needed for pictures alone

    if images.shape[1] > 4:  # no format of pictures has so many channels
        images = images.mean(1, keepdim=True)
    file = io.BytesIO()
    save_image(images.float(), file, format="png", nrow=16, padding=1, pad_value=0.5)
    return file.getvalue()


def title(configs: Sequence[Config]) -> str:
    one = configs[0]
    what = f"lr={one.optim.lr:g} seed={one.seed}" if len(configs) == 1 else f"({len(configs)} runs)"
    return f"{one.own.get('model', one.model.name)} {one.norm.label} {one.optim.name} {what}"
