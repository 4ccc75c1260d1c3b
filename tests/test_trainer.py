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

from wn import data
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


def test_the_average_is_of_every_step_and_of_running_statistics_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of weight d^(T - t) after step t, with d = 1 - 1 / steps of ``ema_epochs``."""
    optim = RULES["sgd"].model_copy(update={"ema_epochs": 1.5})
    loop, seen = Trainer([config("batch_norm", optim=optim, epochs=2)], dataset(), CPU, Watcher()), []
    update = loop.update

    def kept(batch: Tensor) -> None:
        update(batch)
        seen.append({k: t.detach().clone() for k, t in (loop.stack.params | loop.stack.buffers).items()})

    monkeypatch.setattr(loop, "update", kept)
    loop.run()
    decay = 1 - 1 / (1.5 * loop.steps_per_epoch)
    weights = [decay ** (len(seen) - 1 - t) for t in range(len(seen))]
    average = loop._averaged_stack()
    tensors = average.params | {k: b for k, b in average.buffers.items() if "running_" in k}
    assert sum("running_" in name for name in tensors) == 4
    for name, tensor in tensors.items():
        expected = sum(w * step[name] for w, step in zip(weights, seen, strict=True)) / sum(weights)
        torch.testing.assert_close(tensor, expected)
