"""CartPole written out, and two ways to play it."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def moved(seen: Tensor, action: Tensor) -> Tensor:
    """One Euler step of 0.02 s (Barto et al., 1983, no friction): cart 1 kg, pole 0.1 kg and 1 m, 10 N."""
    _, speed, angle, turning = seen.unbind(-1)
    pushed = (20 * action - 10 + 0.1 * 0.5 * turning**2 * angle.sin()) / 1.1
    turn = 9.8 * angle.sin() - angle.cos() * pushed
    turn = turn / (0.5 * (4 / 3 - 0.1 * angle.cos() ** 2 / 1.1))
    pushed = pushed - 0.1 * 0.5 * turn * angle.cos() / 1.1
    return seen + 0.02 * torch.stack([speed, pushed, turning, turn], -1)


def fallen(seen: Tensor) -> Tensor:
    return (seen[..., 0].abs() > 2.4) | (seen[..., 2].abs() > math.radians(12))


def balance(seen: Tensor) -> Tensor:
    """Push to where the pole leans and turns; and from the middle, so that it leans back."""
    return (seen @ torch.tensor([0.1, 0.3, 3.0, 1.0]) > 0).long()


def push_left(seen: Tensor) -> Tensor:
    return torch.zeros(seen.shape[:-1], dtype=torch.int64)
