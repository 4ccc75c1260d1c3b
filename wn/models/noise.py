"""Noise, dropout and samples by a counter-based RNG: a function of (seed, layer, step) on any device.

The key, a buffer, counts training passes, and each number is a hash of key and position. There is no
hidden generator, so a run that is resumed, trained in a stack (:mod:`wn.stack`) or captured in a CUDA graph
sees the same noise as the run alone; under vmap, torch's own has no stream for each member.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

STEP = 0x1E3779B97F4A7C15  # of the key, a pass: odd, hence of period 2^64


def uniform(key: Tensor, shape: torch.Size) -> Tensor:
    """Uniform numbers in (0, 1), float32, of ``shape``, hashed from ``key``, an int64 scalar.

    Two rounds of a 32-bit finaliser (xor-shift-multiply): over the position and half of the key, then over
    the result and the other half. 23 random bits each, since with 24 the largest would round to 1.
    """
    position = torch.arange(math.prod(shape), dtype=torch.int32, device=key.device)
    low, high = key.to(torch.int32), (key >> 32).to(torch.int32)
    bits = _mix(_mix(position + low) ^ high)
    return ((_shift(bits, 9).float() + 0.5) * 2**-23).view(shape)


def _mix(x: Tensor) -> Tensor:
    """A bijection of 32-bit integers that spreads each bit over all; products wrap around."""
    x = (x ^ _shift(x, 16)) * 0x7FEB352D
    x = (x ^ _shift(x, 15)) * (0x846CA68B - 2**32)
    return x ^ _shift(x, 16)


def _shift(x: Tensor, places: int) -> Tensor:
    """Logical right shift (torch's ``>>`` is arithmetic: it copies the sign bit)."""
    return (x >> places) & ((1 << (32 - places)) - 1)


def _scrambled(seed: int) -> int:
    """A bijection of 64-bit integers (the finaliser of SplitMix64; Steele et al., 2014), as an int64.

    Keys a small number, or a multiple of ``STEP``, apart are one stream, shifted by places or by passes.
    """
    z = (seed + 0x9E3779B97F4A7C15) % 2**64
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ z >> 27) * 0x94D049BB133111EB % 2**64
    z ^= z >> 31
    return z - 2**64 if z >= 2**63 else z


class CounterBased(nn.Module):
    """Base of layers that use random numbers; the key advances once per training pass."""

    key: Tensor

    def __init__(self) -> None:
        super().__init__()
        start = int(torch.randint(2**62, ()).item())
        self.register_buffer("key", torch.tensor(start, dtype=torch.int64))

    def seed(self, seed: int) -> None:
        """Begin the stream of this seed; the streams of different seeds are independent."""
        self.key.fill_(_scrambled(seed))

    def draw(self, shape: torch.Size) -> Tensor:
        return uniform(self.key.add_(STEP), shape)


class Sampler(CounterBased):
    """Random numbers in evaluation too, as a function of (seed, layer, step, pass).

    ``evaluations`` counts passes and is reset by :meth:`wn.stack.Stack.train`, so evaluating a model, however
    often, changes neither its training nor another evaluation's numbers.
    """

    evaluations: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("evaluations", torch.zeros((), dtype=torch.int64))

    def draw(self, shape: torch.Size) -> Tensor:
        if self.training:
            return super().draw(shape)
        return uniform(self.key + self.evaluations.add_(1) * 0x2545F4914F6CDD1D, shape)

    def normal(self, shape: torch.Size) -> Tensor:
        return normal(self.draw(shape))


def normal(uniform: Tensor) -> Tensor:
    """Uniform numbers in (0, 1) to standard normal ones, by the inverse distribution function."""
    return torch.erfinv(2 * uniform - 1) * math.sqrt(2)


class _Noise(CounterBased):
    strength: Tensor  # a buffer, so that the members of a stack may differ in it

    def __init__(self, strength: float) -> None:
        super().__init__()
        self.register_buffer("strength", torch.tensor(strength))


class GaussianNoise(_Noise):
    """``x + strength * normal(0, 1)`` in training, ``x`` in evaluation."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        return x + (self.strength * normal(self.draw(x.shape))).to(x.dtype)


class Dropout(_Noise):
    """Zero with probability ``strength``, else ``x / (1 - strength)``, in training; ``x`` in evaluation."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        keep = self.draw(x.shape) >= self.strength
        return x * (keep / (1 - self.strength)).to(x.dtype)
