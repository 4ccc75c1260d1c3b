"""Scaled weights: the authors' plain weights, whose data-dependent scale stays a fixed factor."""

from __future__ import annotations

import copy
from typing import Any

import norm_cases as cases
import pytest
import torch
from norm_cases import LAYERS, make_plain
from torch import Tensor, nn

from wn import probes
from wn.config import NormConfig, OptimConfig
from wn.norm import NormalizedLayer, data_dependent_init, fold, normalize, parameter_groups
from wn.optim import Optimizer
from wn.stack import Stack


def initialized(name: str) -> tuple[NormalizedLayer, nn.Module, Tensor]:
    """A layer after its initialisation, the plain one that it was, and the batch."""
    plain, x = make_plain(name)
    layer = NormalizedLayer(copy.deepcopy(plain), direction="plain", gain="fixed", init="data")
    data_dependent_init(layer, x)
    return layer, plain, x


@pytest.mark.parametrize("name", LAYERS)
def test_the_scale_is_set_once_and_stays(name: str) -> None:
    layer, plain, x = initialized(name)
    sigma = cases.per_unit(plain, plain(x)).std(0, correction=0)
    torch.testing.assert_close(layer.g, 1 / sigma)
    assert torch.equal(layer.weight, plain.weight)
    assert "g" not in dict(layer.named_parameters())
    before = layer.g.clone()
    layer(x).square().sum().backward()
    torch.optim.SGD(layer.parameters(), lr=0.1).step()
    assert torch.equal(layer.g, before)
    assert not torch.equal(layer.weight, plain.weight)


@pytest.mark.parametrize("name", LAYERS)
def test_the_gradient_passes_through_the_scale(name: str) -> None:
    """w = g W by hand: the same output, and dL/dW = g dL/dw."""
    layer, plain, x = initialized(name)
    spread = layer.g[cases.unit_of(name)]
    w = (spread * layer.weight).detach().requires_grad_()
    y = layer(x)
    offset = 0 if layer.bias is None else layer.bias.view([-1] + [1] * (w.dim() - 2))
    expected = cases.pre_activation(plain, w, x) + offset
    torch.testing.assert_close(y, expected)
    (slope,) = torch.autograd.grad((cases.ramp(expected) * expected).sum(), w)
    (ours,) = torch.autograd.grad((cases.ramp(y) * y).sum(), layer.weight)
    torch.testing.assert_close(ours, spread * slope)


def test_a_step_of_adam_moves_w_by_g_times_the_learning_rate() -> None:
    layer, _, x = initialized("linear")
    stack = Stack([layer])
    before = layer.effective_weight().detach().clone()
    rule = Optimizer([OptimConfig(name="adam", lr=0.01, momentum=0.9)], stack.params, {})
    grads = torch.autograd.grad(stack(x[None]).pow(3).sum(), list(stack.params.values()))
    rule.step(dict(zip(stack.params, grads, strict=True)))
    moved = stack.map(lambda model: model.effective_weight())[0] - before
    torch.testing.assert_close(moved.abs(), 0.01 * layer.g[:, None].expand_as(moved), rtol=1e-5, atol=0)


def test_it_differs_from_plain_weights_in_the_steps_alone() -> None:
    """The same function after initialisation as ``none_init``, and another one step later."""
    x = torch.randn(40, 5, dtype=torch.float64)
    outputs: list[list[Tensor]] = []
    for weight in ("plain", "scaled"):
        model: Any = normalize(make_plain("linear")[0], weight=weight, init="data")
        y = data_dependent_init(model, x)
        model(x).pow(3).sum().backward()
        torch.optim.SGD(model.parameters(), lr=0.01).step()
        outputs.append([y, model(x)])
    (first, later), (scaled_first, scaled_later) = outputs
    torch.testing.assert_close(first, scaled_first)
    assert not torch.allclose(later, scaled_later, atol=1e-3)


def test_probes_see_the_rate_that_w_sees() -> None:
    layer, *_ = initialized("linear")
    ((row,),) = probes.measure(Stack([nn.Sequential(layer)]), None, torch.tensor([0.1]))
    assert row["effective_lr"] == pytest.approx(0.1 * layer.g.square().mean().item())
    assert row["w_norm_max"] == pytest.approx(layer.effective_weight().norm(dim=1).max().item())
    assert row["g_min"] == pytest.approx(layer.g.min().item())


def test_weight_decay_and_state_dicts() -> None:
    layer, plain, x = initialized("conv2d")
    groups = parameter_groups(layer)
    assert {kind: len(members) for kind, members in groups.items()} == {
        "weight": 1, "g": 0, "bias": 1, "other": 0,
    }  # fmt: skip
    torch.testing.assert_close(fold(layer)(x), layer(x))
    again = normalize(make_plain("conv2d", seed=1)[0], direction="plain", gain="fixed", init="data")
    again.load_state_dict(layer.state_dict())
    assert torch.equal(again(x), layer(x))
    again.load_state_dict(plain.state_dict())  # the factor of the state before is not this weight's
    torch.testing.assert_close(again(x), plain(x))


def test_its_preset_has_a_name() -> None:
    assert NormConfig(direction="plain", gain="fixed", init="data").label == "scaled_init"
