"""Architectures alone: a model knows its layers, never a data set, an optimiser or a norm's name."""

from __future__ import annotations

import torch
from torch import nn

from wn.config import (
    ConvNetConfig,
    ConvVAEConfig,
    MLPConfig,
    MLPVAEConfig,
    Model,
    NormConfig,
    ResNetVAEConfig,
    UserError,
)
from wn.models.convnet import build_convnet, check_shape
from wn.models.mlp import build_mlp
from wn.models.resnet_vae import ResNetVAE
from wn.models.vae import build_conv_vae, build_mlp_vae
from wn.norm import normalize


def build(model: Model, norm: NormConfig, shape: tuple[int, ...], classes: int, seed: int) -> nn.Module:
    """A model with its norm; the initial draw is a function of the model, the shape and the seed alone.

    Args:
        model: the architecture.
        norm: how its layers are normalised.
        shape: of one input, without the batch axis; of a model of images (channels, height, width).
        classes: how many logits a classifier has.
        seed: of the initial draw. The global generator is left as it was.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed CUDA's as well
        network = _network(model, shape, classes)
    return normalize(network, **norm.model_dump())


def _network(model: Model, shape: tuple[int, ...], classes: int) -> nn.Module:
    if isinstance(model, MLPConfig):
        return build_mlp(model, shape, classes)
    if isinstance(model, ConvNetConfig):
        return build_convnet(model, shape, classes)
    channels, height, width = shape
    if isinstance(model, MLPVAEConfig):
        return build_mlp_vae(model, (channels, height, width))
    if isinstance(model, ConvVAEConfig):
        return build_conv_vae(model, (channels, height, width))
    return ResNetVAE(model, channels, (height, width))


def check(model: Model, shape: tuple[int, ...]) -> None:
    """Refuse a model that cannot take inputs of this shape.

    Raises:
        UserError: the images are too small for the network, or cannot be halved as often as it halves them.
    """
    if isinstance(model, ConvNetConfig):
        check_shape(shape)
    halvings = int(isinstance(model, ResNetVAEConfig))
    if isinstance(model, ConvVAEConfig):
        halvings = len(model.channels) - 1
    side = 2**halvings
    if any(pixels % side for pixels in shape[1:]):
        raise UserError(
            f"model={model.name}: halves images {halvings} times, which {shape[1]}x{shape[2]} cannot be; "
            "take other data, or fewer model.channels"
        )
