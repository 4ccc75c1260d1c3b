"""Likelihoods of images given a decoder's output, in nats and at least float32."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BYTES = 256


def at_least_float32(t: Tensor) -> Tensor:
    """``t``, widened where autocast left it in half precision: log densities need float32."""
    return t.float() if t.dtype.itemsize < 4 else t


class Bernoulli(nn.Module):
    """Black and white pixels: the output is the logit of white."""

    binary = True

    def log_prob(self, output: Tensor, x: Tensor) -> Tensor:
        """``log p(x)`` summed over an image's pixels.

        Args:
            output: logits ``[batch, ...]``.
            x: 0 or 1, of the same shape.

        Returns:
            ``[batch]``.
        """
        each = F.binary_cross_entropy_with_logits(at_least_float32(output), x, reduction="none")
        return -each.flatten(1).sum(1)

    def mean(self, output: Tensor) -> Tensor:
        """The probability of white: the picture of an image."""
        return torch.sigmoid(at_least_float32(output))


class DiscretizedLogistic(nn.Module):
    """Bytes: the mass of a logistic distribution between a byte's edges; the edge bins extend to infinity.

    Its mean is the sigmoid of the output, so that it lies in the range of pixels; its scale is learned, one
    for each channel (Kingma et al., 2016, appendix C.5).

    Args:
        channels: of an image.
    """

    binary = False

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.full((channels, 1, 1), math.log(0.1)))

    def log_prob(self, output: Tensor, x: Tensor) -> Tensor:
        """``log p(x)`` summed over an image's numbers: :math:`log(F(k+1) - F(k))`, in units of 1/256.

        With a and b the edges' distances from the mean, in scales, and s the sigmoid: ``s(b) - s(a) = s(b)
        s(-a) (1 - exp(a - b))``, whose logarithm keeps its digits where the mass is tiny.

        Args:
            output: ``[batch, channels, height, width]``.
            x: bytes / 255, of the same shape.

        Returns:
            ``[batch]``.
        """
        byte = torch.round(x * (BYTES - 1))
        inverse_scale = torch.exp(-self.log_scale)
        lower = (byte / BYTES - self.mean(output)) * inverse_scale
        width = inverse_scale / BYTES
        below = F.logsigmoid(lower + width)  # of what lies below the upper edge
        above = F.logsigmoid(-lower)
        inner = below + above + torch.log(-torch.expm1(-width))
        each = torch.where(byte == 0, below, torch.where(byte == BYTES - 1, above, inner))
        return each.flatten(1).sum(1)

    def mean(self, output: Tensor) -> Tensor:
        """The mean, from 0 to 1."""
        return torch.sigmoid(at_least_float32(output))


def log_standard_normal(x: Tensor) -> Tensor:
    """Log density of the standard normal distribution, elementwise."""
    return -0.5 * (math.log(2 * math.pi) + x**2)
