"""Inverse autoregressive flow (Kingma et al., 2016): a flexible posterior with a tractable density."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wn.config import VAEConfig
from wn.models.init import init_weights_, output_layer
from wn.models.likelihood import at_least_float32, log_standard_normal
from wn.models.noise import Sampler

GATE_BIAS = 2.0  # before the sigmoid: a step starts near the identity (section 4 of that paper: +1 or +2)


class MaskedLinear(nn.Linear):
    """A linear layer whose weights are multiplied by ``mask``."""

    mask: Tensor

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs)
        self.register_buffer("mask", torch.ones_like(self.weight), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight * self.mask, self.bias)


class MaskedConv2d(nn.Conv2d):
    """A 3x3 convolution of stride 1, zero-padded, whose weights are multiplied by ``mask``."""

    mask: Tensor

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, 3, padding=1)
        self.register_buffer("mask", torch.ones_like(self.weight), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight * self.mask, self.bias, padding=1)


class AutoregressiveStep(nn.Module):
    """``z <- s z + (1 - s) m``, where each latent's m and s depend on earlier latents only (equation 14).

    Latents are ordered by index; ``spatial`` ones (channels and positions, not units) by position in raster
    order, then by channel; with ``reverse`` from the last to the first. m and s come from a network with one
    masked hidden layer (MADE, PixelCNN), conditioned on ``context`` features or channels of the encoder's.
    """

    def __init__(self, config: VAEConfig, context: int, spatial: bool, reverse: bool) -> None:
        super().__init__()
        latents, width = config.latents, config.flow_width
        masked: type[MaskedLinear | MaskedConv2d] = MaskedConv2d if spatial else MaskedLinear
        self.hidden = init_weights_(masked(latents, width), config.weight_init)
        self.context = init_weights_(
            nn.Conv2d(context, width, 1) if spatial else nn.Linear(context, width), config.weight_init
        )
        self.out = output_layer(init_weights_(masked(width, 2 * latents), config.weight_init))
        position = torch.arange(latents).flip(0) if reverse else torch.arange(latents)
        # MADE: hidden unit k sees latents up to its degree, and feeds outputs of later latents only. The
        # last latent is seen by none, hence latents - 1 degrees.
        between = torch.arange(width) % max(latents - 1, 1)
        _mask(self.hidden, position <= between[:, None], reverse)
        _mask(self.out, (between < position[:, None]).repeat(2, 1), reverse)

    def forward(self, z: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        """The new z ``[batch, latents, ...]`` and, elementwise, the log derivative ``log s``."""
        hidden = F.elu(self.hidden(z) + self.context(context))
        mean, gate = at_least_float32(self.out(hidden)).chunk(2, 1)
        keep = torch.sigmoid(gate + GATE_BIAS)
        return keep * z + (1 - keep) * mean, F.logsigmoid(gate + GATE_BIAS)


def _mask(layer: MaskedLinear | MaskedConv2d, same_position: Tensor, reverse: bool) -> None:
    """Mask inputs: ``same_position [outputs, inputs]`` at the output's own position, all at earlier ones."""
    if isinstance(layer, MaskedConv2d):
        kernel = torch.arange(9).view(3, 3)  # raster order: below 4 is above or left of the centre
        layer.mask.copy_(kernel > 4 if reverse else kernel < 4)
        layer.mask[:, :, 1, 1] = same_position.to(layer.mask)
    else:
        layer.mask.copy_(same_position)


class Posterior(nn.Module):
    """Samples of q(z|x): a diagonal Gaussian and, with ``config.posterior=iaf``, a flow."""

    def __init__(self, config: VAEConfig, context: int, spatial: bool = False) -> None:
        super().__init__()
        self.sampler = Sampler()
        steps = config.flow_steps if config.posterior == "iaf" else 0
        self.flow = nn.ModuleList(
            AutoregressiveStep(config, context, spatial, reverse=i % 2 == 1) for i in range(steps)
        )

    def forward(self, mean: Tensor, log_variance: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        """A sample z and, elementwise, ``log q(z|x)`` (equation 11), each ``[batch, latents, ...]``.

        ``mean`` and ``log_variance`` are the Gaussian's; ``context`` is ``[batch, context, ...]``.
        """
        mean, log_variance = at_least_float32(mean), at_least_float32(log_variance)
        noise = self.sampler.normal(mean.shape).to(mean.dtype)
        z = mean + torch.exp(0.5 * log_variance) * noise
        log_q = log_standard_normal(noise) - 0.5 * log_variance
        for step in self.flow:
            z, log_derivative = step(z, context)
            log_q = log_q - log_derivative
        return z, log_q
