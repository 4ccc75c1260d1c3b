"""The layers that can be normalised."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping
from typing import Any, NoReturn

import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.lazy import LazyModuleMixin

from wn import grammar

_CONV = ("stride", "padding", "dilation", "groups")
_TRANSPOSED = ("stride", "padding", "output_padding", "groups", "dilation")
OPERATIONS: dict[type[nn.Module], tuple[Callable[..., Tensor], tuple[str, ...]]] = {
    nn.Linear: (F.linear, ()),
    nn.Conv1d: (F.conv1d, _CONV),
    nn.Conv2d: (F.conv2d, _CONV),
    nn.Conv3d: (F.conv3d, _CONV),
    nn.ConvTranspose1d: (F.conv_transpose1d, _TRANSPOSED),
    nn.ConvTranspose2d: (F.conv_transpose2d, _TRANSPOSED),
    nn.ConvTranspose3d: (F.conv_transpose3d, _TRANSPOSED),
}

KINDS = tuple(OPERATIONS)


def kind_of(layer: nn.Module) -> type[nn.Module] | None:
    """The one of :data:`KINDS` that a layer is, or None.

    A masked layer, i.e. a subclass with a buffer ``mask`` of its weight's shape, counts as its base class.
    """
    kind = type(layer) if mask_of(layer) is None else type(layer).__base__
    return kind if kind in OPERATIONS else None


def mask_of(layer: nn.Module) -> Tensor | None:
    """A masked layer's mask; a buffer of this name and another shape is none of the weight."""
    mask, weight = layer._buffers.get("mask"), layer._parameters.get("weight")
    return mask if mask is not None and weight is not None and mask.shape == weight.shape else None


def check_choices(choices: Mapping[str, Any]) -> None:
    """Raise ValueError for a value that does not exist, or a combination that makes no sense."""
    for name, values in grammar.VALUES.items():
        if choices[name] not in values:
            raise ValueError(f"{name}={choices[name]!r}: expected one of {', '.join(values)}")
    if mistake := grammar.mistake(choices):
        raise ValueError(mistake.replace("norm.", ""))


def kind_to_normalize(layer: nn.Module, choices: Mapping[str, Any], name: str = "") -> type[nn.Module]:
    """:func:`kind_of` a layer in a model, there called ``name``.

    Raises:
        TypeError: it cannot be normalised.
        ValueError: not by these choices, which would make it a constant, or mix what its mask keeps apart.
    """
    kind, title, is_one = kind_of(layer), type(layer).__name__, isinstance(layer, KINDS)
    if is_one and isinstance(layer, LazyModuleMixin):
        refuse(f"{title} has no weight yet: call the model on a batch before", name, TypeError)
    if is_one and (nn.utils.parametrize.is_parametrized(layer) or "weight" not in layer._parameters):
        why = f"{title} is reparameterised already: normalise the plain layer and load its state"
        refuse(why, name, TypeError)
    if kind is None or getattr(layer, "padding_mode", "zeros") != "zeros":
        why = f"cannot normalise {layer}: expected Linear, Conv or ConvTranspose padded with zeros"
        refuse(why, name, TypeError)
    weight = layer.get_parameter("weight")
    if not weight.is_floating_point():
        refuse(f"{title} has weights of {weight.dtype}: expected real numbers", name, TypeError)
    dense, statistics = kind is nn.Linear, choices.get("statistics", "none")
    units = getattr(layer, "out_features" if dense else "out_channels")
    if mask_of(layer) is not None and statistics in grammar.PER_IMAGE:
        refuse(f"statistics={statistics} mix what the layer's mask keeps apart", name)
    if choices.get("direction") == "centered" and weight.numel() == units:
        refuse("direction=centered takes off the mean, and a unit of one weight has nothing else", name)
    refuse_one_value(statistics, units, dense, name)
    return kind


def refuse_one_value(statistics: str, units: int, dense: bool, name: str) -> None:
    """Raise ValueError where statistics of each image would be of one value."""
    if units == 1 and (statistics == "rms" or (dense and statistics in grammar.PER_IMAGE)):
        refuse(f"statistics={statistics} of one unit would leave at most its sign", name)


def refuse(why: str, name: str, error: type[Exception] = ValueError) -> NoReturn:
    """Raise an error about a layer that cannot be normalised, which a model calls ``name``."""
    raise error(f"{name}: {why}, or leave it plain with skip={name!r}" if name else why)


def take_attributes(layer: nn.Module, source: nn.Module, but: Container[str] = ()) -> None:
    """Give a layer the public attributes of the one it replaces (``lr_mult``), but for its own names."""
    for name, value in vars(source).items():
        if not (name.startswith("_") or name in but or hasattr(layer, name)):
            setattr(layer, name, value)
