"""What is minimised and what is measured."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch.nn.functional as F
from torch import Tensor

from wn.config import Model, VAEConfig


class Objective(NamedTuple):
    """What a model is trained for."""

    metrics: tuple[str, ...]
    """Names of what is measured of each example; the first is minimised."""
    criterion: str
    """The one by which a learning rate, or an epoch, is the best."""
    measure: Callable[[Any, Tensor], tuple[Tensor, ...]]
    """Outputs of a model and labels -> the metrics, each of the labels' shape."""


def objective_of(model: Model) -> Objective:
    """What a model of this kind is trained for."""
    return BOUND if isinstance(model, VAEConfig) else CLASSIFICATION


def classification(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy in nats and misclassification, of each example.

    Args:
        logits: ``[..., classes]``, of any floating type; the loss is computed in float32 at least.
        labels: ``[...]``, int64.

    Returns:
        loss and error, both ``[...]``; an error is 0 or 1.
    """
    wide = logits.float() if logits.dtype.itemsize < 4 else logits
    loss = F.cross_entropy(wide.flatten(0, -2), labels.flatten(), reduction="none").view(labels.shape)
    return loss, (wide.argmax(-1) != labels).to(loss.dtype)


def bound(parts: tuple[Tensor, ...], labels: Tensor) -> tuple[Tensor, ...]:
    """Minus the evidence lower bound, and its two parts, in nats: what a VAE returns; labels are not read."""
    return parts


CLASSIFICATION = Objective(("loss", "error"), "error", classification)
BOUND = Objective(("loss", "reconstruction", "kl"), "loss", bound)
