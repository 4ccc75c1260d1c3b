"""Inverse autoregressive flow (Kingma et al., 2016): a flexible posterior with a tractable density."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wn.config import VAEConfig
from wn.models.init import init_weights_
from wn.models.likelihood import at_least_float32, log_standard_normal
from wn.models.noise import Sampler

GATE_BIAS = 2.0
"""Added before the sigmoid: at first a transformation changes little (section 4 of that paper: +1 or +2)."""


class MaskedLinear(nn.Linear):
    """A masked linear layer; weights count where ``mask`` is 1."""

    mask: Tensor

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs)
        self.register_buffer("mask", torch.ones_like(self.weight), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """``x [batch, inputs]`` through the masked weights."""
        return F.linear(x, self.weight * self.mask, self.bias)


class MaskedConv2d(nn.Conv2d):
    """A masked 3x3 convolution that keeps the size."""

    mask: Tensor

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, 3, padding=1)
        self.register_buffer("mask", torch.ones_like(self.weight), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """``x [batch, inputs, height, width]`` through the masked weights."""
        return F.conv2d(x, self.weight * self.mask, self.bias, padding=1)


class AutoregressiveStep(nn.Module):
    """``z <- s z + (1 - s) m`` with m and s of each latent a function of those before it (equation 14).

    Latents are ordered by index; spatial ones first by position, in raster order, then by channel. m and s
    come from a network of one hidden layer whose masks keep the order (MADE, PixelCNN), conditioned on the
    encoder's ``context``.

    Args:
        config: ``latents`` (units or channels) and ``flow_width`` (hidden units or channels).
        context: features or channels of the context.
        spatial: whether z has channels and positions instead of units.
        reverse: whether the order runs from the last to the first.
    """

    def __init__(self, config: VAEConfig, context: int, spatial: bool, reverse: bool) -> None:
        super().__init__()
        latents, width = config.latents, config.flow_width
        masked: type[MaskedLinear | MaskedConv2d] = MaskedConv2d if spatial else MaskedLinear
        self.hidden = init_weights_(masked(latents, width), config.weight_init)
        self.context = init_weights_(
            nn.Conv2d(context, width, 1) if spatial else nn.Linear(context, width), config.weight_init
        )
        self.out = init_weights_(masked(width, 2 * latents), config.weight_init)
        position = torch.arange(latents).flip(0) if reverse else torch.arange(latents)
        between = torch.arange(width) % max(latents - 1, 1)  # a hidden unit sees the latents up to this one
        _mask(self.hidden, position <= between[:, None], reverse)
        _mask(self.out, (between < position[:, None]).repeat(2, 1), reverse)

    def forward(self, z: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        """The new z ``[batch, latents, ...]`` and, elementwise, the log derivative ``log s``."""
        hidden = F.elu(self.hidden(z) + self.context(context))
        mean, gate = at_least_float32(self.out(hidden)).chunk(2, 1)
        keep = torch.sigmoid(gate + GATE_BIAS)
        return keep * z + (1 - keep) * mean, F.logsigmoid(gate + GATE_BIAS)


def _mask(layer: MaskedLinear | MaskedConv2d, same_position: Tensor, reverse: bool) -> None:
    """Let a layer see ``same_position [outputs, inputs]`` at its own position of an image, and everything at
    earlier positions (later ones in reverse order)."""
    if isinstance(layer, MaskedConv2d):
        kernel = torch.arange(9).view(3, 3)
        layer.mask.copy_(kernel > 4 if reverse else kernel < 4)
        layer.mask[:, :, 1, 1] = same_position.to(layer.mask)
    else:
        layer.mask.copy_(same_position)


class Posterior(nn.Module):
    """Samples of q(z|x): a diagonal Gaussian and, with ``config.posterior=iaf``, the flow after it.

    Args:
        config: latents, flow_steps, flow_width, posterior.
        context: features or channels that the flow is conditioned on.
        spatial: whether z has channels and positions instead of units.
    """

    def __init__(self, config: VAEConfig, context: int, spatial: bool = False) -> None:
        super().__init__()
        self.sampler = Sampler()
        steps = config.flow_steps if config.posterior == "iaf" else 0
        self.flow = nn.ModuleList(
            AutoregressiveStep(config, context, spatial, reverse=i % 2 == 1) for i in range(steps)
        )

    def forward(self, mean: Tensor, log_variance: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        """A sample z and ``log q(z|x)`` elementwise (equation 11), of the shape of ``mean``.

        Args:
            mean: of the Gaussian, ``[batch, latents, ...]``.
            log_variance: of the Gaussian, of that shape.
            context: ``[batch, context, ...]``.
        """
        mean, log_variance = at_least_float32(mean), at_least_float32(log_variance)
        noise = self.sampler.normal(mean.shape).to(mean.dtype)
        z = mean + torch.exp(0.5 * log_variance) * noise
        log_q = log_standard_normal(noise) - 0.5 * log_variance
        for step in self.flow:
            z, log_derivative = step(z, context)
            log_q = log_q - log_derivative
        return z, log_q
