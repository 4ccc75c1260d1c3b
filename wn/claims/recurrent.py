"""The claim that recurrent networks must resort to standard initialisation (section 3); exploratory."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from wn.claims import nets
from wn.claims.depth import SEEDS
from wn.claims.learner import LSTMCell
from wn.claims.measuring import Part, measurement
from wn.claims.rows import Row, row
from wn.config import NormConfig
from wn.models import with_norm

UNITS, ROUNDS = 64, 10


class LSTM(LSTMCell):
    """Reads ``[batch, steps, features]``; weights start uniform within 1/sqrt(units), as torch's own."""

    def __init__(self, features: int, units: int = UNITS) -> None:
        super().__init__(features, units, init=lambda layer: layer)
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -1 / math.sqrt(units), 1 / math.sqrt(units))

    def all_gate_inputs(self, x: Tensor) -> Tensor:
        """What the gates take in every step, ``[batch, steps, 4 units]``."""
        (h, c), found = self.start(x), []
        for step in x.unbind(1):
            found.append(self.gate_inputs(step, h))
            h, c = self.after(found[-1], c)
        return torch.stack(found, 1)


def network(features: int, seed: int) -> LSTM:
    """With weight normalisation, g = ||v||."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        lstm = LSTM(features)
    with_norm(lstm, NormConfig(direction="row", gain="free"))
    return lstm


@torch.no_grad()
def set_from(lstm: LSTM, x: Tensor, all_steps: bool) -> None:
    """Gains and biases so that what gates take has mean 0, variance 1 over images, at the first step or all.

    At the first step the state is zero, so only W_x and b are set. Over all steps W_h is scaled too, which
    changes later states: that is repeated.
    """
    for _ in range(ROUNDS if all_steps else 1):
        a = lstm.all_gate_inputs(x)
        sigma, mu = torch.std_mean((a if all_steps else a[:, :1]).flatten(0, 1), 0, correction=0)
        for layer in (lstm.input, lstm.hidden) if all_steps else (lstm.input,):
            layer.divide_gains(sigma)  # type: ignore[operator]
        lstm.input.bias.sub_(mu).div_(sigma)


@torch.no_grad()
def deviations(lstm: LSTM, x: Tensor) -> list[float]:
    """By step, the root of the mean over units of the variance over images."""
    variances: list[float] = lstm.all_gate_inputs(x).var(0).mean(1).tolist()
    return [math.sqrt(v) for v in variances]


@measurement("E4")
def recurrent() -> Iterator[Part]:
    """Largest |log2| over steps of the gates' inputs' standard deviation, on validation images."""
    yield Part("lstm", lambda: [one for seed in SEEDS for one in _drifts(seed)])


def _drifts(seed: int) -> list[Row]:
    data = nets.digits()
    x = data.train.x[nets.first_batch(data, 500, seed)].squeeze(1)
    other, rows = data.valid.x.squeeze(1), []
    make = functools.partial(network, x.shape[-1], seed)

    def drift(lstm: LSTM) -> float:
        return max(abs(math.log2(s)) for s in deviations(lstm, other))

    for condition, all_steps in (("lstm, set at the first step", False), ("lstm, set over all steps", True)):
        lstm = make()
        set_from(lstm, x, all_steps)
        rows.append(row(condition, "drift", seed, drift(lstm)))
        rows.append(row(condition, "control torch", seed, drift(make())))
        rows += [
            row(condition, "standard deviation", seed, s, step)
            for step, s in enumerate(deviations(lstm, other), start=1)
        ]
    return rows
