"""The weight ``w = g v / ||v||`` as a function of tensors, and constants that scale it."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "none": nn.Identity,
    "relu": nn.ReLU,
    "leaky_relu": functools.partial(nn.LeakyReLU, 0.1),  # the authors' slope
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
}


def weight_norm(v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
    r"""The weight ``w = g v / ||v||`` (section 2, equation 2), of v's shape, with ``||w|| = |g|`` per unit.

    A zero row gives a zero weight and finite gradients; rows of any finite size have exact norms.

    Raises:
        ValueError: v has one axis alone, so that no weights are left to take a norm over.

    Args:
        v: directions, ``[..., units, ...]`` with the output units along ``dim``.
        g: gains, ``[units]``.
        dim: the axis of v that counts output units: 0 for linear and convolutional layers.

    >>> w = weight_norm(torch.tensor([[3.0, 4.0]]), torch.tensor([10.0]))
    >>> w.tolist()
    [[6.0, 8.0]]
    """
    if v.dim() < 2:
        raise ValueError(f"v has the shape {list(v.shape)}: expected [units, weights per unit] or more axes")
    dim %= v.dim()
    others = [d for d in range(v.dim()) if d != dim]
    return normalized(v, others, g.reshape([-1 if d == dim else 1 for d in range(v.dim())]))


def normalized(v: Tensor, dims: list[int], gain: Tensor | float = 1.0) -> Tensor:
    """``gain * v / ||v||`` with the norm over ``dims``; ``gain`` broadcasts against v."""
    # Squares of entries beyond 1e19 overflow float32, so each row is first divided by its largest entry.
    # That scale may be detached: the result does not depend on it, so its gradient, of any order, is zero.
    u = v / largest(v, dims)
    square = (u * u).sum(dims, keepdim=True, dtype=wide(v))
    return u * (gain * torch.rsqrt(nonzero(square))).to(v.dtype)


def wide(t: Tensor) -> torch.dtype:
    """The type to sum a tensor in: float32 for bfloat16, whose sums are half a percent off."""
    return torch.promote_types(t.dtype, torch.float32)


def largest(v: Tensor, dims: list[int]) -> Tensor:
    """``max |v|`` over ``dims`` (kept), or 1 where all entries are zero."""
    return nonzero(v.detach().abs().amax(dims, keepdim=True))


def nonzero(x: Tensor) -> Tensor:
    return x.masked_fill(x == 0, 1)


def power_of_two(v: Tensor) -> Tensor:
    """A power of two near ``max |v|``, or 1 where all is zero: to divide by it is exact, so that norms of
    any finite size can be taken, and others keep their last digit.
    """
    x = largest(v, list(range(v.dim())))
    return x / (2 * torch.frexp(x).mantissa)


def autocast_enabled(device: torch.device) -> bool:
    known = torch.amp.is_autocast_available(device.type)  # not of the meta device
    return known and torch.is_autocast_enabled(device.type)


def full_precision(device: torch.device) -> AbstractContextManager[object]:
    """A context without autocast."""
    return torch.autocast(device.type, enabled=False) if autocast_enabled(device) else nullcontext()


@functools.cache
def activation_gain(activation: str) -> float:
    """``gamma = 1 / std(f(z))`` for z ~ N(0, 1): what keeps the variance through the activation f.

    Brock et al. (2021), arXiv 2101.08692, section 4.2: sqrt(2 / (1 - 1/pi)) = 1.7129 for ReLU. By quadrature,
    to ten digits.

    >>> round(activation_gain("relu"), 4), activation_gain("none")
    (1.7129, 1.0)
    """
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation={activation!r}: expected one of {', '.join(ACTIVATIONS)}")
    z = torch.linspace(-10, 10, 2_000_001, dtype=torch.float64)
    density = torch.exp(-z * z / 2)
    y = ACTIVATIONS[activation]()(z)
    mean, square = (float((x * density).sum() / density.sum()) for x in (y, y * y))
    return round(1 / math.sqrt(square - mean * mean), 10)
