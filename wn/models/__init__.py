"""Architectures alone: a model knows its layers, never a data set, an optimiser or a norm's name."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from wn import plugins
from wn.config import (
    ConvNetConfig,
    ConvVAEConfig,
    Model,
    NormConfig,
    PluginModelConfig,
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
    "plugin": lambda config, shape, classes: _own_model(config, shape, classes),
}


INSTEAD = "other numbers each time; take wn.models.noise.Dropout, which draws by the run's seed and step"


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
                where = f"model={getattr(model, 'plugin', model.name)}: {name}"
                raise UserError(f"{where} is torch's {kind}, which draws {INSTEAD}")
        return with_norm(network, norm, model.activation)  # which draws v of units that are zero


def with_norm(network: nn.Module, norm: NormConfig, activation: str = "none") -> nn.Module:
    """A network of plain layers, or one such layer, normalised in place."""
    if norm.plugin is None:
        return normalize(network, **norm.model_dump(exclude={"plugin"}), activation=activation)
    given = {"activation": activation} if norm.scale == "activation" else {}
    return normalize(network, layer_class=_own_layer(norm.plugin), **norm.own_choices(), **given)


def check_pass(network: nn.Module, x: Tensor, name: str) -> None:
    """Raise UserError if a pass through the user's code ``name`` does in secret what no run can repeat.

    It draws from torch's generator, whose state no checkpoint holds, or gives a buffer another tensor, which
    the functional call of a stack does not see. ``x``: a few images. What a pass raises shows when it trains.
    """
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        for mode in (True, False):
            network.train(mode)
            before, buffers = torch.get_rng_state(), dict(network.named_buffers())
            with contextlib.suppress(Exception):
                network(x)
            if not torch.equal(before, torch.get_rng_state()):
                raise UserError(f"{name}: its forward pass draws from torch's generator, {INSTEAD}")
            if changed := [k for k, b in network.named_buffers() if b is not buffers.get(k)]:
                raise UserError(
                    f"{name}: its forward pass puts another tensor in the place of the buffer {changed[0]}, "
                    "which is lost in a stack; change it in place, as in self.mean.copy_(mean)"
                )


def _own_model(config: PluginModelConfig, shape: tuple[int, ...], classes: int) -> nn.Module:
    """A model of the user's own; UserError where it is no module."""
    numbers = plugins.numbers(config.plugin, config.model_extra or {})
    network = plugins.find("model", config.plugin)(shape, classes, **numbers)
    if not isinstance(network, nn.Module):
        raise UserError(f"model={config.plugin}: returned {type(network).__name__}, should return a module")
    return network


def _own_layer(name: str) -> Callable[..., nn.Module]:
    """A norm of the user's own; it raises UserError where it makes no module of a layer."""

    def make(layer: nn.Module, **choices: Any) -> nn.Module:
        made = plugins.find("norm", name)(layer, **choices)
        if not isinstance(made, nn.Module):
            found = f"returned {type(made).__name__} for {layer}"
            raise UserError(f"norm={name}: {found}, and should return a module")
        return made

    return make


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
