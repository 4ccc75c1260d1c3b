"""Probes: how ||v||, g and the effective learning rate move, layer by layer.

The weight ``w = g v / ||v||`` of a unit moves by ``-lr (g / ||v||)^2`` times its projected gradient when
v takes a plain gradient step (from equation 3), so ``lr (g / ||v||)^2`` is the learning rate that w sees. Its
*direction* sees ``lr / ||v||^2`` (van Laarhoven, 2017), or ``lr / ||v||`` under a rule whose step does not
depend on the gradient's size, as Adam's. That one can be compared between norms: of plain weights v is w, and
where only the layer as a whole can be rescaled ||v|| is its Frobenius norm.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from wn.grammar import properties
from wn.norm import NormalizedLayer, normalized_layers
from wn.stack import Stack

Row = dict[str, Any]
Snapshot = dict[str, Tensor]


@torch.no_grad()
def snapshot(stack: Stack) -> Snapshot:
    """Every layer's effective weight, ``[members, ...]``, to measure the next update against."""
    weights: Snapshot = stack.map(_weights)
    return {name: w.clone() for name, w in weights.items()}


@torch.no_grad()
def measure(stack: Stack, before: Snapshot | None, lr: Tensor, adaptive: bool = False) -> list[list[Row]]:
    """A row per layer for each member.

    Args:
        stack: after an update.
        before: the snapshot from just before that update; None where there was none.
        lr: the update's learning rates, ``[members]``.
        adaptive: the size of the rule's steps does not depend on the gradient's (Adam, Adamax).

    Returns:
        For each member, rows of ``layer``, ``{v_norm,g,w_norm,ratio}_{min,mean,max}`` over the layer's
        units (of those that it has: ``ratio`` = g/||v|| needs both), ``effective_lr`` (mean over units; a
        plain weight's is lr), ``direction_lr`` (mean over units) and, after an update, ``relative_update``
        (||w' - w|| / ||w|| over the layer) and ``angle`` between w and w' (mean over units, radians).
    """
    layers = normalized_layers(stack.template)
    rows: list[list[Row]] = [[] for _ in range(len(stack))]
    for name, (after, norms) in stack.map(_weights_and_norms).items():
        length = norms.pop("length")
        columns = {"effective_lr": lr, "direction_lr": lr * (1 / length ** (1 if adaptive else 2)).mean(-1)}
        if "v_norm" in norms:  # with batch statistics the gain is no part of w, so g / ||v|| is not it
            factor = norms.get("ratio", norms["w_norm"] / norms["v_norm"])
            columns["effective_lr"] = lr * factor.square().mean(-1)
        if before is not None:
            moves = (after - before[name], before[name])
            update, size = (torch.linalg.vector_norm(w.flatten(1), dim=1) for w in moves)
            columns["relative_update"] = update / size
            columns["angle"] = _angles(layers[name], before[name], after).mean(-1)
        units = torch.stack(list(norms.values()))  # [norms, members, units]
        for over, of_units in {"min": units.amin(-1), "mean": units.mean(-1), "max": units.amax(-1)}.items():
            columns |= {f"{norm}_{over}": values for norm, values in zip(norms, of_units, strict=True)}
        for member, numbers in enumerate(torch.stack(list(columns.values()), -1).tolist()):
            rows[member].append({"layer": name, **dict(zip(columns, numbers, strict=True))})
    return rows


def _angles(layer: NormalizedLayer, before: Tensor, after: Tensor) -> Tensor:
    """``[members, units]``, by the chord between unit vectors: the cosine of a small angle rounds to 1."""
    rows = [torch.vmap(layer.unit_rows)(w) for w in (before, after)]
    a, b = (
        w / torch.linalg.vector_norm(w, dim=-1, keepdim=True).clamp_min(torch.finfo(w.dtype).tiny)
        for w in rows
    )
    return 2 * torch.asin((torch.linalg.vector_norm(a - b, dim=-1) / 2).clamp_max(1))


def _weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: layer.effective_weight() for name, layer in normalized_layers(model).items()}


def _weights_and_norms(model: nn.Module) -> dict[str, tuple[Tensor, dict[str, Tensor]]]:
    """Every layer's weight and norms per unit; ``length``: what the direction's learning rate depends on."""
    found, layers = {}, normalized_layers(model)
    for name, w in _weights(model).items():
        layer = layers[name]
        norms = layer.unit_norms(w)
        layerwise = properties(vars(layer), layer.dense).invariant == "layer"
        length = layer.frobenius_norm() if layerwise else layer.direction_norm()
        found[name] = (w, {**norms, "length": length})
    return found
