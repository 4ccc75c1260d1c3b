"""Stacks: members trained together are the same runs trained alone, step by step."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from wn.config import OptimConfig
from wn.grammar import DEFAULTS
from wn.metrics import classification
from wn.models.noise import Dropout, GaussianNoise
from wn.norm import data_dependent_init, normalize, normalized_layers
from wn.optim import Optimizer
from wn.presets import PRESETS
from wn.stack import Stack

CHOICES = {name: {**DEFAULTS, **preset} for name, preset in PRESETS.items()}
RULES: dict[str, dict[str, Any]] = {
    "sgd": {"name": "sgd", "momentum": 0.5, "lr": 0.01},
    "adam": {"name": "adam", "momentum": 0.9, "lr": 0.003},
    "adam_eps_inside": {"name": "adam", "momentum": 0.9, "lr": 0.003, "eps_inside_root": True},
    "adamax": {"name": "adamax", "momentum": 0.9, "lr": 0.003},
}
FACTORS = (1.0, 0.3, 2.0)
"""What the members' learning rates are multiples of."""

TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-8}
SHAPE, CLASSES, BATCH, STEPS = (2, 8, 8), 4, 20, 50


def mlp() -> nn.Module:
    return nn.Sequential(
        nn.Flatten(),
        GaussianNoise(0.2),
        nn.Linear(128, 16),
        nn.ReLU(),
        Dropout(0.3),
        nn.Linear(16, CLASSES),
    )


def convnet() -> nn.Module:
    """In small what section 5.1 trains: 3x3, valid and 1x1 convolutions, pooling, noise, dropout."""
    return nn.Sequential(
        GaussianNoise(0.15),
        nn.Conv2d(2, 6, 3, padding=1),
        nn.LeakyReLU(0.1),
        nn.MaxPool2d(2),
        Dropout(0.3),
        nn.Conv2d(6, 8, 3),
        nn.LeakyReLU(0.1),
        nn.Conv2d(8, 8, 1),
        nn.Tanh(),  # bends everywhere: the next layer's mean takes none of this layer's bias out again
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, CLASSES),
    )


NETS: dict[str, Callable[[], nn.Module]] = {"mlp": mlp, "convnet": convnet}


def member(net: str, norm: str, dtype: torch.dtype, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return normalize(NETS[net](), **CHOICES[norm]).to(dtype)


def batches(dtype: torch.dtype, seed: int) -> tuple[Tensor, Tensor]:
    """A member's inputs and labels, a batch a step; the labels can be learnt."""
    torch.manual_seed(100 + seed)
    x = torch.randn(STEPS, BATCH, *SHAPE, dtype=dtype)
    return x, (x[:, :, 0, 1, 1] > 0).long() + 2 * (x[:, :, 1, 4, 4] > 0)


def train(models: list[nn.Module], configs: list[OptimConfig], x: Tensor, y: Tensor) -> tuple[Tensor, Stack]:
    """Losses ``[steps, members]`` and the stack in the end."""
    stack = Stack(models)
    stack.initialize(x[:, 0])
    kinds = {name: "weight" for name in stack.params if name.endswith(("weight", "v"))}
    rule = Optimizer(configs, stack.params, kinds)
    losses = []
    for step in range(STEPS):
        loss = classification(stack(x[:, step]), y[:, step])[0].mean(1)
        grads = torch.autograd.grad(loss.sum(), list(stack.params.values()))
        rule.step(dict(zip(stack.params, grads, strict=True)))
        losses.append(loss.detach())
    return torch.stack(losses), stack


EVERY = list(itertools.product(NETS, CHOICES, RULES, TOLERANCE))
FAST = [
    ("mlp", norm, list(RULES)[i % len(RULES)], torch.float64)  # each norm and rule, not each combination
    for i, norm in enumerate(CHOICES)
]
FAST += [
    ("mlp", "weight_norm_init", "adam", torch.float32),
    ("mlp", "batch_norm", "sgd", torch.float32),
    ("convnet", "none_init", "sgd", torch.float64),
    ("convnet", "batch_norm", "adamax", torch.float64),
    ("convnet", "weight_norm_init", "adam", torch.float64),
    ("convnet", "weight_norm_mean_only_bn", "adam_eps_inside", torch.float32),
]


def case(values: tuple[str, str, str, torch.dtype]) -> Any:
    net, norm, rule, dtype = values
    name = f"{net}-{norm}-{rule}-{str(dtype).removeprefix('torch.')}"
    return pytest.param(*values, id=name, marks=[] if values in FAST else pytest.mark.slow)


@pytest.mark.parametrize(("net", "norm", "rule", "dtype"), [case(values) for values in EVERY])
def test_members_are_the_runs_alone(net: str, norm: str, rule: str, dtype: torch.dtype) -> None:
    configs = [
        OptimConfig(**RULES[rule] | {"lr": RULES[rule]["lr"] * f}, weight_decay=1e-3 * f) for f in FACTORS
    ]
    seeds = range(len(FACTORS))
    x, y = (torch.stack(tensors) for tensors in zip(*(batches(dtype, s) for s in seeds), strict=True))
    losses, together = train([member(net, norm, dtype, s) for s in seeds], configs, x, y)
    assert losses[-20:].mean() < losses[:20].mean()  # it trains, so there is something to agree on
    for i in seeds:
        alone, stack = train([member(net, norm, dtype, i)], configs[i : i + 1], x[i : i + 1], y[i : i + 1])
        torch.testing.assert_close(losses[:, i], alone[:, 0], rtol=TOLERANCE[dtype], atol=0)
        for name, tensor in {**stack.params, **stack.buffers}.items():
            ours = together.params[name] if name in stack.params else together.buffers[name]
            if name.endswith(("key", "strength", "initialized")):
                assert torch.equal(ours[i], tensor[0])
            elif dtype == torch.float64:
                # In float32 Adam makes whole steps of gradients that are nothing but rounding: of a bias
                # that the next layer's mean takes out again.
                torch.testing.assert_close(ours[i], tensor[0], rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("norm", CHOICES)
def test_a_stack_of_one_is_the_module(net: str, norm: str) -> None:
    """Forward, gradients, buffers and evaluation against the plain module, without functional calls."""
    stack, model = Stack([member(net, norm, torch.float64, 0)]), member(net, norm, torch.float64, 0)
    x = batches(torch.float64, 0)[0]
    stack.initialize(x[None, 0])
    data_dependent_init(model, x[0])
    y, own = stack(x[None, 1]), model(x[1])
    assert torch.equal(y[0], own)
    slopes = torch.autograd.grad(y.square().sum(), list(stack.params.values()))
    own.square().sum().backward()
    for slope, parameter in zip(slopes, model.parameters(), strict=True):
        assert parameter.grad is not None
        torch.testing.assert_close(slope[0], parameter.grad, rtol=1e-12, atol=1e-12)
    for name, buffer in model.named_buffers():
        torch.testing.assert_close(stack.buffers[name][0], buffer, rtol=1e-12, atol=1e-12)
    assert torch.equal(stack.train(False)(x[None, 2])[0], model.eval()(x[2]))


def test_initialisation_gives_each_member_unit_outputs_on_its_batch() -> None:
    models = [member("convnet", "weight_norm_init", torch.float64, seed) for seed in range(3)]
    seen: list[Tensor] = []
    stack = Stack(models)
    x = torch.stack([batches(torch.float64, seed)[0][0] * (1 + seed) for seed in range(3)])
    keys = {k: b.clone() for k, b in stack.buffers.items() if k.endswith("key")}
    stack.initialize(x)
    assert bool(torch.stack([b for k, b in stack.buffers.items() if k.endswith("initialized")]).all())
    assert all(not torch.equal(stack.buffers[k], before) for k, before in keys.items())  # noise is on
    for name, before in keys.items():
        stack.buffers[name].copy_(before)  # the same noise again
    for layer in normalized_layers(stack.template).values():
        layer.register_forward_hook(lambda _, inputs, y: seen.append(y.detach()))
    for i in range(3):
        one = Stack(models[i : i + 1])
        one.template = stack.template
        one.params = {k: p[i : i + 1] for k, p in stack.params.items()}
        one.buffers = {k: b[i : i + 1].clone() for k, b in stack.buffers.items()}
        one(x[i : i + 1])
    assert len(seen) == 3 * 4
    for y in seen:
        rows = y.movedim(1, -1).reshape(-1, y.shape[1])
        torch.testing.assert_close(rows.mean(0), torch.zeros_like(rows[0]), rtol=0, atol=1e-9)
        torch.testing.assert_close(rows.std(0, correction=0), torch.ones_like(rows[0]), rtol=1e-9, atol=0)


def test_shared_input_meets_every_member() -> None:
    stack = Stack([member("mlp", "weight_norm", torch.float64, seed) for seed in range(3)]).train(False)
    x = batches(torch.float64, 0)[0][0]
    torch.testing.assert_close(stack(x, shared=True), stack(x.expand(3, *x.shape)))
    models = [member("mlp", "weight_norm", torch.float64, seed).eval() for seed in range(3)]
    torch.testing.assert_close(stack(x, shared=True), torch.stack([model(x) for model in models]))


def test_a_stack_leaves_its_models_alone() -> None:
    models = [member("mlp", "batch_norm", torch.float64, seed) for seed in range(2)]
    before = [{k: t.clone() for k, t in model.state_dict().items()} for model in models]
    stack = Stack(models)
    stack(torch.randn(2, BATCH, *SHAPE, dtype=torch.float64))
    with torch.no_grad():
        for p in stack.params.values():
            p.add_(1)
    for model, state in zip(models, before, strict=True):
        assert all(torch.equal(tensor, state[k]) for k, tensor in model.state_dict().items())


def test_frozen_parameters_stay() -> None:
    def half_frozen(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(3, 4).requires_grad_(False), nn.Linear(4, 2))
        return normalize(model, "weight_norm", hold="start")  # which puts back v after each step

    stack = Stack([half_frozen(seed) for seed in range(2)])
    optimizer = Optimizer([OptimConfig(weight_decay=0.1)] * 2, stack.params, stack.kinds)
    before = {k: t.detach().clone() for k, t in {**stack.params, **stack.buffers}.items()}
    loss = stack(torch.ones(2, 5, 3)).square().sum()
    grads = torch.autograd.grad(loss, list(stack.params.values()))
    optimizer.step(dict(zip(stack.params, grads, strict=True)))
    stack.project()
    after = {**stack.params, **stack.buffers}
    changed = {name for name, tensor in before.items() if not torch.equal(tensor, after[name])}
    assert changed == {"1.v", "1.g", "1.bias"}


@pytest.mark.parametrize("kept", [[0, 2], [1]])
def test_selected_members_go_on_as_they_were(kept: list[int]) -> None:
    stack = Stack([member("mlp", "batch_norm", torch.float64, seed) for seed in range(3)])
    x = torch.randn(3, BATCH, *SHAPE, dtype=torch.float64)
    stack(x)
    buffers = {k: b.clone() for k, b in stack.buffers.items()}
    expected = stack(x)[kept]
    stack.buffers = buffers
    stack.load(*({k: t.detach()[kept] for k, t in tree.items()} for tree in (stack.params, stack.buffers)))
    assert len(stack) == len(kept)
    torch.testing.assert_close(stack(x[kept]), expected)
    assert all(p.requires_grad and p.is_leaf for p in stack.params.values())


def test_map_stacks_whatever_a_function_returns() -> None:
    def norms(model: nn.Module, x: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        return {k: (layer.raw_weight.norm(), x.sum()) for k, layer in normalized_layers(model).items()}

    for size in (1, 3):
        models = [member("mlp", "none", torch.float64, seed) for seed in range(size)]
        x = torch.arange(2.0 * size).view(size, 2)
        found = Stack(models).map(norms, x)
        for name, (norm, total) in found.items():
            expected = [normalized_layers(model)[name].raw_weight.norm() for model in models]
            torch.testing.assert_close(norm, torch.stack(expected))
            assert torch.equal(total, x.sum(1))
