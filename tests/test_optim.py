"""Update rules against torch.optim, against the authors' code, and the schedule against section 5.1."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from wn.config import OptimConfig
from wn.optim import EMA, Optimizer, scheduled

SHAPES = {"layer.v": (4, 3), "layer.g": (4,), "layer.bias": (), "conv.weight": (2, 3, 2, 2)}
KINDS = {"layer.v": "weight", "layer.g": "g", "layer.bias": "bias", "conv.weight": "weight"}
DECAYED = {name for name, kind in KINDS.items() if kind == "weight"}
STEPS = 20
RATES = [0.003, 0.1]

MEMBERS: dict[str, list[dict[str, Any]]] = {
    "sgd": [
        {"lr": 0.1},
        {"lr": 0.01, "momentum": 0.9},
        {"lr": 1.0, "momentum": 0.5, "weight_decay": 0.02},
        {"lr": 0.3, "weight_decay": 0.1},
    ],
    "adam": [
        {"lr": 0.1, "momentum": 0.9},
        {"lr": 0.003, "momentum": 0.5, "beta2": 0.9, "eps": 1e-3},
        {"lr": 1.0, "weight_decay": 0.1},
        {"lr": 0.02, "momentum": 0.99, "beta2": 0.99, "eps": 1e-12, "weight_decay": 0.01},
    ],
}
MEMBERS["adamax"] = MEMBERS["adam"]


def start(members: int, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    torch.manual_seed(0)
    return {name: torch.randn(members, *shape, dtype=dtype) for name, shape in SHAPES.items()}


def slopes(step: int, params: dict[str, Tensor]) -> dict[str, Tensor]:
    """Gradients of every size that change from step to step; some are zero."""
    torch.manual_seed(step)
    return {k: torch.randn_like(p) * 10.0 ** torch.randint(-6, 3, p.shape) for k, p in params.items()} | {
        "layer.g": torch.zeros_like(params["layer.g"])
    }


def torchs(config: OptimConfig, params: dict[str, Tensor]) -> torch.optim.Optimizer:
    """torch's own rule, with weight decay on the decayed parameters alone."""
    groups = [
        {"params": [p for k, p in params.items() if k in DECAYED], "weight_decay": config.weight_decay},
        {"params": [p for k, p in params.items() if k not in DECAYED], "weight_decay": 0.0},
    ]
    if config.name == "sgd":
        return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum)
    rule = torch.optim.Adam if config.name == "adam" else torch.optim.Adamax
    return rule(groups, lr=config.lr, betas=(config.momentum, config.beta2), eps=config.eps)


def step_all(
    ours: Optimizer,
    theirs: list[torch.optim.Optimizer],
    alone: list[dict[str, Tensor]],
    grads: dict[str, Tensor],
) -> None:
    """One step of the stack, and of every member alone under torch's rule, with the same gradients."""
    ours.step(grads)
    for i, (rule, own) in enumerate(zip(theirs, alone, strict=True)):
        for k, p in own.items():
            p.grad = grads[k][i].clone()
        rule.step()


@pytest.mark.parametrize("name", MEMBERS)
def test_each_member_moves_as_under_torch(name: str) -> None:
    configs = [OptimConfig(name=name, **member) for member in MEMBERS[name]]
    params = start(len(configs))
    alone = [{k: p[i].clone().requires_grad_() for k, p in params.items()} for i in range(len(configs))]
    ours = Optimizer(configs, params, KINDS)
    theirs = [torchs(config, own) for config, own in zip(configs, alone, strict=True)]
    for step in range(STEPS):
        grads = slopes(step, params)
        step_all(ours, theirs, alone, grads)
        for k, p in params.items():
            expected = torch.stack([own[k].detach() for own in alone])
            torch.testing.assert_close(p, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", MEMBERS)
def test_float32_follows_float64(name: str) -> None:
    configs = [OptimConfig(name=name, **member) for member in MEMBERS[name]]
    narrow = start(len(configs), torch.float32)
    wide = {k: p.double() for k, p in narrow.items()}
    rules = [Optimizer(configs, params, KINDS) for params in (narrow, wide)]
    for step in range(STEPS):
        grads = slopes(step, narrow)
        rules[0].step(grads)
        rules[1].step({k: g.double() for k, g in grads.items()})
    for k, p in narrow.items():
        torch.testing.assert_close(p.double(), wide[k], rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("name", MEMBERS)
def test_weight_decay_is_for_the_named_alone(name: str) -> None:
    configs = [OptimConfig(name=name, lr=0.1, weight_decay=decay) for decay in (0.0, 0.5)]
    params = start(2)
    for p in params.values():
        p[1] = p[0]
    before = {k: p.clone() for k, p in params.items()}
    rule = Optimizer(configs, params, KINDS)
    rule.step({k: torch.zeros_like(p) for k, p in params.items()})
    for k, p in params.items():
        assert torch.equal(p[0], before[k][0])
        assert torch.equal(p[1], before[k][1]) == (k not in DECAYED)
    assert bool((params["layer.v"][1].abs() < before["layer.v"][1].abs()).all())


def authors_adam(p: np.ndarray, grads: list[np.ndarray], lr: float, betas: list[float]) -> np.ndarray:
    """The released code's update, one beta1 a step: eps inside the root, corrected with the present beta1."""
    m, v = np.zeros_like(p), np.zeros_like(p)
    for t, (grad, beta1) in enumerate(zip(grads, betas, strict=True), start=1):
        m = beta1 * m + (1 - beta1) * grad
        v = 0.999 * v + (1 - 0.999) * grad**2
        m_hat, v_hat = m / (1 - beta1**t), v / (1 - 0.999**t)
        p = p - lr * m_hat / np.sqrt(v_hat + 1e-8)
    return p


def test_epsilon_inside_the_root_is_the_authors_adam() -> None:
    options = {"eps_inside_root": True, "schedule": "constant_then_linear", "late_momentum": 0.5}
    configs = [OptimConfig(name="adam", lr=lr, momentum=0.9, **options) for lr in RATES]
    params = start(2)
    before = {k: p.numpy().copy() for k, p in params.items()}
    rule = Optimizer(configs, params, {})
    grads: dict[str, list[np.ndarray]] = {k: [] for k in params}
    for step in range(STEPS):
        rule.set_epoch(step // 5, epochs=4)  # two epochs of momentum 0.9, two of 0.5
        rule.hyper["lr"].copy_(torch.tensor(RATES, dtype=torch.float64))  # its schedule has tests of its own
        grad = {k: g * 1e-4 for k, g in slopes(step, params).items()}
        rule.step(grad)
        for k, g in grad.items():
            grads[k].append(g.numpy())
    betas = [0.9] * 10 + [0.5] * 10
    for k, p in params.items():
        for member, lr in enumerate(RATES):
            expected = authors_adam(before[k][member], [g[member] for g in grads[k]], lr, betas)
            np.testing.assert_allclose(p[member], expected, rtol=1e-12, atol=1e-12)


def test_epsilon_inside_the_root_is_a_floor_under_the_gradient() -> None:
    """With a gradient of 1e-6 torch's Adam steps by lr; the authors' by a hundredth, 1e-6 / 1e-4."""
    moved = {}
    for inside in (False, True):
        params = {"p": torch.zeros(1, 1, dtype=torch.float64)}
        rule = Optimizer([OptimConfig(name="adam", lr=1.0, eps_inside_root=inside)], params, {})
        rule.step({"p": torch.full((1, 1), 1e-6, dtype=torch.float64)})
        moved[inside] = -params["p"].item()
    assert moved[False] == pytest.approx(1 / 1.01)
    assert moved[True] == pytest.approx(0.01, rel=1e-4)


# Schedules


def test_the_papers_schedule_over_two_hundred_epochs() -> None:
    config = OptimConfig(
        name="adam", lr=0.003, momentum=0.9, schedule="constant_then_linear", late_momentum=0.5
    )
    for epoch in range(200):
        factor, momentum = scheduled(config, epoch, 200)
        assert factor == pytest.approx(min(2 - epoch / 100, 1), rel=1e-12)
        assert momentum == (0.9 if epoch < 100 else 0.5)
    assert scheduled(config, 199, 200)[0] == pytest.approx(0.01)


@pytest.mark.parametrize("epochs", [1, 2, 3, 10])
@pytest.mark.parametrize("decay_from", [0.0, 0.5, 0.9, 0.99])
def test_every_epoch_learns_and_none_faster_than_the_one_before(epochs: int, decay_from: float) -> None:
    config = OptimConfig(lr=1.0, schedule="constant_then_linear", decay_from=decay_from)
    rates = [scheduled(config, epoch, epochs)[0] for epoch in range(epochs)]
    assert rates[0] == 1.0
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] >= 1 / epochs - 1e-12


def test_a_constant_schedule_ignores_the_late_settings() -> None:
    config = OptimConfig(lr=0.2, momentum=0.9, decay_from=0.1, late_momentum=0.5)
    assert {scheduled(config, epoch, 10) for epoch in range(10)} == {(1.0, 0.9)}


def test_late_momentum_of_none_keeps_the_momentum() -> None:
    config = OptimConfig(lr=0.2, momentum=0.9, schedule="constant_then_linear")
    assert [scheduled(config, epoch, 4)[1] for epoch in range(4)] == [0.9] * 4


def test_an_epoch_sets_each_members_own_numbers_on_the_device() -> None:
    configs = [
        OptimConfig(lr=lr, momentum=0.9, schedule="constant_then_linear", late_momentum=late)
        for lr, late in ((0.1, None), (0.3, 0.5))
    ]
    rule = Optimizer(configs, start(2), {})
    hyper = rule.hyper["lr"]
    rule.set_epoch(3, epochs=4)
    assert rule.lr == [0.05, 0.15]
    assert rule.hyper["lr"] is hyper
    assert hyper.tolist() == [0.05, 0.15]  # in double precision, digit for digit
    assert rule.hyper["momentum"].tolist() == [0.9, 0.5]
    rule.set_epoch(0, epochs=4)
    assert rule.lr == hyper.tolist() == [0.1, 0.3]
    assert rule.hyper["momentum"].tolist() == [0.9, 0.9]


# Learning rates of gains and biases


@pytest.mark.parametrize("name", MEMBERS)
def test_each_kind_of_parameter_moves_at_its_own_rate(name: Any) -> None:
    """As under one torch optimiser with a group per kind; None equals lr, members may differ."""
    rates = [(0.1, None, None), (0.1, 0.02, None), (0.03, None, 0.2), (0.1, 0.5, 0.004)]
    configs = [
        OptimConfig(name=name, lr=lr, lr_gain=gain, lr_bias=bias, momentum=0.5, eps=1e-3)
        for lr, gain, bias in rates
    ]
    params = start(len(configs))
    alone = [{k: p[i].clone().requires_grad_() for k, p in params.items()} for i in range(len(configs))]
    ours = Optimizer(configs, params, KINDS)
    kind = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamax": torch.optim.Adamax}[name]
    options: dict[str, Any] = {"momentum": 0.5} if name == "sgd" else {"betas": (0.5, 0.999), "eps": 1e-3}
    theirs = []
    for own, (lr, gain, bias) in zip(alone, rates, strict=True):
        of_kind = {"weight": lr, "g": gain or lr, "bias": bias or lr}
        groups = [{"params": [p], "lr": of_kind[KINDS[k]]} for k, p in own.items()]
        theirs.append(kind(groups, **options))
    for _ in range(STEPS):
        grads = {k: torch.randn_like(p) for k, p in params.items()}
        step_all(ours, theirs, alone, grads)
    for k, p in params.items():
        expected = torch.stack([own[k].detach() for own in alone])
        torch.testing.assert_close(p, expected, rtol=1e-12, atol=1e-12)
    assert bool((params["layer.g"][1] != params["layer.g"][0]).all())


def test_the_schedule_scales_the_rates_of_all_kinds() -> None:
    options = {"schedule": "constant_then_linear", "momentum": 0.9}
    configs = [OptimConfig(lr=0.1, lr_gain=gain, lr_bias=0.4, **options) for gain in (None, 0.02)]
    rule = Optimizer(configs, start(2), KINDS)
    rule.set_epoch(3, epochs=4)
    assert rule.lr == [0.05, 0.05]
    assert rule.hyper["lr_gain"].tolist() == [0.05, 0.01]
    assert rule.hyper["lr_bias"].tolist() == [0.2, 0.2]
    assert rule.hyper["momentum"].tolist() == [0.9, 0.9]


def test_caps_bound_the_rates_of_gains_and_biases_alone() -> None:
    """min(lr, c): no rate below the cap is changed, and the schedule scales the cap too."""
    configs = [OptimConfig(lr=lr, lr_gain_cap=0.1, lr_bias_cap=0.3) for lr in (0.01, 0.2, 10.0)]
    configs.append(OptimConfig(lr=10.0, lr_gain=0.05, lr_gain_cap=0.1, lr_bias=2.0, lr_bias_cap=0.3))
    rule = Optimizer(configs, start(4), KINDS)
    assert rule.rates["lr"] == [0.01, 0.2, 10.0, 10.0]
    assert rule.rates["lr_gain"] == [0.01, 0.1, 0.1, 0.05]
    assert rule.rates["lr_bias"] == [0.01, 0.2, 0.3, 0.3]
    decaying = OptimConfig(lr=10.0, lr_gain_cap=0.1, schedule="constant_then_linear", decay_from=0)
    rule = Optimizer([decaying], start(1), KINDS)
    rule.set_epoch(2, epochs=4)
    assert rule.hyper["lr_gain"].tolist() == [0.05]


# The EMA


@pytest.mark.parametrize("decay", [0.0, 0.9, 0.999])
def test_an_average_is_the_weighted_mean_of_what_came_after_steps(decay: float) -> None:
    tensors = start(2)
    average = EMA(tensors, decay)
    assert average.values() == {}
    weighted, weights = {name: torch.zeros_like(t) for name, t in tensors.items()}, 0.0
    for _ in range(STEPS):
        for name, tensor in tensors.items():
            tensor.add_(torch.randn_like(tensor))
            weighted[name] = decay * weighted[name] + tensor
        weights = decay * weights + 1
        average.step({**tensors, "another": torch.ones(3)})
    found = average.values()
    assert found.keys() == tensors.keys()
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, weighted[name] / weights)


def test_an_average_of_what_stands_still_stands_still() -> None:
    tensors = start(1)
    average = EMA(tensors, 0.99)
    average.step(tensors)
    average.step(tensors)
    for name, tensor in average.values().items():
        torch.testing.assert_close(tensor, tensors[name])
