"""Deep networks for the claims about initialisation: plain, convolutional and residual, of any depth."""

from __future__ import annotations

import functools
from typing import Literal

import torch
from torch import Tensor, nn

from wn.config import DataConfig, NormConfig
from wn.data import Dataset, load, permutation
from wn.models import with_norm
from wn.models.init import init_weights_, output_layer
from wn.norm import NormalizedLayer, data_dependent_init, normalized_layers
from wn.norm.weight import ACTIVATIONS

Kind = Literal["plain", "convolutional", "residual"]
Start = Literal["data", "he", "arpit", "stale", "batch_norm"]

WEIGHT_NORM = {"direction": "row", "gain": "free"}
NORMS: dict[Start, dict[str, str]] = {
    "data": {**WEIGHT_NORM, "init": "data"},
    "he": WEIGHT_NORM,  # g = ||v||: the function of the plain layer
    "arpit": {**WEIGHT_NORM, "init": "arpit"},
    "stale": WEIGHT_NORM,
    "batch_norm": {"gain": "free", "statistics": "batch"},
}


class Deep(nn.Module):
    """Hidden layers t_1 ... t_depth of one width, and logits; f is the activation, h the image. ::

        plain, convolutional   t_1 = W_1 h,  t_l = W_l f(t_(l-1)),            logits of f(t_depth)
        residual               x_1 = t_1,    x_l = x_(l-1) + W_l f(x_(l-1)),  logits of f(x_depth)

    Convolutions are 3x3 with zero padding, and the logits see the mean over positions. A residual network's
    t_l is the output of W_l; the gradient with respect to it is that with respect to x_l.
    """

    def __init__(self, kind: Kind, depth: int, width: int, activation: str, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.kind, self.activation = kind, ACTIVATIONS[activation]()
        conv = kind == "convolutional"
        first = shape[0] if conv else torch.Size(shape).numel()
        fans = [first, *[width] * (depth - 1)]
        layers = [nn.Conv2d(n, width, 3, padding=1) if conv else nn.Linear(n, width) for n in fans]
        self.hidden = nn.ModuleList(init_weights_(layer, "he") for layer in layers)
        if kind == "residual":
            for layer in self.hidden[1:]:
                layer.residual_branches = depth - 1  # type: ignore[assignment]  # read by init=arpit
        self.logits = output_layer(init_weights_(nn.Linear(width, 10), "he"))

    def features(self, x: Tensor) -> Tensor:
        """What enters the last hidden activation: t_depth, or x_depth of a residual network."""
        x = x if self.kind == "convolutional" else x.flatten(1)
        for number, layer in enumerate(self.hidden):
            t = layer(self.activation(x) if number else x)
            x = x + t if number and self.kind == "residual" else t
        return x

    def forward(self, x: Tensor) -> Tensor:
        y = self.activation(self.features(x))
        logits: Tensor = self.logits(y.mean((2, 3)) if self.kind == "convolutional" else y)
        return logits


def deep(kind: Kind, depth: int, width: int, activation: str, start: Start, batch: Tensor, seed: int) -> Deep:
    """The network, its weights drawn by ``seed`` and set by ``start``, where by data on ``batch``.

    ``data``: data-dependent; ``he``: normal(0, 2/fan_in); ``arpit``: Arpit et al. (2019). ``stale`` is a
    mistake that implementations make: all layers are set from one pass through the network before any is.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        plain = Deep(kind, depth, width, activation, tuple(batch.shape[1:]))
    with_norm(plain, NormConfig.model_validate(NORMS[start]), activation)  # in place
    model = plain.to(batch.dtype)
    if start == "data":
        data_dependent_init(model, batch)
    if start == "stale":
        _set_from_one_pass(model, batch)
    return model.train()


@torch.no_grad()
def _set_from_one_pass(model: nn.Module, batch: Tensor) -> None:
    for layer, t in outputs(model, batch).items():
        sigma, mu = torch.std_mean(samples(layer, t), 0, correction=0)
        layer.divide_gains(sigma)
        if layer.bias is not None:
            layer.bias.sub_(mu).div_(sigma)


def outputs(model: nn.Module, batch: Tensor) -> dict[NormalizedLayer, Tensor]:
    """What each layer puts out on a batch, in the order of the layers; the logits' is the last."""
    layers = normalized_layers(model)
    return {layers[name]: t for name, (_, t) in passed(model, batch).items()}


def passed(model: nn.Module, x: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """What goes into each normalised layer for x, and what it puts out, in the order of the pass."""
    names = {layer: name for name, layer in normalized_layers(model).items()}
    found: dict[str, tuple[Tensor, Tensor]] = {}

    def keep(layer: NormalizedLayer, given: tuple[Tensor, ...], t: Tensor) -> None:
        found[names[layer]] = (given[0], t)

    hooks = [layer.register_forward_hook(keep) for layer in names]
    model(x)
    for hook in hooks:
        hook.remove()
    return found


def samples(layer: NormalizedLayer, t: Tensor) -> Tensor:
    """A layer's output as ``[samples, units]``, a sample being an image or a place in one."""
    return (t if layer.dense else t.movedim(1, -1)).flatten(0, -2)


@functools.cache
def digits(dtype: torch.dtype = torch.float32) -> Dataset:
    return load(DataConfig(), dtype=dtype)


def first_batch(data: Dataset, images: int, seed: int) -> Tensor:
    """The indices of the images that a training initialises on."""
    return permutation(seed, 0, len(data.train.x))[:images]
