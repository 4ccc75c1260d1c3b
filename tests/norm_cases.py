"""The cases of the contract suite, and the paper's equations written out to check them against.

A new choice of a norm, or a new kind of layer, gets every test by being listed in wn.norm and here.
"""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Iterator
from functools import cache
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call

from wn.grammar import DEFAULTS, SCALING, VALUES, mistake
from wn.norm import NormalizedLayer
from wn.presets import PRESETS, label

with warnings.catch_warnings(), forward_ad.dual_level():
    warnings.simplefilter("ignore")  # torch's first use of forward mode warns of torch.jit
    forward_ad.make_dual(torch.zeros(1), torch.zeros(1))

CHOICES = list(DEFAULTS)[:6]  # all but output_layers, which is a model's
GRAMMAR = [
    dict(zip(CHOICES, values, strict=True)) for values in itertools.product(*(VALUES[c] for c in CHOICES))
]
"""Every combination of choices, with and without meaning."""


def is_covered(norm: dict[str, str]) -> bool:
    """The combinations that meet the contracts beside the presets: those with meaning of the paper's choices,
    and others in which at most two choices are away from their default. (All are too many for every test.)
    """
    away = {choice for choice in CHOICES if norm[choice] != DEFAULTS[choice]}
    papers = (
        norm["direction"] in ("plain", "row")
        and norm["gain"] in ("none", "free", "fixed")
        and norm["statistics"] in ("none", "batch", "mean_only")
        and not away & {"scale", "hold"}
        and norm["init"] != "arpit"
    )
    few = len(away) <= 2 and (norm["gain"] == "free" or norm["direction"] == "row" or "gain" not in away)
    exponential = norm["gain"] == "exp" and len(away) <= 2 and norm["statistics"] in ("batch", "layer")
    held = away == {"direction", "gain", "hold"} and norm["gain"] == "free"
    return mistake(norm) is None and (papers or few or exponential or held)


def complete(preset: dict[str, Any]) -> dict[str, str]:
    return {choice: preset.get(choice, DEFAULTS[choice]) for choice in CHOICES}


NORMS: dict[str, dict[str, str]] = {name: complete(preset) for name, preset in PRESETS.items()}
NORMS |= {label(norm): norm for norm in GRAMMAR if is_covered(norm) and norm not in NORMS.values()}
PRESET_NAMES = list(PRESETS)
PAPERS = PRESET_NAMES[: PRESET_NAMES.index("exp_weight_norm")]
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


SOME = ("linear-sequence", "conv1d", "conv2d-groups", *BOTH)


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
    layer = NormalizedLayer(make_plain(name, dtype, seed)[0], **NORMS[norm], activation="relu", **options)
    with torch.no_grad():
        if layer.gain in ("exp", "exp3"):
            layer.s.add_(torch.linspace(0.3, -0.4, layer.units, dtype=dtype))
        elif layer.has_gain:
            layer.g.mul_(torch.linspace(0.5, -1.5, layer.units, dtype=dtype))
        for buffer_name, buffer in layer.named_buffers():
            if "running" in buffer_name:
                buffer.uniform_(0.5, 2)
    return Case(layer, plain, x, NORMS[norm], unit_of(name))


def every_case(norms: Any = NORMS, layers: Any = LAYERS, dtypes: Any = DTYPES) -> pytest.MarkDecorator:
    """Parametrise a test by norm, layer and dtype.

    The paper's presets meet every layer in the first dtype, the field's some, the other norms the layers of
    ``BOTH``; in a second dtype the paper's presets meet these.
    """
    first, *_ = dtypes
    cases = [
        pytest.param(norm, name, DTYPES[dtype], id=f"{norm}-{name}-{dtype}")
        for norm, name, dtype in itertools.product(norms, layers, dtypes)
        if (norm in PAPERS) + (name in BOTH) + (dtype == first) >= 2
        or (norm in PRESET_NAMES and name in SOME and dtype == first)
    ]
    return pytest.mark.parametrize(("norm", "name", "dtype"), cases)


def having(**choices: str) -> list[str]:
    """The norms with these choices."""
    return [name for name, norm in NORMS.items() if choices.items() <= norm.items()]


WEIGHT_NORM = having(direction="row", gain="free", scale="none", statistics="none")
TRACKED = [
    name for name, norm in NORMS.items() if norm["statistics"] in ("batch", "batch_renorm", "mean_only")
]


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
    """The output by the equations of the sources, differentiable in the layer's parameters and in x."""
    layer, choices = case.layer, case.choices
    w = reference_direction(case, layer.raw_weight)
    after = choices["statistics"] in SCALING
    if choices["gain"] != "none" and not after:
        w = w * case.spread(reference_gain(layer))
    t = pre_activation(case.plain, w, x)
    axis = unit_axis(case.plain)
    y = reference_statistics(case, t.movedim(axis, -1) if t.dim() > 2 else t)
    if after:
        y = y * reference_gain(layer)
    if layer.bias is not None:
        y = y + layer.bias
    return y.movedim(-1, axis) if t.dim() > 2 else y


def reference_gain(layer: NormalizedLayer) -> Tensor:
    return {"exp": lambda: layer.s.exp(), "exp3": lambda: (layer.s * 3).exp()}.get(
        layer.gain, lambda: layer.g
    )()


def reference_direction(case: Case, v: Tensor) -> Tensor:
    """``scale * direction(v)``, unit by unit through :attr:`Case.unit_of`."""
    choices, size = case.choices, case.sums(torch.ones_like(v))
    match choices["direction"]:
        case "plain":
            d = v
        case "row":
            d = v / case.spread(case.norms(v))
        case "centered":
            c = v - case.spread(case.sums(v) / size)
            d = c / case.spread(case.norms(c))
        case "layer":
            d = v / v.square().sum().sqrt()
        case "spectral":
            rows = torch.stack([v[case.unit_of == unit] for unit in range(len(size))])
            d = v / torch.linalg.svdvals(rows)[0]
    if choices["scale"] == "sqrt_fan_in":
        return d * case.spread(size.sqrt())
    return d * math.sqrt(2 / (1 - 1 / math.pi)) if choices["scale"] == "activation" else d


def reference_statistics(case: Case, t: Tensor) -> Tensor:
    """Statistics of ``t [batch, places..., units]``, before gain and bias."""
    layer, kind, eps = case.layer, case.choices["statistics"], case.layer.eps
    units, dense = t.shape[-1], isinstance(case.plain, nn.Linear)
    rows = t.reshape(-1, units)
    images = rows[:, None] if dense else t.reshape(len(t), -1, units)  # [images or tokens, places, units]
    match kind:
        case "none":
            return t
        case "dyt":
            return torch.tanh(layer.alpha * t)
        case "mean_only":
            return t - (rows.mean(0) if layer.training else layer.running_mean)
        case "batch":
            mean = rows.sum(0) / len(rows) if layer.training else layer.running_mean
            variance = ((rows - mean) ** 2).sum(0) / len(rows) if layer.training else layer.running_var
            return (t - mean) / (variance + eps).sqrt()
        case "batch_renorm":
            slow_mean, slow = layer.running_mean, (layer.running_var + eps).sqrt()
            if not layer.training:
                return (t - slow_mean) / slow
            mean, sigma = rows.mean(0), (rows.var(0, correction=0) + eps).sqrt()
            r = (sigma / slow).detach().clamp(1 / 3, 3)  # r_max and d_max at the end of training
            d = ((mean - slow_mean) / slow).detach().clamp(-5, 5)
            return (t - mean) / sigma * r + d
        case "rms" | "instance_rms":
            over = 2 if dense or kind == "rms" else 1
            return (images / (images.square().mean(over, keepdim=True) + eps).sqrt()).reshape(t.shape)
    if kind == "instance" and not dense:
        groups = units
    else:
        most = min(8, units // 4 if dense else units)
        groups = max(n for n in range(1, most + 1) if units % n == 0) if kind == "group" else 1
    parts = images.reshape(*images.shape[:2], groups, -1)
    mean = parts.mean((1, 3), keepdim=True)
    variance = parts.var((1, 3), correction=0, keepdim=True)
    return ((parts - mean) / (variance + eps).sqrt()).reshape(t.shape)


def gradients(y: Tensor, weights: Tensor, layer: nn.Module, x: Tensor) -> Iterator[Tensor]:
    """The gradients of a weighted sum of y and y**2 in the parameters and in x."""
    inputs = [*layer.parameters(), x]
    loss = (y * weights + 0.5 * y * y).sum()
    yield from torch.autograd.grad(loss, inputs)


def ramp(y: Tensor) -> Tensor:
    """Unequal weights for a loss: a plain sum is constant under batch statistics, its gradient rounding."""
    # Not in float16 itself: torch 2.11 counts the steps in the type of the result, and 65504 is its largest.
    wide = torch.promote_types(y.dtype, torch.float32)
    return torch.linspace(-1, 2, y.numel(), dtype=wide).to(y.dtype).reshape(y.shape)
