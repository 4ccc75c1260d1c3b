"""Probes: how ||v||, g and the effective learning rate move, layer by layer.

The weight ``w = g v / ||v||`` of a unit moves by ``-lr (g / ||v||)^2`` times its projected gradient when
v takes a plain gradient step (from equation 3), so ``lr (g / ||v||)^2`` is the learning rate that w sees.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from wn.norm import normalized_layers
from wn.stack import Stack

Row = dict[str, Any]
Snapshot = dict[str, Tensor]


@torch.no_grad()
def snapshot(stack: Stack) -> Snapshot:
    """Every layer's effective weight, ``[members, ...]``, to measure the next update against."""
    weights: Snapshot = stack.map(_weights)
    return {name: w.clone() for name, w in weights.items()}


@torch.no_grad()
def measure(stack: Stack, before: Snapshot | None, lr: Tensor) -> list[list[Row]]:
    """A row per layer for each member.

    Args:
        stack: after an update.
        before: the snapshot from just before that update; None where there was none.
        lr: the update's learning rates, ``[members]``.

    Returns:
        For each member, rows of ``layer``, ``{v_norm,g,w_norm,ratio}_{min,mean,max}`` over the layer's
        units (of those that it has: ``ratio`` = g/||v|| needs both), ``effective_lr`` (mean over units; a
        plain weight's is lr) and, after an update, ``relative_update`` (||w' - w|| / ||w|| over the layer).
    """
    rows: list[list[Row]] = [[] for _ in range(len(stack))]
    for layer, (after, norms) in stack.map(_weights_and_norms).items():
        columns = {"effective_lr": lr}
        if "v_norm" in norms:  # with batch statistics the gain is no part of w, so g / ||v|| is not it
            factor = norms.get("ratio", norms["w_norm"] / norms["v_norm"])
            columns["effective_lr"] = lr * factor.square().mean(-1)
        if before is not None:
            moves = (after - before[layer], before[layer])
            update, size = (torch.linalg.vector_norm(w.flatten(1), dim=1) for w in moves)
            columns["relative_update"] = update / size
        units = torch.stack(list(norms.values()))  # [norms, members, units]
        for name, of_units in {"min": units.amin(-1), "mean": units.mean(-1), "max": units.amax(-1)}.items():
            columns |= {f"{norm}_{name}": values for norm, values in zip(norms, of_units, strict=True)}
        for member, numbers in enumerate(torch.stack(list(columns.values()), -1).tolist()):
            rows[member].append({"layer": layer, **dict(zip(columns, numbers, strict=True))})
    return rows


def _weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: layer.effective_weight() for name, layer in normalized_layers(model).items()}


def _weights_and_norms(model: nn.Module) -> dict[str, tuple[Tensor, dict[str, Tensor]]]:
    return {name: (w, normalized_layers(model)[name].unit_norms(w)) for name, w in _weights(model).items()}
