"""What a norm declares of itself holds and what it denies fails; identities between methods; held norms."""

from __future__ import annotations

import copy
import math
from typing import Any

import norm_cases as cases
import pytest
import torch
from norm_cases import BOTH, NORMS, make, make_plain
from torch import Tensor, nn

from wn.grammar import properties
from wn.norm import NormalizedLayer, data_dependent_init, fold, project_
from wn.norm.weight import ACTIVATIONS, activation_gain

LAYERS = ["linear", "conv2d-groups"]
DENSE = {"linear": True, "conv2d-groups": False}


def built(norm: str, name: str) -> tuple[NormalizedLayer, Tensor]:
    """A layer and an input; groups of several units, and eps so small that it breaks no invariance."""
    case = make(norm, name, eps=1e-20, groups=2)
    return case.layer, case.x


def changed_by(layer: NormalizedLayer, x: Tensor, factor: Tensor) -> float:
    """How far the training output moves when the units of v are multiplied by ``factor``."""
    other = copy.deepcopy(layer)
    with torch.no_grad():
        other.scale_units(other.raw_weight, factor)
    return float((other(x) - copy.deepcopy(layer)(x)).detach().abs().max())


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("norm", NORMS)
def test_invariance_is_as_declared(norm: str, name: str) -> None:
    layer, x = built(norm, name)
    declared = properties(NORMS[norm], DENSE[name]).invariant
    all_alike = torch.full((layer.units,), 1.7, dtype=x.dtype)
    own = torch.linspace(0.5, 2, layer.units, dtype=x.dtype)
    assert (changed_by(layer, x, all_alike) < 1e-8) == (declared != "none")
    assert (changed_by(layer, x, own) < 1e-8) == (declared == "unit")


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("norm", NORMS)
def test_norms_grow_as_declared(norm: str, name: str) -> None:
    """Under SGD, by Pythagoras: of each unit or of the matrix. A denied one shrinks under some loss."""
    declared = properties(NORMS[norm], DENSE[name])
    layer, x = built(norm, name)
    target = torch.randn_like(layer(x).detach())  # of a linear loss, whose slope along v turns with its sign
    rises = []
    for sign in (1.0, -1.0):
        other = copy.deepcopy(layer)
        (sign * other(x) * target).sum().backward()
        v, slope = other.raw_weight, other.raw_weight.grad
        before = norms(other, v, declared.invariant)
        with torch.no_grad():
            v.sub_(1e-3 * slope / slope.norm())
            project_(other)
        rises.append(norms(other, v, declared.invariant) / before - 1)
    grows = bool((torch.stack(rises) >= -1e-12).all()) and bool((torch.stack(rises) > 1e-12).any())
    assert grows == declared.norm_grows


def norms(layer: NormalizedLayer, v: Tensor, invariant: str) -> Tensor:
    of_units = layer.unit_norm(v.detach())
    return of_units if invariant == "unit" or layer.statistics == "batch_renorm" else of_units.norm()[None]


@pytest.mark.parametrize("norm", [norm for norm in NORMS if not properties(NORMS[norm]).foldable])
def test_layers_that_do_not_fold_say_why(norm: str) -> None:
    with pytest.raises(
        ValueError, match=r"^the layer has statistics=\w+, not affine in evaluation: no plain"
    ):
        fold(built(norm, "linear")[0])


@pytest.mark.parametrize("norm", NORMS)
def test_batches_of_one_are_as_declared(norm: str) -> None:
    """A dense layer learns from single images: outputs differ, and running averages do not collapse."""
    layer, x = built(norm, "linear")
    differ = not torch.allclose(copy.deepcopy(layer)(x[:1]), copy.deepcopy(layer)(x[1:2]))
    if layer.statistics in ("batch", "mean_only", "batch_renorm"):
        for image in x.repeat(20, 1):
            layer(image[None])
    collapsed = "running_var" in dict(layer.named_buffers()) and float(layer.running_var.max()) < 1e-3
    assert (differ and not collapsed) == properties(NORMS[norm], dense=True).batch_of_one


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("norm", NORMS)
def test_determinism_is_as_declared(norm: str, name: str) -> None:
    layer, x = built(norm, name)
    other = torch.cat([x[:1], 100 * x[1:] + 10])  # beyond the bounds of batch renormalisation
    same = torch.allclose(copy.deepcopy(layer)(x)[0], copy.deepcopy(layer)(other)[0], rtol=1e-9)
    assert same == properties(NORMS[norm]).deterministic


# Identities between methods (SCIENCE 2.1), and torch's own layers


def layer_of(name: str, **choices: Any) -> NormalizedLayer:
    return NormalizedLayer(make_plain(name)[0], **{"direction": "plain", "gain": "none", **choices})


@pytest.mark.parametrize("name", BOTH)
def test_weight_standardisation_is_centred_weight_normalisation(name: str) -> None:
    """Qiao et al., equation 3, written out: (v - mean) / sigma has norm sqrt(N)."""
    layer = layer_of(name, direction="centered", scale="sqrt_fan_in")
    units = cases.unit_of(name)
    for unit in range(layer.units):
        v = layer.v[units == unit]
        expected = (v - v.mean()) / v.std(correction=0)
        torch.testing.assert_close(layer.effective_weight()[units == unit], expected)


def test_scaled_weight_standardisation_is_the_published_formula() -> None:
    """Brock et al., equation 3: gamma (v - mean) / (sigma sqrt(N)), gamma = sqrt(2 / (1 - 1/pi)) for ReLU."""
    layer = layer_of("conv2d", direction="centered", scale="activation", gain="free", activation="relu")
    v = layer.v.flatten(1)
    sigma = v.std(1, correction=0, keepdim=True) * math.sqrt(v.shape[1])
    expected = math.sqrt(2 / (1 - 1 / math.pi)) * (v - v.mean(1, keepdim=True)) / sigma
    torch.testing.assert_close(layer.effective_weight().flatten(1), expected)


def test_gammas_keep_the_variance_and_match_the_published_ones() -> None:
    assert activation_gain("relu") == pytest.approx(1.7129, abs=1e-4)
    assert activation_gain("leaky_relu") == pytest.approx(1.6306, abs=1e-4)
    assert activation_gain("none") == pytest.approx(1)
    z = torch.randn(4_000_000, generator=torch.Generator().manual_seed(0))
    for name, activation in ACTIVATIONS.items():
        assert activation_gain(name) * float(activation()(z).std()) == pytest.approx(1, abs=2e-3)
    with pytest.raises(ValueError, match="activation='swoosh': expected one of none, relu"):
        activation_gain("swoosh")


def test_one_group_is_layer_normalisation_and_a_group_a_channel_is_instance_normalisation() -> None:
    x = make_plain("conv2d-groups")[1]
    choices = {"gain": "free", "eps": 1e-5}
    same = {"layer": layer_of("conv2d-groups", statistics="layer", **choices)(x)}
    same["one group"] = layer_of("conv2d-groups", statistics="group", groups=1, **choices)(x)
    torch.testing.assert_close(same["layer"], same["one group"])
    instance = layer_of("conv2d-groups", statistics="instance", **choices)(x)
    torch.testing.assert_close(
        instance, layer_of("conv2d-groups", statistics="group", groups=6, **choices)(x)
    )
    assert not torch.allclose(instance, same["layer"])


@pytest.mark.parametrize(
    ("statistics", "name", "torchs"),
    [
        ("layer", "linear", lambda: nn.LayerNorm(4)),
        ("layer", "linear-sequence", lambda: nn.LayerNorm(4)),
        ("layer", "conv2d", lambda: nn.GroupNorm(1, 3)),
        ("group", "conv2d-groups", lambda: nn.GroupNorm(6, 6)),
        ("instance", "conv2d", lambda: nn.InstanceNorm2d(3, affine=True)),
        ("instance", "conv1d", lambda: nn.InstanceNorm1d(3, affine=True)),
        ("rms", "linear", lambda: nn.RMSNorm(4, eps=1e-5)),
        ("rms", "linear-sequence", lambda: nn.RMSNorm(4, eps=1e-5)),
    ],
)
def test_statistics_are_torchs_layers(statistics: str, name: str, torchs: Any) -> None:
    plain, x = make_plain(name)
    if plain.bias is not None:
        nn.init.zeros_(plain.bias)
    layer = NormalizedLayer(
        copy.deepcopy(plain), direction="plain", gain="free", statistics=statistics, eps=1e-5, groups=6
    )
    torch.testing.assert_close(layer(x), torchs().double()(plain(x)))


def test_rms_of_channels_is_torchs_over_the_last_axis() -> None:
    plain, x = make_plain("conv2d-groups")
    layer = NormalizedLayer(copy.deepcopy(plain), direction="plain", gain="free", statistics="rms", eps=1e-5)
    expected = nn.RMSNorm(6, eps=1e-5).double()(plain(x).movedim(1, -1)).movedim(-1, 1)
    torch.testing.assert_close(layer(x), expected)


@pytest.mark.parametrize("name", ["linear", "conv2d-groups", "transposed2d"])
def test_spectral_norm_is_torchs(name: str) -> None:
    """The same weight once both power iterations have converged, and the same gradient."""
    plain, x = make_plain(name)
    theirs: Any = nn.utils.parametrizations.spectral_norm(copy.deepcopy(plain), n_power_iterations=200)
    ours = NormalizedLayer(copy.deepcopy(plain), direction="spectral", scale="one", gain="none")
    with torch.no_grad():
        plain.weight.add_(0.3 * torch.randn_like(plain.weight))  # so that both have to iterate
        ours.v.copy_(plain.weight)
        theirs.parametrizations.weight.original.copy_(plain.weight)
        for _ in range(200):
            ours(x)
        theirs(x)  # as many iterations in one call
    torch.testing.assert_close(ours.effective_weight(), theirs.weight)
    (ours(x) ** 3).sum().backward()
    (theirs(x) ** 3).sum().backward()
    torch.testing.assert_close(ours.v.grad, theirs.parametrizations.weight.original.grad)


def test_probing_and_evaluating_do_not_move_the_power_iteration() -> None:
    layer, x = built("spectral_norm", "conv2d")
    with torch.no_grad():
        layer.v.add_(torch.randn_like(layer.v))
    before = layer.u.clone()
    layer.effective_weight(), layer.unit_norms(), layer.eval()(x)
    assert torch.equal(layer.u, before)
    layer.train()(x)
    assert not torch.equal(layer.u, before)


def test_spectral_norm_of_a_layer_that_starts_at_zero_is_one_once_it_has_moved() -> None:
    plain, x = make_plain("linear")
    nn.init.zeros_(plain.weight)
    layer = NormalizedLayer(plain, direction="spectral", scale="one", gain="none")
    layer(x)
    with torch.no_grad():
        layer.v.copy_(5 * torch.randn_like(layer.v))
        for _ in range(200):
            layer(x)
    torch.testing.assert_close(torch.linalg.matrix_norm(layer.effective_weight(), 2), torch.ones(()).double())


def test_batch_renormalisation_starts_as_batch_normalisation_and_ends_as_running_averages() -> None:
    x = make_plain("linear")[1]
    renorm = layer_of("linear", gain="free", statistics="batch_renorm")
    batch = layer_of("linear", gain="free", statistics="batch")
    with torch.no_grad():
        for layer in (renorm, batch):
            layer.running_mean.copy_(layer._product(x).mean(0) + 0.1)
            layer.running_var.copy_(layer._product(x).var(0) * 1.5)
        renorm.progress.fill_(0)
    torch.testing.assert_close(copy.deepcopy(renorm)(x), copy.deepcopy(batch)(x))
    renorm.progress.fill_(1)  # bounds of 3 and 5, which these batches do not reach
    torch.testing.assert_close(copy.deepcopy(renorm)(x), batch.eval()(x))


def test_arpits_initialisation() -> None:
    """g = sqrt(gain fan_in / fan_out), fan-out over all positions, with 2 for the gain, and in the last layer
    of each of B branches 1/B; v at rms 1/sqrt(fan_in).
    """
    conv: Any = nn.Conv2d(8, 16, 3).double()
    conv.residual_branches = 4
    for source, gain in ((nn.Linear(72, 144).double(), 2), (conv, 1 / 4)):
        layer = NormalizedLayer(source, init="arpit")
        torch.testing.assert_close(layer.g, torch.full_like(layer.g, math.sqrt(gain * 72 / 144)))
        assert float(layer.v.detach().square().mean()) == pytest.approx(1 / 72)
        assert not layer.bias.any()


def test_bounded_weight_normalisation_has_one_gain_that_is_kept() -> None:
    plain, x = make_plain("conv2d")
    layer = NormalizedLayer(copy.deepcopy(plain), direction="row", gain="fixed_layer")
    rho = plain.weight.norm() / math.sqrt(3)
    layer(x).square().sum().backward()
    torch.optim.SGD(layer.parameters(), lr=0.1).step()
    torch.testing.assert_close(layer.unit_norms()["w_norm"], rho.detach().expand(3))


def test_gains_that_are_exponentials_differ_in_their_steps() -> None:
    """ds moves g by its own size: dg = -lr g^2 dL/dg for e^s, and nine times that for e^{3s}."""
    moves = {}
    for gain in ("free", "exp", "exp3"):
        layer = layer_of("linear", direction="row", gain=gain)
        start = layer.gains().detach().clone()
        layer(make_plain("linear")[1]).pow(2).sum().backward()
        torch.optim.SGD(layer.parameters(), lr=1e-6).step()
        moves[gain] = (layer.gains().detach() - start) / start**2 if gain != "free" else layer.gains() - start
    torch.testing.assert_close(moves["exp"], moves["free"].detach(), rtol=1e-4, atol=0)
    torch.testing.assert_close(moves["exp3"], 9 * moves["free"].detach(), rtol=1e-4, atol=0)


# Held norms


@pytest.mark.parametrize("name", BOTH)
@pytest.mark.parametrize("norm", [n for n, c in NORMS.items() if c["hold"] != "free"])
def test_held_norms_are_put_back_without_changing_a_normalised_function(norm: str, name: str) -> None:
    case = make(norm, name)
    layer, x = case.layer, case.x
    wanted = layer.held_norm()
    if layer.hold == "unit":
        size = layer.v.numel() if layer.direction in ("layer", "spectral") else layer.fan_in
        torch.testing.assert_close(wanted, torch.full_like(wanted, math.sqrt(size)))
    (layer(x) ** 3).sum().backward()
    torch.optim.SGD(layer.parameters(), lr=0.01).step()
    assert not torch.allclose(layer.held_norm(), wanted)
    before = copy.deepcopy(layer)(x)
    project_(layer)
    torch.testing.assert_close(layer.held_norm(), wanted)
    assert torch.allclose(copy.deepcopy(layer)(x), before) == (layer.direction != "plain")


@pytest.mark.parametrize(("direction", "gain"), [("plain", "none"), ("row", "exp"), ("layer", "fixed")])
def test_what_starts_at_zero_is_held_nowhere_and_learns(direction: Any, gain: Any) -> None:
    plain, _ = make_plain("linear")
    if direction == "layer":
        nn.init.zeros_(plain.weight)
    else:
        nn.init.zeros_(plain.weight[0])
    layer = NormalizedLayer(plain, direction=direction, gain=gain, hold="start")
    wanted = layer.held_norm()
    assert (wanted == 0).any()
    with torch.no_grad():
        layer.raw_weight.add_(1.0)
    moved = layer.raw_weight.detach().clone()
    project_(layer)
    assert torch.equal(layer.raw_weight[0], moved[0])
    torch.testing.assert_close(layer.held_norm()[wanted > 0], wanted[wanted > 0])


def test_plain_weights_are_held_where_the_initialisation_put_them() -> None:
    plain, x = make_plain("linear")
    layer = NormalizedLayer(plain, direction="plain", gain="none", hold="start", init="data")
    data_dependent_init(layer, x)
    y = layer(x)
    project_(layer)
    torch.testing.assert_close(layer(x), y)
