"""The headline figure draws what the rows say."""

from __future__ import annotations

import pandas as pd
import pytest

from wn import experiments
from wn.claims import rates, rates_convnet
from wn.report.claims import headline
from wn.report.figures import house_style


def rows() -> pd.DataFrame:
    """Two conditions; each arm as many decades as its place, and the last in range at an edge."""
    arms = list(headline.ARMS)
    made = [
        {"condition": condition, "quantity": f"{kind} {arm}", "seed": seed, "value": place + 0.1 * seed}
        for condition in ("mlp, SGD", "vae, Adam")
        for place, arm in enumerate(arms)
        for seed in range(3)
        for kind in ["edge" if arm == arms[-1] else "width"]
    ]
    other = {"condition": "mlp, SGD", "quantity": "over plain", "seed": 0, "value": 9.0}
    return pd.DataFrame([*made, other]).assign(claim="B6a", x=None)


def test_the_figure_has_every_arm_that_is_measured():
    convnet = [experiments.load(name).labels.values() for name in rates_convnet.OPTIMISERS.values()]
    assert set(headline.ARMS) == set(rates.ARMS).union(*convnet)


def test_widths_are_means_over_seeds_and_edges_are_known():
    found = headline.widths(rows())
    assert len(found) == 2 * len(headline.ARMS)
    width, edge = found["mlp, SGD", "weight norm"]
    assert (width.mean, width.n, edge) == (pytest.approx(3.1), 3, False)
    assert found["vae, Adam", list(headline.ARMS)[-1]][1]


def test_bars_are_as_long_as_the_range():
    with house_style():
        figure = headline.headline(rows())
    assert figure is not None
    panels = {axes.get_title(): axes for axes in figure.axes}
    lengths = [patch.get_width() for patch in panels["MLP, SGD"].patches]
    assert lengths == pytest.approx([place + 0.1 for place in range(len(headline.ARMS))])
    assert "MLP, Adam" not in panels  # not measured


def test_what_several_claims_have_counts_once():
    twice = pd.concat([rows(), rows().assign(claim="B5")])
    assert headline.widths(twice)["mlp, SGD", "weight norm"][0].n == 3


def test_without_rows_there_is_no_figure():
    assert headline.headline(pd.DataFrame(columns=["claim"])) is None
    assert headline.headline(rows().assign(claim="B3")) is None
