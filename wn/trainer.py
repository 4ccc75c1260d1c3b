"""The one training loop: a stack of runs, of which a run alone is the smallest.

The trainer knows no Hydra, no W&B and no disk. It hands what happens to an :class:`Observer`.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from wn import evaluation, probes
from wn.config import Config, UserError
from wn.data import Dataset, Split, permutation
from wn.models import build
from wn.norm import parameter_groups
from wn.objectives import BOUND, objective_of
from wn.optim import EMA, Optimizer
from wn.stack import Stack
from wn.step import Step

Row = dict[str, Any]
Columns = dict[str, list[float]]
"""Metrics with one number per member of the stack."""

DTYPES = {
    "float32": torch.float32,
    "tf32": torch.float32,
    "bfloat16": torch.float32,
    "float64": torch.float64,
}
"""Precision to the type of parameters and data; bfloat16 is autocast over float32."""

CHECKPOINT_SECONDS = 60.0
"""A kill costs no more than this, and the step that it falls into, however long an epoch is."""


class Observer(Protocol):
    """Who is told what happens. A member is known by its place in the list of configurations."""

    def on_step(self, done: int, total: int) -> None:
        """``done`` of ``total`` steps are taken."""

    def on_epoch(self, member: int, metrics: Row, probes: list[Row]) -> None:
        """A member came to the end of an epoch (epoch 0: before training)."""

    def on_pictures(self, member: int, pictures: dict[str, Tensor]) -> None:
        """What a member that came through draws: grey levels ``[images, channels, height, width]``."""

    def on_end(self, member: int, status: str, result: Row) -> None:
        """A member is ``finished``, with its numbers on the test set, or ``diverged``, and where."""

    def on_checkpoint(self, state: Row) -> None:
        """State to resume from: a tree of tensors, numbers and lists."""

    def stop(self, done: int, total: int) -> BaseException | None:
        """What to raise now, after ``done`` of ``total`` steps, once their state is saved; None to go on."""


def pick_device(name: str) -> torch.device:
    """The device called ``name``; ``auto`` is CUDA, then MPS, then the CPU.

    Raises:
        UserError: there is no such device here.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        torch.zeros((), device=name)
    except (RuntimeError, AssertionError, NotImplementedError):
        raise UserError(
            f"trainer.device={name}: not available here; take trainer.device=auto, or cpu"
        ) from None
    return torch.device(name)


def steps_per_epoch(config: Config, data: Dataset) -> int:
    """How many batches an epoch has; what is left over waits for another epoch's order.

    Raises:
        UserError: a batch is larger than the data.
    """
    size, batch = len(data.train.x), config.trainer.batch_size
    if batch > size:
        raise UserError(f"trainer.batch_size={batch}: larger than the {size} training images; give less")
    return size // batch


class Trainer:
    """Trains runs that differ only in numbers as one stack.

    Args:
        configs: the members; they agree in all but :data:`wn.config.STACKABLE`.
        data: on the device, in the precision's type.
        device: where to train.
        observer: who is told.

    Raises:
        UserError: a batch is larger than the data.
    """

    def __init__(
        self, configs: Sequence[Config], data: Dataset, device: torch.device, observer: Observer
    ) -> None:
        self.configs, self.data, self.device, self.observer = list(configs), data, device, observer
        self.config = self.configs[0]
        self.steps_per_epoch = steps_per_epoch(self.config, data)
        self.total = self.config.trainer.epochs * self.steps_per_epoch
        self.step = 0
        self.saved = time.monotonic()
        self.alive = list(range(len(self.configs)))
        self.objective = objective_of(self.config.model)
        self.totals = data.train.x.new_zeros(len(self.objective.metrics), len(self.alive))
        self.update: Step | None = None
        bfloat16 = self.config.trainer.precision == "bfloat16"
        self.autocast = functools.partial(torch.autocast, device.type, torch.bfloat16, enabled=bfloat16)
        self.stack = Stack([self._build(c) for c in self.configs])
        self.optimizer = self._build_optimizer()
        self.average = self._build_average()

    def _build(self, config: Config) -> torch.nn.Module:
        model = build(config.model, config.norm, self.data.shape, self.data.classes, config.seed)
        return model.to(self.device, DTYPES[config.trainer.precision])

    def _build_optimizer(self) -> Optimizer:
        groups = parameter_groups(self.stack.template)
        kind_of = {id(p): kind for kind, params in groups.items() for p in params}
        kinds = {name: kind_of[id(p)] for name, p in self.stack.template.named_parameters()}
        return Optimizer([self.configs[m].optim for m in self.alive], self.stack.params, kinds)

    def _build_average(self) -> EMA | None:
        steps = self.config.optim.ema_epochs * self.steps_per_epoch
        return EMA(self._averaged(), max(0.0, 1 - 1 / steps)) if steps else None

    def _averaged(self) -> dict[str, Tensor]:
        """What is averaged: parameters, and the averages of statistics that are evaluated with them."""
        buffers = self.stack.buffers.items()
        return {**self.stack.params, **{k: b for k, b in buffers if k.split(".")[-1].startswith("running_")}}

    def run(self) -> None:
        """Train to the end, from the beginning or from what :meth:`restore` was given."""
        if self.step == 0:
            self._initialize()
            self._close_epoch(0, {}, probes.measure(self.stack, None, self.optimizer.hyper["lr"]))
        while self.step < self.total and self.alive:
            self._epoch()
        self._finish()

    def _save(self) -> None:
        """Checkpoint where that is due; where the observer would stop and there is more to train, do."""
        more = self.alive and self.step < self.total
        stop = self.observer.stop(self.step, self.total) if more else None
        if stop or self._checkpoint_is_due():
            self.observer.on_checkpoint(self.state())
            self.saved = time.monotonic()
        if stop:
            raise stop

    def _checkpoint_is_due(self) -> bool:
        """Every so many epochs, or seconds where epochs are long. At the end where no moment's work follows:
        the results of a stack are written one after another, and a VAE's tighter bound takes long."""
        if self.step == self.total:
            return len(self.configs) > 1 or self.objective is BOUND
        epoch, within = divmod(self.step, self.steps_per_epoch)
        late = time.monotonic() - self.saved > CHECKPOINT_SECONDS
        return late or (within == 0 and epoch % self.config.trainer.checkpoint_every == 0)

    def _probe_is_due(self, epoch: int) -> bool:
        """Every so many epochs, and after 1, 2, 4, ... before the first of these, where most happens."""
        every = self.config.trainer.probe_every
        return epoch % every == 0 or (epoch < every and epoch.bit_count() == 1)

    def _initialize(self) -> None:
        if self.config.norm.init == "data":
            size = min(self.config.trainer.init_batch_size, len(self.data.train.x))
            order = self._orders(0)[:, :size]
            with self.autocast():
                self.stack.initialize(self.data.train.x[order])

    def _orders(self, epoch: int) -> Tensor:
        """Every member's permutation of the training images in an epoch, ``[members, images]``."""
        seeds = [self.configs[m].seed for m in self.alive]
        drawn = {seed: permutation(seed, epoch, len(self.data.train.x)) for seed in set(seeds)}
        return torch.stack([drawn[seed] for seed in seeds]).to(self.device)

    def _epoch(self) -> None:
        """Train an epoch, or what a checkpoint has left of it, and close it."""
        settings = self.config.trainer
        past, done = divmod(self.step, self.steps_per_epoch)
        epoch = past + 1
        self.optimizer.set_epoch(past, settings.epochs)
        batches = torch.split(self._orders(epoch), settings.batch_size, dim=1)[: self.steps_per_epoch]
        self.stack.train()
        for batch in batches[done:-1]:
            self._advance(batch)
            self._save()
        before = probes.snapshot(self.stack) if self._probe_is_due(epoch) else None
        self._advance(batches[-1])
        rows = probes.measure(self.stack, before, self.optimizer.hyper["lr"]) if before else []
        self._close_epoch(epoch, self._training_means(), rows)
        self._save()

    def _advance(self, batch: Tensor) -> None:
        """Take a step, and add what it saw to the epoch's totals."""
        if self.step % self.steps_per_epoch == 0:
            self.totals.zero_()
        self.step += 1
        self._step(batch)
        self.observer.on_step(self.step, self.total)

    def _training_means(self) -> Columns:
        """The metrics over the epoch, of what each step saw before its update, noise and dropout on."""
        means = evaluation.divided(self.totals, self.steps_per_epoch)
        measured = zip(self.objective.metrics, means, strict=True)
        return {"lr": self.optimizer.lr, **{f"train_{name}": values for name, values in measured}}

    def _step(self, batch: Tensor) -> None:
        """One update on the images ``batch [members, batch]``; the totals grow by what it saw before it."""
        if self.update is None:
            settings = self.config.trainer
            parts = (self.stack, self.optimizer, self.average, self.objective, self.data.train, self.totals)
            self.update = Step(*parts, self.autocast, compiled=settings.compile, captured=settings.cuda_graph)
        self.update(batch)

    def evaluate(self, part: str) -> Columns:
        """The metrics' means on a split, ``train``, ``valid`` or ``test``, under names that begin with it."""
        split: Split = getattr(self.data, part)
        means = evaluation.means(self._evaluated(), self.objective, split, self.autocast)
        return {f"{part}_{name}": values for name, values in means.items()}

    def _evaluated(self) -> Stack:
        """The stack as it is evaluated: with averaged tensors, if there are."""
        return self.stack.with_state(self.average.values()) if self.average else self.stack

    def _close_epoch(self, epoch: int, columns: Columns, probed: list[list[Row]]) -> None:
        """Evaluate, tell the observer, and part with the members that have diverged."""
        place = {"epoch": epoch, "step": self.step}
        if len(self.data.valid.x):
            columns |= self.evaluate("valid")
        every = self.config.trainer.test_every
        if every and epoch % every == 0:
            columns |= self.evaluate("test")
        kept = []
        for row, member in enumerate(self.alive):
            metrics = {name: numbers[row] for name, numbers in columns.items()}
            measured = [place | probe for probe in probed[row]] if probed else []
            self.observer.on_epoch(member, place | metrics, measured)
            if all(map(math.isfinite, metrics.values())):
                kept.append(row)
            else:
                self.observer.on_end(member, "diverged", place)
        self._keep(kept)

    def _keep(self, rows: list[int]) -> None:
        """Go on with the members in these rows of the stack alone."""
        if len(rows) == len(self.alive):
            return
        self.alive = [self.alive[row] for row in rows]
        self.totals = self.totals[:, rows]
        if self.alive:
            kept = torch.tensor(rows, device=self.device)
            self.stack.select(kept)
            states = self.optimizer.state, self.average.state if self.average else {}
            moments, averages = ({k: t[kept] if t.dim() else t for k, t in s.items()} for s in states)
            self._rebuild(moments, averages)

    def _rebuild(self, moments: dict[str, Tensor], averages: dict[str, Tensor]) -> None:
        """An optimiser and an average of the stack as it is now, with a state."""
        self.optimizer, self.average = self._build_optimizer(), self._build_average()
        self.optimizer.state = moments
        if self.average:
            self.average.state = averages
        self.update = None

    def _finish(self) -> None:
        """The final numbers of the members that came through, on the test set."""
        if not self.alive:
            return
        columns = self.evaluate("test")
        stack, settings = self._evaluated(), self.config.trainer
        drawn: dict[str, Tensor] = {}
        if self.objective is BOUND:
            x = self.data.test.x[: settings.iwae_images]
            bounds = evaluation.iwae_bounds(stack, x, settings.iwae_samples, self.autocast)
            columns["test_nll"] = [-bound for bound in bounds]
            if settings.images:
                drawn = evaluation.pictures(stack, self.data.test.x[: settings.images], self.autocast)
        for row, member in enumerate(self.alive):
            result = {name: values[row] for name, values in columns.items()}
            if not all(map(math.isfinite, result.values())):  # and nothing is held out that would have told
                place = {"epoch": settings.epochs, "step": self.step}
                self.observer.on_end(member, "diverged", place)
                continue
            if drawn:
                self.observer.on_pictures(member, {name: images[row] for name, images in drawn.items()})
            self.observer.on_end(member, "finished", result)

    def state(self) -> Row:
        """Everything that a resumed stack needs, amid an epoch as well, as tensors, numbers and lists."""
        place = {"step": self.step, "alive": self.alive, "totals": self.totals}
        return {**place, **{name: _detached(tree) for name, tree in self._trees().items()}}

    def _trees(self) -> dict[str, dict[str, Tensor]]:
        average = self.average.state if self.average else {}
        stack = {"params": self.stack.params, "buffers": self.stack.buffers}
        return {**stack, "moments": self.optimizer.state, "average": average}

    def restore(self, state: Row) -> None:
        """Go on from a :meth:`state` of the same members, on whatever device it was made.

        Raises:
            LookupError, ValueError: it is of another model or optimiser. Nothing is changed.
        """
        trees = {name: {k: t.to(self.device) for k, t in state[name].items()} for name in self._trees()}
        if _kinds(trees) != _kinds(self._trees()):
            raise ValueError("it is of another model or optimiser")
        self.step, self.alive, self.totals = state["step"], state["alive"], state["totals"].to(self.device)
        self.stack.load(trees["params"], trees["buffers"])
        self._rebuild(trees["moments"], trees["average"])


def _detached(tree: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach() for name, tensor in tree.items()}


def _kinds(trees: dict[str, dict[str, Tensor]]) -> Row:
    """Names, types and a member's shapes."""
    return {name: {k: (t.dtype, t.shape[1:]) for k, t in tree.items()} for name, tree in trees.items()}
