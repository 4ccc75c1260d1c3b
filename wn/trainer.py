"""The one training loop: trains a stack of runs; a single run is a stack of one.

The trainer knows no Hydra, no W&B and no disk. It hands what happens to an :class:`Observer`.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from wn import metrics, probes
from wn.config import Config, UserError
from wn.data import Dataset, Split, orders
from wn.metrics import ELBO, objective_of
from wn.models import build
from wn.optim import EMA, Optimizer
from wn.probes import Row
from wn.stack import Stack
from wn.step import State, Step

Columns = dict[str, list[float]]  # a number per member

DTYPES = {**dict.fromkeys(("float32", "tf32", "bfloat16"), torch.float32), "float64": torch.float64}
"""Precision to the type of parameters and data; bfloat16 is autocast over float32."""

CHECKPOINT_SECONDS = 60.0  # at most this much work is lost to a kill, however long an epoch is


class Observer:
    """What a trainer tells; a member is known by its place in the list of configurations."""

    def on_step(self, done: int, total: int) -> None: ...

    def on_epoch(self, member: int, metrics: Row, probes: list[Row]) -> None:
        """A member came to the end of an epoch (epoch 0: before training)."""

    def on_bounds(self, done: int, total: int) -> None:
        """The final bound of VAEs is known on so many of the images."""

    def on_pictures(self, member: int, pictures: dict[str, Tensor]) -> None:
        """Pictures of a finished VAE: ``[images, channels, height, width]``, values from 0 to 1."""

    def on_model(self, member: int, state: dict[str, Tensor]) -> None:
        """Parameters and buffers of a finished member, as it was evaluated: the EMA, if there is one."""

    def on_end(self, member: int, status: str, result: Row) -> None:
        """A member is ``finished``, with its test metrics, or ``diverged``, with epoch and step."""

    def on_checkpoint(self, state: Row) -> None:
        """State to resume from: a tree of tensors, numbers and lists."""

    def stop(self, done: int, total: int) -> BaseException | None:
        """The exception to stop with after this step, once its state is saved; None to go on."""
        return None


def steps_per_epoch(config: Config, data: Dataset) -> int:
    """Batches per epoch; the last incomplete one is dropped, and each epoch is shuffled anew."""
    size, batch = len(data.train.x), config.trainer.batch_size
    if batch > size:
        raise UserError(f"trainer.batch_size={batch}: larger than the {size} training images; give less")
    return size // batch


class Trainer:
    """Trains runs that differ only in numbers as one stack.

    Args:
        configs: the members; they agree in all but :data:`wn.config.STACKABLE`.
        data: on the device, in the precision's type.
        models: the members' networks where they are not those of the configurations.
    """

    def __init__(
        self,
        configs: Sequence[Config],
        data: Dataset,
        device: torch.device,
        observer: Observer,
        models: Sequence[nn.Module] | None = None,
    ) -> None:
        self.configs, self.data, self.device, self.observer = list(configs), data, device, observer
        self.config = configs[0]
        self.steps_per_epoch = steps_per_epoch(self.config, data)
        self.total = self.config.trainer.epochs * self.steps_per_epoch
        self.step = 0
        self.saved = time.monotonic()
        self.alive = list(range(len(self.configs)))  # the members in the stack's rows
        self.diverged: set[int] = set()
        self.objective = objective_of(self.config.model)
        self.totals = data.train.x.new_zeros(len(self.objective.names), len(self.alive))
        self.bounds = data.train.x.new_zeros(len(self.alive), 0)  # final ones of VAEs, so far
        bfloat16 = self.config.trainer.precision == "bfloat16"
        self.autocast = functools.partial(torch.autocast, device.type, torch.bfloat16, enabled=bfloat16)
        sizes, dtype = (data.shape, data.classes), DTYPES[self.config.trainer.precision]
        # Networks that are given, and those of a user's code, may hold numbers that no setting tells.
        self._kind = None if models is not None or self.config.plugins else self.config.stack_key
        if models is None:
            models = [build(c.model, c.norm, *sizes, c.seed) for c in configs]
        if len(models) != len(configs):
            raise ValueError(f"{len(models)} networks for {len(configs)} members")
        self.stack = Stack([model.to(device, dtype) for model in models])
        if not self.stack.params:
            raise UserError("the model has no parameter to train: all are frozen")
        self._prepare()

    def run(self) -> None:
        """Train from the beginning, or from what :meth:`restore` was given, to the end."""
        settings = self.config.trainer
        if self.step == 0:
            self._initialize()  # section 3, where norm.init=data
            rows = self._probe(None)
            self._close_epoch(0, self._evaluations(0), rows)
        for epoch in range(self.step // self.steps_per_epoch + 1, settings.epochs + 1):
            if not self.alive:
                return  # all have diverged
            self.optimizer.set_epoch(epoch - 1, settings.epochs)
            self.stack.set_progress((epoch - 1) / settings.epochs)
            self.stack.train()
            done = self.step % self.steps_per_epoch  # above 0 where a checkpoint was made amid the epoch
            if done == 0:
                self.totals.zero_()
            for batch in self.batches(epoch)[done:]:
                last = self.step + 1 == epoch * self.steps_per_epoch
                before = probes.snapshot(self.stack) if last and self._probe_is_due(epoch) else None
                self.step += 1
                self.update(batch)  # forward, backward, update: wn/step.py
                self.observer.on_step(self.step, self.total)
                if not last:
                    self._checkpoint()
            rows = self._probe(before) if before else []
            self._close_epoch(epoch, self._training_means() | self._evaluations(epoch), rows)
            if self.step < self.total:
                self._checkpoint(epoch % settings.checkpoint_every == 0, more=bool(self.alive))
            elif len(self.configs) > 1 or self.objective is ELBO:
                self._checkpoint(due=True, more=False)  # finishing takes a while: many records, or a bound
        self._finish()

    def update(self, batch: Tensor) -> None:
        """One step on the images with these indices, ``[members, batch]``; adds its metrics to the totals."""
        self._step(batch)

    def evaluate(self, part: str) -> Columns:
        """The metrics' means on ``train``, ``valid`` or ``test``, under names that begin with it."""
        split: Split = getattr(self.data, part)
        means = metrics.means(self._averaged_stack(), self.objective, split, self.autocast)
        return {f"{part}_{name}": values for name, values in means.items()}

    def _evaluations(self, epoch: int) -> Columns:
        """The validation split's, and the test split's for curves that are published so."""
        every = self.config.trainer.test_every
        columns = self.evaluate("valid") if len(self.data.valid.x) else {}
        return columns | (self.evaluate("test") if every and epoch % every == 0 else {})

    def _training_means(self) -> Columns:
        """Learning rate and metrics over the epoch: each step's before its update, with noise and dropout."""
        means = metrics.divided(self.totals, self.steps_per_epoch)
        measured = zip(self.objective.names, means, strict=True)
        return {"lr": self.optimizer.lr, **{f"train_{name}": values for name, values in measured}}

    def _close_epoch(self, epoch: int, columns: Columns, probed: list[list[Row]]) -> None:
        """Tell the observer, and drop diverged members."""
        place = {"epoch": epoch, "step": self.step}
        for row, member in self._rows():
            numbers = {name: values[row] for name, values in columns.items()}
            measured = [place | probe for probe in probed[row]] if probed else []
            self.observer.on_epoch(member, place | numbers, measured)
            if not all(map(math.isfinite, numbers.values())):
                self.observer.on_end(member, "diverged", place)
                self.diverged.add(member)
        kept = [row for row, _ in self._rows()]
        # A smaller stack is compiled again: until half are left, what diverged trains along, unrecorded.
        fewest = len(self.alive) / 2 if self.config.trainer.compile else len(self.alive)
        if len(kept) < fewest:
            self._select(kept)

    def _rows(self) -> list[tuple[int, int]]:
        """Row of the stack and member, of those that have not diverged."""
        return [(row, member) for row, member in enumerate(self.alive) if member not in self.diverged]

    def _finish(self) -> None:
        """The final numbers of the members that did not diverge, on the test set."""
        if not self.alive:
            return
        columns, images = self.evaluate("test"), {}
        stack, settings = self._averaged_stack(), self.config.trainer
        if self.objective is ELBO:
            columns["test_nll"] = [-bound for bound in self._final_bounds(stack)]
            if settings.images:
                images = metrics.pictures(stack, self.data.test.x[: settings.images], self.autocast)
        for row, member in self._rows():
            result = {name: values[row] for name, values in columns.items()}
            # Without a validation split, divergence in the last step shows here first.
            if not all(map(math.isfinite, result.values())):
                self.observer.on_end(member, "diverged", {"epoch": settings.epochs, "step": self.step})
                continue
            if images:
                self.observer.on_pictures(member, {name: all_[row] for name, all_ in images.items()})
            state = {**stack.params, **stack.buffers}
            self.observer.on_model(member, {name: stacked[row] for name, stacked in state.items()})
            self.observer.on_end(member, "finished", result)

    def _final_bounds(self, stack: Stack) -> list[float]:
        """The mean IWAE bound on test images; as it may take as long as epochs, it is saved amid them too."""
        settings = self.config.trainer
        x = self.data.test.x[: settings.iwae_images]
        sizes = settings.iwae_samples, self.autocast, self.bounds.shape[1]
        for more in metrics.iwae_bounds(stack, x, *sizes):
            self.bounds = torch.cat([self.bounds, more], 1)
            done = self.bounds.shape[1]
            self.observer.on_bounds(done, len(x))
            self._checkpoint(more=done < len(x))
        return metrics.mean_bounds(self.bounds)

    def _checkpoint(self, due: bool = False, more: bool = True) -> None:
        """Write a checkpoint if one is due; with ``more`` to come, stop where the observer says so."""
        stop = self.observer.stop(self.step, self.total) if more else None
        if stop or due or time.monotonic() - self.saved > CHECKPOINT_SECONDS:
            self.observer.on_checkpoint(self.state())
            self.saved = time.monotonic()
        if stop:
            raise stop

    def _probe(self, before: probes.Snapshot | None) -> list[list[Row]]:
        return probes.measure(self.stack, before, self.optimizer.hyper["lr"], self.config.optim.adaptive)

    def _probe_is_due(self, epoch: int) -> bool:
        """Every so many epochs and after the last; before the first of these after 1, 2, 4, ... as well."""
        every, last = self.config.trainer.probe_every, self.config.trainer.epochs
        return epoch % every == 0 or epoch == last or (epoch < every and epoch.bit_count() == 1)

    def batches(self, epoch: int) -> Sequence[Tensor]:
        """Indices of training images, ``[members, batch]`` each."""
        batches = torch.split(self._orders(epoch), self.config.trainer.batch_size, dim=1)
        return batches[: self.steps_per_epoch]

    def _orders(self, epoch: int) -> Tensor:
        """Every member's own permutation of the training images, ``[members, images]``."""
        seeds = [self.configs[m].seed for m in self.alive]
        return orders(seeds, epoch, len(self.data.train.x)).to(self.device)

    def _initialize(self) -> None:
        if self.config.norm.init == "data":
            size = min(self.config.trainer.init_batch_size, len(self.data.train.x))
            self.stack.set_progress(0)
            with self.autocast():
                self.stack.initialize(self.data.train.x[self._orders(0)[:, :size]])

    def _prepare(self, trees: State | None = None) -> None:
        """Optimiser, EMA and step of the stack, with the state in ``trees`` or at their beginning."""
        if trees:
            self.stack.load(trees["params"], trees["buffers"])
        optims = [self.configs[m].optim for m in self.alive]
        self.optimizer = Optimizer(optims, self.stack.params, self.stack.kinds)
        steps = self.config.optim.ema_epochs * self.steps_per_epoch
        # Running statistics are averaged too: they belong to the weights that they are evaluated with.
        statistics = {
            k: b
            for k, b in self.stack.buffers.items()
            if k.split(".")[-1].startswith("running_") and b.is_floating_point()
        }
        self.average = EMA(self.stack.params | statistics, max(0.0, 1 - 1 / steps)) if steps else None
        if trees:
            self.optimizer.state = trees["moments"]
        if trees and self.average:
            self.average.state = trees["average"]
        settings = self.config.trainer
        parts = (self.stack, self.optimizer, self.average, self.objective, self.data.train, self.totals)
        engine = settings.compile, settings.cuda_graph, self._kind
        self._step = Step(*parts, self.autocast, *engine)

    def _averaged_stack(self) -> Stack:
        """The stack that is evaluated: the EMA, if there is one."""
        return self.stack.with_state(self.average.values()) if self.average else self.stack

    def _select(self, rows: list[int]) -> None:
        """Go on with the members in these rows of the stack alone."""
        self.alive = [self.alive[row] for row in rows]
        self.totals, self.bounds = self.totals[:, rows], self.bounds[rows]
        if self.alive:
            trees = self._trees().items()
            self._prepare({n: {k: t[rows] if t.dim() else t for k, t in tree.items()} for n, tree in trees})

    def state(self) -> Row:
        """Everything that a resumed stack needs, amid an epoch as well, as tensors, numbers and lists."""
        members = {"alive": self.alive, "diverged": sorted(self.diverged)}
        bounds = {"bounds": self.bounds, "bounds_of": self._bounds_of()}
        return {"step": self.step, **members, "totals": self.totals, **bounds, **self._trees()}

    def _bounds_of(self) -> list[int | None]:
        """What the final bounds are measured with, and no run_id tells: samples, and images (None: all)."""
        return [self.config.trainer.iwae_samples, self.config.trainer.iwae_images]

    def _trees(self) -> State:
        average = self.average.state if self.average else {}
        params = {k: p.detach() for k, p in self.stack.params.items()}
        state = {"params": params, "buffers": self.stack.buffers}
        return {**state, "moments": self.optimizer.state, "average": average}

    def restore(self, state: Row) -> None:
        """Go on from a :meth:`state` of the same members, made on any device.

        Raises:
            LookupError: it is of another model or optimiser. Nothing is changed.
        """
        own = self._trees()
        trees = {name: {k: t.to(self.device) for k, t in state[name].items()} for name in own}
        for name, tree in trees.items():  # without the first axis: members may have been dropped before
            mine, other = ({k: (t.dtype, t.shape[1:]) for k, t in x.items()} for x in (own[name], tree))
            if mine != other:
                raise LookupError("it is of another model or optimiser")
        self.step, self.alive, self.totals = state["step"], state["alive"], state["totals"].to(self.device)
        self.diverged = {*state.get("diverged", [])}
        none = self.totals.new_zeros(len(self.alive), 0)  # before there were any, or now asked otherwise
        same = state.get("bounds_of") == self._bounds_of()
        self.bounds = state["bounds"].to(self.device) if same else none
        self._prepare(trees)
