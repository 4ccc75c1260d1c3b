"""Data-dependent initialisation (section 3): one pass over one batch sets gains and biases."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from wn.norm.layer import NormalizedLayer
from wn.norm.statistics import Activations


@contextmanager
def initializing(model: nn.Module) -> Iterator[None]:
    """Context in which a training pass initialises layers with ``init="data"`` and updates no averages."""
    layers = [module for module in model.modules() if isinstance(module, Activations)]
    for layer in layers:
        waits = isinstance(layer, NormalizedLayer) and layer.init == "data" and not bool(layer.initialized)
        layer.phase = "initialize" if waits else "pass"
    try:
        yield
    finally:
        for layer in layers:
            layer.phase = "normal"


@torch.no_grad()
def data_dependent_init(model: nn.Module, *inputs: Any) -> Any:
    """Set gains and biases so that each pre-activation has mean 0 and variance 1 on ``inputs`` (section 3).

    Layer by layer: each sees the outputs of its initialised predecessors. Noise and dropout are on, as in
    the authors' code. v, the running averages, layers with ``init="default"`` and layers initialised before
    are unchanged. Returns the model's output, that of the next forward pass on the same inputs.

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
