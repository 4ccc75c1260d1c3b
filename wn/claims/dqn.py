"""Deep Q-learning (section 5.4) in small: a network that learns to catch a falling ball.

The paper's protocol where it says one: Adamax with momentum 0.5, batches of 64, learning rates tuned, the
data-dependent initialisation on a random policy's replay, a target network.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wn.claims.learner import Learner, glorot
from wn.claims.measuring import Part, measurement
from wn.claims.rows import Row
from wn.config import OptimConfig
from wn.models.init import output_layer
from wn.norm import normalize
from wn.stack import Stack

SEEDS, RATES = range(10), (3e-3, 1e-2, 3e-2, 1e-1, 3e-1)
ROWS, COLUMNS, WIDTHS = 10, 5, (64, 64)
STEPS, BATCH, WARM_UP, SYNC, EVALUATE, DISCOUNT = 1200, 64, 500, 100, 100, 0.99
ACTIONS = 3  # left, stay, right


ARMS = {"none": "none_init", "weight norm": "weight_norm_init", "layer norm": "layer_norm"}
BATCH_NORM = {"dqn, averages in the target": False, "dqn, the batch in the target": True}
BOARDS = {"dqn, Catch 10x5": (10, 5), "dqn, Catch 10x8": (10, 8)}
"""Condition of K2 to whether the target network takes the batch's statistics; of K1 to rows and columns."""


@measurement("K1")
def with_weight_norm() -> Iterator[Part]:
    """Mean scores over a training, weight-normalised over plain, both initialised by data, at best rates."""
    for condition, board in BOARDS.items():
        yield Part(condition.split()[-1], functools.partial(_with_weight_norm, condition, board))


def _with_weight_norm(condition: str, board: tuple[int, int]) -> list[Row]:
    found = {arm: scores(norm, board) for arm, norm in ARMS.items()}
    plain, normalized = (best(found[arm]).mean(-1) for arm in ("none", "weight norm"))
    rows = [row for arm, of_arm in found.items() for row in data_rows(condition, arm, of_arm)]
    rows += judged(condition, "probability", placements(normalized, plain))
    rows += judged(condition, "gain", normalized / plain.mean() - 1)
    rows += judged(
        condition, "control gain of layer norm", best(found["layer norm"]).mean(-1) / plain.mean() - 1
    )
    top = [best(found[arm]).amax(-1) for arm in ("weight norm", "none")]
    return rows + judged(condition, "control maximum over plain maximum", top[0] - top[1])


@measurement("K2")
def with_batch_norm() -> Iterator[Part]:
    """Batch-normalised over plain, as K1; two ways to take statistics in the target network."""
    for condition, batch_target in BATCH_NORM.items():
        name = "batch" if batch_target else "averages"
        yield Part(name, functools.partial(_with_batch_norm, condition, batch_target))


def _with_batch_norm(condition: str, batch_target: bool) -> list[Row]:
    found = {"none": scores("none_init"), "batch norm": scores("batch_norm", batch_target=batch_target)}
    plain, normalized = (best(of_arm).mean(-1) for of_arm in found.values())
    rows = [row for arm, of_arm in found.items() for row in data_rows(condition, arm, of_arm)]
    rows += judged(condition, "control probability", placements(normalized, plain))
    return rows + judged(condition, "gain", normalized / plain.mean() - 1)


@functools.cache
def scores(norm: str, board: tuple[int, int] = (10, 5), batch_target: bool = False) -> Tensor:
    """An arm's scores ``[rates, seeds, evaluations]``, trained once a process."""
    player = Player(norm, RATES, SEEDS, Catch(*board), Protocol(batch_target=batch_target))
    return player.play().view(len(RATES), len(SEEDS), -1)


def best(of_arm: Tensor) -> Tensor:
    """The scores at the learning rate with the largest mean, ``[seeds, evaluations]``."""
    return of_arm[of_arm.mean((1, 2)).argmax()]


def placements(x: Tensor, y: Tensor) -> Tensor:
    """A value per seed, whose mean is P(x > y), ties half.

    Its variance over n is that of the estimate: ``P(x_i > y) + P(x > y_i) - P(x > y)``, the two first-order
    terms (DeLong et al., 1988).

    >>> placements(torch.tensor([1.0, 3.0]), torch.tensor([0.0, 2.0])).tolist()
    [0.75, 0.75]
    """
    wins = (x[:, None] > y).double() + (x[:, None] == y).double() / 2
    return wins.mean(1) + wins.mean(0) - wins.mean()


def judged(condition: str, quantity: str, values: Tensor) -> list[Row]:
    return [
        Row(condition=condition, quantity=quantity, seed=seed, value=value)
        for seed, value in enumerate(values.tolist())
    ]


def data_rows(condition: str, arm: str, of_arm: Tensor) -> list[Row]:
    """Every run's mean score, with the learning rate as abscissa."""
    return [
        Row(condition=condition, quantity=f"score {arm}", seed=seed, value=value, x=lr)
        for lr, by_seed in zip(RATES, of_arm.mean(-1).tolist(), strict=True)
        for seed, value in enumerate(by_seed)
    ]


class Catch:
    """A ball falls from the top row, straight, and a paddle in the bottom row moves by one cell a step.

    An episode is ``rows - 1`` steps long, and its reward, at the end, is 1 where the paddle is under the ball
    and -1 elsewhere (Mnih et al., 2014, section 4.2). Vectorised: ball and paddle are int64 ``[...]``.
    """

    def __init__(self, rows: int = ROWS, columns: int = COLUMNS) -> None:
        self.rows, self.columns, self.length = rows, columns, rows - 1

    def starts(self) -> tuple[Tensor, Tensor]:
        """All first states, ball and paddle ``[columns^2]``."""
        places = torch.arange(self.columns)
        ball, paddle = torch.cartesian_prod(places, places).unbind(1)
        return ball, paddle

    def picture(self, row: int, ball: Tensor, paddle: Tensor) -> Tensor:
        """What the network sees: cells 0 or 1, ``[..., rows * columns]``, ball in ``row``."""
        board = F.one_hot(ball + row * self.columns, self.rows * self.columns)
        board = board + F.one_hot(paddle + (self.rows - 1) * self.columns, self.rows * self.columns)
        return board.clamp_max(1).float()

    def move(self, paddle: Tensor, action: Tensor) -> Tensor:
        return (paddle + action - 1).clamp(0, self.columns - 1)

    def score(self, caught: Tensor) -> Tensor:
        """The share of balls caught, 0 for a random policy and 1 for the best.

        From all starts alike, random moves leave the paddle anywhere alike (their transition matrix is doubly
        stochastic), so that a random policy catches one ball in ``columns``.
        """
        chance = 1 / self.columns
        return (caught - chance) / (1 - chance)


class Protocol(NamedTuple):
    """What decides a training beside the network."""

    steps: int = STEPS
    batch_target: bool = False
    """The target network takes batch normalisation's statistics from its batch, not running averages."""


def network(norm: str, game: Catch, seed: int) -> nn.Module:
    """Action values ``[batch, 3]`` of pictures; the same draw in every arm."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        layers = nn.Sequential()
        for a, b in itertools.pairwise((game.rows * game.columns, *WIDTHS)):
            layers.extend([glorot(nn.Linear(a, b)), nn.ReLU()])
        layers.append(output_layer(glorot(nn.Linear(WIDTHS[-1], ACTIONS))))
    # Action values have a scale of their own, which statistics would take away.
    return normalize(layers, norm, output_layers=norm not in ("batch_norm", "layer_norm"))


class Chances:
    """All random numbers of one seed, drawn beforehand: no arm and no learning rate shifts them."""

    def __init__(self, seed: int, steps: int, columns: int) -> None:
        draw = np.random.default_rng(seed)
        total = WARM_UP + steps
        self.explore, self.action = draw.random(total), draw.integers(ACTIONS, size=total)
        self.ball, self.paddle = draw.integers(columns, size=(2, total))
        self.replay = draw.random((steps, BATCH))


def epsilon(step: int, steps: int) -> float:
    """Probability of a random action: from 1 to 0.05 within the first third, linearly."""
    return max(0.05, 1 - 0.95 * 3 * step / steps)


class Player:
    """A stack of networks, a learning rate and a seed each, with games, replays and random numbers.

    Attributes:
        scores: ``[members]`` at each evaluation, of the greedy policy from all starts.
    """

    def __init__(self, norm: str, rates: Sequence[float], seeds: Sequence[int], game: Catch, how: Protocol):
        self.game, self.how = game, how
        members = [(lr, seed) for lr in rates for seed in seeds]
        optims = [OptimConfig(name="adamax", lr=lr, momentum=0.5) for lr, _ in members]
        self.learner = Learner([network(norm, game, seed) for _, seed in members], optims)
        self.stack = self.learner.stack
        chances = {seed: Chances(seed, how.steps, game.columns) for seed in seeds}
        mine = [chances[seed] for _, seed in members]
        self.chance = {
            name: torch.from_numpy(np.stack([getattr(c, name) for c in mine])) for name in vars(mine[0])
        }
        size = (len(members), WARM_UP + how.steps)
        cells = game.rows * game.columns
        self.now, self.then = torch.zeros(*size, cells), torch.zeros(*size, cells)
        self.taken, self.reward = torch.zeros(size, dtype=torch.int64), torch.zeros(size)
        self.going = torch.zeros(size)  # 0 where an episode ends
        self.scores: list[Tensor] = []

    def play(self) -> Tensor:
        """Train; the scores ``[members, evaluations]``."""
        for t in range(WARM_UP + self.how.steps):
            step = t - WARM_UP
            if step == 0:
                self._begin()
            self._act(t, 1.0 if step < 0 else epsilon(step, self.how.steps))
            if step >= 0:
                self._learn(step, t + 1)
                if (step + 1) % EVALUATE == 0:
                    self.scores.append(self._evaluate())
        return torch.stack(self.scores, 1)

    def _begin(self) -> None:
        """The data-dependent initialisation, where there is one, on what a random policy saw."""
        if any(name.endswith("initialized") for name in self.stack.buffers):
            self.stack.initialize(self.now[:, :WARM_UP])
        self._synchronise()

    def _synchronise(self) -> None:
        copies = {k: t.detach().clone() for k, t in (*self.stack.params.items(), *self.stack.buffers.items())}
        self.target: Stack = self.stack.with_state(copies)

    @torch.no_grad()
    def _act(self, t: int, explore: float) -> None:
        """One step of each game, into the replay."""
        row = t % self.game.length
        if row == 0:
            self.ball, self.paddle = self.chance["ball"][:, t], self.chance["paddle"][:, t]
        now = self.game.picture(row, self.ball, self.paddle)
        action = self.chance["action"][:, t]
        if explore < 1:
            greedy = self.stack.train(False)(now[:, None])[:, 0].argmax(-1)
            action = torch.where(self.chance["explore"][:, t] < explore, action, greedy)
        self.paddle = self.game.move(self.paddle, action)
        ends = row + 1 == self.game.length
        self.now[:, t], self.taken[:, t] = now, action
        self.then[:, t] = self.game.picture(row + 1, self.ball, self.paddle)
        self.reward[:, t] = torch.where(self.ball == self.paddle, 1.0, -1.0) if ends else 0.0
        self.going[:, t] = 0.0 if ends else 1.0

    def _learn(self, step: int, filled: int) -> None:
        if step % SYNC == 0:
            self._synchronise()
        place = (self.chance["replay"][:, step] * filled).long()
        member = torch.arange(len(place))[:, None]
        now, then, taken, reward, going = (
            kept[member, place] for kept in (self.now, self.then, self.taken, self.reward, self.going)
        )
        with torch.no_grad():
            self.target.train(self.how.batch_target)
            goal = reward + DISCOUNT * going * self.target(then).amax(-1)
        self.learner.step(loss, now, taken, goal)

    @torch.no_grad()
    def _evaluate(self) -> Tensor:
        ball, paddle = self.game.starts()
        paddle = paddle.expand(len(self.stack), -1)
        self.stack.train(False)
        for row in range(self.game.length):
            seen = self.game.picture(row, ball.expand_as(paddle), paddle)
            paddle = self.game.move(paddle, self.stack(seen).argmax(-1))
        return self.game.score((ball == paddle).double().mean(-1))


def loss(model: nn.Module, seen: Tensor, taken: Tensor, goal: Tensor) -> Tensor:
    """Huber's, of the values of the actions that were taken."""
    value = model(seen).gather(-1, taken[:, None])[:, 0]
    return F.smooth_l1_loss(value, goal)
