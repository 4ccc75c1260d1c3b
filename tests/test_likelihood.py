"""Likelihoods against torch's own distributions and against sums over all that can be seen."""

from __future__ import annotations

import math

import pytest
import torch

from wn.models.likelihood import Bernoulli, DiscretizedLogistic, log_standard_normal

BYTES = torch.arange(256, dtype=torch.float64) / 255


@pytest.mark.parametrize("log_scale", [-9.0, -5.0, -2.3, 0.0, 3.0])
@pytest.mark.parametrize("output", [-30.0, -3.0, 0.2, 30.0])
def test_the_discretised_logistic_sums_to_one(log_scale: float, output: float) -> None:
    likelihood = DiscretizedLogistic(1).double()
    likelihood.log_scale.data.fill_(log_scale)
    x = BYTES.view(-1, 1, 1, 1)
    mass = likelihood.log_prob(torch.full_like(x, output), x).exp()
    assert mass.sum().item() == pytest.approx(1, abs=1e-9)


def test_the_discretised_logistic_is_a_difference_of_distribution_functions() -> None:
    likelihood = DiscretizedLogistic(3).double()
    likelihood.log_scale.data.copy_(torch.tensor([-3.0, -2.0, -1.0]).view(3, 1, 1))
    torch.manual_seed(0)
    byte = torch.randint(1, 255, (4, 3, 2, 2))
    output = torch.randn(4, 3, 2, 2, dtype=torch.float64)
    scale, mean = likelihood.log_scale.exp(), torch.sigmoid(output)
    upper, lower = (torch.sigmoid((edge / 256 - mean) / scale) for edge in (byte + 1, byte))
    expected = torch.log(upper - lower).flatten(1).sum(1)
    torch.testing.assert_close(likelihood.log_prob(output, byte / 255), expected)


def test_the_discretised_logistic_s_gradients_stay_finite_far_away_and_in_float32() -> None:
    likelihood = DiscretizedLogistic(1)
    likelihood.log_scale.data.fill_(-9.0)
    output = torch.tensor([-50.0, 0.0, 50.0]).repeat_interleave(256).view(-1, 1, 1, 1).requires_grad_()
    x = BYTES.float().repeat(3).view(-1, 1, 1, 1)
    total = likelihood.log_prob(output, x).sum()
    total.backward()
    assert torch.isfinite(total)
    assert torch.isfinite(output.grad).all()  # type: ignore[arg-type]
    assert torch.isfinite(likelihood.log_scale.grad).all()  # type: ignore[arg-type]


def test_bernoulli_and_normal_are_torch_s() -> None:
    torch.manual_seed(0)
    logits, x = torch.randn(5, 1, 3, 4), torch.randint(2, (5, 1, 3, 4)).float()
    expected = torch.distributions.Bernoulli(logits=logits).log_prob(x).flatten(1).sum(1)
    torch.testing.assert_close(Bernoulli().log_prob(logits, x), expected)
    normal = torch.distributions.Normal(0, 1).log_prob(logits)
    torch.testing.assert_close(log_standard_normal(logits), normal)


def test_eight_bits_of_a_logit_are_widened_before_they_are_summed() -> None:
    logits = torch.randn(2, 1, 28, 28).bfloat16()
    x = (torch.rand(2, 1, 28, 28) < 0.5).float()
    found = Bernoulli().log_prob(logits, x)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, Bernoulli().log_prob(logits.float(), x))


def test_the_outermost_bytes_have_what_lies_beyond_them() -> None:
    """A distribution much wider than the pixels' range puts half of its mass on each end."""
    likelihood = DiscretizedLogistic(1).double()
    likelihood.log_scale.data.fill_(math.log(1e6))
    x = BYTES.view(-1, 1, 1, 1)
    mass = likelihood.log_prob(torch.zeros_like(x), x).exp()
    torch.testing.assert_close(mass[[0, -1]], torch.full((2,), 0.5, dtype=torch.float64), atol=1e-5, rtol=0)
