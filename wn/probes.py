"""Probes: how ||v||, g and the effective learning rate move, layer by layer.

The weight ``w = g v / ||v||`` of a unit moves by ``-lr (g / ||v||)^2`` times its projected gradient when
v takes a plain gradient step (from equation 3), so ``lr (g / ||v||)^2`` is the learning rate that w sees.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from wn.norm import normalized_layers
from wn.stack import Stack

Row = dict[str, Any]
Snapshot = dict[str, Tensor]
STATISTICS: dict[str, Callable[[Tensor, int], Tensor]] = {
    "min": torch.amin,
    "mean": torch.mean,
    "max": torch.amax,
}


@torch.no_grad()
def snapshot(stack: Stack) -> Snapshot:
    """Every layer's effective weight, ``[members, ...]``, to measure the next update against."""
    weights: Snapshot = stack.map(_weights)
    return {name: w.clone() for name, w in weights.items()}


@torch.no_grad()
def measure(stack: Stack, before: Snapshot, lr: Tensor) -> list[list[Row]]:
    """A row per layer for each member.

    Args:
        stack: after an update.
        before: the snapshot from just before that update.
        lr: the update's learning rates, ``[members]``.

    Returns:
        For each member, rows of ``layer``, ``{v_norm,g,w_norm,ratio}_{min,mean,max}`` over the layer's
        units (``ratio`` = g/||v||; plain weights have ``w_norm`` alone), ``effective_lr`` (mean over
        units; a plain weight's is lr) and ``relative_update`` (||w' - w|| / ||w|| over the layer).
    """
    rows: list[list[Row]] = [[] for _ in range(len(stack))]
    for layer, (after, norms) in stack.map(_weights_and_norms).items():
        spread = torch.stack([of(torch.stack(list(norms.values()), 1), -1) for of in STATISTICS.values()], -1)
        square = norms["ratio"].square().mean(-1) if "ratio" in norms else torch.ones_like(lr)
        update, size = (torch.linalg.vector_norm(w.flatten(1), dim=1) for w in (after - before[layer], before[layer]))
        columns = [*(f"{name}_{how}" for name in norms for how in STATISTICS), "effective_lr", "relative_update"]
        values = torch.column_stack([spread.flatten(1), lr * square, update / size]).tolist()
        for member, numbers in enumerate(values):
            rows[member].append({"layer": layer, **dict(zip(columns, numbers, strict=True))})
    return rows


def _weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: layer.effective_weight() for name, layer in normalized_layers(model).items()}


def _weights_and_norms(model: nn.Module) -> dict[str, tuple[Tensor, dict[str, Tensor]]]:
    layers = normalized_layers(model).items()
    return {name: (layer.effective_weight(), layer.unit_norms()) for name, layer in layers}
