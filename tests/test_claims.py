"""Criteria can be met and missed, and verdicts follow from rows by rule."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from wn.claims import criteria
from wn.claims.criteria import Claim, Quantity
from wn.report.claims.verdicts import judge

SPREAD = np.array([-1.0, -0.5, 0.0, 0.5, 1.0])


def claim(**changes: Any) -> Claim:
    tree = {
        "id": "B3",
        "section": "2.1",
        "statement": "s",
        "type": "law",
        "paper": "asserted, no data",
        "design": "d",
        "control": "c",
        "quantities": {"q": {"what": "w", "rule": "above", "confirmed": 1, "limits": 0.3, "refuted": 0.3}},
        "conditions": {"mlp, SGD": "", "vae, SGD": ""},
    }
    return Claim.model_validate(tree | changes)


def example(quantity: Quantity, true: bool) -> np.ndarray:
    """Five values, one a seed, for which the quantity's statement is true, or false, by construction."""
    pair = quantity.confirmed if true else quantity.refuted
    if quantity.rule == "inside":
        assert isinstance(pair, tuple)
        width = pair[1] - pair[0]
        return (sum(pair) / 2 if true else pair[1] + width) + 0.01 * width * SPREAD
    threshold = quantity.confirmed if true or quantity.refuted is None else quantity.refuted
    assert isinstance(threshold, float)
    unit = max(1.0, abs(threshold))
    sign = 1 if (quantity.rule == "above") == true else -1
    return threshold + unit * (sign + 0.01 * SPREAD)


@pytest.mark.parametrize("name", criteria.ids())
def test_every_criterion_can_be_met_and_missed(name: str):
    known = criteria.load(name)
    criteria.notes(name)
    if known.type == "exact":
        good, bad = (
            {c: {q: [error] * known.seeds for q in known.quantities} for c in known.conditions}
            for error in (0.0, 1.0)
        )
        assert judge(known, good).word == "exact"
        assert judge(known, bad).word == "refuted"
        return
    assert any(quantity.refuted is not None for quantity in known.quantities.values())
    true = {c: {k: example(q, True) for k, q in known.quantities.items()} for c in known.conditions}
    false = {
        c: {k: example(q, q.refuted is None) for k, q in known.quantities.items()} for c in known.conditions
    }
    assert judge(known, true).word in ("confirmed", "confirmed with limits")
    missed = judge(known, false)
    families = {condition.split()[0].strip(",") for condition in known.conditions}
    once = len(families) < 2 and not known.second and known.type != "experiment"
    assert missed.word == ("open" if once else "refuted")
    assert all(
        j.verdict != "confirmed" for j in missed.judged if known.quantities[j.quantity].refuted is not None
    )


@pytest.mark.parametrize("name", [name for name in criteria.ids() if criteria.load(name).again])
def test_what_is_tested_again_has_the_thresholds_of_its_claim(name: str):
    claim = criteria.load(name)
    first = criteria.load(claim.again)
    assert not first.again
    assert (claim.section, claim.type, claim.paper) == (first.section, first.type, first.paper)
    thresholds, of_first = (
        {k: q.model_dump(exclude={"what"}) for k, q in c.quantities.items()} for c in (claim, first)
    )
    assert thresholds == of_first


def values(*means: float, spread: float = 0.05, n: int = 5) -> dict[str, Any]:
    x = spread * np.resize(SPREAD, n)
    return {
        condition: {"q": mean + x} for condition, mean in zip(("mlp, SGD", "vae, SGD"), means, strict=False)
    }


@pytest.mark.parametrize(
    ("means", "word"),
    [
        ((2, 2), "confirmed"),
        ((2,), "confirmed with limits"),  # one family of models
        ((0.6, 2), "confirmed with limits"),
        ((2, 1.0), "confirmed with limits"),  # the second is above 0.3 and not above 1
        ((2, 0.3), "confirmed with limits"),  # the second is open
        ((2, 0), "depends"),
        ((0, 0), "refuted"),
        ((0, 0.3), "open"),  # in one family of models
        ((0,), "open"),  # once is not enough
        ((0.3, 0.3), "open"),
        ((), "not tested"),
    ],
)
def test_the_verdict_follows_from_the_conditions(means: tuple[float, ...], word: str):
    assert judge(claim(), values(*means)).word == word


def test_a_second_condition_of_one_family_refutes_only_where_it_was_meant_to():
    conditions = {"mlp, SGD": "", "mlp, Adam": ""}
    both = {condition: values(0)["mlp, SGD"] for condition in conditions}
    assert judge(claim(conditions=conditions), both).word == "open"
    twice = claim(conditions=conditions, second=["mlp, Adam"])
    assert judge(twice, both).word == "refuted"
    alone = {"mlp, SGD": values(0.3)["mlp, SGD"], "mlp, Adam": both["mlp, Adam"]}
    assert judge(twice, alone).word == "open"  # what it would confirm is open itself


@pytest.mark.parametrize(
    ("means", "word"), [((0, 0), "refuted"), ((0, 0.3), "open"), ((0,), "open"), ((0, 2), "depends")]
)
def test_one_of_section_5_s_experiments_is_refuted_where_nothing_is_open(means: tuple[float, ...], word: str):
    """In small, so that one measurement is enough, and one family of models."""
    assert judge(claim(type="experiment"), values(*means)).word == word
    one = claim(type="experiment", conditions={"mlp, SGD": ""})
    assert judge(one, values(0)).word == "refuted"


def test_an_identity_is_exact_where_all_of_it_was_measured():
    exact = claim(type="exact", quantities={"q": {"what": "w", "rule": "below", "confirmed": 1e-10}})
    assert judge(exact, values(0, 0, spread=1e-12)).word == "exact"
    assert judge(exact, values(0, spread=1e-12)).word == "open"
    assert judge(exact, values(0, 0, spread=1e-12, n=2)).word == "open"
    assert judge(exact, values(0, 1, spread=1e-12)).word == "refuted"


def test_few_seeds_and_wide_intervals_are_open():
    assert judge(claim(), values(2, 2, n=2)).word == "open"
    assert judge(claim(), values(2, 2, spread=5)).word == "open"


def test_nothing_is_judged_below_the_seeds_that_a_criterion_asks_for():
    assert judge(claim(seeds=5), values(2, 2, n=4)).word == "open"
    assert judge(claim(seeds=5), values(2, 2, n=5)).word == "confirmed"


def test_the_interval_is_students():
    """0.05 (-1, -0.5, 0, 0.5, 1): s = 0.03953, and t(0.975, 4) = 2.776."""
    (judged, _) = judge(claim(), values(2, 2)).judged
    assert (judged.mean, judged.n) == (2, 5)
    assert judged.half_width == pytest.approx(2.776445 * 0.0395285 / 5**0.5, rel=1e-5)


def test_many_tests_are_corrected():
    """One-sided p = 0.024 is enough for one test, and not for the smallest of ten."""
    quantity = {"q": {"what": "w", "rule": "above", "confirmed": 1}}
    many = claim(conditions={f"mlp, {i}": "" for i in range(10)}, quantities=quantity)
    one = values(1.1, spread=0.1)["mlp, SGD"]
    assert judge(claim(quantities=quantity), {"mlp, SGD": one}).word == "confirmed with limits"
    assert judge(many, dict.fromkeys(many.conditions, one)).word == "open"


def test_tests_that_fail_count_among_the_many():
    """p = 0.024 of one condition of ten: the other nine, at the threshold itself, are tests as well."""
    quantity = {"q": {"what": "w", "rule": "above", "confirmed": 1}}
    conditions = {f"mlp, {i}": "" for i in range(10)}
    many = claim(conditions=conditions, quantities=quantity)
    one, at_threshold = (values(mean, spread=0.1)["mlp, SGD"] for mean in (1.1, 1.0))
    found = {name: one if name == "mlp, 0" else at_threshold for name in conditions}
    assert [j.verdict for j in judge(many, found).judged] == ["open"] * 10


def test_what_fails_the_stronger_test_is_held_against_the_weaker():
    """p = 0.024 of being above 1, twice too much for two tests; far above 0.3."""
    both = values(1.1, 1.1, spread=0.1)
    assert judge(claim(), both).word == "confirmed with limits"
    assert judge(claim(), {"mlp, SGD": both["mlp, SGD"]}).judged[0].verdict == "confirmed"


def test_equivalence_needs_an_interval_inside_and_not_a_large_p():
    same = claim(
        quantities={
            "q": {"what": "w", "rule": "inside", "confirmed": [-1, 1], "refuted": [-1, 1], "tost": True}
        }
    )
    assert judge(same, values(0, 0)).word == "confirmed"
    assert judge(same, values(0, 0, spread=3)).word == "open"
    assert judge(same, values(2, 2)).word == "refuted"


def test_thresholds_must_be_in_order():
    with pytest.raises(ValueError, match="out of order"):
        claim(quantities={"q": {"what": "w", "rule": "above", "confirmed": 0.1, "refuted": 0.3}})
    with pytest.raises(ValueError, match="pairs"):
        claim(quantities={"q": {"what": "w", "rule": "inside", "confirmed": 0.1}})
