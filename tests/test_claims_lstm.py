"""The LSTM is torch's, members train as they would alone, and epochs to a target are counted right."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from wn.claims import lstm
from wn.claims.learner import Learner, LSTMCell, clipped, glorot, reached
from wn.config import OptimConfig
from wn.data import Dataset, Split
from wn.norm import normalize, normalized_layers


def images(size: int, rows: int = 4, columns: int = 3) -> Split:
    """Two classes, told apart by which of two rows is bright: only a memory tells."""
    generator = torch.Generator().manual_seed(size)
    y = torch.arange(size) % 2
    x = 0.1 * torch.randn(size, 1, rows, columns, generator=generator)
    x[torch.arange(size), 0, y] += 3
    return Split(x, y)


TOY = Dataset(images(40), images(30), images(20), 2)


def test_the_cell_is_torchs():
    torch.manual_seed(0)
    cell, theirs = LSTMCell(3, 5, glorot, forget=1.0).double(), nn.LSTM(3, 5, batch_first=True).double()
    order = torch.tensor([0, 1, 3, 2])  # theirs: i f g o, ours: i f o g

    def rows(t: torch.Tensor) -> torch.Tensor:
        return t.unflatten(0, (4, 5))[order].flatten(0, 1)

    with torch.no_grad():
        theirs.weight_ih_l0.copy_(rows(cell.input.weight))
        theirs.weight_hh_l0.copy_(rows(cell.hidden.weight))
        theirs.bias_ih_l0.copy_(rows(cell.input.bias))
        theirs.bias_hh_l0.zero_()
    x = torch.randn(2, 6, 3, dtype=torch.float64)
    state = cell.start(x)
    for step in x.unbind(1):
        state = cell(step, state)
    _, (h, c) = theirs(x)
    assert torch.allclose(state[0], h[0], atol=1e-12)
    assert torch.allclose(state[1], c[0], atol=1e-12)


@pytest.mark.parametrize("norm", lstm.ARMS)
def test_every_matrix_is_normalised(norm: str):
    model = normalize(lstm.RowLSTM(3, 2, units=4), norm)
    layers = normalized_layers(model)
    assert set(layers) == {"cell.input", "cell.hidden", "logits"}
    assert {layer.direction for layer in layers.values()} == {"row" if norm == "weight_norm" else "plain"}
    assert layers["cell.hidden"].statistics == ("layer" if norm == "layer_norm" else "none")


def test_arms_start_as_the_same_function_but_for_layer_norm():
    optims = [OptimConfig(lr=0.1)]
    out = {norm: lstm.learner(norm, optims, [3], TOY).stack(TOY.test.x, shared=True) for norm in lstm.ARMS}
    assert torch.allclose(out["none"], out["weight_norm"], atol=1e-6)
    assert not torch.allclose(out["none"], out["layer_norm"], atol=1e-2)


def test_members_train_as_they_would_alone():
    optims = [OptimConfig(name="adam", lr=0.01), OptimConfig(name="adam", lr=0.1)]
    together = lstm.learner("weight_norm", optims, [0, 1], TOY)
    alone = lstm.learner("weight_norm", optims[1:], [1], TOY)
    x, y = TOY.train.x, TOY.train.y
    for _ in range(3):
        both = together.step(lstm.loss, torch.stack([x, x]), torch.stack([y, y]))
        one = alone.step(lstm.loss, x[None], y[None])
    assert torch.allclose(both[1:], one, atol=1e-5)
    assert not torch.allclose(both[:1], one, atol=1e-3)


def test_one_step_of_a_learner_is_gradient_descent():
    torch.manual_seed(0)
    model = nn.Linear(3, 1)
    learner = Learner([model], [OptimConfig(lr=0.5, momentum=0.0)])
    x = torch.randn(1, 4, 3)
    before = learner.stack.params["weight"].detach().clone()
    learner.step(lambda m, x: m(x).sum(), x)
    assert torch.allclose(learner.stack.params["weight"], before - 0.5 * x.sum(1, keepdim=True), atol=1e-6)


def test_only_gradients_that_are_too_long_are_clipped():
    grads = {"a": torch.tensor([[3.0], [30.0]]), "b": torch.tensor([[[4.0]], [[40.0]]])}
    found = clipped(grads, 10.0)
    assert found["a"].flatten().tolist() == pytest.approx([3.0, 6.0], rel=1e-6)
    assert found["b"].flatten().tolist() == pytest.approx([4.0, 8.0], rel=1e-6)


@pytest.mark.parametrize("condition", lstm.RULES)
def test_a_memory_learns_and_one_that_never_does_counts_as_never(condition: str, monkeypatch):
    monkeypatch.setattr(lstm, "BATCH", 10)
    rule, rates = lstm.RULES[condition]
    monkeypatch.setitem(lstm.RULES, condition, (rule, (rates[1], 1e-9)))
    curve = lstm.accuracies("weight_norm", condition, TOY, [0, 1], 15)
    assert curve.shape == (2, 2, 16)
    epochs = reached(curve, 0.95)
    assert (epochs[0] < 15).all()
    assert (epochs[1] == 16).all()


def test_reached_is_linear_between_epochs_and_takes_the_first_time():
    curve = torch.tensor([0.0, 0.4, 0.8, 0.2, 1.0])
    assert reached(curve, 0.6).item() == pytest.approx(1.5)
    assert reached(curve, 0.9).item() == pytest.approx(3.875)
    assert reached(curve, 1.1).item() == 5
    assert reached(curve, -1.0).item() == 0
    assert reached(torch.stack([curve, curve]), torch.tensor([0.4, 1.0])).tolist() == [1.0, 4.0]
    infinite = torch.tensor([-torch.inf, -2.0, -1.0])
    assert reached(infinite, -2.0).item() == 1  # a first bound that is no number is no obstacle
    assert reached(infinite.flip(0), -1.5).item() == 0


def test_ratios_compare_each_at_its_own_best_rate():
    fast, plain = torch.tensor([[4.0, 6.0], [9.0, 9.0]]), torch.tensor([[21.0, 21.0], [8.0, 8.0]])
    assert lstm.ratios(fast, plain).tolist() == [0.5, 0.75]
    assert lstm.ratios(plain, plain).tolist() == [1.0, 1.0]
