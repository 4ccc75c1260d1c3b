"""Layers at the edge: weights of any size, half precision, two passes at once; and what is refused."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from wn.norm import NormalizedLayer, NormSite, normalize, normalized_layers
from wn.presets import PRESETS

# Sizes and precisions --------------------------------------------------------------------------------

OF_MATRICES: dict[str, tuple[dict[str, Any], Callable[[Tensor], Tensor]]] = {
    "layer": ({"direction": "layer"}, lambda v: v),
    "spectral": ({"direction": "spectral"}, lambda v: v),
    "exponential": ({"direction": "spectral", "gain": "exp"}, lambda v: v),
    "spectral_norm": (
        {"direction": "spectral", "scale": "one", "gain": "none"},
        lambda v: v / torch.linalg.matrix_norm(v, 2),
    ),
    "fixed_layer": ({"gain": "fixed_layer"}, lambda v: normalize_rows(v) * v.norm() / 2),
    "arpit": ({"init": "arpit"}, lambda v: normalize_rows(v) * math.sqrt(2 * 5 / 4)),
}
"""Norms that take a norm of the whole matrix v, here 4x5, and the weight that they start with."""


def normalize_rows(v: Tensor) -> Tensor:
    return v / v.norm(dim=1, keepdim=True)


@pytest.mark.parametrize("norm", OF_MATRICES)
@pytest.mark.parametrize("size", [1e-25, 1.0, 1e25])
def test_norms_of_matrices_of_any_size_are_exact(norm: str, size: float) -> None:
    choices, expected = OF_MATRICES[norm]
    torch.manual_seed(0)
    plain = nn.Linear(5, 4)
    plain.weight.data.mul_(size)
    v = plain.weight.detach().double()
    layer = NormalizedLayer(plain, **choices)
    layer(torch.randn(3, 5))  # which moves u
    w = layer.effective_weight().detach().double()
    torch.testing.assert_close(w, expected(v), rtol=1e-4, atol=1e-6 * float(w.abs().max()))
    for key, value in layer.unit_norms().items():
        assert bool((value.isfinite() & (value != 0)).all()), key


def test_at_ordinary_sizes_the_spectral_norm_is_that_of_its_formula() -> None:
    layer = NormalizedLayer(nn.Linear(5, 4), direction="spectral", scale="one", gain="none")
    assert torch.equal(layer.effective_weight(), layer.v / torch.linalg.vector_norm(layer.u @ layer.v))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("norm", ["spectral", "fixed_layer"])
def test_norms_of_a_matrix_in_half_precision_are_exact(norm: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    plain = nn.Linear(300, 300, dtype=dtype)
    nn.init.normal_(plain.weight)  # the sum of its squares is beyond float16
    layer = NormalizedLayer(copy.deepcopy(plain), **OF_MATRICES[norm][0])
    v = plain.weight.detach().double()
    exact = torch.linalg.matrix_norm(v, 2) if norm == "spectral" else v.norm() / math.sqrt(300)
    torch.testing.assert_close(
        layer.g.double(), exact.expand(300), rtol=float(torch.finfo(dtype).eps), atol=0
    )


def test_the_power_iteration_is_in_float32_under_autocast() -> None:
    torch.manual_seed(0)
    layers = [normalize(nn.Linear(64, 64), "spectral_norm")]
    layers[0].v.data.add_(0.1 * torch.randn(64, 64))  # type: ignore[union-attr, operator]
    layers.append(copy.deepcopy(layers[0]))
    x = torch.randn(3, 64)
    for layer, enabled in zip(layers, (True, False), strict=True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            layer(x)
    assert torch.equal(layers[0].u, layers[1].u)  # type: ignore[arg-type]


def test_two_passes_before_the_backward_one_have_the_gradients_of_both() -> None:
    torch.manual_seed(0)
    layer: Any = normalize(nn.Linear(5, 4), "spectral_norm")
    with torch.no_grad():
        layer.v.add_(torch.randn_like(layer.v))  # so that each pass moves u
    x, expected = torch.randn(3, 5), torch.zeros(4, 5)
    alone = copy.deepcopy(layer)
    for _ in range(2):
        expected += torch.autograd.grad(alone(x).pow(2).sum(), alone.v)[0]
    (layer(x).pow(2).sum() + layer(x).pow(2).sum()).backward()
    torch.testing.assert_close(layer.v.grad, expected)


@pytest.mark.parametrize("norm", PRESETS)
def test_shapes_are_found_on_the_meta_device(norm: str) -> None:
    layer = normalize(nn.Conv2d(3, 8, 3, device="meta"), norm)
    y = layer(torch.randn(2, 3, 5, 4, device="meta"))
    assert (y.shape, y.is_meta) == ((2, 8, 3, 2), True)


# What is refused -------------------------------------------------------------------------------------

ONE_UNIT = "of one unit would leave at most its sign"
REFUSED: dict[str, tuple[Any, str, type[Exception], str]] = {
    **{n: (lambda: nn.Linear(4, 1), n, ValueError, ONE_UNIT)
       for n in ("layer_norm", "group_norm", "instance_norm", "rms_norm", "instance_rms_norm")},
    "rms of one channel": (lambda: nn.Conv2d(4, 1, 3), "rms_norm", ValueError, ONE_UNIT),
    "site": (lambda: NormSite(1), "layer_norm", ValueError, ONE_UNIT),
    "centred": (lambda: nn.Linear(1, 4), "centered_weight_norm", ValueError, "takes off the mean"),
    "centred depthwise": (
        lambda: nn.Conv2d(4, 4, 1, groups=4), "centered_weight_norm", ValueError, "takes off the mean"
    ),
    "complex": (
        lambda: nn.Linear(4, 4, dtype=torch.complex64), "weight_norm", TypeError, "weights of torch.complex64"
    ),
    "lazy": (lambda: nn.LazyLinear(4), "weight_norm", TypeError, "LazyLinear has no weight yet"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_a_layer_that_a_norm_would_spoil_is_named_and_nothing_has_changed(case: str) -> None:
    build, norm, error, why = REFUSED[case]
    zero = nn.Linear(4, 8)
    nn.init.zeros_(zero.weight)  # of which normalising would change the weights
    model = nn.Sequential(zero, build())
    with pytest.raises(error, match=rf"^1: [^\n]*{why}[^\n]*skip='1'$"):
        normalize(model, norm)
    assert not normalized_layers(model)
    assert not zero.weight.any()
    if case != "site":
        normalize(model, norm, skip="1")
        with pytest.raises(error, match=rf"^[^\n]*{why}[^\n]*$"):
            normalize(build(), norm)


def test_integer_weights_are_refused() -> None:
    layer = nn.Linear(4, 4)
    layer.weight = nn.Parameter(torch.ones(4, 4, dtype=torch.int8), requires_grad=False)
    with pytest.raises(TypeError, match=r"^Linear has weights of torch.int8: expected real numbers$"):
        NormalizedLayer(layer)


def test_statistics_of_one_value_are_refused() -> None:
    for statistics, channels in (("instance", 3), ("instance_rms", 3), ("group", 3), ("layer", 1)):
        conv: Any = {"direction": "plain", "gain": "free", "statistics": statistics}
        layer = NormalizedLayer(nn.Conv2d(2, channels, 2), **conv)
        with pytest.raises(ValueError, match=f"^statistics={statistics}: a channel of one place"):
            layer(torch.randn(5, 2, 2, 2))
