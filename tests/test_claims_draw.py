"""DRAW's bound in closed form, arms that start alike, and what speed and shares are by construction."""

from __future__ import annotations

import math

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from wn.claims import draw
from wn.claims.draw import FROM_NORM, FROM_ONE, GLOROT, PLAIN, Curves
from wn.data import Dataset, Split
from wn.norm import normalized_layers

PIXELS = 6


def data() -> Dataset:
    """Two images, bright at one end or the other, and grey levels of them."""
    x = torch.tensor([[0.9] * 3 + [0.05] * 3, [0.05] * 3 + [0.9] * 3]).repeat(20, 1).view(-1, 1, 1, PIXELS)
    y = torch.zeros(len(x), dtype=torch.int64)
    return Dataset(Split(x, y), Split(x[:10], y[:10]), Split(x[:10], y[:10]), 1)


def example() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    return torch.randint(2, (4, PIXELS)).float(), torch.randn(4, draw.STEPS, draw.LATENTS)


def test_divergence_is_that_of_normal_distributions():
    mean, log_scale = torch.randn(2, 3, 5, dtype=torch.float64)
    theirs = kl_divergence(Normal(mean, log_scale.exp()), Normal(torch.zeros(()).double(), 1.0)).sum(-1)
    assert torch.allclose(draw.divergence(mean, log_scale), theirs, atol=1e-12)


def test_a_network_of_zeros_gives_each_pixel_a_half():
    model = draw.build(PLAIN, PIXELS, seed=0)
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
    assert torch.allclose(model(*example()), torch.full((4,), PIXELS * math.log(2)))


def test_strokes_add_up_and_each_has_its_divergence():
    """A network whose posterior and canvas do not depend on what it reads."""
    model = draw.build(PLAIN, PIXELS, seed=0)
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
        model.posterior.bias[: draw.LATENTS] = 0.5  # means
        model.write.bias.fill_(0.25)
    x, noise = example()
    logit = 0.25 * draw.STEPS
    likelihood = torch.where(x > 0, -math.log1p(math.exp(-logit)), -math.log1p(math.exp(logit))).sum(1)
    assert torch.allclose(model(x, noise), draw.STEPS * draw.LATENTS * 0.125 - likelihood, atol=1e-5)


def test_gains_from_the_norm_start_as_plain_weights_and_others_do_not():
    models = {arm: draw.build(arm, PIXELS, seed=2) for arm in (PLAIN, GLOROT, FROM_NORM, FROM_ONE)}
    out = {arm: model(*example()) for arm, model in models.items()}
    assert torch.allclose(out[PLAIN], out[FROM_NORM], atol=1e-5)
    assert not torch.allclose(out[PLAIN], out[GLOROT], atol=1e-3)
    assert not torch.allclose(out[PLAIN], out[FROM_ONE], atol=1e-3)
    for layer in normalized_layers(models[FROM_ONE]).values():
        assert torch.allclose(layer.effective_weight().norm(dim=1), torch.ones(len(layer.g)), atol=1e-5)
        assert torch.equal(layer.v, dict(normalized_layers(models[FROM_NORM]))[_name(models, layer)].v)


def _name(models, layer) -> str:
    return next(name for name, other in normalized_layers(models[FROM_ONE]).items() if other is layer)


def test_training_shares_random_numbers_and_raises_the_bound(monkeypatch):
    monkeypatch.setattr(draw, "RATES", (1e-2, 1e-9))
    monkeypatch.setattr(draw, "BATCH", 20)
    plain, normalized = (draw.train(arm, data(), [0, 1], 25) for arm in (PLAIN, FROM_NORM))
    assert plain.test.shape == (2, 2, 26)
    assert torch.allclose(plain.test[..., 0], normalized.test[..., 0], atol=1e-4)  # the same noise and pixels
    assert (plain.test[0, :, -1] > plain.test[0, :, 0] + 1).all()
    assert (plain.test[1, :, -1] - plain.test[1, :, 0]).abs().max() < 1e-3


def test_what_is_no_number_is_the_worst_bound():
    model = draw.build(PLAIN, PIXELS, seed=0)
    with torch.no_grad():
        model.write.bias.fill_(torch.nan)
    learner = draw.Learner([model], [draw.OptimConfig()])
    assert draw.bound(learner, *example()).tolist() == [-math.inf]


RISING = torch.linspace(-10, -2, 5)  # four epochs, of 2 nats each


def made(*by_rate: torch.Tensor) -> Curves:
    """Three seeds a quarter of a nat apart, the same on both splits."""
    curve = torch.stack([torch.stack([c + 0.25 * seed for seed in range(3)]) for c in by_rate])
    return Curves(curve, curve)


def test_speed_is_one_for_the_same_arm_and_half_for_one_of_twice_the_speed():
    plain = made(RISING, RISING - 5)
    twice = made(RISING - 5, -10 + 2 * (RISING + 10))  # best at the other rate
    assert {k: v.tolist() for k, v in draw.speeds(plain, plain).items()} == {
        "same rate": [1.0] * 3,
        "best rate": [1.0] * 3,
    }
    found = draw.speeds(twice, plain)
    assert found["best rate"].tolist() == pytest.approx([0.5] * 3)
    assert found["same rate"].tolist() == [5 / 4] * 3  # never within four epochs


def test_shares_are_0_and_1_at_the_ends_and_1_where_there_is_no_gap():
    plain, arm = made(RISING), made(RISING + 4)
    for start, share in ((plain, 0.0), (arm, 1.0), (made(RISING + 1), 0.25)):
        for values in draw.shares(arm, plain, start).values():
            assert values.tolist() == pytest.approx([share] * 3)
    for values in draw.shares(made(RISING - 1), plain, plain).values():
        assert values.tolist() == [1.0] * 3
