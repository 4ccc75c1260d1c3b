"""What measures noise, small batches and cost: against closed forms, and on cases whose answer is known."""

from __future__ import annotations

import math
import time
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from convnet_cases import give
from torch import nn

from wn.claims import batch_noise, batches, cost, noise
from wn.claims.batches import Task
from wn.claims.noise import Activations
from wn.claims.training import Watch
from wn.config import ConvNetConfig, MLPConfig, NormConfig
from wn.models import build
from wn.presets import PRESETS
from wn.report.claims.noise import LINES, NETWORKS, PANELS, noise_figure


def draw() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def normal(images: int) -> Activations:
    return noise.normal_activations(images, draw())


def test_kurtosis_of_known_distributions():
    x = torch.rand(100_000, generator=draw(), dtype=torch.float64)
    assert noise.kurtosis(x).item() == pytest.approx(-1.2, abs=0.02)
    assert noise.kurtosis(torch.sign(x - 0.5)).item() == pytest.approx(-2, abs=0.01)
    assert noise.kurtosis(-torch.log(x)).item() == pytest.approx(6, abs=0.7)


def test_batches_are_cut_of_permutations():
    values = torch.arange(12.0, dtype=torch.float64)[:, None]
    means = noise.batch_means(values, 4, 6, draw())
    assert means.shape == (6, 1)
    torch.testing.assert_close(means.view(2, 3).mean(1), torch.full((2,), 5.5, dtype=torch.float64))


def test_noise_of_normal_outputs():
    """Var m = (B - 1) / B^2 and no kurtosis; batch normalisation adds z^2 / 2 of it, first order in 1/B."""
    found = noise.noise(normal(20_000), 100, 20_000, draw())
    assert found.sd_mobn == pytest.approx(math.sqrt(99) / 100, rel=0.02)
    assert abs(found.kurtosis_mobn) < 0.1
    assert found.sd_bn / found.sd_mobn == pytest.approx(math.sqrt(1 + 0.6745**2 / 2), rel=0.03)
    assert 0 < found.kurtosis_bn < 0.3
    assert found.tail_bn == pytest.approx(3.29, abs=0.3)


def test_a_pair_leaves_the_sign_alone():
    """Two images: a unit puts out 1 or -1, so the noise is Bernoulli's: kurtosis 1 / (p q) - 6."""
    found = noise.noise(normal(5_000), 2, 20_000, draw())
    q = torch.linspace(0.001, 0.999, 999)
    assert found.kurtosis_bn == pytest.approx((1 / (q * (1 - q)) - 6).median().item(), abs=0.4)


def test_rare_outputs_make_mean_only_noise_heavy_tailed():
    """False by construction: one image in a thousand is active, and a mean of 100 is no normal number."""
    z = torch.zeros(5_000, 4, dtype=torch.float64)
    z[::1000] = 30.0
    z += 0.01 * torch.randn(z.shape, generator=draw(), dtype=torch.float64)
    found = noise.noise(Activations(z, z, z.square()), 100, 20_000, draw())
    assert found.kurtosis_mobn > 3


@pytest.mark.parametrize("norm", ["batch_norm", "weight_norm_mean_only_bn"])
@pytest.mark.parametrize("model", [MLPConfig(widths=()), ConvNetConfig(width=4, depth=1)])
def test_a_layers_own_noise_is_what_the_layer_does(norm: str, model: MLPConfig | ConvNetConfig):
    """The first layer's outputs in a batch, by the layer, and by the moments of its images."""
    network = build(model, NormConfig.model_validate(PRESETS[norm] | {"eps": 1e-12}), (3, 12, 12), 10, 0)
    x = torch.randn(40, 3, 12, 12, generator=draw())
    everything = noise.outputs(network, x)
    name = next(iter(everything))
    whole, part = everything[name], noise.outputs(network, x[:8])[name]
    dims = [0, *range(2, whole.dim())]
    sd, mean = torch.std_mean(whole, dims, correction=0, keepdim=True)
    z = (whole - mean) / sd
    own = z[:8]
    if norm == "batch_norm":
        expected = (own - own.mean(dims, keepdim=True)) / own.std(dims, correction=0, keepdim=True)
    else:
        expected = own - own.mean(dims, keepdim=True)
    torch.testing.assert_close((part - mean) / sd, expected, rtol=1e-3, atol=1e-4)
    units = noise.activations({name: whole}, draw())
    assert units.first.mean(0).abs().max() < 1e-9
    torch.testing.assert_close(units.second.mean(0), torch.ones(units.second.shape[1]).double())


def test_the_whole_network_of_one_layer_is_that_layer():
    network = build(MLPConfig(widths=()), NormConfig.model_validate(PRESETS["batch_norm"]), (1, 4, 4), 20, 0)
    x = torch.randn(1_000, 1, 4, 4, generator=draw())
    whole = noise.in_training(noise.Frozen(network, x), 300, 0)
    alone = noise.noise(noise.activations(noise.outputs(network, x), draw()), noise.BATCH, 20_000, draw())
    assert whole[1] == pytest.approx(alone.sd_bn, rel=0.05)
    assert whole[0] == pytest.approx(alone.kurtosis_bn, abs=0.15)


def test_normal_noise_has_the_size_of_a_batchs_mean():
    layer = batch_noise.BatchNoise("normal")
    y = torch.randn(50, 3, 4, 4, generator=draw())
    shifts = torch.stack([(layer(y) - y)[0, :, 0, 0] for _ in range(2_000)])
    expected = y.mean((2, 3)).std(0) / math.sqrt(50)
    torch.testing.assert_close(shifts.std(0), expected, rtol=0.06, atol=0)
    assert torch.equal(layer.eval()(y), y)


def test_resampled_noise_is_that_of_another_batchs_statistics():
    """To first order the noise of an output z is -(m + z s), with variances 1/B and 1/(2 B) for normal z."""
    layer = batch_noise.BatchNoise("resampled")
    y = torch.randn(400, 2, generator=draw())
    noises = torch.stack([layer(y) - y for _ in range(2_000)])
    z = y - y.mean(0)
    torch.testing.assert_close(noises.std(0), torch.sqrt((1 + z.square() / 2) / 400), rtol=0.25, atol=0)


def test_noise_goes_after_every_normalised_layer():
    network = build(
        ConvNetConfig(width=4, depth=1), NormConfig.model_validate(PRESETS["weight_norm"]), (3, 12, 12), 10, 0
    )
    noisy = batch_noise.with_noise(network, "normal", 0)
    names = [name for name, _ in noisy.named_children()]
    assert [n for n in names if n.endswith("_noise")] == [f"conv{i}_noise" for i in (1, 2, 3)] + [
        "logits_noise"
    ]
    assert names.index("conv2_noise") == names.index("conv2") + 1


def test_noise_that_recovers_more_than_half():
    errors = {"WN": 40.0, "MOBN": 30.0, "normal noise": 34.0, "BN noise": 36.0}
    found = {row["quantity"]: row["value"] for row in batch_noise.rows(errors, 0)}
    assert (found["gain"], found["recovered"], found["control BN noise less normal noise"]) == (10, 1, 2)


def test_steps_take_turns_and_the_fastest_counts(monkeypatch: pytest.MonkeyPatch):
    calls: list[str] = []
    clock = iter(range(10**6))
    now = [0.0]
    monkeypatch.setattr(time, "process_time", lambda: now[0])

    def step(name: str, seconds: float) -> Any:
        def advance() -> None:
            calls.append(name)
            now[0] += seconds * (1 + next(clock) % 3)  # another process takes the core now and then

        return advance

    blocks = cost.fastest({"a": step("a", 1.0), "b": step("b", 2.0)}, rounds=6)
    assert len(blocks) == cost.BLOCKS
    assert all(block["b"] / block["a"] == pytest.approx(2) for block in blocks)
    assert calls[4:8] == ["a", "b", "b", "a"]


@pytest.mark.parametrize("norm", ["none", "weight_norm", "batch_norm"])
def test_both_paths_are_the_same_function(norm: str):
    torch.manual_seed(0)
    model = ConvNetConfig(width=8, weight_init="he")
    ours = build(model, NormConfig.model_validate(PRESETS[norm]), (3, 32, 32), 10, 0)
    theirs = cost.torchs_network(norm, 8)
    theirs[0] = nn.Identity()  # the noise
    x = torch.randn(4, 3, 32, 32, dtype=torch.float64)
    give(ours.double(), theirs.double())
    torch.testing.assert_close(ours.eval()(x), theirs.eval()(x), rtol=1e-4, atol=1e-4)  # of another eps
    assert ours(x).std(0).min() > 1e-2


def test_a_learning_rate_is_chosen_on_the_validation_split(monkeypatch: pytest.MonkeyPatch):
    """The rate that is best on the test split is not the one; a run that diverged counts at chance."""
    valid = {0.01: 0.1, 0.1: 0.2, 1.0: 0.15}
    test = {0.01: 0.3, 0.1: 0.05, 1.0: 0.5}

    def train(configs: Any) -> Watch:
        watch = Watch(len(configs))
        for i, config in enumerate(configs):
            watch.metrics[i] = [{"valid_error": valid[config.optim.lr]}]
            diverged = config.optim.lr == 1.0 and config.seed == 1
            watch.results[i] = None if diverged else {"test_error": test[config.optim.lr] + config.seed / 100}
        return watch

    monkeypatch.setattr(batches, "train", train)
    found = batches.chosen(Task({"data": "digits"}, (0.01, 0.1, 1.0), 2), "none", 2)
    assert found.lr == 0.01
    np.testing.assert_allclose(found.test, [30, 31])
    valid[1.0] = 0.01
    assert batches.chosen(Task({"data": "digits"}, (0.01, 0.1, 1.0), 2), "none", 2).lr == 0.01


def test_a_bound_is_a_negative_loss(monkeypatch: pytest.MonkeyPatch):
    losses = {"batch_norm": 30.0, "weight_norm_init": 28.0}
    made = {norm: batches.Chosen(0.01, np.array([loss, loss + 1])) for norm, loss in losses.items()}
    monkeypatch.setattr(batches, "outcome", lambda condition, norm, batch, seeds: made[norm])
    rows = [
        r
        for r in batches._bounds("vae, diagonal posterior", 8, "difference")
        if r["quantity"] == "difference"
    ]
    assert [row["value"] for row in rows] == [-2, -2]  # batch normalisation's bound is lower


def test_the_figure_has_a_line_for_each_norm_and_network():
    rows = pd.DataFrame(
        {"claim": "G1a", "condition": f"{family}, trained with {network}", "quantity": f"kurtosis {norm}"}
        | {"seed": seed, "x": size, "value": 10.0 / size + seed}
        for family in PANELS
        for network in NETWORKS
        for norm in LINES
        for seed in (0, 1)
        for size in (2, 100)
    )
    figure = noise_figure(rows)
    assert figure is not None
    lines = [line for axes in figure.axes for line in axes.get_lines() if len(line.get_xdata()) == 2]
    drawn = [line for line in lines if list(line.get_xdata()) == [2, 100]]
    assert len(drawn) == 8
    assert list(drawn[0].get_ydata()) == pytest.approx([5.5, 0.6])
    assert noise_figure(rows.assign(claim="G2")) is None
