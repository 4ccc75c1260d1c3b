"""Whole models: normalise every layer, fold the normalisation away, load foreign state dicts."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from wn.grammar import SCALING, TRACKED
from wn.norm.kinds import KINDS, kind_of
from wn.norm.layer import NormalizedLayer, normalized_layers
from wn.norm.statistics import Activations, NormalizedSite, NormSite
from wn.norm.weight import normalized


def normalize(
    model: nn.Module, layer_class: Callable[..., nn.Module] | None = None, /, **choices: Any
) -> nn.Module:
    """Replace every linear and convolutional layer of a model by a :class:`NormalizedLayer`, in place.

    State dicts of the plain model, and of one under either of torch's weight normalisations, load into the
    result. Parameters stay the same objects, under new names. ``choices`` are those of
    :class:`NormalizedLayer`. If the model is itself such a layer, its replacement is returned.

    Where the model has places of type :class:`wn.norm.NormSite`, statistics are taken there, and its layers
    get the choices of the weight alone. With ``output_layers=False``, layers with an attribute ``is_output``
    stay plain. ``layer_class``, a function ``(layer, **choices) -> module``, takes the place of
    :class:`NormalizedLayer`.

    Raises:
        TypeError: a layer pads with anything but zeros, or is reparameterised already.

    >>> normalize(nn.Sequential(nn.Linear(3, 2)), direction="row")
    Sequential(
      (0): NormalizedLayer(Linear 2x3, direction=row, gain=free, statistics=none, init=default)
    )
    """

    has_sites = any(isinstance(module, NormSite) for module in model.modules())
    outputs = choices.pop("output_layers", True)
    of_sites = {**SITE_DEFAULTS, **choices}
    of_layers = _without_statistics(choices) if has_sites and "statistics" in choices else choices

    def make(layer: nn.Module) -> nn.Module:
        if isinstance(layer, NormSite):
            return NormalizedSite(layer, next(model.parameters()), of_sites)
        stays_plain = getattr(layer, "is_output", False) and not outputs
        if layer_class and not stays_plain:
            return layer_class(layer, **of_layers)
        wrapped = NormalizedLayer(layer, **(_plain(choices) if stays_plain else of_layers))
        wrapped.register_load_state_dict_pre_hook(_accept_foreign_weight)  # type: ignore[no-untyped-call]
        return wrapped

    def wanted(layer: nn.Module) -> bool:
        # torch's weight_norm changes a layer's type; it is included so that NormalizedLayer can refuse it.
        reparameterised = isinstance(layer, KINDS) and nn.utils.parametrize.is_parametrized(layer)
        is_site = isinstance(layer, NormSite) and of_sites["statistics"] != "none"
        return kind_of(layer) is not None or reparameterised or is_site

    return _replace(model, wanted, make)


SITE_DEFAULTS: dict[str, Any] = {
    name: parameter.default for name, parameter in inspect.signature(NormalizedLayer).parameters.items()
}


def _plain(choices: dict[str, Any]) -> dict[str, Any]:
    """The choices of a layer that is not normalised: initialised by data where the others are."""
    init = "data" if choices.get("init") == "data" else "default"
    return {"direction": "plain", "gain": "none", "init": init}


def _without_statistics(choices: dict[str, Any]) -> dict[str, Any]:
    """The choices of a layer whose statistics are taken elsewhere, with the gain that belongs to them."""
    kept = {**choices, "statistics": "none"}
    if choices.get("statistics", "none") not in SCALING:
        return kept
    normalized_direction = choices.get("direction", SITE_DEFAULTS["direction"]) != "plain"
    if normalized_direction:
        kept["init"] = "default"  # without a gain there is nothing for data to set
        kept["scale"] = "one" if choices.get("scale", "none") == "none" else choices["scale"]
    return {**kept, "gain": "none"}


@torch.no_grad()
def fold(model: nn.Module) -> nn.Module:
    """A copy with ordinary layers and the same outputs in evaluation mode, running averages folded in.

    Raises:
        ValueError: statistics are of each image, so no plain layer is the same function.
    """
    for name, layer in normalized_layers(model).items():
        if layer.statistics not in TRACKED | {"none"}:
            statistics = f"{name or 'the layer'} has statistics={layer.statistics}"
            raise ValueError(f"{statistics}, taken of each image: no plain layer is the same function")
    return _replace(copy.deepcopy(model), lambda layer: isinstance(layer, NormalizedLayer), _fold_layer)


def _fold_layer(layer: NormalizedLayer) -> nn.Module:
    weight = layer.effective_weight().clone()
    bias = None if layer.bias is None else layer.bias.clone()
    if layer.statistics != "none":
        shift = -layer.running_mean
        if layer.statistics != "mean_only":
            scale = layer.gains() * torch.rsqrt(layer.running_var + layer.eps)
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
    """Parameters by role: ``weight`` (v or plain), ``g`` (g, s, alpha), ``bias``, ``other`` (other modules').

    >>> {k: len(p) for k, p in parameter_groups(normalize(nn.Linear(3, 2))).items()}
    {'weight': 1, 'g': 1, 'bias': 1, 'other': 0}
    """
    kinds = {"v": "weight", "weight": "weight", "g": "g", "s": "g", "alpha": "g", "bias": "bias"}
    groups: dict[str, list[nn.Parameter]] = {"weight": [], "g": [], "bias": [], "other": []}
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            # a subclass may have parameters of its own
            groups[kinds.get(name, "other") if isinstance(module, Activations) else "other"].append(parameter)
    return groups


def _replace(
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
        if layer.gain_on_weight:
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
