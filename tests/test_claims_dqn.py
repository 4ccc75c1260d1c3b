"""What the replay holds, what is learnt from it, and the probability of improvement."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
import torch
from game_cases import balance, fallen, moved, push_left
from torch import Tensor, nn

from wn.claims import criteria, dqn, measuring
from wn.claims.dqn import placements
from wn.claims.games import CartPole, Catch, Game
from wn.claims.q_learning import DISCOUNT, WARM_UP, Player, Training, epsilon
from wn.claims.rows import read
from wn.stack import Stack
from wn.stops import StopWatcher


def small() -> Catch:
    return Catch(5, 3)


def catcher(norm: str = "weight_norm_init", steps: int = 40, batch_target: bool = False) -> Player:
    """Two members that learn Catch."""
    return Player(norm, (0.01,), (0, 1), small(), Training(steps, score=1, batch_target=batch_target))


class Follow(nn.Module):
    """Follows the ball, or stays where it is."""

    def __init__(self, follows: bool) -> None:
        super().__init__()
        self.follows, self.any = follows, nn.Parameter(torch.zeros(1))

    def forward(self, seen: Tensor) -> Tensor:
        board = seen.unflatten(-1, (5, 3))
        ball, paddle = board[..., :-1, :].sum(-2).argmax(-1), board[..., -1, :].argmax(-1)
        action = torch.sign(ball - paddle) + 1 if self.follows else torch.ones_like(ball)
        return nn.functional.one_hot(action, 3).float() + 0 * self.any


def test_the_ball_can_always_be_caught_and_a_paddle_that_stays_is_as_good_as_chance():
    player = catcher()
    for follows, score in ((True, 1.0), (False, 0.0)):
        player.stack = Stack([Follow(follows), Follow(follows)])
        assert player.game.score(player._greedy).tolist() == pytest.approx([score, score])


# Replay ----------------------------------------------------------------------------------------------


def test_the_replay_holds_catch():
    player, game = catcher(), small()
    player.play()
    seen = player.now.unflatten(-1, (game.rows, game.columns))
    after = player.then.unflatten(-1, (game.rows, game.columns))
    paddle, after_paddle = (t[..., -1, :].argmax(-1) for t in (seen, after))
    ends = torch.arange(seen.shape[1]) % game.length == game.length - 1
    inside = ~ends
    assert torch.equal(after_paddle[:, inside], game.move(paddle, player.taken)[:, inside])
    assert torch.equal(player.going, (~ends).float().expand_as(player.going))
    assert torch.equal(player.now[:, 1:][:, inside[:-1]], player.then[:, :-1][:, inside[:-1]])
    caught = after[:, ends].sum((-1, -2)) == 1  # ball and paddle in one cell
    assert torch.equal(player.reward[:, ends] == 1, caught)
    assert (player.reward[:, ends].abs() == 1).all()
    assert (player.reward[:, inside] == 0).all()


def test_the_replay_holds_cartpole():
    """By its equations of motion; where an episode has ended, the next transition begins at a start."""
    player = Player("none_init", (0.01, 0.1), (0, 1), CartPole(), Training(steps=500, every=50, score=500))
    player.play()
    assert torch.allclose(player.then.double(), moved(player.now.double(), player.taken), atol=1e-5)
    assert torch.equal(player.going == 0, fallen(player.then))
    assert torch.equal(player.reward, player.going - 1)
    on = player.going[:, :-1] == 1
    assert torch.equal(player.now[:, 1:][on], player.then[:, :-1][on])
    assert (player.now[:, 1:][~on].abs() <= 0.05).all()
    assert (~on).sum(1).min() > 10


class Push(nn.Module):
    """Balances the pole, or pushes left."""

    def __init__(self, balances: bool) -> None:
        super().__init__()
        self.share = nn.Parameter(torch.tensor(float(balances)))

    def forward(self, seen: Tensor) -> Tensor:
        values = [nn.functional.one_hot(policy(seen), 2) for policy in (balance, push_left)]
        return self.share * values[0] + (1 - self.share) * values[1]


def test_what_follows_a_cut_has_its_value_and_what_follows_a_fall_has_none(monkeypatch: pytest.MonkeyPatch):
    player = Player("none_init", (0.01,), (0, 1), CartPole(), Training(steps=100, every=2))
    player.stack = Stack([Push(True), Push(False)])
    player._begin()
    for t in range(501):
        player._act(t, 0.0)
    assert (player.going[0, :501] == 1).all()
    assert (player.then[0, 499] != player.now[0, 500]).any()
    assert (player.now[0, 500].abs() <= 0.05).all()  # a new episode, after 500 steps of the first

    fall = int(player.going[1].argmin())
    goals: list[Tensor] = []
    monkeypatch.setattr(player.learner, "step", lambda loss, now, taken, goal: goals.append(goal[:, 0]))
    for place in (499, fall):
        player.replay[:, 0] = (place + 0.5) / 501
        player._learn(0, 501)
    assert goals[0][0].item() == pytest.approx(DISCOUNT)  # greedy values are 1, and a reward is 0
    assert goals[1][1].item() == -1


@pytest.mark.parametrize("game", [small, CartPole])
def test_arms_and_rates_share_what_is_random_and_seeds_do_not(game: Callable[[], Game]):
    players = [
        Player(norm, (0.01, 0.1), (0, 1), game(), Training(steps=1, score=1))
        for norm in ("none_init", "batch_norm")
    ]
    for one in players:
        one.play()
    random = [one.now[:, :WARM_UP] for one in players]
    assert torch.equal(*random)
    assert torch.equal(random[0][0], random[0][2])  # seed 0 at both rates
    assert not torch.equal(random[0][0], random[0][1])


@pytest.mark.parametrize("norm", ["none_init", "weight_norm_init"])
def test_values_begin_standardised_on_what_the_random_policy_saw(norm: str):
    player = catcher(norm, steps=0)
    for t in range(WARM_UP):
        player._act(t, 1.0)
    player._begin()
    values = player.stack(player.now[:, :WARM_UP])
    assert torch.allclose(values.mean(1), torch.zeros(2, 3), atol=1e-4)
    assert torch.allclose(values.std(1, correction=0), torch.ones(2, 3), atol=1e-4)


def test_the_target_network_stays_until_it_is_renewed(monkeypatch: pytest.MonkeyPatch):
    player = Player("none_init", (0.01,), (0, 1), small(), Training(steps=7, renew=3, score=1))
    learn, newest, targets = player._learn, [], []

    def learned(*of: int) -> None:
        newest.append(player.stack.params["0.weight"].detach().clone())
        learn(*of)
        targets.append(player.target.params["0.weight"].clone())

    monkeypatch.setattr(player, "_learn", learned)
    player.play()
    assert all(torch.equal(target, newest[i - i % 3]) for i, target in enumerate(targets))
    assert not torch.equal(targets[2], targets[3])


@pytest.mark.parametrize("batch_target", [False, True])
def test_the_target_network_takes_the_statistics_it_is_told_to(
    batch_target: bool, monkeypatch: pytest.MonkeyPatch
):
    player, goals = catcher("batch_norm", 3, batch_target), list[Tensor]()
    player.play()
    copies = {train: copy.deepcopy(player.target).train(train) for train in (False, True)}
    monkeypatch.setattr(player.learner, "step", lambda loss, now, taken, goal: goals.append(goal))
    player._learn(1, WARM_UP + 3)
    place = (player.replay[:, 1] * (WARM_UP + 3)).long()
    then, reward, going = (
        torch.stack([kept[i, place[i]] for i in range(2)])
        for kept in (player.then, player.reward, player.going)
    )
    for train, target in copies.items():
        with torch.no_grad():
            expected = reward + DISCOUNT * going * target(then).amax(-1)
        assert torch.allclose(goals[0], expected) == (train == batch_target)


def test_one_that_learns_beats_one_that_does_not():
    player = Player("weight_norm_init", (0.03, 1e-9), (0, 1), small(), Training(steps=600, score=300))
    scores = player.play()[:, -1].view(2, 2)
    assert (scores[0] > 0.8).all()
    assert (scores[1] < 0.7).all()


def test_exploration_ends_after_a_third():
    assert epsilon(0, 300) == 1
    assert epsilon(50, 300) == pytest.approx(0.525)
    assert epsilon(100, 300) == pytest.approx(0.05)
    assert epsilon(299, 300) == 0.05


# Claims ----------------------------------------------------------------------------------------------


def test_the_best_rate_has_the_largest_mean():
    of_arm = torch.zeros(3, 2, 4)
    of_arm[1, :, 1:] = 0.5
    of_arm[2, 0, 0] = 1.0
    assert torch.equal(dqn.best(of_arm), of_arm[1])


def test_placements_mean_is_mann_whitneys_and_their_error_is_the_bootstraps():
    generator = np.random.default_rng(0)
    x, y = generator.normal(0.5, 1, 60), generator.normal(0, 1, 60)
    values = placements(torch.tensor(x), torch.tensor(y)).numpy()
    assert values.mean() == pytest.approx(scipy.stats.mannwhitneyu(x, y).statistic / 3600)
    again = [(generator.choice(x, 60)[:, None] > generator.choice(y, 60)).mean() for _ in range(2000)]
    assert values.std(ddof=1) / np.sqrt(60) == pytest.approx(np.std(again), rel=0.1)
    same = placements(torch.tensor(x), torch.tensor(x)).numpy()
    assert same.mean() == pytest.approx(0.5)


@pytest.mark.parametrize("name", ["K1", "K1c", "K2", "K2c"])
def test_every_seed_has_a_value_of_what_is_judged(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """By trainings of a few updates."""
    tiny = {"rates": (0.01, 0.1), "seeds": 3}
    few, short = Training(steps=10, score=5), Training(steps=500, every=50, renew=5, score=500)
    boards = {board: setting._replace(how=few, **tiny) for board, setting in dqn.CATCH.items()}
    monkeypatch.setattr(dqn, "CATCH", boards)
    monkeypatch.setattr(dqn, "CARTPOLE", dqn.CARTPOLE._replace(how=short, **tiny))
    monkeypatch.chdir(tmp_path)
    measuring.measure(name, StopWatcher(None))
    rows = [row for path in Path("runs/claims").rglob("*.json") for row in read(path).rows]
    claim = criteria.load(name)
    for condition, quantity in itertools.product(claim.conditions, claim.quantities):
        mine = [row for row in rows if (row["condition"], row["quantity"]) == (condition, quantity)]
        assert [row["seed"] for row in mine] == [0, 1, 2]
        assert not [row for row in mine if row["value"] is None]
