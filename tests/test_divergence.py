"""Members of a stack that diverge end with a row that says so, and touch no other."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor
from trainer_cases import CPU, Watcher, at_rate, config, dataset, train

from wn import step
from wn.config import Config
from wn.config import TrainerConfig as Settings
from wn.models import build
from wn.trainer import Trainer


@pytest.mark.parametrize("norm", ["none", "mean_only_bn"])
def test_a_diverging_member_leaves_the_others_alone(norm: str) -> None:
    good = [at_rate(lr, norm=norm, seed=seed, epochs=12) for lr, seed in ((0.05, 0), (0.1, 1), (0.02, 0))]
    bad = at_rate(1e6, norm=norm, seed=1, epochs=12)
    _, without = train(*good)
    loop, watcher = train(good[0], bad, good[1], good[2])
    status, place = watcher.ends[1]
    last = watcher.rows[1][-1]
    assert status == "diverged"
    assert place == {"epoch": last["epoch"], "step": last["step"]}
    assert last["epoch"] >= 1
    assert len(watcher.rows[1]) == last["epoch"] + 1
    assert not all(map(math.isfinite, last.values()))
    assert all(math.isfinite(x) for row in watcher.rows[1][:-1] for x in row.values())
    for ours, theirs in zip((0, 2, 3), range(3), strict=True):
        assert watcher.ends[ours] == without.ends[theirs]
        assert watcher.rows[ours] == without.rows[theirs]
        assert watcher.probes[ours] == without.probes[theirs]
    assert loop.alive == [0, 2, 3]
    assert len(loop.stack) == 3


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """What was to be compiled, which runs as it was traced."""
    graphs: list[object] = []
    monkeypatch.setattr(torch, "compile", lambda graph, **_: graphs.append(graph) or graph)
    monkeypatch.setattr(step, "COMPILED", {})
    return graphs


@pytest.mark.parametrize("norm", ["none", "weight_norm_mean_only_bn", "batch_norm"])
def test_where_steps_are_compiled_a_diverged_member_trains_along_and_touches_no_other(
    norm: str, traced: list[object]
) -> None:
    """To the last bit the others are those beside a member that behaves; nothing is compiled again."""
    good = [at_rate(lr, norm=norm, seed=i, epochs=12, compile=True) for i, lr in enumerate((0.05, 0.01))]
    mild, bad = (at_rate(lr, norm=norm, seed=1, epochs=12, compile=True) for lr in (0.02, 1e60))
    beside, seen = train(good[0], mild, good[1])
    loop, watcher = train(good[0], bad, good[1])
    assert watcher.ends[1][0] == "diverged"
    last = watcher.rows[1][-1]["epoch"]
    assert last < 12
    assert watcher.ends[1][1] == {"epoch": last, "step": watcher.rows[1][-1]["step"]}
    assert not all(torch.isfinite(p[1]).all() for p in loop.stack.params.values())  # it is still there
    for i in (0, 2):
        assert watcher.ends[i] == seen.ends[i]
        assert watcher.rows[i] == seen.rows[i]
        assert watcher.probes[i] == seen.probes[i]
        assert all(torch.equal(p[i], beside.stack.params[k][i]) for k, p in loop.stack.params.items())
    assert len(traced) == 1
    eager = [one.model_copy(update={"trainer": plain(one)}) for one in (good[0], bad, good[1])]
    assert train(*eager)[1].ends[1] == watcher.ends[1]


def plain(one: Config) -> Settings:
    return one.trainer.model_copy(update={"compile": False})


@pytest.mark.parametrize("compiled", [True, False])
def test_a_stack_with_a_member_that_trains_along_resumes(traced: list[object], compiled: bool) -> None:
    """Compiled again, or as it is: then the member is dropped."""
    configs = [at_rate(lr, seed=i, epochs=24, compile=True) for i, lr in enumerate((0.05, 1e60, 0.1))]
    whole, watched = train(*configs)
    state = watched.states[0]
    assert (state["alive"], state["diverged"]) == ([0, 1, 2], [1])
    configs = [c if compiled else c.model_copy(update={"trainer": plain(c)}) for c in configs]
    again = Watcher()
    resumed = Trainer(configs, dataset(), CPU, again)
    resumed.restore(copy.deepcopy(state))
    resumed.run()
    assert again.rows.keys() == {0, 2}
    assert resumed.alive == ([0, 1, 2] if compiled else [0, 2])
    if compiled:
        assert again.ends == {i: watched.ends[i] for i in (0, 2)}
        ours, theirs = resumed.stack.params, whole.stack.params
        assert all(torch.equal(ours[k][i], theirs[k][i]) for k in theirs for i in (0, 2))
    else:
        assert again.ends[0][1] == pytest.approx(watched.ends[0][1])


def test_a_compiled_stack_ends_when_all_have_diverged(traced: list[object]) -> None:
    members = [at_rate(lr, norm="none", epochs=50, compile=True) for lr in (1e6, 1e7)]
    loop, watcher = train(*members)
    assert {status for status, _ in watcher.ends.values()} == {"diverged"}
    assert not loop.alive
    assert loop.step < loop.total


def test_networks_that_are_given_share_no_compiled_step(traced: list[object]) -> None:
    """Nothing tells that two of them with the same shapes are the same function."""
    one, on = config(epochs=1, compile=True), dataset()
    for count in (1, 2):
        network = build(one.model, one.norm, on.shape, on.classes, one.seed)
        Trainer([one], on, CPU, Watcher(), [network]).run()
        assert len(traced) == count
    train(one)
    train(one.model_copy(update={"seed": 1}))
    assert len(traced) == 3


@pytest.mark.parametrize("norm", ["none", "weight_norm"])
def test_when_all_diverge_training_stops(norm: str) -> None:
    members = [at_rate(lr, norm=norm, epochs=50) for lr in (1e6, 1e7)]
    loop, watcher = train(*members)
    assert {status for status, _ in watcher.ends.values()} == {"diverged"}
    assert watcher.ends.keys() == {0, 1}
    assert loop.step < loop.total
    assert watcher.rows[0][0]["valid_loss"] < 10  # the row of the start is kept


def test_divergence_in_the_last_step_shows_without_a_validation_split(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The training loss is of before the update, so the test loss is the first to tell."""
    on = dataset(valid=0)
    loop, watcher = Trainer([config(), config(seed=1)], on, CPU, (watch := Watcher())), watch

    def step(batch: Tensor, original: Any = loop.update) -> Tensor:
        found: Tensor = original(batch)
        if loop.step == loop.total:
            next(iter(loop.stack.params.values())).data[0] = math.nan
        return found

    monkeypatch.setattr(loop, "update", step)
    loop.run()
    assert watcher.ends[0] == ("diverged", {"epoch": 4, "step": 16})
    assert watcher.ends[1][0] == "finished"
