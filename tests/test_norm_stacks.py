"""Stacks: M members in one vmap are, member by member, the members alone."""

from __future__ import annotations

import norm_cases as cases
import pytest
import torch
from norm_cases import every_case, make
from torch import Tensor
from torch.func import functional_call, stack_module_state, vmap

from wn.norm import NormalizedLayer, data_dependent_init, initializing

MEMBERS = 3
State = dict[str, Tensor]


def members(norm: str, name: str, dtype: torch.dtype) -> list[cases.Case]:
    return [make(norm, name, dtype, seed=seed) for seed in range(MEMBERS)]


def stacked(alone: list[cases.Case]) -> tuple[State, State, Tensor]:
    """Parameters, buffers and inputs along a leading axis, as tensors of their own."""
    parameters, buffers = stack_module_state([case.layer for case in alone])
    return parameters, buffers, torch.stack([case.x for case in alone])


def forward(template: NormalizedLayer, parameters: State, buffers: State, x: Tensor) -> Tensor:
    def call(p: State, b: State, one: Tensor) -> Tensor:
        y: Tensor = functional_call(template, (p, b), (one,))
        return y

    return vmap(call)(parameters, buffers, x)


def assert_members(stack: State, alone: list[State], tolerance: dict[str, float]) -> None:
    for key, tensor in stack.items():
        expected = torch.stack([member[key] for member in alone])
        torch.testing.assert_close(tensor, expected, **tolerance)


@every_case()
def test_members_are_as_if_alone(norm: str, name: str, dtype: torch.dtype) -> None:
    for training in cases.modes(norm):
        check_members(norm, name, dtype, training)


def check_members(norm: str, name: str, dtype: torch.dtype, training: bool) -> None:
    alone = members(norm, name, dtype)
    parameters, buffers, x = stacked(alone)
    template = make(norm, name, dtype, seed=99).layer.train(training)
    y = forward(template, parameters, buffers, x)
    y.pow(3).sum().backward()  # a sum of squares is constant under batch statistics
    tolerance = alone[0].tolerance
    for case, output in zip(alone, y, strict=True):
        own = case.layer.train(training)(case.x)
        torch.testing.assert_close(output, own, **tolerance)
        own.pow(3).sum().backward()
    slopes = {key: p.grad for key, p in parameters.items() if p.grad is not None}
    assert slopes.keys() == parameters.keys()
    ours = [{k: p.grad for k, p in c.layer.named_parameters() if p.grad is not None} for c in alone]
    size = max(float(s.abs().max()) for s in slopes.values())
    assert_members(slopes, ours, {"rtol": 10 * tolerance["rtol"], "atol": size * tolerance["atol"]})
    assert_members(buffers, [dict(case.layer.named_buffers()) for case in alone], tolerance)


@every_case(cases.having(init="data"))
def test_members_are_initialised_as_if_alone(norm: str, name: str, dtype: torch.dtype) -> None:
    alone = members(norm, name, dtype)
    parameters, buffers, x = stacked(alone)
    template = make(norm, name, dtype, seed=99).layer
    with torch.no_grad(), initializing(template):
        y = forward(template, parameters, buffers, x)
    own = torch.stack([data_dependent_init(case.layer, case.x) for case in alone])
    torch.testing.assert_close(y, own, **alone[0].tolerance)
    assert_members(parameters, [dict(c.layer.named_parameters()) for c in alone], alone[0].tolerance)
    assert_members(buffers, [dict(c.layer.named_buffers()) for c in alone], alone[0].tolerance)
    assert bool(buffers["initialized"].all())
    assert not bool(template.initialized)


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("name", ["linear-sequence", "conv1d", "transposed2d"])
@pytest.mark.parametrize("norm", ["batch_norm", "mean_only_bn"])
def test_a_bfloat16_stack_has_products_in_it_and_statistics_in_float32(
    norm: str, name: str, training: bool
) -> None:
    """vmap leads convolutions past autocast, and takes batch statistics in their input's type."""
    alone = [make(norm, name, torch.float32, seed=seed, momentum=1.0) for seed in range(MEMBERS)]
    parameters, buffers, x = stacked(alone)
    template = make(norm, name, torch.float32, momentum=1.0).layer.train(training)
    x = torch.cat([x] * 200, 1)
    with torch.autocast("cpu", torch.bfloat16):
        y = forward(template, parameters, buffers, x)
        own = torch.stack([case.layer.train(training)(one) for case, one in zip(alone, x, strict=True)])
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y, own, rtol=0.02, atol=0.02)
    assert_members(buffers, [dict(c.layer.named_buffers()) for c in alone], {"rtol": 1e-4, "atol": 1e-5})
