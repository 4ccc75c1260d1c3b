"""Lengths of v, step by step, and what the recursions of claims A2 and A3 predict of them.

A gradient orthogonal to v, as that of every unit whose output does not depend on ||v||, makes lengths of v a
function of lengths of velocities. With velocities ``p_t = m_t p_{t-1} + grad``, steps ``v - lr_t p_t`` and
``a_t = v_t . p_t``, and without weight decay::

    a_t = m_t (a_{t-1} - lr_{t-1} ||p_{t-1}||^2) <= 0,    a_0 = 0
    ||v_{t+1}||^2 = ||v_t||^2 - 2 lr_t a_t + lr_t^2 ||p_t||^2

since ``v_t . grad = 0`` and ``v_t = v_{t-1} - lr_{t-1} p_{t-1}``. Plain gradient descent has
a_t = 0.
"""

from __future__ import annotations

import torch
from torch import Tensor

from wn.norm import normalized_layers
from wn.trainer import Trainer

ROUNDING = {torch.float64: 1e-12, torch.float32: 1e-6}
"""A relative change of ||v||^2 in a step that is none."""


def directions(trainer: Trainer) -> dict[str, Tensor]:
    """The trained tensor of every normalised layer, v or plain w, by parameter: ``[members, units, ...]``."""
    layers = normalized_layers(trainer.stack.template)
    names = [f"{name}.{layer.raw_name}" for name, layer in layers.items()]
    return {name: trainer.stack.params[name].detach() for name in names}


def squares(tensors: dict[str, Tensor]) -> Tensor:
    """Squared lengths of all units of all layers, float64 ``[members, units]``."""
    return torch.cat([t.flatten(2).square().sum(-1) for t in tensors.values()], dim=1).double()


class Lengths:
    """Observed and predicted ||v||^2 of every unit of a stack's members. Call it after every step.

    A member that diverges stays as it was when the trainer dropped it.

    Attributes:
        observed, predicted: ``||v||^2`` now, ``[members, units]``; predicted from ``||p||`` under SGD.
        start: ``||v_0||^2``.
        error: largest ``|predicted - observed| / observed`` so far, ``[members]``.
        drop: largest relative fall of ``||v||^2`` in a step so far, ``[members]``.
        falls: unit-steps in which it fell by more than rounding so far, ``[members]``.
        steps: how many.
    """

    def __init__(self, trainer: Trainer) -> None:
        start = squares(directions(trainer))
        self.start, self.observed, self.predicted = start, start.clone(), start.clone()
        self.alignment = torch.zeros_like(start)  # a, after the step: v_{t+1} . p_t
        self.error, self.drop, self.falls, self.steps = (start.new_zeros(len(start)) for _ in range(4))
        self.rounding = ROUNDING[next(iter(trainer.stack.params.values())).dtype]

    def __call__(self, trainer: Trainer) -> None:
        alive, optimizer, v = trainer.alive, trainer.optimizer, directions(trainer)
        lr, momentum = (optimizer.hyper[name].double()[:, None] for name in ("lr", "momentum"))
        pp = squares({name: optimizer.state[f"0/{name}"] for name in v})
        a = momentum * self.alignment[alive]
        before, observed = self.observed[alive], squares(v)
        predicted = self.predicted[alive] - 2 * lr * a + lr**2 * pp
        fall = (before - observed) / before
        error = ((predicted - observed) / observed).abs().amax(1)
        self.observed[alive], self.predicted[alive], self.alignment[alive] = observed, predicted, a - lr * pp
        self.error[alive] = self.error[alive].maximum(error)
        self.drop[alive] = self.drop[alive].maximum(fall.amax(1))
        self.falls[alive] += (fall > self.rounding).sum(1)
        self.steps[alive] += 1

    @property
    def share_that_falls(self) -> Tensor:
        """Share of unit-steps in which ||v|| fell, ``[members]``."""
        return self.falls / (self.steps * self.start.shape[1])
