"""Curves beside published ones, and a criterion that can tell them apart."""

from __future__ import annotations

import numpy as np
import pytest

from wn import experiments
from wn.report.published import EPOCHS, distance, separated

PAPER = {
    name: np.array(points, dtype=float)[:, :2]
    for name, points in experiments.published(experiments.load("cifar10_table")).items()
}


def test_a_curve_is_on_itself_and_off_ten_times_itself():
    for curve in PAPER.values():
        assert distance(curve, curve) == (0, [0] * len(EPOCHS))
        assert distance(curve, curve).on
        assert not distance(curve * [1, 1.2], curve).on


def test_distances_are_those_of_a_shift_and_of_a_factor():
    """At half the published epochs, so that values between points are needed."""
    epochs = np.arange(1.0, 201.0)
    theirs = np.stack([epochs, 10 - epochs / 40], 1)
    ours = theirs[::2] + np.array([0, 0.5])
    assert distance(ours, theirs).points == pytest.approx(0.5)
    assert distance(theirs * [1, 1.1], theirs).ratios == pytest.approx([0.1] * 4)


def test_epochs_that_one_curve_lacks_are_left_out():
    curve = PAPER["BN"]
    assert len(distance(curve[curve[:, 0] < 60], curve).ratios) == 2
    assert not distance(curve[curve[:, 0] < 15], curve).on


def test_negative_control_of_the_papers_own_curves():
    """The paper's five curves: no two of them are taken for one."""
    assert separated(PAPER) == "By the same rule 0 of the 10 pairs of published curves lie on each other."
    same = {"a": PAPER["BN"], "b": PAPER["BN"] * [1, 1.05], "c": PAPER["normal"]}
    told = "By the same rule 1 of the 3 pairs of published curves lie on each other: a and b."
    assert separated(same) == told
