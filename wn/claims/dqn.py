"""Deep Q-learning (section 5.4) in small: one network catches a falling ball, another balances a pole.

Learning rates are tuned in each arm, as in the paper.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import NamedTuple

from torch import Tensor

from wn.claims.games import CartPole, Catch, Game
from wn.claims.measuring import Part, measurement
from wn.claims.q_learning import Player, Training
from wn.claims.rows import Row, per_seed

ARMS = {"none": "none_init", "weight norm": "weight_norm_init", "layer norm": "layer_norm"}
TARGETS = {"averages in the target": False, "the batch in the target": True}
"""A condition's last words to whether the target network takes the statistics of its batch."""


class Setting(NamedTuple):
    """A game, how it is learnt, and the learning rates that are tried with seeds 0, 1, ... of so many."""

    game: Callable[[], Game]
    how: Training
    rates: tuple[float, ...]
    seeds: int


CATCH = {
    f"{rows}x{columns}": Setting(
        functools.partial(Catch, rows, columns),
        Training(steps=1200),
        rates=(3e-3, 1e-2, 3e-2, 1e-1, 3e-1),
        seeds=10,
    )
    for rows, columns in ((10, 5), (10, 8))
}
CARTPOLE = Setting(
    CartPole,
    Training(steps=15_000, every=2, renew=400, score=500),
    rates=(3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1),
    seeds=20,
)


@measurement("K1")
def weight_norm_on_catch() -> Iterator[Part]:
    """Mean scores over a training, weight-normalised over plain, both initialised by data, at best rates."""
    for board, setting in CATCH.items():
        yield Part(board, functools.partial(with_weight_norm, f"dqn, Catch {board}", setting))


@measurement("K1c")
def weight_norm_on_cartpole() -> Iterator[Part]:
    """As K1."""
    CARTPOLE.game()  # which says what is missing
    yield Part("CartPole", functools.partial(with_weight_norm, "dqn, CartPole", CARTPOLE))


def with_weight_norm(condition: str, setting: Setting) -> list[Row]:
    found = {arm: scores(norm, setting) for arm, norm in ARMS.items()}
    plain, normalized = (best(found[arm]).mean(-1) for arm in ("none", "weight norm"))
    rows = [row for arm, of_arm in found.items() for row in data_rows(condition, arm, of_arm, setting)]
    rows += per_seed(condition, "probability", placements(normalized, plain))
    rows += per_seed(condition, "gain", normalized / plain.mean() - 1)
    rows += per_seed(
        condition, "control gain of layer norm", best(found["layer norm"]).mean(-1) / plain.mean() - 1
    )
    top = [best(found[arm]).amax(-1) for arm in ("weight norm", "none")]
    return rows + per_seed(condition, "control maximum over plain maximum", top[0] - top[1])


@measurement("K2")
def batch_norm_on_catch() -> Iterator[Part]:
    """Batch-normalised over plain, as K1; two ways to take statistics in the target network."""
    return by_target("dqn", CATCH["10x5"])


@measurement("K2c")
def batch_norm_on_cartpole() -> Iterator[Part]:
    """As K2."""
    return by_target("dqn, CartPole", CARTPOLE)


def by_target(words: str, setting: Setting) -> Iterator[Part]:
    setting.game()  # which says what is missing
    for target, batch in TARGETS.items():
        measure = functools.partial(with_batch_norm, f"{words}, {target}", setting, batch)
        yield Part("batch" if batch else "averages", measure)


def with_batch_norm(condition: str, setting: Setting, batch_target: bool) -> list[Row]:
    how = setting.how._replace(batch_target=batch_target)
    found = {
        "none": scores("none_init", setting),
        "batch norm": scores("batch_norm", setting._replace(how=how)),
    }
    plain, normalized = (best(of_arm).mean(-1) for of_arm in found.values())
    rows = [row for arm, of_arm in found.items() for row in data_rows(condition, arm, of_arm, setting)]
    rows += per_seed(condition, "control probability", placements(normalized, plain))
    return rows + per_seed(condition, "gain", normalized / plain.mean() - 1)


@functools.cache
def scores(norm: str, setting: Setting) -> Tensor:
    """An arm's scores ``[rates, seeds, scores]``, trained once a process."""
    game, how, rates, seeds = setting
    return Player(norm, rates, range(seeds), game(), how).play().view(len(rates), seeds, -1)


def best(of_arm: Tensor) -> Tensor:
    """The scores at the learning rate with the largest mean, ``[seeds, evaluations]``."""
    return of_arm[of_arm.mean((1, 2)).argmax()]


def placements(x: Tensor, y: Tensor) -> Tensor:
    """A value per seed, whose mean is P(x > y), ties half.

    Its variance over n is that of the estimate: ``P(x_i > y) + P(x > y_i) - P(x > y)``, the two first-order
    terms (DeLong et al., 1988).

    >>> placements(Tensor([1.0, 3.0]), Tensor([0.0, 2.0])).tolist()
    [0.75, 0.75]
    """
    wins = (x[:, None] > y).double() + (x[:, None] == y).double() / 2
    return wins.mean(1) + wins.mean(0) - wins.mean()


def data_rows(condition: str, arm: str, of_arm: Tensor, setting: Setting) -> list[Row]:
    """Every run's mean score, with the learning rate as abscissa."""
    return [
        one
        for lr, by_seed in zip(setting.rates, of_arm.mean(-1), strict=True)
        for one in per_seed(condition, f"score {arm}", by_seed, lr)
    ]
