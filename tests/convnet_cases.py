"""The network of section 5.1 in torch's own layers, with the parameters of the project's."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def named_alike(theirs: nn.Module) -> list[tuple[str, Tensor]]:
    """The reference's parameters in the order and by the names of the project's layers."""
    names = {"original1": "v", "original0": "g", "weight": "weight", "bias": "bias"}
    found = []
    for module in theirs.modules():
        batch = isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d)
        for name, p in module.named_parameters(recurse=False):
            found.append(("g" if batch and name == "weight" else names[name], p))
    return found


@torch.no_grad()
def give(ours: nn.Module, theirs: nn.Module) -> None:
    """Move gains and biases from where they start, and copy all parameters into the reference."""
    own = {kind: [p for n, p in ours.named_parameters() if n.endswith(f".{kind}")] for kind in "vg"}
    own |= {kind: [p for n, p in ours.named_parameters() if n.endswith(kind)] for kind in ("weight", "bias")}
    for p in (*own["g"], *own["bias"]):
        p.add_(0.1 * torch.rand_like(p))
    for kind, p in named_alike(theirs):
        p.copy_(own[kind].pop(0).view_as(p))
    assert not any(own.values())
