"""Gains without a direction, and fixed ones: w = g W, and g v / ||v|| with g frozen."""

from __future__ import annotations

import copy
from typing import Any

import norm_cases as cases
import pytest
import torch
from norm_cases import BOTH, LAYERS, make, make_plain
from torch import Tensor, nn

from wn import probes
from wn.config import OptimConfig
from wn.norm import NormalizedLayer, data_dependent_init, fold, normalize, parameter_groups
from wn.optim import Optimizer
from wn.stack import Stack


def initialized(name: str) -> tuple[NormalizedLayer, nn.Module, Tensor]:
    """A layer after its initialisation, the plain one that it was, and the batch."""
    plain, x = make_plain(name)
    layer = NormalizedLayer(copy.deepcopy(plain), direction="plain", gain="fixed", init="data")
    data_dependent_init(layer, x)
    return layer, plain, x


# Plain and fixed: the authors' plain weights, whose data-dependent scale stays a factor


@pytest.mark.parametrize("name", BOTH)
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
    for gain in ("none", "fixed"):
        model: Any = normalize(make_plain("linear")[0], direction="plain", gain=gain, init="data")
        y = data_dependent_init(model, x)
        model(x).pow(3).sum().backward()
        torch.optim.SGD(model.parameters(), lr=0.01).step()
        outputs.append([y, model(x)])
    (first, later), (fixed_first, fixed_later) = outputs
    torch.testing.assert_close(first, fixed_first)
    assert not torch.allclose(later, fixed_later, atol=1e-3)


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


# Plain and free


@pytest.mark.parametrize("name", LAYERS)
def test_a_free_gain_of_plain_weights_starts_at_one_and_is_trained(name: str) -> None:
    """w = g W: dL/dg = sum(W dL/dw) over a unit, dL/dW = g dL/dw, and SGD moves both."""
    plain, x = make_plain(name)
    layer = NormalizedLayer(copy.deepcopy(plain), direction="plain", gain="free")
    assert torch.equal(layer.g, torch.ones_like(layer.g))
    torch.testing.assert_close(layer(x), plain(x))
    case = make("free", name)
    layer, x = case.layer, case.x
    g, W = layer.g.detach().clone(), layer.weight.detach().clone()
    w = (case.spread(g) * W).requires_grad_()
    offset = 0 if layer.bias is None else layer.bias.view([-1] + [1] * (w.dim() - 2))
    expected = cases.pre_activation(case.plain, w, x) + offset
    (slope,) = torch.autograd.grad((cases.ramp(expected) * expected).sum(), w)
    y = layer(x)
    torch.testing.assert_close(y, expected)
    (cases.ramp(y) * y).sum().backward()
    torch.optim.SGD(layer.parameters(), lr=0.1).step()
    torch.testing.assert_close(layer.g, g - 0.1 * case.sums(W * slope))
    torch.testing.assert_close(layer.weight, W - 0.1 * case.spread(g) * slope)
    norms = layer.unit_norms()
    torch.testing.assert_close(norms["w_norm"], layer.g.abs() * case.norms(layer.weight))
    torch.testing.assert_close(norms["v_norm"], case.norms(layer.weight))


# Row and fixed


@pytest.mark.parametrize("init", ["default", "data"])
@pytest.mark.parametrize("name", LAYERS)
def test_a_fixed_gain_of_directions_keeps_the_norm_that_w_starts_with(name: str, init: Any) -> None:
    """Only the direction is trained: ||w|| stays what ||v|| was, divided by the data's sigma."""
    plain, x = make_plain(name)
    layer = NormalizedLayer(copy.deepcopy(plain), direction="row", gain="fixed", init=init)
    torch.testing.assert_close(layer(x), plain(x))
    weight, units = plain.get_parameter("weight").detach(), cases.unit_of(name)
    zeros = torch.zeros(int(units.max()) + 1, dtype=x.dtype)
    frozen = zeros.index_add(0, units.flatten(), weight.square().flatten()).sqrt()
    if init == "data":
        data_dependent_init(layer, x)
        frozen = frozen / cases.per_unit(plain, plain(x)).std(0, correction=0)
    torch.testing.assert_close(layer.g, frozen)
    assert set(dict(layer.named_parameters())) == {"v"} | ({"bias"} if plain.bias is not None else set())
    y = layer(x)
    (cases.ramp(y) * y).sum().backward()
    torch.optim.SGD(layer.parameters(), lr=0.1).step()
    assert not torch.equal(layer.v, weight)
    torch.testing.assert_close(layer.unit_norms()["w_norm"], frozen)
    assert torch.equal(layer.g, layer.state_dict()["g"])


def test_a_fixed_gamma_of_batch_normalisation_stays_one() -> None:
    """Without data to set it: outputs of variance 1 (to eps) for good, and a bias that is trained."""
    layer = NormalizedLayer(nn.Linear(5, 4), direction="plain", gain="fixed", statistics="batch")
    x = torch.randn(50, 5)
    for _ in range(3):
        y = layer(x)
        torch.testing.assert_close(y.std(0, correction=0), torch.ones(4), rtol=1e-4, atol=0)
        layer.zero_grad()
        (cases.ramp(y) * y).sum().backward()
        torch.optim.SGD(layer.parameters(), lr=0.1).step()
    assert torch.equal(layer.g, torch.ones(4))
