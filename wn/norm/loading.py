"""State dicts of plain layers, and of torch's weight normalisations, loaded into normalised layers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from wn.norm.layer import NormalizedLayer
from wn.norm.weight import nonzero, normalized


def empty_layer(layer: NormalizedLayer, bias: bool) -> nn.Module:
    """A plain layer of the same shape, on the meta device, where no initial weights are drawn."""
    names = ("in_features", "out_features") if layer.dense else ("in_channels", "out_channels", "kernel_size")
    size = [getattr(layer, name) for name in names]
    return layer.kind(*size, bias=bias, device="meta", **layer.options)


@torch.no_grad()
def accept_foreign_weight(layer: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Translate the state of a plain layer, or of torch's weight normalisations, to this layer's keys.

    v and g are kept if the source has one gain per output unit. Otherwise (torch normalises a transposed
    convolution over its input channels) the source's effective weight is what counts. All else, running
    averages too, gets the values of a new layer made of that weight; and it counts as initialised. The
    result is the source's function where the norm can be: not where it centres weights, fixes their length,
    bounds outputs or takes statistics of each image.

    A state that has any key of a normalised layer is taken as this layer's own; torch then reports the keys
    that it lacks.
    """
    assert isinstance(layer, NormalizedLayer)
    if layer.init != "data":
        state.pop(prefix + "initialized", None)  # saved with init="data"; here nothing waits for data
    own = layer.state_dict().keys() - {"weight", "bias"}
    source = None if any(prefix + name in state for name in own) else _take_weight(layer, state, prefix)
    if source is None:
        return
    v, g, w = source
    if w.shape != layer.raw_weight.shape:
        state[prefix + layer.raw_name] = w  # torch reports the mismatch
        return
    fresh = _new_layer(layer, w)
    keeps = layer.direction == "row" and layer.scale == "none" and layer.gain in ("free", "fixed")
    per_unit = g is not None and g.dim() and g.numel() == g.shape[1 if layer.transposed else 0] == layer.units
    if g is not None and keeps and per_unit:
        fresh.raw_weight.copy_(v)
        fresh.g.copy_(g.flatten())
    for name, value in fresh.state_dict().items():
        if name != "bias":
            state[prefix + name] = torch.ones_like(value) if name == "initialized" else value


def _new_layer(layer: NormalizedLayer, w: Tensor) -> NormalizedLayer:
    """A layer of the same choices that starts from ``w``, in evaluation its function if the norm can be."""
    plain = empty_layer(layer, bias=False)
    plain.weight = nn.Parameter(w.clone())
    if layer.mask is not None:
        plain.__class__ = type("Masked", (layer.kind,), {})  # a subclass, as masked layers are
        plain.register_buffer("mask", layer.mask)
    choices = {**layer.choices, "init": "data" if layer.init == "data" else "default"}
    if layer.direction == "plain" or not layer.has_gain or layer.gain == "fixed_layer" or layer.starts_alike:
        return NormalizedLayer(plain, **choices)
    # A new layer's gains would be 1.
    free = NormalizedLayer(plain, **{**choices, "hold": "free"})
    gains = nonzero(free.direction_norm()) / free.constant
    fresh = NormalizedLayer(plain, **choices)
    fresh.set_gains(gains)
    return fresh


def _take_weight(
    layer: NormalizedLayer, state: dict[str, Any], prefix: str
) -> tuple[Tensor, Tensor | None, Tensor] | None:
    """Pop a foreign weight from ``state``: v, g (None if plain), and the effective weight.

    In the layer's type: norms of a checkpoint in half precision would be half a percent off.
    """
    dtype = layer.raw_weight.dtype
    parametrized = "parametrizations.weight.original"
    for v_name, g_name in (("weight_v", "weight_g"), (parametrized + "1", parametrized + "0")):
        if prefix + v_name in state and prefix + g_name in state:
            v, g = state.pop(prefix + v_name).to(dtype), state.pop(prefix + g_name).to(dtype)
            dims = [d for d in range(v.dim()) if g.dim() == 0 or g.shape[d] == 1]
            return v, g, normalized(v, dims, g)
    if prefix + "weight" in state:
        w = state.pop(prefix + "weight").to(dtype)
        return w, None, w
    return None
