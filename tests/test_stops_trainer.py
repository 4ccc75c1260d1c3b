"""The training loop, stopped after any of its steps, goes on to the same bits."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from trainer_cases import CPU, NORMS, Watcher, at_rate, config, dataset

from wn.config import Config
from wn.trainer import Trainer


class Stop(BaseException):
    pass


class Stopper(Watcher):
    """Has training stop after each of some steps."""

    def __init__(self, steps: set[int]) -> None:
        super().__init__()
        self.at = steps

    def stop(self, done: int, total: int) -> Stop | None:  # type: ignore[override]
        return Stop() if done in self.at else None


def in_pieces(configs: list[Config], at: set[int]) -> tuple[list[int], Trainer, Watcher]:
    """Train, stopping after the steps ``at``: the steps of the checkpoints, the last piece, what was told."""
    watcher, stopped_at = Stopper(at), []
    while True:
        loop = Trainer(configs, dataset(), CPU, watcher)
        if watcher.states:
            loop.restore(watcher.states[-1])
        torch.randn(7)  # a hidden generator would notice
        try:
            loop.run()
        except Stop:
            stopped_at.append(watcher.states[-1]["step"])
        else:
            return stopped_at, loop, watcher


def assert_same(ours: tuple[Trainer, Watcher], theirs: tuple[Trainer, Watcher]) -> None:
    """To the last bit."""
    for tree in ("params", "buffers", "moments"):
        mine, other = ours[0].state()[tree], theirs[0].state()[tree]
        assert mine.keys() == other.keys()
        assert all(torch.equal(mine[k], other[k]) for k in mine)
    assert ours[0].alive == theirs[0].alive
    assert ours[1].ends == theirs[1].ends
    assert repr(ours[1].rows) == repr(theirs[1].rows)  # as text, NaN is like NaN
    assert repr(ours[1].probes) == repr(theirs[1].probes)


STEPS = range(1, 24)
"""All but the last of six epochs of four steps."""

EVERY_STEP = ("none", "weight_norm_mean_only_bn_init", "batch_renorm", "spectral_norm", "forced_weight_norm")
"""The norms of which all steps are tried: they differ in what is kept beside the parameters. Of the others
the first step, an epoch's last and first, and one amid an epoch."""


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("rates", [(0.05,), (0.05, 1e60, 0.1)], ids=["alone", "one diverges"])
def test_stopped_at_any_step_a_stack_ends_in_the_same_bits(norm: str, rates: tuple[float, ...]) -> None:
    """With noise, dropout and momentum; the second of three members diverges early."""
    configs = [at_rate(lr, norm=norm, seed=i, epochs=6, probe_every=2) for i, lr in enumerate(rates)]
    _, *whole = in_pieces(configs, set())
    at = list(STEPS) if norm in EVERY_STEP else [1, 4, 13, 22]
    stopped_at, *pieces = in_pieces(configs, set(at))
    assert stopped_at == at
    assert_same((pieces[0], pieces[1]), (whole[0], whole[1]))
    assert pieces[0].alive == [0, 2][: len(rates)]


@pytest.mark.parametrize("at", [1, 2, 3, 4, 5, 15, 16, 23])
@pytest.mark.parametrize("rule", ["adam", "adamax"])
def test_one_stop_anywhere(at: int, rule: Any) -> None:
    """In the first epoch, at an epoch's first, middle and last step, and where momentum changes (16)."""
    late = {"name": rule, "schedule": "constant_then_linear", "decay_from": 0.6, "late_momentum": 0.5}
    configs = [
        one.model_copy(update={"optim": one.optim.model_copy(update=late)})
        for one in (at_rate(lr, norm="weight_norm_mean_only_bn", epochs=6) for lr in (0.01, 0.003))
    ]
    _, *whole = in_pieces(configs, set())
    stopped_at, *pieces = in_pieces(configs, {at})
    assert stopped_at == [at]
    assert_same((pieces[0], pieces[1]), (whole[0], whole[1]))


def test_training_that_is_over_is_not_stopped() -> None:
    stopped_at, _, watcher = in_pieces([config(epochs=1)], {4})
    assert not stopped_at
    assert watcher.ends[0][0] == "finished"
    stopped_at, _, watcher = in_pieces([at_rate(1e6, norm="none", epochs=50)], set(range(4, 200, 4)))
    assert watcher.ends[0][0] == "diverged"
    assert len(stopped_at) < watcher.ends[0][1]["epoch"]


def test_a_state_of_another_model_is_refused_and_changes_nothing() -> None:
    _, loop, _ = in_pieces([config()], set())
    before = copy.deepcopy(loop.state())
    for other in (config("batch_norm"), config(optim=config().optim.model_copy(update={"name": "adam"}))):
        with pytest.raises(LookupError, match="another model or optimiser"):
            loop.restore(in_pieces([other], {2})[2].states[0])
    assert repr(loop.state()) == repr(before)
