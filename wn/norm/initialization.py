"""Data-dependent initialisation (section 3): one pass over one batch sets gains and biases."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from wn.norm.layer import normalized_layers


@contextmanager
def initializing(model: nn.Module) -> Iterator[None]:
    """Within it a training forward pass sets the layers that wait for data, and tracks no averages."""
    layers = normalized_layers(model).values()
    for layer in layers:
        waits = layer.init == "data" and not bool(layer.initialized)
        layer.phase = "initialize" if waits else "pass"
    try:
        yield
    finally:
        for layer in layers:
            layer.phase = "normal"


@torch.no_grad()
def data_dependent_init(model: nn.Module, *inputs: Any) -> Any:
    """Set gains and biases so that each pre-activation has mean 0 and variance 1 on ``inputs`` (section 3).

    Each layer sees what its predecessors give once they are initialised. Noise and dropout are on, as in
    the authors' code. v and the running averages are left alone, and so are layers with ``init="default"``
    and layers that have been initialised before.

    Returns:
        The model's output, which is that of the next forward pass on the same inputs.

    >>> from wn.norm import NormalizedLayer
    >>> layer = NormalizedLayer(nn.Linear(3, 2), init="data")
    >>> y = data_dependent_init(layer, torch.randn(50, 3))
    >>> torch.allclose(y.std(0, correction=0), torch.ones(2))
    True
    """
    modes = {module: module.training for module in model.modules()}
    model.train()
    try:
        with initializing(model):
            return model(*inputs)
    finally:
        for module, mode in modes.items():
            module.training = mode
