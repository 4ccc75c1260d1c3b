r"""The two effects of weight normalisation on a step of plain gradient descent, apart and together.

With G the gradient of a unit's w, ``u = w/||w||``, ``r = u.G`` and ``P = G - r u``, the arms are ::

    plain        w <- w - lr G
    scale        w <- w - lr (||w||/L)^2 G       with  L^2 <- L^2 + lr^2 (||w||/L)^2 ||P||^2
    projection   w <- (||w|| - lr r) d           with  d the direction of  w - lr P
    both         v <- v - lr g/||v|| P,  g <- g - lr G.v/||v||,  w = g v/||v||      (equation 3)

all from the same w, with ``v = w``, ``g = L = ||w||`` at the start. L is what ||v|| would be. To first order
in lr, projection is plain.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from wn.claims.learner import gradients, reached
from wn.claims.training import data_of
from wn.config.compose import compose
from wn.data import orders
from wn.metrics import ELBO, means, objective_of
from wn.models import build
from wn.norm import normalized_layers
from wn.stack import Stack

ARMS = ("plain", "projection", "scale", "both")

State = dict[str, Tensor]


class Race(NamedTuple):
    """Where arms are compared."""

    settings: dict[str, Any]
    rates: Sequence[float]
    epochs: int
    every: int
    """Steps between two evaluations on the training images."""
    accuracy: float | None
    """Target; None: 95% of the way to the lowest loss of plain weights."""


def quarters(low: int, high: int) -> list[float]:
    """Learning rates in quarter decades, ``10^(low/4)`` to ``10^(high/4)``."""
    return [float(f"{10 ** (i / 4):.3g}") for i in range(low, high + 1)]


RACES = {
    "mlp": Race({"model": "mlp", "data": "digits"}, quarters(-4, 2), 10, 2, 0.97),
    "vae": Race({"model": "mlp_vae", "data": "digits"}, quarters(-8, -3), 20, 5, None),
}


def start(arm: str, w: Tensor) -> State:
    """What an arm keeps of weights ``[members, units, d]`` beside them."""
    length = w.norm(dim=2, keepdim=True)
    if arm == "both":
        return {"v": w.clone(), "g": length.clone()}
    return {"length": length.clone()} if arm == "scale" else {}


def step(arm: str, w: Tensor, G: Tensor, lr: Tensor, state: State) -> Tensor:
    """The weights after a step, ``[members, units, d]``; ``lr [members, 1, 1]``; ``state`` is updated."""
    if arm == "plain":
        moved = w - lr * G
    elif arm == "both":
        v, g = state["v"], state["g"]
        norm = v.norm(dim=2, keepdim=True)
        grad_g = (G * v).sum(2, keepdim=True) / norm
        state["v"] = v - lr * (g / norm * G - g * grad_g / norm**2 * v)
        state["g"] = g - lr * grad_g
        moved = state["g"] * state["v"] / state["v"].norm(dim=2, keepdim=True)
    else:
        size = w.norm(dim=2, keepdim=True)
        unit = w / size
        radial = (unit * G).sum(2, keepdim=True)
        sideways = G - radial * unit
        if arm == "projection":
            turned = w - lr * sideways
            moved = (size - lr * radial) * turned / turned.norm(dim=2, keepdim=True)
        else:
            factor = size / state["length"]
            gained = lr * factor * sideways.norm(dim=2, keepdim=True)
            state["length"] = (state["length"].square() + gained.square()).sqrt()
            moved = w - lr * factor.square() * G
    return moved


def run(race: Race, seeds: Sequence[int]) -> dict[str, list[list[float]]]:
    """Arm -> epochs to the target, ``[rates][seeds]``; ``race.epochs`` where it is never reached."""
    curves = {arm: curve(race, arm, seeds) for arm in ARMS}  # [evaluations, rates, seeds]
    if race.accuracy is not None:
        target = torch.full((len(seeds),), 1 - race.accuracy)
    else:
        first, last = curves["plain"][0, 0], curves["plain"][-1].nan_to_num(nan=torch.inf).amin(0)
        target = first - 0.95 * (first - last)
    return {arm: crossing(values, target, race).tolist() for arm, values in curves.items()}


def crossing(values: Tensor, target: Tensor, race: Race) -> Tensor:
    """When curves ``[evaluations, rates, seeds]`` first are at most the targets ``[seeds]``, in epochs."""
    last, found = len(values) - 1, reached(-values.movedim(0, -1), -target)
    return torch.where(found > last, race.epochs, found * (race.epochs / last))


def curve(
    race: Race, arm: str, seeds: Sequence[int], after_step: Callable[[Stack], None] | None = None
) -> Tensor:
    """The metric on the training images every so many steps, ``[evaluations, rates, seeds]``.

    The error for a target accuracy, else the loss. All rates and seeds train as one stack, in the trainer's
    order of images.
    """
    config = compose({**race.settings, "norm": "none"})
    data = data_of(config)
    models = [
        build(config.model, config.norm, data.shape, data.classes, seed) for _ in race.rates for seed in seeds
    ]
    stack, objective = Stack(models), objective_of(config.model)
    lr = torch.tensor([rate for rate in race.rates for _ in seeds])
    weights = [f"{name}.weight" for name in normalized_layers(stack.template)]
    states = {name: start(arm, stack.params[name].detach()) for name in weights}
    n, batch = len(data.train.x), config.trainer.batch_size
    steps = n // batch
    if steps * race.epochs % race.every:
        raise ValueError("the last evaluation is not at the end")
    metric = "loss" if objective is ELBO else "error"

    def evaluated() -> Tensor:
        found = means(stack, objective, data.train, contextlib.nullcontext)
        return torch.tensor(found[metric]).view(-1, len(seeds))

    kept, done = [evaluated()], 0
    for epoch in range(1, race.epochs + 1):
        order = orders([*seeds] * len(race.rates), epoch, n)
        for chosen in torch.split(order, batch, 1)[:steps]:
            stack.train()
            outputs = stack(data.train.x[chosen])
            loss = objective.metrics(outputs, data.train.y[chosen])[0].mean(1).sum()
            _update(stack, arm, gradients(stack, loss), lr, states)
            done += 1
            if after_step:
                after_step(stack)
            if done % race.every == 0:
                kept.append(evaluated())
    return torch.stack(kept)


@torch.no_grad()
def _update(stack: Stack, arm: str, gradients: State, lr: Tensor, states: dict[str, State]) -> None:
    for name, parameter in stack.params.items():
        rate = lr.to(parameter.dtype).view([-1] + [1] * (parameter.dim() - 1))
        if name in states:
            parameter.copy_(step(arm, parameter, gradients[name], rate, states[name]))
        else:
            parameter.sub_(rate * gradients[name])
