"""What is measured of a stack in evaluation mode: means over a split, tighter bounds, pictures."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from wn.data import Split
from wn.objectives import Objective
from wn.stack import Stack

BATCH = 1000
"""Images that are evaluated at once."""

Autocast = Callable[[], AbstractContextManager[Any]]


@torch.no_grad()
def means(stack: Stack, objective: Objective, split: Split, autocast: Autocast) -> dict[str, list[float]]:
    """Each metric's mean over a split, a number per member."""
    stack.train(False)
    totals = split.x.new_zeros(len(objective.metrics), len(stack))
    for x, y in zip(*(torch.split(t, BATCH) for t in (split.x, split.y)), strict=True):
        with autocast():
            outputs = stack(x, shared=True)
        measured = objective.measure(outputs, y.expand(len(stack), -1))
        totals += torch.stack([each.sum(1) for each in measured])
    return dict(zip(objective.metrics, divided(totals, len(split.x)), strict=True))


@torch.no_grad()
def iwae_bounds(stack: Stack, x: Tensor, samples: int, autocast: Autocast) -> list[float]:
    """The mean importance-weighted bound on images ``x``, in nats, a number per member, of VAEs."""
    stack.train(False)
    total = x.new_zeros(len(stack))
    for some in torch.split(x, max(1, BATCH // samples)):
        with autocast():
            total += stack.map(lambda model, x: model.iwae_bound(x, samples), some, shared=True).sum(1)
    (bounds,) = divided(total[None], len(x))
    return bounds


@torch.no_grad()
def pictures(stack: Stack, x: Tensor, autocast: Autocast) -> dict[str, Tensor]:
    """Grey levels from 0 to 1 of VAEs, ``[members, images, channels, height, width]`` each.

    ``reconstructions``: an image of ``x`` and what became of it, by turns; ``samples`` of the prior.
    """
    stack.train(False)
    with autocast():
        found: Tensor = stack.map(_reconstruct, x, shared=True)
        samples: Tensor = stack.map(_generate, x, shared=True)
    pairs = torch.stack([x.expand_as(found), found], 2).flatten(1, 2)
    return {"reconstructions": pairs, "samples": samples}


def _reconstruct(model: nn.Module, x: Tensor) -> Any:
    return model.reconstruct(x)  # type: ignore[operator]


def _generate(model: nn.Module, x: Tensor) -> Any:
    return model.generate(x)  # type: ignore[operator]


def divided(totals: Tensor, count: int) -> list[list[float]]:
    """``totals / count``, divided in double precision: an error of 1/3 is written as 1/3."""
    return [[total / count for total in row] for row in totals.tolist()]
