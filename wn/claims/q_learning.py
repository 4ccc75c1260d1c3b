"""Deep Q-learning (Mnih et al., 2015) of a stack of networks, each of which plays a game of its own.

The protocol of section 5.4 where it says one: Adamax with momentum 0.5, batches of 64, the data-dependent
initialisation on a random policy's replay, a target network.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wn.claims.games import Game
from wn.claims.learner import Learner, glorot
from wn.config import OptimConfig
from wn.models.init import output_layer
from wn.norm import normalize
from wn.stack import Stack

WIDTHS, BATCH, WARM_UP, DISCOUNT = (64, 64), 64, 500, 0.99


class Training(NamedTuple):
    """What decides a training beside the network and the game. Steps are those of the game."""

    steps: int
    """After the ``WARM_UP`` that a random policy makes."""
    every: int = 1
    """Steps for each update."""
    renew: int = 100
    """Updates for each renewal of the target network."""
    score: int = 100
    """Steps for each score."""
    batch_target: bool = False
    """The target network takes batch normalisation's statistics from its batch, not running averages."""


def network(norm: str, game: Game, seed: int) -> nn.Module:
    """Action values ``[batch, actions]`` of what is seen; the same draw in every arm."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        layers = nn.Sequential()
        for a, b in itertools.pairwise((game.inputs, *WIDTHS)):
            layers.extend([glorot(nn.Linear(a, b)), nn.ReLU()])
        layers.append(output_layer(glorot(nn.Linear(WIDTHS[-1], game.actions))))
    # Action values have a scale of their own, which statistics would take away.
    return normalize(layers, norm, output_layers=norm not in ("batch_norm", "layer_norm"))


class Chances:
    """All random numbers of one seed, drawn beforehand: no arm and no learning rate shifts them."""

    def __init__(self, seed: int, game: Game, how: Training) -> None:
        draw = np.random.default_rng(seed)
        total = WARM_UP + how.steps
        self.explore, self.action = draw.random(total), draw.integers(game.actions, size=total)
        self.game = game.draw(draw, total)
        self.replay = draw.random((how.steps // how.every, BATCH))


def epsilon(step: int, steps: int) -> float:
    """Probability of a random action: from 1 to 0.05 within the first third, linearly."""
    return max(0.05, 1 - 0.95 * 3 * step / steps)


class Player:
    """A stack of networks, a learning rate and a seed each, with games, replays and random numbers.

    Attributes:
        now, taken, then, reward, going: the replay, ``[members, steps, ...]``: what was seen, the action, and
            what came of it (:class:`wn.claims.games.Step`).
        scores: ``[members]`` each time, by :meth:`wn.claims.games.Game.score`.
    """

    def __init__(self, norm: str, rates: Sequence[float], seeds: Sequence[int], game: Game, how: Training):
        self.game, self.how = game, how
        members = [(lr, seed) for lr in rates for seed in seeds]
        optims = [OptimConfig(name="adamax", lr=lr, momentum=0.5) for lr, _ in members]
        self.learner = Learner([network(norm, game, seed) for _, seed in members], optims)
        self.stack = self.learner.stack
        chances = {seed: Chances(seed, game, how) for seed in seeds}
        mine = [chances[seed] for _, seed in members]
        game.begin([one.game for one in mine])
        self.explore, self.action, self.replay = (
            torch.from_numpy(np.stack([getattr(one, name) for one in mine]))
            for name in ("explore", "action", "replay")
        )
        size = (len(members), WARM_UP + how.steps)
        self.now, self.then = torch.zeros(*size, game.inputs), torch.zeros(*size, game.inputs)
        self.taken, self.reward, self.going = torch.zeros(size, dtype=torch.int64), *torch.zeros(2, *size)
        self.scores: list[Tensor] = []

    def play(self) -> Tensor:
        """Train; the scores ``[members, scores]``."""
        for t in range(WARM_UP + self.how.steps):
            step = t - WARM_UP
            if step == 0:
                self._begin()
            self._act(t, 1.0 if step < 0 else epsilon(step, self.how.steps))
            if step >= 0 and (step + 1) % self.how.every == 0:
                self._learn(step // self.how.every, t + 1)
            if step >= 0 and (step + 1) % self.how.score == 0:
                self.scores.append(self.game.score(self._greedy))
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
    def _greedy(self, seen: Tensor) -> Tensor:
        """The actions of largest value, ``[members, batch]``."""
        values: Tensor = self.stack.train(False)(seen)
        return values.argmax(-1)

    def _act(self, t: int, explore: float) -> None:
        """One step of each game, into the replay."""
        now, action = self.game.now(), self.action[:, t]
        if explore < 1:
            action = torch.where(self.explore[:, t] < explore, action, self._greedy(now[:, None])[:, 0])
        self.now[:, t], self.taken[:, t] = now, action
        self.then[:, t], self.reward[:, t], self.going[:, t] = self.game.step(action)

    def _learn(self, update: int, filled: int) -> None:
        if update % self.how.renew == 0:
            self._synchronise()
        place = (self.replay[:, update] * filled).long()
        member = torch.arange(len(place))[:, None]
        now, then, taken, reward, going = (
            kept[member, place] for kept in (self.now, self.then, self.taken, self.reward, self.going)
        )
        with torch.no_grad():
            self.target.train(self.how.batch_target)
            goal = reward + DISCOUNT * going * self.target(then).amax(-1)
        self.learner.step(loss, now, taken, goal)


def loss(model: nn.Module, seen: Tensor, taken: Tensor, goal: Tensor) -> Tensor:
    """Huber's, of the values of the actions that were taken."""
    value = model(seen).gather(-1, taken[:, None])[:, 0]
    return F.smooth_l1_loss(value, goal)
