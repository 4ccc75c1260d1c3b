"""The training loop, against a loop written out by hand."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from trainer_cases import (
    CPU,
    NORMS,
    RULES,
    SIZE,
    Watcher,
    at_rate,
    config,
    dataset,
    load,
    member_of,
    train,
)

from wn import data, step
from wn.config import Config, DataConfig, MLPConfig, OptimConfig, UserError
from wn.config import TrainerConfig as Settings
from wn.data import Dataset, permutation
from wn.models import build
from wn.norm import data_dependent_init, normalized_layers, project_
from wn.resources import pick_device
from wn.stack import Stack
from wn.trainer import Trainer

# The whole loop, written out with torch's own optimisers on the module itself


def by_hand(config: Config, on: Dataset) -> tuple[list[dict[str, float]], nn.Module]:
    model = build(config.model, config.norm, on.shape, on.classes, config.seed).double()
    if config.norm.init == "data":
        first = permutation(config.seed, 0, SIZE)[: config.trainer.init_batch_size]
        data_dependent_init(model, on.train.x[first])
    groups = [
        {"params": [p for n, p in model.named_parameters() if n.endswith((".v", ".weight"))]},
        {
            "params": [p for n, p in model.named_parameters() if n.endswith((".g", ".s", ".alpha", ".bias"))],
            "weight_decay": 0,
        },
    ]
    o = config.optim
    if o.name == "sgd":
        rule: Any = torch.optim.SGD(groups, lr=o.lr, momentum=o.momentum, weight_decay=o.weight_decay)
    else:
        kind = {"adam": torch.optim.Adam, "adamax": torch.optim.Adamax}[o.name]
        rule = kind(groups, lr=o.lr, betas=(o.momentum, o.beta2), eps=o.eps)

    def evaluate() -> dict[str, float]:
        model.eval()
        logits = model(on.valid.x)
        wrong = (logits.argmax(1) != on.valid.y).double().mean().item()
        return {"valid_loss": F.cross_entropy(logits, on.valid.y).item(), "valid_error": wrong}

    rows = [evaluate()]
    for epoch in range(1, config.trainer.epochs + 1):
        model.train()
        for name, buffer in model.named_buffers():
            if name.endswith(".progress"):
                buffer.fill_((epoch - 1) / config.trainer.epochs)
        losses, errors = [], []
        order = permutation(config.seed, epoch, SIZE)
        for batch in order[: SIZE // config.trainer.batch_size * config.trainer.batch_size].split(
            config.trainer.batch_size
        ):
            logits = model(on.train.x[batch])
            loss = F.cross_entropy(logits, on.train.y[batch])
            losses.append(loss.item())
            errors.append((logits.argmax(1) != on.train.y[batch]).double().mean().item())
            rule.zero_grad()
            loss.backward()
            rule.step()
            project_(model)
        train = {"train_loss": sum(losses) / len(losses), "train_error": sum(errors) / len(errors)}
        rows.append({"lr": o.lr, **train, **evaluate()})
    return rows, model


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("rule", RULES)
def test_a_run_is_the_loop_by_hand(norm: str, rule: str) -> None:
    one, on = config(norm, seed=3, optim=RULES[rule]), dataset()
    loop, watcher = train(one, on=on)
    expected, model = by_hand(one, on)
    steps = SIZE // 10
    assert [(row.pop("epoch"), row.pop("step")) for row in watcher.rows[0]] == [
        (epoch, epoch * steps) for epoch in range(5)
    ]
    assert watcher.rows[0] == [pytest.approx(row, rel=1e-8, abs=1e-12) for row in expected]
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(member_of(loop, 0)[name], tensor, rtol=1e-8, atol=1e-10)
    loss = F.cross_entropy(model(on.test.x), on.test.y).item()
    error = (model(on.test.x).argmax(1) != on.test.y).double().mean().item()
    assert watcher.ends == {0: ("finished", {"test_loss": pytest.approx(loss), "test_error": error})}
    assert watcher.steps == [(i + 1, 4 * steps) for i in range(4 * steps)]


@pytest.mark.parametrize("norm", NORMS)
def test_members_of_a_stack_are_the_runs_alone(norm: str) -> None:
    """Members with seeds, learning rates, noise and dropout of their own, and two that share a seed."""
    members = [
        at_rate(lr, norm=norm, seed=seed, model=MLPConfig(widths=(8,), noise=noise, dropout=dropout))
        for lr, seed, noise, dropout in ((0.05, 0, 0.1, 0.2), (0.01, 1, 0.3, 0.5), (0.2, 1, 0.1, 0.3))
    ]
    loop, together = train(*members)
    for i, one in enumerate(members):
        own, alone = train(one)
        for row, expected in zip(together.rows[i], alone.rows[0], strict=True):
            assert row == pytest.approx(expected, rel=1e-9, abs=1e-12)
        for row, expected in zip(together.probes[i], alone.probes[0], strict=True):
            assert row.pop("layer") == expected.pop("layer")
            assert row == pytest.approx(expected, rel=1e-7)
        assert together.ends[i] == ("finished", pytest.approx(alone.ends[0][1], rel=1e-9))
        for name, tensor in member_of(own, 0).items():
            torch.testing.assert_close(member_of(loop, i)[name], tensor, rtol=1e-8, atol=1e-10)


def test_the_schedule_reaches_the_updates_and_the_rows() -> None:
    optim = OptimConfig(lr=0.1, schedule="constant_then_linear", decay_from=0.5)
    loop, watcher = train(config(optim=optim))
    assert "lr" not in watcher.rows[0][0]
    assert [row["lr"] for row in watcher.rows[0][1:]] == [0.1, 0.1, 0.1, 0.05]
    assert loop.optimizer.hyper["lr"].tolist() == [0.05]
    _, constant = train(config(optim=OptimConfig(lr=0.1)))
    assert watcher.rows[0][3] == constant.rows[0][3]
    assert watcher.rows[0][4]["valid_loss"] != constant.rows[0][4]["valid_loss"]


def test_networks_that_are_given_take_the_place_of_the_configurations_own() -> None:
    small, on, watcher = config(seed=3, model=MLPConfig(widths=(5,), noise=0.1)), dataset(), Watcher()
    network = build(small.model, small.norm, on.shape, on.classes, small.seed)
    Trainer([config(seed=3)], on, CPU, watcher, [network]).run()
    _, expected = train(small, on=on)
    assert (watcher.rows, watcher.ends) == (expected.rows, expected.ends)


# Learning something real


@pytest.mark.parametrize("norm", ["none", "batch_norm", "weight_norm_init"])
def test_learns_the_digits(norm: str) -> None:
    settings = Settings(epochs=5, device="cpu")
    one = Config(
        model=MLPConfig(widths=(64,)),
        norm=NORMS[norm],
        optim=OptimConfig(lr=0.1, momentum=0.9),
        trainer=settings,
    )
    _, watcher = train(one, on=data.load(DataConfig()))
    rows = watcher.rows[0]
    assert rows[0]["epoch"] == rows[0]["step"] == 0
    assert rows[0]["valid_error"] > 0.6
    assert math.log(10) < rows[0]["valid_loss"] < 5
    assert rows[-1]["train_error"] < 0.05
    assert rows[-1]["valid_error"] < 0.08
    assert watcher.ends[0][0] == "finished"
    assert watcher.ends[0][1]["test_error"] < 0.08


def test_bfloat16_is_autocast_over_float32() -> None:
    on = dataset(torch.float32)
    loop, narrow = train(config(precision="bfloat16"), on=on)
    _, wide = train(config(precision="float32"), on=on)
    assert {t.dtype for t in loop.stack.params.values()} == {torch.float32}
    final, exact = narrow.rows[0][-1]["valid_loss"], wide.rows[0][-1]["valid_loss"]
    assert final != exact
    assert final == pytest.approx(exact, rel=0.05, abs=0.02)


# Data-dependent initialisation


@pytest.mark.parametrize("norm", ["weight_norm_init", "none_init"])
def test_pre_activations_start_with_unit_variance(norm: str) -> None:
    one, on = config(norm, seed=2, model=MLPConfig(widths=(8, 6))), dataset()
    loop = Trainer([one], on, CPU, Watcher())
    loop._initialize()
    seen: list[Tensor] = []
    model = load(loop, 0, one, on)
    for layer in normalized_layers(model).values():
        layer.register_forward_hook(lambda _, inputs, y: seen.append(y.detach()))
    model(on.train.x[permutation(2, 0, SIZE)[:20]])
    assert len(seen) == 3
    for y in seen:
        torch.testing.assert_close(y.mean(0), torch.zeros_like(y[0]), rtol=0, atol=1e-9)
        torch.testing.assert_close(y.std(0, correction=0), torch.ones_like(y[0]), rtol=1e-9, atol=0)


def test_more_images_to_initialise_with_than_there_are_means_all() -> None:
    few, all_ = (train(config("weight_norm_init", init_batch_size=size))[1] for size in (500, SIZE))
    assert few.rows == all_.rows


def test_initialisation_happens_once_and_not_upon_resumption(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[torch.Size] = []

    def initialize(stack: Stack, x: Tensor, original: Any = Stack.initialize) -> None:
        sizes.append(x.shape)
        original(stack, x)

    monkeypatch.setattr(Stack, "initialize", initialize)
    one = config("weight_norm_init", checkpoint_every=1)
    _, watcher = train(one)
    assert sizes == [(1, 20, 1, 3, 4)]
    resumed = Trainer([one], dataset(), CPU, Watcher())
    resumed.restore(copy.deepcopy(watcher.states[0]))
    resumed.run()
    assert len(sizes) == 1
    train(config("weight_norm"))
    assert len(sizes) == 1


# Divergence


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


# Errors of the user


def test_a_batch_larger_than_the_data_is_the_users_error() -> None:
    with pytest.raises(
        UserError, match=r"^trainer\.batch_size=46: larger than the 45 training images; give less$"
    ):
        Trainer([config(batch_size=46)], dataset(), CPU, Watcher())
    loop, _ = train(config(batch_size=45))
    assert loop.total == 4


@pytest.mark.parametrize("name", ["nonsense", "cuda:99", "meta:x"])
def test_a_device_that_is_not_here_is_the_users_error(name: str) -> None:
    with pytest.raises(UserError, match=f"^trainer.device={name}: .*trainer.device=auto"):
        pick_device(name)


def test_auto_takes_a_device_that_works() -> None:
    assert torch.ones(2, device=pick_device("auto")).sum().item() == 2
    assert pick_device("cpu") == CPU
