"""Likelihoods of images given a decoder's output, in nats and at least float32.

``log_prob(output, x)`` is ``log p(x)`` summed over an image, ``[batch]``; ``output`` has the shape of x.
``mean(output)`` is the mean of p(x), from 0 to 1.
"""

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
    """Binary pixels: the output is the logit of a 1."""

    binary = True

    def log_prob(self, output: Tensor, x: Tensor) -> Tensor:
        each = F.binary_cross_entropy_with_logits(at_least_float32(output), x, reduction="none")
        return -each.flatten(1).sum(1)

    def mean(self, output: Tensor) -> Tensor:
        return torch.sigmoid(at_least_float32(output))


class DiscretizedLogistic(nn.Module):
    """Bytes: a logistic distribution's mass in each of 256 bins; the edge bins extend to infinity.

    The mean is the sigmoid of the output, hence in the range of pixels; the scale is learned, one per
    channel (Kingma et al., 2016, appendix C.5).
    """

    binary = False

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.full((channels, 1, 1), math.log(0.1)))

    def log_prob(self, output: Tensor, x: Tensor) -> Tensor:
        # With a, b = (edges - mean) / scale and s the sigmoid, a bin's mass is
        #   s(b) - s(a) = s(b) s(-a) (1 - exp(a - b)),
        # whose logarithm keeps its precision where the mass is tiny and the difference itself rounds to 0.
        byte = torch.round(x * (BYTES - 1))
        inverse_scale = torch.exp(-self.log_scale)
        lower = (byte / BYTES - self.mean(output)) * inverse_scale
        width = inverse_scale / BYTES
        below = F.logsigmoid(lower + width)  # log mass below the upper edge
        above = F.logsigmoid(-lower)  # log mass above the lower edge
        inner = below + above + torch.log(-torch.expm1(-width))
        each = torch.where(byte == 0, below, torch.where(byte == BYTES - 1, above, inner))
        return each.flatten(1).sum(1)

    def mean(self, output: Tensor) -> Tensor:
        return torch.sigmoid(at_least_float32(output))


def log_standard_normal(x: Tensor) -> Tensor:
    return -0.5 * (math.log(2 * math.pi) + x**2)
