"""The rows that are judged, of measurements with known numbers: which way a difference or a quotient goes."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from wn.claims import arms, batches, cost, covariance, criteria, dqn, gain, growth_rules, noise, spectra
from wn.claims.batches import Chosen
from wn.claims.gain import Best
from wn.claims.growth import SEEDS
from wn.claims.measuring import MEASUREMENTS, families
from wn.claims.noise import Noise
from wn.claims.training import Watch
from wn.data import Split


def numbers(name: str) -> dict[str, set[float]]:
    """What the parts of a claim give, by quantity, of all conditions and seeds."""
    families()
    claim, found, judged = criteria.load(name), dict[str, set[float]](), set()
    for part in MEASUREMENTS[name]():
        for row in part.measure():
            found.setdefault(row["quantity"], set()).add(round(row["value"], 6))
            judged.add((row["condition"], row["quantity"]))
    assert {(c, q) for c in claim.conditions for q in claim.quantities} <= judged
    return found


@pytest.mark.parametrize(("name", "norm"), [("I1a", "batch_norm"), ("I1b", "weight_norm_init")])
def test_the_excess_of_small_batches(name: str, norm: str, monkeypatch: pytest.MonkeyPatch):
    """30% in batches of 2 and 10% in those of 64; 5% in any with another norm."""

    def outcome(condition: str, of: str, batch: int, seeds: int) -> Chosen:
        return Chosen(0.1, np.full(seeds, {2: 30.0, 64: 10.0}.get(batch, 7.0) if of == norm else 5.0))

    monkeypatch.setattr(batches, "outcome", outcome)
    found = numbers(name)
    assert found["excess"] == {20}
    assert found.get("control plain", {0}) == {0}


def test_e_to_the_s_against_g(monkeypatch: pytest.MonkeyPatch):
    """g has its loss of 1 after two epochs of three, e^s after three, e^(3s) at once."""
    curves = {"g": [4.0, 1.0, 0.5], "e^s": [4.0, 2.0, 1.0], "e^(3s)": [1.0, 0.5, 0.25]}
    tests = {"g": 0.1, "e^s": 0.16, "e^(3s)": 0.07}
    monkeypatch.setattr(
        gain, "best", lambda _, name: Best(0.1, {0.1: 0.5}, [tests[name]] * 10, [curves[name]] * 10)
    )
    monkeypatch.setattr(gain, "MARGINS", {"mlp": 0.02, "vae": 0.02})
    differences, ratios = numbers("F1"), numbers("F2")
    assert (differences["difference"], differences["control e^(3s)"]) == ({3}, {-1.5})
    assert (ratios["ratio"], ratios["control e^(3s)"]) == ({1.5}, {0.5})


def test_growth_by_batch_is_a_slope_over_the_mean(monkeypatch: pytest.MonkeyPatch):
    """2 + 3/B times a seed's own size: 3 over the mean of that."""
    sizes: list[int] = []

    def growth_at(condition: str, lr: float, size: int, images: int, changes: Any) -> Tensor:
        sizes.append(size)
        scale = 1 if changes["norm"] == "weight_norm" else -1  # plain weights shrink, as fast
        return scale * (2 + 3 / size) * (1 + torch.arange(len(SEEDS), dtype=torch.float64))

    monkeypatch.setattr(growth_rules, "growth_at", growth_at)
    found = numbers("B3")
    slope = {round(3 / (2 + 3 * np.mean([1 / size for size in sizes[i : i + 5]])), 6) for i in (0, 10)}
    assert (found["slope"], found["linearity"]) == (slope, {1})
    assert found["control slope of plain weights"] == slope
    assert max(found["growth"]) == -min(found["growth of plain weights"]) == 5 * (2 + 3 / 4)


@pytest.mark.parametrize("name", ["B4", "B4h"])
def test_growth_at_the_best_rate(name: str, monkeypatch: pytest.MonkeyPatch):
    """Lengths of units grow from 3 to 12, 1.5 and 6 at the rate of the lowest loss; all are 300 elsewhere."""

    def train(configs: Any, prepare: Any) -> Watch:
        assert configs[0].trainer.epochs in ({30, 20} if name == "B4" else {120, 80})
        prepare(None)
        watch = Watch(len(configs))
        best = sorted({c.optim.lr for c in configs})[2]
        for i, c in enumerate(configs):
            watch.results[i] = {}
            watch.metrics[i] = [{"valid_loss": float(c.optim.lr != best)}]
            ends = [12.0, 1.5, 6.0] if c.optim.lr == best else [300.0] * 3
            watch.models[i] = {"0.v": torch.tensor(ends)[:, None], "0.g": torch.ones(3)}
        return watch

    monkeypatch.setattr(growth_rules, "train", train)
    monkeypatch.setattr(growth_rules, "directions", lambda trainer: {"0.v": torch.full((100, 3, 1), 3.0)})
    found = numbers(name)
    assert (found["grown"], found["growth"]) == ({round(2 / 3, 6)}, {2})
    adam, momentum = (sum(length**-power for length in (4, 0.5, 2)) / 3 for power in (1, 2))
    assert found["direction rate"] == {round(adam, 6), round(momentum, 6)}
    assert found["control gradient descent: growth"] == {2}
    assert found["control ten times the rate: growth"] == {100}


def test_a_penalty_against_weights_that_are_held(monkeypatch: pytest.MonkeyPatch):
    """Angles of twice what is expected, half without penalty; late errors of 6% and 4%."""
    expected, seeds, steps = math.sqrt(2 * 0.3 * 0.005), 20, 7

    def watched(error: float) -> Watch:
        watch = Watch(seeds)
        watch.metrics = [
            [{"valid_error": 0.9}] * 2 + [{"valid_error": error + d} for d in (0.01, -0.01)]
        ] * 20
        return watch

    def penalised(penalty: float) -> Any:
        angle = expected * (2 if penalty else 0.5)
        sums = {
            "angles": torch.full((seeds, 3), steps * angle**2).double(),
            "squares": torch.full((20, 3), 28.0),
        }
        return watched(0.06), SimpleNamespace(**sums, steps=steps)

    def held(norms: Tensor) -> Watch:
        assert (norms == 2).all()  # the root of 28 over 7 steps
        return watched(0.04)

    monkeypatch.setattr(growth_rules, "penalised", penalised)
    monkeypatch.setattr(growth_rules, "held", held)
    found = numbers("B9")
    assert (found["angle"], found["control angle without penalty"]) == ({2}, {0.5})
    assert found["difference"] == {2}


def test_alignment_and_flatness_are_medians_over_what_is_judged(monkeypatch: pytest.MonkeyPatch):
    """Over epochs 1, 10 and 30; at the start all is 9."""
    names = ("cos2", "drawn cos2", "rayleigh", "left out", "participation", "random participation", "largest")
    by_time = {}
    for epoch, value in {0: 9.0, 1: 0.1, 10: 0.2, 30: 0.9}.items():
        units = {name: torch.tensor([value]).double() for name in names}
        more = {"top": 8 * units["cos2"], "random cos2": torch.tensor([0.25]).double()}
        by_time[epoch] = {"hidden": units | more}
    for measure in ("by_images", "by_steps"):
        monkeypatch.setattr(covariance, measure, lambda network, seed: by_time)
    found = numbers("C1")
    assert found["cos2"] == numbers("C2")["participation"] == {0.2}
    assert found["control first 5 eigenvectors, times random"] == {round(8 * 0.2 / (5 * 0.25), 6)}
    assert found["control at the start"] == {9}


def test_flatness_is_that_of_d_over_that_of_c(monkeypatch: pytest.MonkeyPatch):
    """C = I + 9 u u' in six dimensions and w = u: D has five eigenvalues of 1, C those and 10."""
    u = torch.tensor([[1.0, -1, 1, -1, 1, -1]], dtype=torch.float64) / math.sqrt(6)
    c = torch.eye(6, dtype=torch.float64) + 9 * u[:, :, None] * u[:, None, :]
    moments = spectra.Moments(3 * u, torch.zeros(1, 6).double(), c, torch.tensor([50]))
    training = SimpleNamespace(
        models=dict.fromkeys((0, *covariance.TIMES), nn.Linear(6, 1)),
        train=Split(torch.ones(4, 6), torch.zeros(4)),
    )
    monkeypatch.setattr(covariance, "trained", lambda network, norm, seed: training)
    monkeypatch.setattr(covariance, "inputs_and_outputs", lambda model, x: {"hidden": (x, x)})
    monkeypatch.setattr(spectra, "moments", lambda model, split: {"hidden": moments})
    units = covariance.by_images.__wrapped__("mlp", 0)[1]["hidden"]
    assert units["participation"].item() == pytest.approx(1 / (225 / 630))
    assert units["largest"].item() == pytest.approx((1 / 5) / (10 / 15))
    by_w = torch.tensor([[[3.0, 0], [-3, 0], [0, 1], [0, -1]]], dtype=torch.float64)  # eigenvalues 9 and 1
    steps = spectra.Steps(torch.ones(1, 2).double(), by_w, by_w[:, :, 1:])
    monkeypatch.setattr(spectra, "successive", lambda *of: {"hidden": steps})
    units = covariance.by_steps.__wrapped__("mlp", 0)[10]["hidden"]
    assert units["participation"].item() == pytest.approx(1 / (100 / (2 * 82)))
    assert units["largest"].item() == pytest.approx(1 / 0.9)


def test_the_race_is_won_by_fewer_epochs(monkeypatch: pytest.MonkeyPatch):
    """Plain weights take 4 epochs at their best rate, the second; each arm 1, 2 or 6 at its first."""
    first = {"plain": 8.0, "projection": 6.0, "scale": 2.0, "both": 1.0}
    epochs = {arm: [[first[arm]] * 5, [4.0 if arm == "plain" else 9.0] * 5, [10.0] * 5] for arm in arms.ARMS}
    races = {name: race._replace(rates=[0.1, 0.2, 0.4]) for name, race in arms.RACES.items()}
    monkeypatch.setattr(arms, "RACES", races)
    monkeypatch.setattr(arms, "run", lambda race, seeds: epochs)
    found = numbers("C3")
    assert found["ratio"] == {1.5, 0.5, 0.25}
    assert found["control best learning rate of plain weights"] == {0.2}
    assert found["control best learning rate of this arm"] == {0.1}


@pytest.mark.parametrize(("name", "ratio"), [("H1", 1.5), ("H2", 4), ("G5", 0.5)])
def test_steps_are_compared_the_right_way_round(name: str, ratio: float, monkeypatch: pytest.MonkeyPatch):
    seconds = {"none": 2.0, "weight_norm": 3.0, "mean_only_bn": 4.0, "batch_norm": 8.0}
    monkeypatch.setattr(cost, "blocks_of", lambda condition: [seconds] * 5)
    found = numbers(name)
    assert found["ratio"] == {ratio}
    controls = {quantity: values for quantity, values in found.items() if quantity.startswith("control")}
    assert set().union(*controls.values()) == {"H1": {4}, "H2": {1.5}, "G5": {2, 4}}[name]


def test_games_are_won_by_higher_scores(monkeypatch: pytest.MonkeyPatch):
    """Mean scores at the best rate, the second: 2 of plain weights, 3 with weight and 1 with other norms."""
    means = {"none_init": 2.0, "weight_norm_init": 3.0, "layer_norm": 1.0, "batch_norm": 1.0}
    batch: list[bool] = []

    def scores(norm: str, setting: dqn.Setting) -> Tensor:
        batch.append(setting.how.batch_target)
        by_rate = torch.tensor([0.5, means[norm], *[0.25] * (len(setting.rates) - 2)])
        return by_rate[:, None, None] + torch.tensor([-0.1, 0.1]).expand(1, setting.seeds, 2)

    monkeypatch.setattr(dqn, "scores", scores)
    found = numbers("K1")
    assert (found["probability"], found["gain"]) == ({1}, {0.5})
    assert found["control gain of layer norm"] == {-0.5}
    assert found["control maximum over plain maximum"] == {1}
    batch.clear()
    found = numbers("K2")
    assert (found["gain"], found["control probability"]) == ({-0.5}, {0})
    assert batch == [False, False, False, True]  # plain weights have no statistics


def test_noise_of_batches_of_100_is_judged(monkeypatch: pytest.MonkeyPatch):
    """Kurtosis 7 and 2, deviations 8 and 2; ten times all that in other batches, and a control of 1."""
    own = Noise(7.0, 2.0, 8.0, 2.0, 5.0, 4.0)
    by_size = {size: own if size == 100 else Noise(*(10 * x for x in own)) for size in noise.SIZES}
    by_size[0] = Noise(*[1.0] * 6)
    monkeypatch.setattr(noise, "layer_by_layer", lambda family, norm: [by_size] * 5)
    monkeypatch.setattr(noise, "whole_network", lambda seed: own)
    found = numbers("G1a")
    assert (found["mean_only"], found["difference"]) == ({2}, {5})
    assert found["control difference, normal outputs"] == {0}
    assert numbers("G1b")["kurtosis"] == {7}
    found = numbers("G2")
    assert (found["ratio"], found["control ratio, normal outputs"]) == ({4}, {1})
