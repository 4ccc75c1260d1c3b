"""The choices of a norm."""

from __future__ import annotations

from typing import Any, Self

import pydantic

from wn import grammar, presets
from wn.config.models import Section


class NormConfig(Section):
    """Independent choices: ``w = scale * gain * direction(v)``, statistics of activations, initialisation.

    Formulas and sources: docs/NORMS.md.
    """

    direction: grammar.Direction = "plain"
    """The weight as it is; each unit's v/||v|| (equation 2), or that of v without its mean; V over its
    spectral or its Frobenius norm."""
    scale: grammar.Scale = "none"
    """A constant factor of the direction; none: the gain starts at v's norm instead."""
    gain: grammar.Gain = "none"
    """Per output unit: none, trained (g, e^s or e^{3s}), or left where it starts. With statistics that fix an
    output's scale it acts after them (gamma)."""
    hold: grammar.Hold = "free"
    """||v|| may grow, or is put back after each step to its start, or to a root mean square of 1."""
    statistics: grammar.Statistics = "none"
    """Taken over the batch (batch, batch_renorm; mean_only, section 4), of each image, or pointwise (dyt)."""
    init: grammar.Init = "default"
    """Gains and biases as drawn, from one batch of data (section 3), or by Arpit et al. (2019)."""
    output_layers: bool = True
    """Whether a model's output layers are normalised; else they are plain."""
    groups: pydantic.PositiveInt = 8
    """Of group statistics; a layer takes the largest divisor of its units up to it."""
    eps: pydantic.PositiveFloat = 1e-6
    """Added to the variance, or the mean square, inside the root."""
    momentum: float = pydantic.Field(default=0.1, gt=0, le=1)
    """Share of the newest batch in the running averages."""
    correction: grammar.Correction = "images"
    """The n of the running variance's n/(n-1): images (the authors) or images x positions (torch)."""
    plugin: str | None = None
    """A norm of the user's own (wn/plugins.py), given what else is set here; null: what the others say."""

    @pydantic.model_validator(mode="after")
    def _makes_sense(self) -> Self:
        if not self.plugin and (mistake := grammar.mistake(self.model_dump())):
            raise ValueError(mistake)
        return self

    @property
    def label(self) -> str:
        if self.plugin:
            return "+".join([self.plugin, *map(str, self.own_choices().values())])
        return presets.label({key: getattr(self, key) for key in grammar.DEFAULTS})

    def own_choices(self) -> dict[str, Any]:
        """What a norm of the user's own is given: the choices that are not at their defaults."""
        return self.model_dump(exclude_defaults=True, exclude={"plugin"})
