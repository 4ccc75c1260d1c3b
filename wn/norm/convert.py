"""Whole models: normalise every layer, fold the normalisation away, load foreign state dicts."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from wn.norm.kinds import KINDS, kind_of
from wn.norm.layer import NormalizedLayer, normalized_layers
from wn.norm.weight import normalized


def normalize(model: nn.Module, **choices: Any) -> nn.Module:
    """Replace every linear and convolutional layer of a model by a :class:`NormalizedLayer`, in place.

    State dicts of the plain model, and of one under either of torch's weight normalisations, load into the
    result. Parameters stay the same objects, under new names. ``choices`` are those of
    :class:`NormalizedLayer`. If the model is itself such a layer, its replacement is returned.

    Raises:
        TypeError: a layer pads with anything but zeros, or is reparameterised already.

    >>> normalize(nn.Sequential(nn.Linear(3, 2)), direction="row")
    Sequential(
      (0): NormalizedLayer(Linear 2x3, direction=row, gain=free, statistics=none, init=default)
    )
    """

    def make(layer: nn.Module) -> nn.Module:
        wrapped = NormalizedLayer(layer, **choices)
        wrapped.register_load_state_dict_pre_hook(_accept_foreign_weight)  # type: ignore[no-untyped-call]
        return wrapped

    def wanted(layer: nn.Module) -> bool:
        # torch's weight_norm changes a layer's type; it is included so that NormalizedLayer can refuse it.
        reparameterised = isinstance(layer, KINDS) and nn.utils.parametrize.is_parametrized(layer)
        return kind_of(layer) is not None or reparameterised

    return replace(model, wanted, make)


@torch.no_grad()
def fold(model: nn.Module) -> nn.Module:
    """A copy with ordinary layers and the same outputs in evaluation mode, running averages folded in."""
    return replace(copy.deepcopy(model), lambda layer: isinstance(layer, NormalizedLayer), _fold_layer)


def _fold_layer(layer: NormalizedLayer) -> nn.Module:
    weight = layer.effective_weight().clone()
    bias = None if layer.bias is None else layer.bias.clone()
    if layer.statistics != "none":
        shift = -layer.running_mean
        if layer.statistics == "batch":
            scale = layer.g * torch.rsqrt(layer.running_var + layer.eps)
            layer.scale_units(weight, scale)
            shift = shift * scale
        bias = shift if bias is None else bias + shift
    plain = _empty_layer(layer, bias is not None)
    plain.weight = nn.Parameter(weight)
    if bias is not None:
        plain.bias = nn.Parameter(bias)
    return plain.train(layer.training)


def _empty_layer(layer: NormalizedLayer, bias: bool) -> nn.Module:
    # On the meta device no initial weights are drawn, so the global generator stays where it was.
    first, second, *kernel = layer.raw_weight.shape
    groups = layer.options.get("groups", 1)
    inputs, outputs = (first, second * groups) if layer.transposed else (second * groups, first)
    size = [tuple(kernel)] if kernel else []
    return layer.kind(inputs, outputs, *size, bias=bias, device="meta", **layer.options)


def parameter_groups(model: nn.Module) -> dict[str, list[nn.Parameter]]:
    """Parameters by role: ``weight`` (v or plain), ``g``, ``bias``, and ``other`` (of other modules).

    >>> {k: len(p) for k, p in parameter_groups(normalize(nn.Linear(3, 2))).items()}
    {'weight': 1, 'g': 1, 'bias': 1, 'other': 0}
    """
    kinds = {"v": "weight", "weight": "weight", "g": "g", "bias": "bias"}
    groups: dict[str, list[nn.Parameter]] = {"weight": [], "g": [], "bias": [], "other": []}
    layers = set(normalized_layers(model).values())
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            # a subclass may have parameters of its own
            groups[kinds.get(name, "other") if module in layers else "other"].append(parameter)
    return groups


def replace(
    model: nn.Module, wanted: Callable[[nn.Module], bool], make: Callable[[Any], nn.Module]
) -> nn.Module:
    made = {module: make(module) for module in model.modules() if wanted(module)}
    for parent in model.modules():
        for name, child in parent._modules.items():  # named_children skips a layer's second occurrence
            if child in made:
                setattr(parent, name, made[child])
    return made.get(model, model)


def _accept_foreign_weight(layer: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Translate the state of a plain layer, or of torch's weight normalisations, to this layer's keys.

    v and g are kept if the source has one gain per output unit. Otherwise (torch normalises a transposed
    convolution over its input channels) v is the source's effective weight. Missing entries get the values
    of a new layer, and the layer counts as initialised.
    """
    assert isinstance(layer, NormalizedLayer)
    if layer.init != "data":
        state.pop(prefix + "initialized", None)  # saved with init="data"; here nothing waits for data
    source = _take_weight(state, prefix)
    if source is None:
        return
    v, g, w = source
    if layer.direction == "plain":
        state[prefix + "weight"] = w
        if layer.has_gain and layer.statistics != "batch":
            state[prefix + "g"] = torch.ones_like(layer.g)
    elif g is not None and g.numel() == layer.g.numel() == g.shape[1 if layer.transposed else 0]:
        state[prefix + "v"], state[prefix + "g"] = v, g.flatten()
    else:
        state[prefix + "v"], state[prefix + "g"] = w, layer.unit_norm(layer.masked(w))
    for name, own in layer.state_dict().items():
        if name != "bias":
            state.setdefault(prefix + name, torch.ones_like(own) if name == "initialized" else own)


def _take_weight(state: dict[str, Any], prefix: str) -> tuple[Tensor, Tensor | None, Tensor] | None:
    """Pop a foreign weight from ``state``: v, g (None if plain), and the effective weight."""
    parametrized = "parametrizations.weight.original"
    for v_name, g_name in (("weight_v", "weight_g"), (parametrized + "1", parametrized + "0")):
        if prefix + v_name in state:
            v, g = state.pop(prefix + v_name), state.pop(prefix + g_name)
            dims = [d for d in range(v.dim()) if g.dim() == 0 or g.shape[d] == 1]
            return v, g, normalized(v, dims, g)
    if prefix + "weight" in state and prefix + "g" not in state:
        w = state.pop(prefix + "weight")
        return w, None, w
    return None
