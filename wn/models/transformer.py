"""A small transformer of images (Dosovitskiy et al., 2021): where layer and RMS normalisation are used."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wn.config import TransformerConfig, UserError
from wn.models.init import init_weights_, output_layer
from wn.norm import NormSite

POSITION_STD = 0.5  # of the initial positions: that of the embedded patches, about


class Attention(nn.Module):
    """Multi-head attention among the patches of an image, ``[batch, patches, width]`` to the same.

    Four layers, not one for all of query, key and value: a norm of a whole matrix is then each one's own.
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.query, self.key, self.value = (_linear(config, config.width, config.width) for _ in range(3))
        self.out = _last_of_branch(config, config.width)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (self._heads(layer(x)) for layer in (self.query, self.key, self.value))
        # Not torch's fused kernel, which is not twice differentiable, and slower for so few patches.
        scores = (query * query.shape[-1] ** -0.5) @ key.mT
        mixed = (scores.softmax(-1) @ value).transpose(-2, -3).flatten(-2)
        y: Tensor = self.out(mixed)
        return y

    def _heads(self, x: Tensor) -> Tensor:
        """``[batch, patches, width]`` to ``[batch, heads, patches, width / heads]``."""
        return x.view(*x.shape[:-1], self.heads, -1).transpose(-2, -3)


class Block(nn.Module):
    """``x + attention(site(x))``, then ``x + mlp(site(x))``."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        hidden = config.mlp_ratio * config.width
        self.attention_site = NormSite(config.width)
        self.attention = Attention(config)
        self.mlp_site = NormSite(config.width)
        self.mlp = nn.Sequential(
            _linear(config, config.width, hidden), nn.GELU(), _last_of_branch(config, hidden)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.attention_site(x))
        y: Tensor = x + self.mlp(self.mlp_site(x))
        return y


class Transformer(nn.Module):
    """Images ``[batch, channels, height, width]`` to logits ``[batch, classes]``.

    Patches, embedded linearly, plus learned positions; ``config.depth`` blocks; a last site; the mean over
    patches; a linear layer.
    """

    def __init__(self, config: TransformerConfig, shape: tuple[int, ...], classes: int) -> None:
        super().__init__()
        channels, height, width = shape
        self.patch = config.patch
        self.embedding = _linear(config, channels * config.patch**2, config.width)
        patches = (height // config.patch) * (width // config.patch)
        self.positions = nn.Parameter(POSITION_STD * torch.randn(patches, config.width))
        self.blocks = nn.Sequential(*(Block(config) for _ in range(config.depth)))
        self.site = NormSite(config.width)
        self.logits = output_layer(_linear(config, config.width, classes))

    def forward(self, x: Tensor) -> Tensor:
        patches = F.pixel_unshuffle(x, self.patch).flatten(2).mT  # [batch, patches, channels * side * side]
        hidden = self.site(self.blocks(self.embedding(patches) + self.positions))
        y: Tensor = self.logits(hidden.mean(1))
        return y


def _linear(config: TransformerConfig, inputs: int, outputs: int) -> nn.Linear:
    return init_weights_(nn.Linear(inputs, outputs), config.weight_init)


def _last_of_branch(config: TransformerConfig, inputs: int) -> nn.Linear:
    layer = _linear(config, inputs, config.width)
    layer.residual_branches = 2 * config.depth  # type: ignore[assignment] # read by init=arpit
    return layer


def check_patches(config: TransformerConfig, shape: tuple[int, ...]) -> None:
    _, height, width = shape
    if height % config.patch or width % config.patch:
        side = math.gcd(height, width)
        fitting = ", ".join(str(n) for n in range(1, side + 1) if side % n == 0)
        raise UserError(
            f"model.patch={config.patch}: squares of that side do not tile images of {height}x{width}; "
            f"take one of {fitting}"
        )
