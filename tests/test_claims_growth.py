"""The statements about ||v|| to 1e-10, and measurements of its growth against closed forms and fake rows."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from wn.claims import exact, growth, growth_rules, lengths
from wn.claims.training import Watch
from wn.config import OptimConfig
from wn.models import build
from wn.optim import Optimizer
from wn.resources import resolve
from wn.trainer import Observer, Trainer

CPU = torch.device("cpu")


def short(monkeypatch: pytest.MonkeyPatch, epochs: int = 2, seeds: int = 1) -> None:
    """Trainings of a few steps."""
    for module in (exact, growth, growth_rules):
        monkeypatch.setattr(module, "SEEDS", range(seeds))
    monkeypatch.setattr(exact, "EPOCHS", epochs)
    for model, settings in growth.MODELS.items():
        monkeypatch.setitem(growth.MODELS, model, {**settings, "trainer.epochs": epochs})


def norms_of_a_direction(name: str, steps: int = 500) -> np.ndarray[Any, Any]:
    """||v||^2 while f(v/||v||) is minimised, for a quadratic f; the rate falls to zero."""
    torch.manual_seed(0)
    matrix = torch.randn(6, 6, dtype=torch.float64)
    params = {"v": torch.randn(1, 6, dtype=torch.float64, requires_grad=True)}
    rate = 1.0 if name == "sgd" else 0.01
    optimizer = Optimizer([OptimConfig(name=name, lr=rate, momentum=0.9)], params, {"v": "weight"})
    found = []
    for step in range(steps):
        optimizer.hyper["lr"].fill_(rate * (1 - step / steps))
        d = params["v"][0] / params["v"][0].norm()
        (grad,) = torch.autograd.grad(d @ matrix @ d, params["v"])
        found.append(params["v"].square().sum().item())
        optimizer.step({"v": grad})
    return np.array(found)


def test_under_heavy_ball_momentum_the_norm_never_falls():
    norms = norms_of_a_direction("sgd")
    assert (np.diff(norms) >= -1e-12 * norms[1:]).all()
    assert norms[-1] > 1.1 * norms[0]


@pytest.mark.parametrize("name", ["adam", "adamax"])
def test_under_adam_the_norm_falls_too(name: str):
    norms = norms_of_a_direction(name)
    assert (np.diff(norms) < -1e-9 * norms[1:]).any()


@pytest.mark.parametrize("rule", [exact.PLAIN_DESCENT, exact.MOMENTUM], ids=["descent", "momentum"])
@pytest.mark.parametrize("model", ["mlp", "vae"])
def test_lengths_follow_from_lengths_of_velocities_where_weights_are_normalised_alone(
    model: str, rule: dict[str, Any], monkeypatch: pytest.MonkeyPatch
):
    short(monkeypatch)
    rate = (0.03,) if model == "mlp" else (0.001,)
    normalised = exact.lengths_of(model, rule, rate)
    assert normalised.error.max() < 1e-10
    assert normalised.drop.max() < 1e-12
    assert normalised.share_that_falls.max() == 0
    assert (normalised.observed > normalised.start).any()
    plain = exact.lengths_of(model, rule, rate, norm="none")
    assert plain.error.min() > 1e-3


def test_a_rise_is_no_fall_and_adam_has_both(monkeypatch: pytest.MonkeyPatch):
    short(monkeypatch)
    adam = exact.lengths_of("mlp", {"optim": "adam"}, (0.001,))
    assert 0.05 < adam.share_that_falls.item() < 0.95


def test_the_largest_error_of_a_seed_that_diverges_is_no_number(monkeypatch: pytest.MonkeyPatch):
    """At the second rate weights overflow: the claim must not pass by the first."""
    short(monkeypatch)
    lengths = exact.lengths_of("mlp", exact.PLAIN_DESCENT, (0.01, 1e200), norm="none")
    assert exact.worst(lengths.error.maximum(lengths.drop)).isnan().all()


@pytest.mark.parametrize(("name", "power"), [("SGD", 2), ("momentum", 2), ("Adam", 1), ("Adamax", 1)])
def test_scaling_v_is_another_learning_rate(name: str, power: int, monkeypatch: pytest.MonkeyPatch):
    short(monkeypatch)
    assert exact.scaling_error("mlp", name, power, epochs=1).max() < 1e-8
    for other in (0, 3 - power):
        assert exact.scaling_error("mlp", name, other, epochs=1).min() > 1e-3


def test_a_line_is_fitted():
    assert growth.line([0, 1, 2], [1, 3, 5]) == pytest.approx((2, 1))
    assert growth.line([0, 1, 2, 3], [1, -1, -1, 1]) == pytest.approx((0, 0))


def test_the_upper_half_of_the_rates_that_train():
    losses = {0.01: [1.5], 0.1: [0.6, 0.7], 1.0: [0.5, 0.5], 10.0: [0.6, 2.0], 100.0: [math.inf]}
    assert growth.upper_half(losses, start=2.5) == [1.0]  # 0.1 and 1 train; at 10 one seed does not
    flat = {10.0**k: [1.0 + 0.1 * k] for k in range(-1, 5)}
    assert growth.upper_half(flat, start=3) == [1.0]  # from 0.1, the best, up to thirty times that: 1


def sweep_with(power: float) -> growth.Sweep:
    """Angles as lr^power, nan at the highest rate, where all diverge."""
    rates = [0.01, 0.1, 1.0, 10.0]
    members = [(seed, lr) for seed in growth.SEEDS for lr in rates]
    watch = Watch(len(members))
    for i, (seed, lr) in enumerate(members):
        loss = {0.01: 0.8, 0.1: 0.6, 1.0: 0.5}.get(lr, math.nan)
        watch.metrics[i] = [{"epoch": 0, "valid_loss": 2.3}, {"epoch": 1, "train_loss": loss}]
        watch.probes[i] = [{"epoch": 0}, {"epoch": 11, "angle": (1 + 0.1 * seed) * 1e-3 * lr**power}]
        watch.probes[i].insert(1, {"epoch": 1, "angle": 1e9})  # too early to count
        watch.results[i] = {"test_loss": 0.5} if lr < 10 else None
    return growth.Sweep(members, watch)


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
def test_the_slope_is_the_power_of_the_learning_rate(power: float):
    rows = growth.slopes("mlp, SGD", "plain weights", sweep_with(power), "slope")
    values = [row["value"] for row in rows if row["quantity"] == "slope"]
    assert values == pytest.approx([power] * 5, abs=1e-9)
    assert [row["x"] for row in rows if row["quantity"] == "used of plain weights"] == [0.1, 1.0]
    assert sum(math.isnan(row["value"]) for row in rows) == 5


def test_a_slope_needs_two_rates_that_train(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(growth.Sweep, "used", lambda _: [0.1])
    with pytest.raises(ArithmeticError, match="1 usable rates"):  # which leaves the part out, with this line
        growth.slopes("mlp, SGD", "plain weights", sweep_with(0.5), "slope")


def test_a_longer_training_has_as_many_more_epochs_and_nothing_else_is_changed():
    (once, *_), members = growth.arm("mlp, SGD", "plain weights", 1)
    (longer, *_), same = growth.arm("mlp, SGD", "plain weights", growth.LONGER)
    assert members == same
    assert longer.trainer.epochs == 4 * once.trainer.epochs
    epochs = {"epochs": once.trainer.epochs}
    assert longer.model_copy(update={"trainer": longer.trainer.model_copy(update=epochs)}) == once


def test_batch_normalised_weights_follow_the_recursion_and_plain_ones_do_not(
    monkeypatch: pytest.MonkeyPatch,
):
    short(monkeypatch, seeds=2)
    monkeypatch.setattr(growth, "slopes", lambda *_: [])  # too few rates train in two epochs
    monkeypatch.setitem(growth.RATES, "mlp, SGD", (0.01, 0.3))
    monkeypatch.setitem(growth.HIGHER, "mlp, SGD", 0.3)
    found = {
        name: [
            row["value"]
            for row in growth._recursive("mlp, SGD", name, "{}", 1)
            if row["quantity"] == "recursion"
        ]
        for name in ("batch normalisation", "plain weights")
    }
    assert max(found["batch normalisation"]) < 1e-4
    assert min(found["plain weights"]) > 1e-3


@pytest.mark.parametrize("arm", ["weight normalisation", "plain weights"])
def test_growth_is_that_of_one_step_by_hand(arm: str, monkeypatch: pytest.MonkeyPatch):
    """All images, one step of .5 in float64, gains left alone."""
    short(monkeypatch)
    monkeypatch.setattr(growth_rules, "STEPS", 1)
    changes = {**growth.ARMS[arm], "trainer.precision": "float64", "optim.lr_gain": 1e-30}
    config = growth.config("mlp, SGD", 0.5, 0, **changes)
    data = resolve(config)[1]
    size = len(data.train.x)
    found = growth_rules.growth_at("mlp, SGD", 0.5, size, size, changes)

    model = build(config.model, config.norm, data.shape, data.classes, 0).double()
    layers = [m for m in model.modules() if hasattr(m, "raw_weight")]
    loss = torch.nn.functional.cross_entropy(model(data.train.x), data.train.y)
    grads = torch.autograd.grad(loss, [layer.raw_weight for layer in layers])
    by_hand = []
    for layer, grad in zip(layers, grads, strict=True):
        v = layer.raw_weight.detach()
        after = (v - 0.5 * grad).norm(dim=1)
        gain = v.norm(dim=1) if arm == "weight normalisation" else after  # g starts as ||v||
        by_hand.append((after**4 - v.norm(dim=1) ** 4) / (2 * 0.25 * gain**2))
    assert found.item() == pytest.approx(torch.cat(by_hand).mean().item(), rel=1e-6)  # g starts in float32


def trainer_of(norm: dict[str, Any]) -> Trainer:
    return Trainer(
        configs := [growth.config("mlp, SGD", 0.1, s, **norm) for s in (0, 1)],
        resolve(configs[0])[1],
        CPU,
        Observer(),
    )


def test_angles_and_lengths_of_the_second_half_are_those_that_were_made():
    loop = trainer_of(growth.ARMS["weight normalisation"])
    second = growth_rules.SecondHalf(loop)
    wanted = torch.tensor([0.02, 0.05])  # of the two members

    def turn() -> None:
        for v in lengths.directions(loop).values():
            rows = v.flatten(2)
            side = torch.roll(rows, 1, -1)
            side = side - (side * rows).sum(-1, True) / rows.square().sum(-1, True) * rows
            side = side / side.norm(dim=-1, keepdim=True) * rows.norm(dim=-1, keepdim=True)
            angle = wanted[:, None, None]
            v.copy_((3 * (torch.cos(angle) * rows + torch.sin(angle) * side)).view_as(v))

    norms = lengths.squares(lengths.directions(loop))
    early, late = loop.total // 2 - 20, 10 * (loop.total // 20 + 1)
    for step in (early - early % 10, late):
        for loop.step in (step - 1, step):
            if loop.step % 10 == 0:
                turn()
            second(loop)
    assert second.steps == 1
    assert torch.allclose(second.angles.sqrt(), wanted.double()[:, None].expand_as(norms), rtol=1e-3)
    assert torch.allclose(second.squares, norms * 81, rtol=1e-4)


def test_v_is_held_at_another_length_of_the_same_function():
    loop = trainer_of(growth.ARMS["held weights"])
    x = loop.data.train.x[:5]
    before = loop.stack(x, shared=True).detach()
    norms = 1 + torch.rand_like(lengths.squares(lengths.directions(loop)))
    growth_rules.hold_at(loop, norms)
    assert torch.allclose(loop.stack(x, shared=True), before, atol=1e-5)
    loop.run()
    assert torch.allclose(lengths.squares(lengths.directions(loop)).sqrt(), norms, rtol=1e-5)
