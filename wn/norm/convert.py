"""Whole models: normalise every layer, fold the normalisation away, group the parameters."""

from __future__ import annotations

import copy
import inspect
import operator
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.modules.lazy import LazyModuleMixin

from wn.grammar import DEFAULTS, SCALING, TRACKED
from wn.norm.coverage import Names, chosen, left_out, readers_of_weights
from wn.norm.kinds import KINDS, kind_of, kind_to_normalize, refuse_one_value, take_attributes
from wn.norm.layer import NormalizedLayer, normalized_layers
from wn.norm.loading import accept_foreign_weight, empty_layer
from wn.norm.statistics import Activations, NormalizedSite, NormSite
from wn.presets import PRESETS


def normalize(
    model: nn.Module,
    norm: str = "weight_norm",
    *,
    only: Names = None,
    skip: Names = (),
    layer_class: Callable[..., nn.Module] | None = None,
    **choices: Any,
) -> nn.Module:
    """Replace every linear and convolutional layer of a model by a :class:`NormalizedLayer`, in place.

    State dicts of the plain model, and of one under either of torch's weight normalisations, load into the
    result. In evaluation it then has the same outputs, unless the norm centres weights, fixes their length,
    bounds outputs or takes statistics of each image. Parameters stay the same objects, under new names; hooks
    stay, and a layer's public attributes but where the new one has the name. Lists, tuples and dicts in which
    a module also keeps a layer get the new one. If the model is itself such a layer, its replacement is
    returned. After an error no layer is replaced.

    :func:`wn.norm.summary` shows what was normalised and what was not. A warning names matrices that are in
    no layer of their own (LSTM, attention) and subclasses of the layers.

    Where the model has places of type :class:`wn.norm.NormSite`, statistics are taken there, and its layers
    get the choices of the weight alone. With ``output_layers=False``, layers with an attribute ``is_output``
    stay plain.

    Code that reads a layer's ``weight``, and does not call the layer, gets w. It passes over statistics, and
    over the gain of a plain direction. So with these the fast path of ``nn.TransformerEncoder`` is switched
    off, and layers that their module reads so (as its source shows; Swin's attention is one) stay plain.

    Args:
        model: a model that is not yet wrapped for data-parallel training.
        norm: a name in :data:`wn.presets.PRESETS`.
        only, skip: names of layers or of the blocks that hold them, with ``*`` for anything:
            ``skip="fc"``, ``only=["layer?.*", "stem"]``.
        layer_class: ``(layer, **choices) -> module`` in the place of :class:`NormalizedLayer`, for a norm of
            your own. It gets the choices that are given here alone.
        choices: of :class:`NormalizedLayer`, instead of the preset's.

    Raises:
        TypeError: a layer pads with anything but zeros, is reparameterised already, or has no weight yet, or
            one that is not of real numbers; the model is wrapped.
        ValueError: an unknown preset or choice, a combination without meaning, a name that no layer has, a
            layer that the norm would make a constant.

    >>> normalize(nn.Sequential(nn.Linear(3, 2)), "weight_norm")
    Sequential(
      (0): NormalizedLayer(Linear 2x3, direction=row, gain=free, statistics=none, init=default)
    )
    """
    if norm not in PRESETS:
        raise ValueError(f"norm={norm!r}: expected one of {', '.join(PRESETS)}")
    for module in model.modules():
        if type(module).__name__ in ("DistributedDataParallel", "FullyShardedDataParallel"):
            raise TypeError(f"normalise the model before wrapping it in {type(module).__name__}")
    given, choices = set(choices), {**DEFAULTS, **PRESETS[norm], **choices}
    has_sites = any(isinstance(module, NormSite) for module in model.modules())
    outputs = choices.pop("output_layers")
    of_sites = {**SITE_DEFAULTS, **choices}
    of_layers = _without_statistics(choices) if has_sites else choices

    def wanted(module: nn.Module) -> bool:
        # torch's weight_norm changes a layer's type; like lazy ones it is included so that it can be refused.
        reparameterised = isinstance(module, KINDS) and nn.utils.parametrize.is_parametrized(module)
        is_site = isinstance(module, NormSite) and of_sites["statistics"] != "none"
        lazy = isinstance(module, KINDS) and isinstance(module, LazyModuleMixin)
        return kind_of(module) is not None or reparameterised or lazy or is_site

    def stays_plain(layer: nn.Module) -> bool:
        return getattr(layer, "is_output", False) and not outputs

    def choices_of(layer: nn.Module) -> dict[str, Any]:
        if stays_plain(layer):
            return _plain(choices)
        return {name: of_layers[name] for name in of_layers if name in given or not layer_class}

    layers = chosen(model, wanted, only, skip)
    past = {} if _weight_is_all(of_layers) else readers_of_weights(model, layers)
    layers = [layer for layer in layers if layer not in past]
    for name, module in model.named_modules():
        if module in layers and isinstance(module, NormSite):
            refuse_one_value(of_sites["statistics"], module.features, True, name)
        elif module in layers:
            kind_to_normalize(module, choices_of(module), name)

    def make(layer: nn.Module) -> nn.Module:
        if isinstance(layer, NormSite):
            return NormalizedSite(layer, next(model.parameters()), of_sites)
        if layer_class and not stays_plain(layer):
            return layer_class(layer, **choices_of(layer))
        wrapped = NormalizedLayer(layer, **choices_of(layer))
        wrapped.register_load_state_dict_pre_hook(accept_foreign_weight)  # type: ignore[no-untyped-call]
        return wrapped

    if not layers:
        warnings.warn("normalize found no layer to normalise in this model", stacklevel=2)
    with _tied_kept(model, layers):
        made = {layer: make(layer) for layer in layers}
    model = _replace(model, made)
    if not _weight_is_all(of_layers):
        _switch_fast_paths_off(model)
    if told := left_out(model, past, only, skip):
        warnings.warn(told, stacklevel=2)
    return model


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
    if choices["statistics"] not in SCALING:
        return kept
    if choices["direction"] != "plain":
        kept["init"] = "default"  # without a gain there is nothing for data to set
        kept["scale"] = "one" if choices["scale"] == "none" else choices["scale"]
    return {**kept, "gain": "none"}


def _weight_is_all(choices: dict[str, Any]) -> bool:
    """Whether code that multiplies by ``layer.weight`` computes what the layer does."""
    plain_with_gain = choices["direction"] == "plain" and choices["gain"] != "none"
    return choices["statistics"] == "none" and not plain_with_gain


def _switch_fast_paths_off(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoderLayer) and normalized_layers(module):
            module.activation_relu_or_gelu = 0  # torch's own mark of a layer without a fast path
        elif isinstance(module, nn.TransformerEncoder) and normalized_layers(module):
            module.use_nested_tensor = False


@contextmanager
def _tied_kept(model: nn.Module, layers: list[nn.Module]) -> Iterator[None]:
    """Put back weights that other modules share: an embedding's row of zeros is for padding."""
    others = {p for m in model.modules() if m not in layers for p in m.parameters(recurse=False)}
    tied = {p: p.detach().clone() for layer in layers for p in layer.parameters(recurse=False) if p in others}
    yield
    with torch.no_grad():
        for parameter, value in tied.items():
            parameter.copy_(value)


@torch.no_grad()
def fold(model: nn.Module) -> nn.Module:
    """A copy with ordinary layers and the same outputs in evaluation mode, running averages folded in.

    A weight of the result is trainable where v or the gain was.

    Raises:
        ValueError: statistics are of each image, or tanh, so no plain layer is the same function.
    """
    for name, layer in normalized_layers(model).items():
        if layer.statistics not in TRACKED | {"none"}:
            statistics = f"{name or 'the layer'} has statistics={layer.statistics}"
            raise ValueError(f"{statistics}, not affine in evaluation: no plain layer is the same function")
    model = copy.deepcopy(model)
    return _replace(model, {layer: _fold_layer(layer) for layer in normalized_layers(model).values()})


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
    plain = empty_layer(layer, bias is not None)
    take_attributes(plain, layer, but=layer.own)
    trained = {name: p.requires_grad for name, p in layer.named_parameters()}
    weight_trained = any(trained.get(name, False) for name in (layer.raw_name, "g", "s"))
    plain.weight = nn.Parameter(weight, weight_trained)
    if bias is not None:
        plain.bias = nn.Parameter(bias, trained.get("bias", weight_trained))
    return plain


def parameter_groups(model: nn.Module) -> dict[str, list[nn.Parameter]]:
    """Parameters by role: ``weight`` (v or plain), ``g`` (gains, s, alpha), ``bias``, ``other``.

    ``other`` are those of other modules. Each is there once: a tied one as what it is in a normalised layer.

    >>> {k: len(p) for k, p in parameter_groups(normalize(nn.Linear(3, 2))).items()}
    {'weight': 1, 'g': 1, 'bias': 1, 'other': 0}
    """
    kinds = {"v": "weight", "weight": "weight", "g": "g", "s": "g", "alpha": "g", "bias": "bias"}
    groups: dict[str, list[nn.Parameter]] = {"weight": [], "g": [], "bias": [], "other": []}
    role: dict[nn.Parameter, str] = {}
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if isinstance(module, Activations):
                role[parameter] = kinds.get(name, "other")  # a subclass may have parameters of its own
            role.setdefault(parameter, "other")
    for parameter, kind in role.items():
        groups[kind].append(parameter)
    return groups


def _replace(model: nn.Module, made: dict[nn.Module, nn.Module]) -> nn.Module:
    for old, new in made.items():
        new.train(old.training)
        hooked = old not in new.modules()  # a layer that is wrapped keeps its own
        for name, value in vars(old).items():
            if hooked and name.startswith(("_forward_", "_backward_", "_is_full_backward_hook")):
                setattr(
                    new, name, value
                )  # hooks: the same dicts, so that their handles can still remove them
    seen: set[int] = set()
    for parent in list(model.modules()):  # as they were: a made layer may contain the one that it replaces
        _swapped(vars(parent), made, seen)
    return made.get(model, model)


def _swapped(value: Any, made: dict[nn.Module, nn.Module], seen: set[int]) -> Any:
    """What is to stand in a value's place: what is made of a module, a tuple of which some item is swapped.

    Lists and dicts are changed in place, so that whoever holds them sees it; ``seen`` are those that were.
    """
    if isinstance(value, nn.Module):
        return made.get(value, value)
    if not isinstance(value, (list, dict, tuple)) or id(value) in seen:
        return value
    if isinstance(value, tuple):
        items = [_swapped(item, made, seen) for item in value]
        same = all(map(operator.is_, items, value))
        return value if same else tuple.__new__(type(value), items)
    seen.add(id(value))
    for key, item in list(value.items() if isinstance(value, dict) else enumerate(value)):
        if (other := _swapped(item, made, seen)) is not item:
            value[key] = other
    return value
