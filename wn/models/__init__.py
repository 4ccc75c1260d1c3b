"""Architectures alone: a model knows its layers, never a data set, an optimiser or a norm's name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from wn.config import (
    ConvNetConfig,
    ConvVAEConfig,
    Model,
    NormConfig,
    ResNetVAEConfig,
    TransformerConfig,
    UserError,
)
from wn.models.convnet import build_convnet, check_shape
from wn.models.mlp import build_mlp
from wn.models.resnet_vae import ResNetVAE
from wn.models.transformer import Transformer, check_patches
from wn.models.vae import build_conv_vae, build_mlp_vae
from wn.norm import normalize

BUILDERS: dict[str, Callable[[Any, tuple[int, ...], int], nn.Module]] = {
    "mlp": build_mlp,
    "convnet": build_convnet,
    "mlp_vae": lambda config, shape, classes: build_mlp_vae(config, shape),
    "conv_vae": lambda config, shape, classes: build_conv_vae(config, shape),
    "resnet_vae": lambda config, shape, classes: ResNetVAE(config, shape),
    "transformer": Transformer,
}


def draws(layer: nn.Module) -> bool:
    """Whether a layer draws from torch's hidden generator, which no checkpoint holds."""
    if isinstance(layer, nn.modules.dropout._DropoutNd):
        return layer.p > 0
    if isinstance(layer, nn.MultiheadAttention | nn.RNNBase):
        return layer.dropout > 0
    return isinstance(layer, nn.RReLU | nn.FractionalMaxPool2d | nn.FractionalMaxPool3d)


def build(model: Model, norm: NormConfig, shape: tuple[int, ...], classes: int, seed: int) -> nn.Module:
    """A normalised model for inputs of ``shape`` (without the batch axis; images: channels, height, width).

    Its initial weights depend on model, shape and seed alone, not on the norm. The global generator is left
    as it was.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed CUDA's as well
        network = BUILDERS[model.name](model, shape, classes)
    for name, layer in network.named_modules():
        if draws(layer):
            kind = type(layer).__name__
            raise UserError(
                f"model={model.name}: {name} is torch's {kind}, which draws other numbers each time; "
                "take wn.models.noise.Dropout, which draws by the run's seed and step"
            )
    return normalize(network, **norm.model_dump(), activation=model.activation)


def check(model: Model, shape: tuple[int, ...]) -> None:
    """Raise UserError if images of this shape are too small, or cannot be halved or tiled as needed."""
    if isinstance(model, ConvNetConfig):
        check_shape(shape)
    if isinstance(model, TransformerConfig):
        check_patches(model, shape)
    halvings = int(isinstance(model, ResNetVAEConfig))
    if isinstance(model, ConvVAEConfig):
        halvings = len(model.channels) - 1
    side = 2**halvings
    if any(pixels % side for pixels in shape[1:]):
        raise UserError(
            f"model={model.name}: halves images {halvings} times, which {shape[1]}x{shape[2]} cannot be; "
            "take other data, or fewer model.channels"
        )
