"""Recurrent models (section 1): an LSTM that reads digits row by row."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wn.claims.learner import Learner, LSTMCell, glorot, reached
from wn.claims.measuring import Part, measurement
from wn.claims.rows import Row, per_seed
from wn.config import DataConfig, OptimConfig
from wn.data import Dataset, Split, load, orders
from wn.models.init import output_layer
from wn.norm import normalize

SEEDS = range(5)
EPOCHS, BATCH, UNITS, TARGET = 20, 100, 64, 0.95
ARMS = ("none", "weight_norm", "layer_norm")
RULES = {
    "lstm, Adam": ("adam", (3e-3, 1e-2, 3e-2, 1e-1, 3e-1)),
    "lstm, momentum": ("sgd", (3e-2, 1e-1, 3e-1, 1.0, 3.0)),
}
"""Condition to update rule and learning rates."""


@measurement("I2")
def recurrent() -> Iterator[Part]:
    """Epochs to 95% validation accuracy, weight-normalised over plain, each at its best learning rate.

    Rows ``epochs NORM`` have every run's epochs, with the learning rate as abscissa.
    """
    for condition in RULES:
        yield Part(condition.replace("lstm, ", ""), functools.partial(compared, condition))


def compared(condition: str) -> list[Row]:
    data = load(DataConfig(name="digits"))
    epochs = {norm: reached(accuracies(norm, condition, data, SEEDS, EPOCHS), TARGET) for norm in ARMS}
    rows: list[Row] = []
    for norm, of_norm in epochs.items():
        for lr, by_seed in zip(RULES[condition][1], of_norm, strict=True):
            rows += per_seed(condition, f"epochs {norm}", by_seed, lr)
    for norm, quantity in (("weight_norm", "ratio"), ("layer_norm", "control layer norm over plain")):
        rows += per_seed(condition, quantity, ratios(epochs[norm], epochs["none"]))
    return rows


def ratios(epochs: Tensor, of_plain: Tensor) -> Tensor:
    """Quotients by seed of ``[rates, seeds]``, each at the rate whose mean over seeds is smallest."""
    best, of_plain_best = (e[e.mean(1).argmin()] for e in (epochs, of_plain))
    return best / of_plain_best


class RowLSTM(nn.Module):
    """Images ``[batch, 1, rows, columns]``, read row by row from the top, to logits ``[batch, classes]``."""

    def __init__(self, columns: int, classes: int, units: int = UNITS) -> None:
        super().__init__()
        self.cell = LSTMCell(columns, units, glorot, forget=1.0)
        self.logits = output_layer(glorot(nn.Linear(units, classes)))

    def forward(self, x: Tensor) -> Tensor:
        rows = x[:, 0]
        state = self.cell.start(rows)
        for row in rows.unbind(1):
            state = self.cell(row, state)
        logits: Tensor = self.logits(state[0])
        return logits


def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(model(x), y)


def learner(norm: str, optims: Sequence[OptimConfig], seeds: Sequence[int], data: Dataset) -> Learner:
    """Members by place: one optimiser and one seed each; the same seed is the same start in every arm."""
    models = []
    for seed in seeds:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            models.append(normalize(RowLSTM(data.shape[2], data.classes), norm))
    return Learner(models, optims)


def accuracies(norm: str, condition: str, data: Dataset, seeds: Sequence[int], epochs: int) -> Tensor:
    """Validation accuracy before training and after each epoch, ``[rates, seeds, epochs + 1]``."""
    rule, rates = RULES[condition]
    members = [(lr, seed) for lr in rates for seed in seeds]
    optims = [OptimConfig.model_validate({"name": rule, "lr": lr}) for lr, _ in members]
    trained = learner(norm, optims, [seed for _, seed in members], data)
    curve = [_accuracy(trained, data.valid)]
    for epoch in range(1, epochs + 1):
        order = orders([seed for _, seed in members], epoch, len(data.train.y))
        for batch in torch.split(order, BATCH, dim=1)[: order.shape[1] // BATCH]:
            trained.step(loss, data.train.x[batch], data.train.y[batch])
        curve.append(_accuracy(trained, data.valid))
    return torch.stack(curve, 1).view(len(rates), len(seeds), -1)


@torch.no_grad()
def _accuracy(trained: Learner, split: Split) -> Tensor:
    logits: Tensor = trained.stack.train(False)(split.x, shared=True)
    return (logits.argmax(-1) == split.y).double().mean(-1)
