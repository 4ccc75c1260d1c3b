"""Likelihoods of images under a decoder's output, and their draws; all in nats, and in float32 at least."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BYTES = 256


def wide(t: Tensor) -> Tensor:
    """``t`` in float32 where autocast left it in less: densities are no place for eight bits."""
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
        each = F.binary_cross_entropy_with_logits(wide(output), x, reduction="none")
        return -each.flatten(1).sum(1)

    def mean(self, output: Tensor) -> Tensor:
        """The probability of white: what is shown of an image."""
        return torch.sigmoid(wide(output))


class DiscretizedLogistic(nn.Module):
    """Bytes: the mass of a logistic law between a byte's edges, the two outermost of which lie at infinity.

    The law's mean is the sigmoid of the output, so that it lies among the pixels; its scale is learned, one
    for each channel (companion paper, appendix C.5).

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
        """The law's mean, from 0 to 1."""
        return torch.sigmoid(wide(output))


def log_standard_normal(x: Tensor) -> Tensor:
    """Log density of the standard normal law, number by number."""
    return -0.5 * (math.log(2 * math.pi) + x**2)
