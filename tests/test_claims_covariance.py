"""The measurements of covariances and of batch against weight normalisation measure what they say."""

from __future__ import annotations

import copy
import math
from typing import Any

import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wn.claims import arms, batch_norm, covariance, exact_layer, spectra
from wn.claims.arms import Race, crossing, curve
from wn.config.compose import compose
from wn.data import Split
from wn.norm import NormalizedLayer, fold, normalize, normalized_layers
from wn.report.claims import covariance as figures
from wn.resources import resolve
from wn.stack import Stack
from wn.trainer import Observer, Trainer


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def network() -> tuple[nn.Module, Split]:
    torch.manual_seed(0)
    layers = [nn.Conv2d(2, 3, 3, padding=1), nn.Tanh(), nn.Flatten(), nn.Linear(48, 4)]
    split = Split(torch.randn(150, 2, 4, 4, dtype=torch.float64), torch.randint(4, (150,)))
    return normalize(nn.Sequential(*layers).double(), direction="row", gain="free"), split


# exact statements


@pytest.mark.parametrize("make", [exact_layer.mlp, exact_layer.convnet])
def test_gradients_of_v_and_g_are_equations_3_and_4(make: Any):
    torch.manual_seed(0)
    plain, x = make()
    error, along = exact_layer.gradient_errors(normalize(plain, direction="row", gain="free"), x)
    assert error < 1e-10
    assert along > 0.1  # what is orthogonal to v is not so without the projection


def test_an_error_in_the_gradient_would_show():
    torch.manual_seed(0)
    plain, x = exact_layer.mlp()
    model = normalize(plain, direction="row", gain="free")
    layer = next(iter(normalized_layers(model).values()))
    layer.raw_weight.register_hook(lambda grad: grad + 1e-8 * layer.raw_weight)
    assert exact_layer.gradient_errors(model, x)[0] > 1e-9


@pytest.mark.parametrize("name", ["A5", "A6"])
def test_the_centred_gradient_and_the_layer_on_a_whitened_batch_are_exact(name: str):
    rows = exact_layer._centred_rows if name == "A5" else exact_layer._one_layer_rows
    for row in rows(0):
        control = row["quantity"].startswith("control")
        assert (row["value"] > 0.05) if control else (row["value"] < 1e-10), row


# covariances


def test_moments_are_those_of_gradients_one_by_one():
    model, split = network()
    found = spectra.moments(model, split)
    plain = fold(model)
    rows: dict[str, list[Tensor]] = {"0": [], "3": []}
    for x, y in zip(split.x, split.y, strict=True):
        loss = F.cross_entropy(plain(x[None]), y[None])
        for name in rows:
            (gradient,) = torch.autograd.grad(loss, plain.get_submodule(name).weight, retain_graph=True)
            rows[name].append(gradient.flatten(1))
    for name, gradients in rows.items():
        for unit in range(len(gradients[0])):
            mine = torch.stack([g[unit] for g in gradients])
            torch.testing.assert_close(found[name].covariance[unit], torch.cov(mine.T, correction=0))
    assert found["0"].active.tolist() == [150] * 3


def test_w_that_is_the_eigenvector_is_found_and_one_that_is_not_is_not():
    """C = I + 9 u u' in 6 dimensions, w = u or orthogonal to it."""
    u = torch.tensor([[1.0, -1, 1, -1, 1, -1]], dtype=torch.float64) / math.sqrt(6)
    c = torch.eye(6, dtype=torch.float64) + 9 * u[:, :, None] * u[:, None, :]
    other = torch.tensor([[1.0, 1, 0, 0, 0, 0]], dtype=torch.float64)
    for w, cos2 in ((3 * u, 1.0), (other, 0.0)):
        found = covariance.alignment(*spectra.largest_first(c), w, generator())
        assert found["cos2"].item() == pytest.approx(cos2, abs=1e-12)
    # The eigenvalues are 10 and five times 1: PR = 15^2 / (6 * 105); without u all five are 1.
    flat = spectra.participation(spectra.projected(c, u), 5)
    assert flat.item() == pytest.approx(1)
    assert spectra.participation(c, 6).item() == pytest.approx(225 / 630)
    # Without a direction of eigenvalue 1: 10 and four times 1.
    assert spectra.participation(spectra.projected(c, other), 5).item() == pytest.approx(196 / (5 * 104))


def test_a_random_direction_has_one_over_d():
    c = torch.diag(torch.arange(1.0, 41.0)).double().expand(2000, 40, 40)
    found = covariance.alignment(*spectra.largest_first(c), torch.ones(2000, 40).double(), generator())
    assert found["drawn cos2"].mean().item() == pytest.approx(1 / 40, rel=0.1)
    assert found["drawn top"].mean().item() == pytest.approx(5 / 40, rel=0.1)


def test_successive_steps_give_the_gradient_of_w():
    """Of whole batches in one step: the mean of the gradients of the folded network."""
    model, split = network()
    with torch.no_grad():
        for layer in normalized_layers(model).values():
            layer.g.mul_(-1.7)
    plain, before = fold(model), copy.deepcopy(model)
    steps = spectra.successive(model, split, steps=2, batch=40, lr=0.1, seed=3)
    chosen = torch.randint(150, (40,), generator=torch.Generator().manual_seed(3))
    F.cross_entropy(plain(split.x[chosen]), split.y[chosen]).backward()
    for name, layer in normalized_layers(before).items():
        gradient = plain.get_submodule(name).weight.grad
        torch.testing.assert_close(steps[name].by_w[:, 0], gradient.flatten(1))
        v = layer.raw_weight.detach().flatten(1)
        assert (steps[name].by_v[:, 0] * v).sum(1).abs().max() < 1e-12


def test_both_ways_to_eigenvalues_agree():
    rows = torch.randn(3, 50, 6, generator=generator(), dtype=torch.float64)
    c = torch.stack([torch.cov(one.T, correction=0) for one in rows])
    values, vectors = spectra.centred_svd(rows)
    torch.testing.assert_close(values, spectra.largest_first(c)[0])
    torch.testing.assert_close(spectra.centred_svdvals(rows), values)
    torch.testing.assert_close(spectra.participation_of(values, 6), spectra.participation(c, 6))
    torch.testing.assert_close(spectra.energies(vectors, vectors[:, :, 0])[:, 0], torch.ones(3).double())


# the race of scale and projection

SHORT = Race({"model": "mlp", "data": "digits", "model.widths": (8,)}, [0.1, 1.0], 1, 11, 0.97)


@pytest.mark.parametrize(("arm", "norm"), [("plain", "none"), ("both", "weight_norm")])
def test_arms_are_the_trainers_plain_weights_and_weight_normalisation(arm: str, norm: str):
    """By its own loop, layers and optimiser, over an epoch."""
    stacks: list[Stack] = []
    errors = curve(SHORT, arm, [4], stacks.append)
    settings = {**SHORT.settings, "norm": norm, "optim": "sgd", "optim.momentum": 0.0, "seed": 4}
    configs = [compose({**settings, "trainer.epochs": 1, "optim.lr": lr}) for lr in SHORT.rates]
    _, data = resolve(configs[0])
    loop = Trainer(configs, data, torch.device("cpu"), Observer())
    loop.run()
    ours = stacks[-1].map(lambda m: {n: x.effective_weight() for n, x in normalized_layers(m).items()})
    theirs = loop.stack.map(lambda m: {n: x.effective_weight() for n, x in normalized_layers(m).items()})
    for name, weight in ours.items():
        torch.testing.assert_close(weight, theirs[name], rtol=1e-4, atol=1e-5)
    assert errors.shape == (2, 2, 1)


def test_at_small_rates_projection_is_plain_and_scale_is_weight_normalisation_unprojected():
    torch.manual_seed(0)
    w, G = (torch.randn(2, 3, 5, dtype=torch.float64) for _ in range(2))
    plain = arms.step("plain", w, G, torch.tensor(1e-4), {})
    turned = arms.step("projection", w, G, torch.tensor(1e-4), {})
    assert 0 < (plain - turned).abs().max() < 1e-6
    state = arms.start("scale", w)
    once = arms.step("scale", w, G, torch.tensor(0.5), state)
    torch.testing.assert_close(once, arms.step("plain", w, G, torch.tensor(0.5), {}))  # g = ||v|| at first
    assert bool((state["length"] > w.norm(dim=2, keepdim=True)).all())
    both = arms.start("both", w)
    arms.step("both", w, G, torch.tensor(0.5), both)
    torch.testing.assert_close(both["v"].norm(dim=2, keepdim=True), state["length"])  # the same recursion


def test_the_time_to_a_target_is_between_evaluations():
    values = torch.tensor([[1.0, 1.0], [0.6, math.nan], [0.2, math.nan], [0.6, math.nan], [0.0, math.nan]])
    race = Race({}, [0.1, 1.0], 8, 1, 0.5)
    assert crossing(values[:, :, None], torch.tensor([0.4]), race).flatten().tolist() == [3, 8]


# batch normalisation


def test_the_deviation_of_a_whitened_batch_falls_as_the_root(monkeypatch: pytest.MonkeyPatch):
    """Median of |N(0, (kurtosis - 1)/(4 m))|: 0.6745 sqrt(2/(4 m)) of Gaussian inputs; else it stays."""
    monkeypatch.setattr(batch_norm, "DRAWS", 8)
    white = batch_norm.deviations_by_size(batch_norm.gaussian(True), seed=1)
    assert white[-1] == pytest.approx(0.6745 / math.sqrt(2 * batch_norm.SIZES[-1]), rel=0.05)
    assert batch_norm.log_slope(batch_norm.SIZES, white) == pytest.approx(-0.5, abs=0.03)
    assert batch_norm.log_slope([1, 10, 100], [5.0, 5.0, 5.0]) == pytest.approx(0)


def layers(scale: float) -> nn.Module:
    """A layer of white inputs, whose outputs are g v.x/||v||, and one whose inputs differ in scale."""
    torch.manual_seed(0)
    first = NormalizedLayer(nn.Linear(16, 16).double(), direction="row", gain="free")
    second = NormalizedLayer(nn.Linear(16, 8).double(), direction="row", gain="free")
    with torch.no_grad():
        first.raw_weight.copy_(torch.linalg.qr(torch.randn(16, 16).double())[0])
        first.g.copy_(torch.logspace(0, scale, 16))
    return nn.Sequential(first, second)


def test_the_ratio_is_one_on_white_inputs_and_spreads_on_others():
    x = exact_layer.whitened(torch.randn(500, 16, generator=generator(), dtype=torch.float64))
    for scale, least, most in ((0.0, 0, 1e-9), (3.0, 0.2, 9)):
        found = batch_norm.ratios(layers(scale), x)
        torch.testing.assert_close(found["0"], torch.ones(16).double())
        assert least <= batch_norm.variation(found["1"]) <= most


def test_positions_at_a_border_see_fewer_inputs():
    """sigma^2/||v||^2 of a 3x3 kernel of ones: 1 inside, 6/9 at an edge, 4/9 in a corner."""
    torch.manual_seed(0)
    conv = nn.Conv2d(1, 1, 3, padding=1, bias=False)
    nn.init.constant_(conv.weight, 1 / 3)  # ||v|| = g = 1
    with torch.no_grad():
        t = conv(torch.randn(20_000, 1, 5, 5))
    r = batch_norm.positions(t, torch.ones(1))[0].square()
    for place, expected in (((2, 2), 1), ((0, 2), 6 / 9), ((4, 4), 4 / 9)):
        assert r[place].item() == pytest.approx(expected, rel=0.04)


def test_a_drift_is_that_of_the_scale_and_not_of_gains():
    x = torch.randn(200, 16, generator=generator(), dtype=torch.float64)
    models = [layers(0.0) for _ in range(3)]
    with torch.no_grad():
        for k, model in enumerate(models):
            model[0].raw_weight.mul_(2.0**k)  # ||v|| is no part of it
            model[1].g.mul_(2.0**k)  # nor is a layer's own gain
    drift = batch_norm.drifts(models, x)
    assert max(float(value.abs().max()) for value in drift.values()) < 1e-6
    with torch.no_grad():
        for k, model in enumerate(models):
            model[0].g.mul_(math.exp(k))  # but that of the layer before is: log sigma = 0, 1, 2, sd 1
            model[0].bias.zero_()
    torch.testing.assert_close(batch_norm.drifts(models, x)["1"], torch.ones(8).double())


# figures


def test_the_figure_of_alignment_shows_each_layer_and_a_random_direction():
    row = {"claim": "C1", "condition": "mlp, gradients of images", "seed": 0}
    values = {"cos2": 0.02, "energy": 0.1, "random": 1 / 101}
    rows = [
        {**row, "quantity": f"{word} of {layer}", "x": epoch, "value": value}
        for layer in ("hidden1", "logits")
        for epoch in (0, 1, 10, 30)
        for word, value in values.items()
    ]
    figure = figures.covariance(pd.DataFrame(rows))
    assert figure is not None
    above, below = figure.axes
    assert [tick.get_text() for tick in below.get_xticklabels()] == ["hidden1", "logits"]
    random = [float(axis.lines[-2].get_ydata()[0]) for axis in (above, below)]
    assert random == pytest.approx([0.4549 / 100, 4.351 / 100], rel=0.02)  # chi-square's medians over d - 1
    assert figures.covariance(pd.DataFrame(rows).assign(claim="D2")) is None


def test_the_figure_of_ratios_shows_the_spread_of_each_layer():
    rows = [
        {"claim": "D2", "condition": f"{family}, {time}", "quantity": quantity, "x": x, "value": value}
        for family in ("mlp", "convnet")
        for time in ("at the start", "trained")
        for quantity, x, value in (("cv of first", None, 0.1), ("deviation by row, conv1", 0.0, 0.2))
    ]
    figure = figures.batch_norm(pd.DataFrame(rows))
    assert figure is not None
    assert [bar.get_height() for bar in figure.axes[0].patches] == [0.1] * 4
    assert figure.axes[1].lines[0].get_ydata().tolist() == [0.2]
    assert figures.batch_norm(pd.DataFrame(rows[:0], columns=list(rows[0]))) is None
