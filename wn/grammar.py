"""The grammar of norms: the values of each choice, which combinations make sense, what follows from them.

A norm is ``w = scale * gain * direction(v)``, then statistics of the activations, then an initialisation.
Where the statistics fix the scale of an output (:data:`SCALING`) the gain acts after them, as their gamma.
Pure data, without torch: the library and the configuration share it. Formulas: docs/NORMS.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, get_args

Direction = Literal["plain", "row", "centered", "spectral", "layer"]
Scale = Literal["none", "one", "sqrt_fan_in", "activation"]
Gain = Literal["none", "free", "exp", "exp3", "fixed", "fixed_layer"]
Hold = Literal["free", "start", "unit"]
Statistics = Literal[
    "none", "batch", "batch_renorm", "mean_only", "layer", "group", "instance", "rms", "instance_rms", "dyt"
]
Init = Literal["default", "data", "arpit"]
Correction = Literal["images", "samples"]

VALUES: dict[str, tuple[str, ...]] = {
    "direction": get_args(Direction),
    "scale": get_args(Scale),
    "gain": get_args(Gain),
    "hold": get_args(Hold),
    "statistics": get_args(Statistics),
    "init": get_args(Init),
    "correction": get_args(Correction),
}

DEFAULTS: dict[str, str | bool] = {
    "direction": "plain",
    "scale": "none",
    "gain": "none",
    "hold": "free",
    "statistics": "none",
    "init": "default",
    "output_layers": True,
}
"""The choices that name a norm, each at its default: plain weights."""

SCALING = frozenset(get_args(Statistics)) - {"none", "mean_only"}
"""Statistics that fix (or, for dyt, bound) the scale of an output: their gain acts after them."""

TRACKED = frozenset({"batch", "batch_renorm", "mean_only"})
"""Statistics over the batch, which evaluation replaces by running averages."""

PER_IMAGE = SCALING - TRACKED - {"dyt"}
"""Statistics of each image, which mix its units or places."""


def mistake(choices: Mapping[str, Any]) -> str | None:
    """Why a combination makes no sense, in one line that says what would; None where it does."""
    direction, scale, gain, hold, statistics, init = (
        choices.get(name, DEFAULTS[name]) for name in list(DEFAULTS)[:6]
    )
    if gain == "none" and statistics in SCALING:
        return f"statistics={statistics} fixes the output's scale: add norm.gain=free, or fixed"
    if gain == "none" and direction != "plain" and scale == "none":
        return f"direction={direction} fixes ||w||: add norm.gain=free, or fixed, or a norm.scale"
    if direction == "plain" and scale != "none":
        return f"scale={scale} is a factor of v/||v||: add norm.direction=row, or leave norm.scale out"
    if gain == "fixed_layer" and (direction == "plain" or scale != "none" or statistics in SCALING):
        return (
            "gain=fixed_layer keeps the layer's own norm: it goes with norm.direction=row and no norm.scale"
        )
    if hold == "unit" and direction == "plain":
        return "hold=unit would change the function of plain weights: add norm.direction=row"
    if init == "data" and statistics == "dyt":
        return "init=data gives outputs variance 1, which dyt bounds: leave norm.init out"
    if init == "data" and (gain == "fixed_layer" or (gain == "none" and direction != "plain")):
        return f"init=data sets a gain per unit, and gain={gain} has none: write norm.gain=free, or fixed"
    if init == "arpit" and (direction != "row" or gain in ("none", "fixed_layer") or scale != "none"):
        return "init=arpit sets the gains of norm.direction=row: add norm.gain=free, without norm.scale"
    if init == "arpit" and statistics in SCALING:
        return f"init=arpit sets ||w||, which statistics={statistics} takes off again: leave one of them out"
    return None


class Properties(NamedTuple):
    """What holds for a norm by its formula; the contract suite tests that it does, and that no more does."""

    invariant: Literal["unit", "layer", "none"]
    """What of v can be rescaled without changing the output: each unit alone, or all alike."""
    norm_grows: bool
    """||v|| never falls under SGD without weight decay: the gradient is orthogonal to v."""
    foldable: bool
    """In evaluation it is a plain layer (:func:`wn.norm.fold`)."""
    batch_of_one: bool
    """It can be trained with a single image."""
    deterministic: bool
    """In training, too, an image's output is a function of that image alone."""


def properties(choices: Mapping[str, Any], dense: bool = False) -> Properties:
    """The properties of a norm's choices, those left out at their defaults.

    ``dense``: for a linear layer, where instance statistics are those of the layer.

    >>> properties({"direction": "row", "gain": "free"})
    Properties(invariant='unit', norm_grows=True, foldable=True, batch_of_one=True, deterministic=True)
    """
    direction, statistics, hold = (
        choices.get(name, DEFAULTS[name]) for name in ("direction", "statistics", "hold")
    )
    per_unit = {"batch"} if dense else {"batch", "instance", "instance_rms"}
    invariant: Literal["unit", "layer", "none"] = "none"
    if direction in ("row", "centered") or statistics in per_unit:
        invariant = "unit"
    elif direction in ("layer", "spectral") or statistics in SCALING - {"dyt", "batch_renorm"}:
        invariant = "layer"
    # Batch renormalisation's running averages lag behind v, but they take no part in the gradient.
    orthogonal = invariant != "none" or statistics == "batch_renorm"
    return Properties(
        invariant,
        norm_grows=orthogonal and hold == "free",
        foldable=statistics in TRACKED | {"none"},
        # A dense layer's output less the mean of one image is nothing.
        batch_of_one=statistics not in ("batch", "batch_renorm")
        and not (dense and statistics == "mean_only"),
        deterministic=statistics not in TRACKED,
    )
