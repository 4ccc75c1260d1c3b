"""Lengths of v, step by step, and what the recursions of claims A2 and A3 predict of them.

A gradient orthogonal to v, as that of every unit whose output does not depend on ||v||, makes lengths of v a
function of lengths of velocities. With velocities ``p_t = m_t p_{t-1} + grad``, steps ``v - lr_t p_t`` and
``a_t = v_t . p_t``, and without weight decay::

    a_t = m_t (a_{t-1} - lr_{t-1} ||p_{t-1}||^2) <= 0,    a_0 = 0
    ||v_{t+1}||^2 = ||v_t||^2 - 2 lr_t a_t + lr_t^2 ||p_t||^2

since ``v_t . grad = 0`` and ``v_t = v_{t-1} - lr_{t-1} p_{t-1}``. Without momentum a_t = 0: plain gradient descent.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from wn.claims.training import Watch
from wn.config import Config
from wn.norm import normalized_layers
from wn.resources import resolve
from wn.trainer import Trainer

AfterStep = Callable[[Trainer], None]

ROUNDING = 1e-12  # a relative change of ||v||^2 that is none, in float64


class EveryStep(Watch):
    """Lets a function see the trainer after every step; a row of its stack is a member of ``trainer.alive``."""

    def __init__(self, members: int) -> None:
        super().__init__(members)
        self.after_step: AfterStep = lambda trainer: None
        self.trainer: Trainer | None = None

    def on_step(self, done: int, total: int) -> None:
        if self.trainer:
            self.after_step(self.trainer)


def train_with(configs: Sequence[Config], prepare: Callable[[Trainer], AfterStep]) -> EveryStep:
    """Train a stack; ``prepare`` may change the start, and returns what to call after each step."""
    watch = EveryStep(len(configs))
    watch.trainer = Trainer(configs, resolve(configs[0])[1], torch.device("cpu"), watch)
    watch.after_step = prepare(watch.trainer)
    watch.trainer.run()
    return watch


def directions(trainer: Trainer) -> dict[str, Tensor]:
    """The trained tensor of every normalised layer, v or plain w, by parameter: ``[members, units, ...]``."""
    layers = normalized_layers(trainer.stack.template)
    names = [f"{name}.{layer.raw_name}" for name, layer in layers.items()]
    return {name: trainer.stack.params[name].detach() for name in names}


def squares(tensors: dict[str, Tensor]) -> Tensor:
    """Squared lengths of all units of all layers, ``[members, units]``."""
    return torch.cat([t.flatten(2).square().sum(-1) for t in tensors.values()], dim=1)


class Lengths:
    """Observed and predicted ||v||^2 of every unit of a stack's members, none of which may diverge.

    Call it after every step.

    Attributes:
        observed, predicted: ``||v||^2`` now, ``[members, units]``; predicted from ``||p||`` under SGD.
        start: ``||v_0||^2``.
        error: largest ``|predicted - observed| / observed`` so far, ``[members]``.
        drop: largest relative fall of ``||v||^2`` in a step so far, ``[members]``.
        falls: unit-steps in which it fell by more than rounding so far, ``[members]``.
        steps: how many.
    """

    def __init__(self, trainer: Trainer) -> None:
        self.start = self.observed = self.predicted = squares(directions(trainer))
        self.alignment = torch.zeros_like(self.start)  # a, after the step: v_{t+1} . p_t
        self.error = self.drop = self.start.new_zeros(len(self.start))
        self.falls = self.start.new_zeros(len(self.start))
        self.steps = 0

    def __call__(self, trainer: Trainer) -> None:
        optimizer, before = trainer.optimizer, self.observed
        v = directions(trainer)
        self.observed = squares(v)
        lr, momentum = (optimizer.hyper[name][:, None] for name in ("lr", "momentum"))
        pp = squares({name: optimizer.state[f"0/{name}"] for name in v})
        a = momentum * self.alignment
        self.predicted = self.predicted - 2 * lr * a + lr**2 * pp
        self.alignment = a - lr * pp
        fall = (before - self.observed) / before
        self.error = self.error.maximum(((self.predicted - self.observed) / self.observed).abs().amax(1))
        self.drop = self.drop.maximum(fall.amax(1))
        self.falls = self.falls + (fall > ROUNDING).sum(1)
        self.steps += 1

    @property
    def share_that_falls(self) -> Tensor:
        """Share of unit-steps in which ||v|| fell, ``[members]``."""
        return self.falls / (self.steps * self.start.shape[1])
