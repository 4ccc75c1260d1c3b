"""The games' rules: Catch in closed form, CartPole by its equations of motion."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from game_cases import balance, fallen, moved, push_left
from torch import Tensor

from wn.claims.games import CartPole, Catch

SMALL = Catch(5, 3)
ROOT = Path(__file__).parent.parent

# Catch -----------------------------------------------------------------------------------------------


def test_random_moves_catch_one_ball_in_as_many_as_there_are_columns():
    """The whole tree of random play, from all starts alike."""
    ball, paddle = SMALL.starts()
    for _ in range(SMALL.length):
        actions = torch.arange(SMALL.actions)[:, None]
        paddle = SMALL.move(paddle.expand(SMALL.actions, -1), actions).flatten()
        ball = ball.repeat(SMALL.actions)
    assert (ball == paddle).double().mean().item() == pytest.approx(1 / SMALL.columns)


def test_a_picture_has_the_ball_and_the_paddle():
    seen = SMALL.picture(1, torch.tensor(2), torch.tensor(0)).view(5, 3)
    assert seen.nonzero().tolist() == [[1, 2], [4, 0]]
    assert SMALL.picture(4, torch.tensor(1), torch.tensor(1)).sum() == 1


# CartPole --------------------------------------------------------------------------------------------


def begun(*seeds: int) -> CartPole:
    game = CartPole()
    game.begin([game.draw(np.random.default_rng(seed), 0) for seed in seeds])
    return game


def by_member(game: CartPole) -> Tensor:
    """Actions of three members: one balances, one pushes left, one pushes by turns."""
    seen = game.now()
    turn = (game.lasted[2:] % 2).astype(int)
    return torch.cat([balance(seen[:1]), push_left(seen[1:2]), torch.from_numpy(turn)])


def test_balance_lasts_to_the_time_limit_and_pushing_left_is_over_soon():
    game = begun(1000, 1000, 1001)
    for _ in range(1000):
        game.step(by_member(game))
    best, worst, _ = game.score(lambda seen: seen).tolist()
    assert best == 500
    assert 8 <= worst <= 11
    game.step(by_member(game))
    assert game.score(lambda seen: seen)[:2].isnan().tolist() == [True, True]  # none has ended since


def test_the_cart_moves_by_the_equations_of_motion():
    game = begun(1000, 1000, 1001)
    for _ in range(600):
        now, action = game.now(), by_member(game)
        seen, reward, going = game.step(action)
        assert torch.allclose(seen.double(), moved(now.double(), action), atol=1e-5)
        assert torch.equal(going, (~fallen(seen)).float())
        assert torch.equal(reward, going - 1)


def test_starts_are_the_seed_s_own_however_long_episodes_are():
    game = begun(1000, 1000, 1001)
    starts: list[list[Tensor]] = [[], [], []]
    for _ in range(1100):
        seen = game.now()
        for member in np.flatnonzero(game.lasted == 0):
            starts[member].append(seen[member])
        game.step(by_member(game))
    assert len(starts[0]) == 3 < len(starts[1])
    assert torch.equal(torch.stack(starts[0]), torch.stack(starts[1][:3]))
    assert not torch.equal(starts[0][0], starts[2][0])
    alone = gymnasium.make("CartPole-v1")
    (seed,) = game.draw(np.random.default_rng(1001), 0).tolist()
    for number, start in enumerate(starts[2]):
        assert start.tolist() == alone.reset(seed=None if number else seed)[0].tolist()


def test_without_gymnasium_what_needs_it_is_left_out(tmp_path: Path):
    """Nothing else imports it."""
    program = (
        "import sys; sys.modules['gymnasium'] = None\nfrom wn.claims.__main__ import main\nsys.exit(main({}))"
    )
    command = [sys.executable, "-c", program.format(["K1c", "K2c"])]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    lines = [
        f"{name} is left out: CartPole needs Gymnasium: pip install '.[games]'" for name in ("K1c", "K2c")
    ]
    assert (result.returncode, result.stderr.splitlines()) == (2, lines)
