"""The game's rules and scores in closed form, what the replay holds, and the probability of improvement."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
import torch
from torch import Tensor, nn

from wn.claims import dqn
from wn.claims.dqn import Catch, Player, Protocol, placements
from wn.stack import Stack

SMALL = Catch(5, 3)


@pytest.fixture(autouse=True)
def evaluated_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """A training of any length has a score."""
    monkeypatch.setattr(dqn, "EVALUATE", 1)


class Policy(nn.Module):
    """Follows the ball, or stays where it is."""

    def __init__(self, follows: bool) -> None:
        super().__init__()
        self.follows, self.any = follows, nn.Parameter(torch.zeros(1))

    def forward(self, seen: Tensor) -> Tensor:
        board = seen.unflatten(-1, (SMALL.rows, SMALL.columns))
        ball, paddle = board[..., :-1, :].sum(-2).argmax(-1), board[..., -1, :].argmax(-1)
        action = torch.sign(ball - paddle) + 1 if self.follows else torch.ones_like(ball)
        return nn.functional.one_hot(action, dqn.ACTIONS).float() + 0 * self.any


@pytest.fixture
def player() -> Player:
    return Player("weight_norm_init", (0.01,), (0, 1), SMALL, Protocol(steps=40))


def test_the_ball_can_always_be_caught_and_a_paddle_that_stays_is_as_good_as_chance(player: Player):
    for follows, score in ((True, 1.0), (False, 0.0)):
        player.stack = Stack([Policy(follows), Policy(follows)])
        assert player._evaluate().tolist() == pytest.approx([score, score])


def test_random_moves_catch_one_ball_in_as_many_as_there_are_columns():
    """The whole tree of random play, from all starts alike."""
    ball, paddle = SMALL.starts()
    for _ in range(SMALL.length):
        actions = torch.arange(dqn.ACTIONS)[:, None]
        paddle = SMALL.move(paddle.expand(dqn.ACTIONS, -1), actions).flatten()
        ball = ball.repeat(dqn.ACTIONS)
    assert SMALL.score((ball == paddle).double().mean()).item() == pytest.approx(0)
    assert SMALL.score(torch.tensor(1.0)).item() == pytest.approx(1)


def test_a_picture_has_the_ball_and_the_paddle():
    seen = SMALL.picture(1, torch.tensor(2), torch.tensor(0)).view(5, 3)
    assert seen.nonzero().tolist() == [[1, 2], [4, 0]]
    assert SMALL.picture(4, torch.tensor(1), torch.tensor(1)).sum() == 1


def test_the_replay_holds_the_game(player: Player):
    player.play()
    seen = player.now.unflatten(-1, (SMALL.rows, SMALL.columns))
    after = player.then.unflatten(-1, (SMALL.rows, SMALL.columns))
    paddle, moved = (t[..., -1, :].argmax(-1) for t in (seen, after))
    ends = torch.arange(seen.shape[1]) % SMALL.length == SMALL.length - 1
    inside = ~ends
    assert torch.equal(moved[:, inside], SMALL.move(paddle, player.taken)[:, inside])
    assert torch.equal(player.going, (~ends).float().expand_as(player.going))
    assert torch.equal(player.now[:, 1:][:, inside[:-1]], player.then[:, :-1][:, inside[:-1]])
    caught = after[:, ends].sum((-1, -2)) == 1  # ball and paddle in one cell
    assert torch.equal(player.reward[:, ends] == 1, caught)
    assert (player.reward[:, ends].abs() == 1).all()
    assert (player.reward[:, inside] == 0).all()


def test_arms_and_rates_share_what_is_random_and_seeds_do_not():
    players = [
        Player(norm, (0.01, 0.1), (0, 1), SMALL, Protocol(steps=1)) for norm in ("none_init", "batch_norm")
    ]
    for one in players:
        one.play()
    random = [one.now[:, : dqn.WARM_UP] for one in players]
    assert torch.equal(*random)
    assert torch.equal(random[0][0], random[0][2])  # seed 0 at both rates
    assert not torch.equal(random[0][0], random[0][1])


@pytest.mark.parametrize("norm", ["none_init", "weight_norm_init"])
def test_values_begin_standardised_on_what_the_random_policy_saw(norm: str):
    player = Player(norm, (0.01,), (0, 1), SMALL, Protocol(steps=0))
    for t in range(dqn.WARM_UP):
        player._act(t, 1.0)
    player._begin()
    values = player.stack(player.now[:, : dqn.WARM_UP])
    assert torch.allclose(values.mean(1), torch.zeros(2, 3), atol=1e-4)
    assert torch.allclose(values.std(1, correction=0), torch.ones(2, 3), atol=1e-4)


def test_the_target_network_stays_until_it_is_renewed_and_takes_the_statistics_it_is_told_to():
    goals = {}
    for batch_target in (False, True):
        player = Player("batch_norm", (0.01,), (0, 1), SMALL, Protocol(steps=3, batch_target=batch_target))
        player.play()
        goals[batch_target] = player.stack.params["0.weight"].detach().clone()
        assert not torch.equal(player.target.params["0.weight"], goals[batch_target])
    assert not torch.allclose(*goals.values())


def test_one_that_learns_beats_one_that_does_not(monkeypatch):
    monkeypatch.setattr(dqn, "EVALUATE", 300)
    player = Player("weight_norm_init", (0.03, 1e-9), (0, 1), SMALL, Protocol(steps=600))
    scores = player.play()[:, -1].view(2, 2)
    assert (scores[0] > 0.8).all()
    assert (scores[1] < 0.7).all()


def test_exploration_ends_after_a_third():
    assert dqn.epsilon(0, 300) == 1
    assert dqn.epsilon(50, 300) == pytest.approx(0.525)
    assert dqn.epsilon(100, 300) == pytest.approx(0.05)
    assert dqn.epsilon(299, 300) == 0.05


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
