"""From rows to verdicts, by rule.

A quantity of a condition has one value a seed. It is held against each threshold by a one-sided t test at
2.5% (equivalence: two at 5%). The tests of one kind, as *confirmed*, are a family over all conditions and
quantities of the claim, passed or not, which Holm corrects. A claim's verdict follows from those of its
conditions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import scipy.special
from numpy.typing import ArrayLike

from wn.claims.criteria import Claim, Quantity
from wn.report.statistics import Array, estimate, holm

CONFIRMED, LIMITS, REFUTED, OPEN = "confirmed", "confirmed with limits", "refuted", "open"
EXACT, DEPENDS, UNTESTED = "exact", "depends", "not tested"

Values = Mapping[str, Mapping[str, ArrayLike]]
"""Condition -> quantity -> a value per seed."""


class Judged(NamedTuple):
    """A quantity of a condition: mean, half of its interval, and its verdict."""

    condition: str
    quantity: str
    mean: float
    half_width: float
    n: int
    verdict: str


class Verdict(NamedTuple):
    """Of a claim: one of the closed vocabulary, and the limit or the reason where the word needs one."""

    word: str
    why: str
    judged: list[Judged]


def judge(claim: Claim, values: Values) -> Verdict:
    """The verdict on a claim by its values; *not tested* where there are none.

    A condition is confirmed where all of its quantities are, refuted where one is.
    """
    cells = [
        (condition, name, quantity, np.asarray(values[condition][name], dtype=float))
        for condition in claim.conditions
        for name, quantity in claim.quantities.items()
        if name in values.get(condition, {})
    ]
    if not cells:
        return Verdict(UNTESTED, "", [])
    if claim.type == "exact":
        return _exact(claim, cells)
    tests = [_tests(quantity, x, claim.seeds) for _, _, quantity, x in cells]
    corrected = {kind: holm([of.get(kind, np.nan) for of in tests]) for kind in (CONFIRMED, LIMITS, REFUTED)}
    judged = []
    for i, (condition, name, quantity, x) in enumerate(cells):
        alpha = 0.05 if quantity.tost else 0.025
        levels = {CONFIRMED: alpha, LIMITS: 0.025, REFUTED: 0.025}
        passed = [kind for kind, level in levels.items() if corrected[kind][i] <= level]
        judged.append(Judged(condition, name, *estimate(x, alpha), passed[0] if passed else OPEN))
    return Verdict(*_combined(claim, judged), judged)


def _exact(claim: Claim, cells: Sequence[tuple[str, str, Quantity, Array]]) -> Verdict:
    judged = []
    for condition, name, quantity, x in cells:
        worst = float(np.max(x)) if np.isfinite(x).all() else np.inf
        holds = isinstance(quantity.confirmed, float) and worst <= quantity.confirmed
        enough = EXACT if len(x) >= claim.seeds else OPEN
        judged.append(Judged(condition, name, worst, np.nan, len(x), enough if holds else REFUTED))
    words = {j.verdict for j in judged}
    if REFUTED in words:
        return Verdict(REFUTED, ", ".join(j.condition for j in judged if j.verdict == REFUTED), judged)
    whole = words == {EXACT} and len(cells) == len(claim.conditions) * len(claim.quantities)
    return Verdict(EXACT, "", judged) if whole else Verdict(OPEN, "rows are missing", judged)


def _p_above(x: Array, threshold: float) -> float:
    """p of the one-sided t test that the mean is above the threshold; 0 or 1 where there is no spread."""
    error = x.std(ddof=1) / np.sqrt(len(x))
    distance = x.mean() - threshold
    if error <= 1e-12 * max(abs(x.mean()), abs(threshold)):
        return 0.0 if distance > 0 else 1.0
    return float(scipy.special.stdtr(len(x) - 1, -distance / error))


def _tests(quantity: Quantity, x: Array, seeds: int) -> dict[str, float]:
    """p of each verdict that the quantity may have, one-sided; none below so many seeds."""
    if len(x) < seeds or not np.isfinite(x).all():
        return {}
    if quantity.rule == "inside":
        return _inside(quantity, x)
    sign = 1 if quantity.rule == "above" else -1
    sides = (
        (CONFIRMED, quantity.confirmed, sign),
        (LIMITS, quantity.limits, sign),
        (REFUTED, quantity.refuted, -sign),
    )
    return {
        kind: _p_above(side * x, side * threshold)
        for kind, threshold, side in sides
        if isinstance(threshold, float)
    }


def _inside(quantity: Quantity, x: Array) -> dict[str, float]:
    found = {}
    if isinstance(quantity.confirmed, tuple):
        low, high = quantity.confirmed
        found[CONFIRMED] = max(_p_above(x, low), _p_above(-x, -high))
    if isinstance(quantity.refuted, tuple):
        low, high = quantity.refuted
        found[REFUTED] = min(_p_above(-x, -low), _p_above(x, high))
    return found


def _combined(claim: Claim, judged: Sequence[Judged]) -> tuple[str, str]:
    """The word for a claim, and why it is not a plain one. A condition without rows is no evidence."""
    words = {condition: _of_condition(claim, judged, condition) for condition in claim.conditions}
    by = {
        w: [c for c, word in words.items() if word == w] for w in (CONFIRMED, LIMITS, REFUTED, OPEN, UNTESTED)
    }
    good, undecided = by[CONFIRMED] + by[LIMITS], by[OPEN] + by[UNTESTED]
    left = [f"{word}: {'; '.join(by[word])}" for word in (OPEN, UNTESTED) if by[word]]
    if by[REFUTED] and good:
        kinds = [f"{word}: {'; '.join(by[word])}" for word in (CONFIRMED, LIMITS, REFUTED) if by[word]]
        return DEPENDS, ". ".join(kinds + left)
    if by[REFUTED]:
        again = len(_families(by[REFUTED])) > 1 or set(by[REFUTED]) & set(claim.second)
        told = [f"refuted: {'; '.join(by[REFUTED])}", *left]
        if claim.type == "experiment":  # in small, and said to be: one measurement is enough
            return (OPEN, ". ".join(told)) if undecided else (REFUTED, "")
        if again and len(by[REFUTED]) > 1:
            return REFUTED, ". ".join(left)
        return OPEN, ". ".join([*told, "a second, independent measurement is missing"])
    if not good or len(undecided) > len(good):
        return OPEN, ". ".join([f"confirmed: {'; '.join(good)}"] * bool(good) + left)
    weaker = [f"weaker: {'; '.join(by[LIMITS])}"] * bool(by[LIMITS])
    if undecided or weaker:
        return LIMITS, ". ".join(weaker + left)
    general = claim.type in ("law", "mechanism", "comparison")
    if general and len(_families(good)) < 2:
        return LIMITS, "one family of models"
    return CONFIRMED, ""


def _families(conditions: Sequence[str]) -> set[str]:
    return {condition.split()[0].strip(",") for condition in conditions}


def _of_condition(claim: Claim, judged: Sequence[Judged], condition: str) -> str:
    words = [j.verdict for j in judged if j.condition == condition]
    if not words:
        return UNTESTED
    if REFUTED in words:
        return REFUTED
    if OPEN in words or len(words) < len(claim.quantities):
        return OPEN
    return LIMITS if LIMITS in words else CONFIRMED
