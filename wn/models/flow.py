"""Inverse autoregressive flow (Kingma et al., 2016): a Gaussian made flexible, its density still known."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wn.config import VAE
from wn.models.draw import drawn
from wn.models.likelihood import log_standard_normal, wide
from wn.noise import Sampler

KEEP = 2.0
"""Added before the sigmoid: at first a transformation changes little (section 4 of that paper: +1 or +2)."""


class MaskedLinear(nn.Linear):
    """A linear layer, some of whose weights do not exist. ``mask`` is 0 there, 1 elsewhere."""

    mask: Tensor

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs)
        self.register_buffer("mask", torch.ones_like(self.weight), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """``x [batch, inputs]`` through the weights that exist."""
        return F.linear(x, self.weight * self.mask, self.bias)


class MaskedConv2d(nn.Conv2d):
    """A 3x3 convolution that keeps the size, some of whose weights do not exist."""

    mask: Tensor

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, 3, padding=1)
        self.register_buffer("mask", torch.ones_like(self.weight), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """``x [batch, inputs, height, width]`` through the weights that exist."""
        return F.conv2d(x, self.weight * self.mask, self.bias, padding=1)


class AutoregressiveStep(nn.Module):
    """``z <- s z + (1 - s) m`` with m and s of each number a function of those before it (equation 14).

    Numbers are ordered along the latents; maps of them first by place, row by row, then by map. m and s come
    from a network of one hidden layer whose masks keep the order (MADE, PixelCNN) and which is also given the
    encoder's ``context``.

    Args:
        config: ``latents`` (numbers, or maps of them) and ``flow_width`` (hidden units, or maps).
        context: features, or maps, of the context.
        maps: whether z is an image of maps.
        reverse: whether the order runs from the last to the first.
    """

    def __init__(self, config: VAE, context: int, maps: bool, reverse: bool) -> None:
        super().__init__()
        latents, width = config.latents, config.flow_width
        masked: type[MaskedLinear | MaskedConv2d] = MaskedConv2d if maps else MaskedLinear
        self.hidden = drawn(masked(latents, width), config.draw)
        self.context = drawn(nn.Conv2d(context, width, 1) if maps else nn.Linear(context, width), config.draw)
        self.out = drawn(masked(width, 2 * latents), config.draw)
        place = torch.arange(latents).flip(0) if reverse else torch.arange(latents)
        between = torch.arange(width) % max(latents - 1, 1)  # a hidden unit sees the latents up to this place
        _mask(self.hidden, place <= between[:, None], reverse)
        _mask(self.out, (between < place[:, None]).repeat(2, 1), reverse)

    def forward(self, z: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        """The new z ``[batch, latents, ...]``, and of each of its numbers the log derivative ``log s``."""
        hidden = F.elu(self.hidden(z) + self.context(context))
        mean, gate = wide(self.out(hidden)).chunk(2, 1)
        keep = torch.sigmoid(gate + KEEP)
        return keep * z + (1 - keep) * mean, F.logsigmoid(gate + KEEP)


def _mask(layer: MaskedLinear | MaskedConv2d, same_place: Tensor, reverse: bool) -> None:
    """Let a layer see of its own place in an image what ``same_place [outputs, inputs]`` says, and of the
    places before it (after it, in the reverse order) everything."""
    if isinstance(layer, MaskedConv2d):
        kernel = torch.arange(9).view(3, 3)
        layer.mask.copy_(kernel > 4 if reverse else kernel < 4)
        layer.mask[:, :, 1, 1] = same_place.to(layer.mask)
    else:
        layer.mask.copy_(same_place)


class Posterior(nn.Module):
    """Draws from q(z|x): a diagonal Gaussian and, with ``config.posterior=iaf``, the flow after it.

    Args:
        config: latents, flow_steps, flow_width, posterior.
        context: features, or maps, that the flow is given.
        maps: whether z is an image of maps.
    """

    def __init__(self, config: VAE, context: int, maps: bool = False) -> None:
        super().__init__()
        self.sampler = Sampler()
        steps = config.flow_steps if config.posterior == "iaf" else 0
        self.flow = nn.ModuleList(
            AutoregressiveStep(config, context, maps, reverse=i % 2 == 1) for i in range(steps)
        )

    def forward(self, mean: Tensor, log_variance: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        """A draw z and ``log q(z|x)`` number by number (equation 11), of the shape of ``mean``.

        Args:
            mean: of the Gaussian, ``[batch, latents, ...]``.
            log_variance: of the Gaussian, of that shape.
            context: ``[batch, context, ...]``.
        """
        mean, log_variance = wide(mean), wide(log_variance)
        noise = self.sampler.normal(mean.shape).to(mean.dtype)
        z = mean + torch.exp(0.5 * log_variance) * noise
        log_q = log_standard_normal(noise) - 0.5 * log_variance
        for step in self.flow:
            z, log_derivative = step(z, context)
            log_q = log_q - log_derivative
        return z, log_q
