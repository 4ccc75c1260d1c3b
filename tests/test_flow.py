"""Inverse autoregressive flow: masks keep the order, and the density is that of autograd's Jacobian."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from wn.config import MLPVAEConfig, NormConfig, ResNetVAEConfig
from wn.grammar import PER_IMAGE
from wn.models import with_norm
from wn.models.flow import AutoregressiveStep, Posterior
from wn.norm import data_dependent_init
from wn.presets import PRESETS

NORMS = [NormConfig.model_validate(preset) for preset in PRESETS.values()]
NORMS = [norm for norm in NORMS if norm.statistics not in PER_IMAGE]
CONTEXT = 3
SHAPES: dict[bool, tuple[int, ...]] = {False: (4,), True: (3, 2, 3)}
"""Of z, by whether it is spatial."""


def settings(spatial: bool, **changes: Any) -> MLPVAEConfig | ResNetVAEConfig:
    latents, *_ = SHAPES[spatial]
    kind = ResNetVAEConfig if spatial else MLPVAEConfig
    return kind(posterior="iaf", latents=latents, flow_width=7, weight_init="he", **changes)


def inputs(spatial: bool, batch: int = 5) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(0)
    shape = SHAPES[spatial]
    z = torch.randn(batch, *shape, generator=draw, dtype=torch.float64)
    context = torch.randn(batch, CONTEXT, *shape[1:], generator=draw, dtype=torch.float64)
    return z, context


def prepared(module: nn.Module, norm: NormConfig, *args: Tensor) -> nn.Module:
    """Normalised, initialised where the norm asks for it, and with averages that are not at their start."""
    torch.manual_seed(1)
    module = with_norm(module.double(), norm)
    data_dependent_init(module, *args)
    module.train()
    module(*args)
    return module.eval()


def jacobian(function: Any, z: Tensor) -> Tensor:
    """Of one example's numbers, ``[numbers, numbers]``."""
    size = z.numel()
    found: Tensor = torch.autograd.functional.jacobian(function, z)  # type: ignore[no-untyped-call]
    return found.reshape(-1, size)


def place(shape: tuple[int, ...], reverse: bool) -> Tensor:
    """The place of each number in the order: by row, by column, and last by channel."""
    order = torch.arange(torch.Size(shape).numel()).view(*shape[1:], shape[0]).movedim(-1, 0).flatten()
    return order.max() - order if reverse else order


@pytest.mark.parametrize("norm", NORMS, ids=lambda norm: norm.label)
@pytest.mark.parametrize(("spatial", "reverse"), list(itertools.product([False, True], repeat=2)))
def test_a_step_keeps_the_order_and_knows_its_determinant(
    spatial: bool, reverse: bool, norm: NormConfig
) -> None:
    z, context = inputs(spatial)
    step = prepared(AutoregressiveStep(settings(spatial), CONTEXT, spatial, reverse), norm, z, context)
    one, its_context = z[:1], context[:1]
    matrix = jacobian(lambda z: step(z, its_context)[0], one)
    order = place(SHAPES[spatial], reverse)
    later = order[None, :] > order[:, None]
    assert (matrix[later] == 0).all(), "a number depends on a later one"
    earlier = matrix[order[None, :] < order[:, None]]
    assert (earlier != 0).float().mean() > 0.5, "and on earlier ones it does"
    _, log_derivative = step(one, its_context)
    torch.testing.assert_close(torch.linalg.slogdet(matrix).logabsdet, log_derivative.sum())


@pytest.mark.parametrize("spatial", [False, True])
def test_mean_and_gate_do_not_see_their_own_number(spatial: bool) -> None:
    z, context = inputs(spatial, batch=1)
    step = AutoregressiveStep(settings(spatial), CONTEXT, spatial, reverse=False).double()
    moved = jacobian(lambda z: step(z, context)[1], z)
    order = place(SHAPES[spatial], reverse=False)
    assert (moved[order[None, :] >= order[:, None]] == 0).all()
    first = order == 0
    assert (moved[first] == 0).all()


@pytest.mark.parametrize("spatial", [False, True])
@pytest.mark.parametrize("steps", [0, 1, 3])
def test_the_posterior_s_density_is_that_of_its_samples(spatial: bool, steps: int) -> None:
    """log q(z) = log N(noise) - log |dz/dnoise|, with the derivative taken through the whole chain."""
    mean, context = inputs(spatial, batch=1)
    log_variance = 0.3 * mean.flip(1) - 0.5
    config = settings(spatial, flow_steps=max(steps, 1))
    if not steps:
        config = config.model_copy(update={"posterior": "diagonal"})
    posterior = Posterior(config, CONTEXT, spatial).double()
    noise = torch.randn(mean.shape, dtype=torch.float64)

    def draw(noise: Tensor) -> tuple[Tensor, Tensor]:
        posterior.sampler.normal = lambda shape: noise  # type: ignore[method-assign]
        z, log_q = posterior(mean, log_variance, context)
        return z, log_q

    _, log_q = draw(noise)
    matrix = jacobian(lambda noise: draw(noise)[0], noise)
    standard = torch.distributions.Normal(0, 1).log_prob(noise).sum()
    torch.testing.assert_close(log_q.sum(), standard - torch.linalg.slogdet(matrix).logabsdet)
    if steps == 3:
        assert torch.linalg.matrix_rank(matrix.triu(1)) > 0
        assert torch.linalg.matrix_rank(matrix.tril(-1)) > 0  # the order has been turned round


def test_one_latent_has_nothing_before_it() -> None:
    step = AutoregressiveStep(MLPVAEConfig(latents=1, flow_width=3), CONTEXT, spatial=False, reverse=False)
    z, context = torch.randn(4, 1), torch.randn(4, CONTEXT)
    step(z, context)[1].sum().backward()
    assert (step.hidden.weight.grad == 0).all()  # type: ignore[operator]
    out: Tensor = step.out.weight.grad  # type: ignore[assignment]
    assert (out == 0).all()
    assert (step.out.bias.grad != 0).any()  # type: ignore[union-attr]


def test_a_new_flow_changes_little() -> None:
    """The gates start near sigmoid(2), 0.88, so that at first the posterior is almost a Gaussian."""
    torch.manual_seed(0)
    z, context = inputs(False, batch=200)
    step = prepared(AutoregressiveStep(settings(False), CONTEXT, False, False), NORMS[1], z, context)
    _, log_derivative = step(z, context)
    assert 0.7 < log_derivative.exp().mean() < 0.95
