"""Architectures alone: a model knows its layers, never a data set, an optimiser or a norm's name."""

from __future__ import annotations

import torch
from torch import nn

from wn.config import MLP, Model, Norm
from wn.convert import normalize
from wn.models.convnet import build_convnet, check_shape
from wn.models.mlp import build_mlp


def build(model: Model, norm: Norm, shape: tuple[int, ...], classes: int, seed: int) -> nn.Module:
    """A model with its norm; the initial draw is a function of the model, the shape and the seed alone.

    Args:
        model: the architecture.
        norm: how its layers are normalised.
        shape: of one input, without the batch axis.
        classes: how many logits.
        seed: of the initial draw. The global generator is left as it was.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed CUDA's as well
        if isinstance(model, MLP):
            network = build_mlp(model, shape, classes)
        else:
            network = build_convnet(model, shape, classes)
    return normalize(network, **norm.model_dump())


def check(model: Model, shape: tuple[int, ...]) -> None:
    """Refuse a model that cannot take inputs of this shape.

    Raises:
        UserError: the images are too small for the network.
    """
    if not isinstance(model, MLP):
        check_shape(shape)
