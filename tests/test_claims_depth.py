"""Measurements of initialisation in depth and of g = e^s measure what they say."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from wn.claims import depth, depth_training, gain, nets, recurrent
from wn.claims.predictions import predicted_factor
from wn.config import NormConfig, TransformerConfig
from wn.models import build
from wn.norm import data_dependent_init, normalized_layers


def batch(images: int = 40) -> torch.Tensor:
    data = nets.digits(torch.float64)
    return data.train.x[nets.first_batch(data, images, 0)]


@pytest.mark.parametrize("kind", ["plain", "residual", "convolutional"])
def test_every_layer_starts_with_mean_0_and_variance_1(kind: nets.Kind):
    x = batch()
    assert depth.largest_error(nets.deep(kind, 6, 8, "relu", "data", x, 0), x) < 1e-10
    assert depth.largest_error(nets.deep(kind, 6, 8, "relu", "he", x, 0), x) > 0.05
    assert depth.largest_error(nets.deep(kind, 6, 8, "relu", "stale", x, 0), x) > 0.05


def test_so_does_every_layer_of_a_transformer():
    data = nets.digits(torch.float64)
    norm = NormConfig.model_validate(nets.NORMS["data"])
    model = build(TransformerConfig(), norm, data.shape, data.classes, 0).double()
    data_dependent_init(model, batch(100))
    assert depth.largest_error(model, batch(100)) < 1e-10


def test_a_single_layer_is_not_stale():
    """With one layer the two passes are the same; the logits come after it."""
    x = batch()
    fresh, stale = (
        next(iter(normalized_layers(nets.deep("plain", 1, 8, "relu", start, x, 0)).values())).g
        for start in ("data", "stale")
    )
    torch.testing.assert_close(fresh, stale)


def test_start_he_is_the_plain_network_and_starts_share_their_weights():
    x = batch()
    model = nets.deep("plain", 2, 8, "relu", "he", x, 3)
    torch.manual_seed(3)
    plain = nets.Deep("plain", 2, 8, "relu", (1, 8, 8)).double()
    torch.testing.assert_close(model(x), plain(x), rtol=1e-6, atol=1e-6)


def test_gradient_ratio_is_that_of_finite_differences():
    """A linear chain of two 1x1 layers by hand: d loss / d t_1 = w_2 d loss / d t_2."""
    x, y = batch(5), torch.tensor([0, 1, 2, 3, 4])
    model = nets.deep("plain", 2, 6, "relu", "data", x, 0)
    first, second = list(normalized_layers(model).values())[:2]
    t1 = first(x.flatten(1)).detach()
    t2 = second(F.relu(t1)).detach().requires_grad_()
    (d2,) = torch.autograd.grad(F.cross_entropy(model.logits(F.relu(t2)), y), t2)
    d1 = (d2 @ second.effective_weight()) * (t1 > 0)
    assert depth.gradient_ratio(model, x, y) == pytest.approx((d1.norm() / d2.norm()).item())


def test_correlation_is_the_mean_cosine_of_pairs():
    x = batch(4)
    model = nets.deep("plain", 3, 6, "relu", "he", x, 0)
    t = model.features(x).detach()
    pairs = [F.cosine_similarity(t[i], t[j], 0) for i in range(4) for j in range(i)]
    mean, root_mean_square = depth.image_correlation(model, x)
    assert mean == pytest.approx(float(sum(pairs) / 6))
    assert root_mean_square == pytest.approx(math.sqrt(sum(float(p) ** 2 for p in pairs) / 6))
    assert depth.image_correlation(model, x[:1].expand(3, -1, -1, -1)) == pytest.approx((1, 1))


@pytest.mark.parametrize(
    ("activation", "squared"), [("relu", math.pi / (math.pi - 1)), ("leaky_relu", 1.159**2)]
)
def test_predicted_factor(activation: str, squared: float):
    """sqrt(pi/(pi-1)); and by sampling, E f'^2 / Var f."""
    assert predicted_factor("plain", 50, activation) ** 2 == pytest.approx(squared, rel=1e-3)
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(200_000, generator=generator, requires_grad=True)
    f = nets.ACTIVATIONS[activation]()(z)
    (slope,) = torch.autograd.grad(f.sum(), z)
    sampled = float(slope.square().mean() / f.detach().var())
    assert predicted_factor("plain", 50, activation) ** 2 == pytest.approx(sampled, rel=0.02)


def test_predicted_factor_of_residual_networks():
    """The product in closed form: Gamma(L + c) / (Gamma(L) Gamma(1 + c))."""
    c = math.pi / (math.pi - 1)
    log = math.lgamma(50 + c) - math.lgamma(50) - math.lgamma(1 + c)
    assert predicted_factor("residual", 50, "relu") == pytest.approx(math.exp(log / 98))


def test_held_out_variance_is_one_on_the_same_images():
    data = nets.digits()
    x = data.valid.x
    found = depth.held_out_variances(nets.deep("plain", 3, 16, "relu", "data", x, 0), data)
    assert found == pytest.approx([len(x) / (len(x) - 1)] * 3, rel=1e-4)


def test_networks_train_and_a_rate_that_is_none_leaves_them_at_chance():
    errors = depth_training.train_deep("plain", 2, "data", "adam", (1e-9, 1e-2), [0], 4)
    assert errors[1e-9][0] > 0.5 > 0.2 > errors[1e-2][0]


def test_a_diverged_run_is_at_chance():
    errors = depth_training.train_deep("plain", 2, "he", "sgd", (1e30,), [0], 2)
    assert errors[1e30] == [depth_training.CHANCE]


def test_interaction():
    """By hand: weight norm gains 3 - 1, batch norm 1.5 - 1, and 1 is the lowest loss."""
    best = {
        "weight norm, set by data": [1.0],
        "weight norm, g = 1": [3.0],
        "batch norm, set by data": [1.0],
        "batch norm": [1.5],
    }
    assert depth_training.interaction(best, "g = 1") == {
        "interaction": [1.5],
        "control weight norm": [2.0],
        "control batch norm": [0.5],
    }


def test_epochs_to_a_target():
    assert gain.epochs_to(0.5, [2.0, 1.0, 0.25], 3) == 2.5  # halfway in logarithms
    assert gain.epochs_to(3.0, [2.0, 1.0], 2) == 1
    assert gain.epochs_to(0.5, [2.0, 1.0], 2) == 2
    assert gain.epochs_to(0.5, [2.0, float("nan")], 30) == 30  # diverged, which is not fast
    assert gain.loss_after([[3.0, 2.0, 1.0], [5.0, 4.0, 1.0]], 2 / 3) == 3


def test_the_gains_start_as_the_same_function():
    data = nets.digits()
    outputs = []
    for settings in gain.GAINS.values():
        config = gain.compose({**gain.CASES["mlp, SGD"][0], **settings})
        model = build(config.model, config.norm, data.shape, data.classes, 0)
        data_dependent_init(model, data.train.x[:100])
        outputs.append(model(data.train.x[:10]))
    torch.testing.assert_close(outputs[0], outputs[1], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(outputs[0], outputs[2], rtol=1e-4, atol=1e-4)


def test_the_lstm_is_torchs():
    lstm, x = recurrent.LSTM(8, 5), torch.randn(3, 4, 8)
    theirs = nn.LSTM(8, 5, batch_first=True)
    i, f, o, c = (slice(5 * k, 5 * k + 5) for k in range(4))
    with torch.no_grad():
        for name, layer in (("ih", lstm.input), ("hh", lstm.hidden)):
            getattr(theirs, f"weight_{name}_l0").copy_(torch.cat([layer.weight[k] for k in (i, f, c, o)]))
        theirs.bias_ih_l0.copy_(torch.cat([lstm.input.bias[k] for k in (i, f, c, o)]))
        theirs.bias_hh_l0.zero_()
    h = theirs(x)[0]
    later = lstm.all_gate_inputs(x)[:, 1:]
    expected = lstm.input(x[:, 1:]) + lstm.hidden(h[:, :-1])
    torch.testing.assert_close(later, expected)


def test_an_lstm_set_at_its_first_step_has_variance_1_there():
    x = batch(60).float().squeeze(1)
    lstm = recurrent.network(8, 0)
    recurrent.set_from(lstm, x, all_steps=False)
    varies = x[:, 0].var(0).sum() > 0
    assert varies
    assert recurrent.deviations(lstm, x)[0] == pytest.approx(math.sqrt(60 / 59), rel=1e-4)
    recurrent.set_from(lstm, x, all_steps=True)
    a = lstm.all_gate_inputs(x).flatten(0, 1)
    assert a.std(0).mean().item() == pytest.approx(1, abs=0.05)
