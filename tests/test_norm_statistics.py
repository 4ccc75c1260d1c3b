"""Batch and mean-only statistics: the authors' constants, torch's, and what each leaves of the batch."""

from __future__ import annotations

import norm_cases as cases
import pytest
import torch
from norm_cases import BOTH, TRACKED, every_case, make
from torch import Tensor, nn

from wn.norm import NormalizedLayer

MEAN_ONLY = cases.having(statistics="mean_only")


@every_case(TRACKED, BOTH)
def test_running_averages_move_by_the_given_constants(norm: str, name: str, dtype: torch.dtype) -> None:
    for correction in ["images"] if norm in MEAN_ONLY else ["images", "samples"]:
        check_averages(norm, name, dtype, correction)


def check_averages(norm: str, name: str, dtype: torch.dtype, correction: str) -> None:
    case = make(norm, name, dtype, momentum=0.3, correction=correction)
    before = {key: buffer.clone() for key, buffer in case.layer.named_buffers()}
    w = case.layer.effective_weight().detach()
    rows = cases.per_unit(case.plain, cases.pre_activation(case.plain, w, case.x))
    case.layer(case.x)
    mean = rows.mean(0)
    torch.testing.assert_close(
        case.layer.running_mean, 0.7 * before["running_mean"] + 0.3 * mean, **case.tolerance
    )
    if case.layer.statistics in ("batch", "batch_renorm"):
        n = len(case.x) if correction == "images" else len(rows)
        variance = ((rows - mean) ** 2).sum(0) / len(rows) * n / (n - 1)
        expected = 0.7 * before["running_var"] + 0.3 * variance
        torch.testing.assert_close(case.layer.running_var, expected, **case.tolerance)
    assert not any(buffer.requires_grad for buffer in case.layer.buffers())
    moved = {key: buffer.clone() for key, buffer in case.layer.named_buffers()}
    case.layer.eval()(case.x)
    assert all(torch.equal(buffer, moved[key]) for key, buffer in case.layer.named_buffers())
    assert {"running_mean"} <= set(case.layer.state_dict())


def test_defaults_are_the_authors() -> None:
    layer = NormalizedLayer(nn.Linear(2, 2), statistics="batch")
    assert (layer.eps, layer.momentum, layer.correction) == (1e-6, 0.1, "images")


@every_case(["batch_norm"])
def test_batch_statistics_are_torchs_with_its_constants(norm: str, name: str, dtype: torch.dtype) -> None:
    case = make(norm, name, dtype, eps=1e-5, momentum=0.1, correction="samples")
    layer = case.layer
    torchs = nn.BatchNorm1d(layer.g.numel(), eps=1e-5, momentum=0.1).to(dtype)
    torchs.load_state_dict({
        "weight": layer.g,
        "bias": torch.zeros_like(layer.g) if layer.bias is None else layer.bias,
        "running_mean": layer.running_mean,
        "running_var": layer.running_var,
        "num_batches_tracked": torch.tensor(0),
    })  # fmt: skip
    for training in (True, False):
        x = case.x.clone().requires_grad_()
        y = layer.train(training)(x)
        t = cases.pre_activation(case.plain, layer.weight, x)
        expected = torchs.train(training)(cases.per_unit(case.plain, t))
        rows = cases.per_unit(case.plain, y)
        torch.testing.assert_close(rows, expected, **case.tolerance)
        weights = torch.randn_like(rows)
        (ours,) = torch.autograd.grad((rows * weights).sum(), x)
        (theirs,) = torch.autograd.grad((expected * weights).sum(), x)
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=20 * case.tolerance["atol"])
        torch.testing.assert_close(layer.running_mean, torchs.running_mean, **case.tolerance)
        torch.testing.assert_close(layer.running_var, torchs.running_var, **case.tolerance)


@every_case(MEAN_ONLY)
def test_mean_only_takes_the_mean_and_nothing_else(norm: str, name: str, dtype: torch.dtype) -> None:
    case = make(norm, name, dtype)
    y = case.layer(case.x)
    rows = cases.per_unit(case.plain, y)
    bias = torch.zeros_like(rows[0]) if case.layer.bias is None else case.layer.bias
    torch.testing.assert_close(rows.mean(0), bias, **case.tolerance)
    raw = cases.per_unit(case.plain, cases.pre_activation(case.plain, case.layer.effective_weight(), case.x))
    torch.testing.assert_close(rows.var(0), raw.var(0), **case.tolerance)
    running = cases.per_unit(case.plain, case.layer.eval()(case.x))
    torch.testing.assert_close(running, raw - case.layer.running_mean + bias, **case.tolerance)


def test_mean_only_gradients_have_no_mean_over_batch_and_space() -> None:
    """A layer of one-by-one identity kernels shows the gradient that reaches t."""
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 3, 1).double()
    with torch.no_grad():
        conv.weight.copy_(torch.eye(3).view(3, 3, 1, 1))
    x = torch.randn(4, 3, 2, 2, dtype=torch.float64, requires_grad=True)
    loss = (NormalizedLayer(conv, statistics="mean_only")(x) ** 3).sum()
    (slope,) = torch.autograd.grad(loss, x)
    torch.testing.assert_close(slope.mean((0, 2, 3)), torch.zeros(3, dtype=torch.float64))
    assert bool((slope.mean((2, 3)).abs() > 1e-3).any())  # it is batch and space together


@every_case(TRACKED, ["linear-sequence", *BOTH])
def test_a_batch_of_one_and_no_batch_at_all(norm: str, name: str, dtype: torch.dtype) -> None:
    single, bare = make(norm, name, dtype), make(norm, name, dtype)
    y = single.layer(single.x[:1])
    torch.testing.assert_close(bare.layer(bare.x[0]), y[0], **single.tolerance)
    assert bool(y.isfinite().all())
    for ours, theirs in zip(single.layer.buffers(), bare.layer.buffers(), strict=True):
        assert bool(ours.isfinite().all())
        if "sequence" not in name or single.layer.statistics == "mean_only":  # there [T, F] is a batch of T
            torch.testing.assert_close(ours, theirs, **single.tolerance)


def test_statistics_of_bfloat16_are_taken_in_float32() -> None:
    torch.manual_seed(0)
    for statistics in ("mean_only", "batch"):
        layer = NormalizedLayer(nn.Linear(8, 4), statistics=statistics, momentum=1.0)
        x = torch.randn(4096, 8)
        with torch.autocast("cpu", torch.bfloat16):
            layer(x)
            t = torch.nn.functional.linear(x, layer.effective_weight()).float()
        torch.testing.assert_close(layer.running_mean, t.mean(0), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("statistics", ["mean_only", "batch"])
def test_no_sum_overflows_in_float16(statistics: str) -> None:
    """Its largest number is 65504, and a channel's sum is larger."""
    torch.manual_seed(0)
    layer = NormalizedLayer(nn.Linear(8, 4), statistics=statistics)  # type: ignore[arg-type]
    x = torch.randn(50_000, 8) + 10
    with torch.autocast("cpu", torch.float16):
        y = layer(x)
    assert layer.bias is not None
    torch.testing.assert_close(y.float().mean(0), layer.bias, rtol=0, atol=0.01)
    (cases.ramp(y) * y).float().sum().backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in layer.parameters())


# 12: the equivalence of section 2.2


def whitened(rows: Tensor) -> Tensor:
    """The same rows with mean 0 and covariance I, both over the batch."""
    rows = rows - rows.mean(0)
    values, vectors = torch.linalg.eigh(rows.T @ rows / len(rows))
    return rows @ vectors / values.sqrt()


def test_batch_and_weight_normalisation_are_one_on_whitened_inputs() -> None:
    torch.manual_seed(0)
    x = whitened(torch.randn(50, 6, dtype=torch.float64) @ torch.randn(6, 6, dtype=torch.float64))
    linear = nn.Linear(6, 4).double()
    batch = NormalizedLayer(
        nn.Linear(6, 4).double(), direction="plain", gain="free", statistics="batch", eps=0.0
    )
    weight = NormalizedLayer(linear, direction="row", gain="free")
    with torch.no_grad():
        batch.weight.copy_(weight.v)
        batch.g.copy_(weight.g)
        batch.bias.copy_(weight.bias)
    torch.testing.assert_close(batch(x), weight(x))
    plain = x + torch.randn(6, dtype=torch.float64)
    assert not torch.allclose(batch(plain), weight(plain))


def test_they_differ_for_a_convolution_whose_patches_are_not_white() -> None:
    """Whitening the pixels' channels does not whiten the patches that a kernel sees."""
    torch.manual_seed(0)
    smooth = torch.nn.functional.avg_pool2d(torch.randn(20, 3, 10, 10, dtype=torch.float64), 3, 1)
    rows = whitened(smooth.movedim(1, -1).reshape(-1, 3))
    x = rows.view(20, 8, 8, 3).movedim(-1, 1)
    for size, equal in ((1, True), (3, False)):
        weight = NormalizedLayer(nn.Conv2d(3, 4, size).double(), direction="row", gain="free")
        batch = NormalizedLayer(
            nn.Conv2d(3, 4, size).double(), direction="plain", gain="free", statistics="batch", eps=0.0
        )
        with torch.no_grad():
            batch.weight.copy_(weight.v)
            batch.g.copy_(weight.g)
            batch.bias.copy_(weight.bias)
        assert torch.allclose(batch(x), weight(x)) == equal
