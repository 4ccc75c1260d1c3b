"""The named norms: combinations of the choices in :mod:`wn.grammar`.

What a preset leaves out is at its default. ``configs/norm/*.yaml`` are the same presets for Hydra, each with
its formula and source.
"""

from __future__ import annotations

from collections.abc import Mapping

from wn.grammar import DEFAULTS

WEIGHT_NORM = {"direction": "row", "gain": "free"}

PRESETS: dict[str, dict[str, str | bool]] = {
    # The paper's.
    "none": {},
    "none_init": {"init": "data"},
    "scaled_init": {"gain": "fixed", "init": "data"},
    "batch_norm": {"gain": "free", "statistics": "batch"},
    "weight_norm": {**WEIGHT_NORM},
    "weight_norm_init": {**WEIGHT_NORM, "init": "data"},
    "mean_only_bn": {"statistics": "mean_only"},
    "mean_only_bn_init": {"statistics": "mean_only", "init": "data"},
    "weight_norm_mean_only_bn": {**WEIGHT_NORM, "statistics": "mean_only"},
    "weight_norm_mean_only_bn_init": {**WEIGHT_NORM, "statistics": "mean_only", "init": "data"},
    # Of weights.
    "exp_weight_norm": {"direction": "row", "gain": "exp"},
    "centered_weight_norm": {"direction": "centered", "gain": "free"},
    "arpit_weight_norm": {**WEIGHT_NORM, "init": "arpit"},
    "bounded_weight_norm": {"direction": "row", "gain": "fixed_layer", "output_layers": False},
    "forced_weight_norm": {"direction": "row", "scale": "one", "hold": "unit", "output_layers": False},
    "spectral_norm": {"direction": "spectral", "scale": "one", "output_layers": False},
    "scaled_weight_standardization": {
        "direction": "centered",
        "scale": "activation",
        "gain": "free",
        "output_layers": False,
    },
    # Of activations.
    "batch_renorm": {"gain": "free", "statistics": "batch_renorm"},
    "layer_norm": {"gain": "free", "statistics": "layer", "output_layers": False},
    "group_norm": {"gain": "free", "statistics": "group", "output_layers": False},
    "instance_norm": {"gain": "free", "statistics": "instance", "output_layers": False},
    "rms_norm": {"gain": "free", "statistics": "rms", "output_layers": False},
    "instance_rms_norm": {"gain": "free", "statistics": "instance_rms", "output_layers": False},
    "dyt": {"gain": "free", "statistics": "dyt", "output_layers": False},
    # Of both.
    "weight_standardization": {
        "direction": "centered",
        "scale": "sqrt_fan_in",
        "gain": "free",
        "statistics": "group",
        "output_layers": False,
    },
}


def label(choices: Mapping[str, str | bool]) -> str:
    """A preset's name, or the choices that differ from the defaults, joined, where no preset has them.

    A preset with its output layers treated the other way keeps its name.

    >>> label({"direction": "row", "gain": "free", "init": "default"})
    'weight_norm'
    >>> label({"direction": "row", "gain": "fixed"})
    'row+fixed'
    >>> label({"direction": "row", "gain": "free", "output_layers": False})
    'weight_norm+plain_output'
    """
    chosen = {key: value for key, value in choices.items() if value != DEFAULTS[key]}
    outputs = chosen.pop("output_layers", True)
    for name, preset in PRESETS.items():
        if {key: value for key, value in preset.items() if key != "output_layers"} == chosen:
            usual = preset.get("output_layers", True)
            return name if outputs == usual else f"{name}+{'normalized' if outputs else 'plain'}_output"
    return "+".join(map(str, [*chosen.values(), *([] if outputs else ["plain_output"])]))
