"""The multilayer perceptron."""

from __future__ import annotations

import math

from torch import nn

from wn.config import MLPConfig
from wn.models.init import init_weights_, output_layer
from wn.models.noise import Dropout, GaussianNoise
from wn.norm.weight import ACTIVATIONS


def build_mlp(config: MLPConfig, shape: tuple[int, ...], classes: int) -> nn.Sequential:
    """``[batch, *shape]`` to logits ``[batch, classes]`` through the hidden layers ``config.widths``."""
    network = nn.Sequential()
    network.add_module("flatten", nn.Flatten())
    if config.noise:
        network.add_module("noise", GaussianNoise(config.noise))
    inputs = math.prod(shape)
    for i, width in enumerate(config.widths, start=1):
        network.add_module(f"hidden{i}", init_weights_(nn.Linear(inputs, width), config.weight_init))
        network.add_module(f"activation{i}", ACTIVATIONS[config.activation]())
        if config.dropout:
            network.add_module(f"dropout{i}", Dropout(config.dropout))
        inputs = width
    logits = init_weights_(nn.Linear(inputs, classes), config.weight_init)
    network.add_module("logits", output_layer(logits))
    return network
