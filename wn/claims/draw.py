"""DRAW (section 5.3) in small: an autoencoder that draws digits in eight strokes.

The paper normalised every weight vector of jbornschein/draw and left its start and learning rate as they are.
That code draws weights from N(0, 0.01^2), and the paper does not say whether the gains start at ||v||, which
is the same network, or at 1, which is another one. Both are measured, and so are plain weights from a start
of the usual scale, which tell normalisation from initialisation.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wn.claims.learner import Learner, LSTMCell, glorot, reached
from wn.claims.measuring import Part, measurement
from wn.claims.rows import Row, per_seed
from wn.config import DataConfig, OptimConfig
from wn.data import Dataset, load, permutation
from wn.norm import normalize

SEEDS, RATES = range(5), (1e-3, 3e-3, 1e-2, 3e-2)
EPOCHS, BATCH, CLIP = 40, 100, 10.0
STEPS, UNITS, LATENTS = 8, 64, 10
PLAIN, GLOROT, FROM_NORM, FROM_ONE = "plain", "plain, Glorot", "draw, g = norm", "draw, g = 1"


@measurement("J1")
def speed() -> Iterator[Part]:
    """Epochs until the final bound of plain weights, as a share of all epochs.

    Rows ``bound ARM`` are test bounds after each epoch at plain weights' best rate (x: the epoch), and
    ``final bound ARM`` those at the end (x: the learning rate).
    """
    yield Part("norm", functools.partial(_speed, FROM_NORM))
    yield Part("one", functools.partial(_speed, FROM_ONE))


def _speed(arm: str) -> list[Row]:
    mine, plain, start = curves(arm), curves(PLAIN), curves(GLOROT)
    rows = [row for name, values in speeds(mine, plain).items() for row in per_seed(arm, name, values)]
    control = speeds(start, plain)["same rate"]
    rows += per_seed(arm, "control plain weights from Glorot's start, same rate", control)
    for name, of in ((PLAIN, plain), (GLOROT, start), (arm, mine)):
        for lr, final in zip(RATES, of.test[..., -1], strict=True):
            rows += per_seed(arm, f"final bound {name}", final, lr)
        for epoch, bounds in enumerate(of.test[best(plain)].unbind(-1)):
            rows += per_seed(arm, f"bound {name}", bounds, epoch)
    return rows


@measurement("J2")
def not_the_start() -> Iterator[Part]:
    """What of the gap from plain weights to weight normalisation another start of plain weights closes."""
    yield Part("norm", functools.partial(_not_the_start, FROM_NORM))
    yield Part("one", functools.partial(_not_the_start, FROM_ONE))


def _not_the_start(arm: str) -> list[Row]:
    found = shares(curves(arm), curves(PLAIN), curves(GLOROT))
    return [row for name, values in found.items() for row in per_seed(arm, name, values)]


def small(layer: nn.Linear) -> nn.Linear:
    """Weights from N(0, 0.01^2) and no bias, as jbornschein/draw has them."""
    nn.init.normal_(layer.weight, std=0.01)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


class DRAW(nn.Module):
    """Gregor et al. (2015), equations 3 to 8, without attention: read and write see the whole image."""

    def __init__(self, pixels: int, init: Callable[[nn.Linear], nn.Linear]) -> None:
        super().__init__()
        self.encoder = LSTMCell(2 * pixels + UNITS, UNITS, init)
        self.posterior = init(nn.Linear(UNITS, 2 * LATENTS))
        self.decoder = LSTMCell(LATENTS, UNITS, init)
        self.write = init(nn.Linear(UNITS, pixels))

    def forward(self, x: Tensor, noise: Tensor) -> Tensor:
        """Minus the bound, in nats ``[batch]``, of binary images ``[batch, pixels]``.

        ``noise``: standard normal, ``[batch, steps, latents]``. Equations 9 to 12: cross-entropy of the last
        canvas plus the divergence of the latents of all steps.
        """
        canvas, loss = torch.zeros_like(x), x.new_zeros(len(x))
        encoder, decoder = self.encoder.start(x), self.decoder.start(x)
        for draw in noise.unbind(1):
            error = x - torch.sigmoid(canvas)
            encoder = self.encoder(torch.cat([x, error, decoder[0]], -1), encoder)
            mean, log_scale = self.posterior(encoder[0]).chunk(2, -1)
            loss = loss + divergence(mean, log_scale)
            decoder = self.decoder(mean + log_scale.exp() * draw, decoder)
            canvas = canvas + self.write(decoder[0])
        return loss + F.binary_cross_entropy_with_logits(canvas, x, reduction="none").sum(-1)


def divergence(mean: Tensor, log_scale: Tensor) -> Tensor:
    """KL(N(mean, scale^2) || N(0, 1)), summed over the last axis."""
    return (mean.square() + torch.expm1(2 * log_scale) - 2 * log_scale).sum(-1) / 2


def loss(model: nn.Module, x: Tensor, noise: Tensor) -> Tensor:
    mean: Tensor = model(x, noise).mean()
    return mean


def build(arm: str, pixels: int, seed: int) -> nn.Module:
    """The network of an arm; all but Glorot's begin with the same draw."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        model = DRAW(pixels, glorot if arm == GLOROT else small)
    if arm in (PLAIN, GLOROT):
        return normalize(model, "none")
    return normalize(model, scale="none" if arm == FROM_NORM else "one")


class Curves(NamedTuple):
    """Bounds in nats after each epoch, the first before training: ``[rates, seeds, epochs + 1]``."""

    valid: Tensor
    test: Tensor


@functools.cache
def curves(arm: str) -> Curves:
    """An arm's curves, trained once a process: both claims need them."""
    return train(arm, load(DataConfig(name="digits"), unit=True), SEEDS, EPOCHS)


def train(arm: str, data: Dataset, seeds: Sequence[int], epochs: int) -> Curves:
    """Train an arm at all rates as one stack. Random numbers depend on the seed alone, so arms share them."""
    train, valid, test = (part.x.flatten(1) for part in (data.train, data.valid, data.test))
    members = [(lr, seed) for lr in RATES for seed in seeds]
    optims = [OptimConfig(name="adam", lr=lr) for lr, _ in members]
    learner = Learner([build(arm, train.shape[1], seed) for _, seed in members], optims, CLIP)
    draws = {seed: torch.Generator().manual_seed(seed) for seed in seeds}
    fixed = torch.Generator().manual_seed(0)  # the same binary images and noise after every epoch
    held = [(_binary(x, fixed), _noise(x, fixed)) for x in (valid, test)]
    found: list[list[Tensor]] = [[bound(learner, *part)] for part in held]
    for epoch in range(1, epochs + 1):
        orders = {seed: permutation(seed, epoch, len(train)) for seed in seeds}
        for step in range(len(train) // BATCH):
            batches = {s: train[order[step * BATCH : (step + 1) * BATCH]] for s, order in orders.items()}
            inputs = {s: (_binary(x, draws[s]), _noise(x, draws[s])) for s, x in batches.items()}
            learner.step(loss, *(torch.stack([inputs[s][i] for _, s in members]) for i in (0, 1)))
        for curve, part in zip(found, held, strict=True):
            curve.append(bound(learner, *part))
    return Curves(*(torch.stack(curve, 1).view(len(RATES), len(seeds), -1) for curve in found))


@torch.no_grad()
def bound(learner: Learner, x: Tensor, noise: Tensor) -> Tensor:
    """The mean bound, ``[members]``, minus infinity where it is no number."""
    loss_of: Tensor = learner.stack.train(False).map(loss, x, noise, shared=True)
    return (-loss_of).double().nan_to_num(nan=-math.inf, posinf=-math.inf)


def _binary(x: Tensor, generator: torch.Generator) -> Tensor:
    """Dynamic binarisation: each pixel 1 with its grey level as probability."""
    return (torch.rand(x.shape, generator=generator) < x).to(x.dtype)


def _noise(x: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn((len(x), STEPS, LATENTS), generator=generator)


def best(of: Curves) -> int:
    """The learning rate with the highest final bound on the validation split, mean over seeds."""
    return int(of.valid[..., -1].mean(1).argmax())


def rates_of(arm: Curves, plain: Curves) -> dict[str, tuple[int, int]]:
    """The paper's protocol and a fair one: the rates of an arm and of plain weights."""
    return {"same rate": (best(plain), best(plain)), "best rate": (best(arm), best(plain))}


def speeds(arm: Curves, plain: Curves) -> dict[str, Tensor]:
    """Share of the epochs after which an arm has the final test bound of plain weights, by seed."""
    epochs = plain.test.shape[-1] - 1
    return {
        name: reached(arm.test[mine], plain.test[theirs, :, -1]) / epochs
        for name, (mine, theirs) in rates_of(arm, plain).items()
    }


def shares(arm: Curves, plain: Curves, initialized: Curves) -> dict[str, Tensor]:
    """What plain weights with another start close of the gap of an arm to plain weights, by seed.

    The gap is in the mean test bound over epochs, that is in speed, and its mean over seeds is the unit.
    Where there is no gap, all of it is closed: 1.
    """
    found = {}
    for name, (mine, theirs) in rates_of(arm, plain).items():
        other = theirs if name == "same rate" else best(initialized)
        level = plain.test[theirs, :, 1:].mean(-1)
        gap = (arm.test[mine, :, 1:].mean(-1) - level).mean()
        closed = (initialized.test[other, :, 1:].mean(-1) - level) / gap
        found[name] = closed if gap > 0 else torch.ones_like(closed)
    return found
