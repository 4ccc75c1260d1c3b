"""The multilayer perceptron."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

from torch import nn

from wn.config import MLP
from wn.noise import Dropout, GaussianNoise

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "leaky_relu": partial(nn.LeakyReLU, 0.1),  # the authors' slope
    "elu": nn.ELU,
    "tanh": nn.Tanh,
}


def build_mlp(config: MLP, shape: tuple[int, ...], classes: int) -> nn.Sequential:
    """``[batch, *shape]`` to logits ``[batch, classes]`` through the hidden layers ``config.widths``.

    Weights are drawn from normal(0, sqrt(2/fan_in)) (``draw=he``) or normal(0, 0.05) (``draw=paper``,
    section 3); biases are zero.
    """
    network = nn.Sequential()
    network.add_module("flatten", nn.Flatten())
    if config.noise:
        network.add_module("noise", GaussianNoise(config.noise))
    inputs = math.prod(shape)
    for i, width in enumerate(config.widths, start=1):
        network.add_module(f"hidden{i}", _linear(inputs, width, config.draw))
        network.add_module(f"activation{i}", ACTIVATIONS[config.activation]())
        if config.dropout:
            network.add_module(f"dropout{i}", Dropout(config.dropout))
        inputs = width
    network.add_module("logits", _linear(inputs, classes, config.draw))
    return network


def _linear(inputs: int, outputs: int, draw: str) -> nn.Linear:
    layer = nn.Linear(inputs, outputs)
    nn.init.normal_(layer.weight, std=math.sqrt(2 / inputs) if draw == "he" else 0.05)
    nn.init.zeros_(layer.bias)
    return layer
