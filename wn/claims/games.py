"""Games for deep Q-learning: Catch, and Gymnasium's CartPole, where Gymnasium is installed.

Each member of a stack plays a game of its own, and all take a step at a time. An episode that has ended is
followed by another. What is random in a game is its seed's alone: neither actions nor other members shift it.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from wn.config import UserError

Policy = Callable[[Tensor], Tensor]
"""The actions ``[members, batch]`` of members that see ``[members, batch, inputs]``."""


class Step(NamedTuple):
    """What an action led to, ``[members, ...]``."""

    seen: Tensor
    """What the network sees then, also where the episode has ended: never the start of the next."""
    reward: Tensor
    going: Tensor
    """0. where the game is over, so that nothing follows; 1. elsewhere, also where only the time was up."""


class Game(Protocol):
    """What a game tells one that plays it.

    Attributes:
        inputs: how many numbers the network sees.
        actions: how many there are to choose from.
    """

    inputs: int
    actions: int

    def draw(self, generator: np.random.Generator, steps: int) -> NDArray[np.int64]:
        """All that is random in so many steps of one seed's game."""

    def begin(self, drawn: Sequence[NDArray[np.int64]]) -> None:
        """Games of as many members, each with what was drawn for its seed."""

    def now(self) -> Tensor:
        """What the networks see before they act, ``[members, inputs]``; a new episode where one has ended."""

    def step(self, action: Tensor) -> Step:
        """Act, ``[members]``."""

    def score(self, greedy: Policy) -> Tensor:
        """How well members play, ``[members]``: greedily, or as they did since the last call."""


class Catch:
    """A ball falls from the top row, straight, and a paddle in the bottom row moves by one cell a step.

    An episode is ``rows - 1`` steps long, and its reward, at the end, is 1 where the paddle is under the ball
    and -1 elsewhere (Mnih et al., 2014, section 4.2). Ball and paddle are columns, int64 ``[...]``.
    """

    actions = 3  # left, stay, right

    def __init__(self, rows: int, columns: int) -> None:
        self.rows, self.columns, self.length = rows, columns, rows - 1
        self.inputs = rows * columns

    def draw(self, generator: np.random.Generator, steps: int) -> NDArray[np.int64]:
        """Ball and paddle of an episode that begins at a step, ``[2, steps]``."""
        return generator.integers(self.columns, size=(2, steps))

    def begin(self, drawn: Sequence[NDArray[np.int64]]) -> None:
        self.drawn, self.played = torch.from_numpy(np.stack(drawn)), 0

    def now(self) -> Tensor:
        row = self.played % self.length
        if row == 0:
            self.ball, self.paddle = self.drawn[:, :, self.played].unbind(1)
        return self.picture(row, self.ball, self.paddle)

    def step(self, action: Tensor) -> Step:
        row = self.played % self.length + 1
        self.played += 1
        self.paddle = self.move(self.paddle, action)
        seen = self.picture(row, self.ball, self.paddle)
        if row < self.length:
            return Step(seen, torch.zeros(len(seen)), torch.ones(len(seen)))
        return Step(seen, torch.where(self.ball == self.paddle, 1.0, -1.0), torch.zeros(len(seen)))

    def score(self, greedy: Policy) -> Tensor:
        """Of the greedy policies from all starts: 0 for random moves and 1 for the best.

        From all starts alike, random moves leave the paddle anywhere alike (their transition matrix is doubly
        stochastic), so that a random policy catches one ball in ``columns``.
        """
        ball, paddle = self.starts()
        paddle = paddle.expand(len(self.drawn), -1)
        for row in range(self.length):
            paddle = self.move(paddle, greedy(self.picture(row, ball.expand_as(paddle), paddle)))
        chance = 1 / self.columns
        return ((ball == paddle).double().mean(-1) - chance) / (1 - chance)

    def starts(self) -> tuple[Tensor, Tensor]:
        """All first states, ball and paddle ``[columns^2]``."""
        places = torch.arange(self.columns)
        ball, paddle = torch.cartesian_prod(places, places).unbind(1)
        return ball, paddle

    def picture(self, row: int, ball: Tensor, paddle: Tensor) -> Tensor:
        """Cells 0 or 1, ``[..., rows * columns]``, with the ball in ``row``."""
        board = F.one_hot(ball + row * self.columns, self.rows * self.columns)
        board = board + F.one_hot(paddle + (self.rows - 1) * self.columns, self.rows * self.columns)
        return board.clamp_max(1).float()

    def move(self, paddle: Tensor, action: Tensor) -> Tensor:
        return (paddle + action - 1).clamp(0, self.columns - 1)


class CartPole:
    """A cart is pushed left or right so that the pole that it carries stays up (Barto et al., 1983).

    Gymnasium's ``CartPole-v1``: the network sees position, velocity, angle and angular velocity; the game is
    over where the pole leans by more than 12 degrees or the cart is 2.4 from the middle. After 500 steps an
    episode is cut off, which is no end of the game: what would have followed has its value. The reward is -1
    where the game is over and 0 before, so that values have the scale of 1 that they begin with.

    Raises:
        UserError: Gymnasium is not installed.
    """

    inputs, actions = 4, 2

    def __init__(self) -> None:
        if importlib.util.find_spec("gymnasium") is None:
            raise UserError("CartPole needs Gymnasium: pip install '.[games]'")

    def draw(self, generator: np.random.Generator, steps: int) -> NDArray[np.int64]:
        """The seed of an environment, whose starts follow one another however long episodes are, ``[1]``."""
        return generator.integers(2**31, size=1)

    def begin(self, drawn: Sequence[NDArray[np.int64]]) -> None:
        import gymnasium

        # Environments that reset themselves do so in a step, which would be no transition of the game.
        self.environments = gymnasium.vector.SyncVectorEnv(
            [functools.partial(gymnasium.make, "CartPole-v1", sutton_barto_reward=True)] * len(drawn),
            autoreset_mode=gymnasium.vector.AutoresetMode.DISABLED,
        )
        self.seen, _ = self.environments.reset(seed=[one.item() for one in drawn])
        self.over = np.zeros(len(drawn), dtype=bool)
        self.lasted, self.total, self.episodes = np.zeros((3, len(drawn)))

    def now(self) -> Tensor:
        if self.over.any():
            self.seen, _ = self.environments.reset(options={"reset_mask": self.over})
            self.over = np.zeros_like(self.over)
        return torch.from_numpy(self.seen)

    def step(self, action: Tensor) -> Step:
        self.seen, reward, fallen, cut_off, _ = self.environments.step(action.numpy())
        self.over = fallen | cut_off
        self.lasted += 1
        self.total += self.lasted * self.over
        self.episodes += self.over
        self.lasted *= ~self.over
        return Step(*(torch.from_numpy(x).float() for x in (self.seen, reward, ~fallen)))

    def score(self, greedy: Policy) -> Tensor:
        """Mean length, at most 500, of the episodes that ended since the last call, as they were played.

        Steps are the return of ``CartPole-v1`` as it comes, with a reward of 1 a step. Not a number where no
        episode has ended, which takes less than 500 steps.
        """
        returns = torch.from_numpy(self.total) / torch.from_numpy(self.episodes)
        self.total, self.episodes = np.zeros((2, len(returns)))
        return returns
