"""Data-dependent initialisation: one pass, layer by layer, as section 3 of the paper has it."""

from __future__ import annotations

import copy
from typing import Any

import norm_cases as cases
import pytest
import torch
from norm_cases import BOTH, NORMS, every_case, make
from torch import Tensor, nn

from wn.norm import NormalizedLayer, data_dependent_init, initializing, normalized_layers

WAITING = cases.having(init="data")


@every_case(WAITING)
def test_one_layer_follows_equation_6(norm: str, name: str, dtype: torch.dtype) -> None:
    case = make(norm, name, dtype)
    layer, before = case.layer, copy.deepcopy(case.layer)
    rows = cases.per_unit(case.plain, before(case.x))
    mu = rows.mean(0)
    sigma = ((rows - mu) ** 2).mean(0).sqrt()
    y = data_dependent_init(layer, case.x)
    torch.testing.assert_close(layer(case.x), y, **case.tolerance)
    scaled = cases.per_unit(case.plain, y)
    torch.testing.assert_close(scaled.std(0, correction=0), torch.ones_like(mu), **case.tolerance)
    if layer.has_gain:
        assert torch.equal(layer.raw_weight, before.raw_weight)
        torch.testing.assert_close(layer.gains(), before.gains() / sigma, **case.tolerance)
    else:
        torch.testing.assert_close(layer.weight, before.weight / case.spread(sigma), **case.tolerance)
    if layer.bias is not None and layer.statistics == "mean_only":
        assert torch.equal(layer.bias, before.bias)
    elif layer.bias is not None:
        torch.testing.assert_close(layer.bias, (before.bias - mu) / sigma, **case.tolerance)
        torch.testing.assert_close(scaled.mean(0), torch.zeros_like(mu), **case.tolerance)


class Net(nn.Module):
    """Layers of every width that one batch passes through, each pre-activation kept."""

    def __init__(self, norm: str, layers: list[nn.Module], noise: float = 0.0) -> None:
        super().__init__()
        self.layers = nn.ModuleList(NormalizedLayer(layer, **NORMS[norm]) for layer in layers)
        self.noise = noise
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen = []
        for layer in self.layers:
            if self.training:
                x = x + self.noise * torch.randn_like(x)
            self.seen.append(layer(x))
            x = self.seen[-1].relu()
        return self.seen[-1]


def deep_net(norm: str, noise: float = 0.0) -> tuple[Net, Tensor]:
    torch.manual_seed(0)
    layers: list[nn.Module] = [nn.Linear(6, 6).double() for _ in range(12)]
    return Net(norm, layers, noise), torch.randn(200, 6, dtype=torch.float64)


def convolutional_net(norm: str, noise: float = 0.0) -> tuple[Net, Tensor]:
    torch.manual_seed(0)
    layers = [
        nn.Conv2d(3, 6, 3, padding=1),
        nn.Conv2d(6, 4, 2, stride=2, groups=2),
        nn.ConvTranspose2d(4, 6, 2, stride=2, groups=2),
    ]
    return Net(norm, [layer.double() for layer in layers], noise), torch.randn(9, 3, 6, 6).double()


NETS = {"deep": deep_net, "convolutional": convolutional_net}


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("norm", WAITING)
def test_every_pre_activation_of_a_net_is_standard(norm: str, net: str) -> None:
    model, x = NETS[net](norm)
    with torch.no_grad():
        for layer in normalized_layers(model).values():
            if layer.direction == "row":
                layer.v.mul_(7)  # whatever the length of v is
    averages = {k: b.clone() for k, b in model.named_buffers() if "running" in k}
    y = data_dependent_init(model, x)
    assert all(torch.equal(b, averages[k]) for k, b in model.named_buffers() if "running" in k)
    torch.testing.assert_close(model(x), y)
    for layer, t in zip(model.layers, model.seen, strict=True):
        rows = t.movedim(1, -1).flatten(0, -2)
        mean = layer.bias.detach() if layer.statistics == "mean_only" else torch.zeros_like(rows[0])
        torch.testing.assert_close(rows.mean(0), mean)
        torch.testing.assert_close(rows.std(0, correction=0), torch.ones_like(rows[0]))


@pytest.mark.parametrize("norm", WAITING)
def test_noise_is_on_and_modes_return(norm: str) -> None:
    model, x = deep_net(norm, noise=1.0)
    model.layers[3].eval()
    torch.manual_seed(1)
    y = data_dependent_init(model.eval(), x)
    assert not any(module.training for module in model.modules())
    torch.manual_seed(1)
    torch.testing.assert_close(model.train()(x), y)
    model.noise = 0.0
    assert not torch.allclose(model(x).std(0), torch.ones(6, dtype=torch.float64), atol=1e-3)


@pytest.mark.parametrize("norm", WAITING)
def test_it_happens_once_and_the_state_dict_remembers(norm: str) -> None:
    model, x = deep_net(norm)
    data_dependent_init(model, x)
    state = copy.deepcopy(model.state_dict())
    data_dependent_init(model, 2 * x + 1)
    loaded, _ = deep_net(norm)
    loaded.load_state_dict(state)
    data_dependent_init(loaded, 2 * x + 1)
    for net in (model, loaded):
        for key, tensor in net.state_dict().items():
            assert torch.equal(tensor, state[key])
    layers = normalized_layers(model).values()
    assert all(bool(layer.initialized) and layer.phase == "normal" for layer in layers)


BUFFERED = [
    norm
    for norm in cases.having(init="default")
    if list(NormalizedLayer(nn.Linear(3, 4), **NORMS[norm]).buffers())
]


@pytest.mark.parametrize("norm", ["weight_norm", *BUFFERED])
def test_layers_that_do_not_wait_are_left_alone(norm: str) -> None:
    model, x = deep_net(norm)
    before = copy.deepcopy(model.state_dict())
    data_dependent_init(model, x)
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())


@every_case(WAITING, BOTH)
def test_units_without_variance_stay_finite(norm: str, name: str, dtype: torch.dtype) -> None:
    """One unit with zero weights, and then an input that does not vary."""
    case = make(norm, name, dtype)
    with torch.no_grad():
        case.layer.raw_weight[case.unit_of == 0] = 0
    y = data_dependent_init(case.layer, case.x)
    assert bool(y.isfinite().all())
    assert all(bool(p.isfinite().all()) for p in case.layer.parameters())
    linear = NormalizedLayer(nn.Linear(4, 3).to(dtype), **NORMS[norm])
    scale = linear.gains().clone() if linear.has_gain else linear.weight.clone()
    y = data_dependent_init(linear, torch.full((7, 4), 0.3, dtype=dtype))
    torch.testing.assert_close(linear.gains() if linear.has_gain else linear.weight, scale)
    assert float(y.abs().max()) < 2


@pytest.mark.parametrize("norm", WAITING)
def test_rounding_is_not_taken_for_variance(norm: str) -> None:
    plain = nn.Linear(4, 3)
    nn.init.ones_(plain.weight)
    layer = NormalizedLayer(plain, **NORMS[norm])
    before = layer.effective_weight().detach().clone()
    torch.manual_seed(0)
    x = 0.3 * (1 + torch.finfo(torch.float32).eps * torch.randint(0, 3, (50, 4)))
    assert bool((plain(x).var(0) > 0).all())
    data_dependent_init(layer, x)
    assert torch.equal(layer.effective_weight(), before)


def test_a_failed_pass_changes_nothing() -> None:
    class Broken(nn.Module):
        def forward(self, x: Any) -> Any:
            raise RuntimeError("broken")

    model = nn.Sequential(NormalizedLayer(nn.Linear(2, 2), init="data"), Broken()).eval()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(RuntimeError, match="broken"):
        data_dependent_init(model, torch.randn(5, 2))
    (layer,) = normalized_layers(model).values()
    assert layer.phase == "normal"
    assert not layer.training
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
    with initializing(model) as unreached:
        assert (layer.phase, unreached) == ("initialize", {layer})
