"""What theory predicts, as plain numbers: the report draws it beside what was measured."""

from __future__ import annotations

import math

SLOPES = {"relu": 0.0, "leaky_relu": 0.1}


def predicted_factor(kind: str, depth: int, activation: str) -> float:
    """Per layer, for infinite width and normal pre-activations.

    With a the slope for negative inputs, ``c = E f'(z)^2 / Var f(z)``, ``E f'^2 = (1 + a^2)/2``, ``Var f =
    (1 + a^2)/2 - (1 - a)^2/(2 pi)``: a layer whose outputs have variance 1 has ``||w||^2 = 1 / Var f``.
    A residual network's k-th branch sees variance k, so that ``||w||^2`` is k times smaller, and its gradient
    adds to that of the shortcut.
    """
    a = SLOPES[activation]
    slope = (1 + a * a) / 2
    c = slope / (slope - (1 - a) ** 2 / (2 * math.pi))
    if kind != "residual":
        return math.sqrt(c)
    product = math.prod(1 + c / k for k in range(1, depth))
    return float(product ** (0.5 / (depth - 1)))
