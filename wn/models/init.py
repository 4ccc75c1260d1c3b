"""Schemes of the initial weights."""

from __future__ import annotations

import math
from typing import TypeVar

from torch import nn

from wn.config import WeightInit

Layer = TypeVar("Layer", bound=nn.Linear | nn.Conv2d | nn.ConvTranspose2d)


def init_weights_(layer: Layer, scheme: WeightInit) -> Layer:
    """The layer with weights drawn anew by ``scheme`` and a bias of zero.

    ``he``: normal(0, sqrt(2/fan_in)). ``paper``: normal(0, 0.05) (section 3). ``glorot``: uniform with
    variance 2/(fan_in + fan_out), where a fan counts channels times the positions of the kernel.
    """
    weight = layer.weight.transpose(0, 1) if isinstance(layer, nn.ConvTranspose2d) else layer.weight
    fan_in = weight[0].numel()  # of a transposed convolution, what an unstrided one would have
    if scheme == "glorot":
        nn.init.xavier_uniform_(layer.weight)
    else:
        nn.init.normal_(layer.weight, std=math.sqrt(2 / fan_in) if scheme == "he" else 0.05)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer
