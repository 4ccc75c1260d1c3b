"""The named combinations of the grammar of norms. Pure data, so that the library and the bench share it.

A norm is ``w = gain * direction(v)``, then statistics of the batch, then an initialisation; each choice is
a field of :class:`wn.config.NormConfig` and an argument of :class:`wn.norm.NormalizedLayer`. What a preset
leaves out is at its default (:data:`DEFAULTS`). ``configs/norm/*.yaml`` are the same presets for Hydra.
"""

from __future__ import annotations

DEFAULTS = {
    "direction": "plain",
    "gain": "none",
    "hold": "free",
    "statistics": "none",
    "init": "default",
}

PRESETS: dict[str, dict[str, str]] = {
    "none": {},
    "none_init": {"init": "data"},
    "scaled_init": {"gain": "fixed", "init": "data"},
    "batch_norm": {"gain": "free", "statistics": "batch"},
    "weight_norm": {"direction": "row", "gain": "free"},
    "weight_norm_init": {"direction": "row", "gain": "free", "init": "data"},
    "mean_only_bn": {"statistics": "mean_only"},
    "mean_only_bn_init": {"statistics": "mean_only", "init": "data"},
    "weight_norm_mean_only_bn": {"direction": "row", "gain": "free", "statistics": "mean_only"},
    "weight_norm_mean_only_bn_init": {
        "direction": "row",
        "gain": "free",
        "statistics": "mean_only",
        "init": "data",
    },
}


def label(choices: dict[str, str]) -> str:
    """A preset's name, or the choices that differ from the defaults, joined, where no preset has them.

    >>> label({"direction": "row", "gain": "free", "init": "default"})
    'weight_norm'
    >>> label({"direction": "row", "gain": "fixed"})
    'row+fixed'
    """
    chosen = {key: value for key, value in choices.items() if value != DEFAULTS[key]}
    names = [name for name, preset in PRESETS.items() if preset == chosen]
    return names[0] if names else "+".join(chosen.values())
