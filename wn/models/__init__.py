"""Architectures alone: a model knows its layers, never a data set, an optimiser or a norm's name."""

from __future__ import annotations

import torch
from torch import nn

from wn.config import MLP, MLPVAE, ConvNet, ConvVAE, Model, Norm, ResNetVAE, UserError
from wn.convert import normalize
from wn.models.convnet import build_convnet, check_shape
from wn.models.ladder import Ladder
from wn.models.mlp import build_mlp
from wn.models.vae import build_conv_vae, build_mlp_vae


def build(model: Model, norm: Norm, shape: tuple[int, ...], classes: int, seed: int) -> nn.Module:
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
    if isinstance(model, MLP):
        return build_mlp(model, shape, classes)
    if isinstance(model, ConvNet):
        return build_convnet(model, shape, classes)
    channels, height, width = shape
    if isinstance(model, MLPVAE):
        return build_mlp_vae(model, (channels, height, width))
    if isinstance(model, ConvVAE):
        return build_conv_vae(model, (channels, height, width))
    return Ladder(model, channels, (height, width))


def check(model: Model, shape: tuple[int, ...]) -> None:
    """Refuse a model that cannot take inputs of this shape.

    Raises:
        UserError: the images are too small for the network, or cannot be halved as often as it does.
    """
    if isinstance(model, ConvNet):
        check_shape(shape)
    halvings = len(model.maps) - 1 if isinstance(model, ConvVAE) else int(isinstance(model, ResNetVAE))
    side = 2**halvings
    if any(pixels % side for pixels in shape[1:]):
        raise UserError(
            f"model={model.name}: halves images {halvings} times, which {shape[1]}x{shape[2]} cannot be; "
            "take other data, or fewer model.maps"
        )
