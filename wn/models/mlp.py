"""The multilayer perceptron."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

from torch import nn

from wn.config import MLP
from wn.models.draw import drawn
from wn.noise import Dropout, GaussianNoise

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "leaky_relu": partial(nn.LeakyReLU, 0.1),  # the authors' slope
    "elu": nn.ELU,
    "tanh": nn.Tanh,
}


def build_mlp(config: MLP, shape: tuple[int, ...], classes: int) -> nn.Sequential:
    """``[batch, *shape]`` to logits ``[batch, classes]`` through the hidden layers ``config.widths``.

    Weights are drawn by ``config.draw`` (:func:`wn.models.draw.drawn`); biases are zero.
    """
    network = nn.Sequential()
    network.add_module("flatten", nn.Flatten())
    if config.noise:
        network.add_module("noise", GaussianNoise(config.noise))
    inputs = math.prod(shape)
    for i, width in enumerate(config.widths, start=1):
        network.add_module(f"hidden{i}", drawn(nn.Linear(inputs, width), config.draw))
        network.add_module(f"activation{i}", ACTIVATIONS[config.activation]())
        if config.dropout:
            network.add_module(f"dropout{i}", Dropout(config.dropout))
        inputs = width
    network.add_module("logits", drawn(nn.Linear(inputs, classes), config.draw))
    return network
