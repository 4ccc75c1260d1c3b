"""B5 to B7 once more: in percentage points on a tenth of MNIST, and on digits in four times the steps.

A percentage point is three of the validation images of digits, so that a range is one of losses there; of
MNIST's it is 60.
"""

from __future__ import annotations

from collections.abc import Iterator

from wn.claims.measuring import Part, measurement
from wn.claims.ranges import Contrast
from wn.claims.rates import GROWTH, LIMITS, WIDER, conditions_of, less_of, parts

MNIST, LONGER = conditions_of("mlp on MNIST"), conditions_of("mlp for 120 epochs")


@measurement("B5h", LONGER)
@measurement("B5m", MNIST)
def wider_range(conditions: tuple[str, ...]) -> Iterator[Part]:
    """Width of weight normalisation less that of plain weights, one rate for all parameters."""
    controls = [less_of(arm, "plain") for arm in ("plain, decay", "batch norm")]
    return parts(conditions, WIDER, controls, ["plain", "weight norm"])


@measurement("B6h", LONGER)
@measurement("B6m", MNIST)
def what_limits(conditions: tuple[str, ...]) -> Iterator[Part]:
    """Width with the rates of gains and biases capped, less that with one rate, and less plain's."""
    controls = [Contrast("control over annealing", "capped", "plain, decay")]
    return parts(conditions, LIMITS, controls, ["capped"])


@measurement("B7h", LONGER)
@measurement("B7m", MNIST)
def growth(conditions: tuple[str, ...]) -> Iterator[Part]:
    """Width of capped less that of capped with ||v|| put back to its start after every step."""
    return parts(conditions, GROWTH, [less_of("capped and held", "plain")], ["capped and held"])
