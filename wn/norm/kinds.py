"""The layers that can be normalised."""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

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
ATTRIBUTES = sorted({name for kind in KINDS for name in getattr(kind, "__constants__", ())})


def kind_of(layer: nn.Module) -> type[nn.Module] | None:
    """The one of :data:`KINDS` that a layer is, or None.

    A masked layer, i.e. a subclass with a buffer ``mask`` of its weight's shape, counts as its base class.
    """
    kind = type(layer).__base__ if "mask" in layer._buffers else type(layer)
    return kind if kind in OPERATIONS else None


def check_choices(
    direction: str, scale: str, gain: str, hold: str, statistics: str, init: str, correction: str
) -> None:
    """Raise ValueError for a value that does not exist, or a combination that makes no sense."""
    choices = dict(locals())
    for name, value in choices.items():
        if value not in grammar.VALUES[name]:
            raise ValueError(f"{name}={value!r}: expected one of {', '.join(grammar.VALUES[name])}")
    if mistake := grammar.mistake(choices):
        raise ValueError(mistake.replace("norm.", ""))


def kind_to_normalize(layer: nn.Module, name: str = "") -> type[nn.Module]:
    """:func:`kind_of`, or TypeError if the layer, in a model of that ``name``, cannot be normalised."""
    place, leave = (f"{name}: ", f", or leave it plain with skip={name!r}") if name else ("", "")
    kind, is_one = kind_of(layer), isinstance(layer, KINDS)
    if is_one and (nn.utils.parametrize.is_parametrized(layer) or "weight" not in layer._parameters):
        raise TypeError(
            f"{place}{type(layer).__name__} is reparameterised already: "
            f"normalise the plain layer and load its state{leave}"
        )
    if kind is None or getattr(layer, "padding_mode", "zeros") != "zeros":
        raise TypeError(
            f"{place}cannot normalise {layer}: "
            f"expected Linear, Conv or ConvTranspose padded with zeros{leave}"
        )
    return kind
