"""The cases of the contract suite, and the paper's equations written out to check them against.

A new choice of a norm, or a new kind of layer, gets every test by being listed in wn.norm and here.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterator
from functools import cache
from typing import Any, NamedTuple, get_args

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call

from wn.config import NormConfig
from wn.norm import NormalizedLayer
from wn.norm.kinds import Direction, Gain, Init, Statistics
from wn.presets import PRESETS

with warnings.catch_warnings(), forward_ad.dual_level():
    warnings.simplefilter("ignore")  # torch's first use of forward mode warns of torch.jit
    forward_ad.make_dual(torch.zeros(1), torch.zeros(1))

GRAMMAR = [
    dict(zip(("direction", "gain", "statistics", "init"), values, strict=True))
    for values in itertools.product(*map(get_args, (Direction, Gain, Statistics, Init)))
]
"""Every combination of choices, with and without meaning."""


def has_meaning(norm: dict[str, str]) -> bool:
    """What fixes the scale of a weight, or of an output, needs a gain to give it back."""
    fixes_scale = norm["direction"] == "row" or norm["statistics"] == "batch"
    return norm["gain"] != "none" or not fixes_scale


NORMS = {NormConfig.model_validate(norm).label: norm for norm in GRAMMAR if has_meaning(norm)}
PRESET_NAMES = list(PRESETS)
DTYPES = {"float64": torch.float64, "float32": torch.float32}

LAYERS: dict[str, tuple[type[nn.Module], tuple[Any, ...], dict[str, Any], tuple[int, ...]]] = {
    "linear": (nn.Linear, (5, 4), {}, (6, 5)),
    "linear-sequence": (nn.Linear, (3, 4), {"bias": False}, (3, 4, 3)),
    "conv1d": (nn.Conv1d, (2, 3, 3), {"stride": 2, "padding": 1}, (4, 2, 7)),
    "conv1d-groups": (nn.Conv1d, (4, 6, 2), {"dilation": 2, "groups": 2, "bias": False}, (3, 4, 6)),
    "conv2d": (nn.Conv2d, (2, 3, 3), {"padding": "same"}, (3, 2, 4, 3)),
    "conv2d-groups": (
        nn.Conv2d,
        (4, 6, (2, 1)),
        {"stride": (1, 2), "padding": 1, "dilation": 2, "groups": 2, "bias": False},
        (3, 4, 4, 5),
    ),
    "conv3d": (nn.Conv3d, (1, 2, 2), {}, (2, 1, 3, 3, 2)),
    "transposed1d": (nn.ConvTranspose1d, (2, 3, 2), {"stride": 2}, (3, 2, 4)),
    "transposed2d": (nn.ConvTranspose2d, (3, 2, 3), {"padding": 1, "dilation": 1}, (3, 3, 3, 4)),
    "transposed2d-groups": (
        nn.ConvTranspose2d,
        (4, 6, 2),
        {"stride": 2, "padding": 1, "output_padding": 1, "dilation": 2, "groups": 2, "bias": False},
        (3, 4, 3, 3),
    ),
    "transposed3d": (nn.ConvTranspose3d, (2, 2, 2), {}, (2, 2, 2, 3, 2)),
}
BOTH = ("linear", "transposed2d-groups")
"""The simplest layer and the most intricate: enough for contracts in which the layout plays no part."""


class Case(NamedTuple):
    """One layer under one norm, with an input and what is known of it independently."""

    layer: NormalizedLayer
    plain: nn.Module
    """The layer as torch has it, before it was normalised."""
    x: Tensor
    choices: dict[str, str]
    unit_of: Tensor
    """Of the weight's shape: the output unit that each weight leads to."""

    @property
    def tolerance(self) -> dict[str, float]:
        wide = self.x.dtype == torch.float64
        return {"rtol": 1e-10, "atol": 1e-10} if wide else {"rtol": 1e-5, "atol": 1e-5}

    def spread(self, values: Tensor) -> Tensor:
        """One value per unit, laid out over the weight."""
        return values[self.unit_of]

    def sums(self, w: Tensor) -> Tensor:
        """The sum of w over the weights of each unit."""
        zeros = torch.zeros(int(self.unit_of.max()) + 1, dtype=w.dtype)
        return zeros.index_add(0, self.unit_of.flatten(), w.flatten())

    def norms(self, w: Tensor) -> Tensor:
        """``||w||`` of each unit."""
        return self.sums(w * w).sqrt()


def make_plain(name: str, dtype: torch.dtype = torch.float64, seed: int = 0) -> tuple[nn.Module, Tensor]:
    """A layer of torch, its units of unequal norms, and an input whose channels have unequal means."""
    kind, arguments, options, shape = LAYERS[name]
    torch.manual_seed(seed)
    plain = kind(*arguments, **options).to(dtype)
    x = torch.randn(shape, dtype=dtype) + torch.randn(shape[1:], dtype=dtype)
    return plain, x


def make(norm: str, name: str, dtype: torch.dtype = torch.float64, seed: int = 0, **options: Any) -> Case:
    """The named layer under the named norm, gains and biases away from where they start."""
    plain, x = make_plain(name, dtype, seed)
    layer = NormalizedLayer(make_plain(name, dtype, seed)[0], **NORMS[norm], **options)
    with torch.no_grad():
        if layer.has_gain:
            layer.g.mul_(torch.linspace(0.5, -1.5, layer.g.numel(), dtype=dtype))
        for buffer_name, buffer in layer.named_buffers():
            if "running" in buffer_name:
                buffer.uniform_(0.5, 2)
    return Case(layer, plain, x, NORMS[norm], unit_of(name))


def every_case(norms: Any = NORMS, layers: Any = LAYERS, dtypes: Any = DTYPES) -> pytest.MarkDecorator:
    """Parametrise a test by norm, layer and dtype.

    Presets meet every layer in the first dtype, the other norms the layers of ``BOTH``; in a second dtype
    presets meet these.
    """
    first, *_ = dtypes
    cases = [
        pytest.param(norm, name, DTYPES[dtype], id=f"{norm}-{name}-{dtype}")
        for norm, name, dtype in itertools.product(norms, layers, dtypes)
        if (norm in PRESET_NAMES) + (name in BOTH) + (dtype == first) >= 2
    ]
    return pytest.mark.parametrize(("norm", "name", "dtype"), cases)


def having(**choices: str) -> list[str]:
    """The norms with these choices."""
    return [name for name, norm in NORMS.items() if choices.items() <= norm.items()]


WEIGHT_NORM = having(direction="row", gain="free", statistics="none")
TRACKED = having(statistics="batch") + having(statistics="mean_only")


def modes(norm: str) -> list[bool]:
    """Training, and evaluation where running averages make it another function."""
    return [True, False] if norm in TRACKED else [True]


def unit_axis(plain: nn.Module) -> int:
    return -1 if isinstance(plain, nn.Linear) else 1


def per_unit(plain: nn.Module, y: Tensor) -> Tensor:
    """An output as [samples, units], samples over batch and space."""
    y = y.movedim(unit_axis(plain), -1)
    return y.reshape(-1, y.shape[-1])


def pre_activation(plain: nn.Module, weight: Tensor, x: Tensor) -> Tensor:
    """What torch's own layer gives with this weight and no bias."""
    state = {"weight": weight}
    if plain.bias is not None:
        state["bias"] = torch.zeros_like(plain.bias)
    return functional_call(plain, state, (x,))


@cache
def unit_of(name: str) -> Tensor:
    """Which output unit each weight leads to, found by autograd rather than by knowledge of the layout."""
    plain, x = make_plain(name)
    weight = plain.get_parameter("weight")
    outputs = per_unit(plain, pre_activation(plain, weight, x.abs() + 0.1)).sum(0)
    leads = torch.stack([torch.autograd.grad(o, weight, retain_graph=True)[0] != 0 for o in outputs])
    assert bool((leads.sum(0) == 1).all())
    return leads.int().argmax(0)


def reference(case: Case, x: Tensor) -> Tensor:
    """The output by the paper's equations, differentiable in the layer's parameters and in x."""
    layer, choices = case.layer, case.choices
    w: Tensor = layer.raw_weight
    if choices["direction"] == "row":
        w = w / case.spread(case.norms(w))
    if choices["gain"] != "none" and choices["statistics"] != "batch":
        w = w * case.spread(layer.g)
    t = pre_activation(case.plain, w, x)
    rows = per_unit(case.plain, t)
    n = len(rows)
    if choices["statistics"] != "none":
        mean = rows.sum(0) / n if layer.training else layer.running_mean
        if choices["statistics"] == "batch":
            variance = ((rows - mean) ** 2).sum(0) / n if layer.training else layer.running_var
            rows = layer.g * (rows - mean) / (variance + layer.eps).sqrt()
        else:
            rows = rows - mean
    if layer.bias is not None:
        rows = rows + layer.bias
    moved = t.movedim(unit_axis(case.plain), -1)
    return rows.reshape(moved.shape).movedim(-1, unit_axis(case.plain))


def gradients(y: Tensor, weights: Tensor, layer: nn.Module, x: Tensor) -> Iterator[Tensor]:
    """The gradients of a weighted sum of y and y**2 in the parameters and in x."""
    inputs = [*layer.parameters(), x]
    loss = (y * weights + 0.5 * y * y).sum()
    yield from torch.autograd.grad(loss, inputs)


def ramp(y: Tensor) -> Tensor:
    """Unequal weights for a loss: a plain sum is constant under batch statistics, its gradient rounding."""
    return torch.linspace(-1, 2, y.numel(), dtype=y.dtype).reshape(y.shape)
