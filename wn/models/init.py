"""Initial weights."""

from __future__ import annotations

import math
from typing import TypeVar

from torch import nn

from wn.config import WeightInit

Layer = TypeVar("Layer", bound=nn.Linear | nn.Conv2d | nn.ConvTranspose2d)
Module = TypeVar("Module", bound=nn.Module)


def init_weights_(layer: Layer, scheme: WeightInit) -> Layer:
    """The layer, its weights drawn anew by ``scheme`` and its bias zero.

    ``he``: normal(0, sqrt(2/fan_in)). ``paper``: normal(0, 0.05) (section 3). ``glorot``: uniform with
    variance 2/(fan_in + fan_out), as the authors' code leaves plain weights. A fan: channels x positions.
    A number: normal(0, that number), the same in every layer.
    """
    weight = layer.weight.transpose(0, 1) if isinstance(layer, nn.ConvTranspose2d) else layer.weight
    fan_in = weight[0].numel()  # for a transposed convolution, as if its stride were 1
    if scheme == "glorot":
        nn.init.xavier_uniform_(layer.weight)
    else:
        std = math.sqrt(2 / fan_in) if scheme == "he" else 0.05 if scheme == "paper" else scheme
        nn.init.normal_(layer.weight, std=std)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


def output_layer(layer: Module) -> Module:
    """The layer, marked as one of the model's output layers (``norm.output_layers``)."""
    layer.is_output = True  # type: ignore[assignment]
    return layer
