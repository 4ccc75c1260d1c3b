"""Architectures alone: a model knows its layers, never a data set, an optimiser or a norm's name."""

from __future__ import annotations

import torch
from torch import nn

from wn.config import MLP, Norm
from wn.convert import normalize
from wn.models.mlp import build_mlp


def build(model: MLP, norm: Norm, shape: tuple[int, ...], classes: int, seed: int) -> nn.Module:
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
        network = build_mlp(model, shape, classes)
    return normalize(network, **norm.model_dump())
