"""Widths of ranges: of losses with a known range, and of arms that are what they say."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from trainer_cases import dataset

from wn.claims import criteria, ranges, rates, rates_convnet
from wn.claims.known import Trained
from wn.claims.measuring import MEASUREMENTS, families
from wn.claims.ranges import Contrast
from wn.claims.rates import ARMS, CONDITIONS, RATES, SEEDS
from wn.claims.training import train
from wn.config import Config
from wn.optim import learning_rate

BOTH = ("plain", "weight norm")


def box(lowest: float, highest: dict[str, float], out: float = math.inf, seeds: float = 0.0):
    """Losses of 1 from ``lowest`` to ``highest``, by the arm's norm, and ``out`` elsewhere."""

    def losses(configs: Sequence[Config]) -> list[float]:
        ends = [highest["plain" if c.norm.direction == "plain" else "weight norm"] for c in configs]
        return [
            1 + seeds * c.seed if lowest <= c.optim.lr <= end else out
            for c, end in zip(configs, ends, strict=True)
        ]

    return losses


def rows(losses: rates.Losses, quantity: str = "wider") -> dict[str, list[float]]:
    grids = rates.explore("mlp, SGD", BOTH, losses)
    made = ranges.rows_of("mlp, SGD", grids, [Contrast(quantity, "weight norm", "plain")], BOTH)
    names = dict.fromkeys(row["quantity"] for row in made)
    return {name: [row["value"] for row in made if row["quantity"] == name] for name in names}


@pytest.mark.parametrize(("end", "decades"), [(1.0, 0), (10.0, 1), (1000.0, 3)])
def test_the_difference_is_that_of_the_ranges(end: float, decades: float):
    """From 1e-2: plain to 1, two decades; the other to where the claim is false, or true."""
    measured = rows(box(1e-2, {"plain": 1.0, "weight norm": end}))
    assert measured["width plain"] == pytest.approx([2] * 5)
    assert measured["wider"] == pytest.approx([decades] * 5, abs=1e-12)


def test_between_two_rates_the_loss_is_a_straight_line():
    """1 inside and 3 outside: 1.5 is reached a quarter of the way, at both ends."""
    measured = rows(box(1e-2, {"plain": 1.0, "weight norm": 1.0}, out=3.0))
    steps = math.log10(0.01 / 0.003) + math.log10(3)
    assert measured["width plain"] == pytest.approx([2 + 0.25 * steps] * 5)


@pytest.mark.parametrize(("lowest", "end"), [(1e-2, 1e6), (1e-4, 1.0)])
def test_in_range_at_an_edge_there_is_no_difference(lowest: float, end: float):
    measured = rows(box(lowest, {"plain": 1.0, "weight norm": end}))
    assert "wider" not in measured
    assert "edge weight norm" in measured


def test_a_grid_ends_after_two_rates_that_are_out_for_all_seeds():
    grids = rates.explore("mlp, SGD", BOTH, box(1e-2, {"plain": 0.01, "weight norm": 300.0}))
    assert grids["plain"].rates[-1] == pytest.approx(0.1)
    assert grids["weight norm"].rates[-1] == pytest.approx(3000)
    losses = np.full((8, 2), math.inf)
    losses[2], losses[4, 0] = 1, 1
    assert rates.grid_end("mlp", losses[:6]) is None  # one seed is in range at the fifth
    assert rates.grid_end("mlp", losses) == 7


def test_nothing_is_trained_twice_and_rates_are_half_decades():
    seen: list[str] = []

    def losses(configs: Sequence[Config]) -> list[float]:
        seen.extend(config.run_id for config in configs)
        return box(1e-2, {"plain": 1.0, "weight norm": 30.0})(configs)

    rates.explore("mlp, Adam", BOTH, losses)
    assert len(seen) == len(set(seen))
    assert np.diff(np.log10(RATES)) == pytest.approx([0.4771, 0.5229] * 11, abs=1e-4)
    ends = {model: rates.rates_of(model)[:: len(rates.rates_of(model)) - 1] for model in rates.MODELS}
    assert ends == {**dict.fromkeys(ends, (1e-4, 1e6)), "mlp for 120 epochs": (1e-5, 1e6)}


def test_held_against_one_best_a_worse_arm_is_narrower():
    """An arm that is nowhere within 1.5 of the other's best has a range of its own, and none by that best."""
    worse = {"plain": 1.0, "weight norm": 4.0}

    def losses(configs: Sequence[Config]) -> list[float]:
        values = box(1e-2, {"plain": 1.0, "weight norm": 1.0})(configs)
        arms = ["plain" if c.norm.direction == "plain" else "weight norm" for c in configs]
        return [value * worse[arm] for value, arm in zip(values, arms, strict=True)]

    grids = rates.explore("mlp, SGD", BOTH, losses)
    assert ranges.rows_of("mlp, SGD", grids, [Contrast("wider", "weight norm", "plain")])[0]["value"] == 0
    assert ranges.common("mlp, SGD", grids, "weight norm", "plain")[0]["value"] == pytest.approx(-2)


def test_a_seed_that_always_diverges_has_no_range():
    def losses(configs: Sequence[Config]) -> list[float]:
        found = box(1e-2, {"plain": 1.0, "weight norm": 1.0})(configs)
        return [math.inf if c.seed == 3 else loss for c, loss in zip(configs, found, strict=True)]

    assert rows(losses)["width plain"] == pytest.approx([2, 2, 2, 0, 2])


def test_a_decoder_of_the_mean_image_is_out_of_a_vaes_range():
    best = np.array([24.5])
    assert ranges.tolerated("vae", best) < 27.17 < 1.5 * best


def test_rows_are_of_the_criterions_quantities(monkeypatch: pytest.MonkeyPatch):
    """Each claim's parts give what is judged of every condition, and every arm of B6a has a width."""
    losses, two = box(1e-2, {"plain": 1.0, "weight norm": 3.0}), ("mlp, Adam", "vae, SGD")
    monkeypatch.setattr(rates, "SEEDS", range(2))
    monkeypatch.setattr(rates, "grid_of", lambda condition, arms: rates.explore(condition, arms, losses))
    monkeypatch.setattr(rates, "CONDITIONS", two)
    for name, measurement in (
        ("B6b", rates.annealing),
        ("B5", rates.wider_range),
        ("B6a", rates.what_limits),
    ):
        made = [row for part in measurement() for row in part.measure()]
        assert {r["condition"] for r in made if r["quantity"] in criteria.load(name).quantities} == {*two}
        keys = [(r["condition"], r["quantity"], r["seed"], r.get("x")) for r in made]
        assert len(keys) == len(set(keys))
    assert {r["quantity"].removeprefix("width ") for r in made if r["quantity"].startswith("width")} == {
        *ARMS
    }


@pytest.mark.parametrize("arm", ARMS)
def test_the_caps_are_of_gains_and_biases(arm: str):
    config = rates.config_of("mlp", "SGD", arm, 30.0, 0)
    found = {name: learning_rate(config.optim, name) for name in ("lr", "lr_gain", "lr_bias")}
    gain = {"capped at 0.03": 0.03, "capped at 0.3": 0.3}.get(arm, 0.1 if "capped" in arm else 30.0)
    gain = 30.0 if arm == "plain, biases capped" else gain
    bias = 30.0 if arm == "gains capped" else 0.1 if arm == "plain, biases capped" else gain
    assert found == {"lr": 30.0, "lr_gain": gain, "lr_bias": bias}
    small = rates.config_of("mlp", "SGD", arm, 0.01, 0)
    assert {learning_rate(small.optim, name) for name in found} == {0.01}


def test_every_condition_is_measured():
    for name, measurement in (
        ("B5", rates.wider_range),
        ("B6a", rates.what_limits),
        ("B6b", rates.annealing),
        ("B7", rates.growth),
    ):
        claim = criteria.load(name)
        assert set(claim.conditions) == set(CONDITIONS)
        assert len(list(measurement())) == 2 * len(CONDITIONS)


@pytest.mark.parametrize("name", ["B5m", "B5h", "B6m", "B6h", "B7m", "B7h"])
def test_what_is_tested_again_has_rows_of_every_condition(name: str, monkeypatch: pytest.MonkeyPatch):
    """From losses, or errors on MNIST, of a known range: 0.02 above the best is out of one of a point."""
    claim, metrics = criteria.load(name), set()

    def told(configs: Sequence[Config], metric: str) -> list[float]:
        metrics.add(metric)
        return box(1e-2, {"plain": 1.0, "weight norm": 30.0}, out=1.02 if metric == "error" else 2.0)(configs)

    monkeypatch.setattr(rates, "trained", told)
    monkeypatch.setattr(rates, "SEEDS", range(2))
    rates.grid_of.cache_clear()
    families()  # so that all are registered
    made = [row for part in MEASUREMENTS[name]() for row in part.measure()]
    rates.grid_of.cache_clear()
    assert metrics == {"error" if name[2] == "m" else "loss"}
    assert {(r["condition"], r["quantity"]) for r in made if r["quantity"] in claim.quantities} == {
        (condition, quantity) for condition in claim.conditions for quantity in claim.quantities
    }
    widths = {r["quantity"]: r["value"] for r in made if r["quantity"].startswith("width ")}
    assert 2 < widths["width plain"] < 3 if "width plain" in widths else 3 < widths["width capped"] < 5


def small(arm: str, lr: float) -> Config:
    config = rates.config_of("mlp", "SGD", arm, lr, SEEDS[0])
    trainer = config.trainer.model_copy(update={"epochs": 2, "batch_size": 10, "precision": "float64"})
    return config.model_copy(update={"trainer": trainer})


def losses_of(arm: str, lr: float) -> list[float]:
    (rows,) = train([small(arm, lr)], dataset()).metrics
    return [row["valid_loss"] for row in rows]


def test_the_arms_begin_as_one_function():
    starts = [losses_of(arm, 0.01)[0] for arm in ARMS if not arm.startswith("batch")]
    assert starts == pytest.approx([starts[0]] * len(starts), rel=1e-10)


def test_a_cap_above_the_rate_changes_nothing_and_one_below_does():
    """Nor does one on plain weights, where nothing is normalised, but through the biases."""
    assert losses_of("capped", 0.05) == losses_of("weight norm", 0.05)
    assert losses_of("capped", 0.5)[-1] != losses_of("weight norm", 0.5)[-1]
    assert losses_of("capped, decay", 0.05)[-1] != losses_of("capped", 0.05)[-1]
    assert losses_of("capped and held", 0.5)[-1] != losses_of("capped", 0.5)[-1]


@pytest.mark.parametrize("optimiser", rates_convnet.OPTIMISERS)
def test_the_arms_of_the_convnet_are_what_they_say(optimiser: str, monkeypatch: pytest.MonkeyPatch):
    """Errors that tell what a run is end in the grid of the arm that is called so."""
    arms = {
        "plain": 0,
        "plain, decay": 1,
        "weight norm": 2,
        "capped": 3,
        "capped and held": 4,
        "batch norm": 5,
        "mean-only batch norm": 6,
    }

    def kind_of(config: Config) -> int:
        norm, optim = config.norm, config.optim
        if norm.statistics != "none":
            return 5 if norm.statistics == "batch" else 6
        if norm.direction == "plain":
            return 1 if optim.schedule == "constant_then_linear" else 0
        return 2 + (optim.lr_gain_cap == optim.lr_bias_cap == 0.01) + (norm.hold == "start")

    def told(experiment: str, configs: Sequence[Config]) -> list[Trained]:
        errors = [0.1 * kind_of(c) + 0.01 * c.seed + 1e-3 * math.log10(c.optim.lr) for c in configs]
        return [Trained([], {"valid_error": error}) for error in errors]

    monkeypatch.setattr(rates_convnet, "runs_of", told)
    grids = rates_convnet.grids.__wrapped__(optimiser, tuple(arms))
    for arm, grid in grids.items():
        by_seed = np.tile([0, 0.01, 0.02], (len(grid.rates), 1))
        assert grid.losses == pytest.approx(0.1 * arms[arm] + by_seed + 1e-3 * np.log10(grid.rates)[:, None])


def test_a_convnet_at_chance_is_not_usable():
    """Best error 0.5: up to 0.7 is usable; 0.9 is chance, at which 1.5 times the best loss may lie."""
    errors = np.array([[0.9], [0.5], [0.9], [0.9]])
    (width,), edge = ranges.Grid(np.array([0.001, 0.01, 0.1, 1.0]), errors).widths("convnet")
    assert not edge
    assert width == pytest.approx(1.0)  # half a decade on each side
