"""What is minimised and measured: losses per example, means over a split, IWAE bounds, pictures."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from wn.config import Model, VAEConfig
from wn.data import Split
from wn.stack import Stack

BATCH = 1000  # images that are evaluated at once

Autocast = Callable[[], AbstractContextManager[Any]]


class Objective(NamedTuple):
    """What a model is trained for."""

    names: tuple[str, ...]  # of the metrics; the mean of the first is minimised
    selection_metric: str  # chooses a learning rate, or an epoch, on the validation split
    metrics: Callable[[Any, Tensor], tuple[Tensor, ...]]  # outputs, labels -> per example


def objective_of(model: Model) -> Objective:
    return ELBO if isinstance(model, VAEConfig) else CLASSIFICATION


def classification(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy in nats and misclassification (0 or 1), ``[...]``, of ``logits [..., classes]``."""
    # bfloat16's eight bits are too few for a loss.
    logits = logits.float() if logits.dtype.itemsize < 4 else logits
    loss = F.cross_entropy(logits.flatten(0, -2), labels.flatten(), reduction="none").view(labels.shape)
    return loss, (logits.argmax(-1) != labels).to(loss.dtype)


CLASSIFICATION = Objective(("loss", "error"), "error", classification)
ELBO = Objective(("loss", "reconstruction", "kl"), "loss", lambda parts, labels: parts)
"""The negative ELBO and its two terms, in nats, as a VAE returns them."""


@torch.no_grad()
def means(stack: Stack, objective: Objective, split: Split, autocast: Autocast) -> dict[str, list[float]]:
    """Each metric's mean over a split, a number per member."""
    stack.train(False)
    totals = split.x.new_zeros(len(objective.names), len(stack))
    for x, y in zip(*(torch.split(t, BATCH) for t in (split.x, split.y)), strict=True):
        with autocast():
            outputs = stack(x, shared=True)
        totals += torch.stack([m.sum(1) for m in objective.metrics(outputs, y.expand(len(stack), -1))])
    return dict(zip(objective.names, divided(totals, len(split.x)), strict=True))


@torch.no_grad()
def iwae_bounds(stack: Stack, x: Tensor, samples: int, autocast: Autocast, done: int = 0) -> Iterator[Tensor]:
    """IWAE bounds of VAEs on images ``x``, in nats: part by part, ``[members, images of the part]``.

    Those of the first ``done`` images, whole parts, are left out; they change nothing in the others'.
    """
    part = max(1, BATCH // samples)
    for first in range(done, len(x), part):
        stack.train(False, passes=first // part)
        with autocast():
            some = x[first : first + part]
            yield stack.map(lambda model, x: model.iwae_bound(x, samples), some, shared=True)


def mean_bounds(bounds: Tensor) -> list[float]:
    """Of bounds ``[members, images]``, a number per member."""
    return divided(bounds.sum(1)[None], bounds.shape[1])[0]


@torch.no_grad()
def pictures(stack: Stack, x: Tensor, autocast: Autocast) -> dict[str, Tensor]:
    """Pixel values of VAEs from 0 to 1, each ``[members, images, channels, height, width]``.

    ``reconstructions``: originals ``x`` and reconstructions, interleaved; ``samples`` of the prior.
    """
    stack.train(False)
    with autocast():
        found: Tensor = stack.map(lambda model, x: model.reconstruct(x), x, shared=True)
        samples: Tensor = stack.map(lambda model, x: model.generate(x), x, shared=True)
    pairs = torch.stack([x.expand_as(found), found], 2).flatten(1, 2)
    return {"reconstructions": pairs, "samples": samples}


def divided(totals: Tensor, count: int) -> list[list[float]]:
    """``totals / count``, divided in double precision: an error of 1/3 is written as 1/3."""
    return [[total / count for total in row] for row in totals.tolist()]
