"""The contract of every norm: its function, its gradients, and how it lives with the rest of torch."""

from __future__ import annotations

import copy
import pickle
import warnings

import norm_cases as cases
import pytest
import torch
from norm_cases import BOTH, NORMS, PRESET_NAMES, WEIGHT_NORM, every_case, make
from torch import Tensor, nn
from torch.func import functional_call, grad, jvp, vmap

from wn.norm import NormalizedLayer, normalized_layers, weight_norm

WITH_V = cases.having(direction="row")
AS_IT_WAS = [
    name
    for name, norm in NORMS.items()
    if (norm["statistics"], norm["scale"]) == ("none", "none")
    and not (norm["direction"] == "centered" or norm["gain"] == "fixed_layer" or norm["init"] == "arpit")
]
"""Norms that start as the function of the plain layer."""
FORWARDS = ["scaled_init", *(name for name in PRESET_NAMES if NORMS[name]["init"] == "default")]
"""Presets whose forward passes differ: data-dependent initialisation comes before compiling."""


# 1-2: the function


@every_case()
def test_output_and_gradients_are_the_papers(norm: str, name: str, dtype: torch.dtype) -> None:
    for training in cases.modes(norm):
        case = make(norm, name, dtype)
        case.layer.train(training)
        x = case.x.requires_grad_()
        expected = cases.reference(case, x)
        y = case.layer(x)
        torch.testing.assert_close(y, expected, **case.tolerance)
        weights = torch.randn_like(y)
        ours = cases.gradients(y, weights, case.layer, x)
        theirs = cases.gradients(expected, weights, case.layer, x)
        tolerance = {"rtol": 1e3 * case.tolerance["rtol"], "atol": 10 * case.tolerance["atol"]}
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, b, **tolerance)


@every_case(WITH_V)
def test_norm_of_each_unit_is_its_gain(norm: str, name: str, dtype: torch.dtype) -> None:
    case = make(norm, name, dtype)
    own = case.norms(case.layer.effective_weight())
    gain = cases.reference_gain(case.layer).abs() if case.layer.gain_on_weight else torch.ones_like(own)
    factor = {"sqrt_fan_in": case.layer.fan_in**0.5, "activation": (2 / (1 - 1 / torch.pi)) ** 0.5}
    expected = gain * factor.get(case.layer.scale, 1)
    torch.testing.assert_close(own, expected, **case.tolerance)
    norms = case.layer.unit_norms()
    torch.testing.assert_close(norms["w_norm"], own, **case.tolerance)
    torch.testing.assert_close(norms["v_norm"], case.norms(case.layer.v), **case.tolerance)
    torch.testing.assert_close(norms["ratio"].abs(), expected / norms["v_norm"], **case.tolerance)


@every_case(AS_IT_WAS)
def test_starts_as_the_plain_layer(norm: str, name: str, dtype: torch.dtype) -> None:
    plain, x = cases.make_plain(name, dtype)
    layer = NormalizedLayer(copy.deepcopy(plain), **NORMS[norm])
    torch.testing.assert_close(layer(x), plain(x), **make(norm, name, dtype).tolerance)


@pytest.mark.parametrize("dim", [0, 1, 2, -1])
def test_weight_norm_over_any_axis(dim: int) -> None:
    torch.manual_seed(0)
    v = torch.randn(3, 4, 5, dtype=torch.float64)
    g = torch.randn(v.shape[dim], dtype=torch.float64)
    w = weight_norm(v, g, dim)
    for i in range(len(g)):
        row = v.select(dim, i)
        torch.testing.assert_close(w.select(dim, i), g[i] * row / row.square().sum().sqrt())
    with pytest.raises(ValueError, match=r"^v has the shape \[3\]: expected \[units, weights per unit\]"):
        weight_norm(v[:, 0, 0], g[:3], 0)


# 3-4: the gradients and what they do to v


@every_case(WEIGHT_NORM)
def test_gradients_are_equation_3(norm: str, name: str, dtype: torch.dtype) -> None:
    case = make(norm, name, dtype)
    layer, x, v, g = case.layer, case.x, case.layer.v, case.layer.g
    w = layer.effective_weight().detach().requires_grad_()
    t = cases.pre_activation(case.plain, w, x)
    offset = 0 if layer.bias is None else layer.bias.view([-1] + [1] * (w.dim() - 2))
    (G,) = torch.autograd.grad((t + offset).square().sum(), w)
    norms = case.norms(v)
    grad_g = case.sums(G * v) / norms
    grad_v = case.spread(g / norms) * G - case.spread(g * grad_g / norms**2) * v
    layer(x).square().sum().backward()
    size = {"rtol": 1e2 * case.tolerance["rtol"], "atol": case.tolerance["atol"] * float(G.abs().max())}
    torch.testing.assert_close(g.grad, grad_g, **size)
    torch.testing.assert_close(v.grad, grad_v, **size)


@every_case(WITH_V)
def test_a_step_of_sgd_lengthens_v_by_pythagoras(norm: str, name: str, dtype: torch.dtype) -> None:
    case = make(norm, name, dtype)
    before = case.norms(case.layer.v).detach()
    gains = [p.detach().clone() for name, p in case.layer.named_parameters() if name in ("g", "s")]
    case.layer(case.x).square().sum().backward()
    lr, v = 0.1, case.layer.v
    assert v.grad is not None
    steps = case.norms(v.grad)
    inner = case.sums(v * v.grad)
    rounding = 10 * case.tolerance["atol"] * before * steps.clamp(min=1)
    assert bool((inner.abs() <= rounding).all())
    torch.optim.SGD(case.layer.parameters(), lr=lr).step()
    after = case.norms(v)
    torch.testing.assert_close(
        after**2, before**2 + lr**2 * steps**2, rtol=1e2 * case.tolerance["rtol"], atol=0
    )
    assert bool((after >= before * (1 - 4 * torch.finfo(dtype).eps)).all())
    moved = [p for name, p in case.layer.named_parameters() if name in ("g", "s")]
    assert not any(map(torch.equal, moved, gains))


@every_case([norm for norm in NORMS if norm not in PRESET_NAMES], BOTH, ["float32"])  # those: test_check.py
def test_forward_changes_no_parameter(norm: str, name: str, dtype: torch.dtype) -> None:
    case = make(norm, name, dtype)
    before = copy.deepcopy(dict(case.layer.named_parameters()))
    for training in (True, False):
        case.layer.train(training)(case.x)
    for parameter_name, parameter in case.layer.named_parameters():
        assert torch.equal(parameter, before[parameter_name])


def has_constants(layer: NormalizedLayer) -> bool:
    """Whether training treats what depends on v as constants, and moves them: then no difference quotient is
    its gradient, and two passes differ. Evaluation has neither.
    """
    return layer.direction == "spectral" or layer.statistics == "batch_renorm"


@every_case(layers=["conv2d", *BOTH], dtypes=["float64"])
def test_gradients_of_first_and_second_order_and_forward_mode(
    norm: str, name: str, dtype: torch.dtype
) -> None:
    case = make(norm, name, dtype)
    case.layer.train(not has_constants(case.layer))
    names = [parameter_name for parameter_name, _ in case.layer.named_parameters()]

    def output(x: Tensor, *parameters: Tensor) -> Tensor:
        y: Tensor = functional_call(case.layer, dict(zip(names, parameters, strict=True)), (x,))
        return y.tanh()

    inputs = [t.detach().clone().requires_grad_() for t in (case.x, *case.layer.parameters())]
    assert torch.autograd.gradcheck(output, inputs, fast_mode=True, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(output, inputs, fast_mode=True, atol=1e-4)


# 5: extreme lengths of v


@every_case(WITH_V, BOTH)
@pytest.mark.parametrize("length", [0.0, 1e-25, 1e25])
def test_extreme_rows_stay_finite(norm: str, name: str, dtype: torch.dtype, length: float) -> None:
    case = make(norm, name, dtype)
    unit = case.unit_of == 0
    with torch.no_grad():
        case.layer.v.div_(case.spread(case.norms(case.layer.v)))
        usual = cases.per_unit(case.plain, case.layer(case.x))
        case.layer.v.mul_(torch.where(unit, length, 1.0))
    y = case.layer(case.x)
    y.square().sum().backward()
    rows = cases.per_unit(case.plain, y)
    torch.testing.assert_close(rows[:, 1:], usual[:, 1:], **case.tolerance)
    if length == 0:
        bias = torch.zeros(1, dtype=dtype) if case.layer.bias is None else case.layer.bias[:1]
        mean = 0 if case.layer.statistics == "none" else rows[:, 0].mean() - bias  # of running averages
        torch.testing.assert_close(rows[:, 0], (bias + mean).expand(len(rows)), **case.tolerance)
    else:
        torch.testing.assert_close(rows[:, 0], usual[:, 0], **case.tolerance)
    assert all(bool(p.grad.isfinite().all()) for p in case.layer.parameters() if p.grad is not None)
    assert all(bool(value.isfinite().all()) for value in case.layer.unit_norms().values())


# 6: the rest of torch


@every_case(layers=BOTH, dtypes=["float32"])
def test_autocast_leaves_parameters_and_norm_in_float32(norm: str, name: str, dtype: torch.dtype) -> None:
    case = make(norm, name, dtype)
    expected = cases.reference(case, case.x)
    with torch.autocast("cpu", torch.bfloat16):
        assert case.layer.effective_weight().dtype == torch.float32
        exact = make(norm, name, dtype).layer.effective_weight()
        assert torch.equal(case.layer.effective_weight(), exact)
        y = case.layer(case.x)
    assert y.dtype == torch.bfloat16
    y.float().square().sum().backward()
    for tensor in (*case.layer.parameters(), *case.layer.buffers()):
        assert tensor.dtype in (torch.float32, torch.bool)
    scale = float(expected.detach().abs().max())
    torch.testing.assert_close(y.float(), expected, rtol=0.05, atol=0.05 * max(scale, 1))


@every_case(FORWARDS, BOTH, ["float32"])
def test_compiled_layer_is_the_eager_one(norm: str, name: str, dtype: torch.dtype) -> None:
    compare_compiled(norm, name, dtype, "aot_eager")


@pytest.mark.slow
@every_case(FORWARDS, BOTH, ["float32"])
def test_inductor_compiles_the_eager_layer(norm: str, name: str, dtype: torch.dtype) -> None:
    compare_compiled(norm, name, dtype, "inductor")


def compare_compiled(norm: str, name: str, dtype: torch.dtype, backend: str) -> None:
    torch.compiler.reset()
    eager, other = make(norm, name, dtype), make(norm, name, dtype)
    compiled = torch.compile(other.layer, fullgraph=True, backend=backend)
    results = []
    for forward, case in ((eager.layer, eager), (compiled, other)):
        x = case.x.requires_grad_()
        y = forward(x)
        results.append([y, *cases.gradients(y, cases.ramp(y), case.layer, x), *case.layer.buffers()])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@every_case(layers=BOTH, dtypes=["float64"])
def test_function_transforms(norm: str, name: str, dtype: torch.dtype) -> None:
    case = make(norm, name, dtype)
    case.layer.train(not has_constants(case.layer))
    parameters, buffers = dict(case.layer.named_parameters()), dict(case.layer.named_buffers())

    def loss(parameters: dict[str, Tensor], x: Tensor) -> Tensor:
        state = parameters | {k: b.clone() for k, b in buffers.items()}
        y: Tensor = functional_call(case.layer, state, (x,))
        return y.square().sum()

    case.layer(case.x).square().sum().backward()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        slopes = grad(loss)(parameters, case.x)
        _, along = jvp(lambda p: loss(p, case.x), (parameters,), (parameters,))
        case.layer.eval()  # in training, running averages need a stack of their own: test_norm_stacks.py
        batched = vmap(grad(loss, argnums=1), (None, 0))(parameters, torch.stack([case.x, 2 * case.x]))
    for key, parameter in parameters.items():
        torch.testing.assert_close(slopes[key], parameter.grad)
    torch.testing.assert_close(along, sum((slopes[k] * p).sum() for k, p in parameters.items()))
    for member, x in zip(batched, (case.x, 2 * case.x), strict=True):
        x = x.requires_grad_()
        torch.testing.assert_close(member, torch.autograd.grad(case.layer(x).square().sum(), x)[0])


@pytest.mark.parametrize("norm", PRESET_NAMES)
def test_a_pickled_layer_is_the_layer(norm: str) -> None:
    case = make(norm, "linear")
    clone = pickle.loads(pickle.dumps(case.layer))
    assert torch.equal(clone.eval()(case.x), case.layer.eval()(case.x))


@every_case(layers=["conv2d", "conv2d-groups", "transposed2d", "transposed2d-groups"])
def test_channels_last_is_only_a_layout(norm: str, name: str, dtype: torch.dtype) -> None:
    results = []
    for layout in (torch.contiguous_format, torch.channels_last):
        case = make(norm, name, dtype)
        x = case.x.to(memory_format=layout).requires_grad_()
        y = case.layer.to(memory_format=layout)(x)
        results.append([y, *cases.gradients(y, cases.ramp(y), case.layer, x), *case.layer.buffers()])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e2 * case.tolerance["rtol"], atol=10 * case.tolerance["atol"])
    assert results[1][0].is_contiguous(memory_format=torch.channels_last)


def test_layers_are_found_by_name_in_order() -> None:
    model = nn.Sequential(NormalizedLayer(nn.Linear(2, 2)), nn.ReLU(), NormalizedLayer(nn.Linear(2, 2)))
    assert list(normalized_layers(model)) == ["0", "2"]
