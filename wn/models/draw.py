"""The laws of the initial weights."""

from __future__ import annotations

import math
from typing import TypeVar

from torch import nn

from wn.config import Draw

Layer = TypeVar("Layer", nn.Linear, nn.Conv2d)


def drawn(layer: Layer, law: Draw) -> Layer:
    """The layer with weights drawn anew by ``law`` and a bias of zero.

    ``he``: normal(0, sqrt(2/fan_in)). ``paper``: normal(0, 0.05) (section 3). ``glorot``: uniform with
    variance 2/(fan_in + fan_out), where a fan counts channels times places of the kernel.
    """
    fan_in = layer.weight[0].numel()
    if law == "glorot":
        nn.init.xavier_uniform_(layer.weight)
    else:
        nn.init.normal_(layer.weight, std=math.sqrt(2 / fan_in) if law == "he" else 0.05)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer
