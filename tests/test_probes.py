"""Probes against closed forms, and the paper's section 2.1 seen through them: ||v|| never falls."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from wn import probes
from wn.config import Config, MLPConfig, NormConfig, OptimConfig
from wn.config import TrainerConfig as Settings
from wn.data import Dataset, Split
from wn.grammar import DEFAULTS
from wn.norm import normalize
from wn.presets import PRESETS
from wn.stack import Stack
from wn.trainer import Observer, Trainer

V = torch.tensor([[3.0, 4.0], [0.0, -2.0], [6.0, 8.0]], dtype=torch.float64)  # norms 5, 2, 10
G = torch.tensor([10.0, -1.0, 5.0], dtype=torch.float64)  # g/||v|| = 2, -0.5, 0.5
STATISTICS = ("min", "mean", "max")


def layer(seed: int = 0, **choices: str) -> nn.Module:
    """A layer ``0`` whose numbers are known; other members have them scaled."""
    model = normalize(nn.Sequential(nn.Linear(2, 3)), **choices).double()
    with torch.no_grad():
        model[0].raw_weight.copy_(V * (1 + seed))  # type: ignore[index]
        if model[0].has_gain:  # type: ignore[index]
            model[0].g.copy_(G)  # type: ignore[index]
    return model


def measured(stack: Stack, lr: Any, move: Any = None) -> list[dict[str, Any]]:
    """Each member's only row, after ``move`` has changed the parameters."""
    before = probes.snapshot(stack)
    if move is not None:
        with torch.no_grad():
            move(stack.params)
    rows = probes.measure(stack, before, torch.tensor(lr, dtype=torch.float64))
    assert all(len(row) == 1 for row in rows)
    return [row[0] for row in rows]


def test_one_weight_normalised_layer_in_closed_form() -> None:
    (row,) = measured(Stack([layer(direction="row", gain="free")]), [0.1])
    expected = {
        "v_norm": (2, 17 / 3, 10),
        "g": (-1, 14 / 3, 10),
        "ratio": (-0.5, 2 / 3, 2),
        "w_norm": (1, 16 / 3, 10),
    }
    flat = {
        f"{k}_{s}": n for k, numbers in expected.items() for s, n in zip(STATISTICS, numbers, strict=True)
    }
    assert row.pop("layer") == "0"
    assert row == pytest.approx(
        flat
        | {
            "effective_lr": 0.1 * (4 + 0.25 + 0.25) / 3,
            "direction_lr": 0.1 * (1 / 25 + 1 / 4 + 1 / 100) / 3,
            "relative_update": 0,
            "angle": 0,
        },
        rel=1e-12,
    )


@pytest.mark.parametrize("statistics", ["none", "mean_only", "batch"])
def test_a_plain_layer_in_closed_form(statistics: str) -> None:
    gain = "free" if statistics == "batch" else "none"
    (row,) = measured(Stack([layer(direction="plain", gain=gain, statistics=statistics)]), [0.1])
    gains = {"g_min", "g_mean", "g_max"} if statistics == "batch" else set()
    known = {"layer", "w_norm_min", "w_norm_mean", "w_norm_max", "effective_lr", "relative_update"}
    known |= {"direction_lr", "angle"}
    assert row.keys() == known | gains
    assert [row[f"w_norm_{s}"] for s in STATISTICS] == pytest.approx([2, 17 / 3, 10])
    assert row["effective_lr"] == 0.1
    assert row["relative_update"] == 0
    if statistics == "batch":
        assert [row[f"g_{s}"] for s in STATISTICS] == pytest.approx([-1, 14 / 3, 10])


@pytest.mark.parametrize(
    ("choices", "lengths"),
    [
        ({"direction": "plain", "gain": "none"}, [5, 2, 10]),
        ({"direction": "plain", "gain": "free", "statistics": "batch"}, [5, 2, 10]),
        ({"direction": "plain", "gain": "free", "statistics": "layer"}, [129**0.5] * 3),
        ({"direction": "layer", "gain": "free"}, [129**0.5] * 3),
        ({"direction": "spectral", "gain": "free"}, [129**0.5] * 3),
        ({"direction": "centered", "gain": "free"}, [0.5**0.5, 2**0.5, 2**0.5]),
    ],
    ids=lambda value: "+".join(value.values()) if isinstance(value, dict) else "",
)
def test_the_directions_rate_follows_the_length_that_can_be_rescaled(choices: Any, lengths: Any) -> None:
    """lr/||v||^2, and lr/||v|| for rules whose steps have a size of their own."""
    stack = Stack([layer(**choices)])
    for adaptive, power in ((False, 2), (True, 1)):
        ((row,),) = probes.measure(stack, None, torch.tensor([0.3], dtype=torch.float64), adaptive)
        assert row["direction_lr"] == pytest.approx(0.3 * sum(n**-power for n in lengths) / 3, rel=1e-12)


def test_the_angle_is_that_between_directions() -> None:
    """A turn by a known angle, of one unit of three; a longer v and a larger gain turn nothing."""

    def turn(params: dict[str, Tensor]) -> None:
        params["0.v"].mul_(3)
        params["0.g"].mul_(2)
        cos, sin = torch.cos(torch.tensor(1e-6).double()), torch.sin(torch.tensor(1e-6).double())
        params["0.v"][0, 0] = params["0.v"][0, 0] @ torch.stack(
            [torch.stack([cos, sin]), torch.stack([-sin, cos])]
        )

    (row,) = measured(Stack([layer(direction="row", gain="free")]), [0.1], turn)
    assert row["angle"] == pytest.approx(1e-6 / 3, rel=1e-9)


def test_members_have_rows_of_their_own() -> None:
    rows = measured(Stack([layer(seed, direction="row", gain="free") for seed in range(3)]), [0.1, 0.2, 0.3])
    assert [row["v_norm_mean"] for row in rows] == pytest.approx([17 / 3, 34 / 3, 17])
    assert [row["g_max"] for row in rows] == [10] * 3
    assert [row["effective_lr"] for row in rows] == pytest.approx([0.15, 0.3 / 4, 0.45 / 9])


def test_the_relative_update_is_of_the_effective_weight() -> None:
    """v doubled moves nothing; a gain of 10 become 12 moves one unit by 2, of a layer of norm sqrt(126)."""

    def double(params: dict[str, Tensor]) -> None:
        params["0.v"].mul_(2)

    def raise_gain(params: dict[str, Tensor]) -> None:
        params["0.g"][:, 0].add_(2)

    weight_norm = [layer(direction="row", gain="free")]
    assert measured(Stack(weight_norm), [0.1], double)[0]["relative_update"] == pytest.approx(0, abs=1e-12)
    row = measured(Stack(weight_norm), [0.1], raise_gain)[0]
    assert row["relative_update"] == pytest.approx(2 / 126**0.5, rel=1e-12)
    assert row["g_max"] == 12  # measured after the update


def test_before_the_first_update_there_is_no_relative_update() -> None:
    stack = Stack([layer(direction="row", gain="free")])
    ((row,),) = probes.measure(stack, None, torch.tensor([0.1], dtype=torch.float64))
    expected = measured(stack, [0.1])[0]
    del expected["relative_update"], expected["angle"]
    assert row == expected


def test_the_relative_update_is_that_of_a_step_by_hand() -> None:
    stack = Stack([layer(direction="row", gain="free")])
    torch.manual_seed(0)
    x, target, lr = torch.randn(7, 2).double(), torch.randn(7, 3).double(), 0.03
    v, g = V.clone().requires_grad_(), G.clone().requires_grad_()
    bias = stack.params["0.bias"][0].detach()
    w = g[:, None] * v / v.norm(dim=1, keepdim=True)
    ((x @ w.T + bias - target) ** 2).sum().backward()
    assert v.grad is not None
    assert g.grad is not None
    new_v, new_g = v - lr * v.grad, g - lr * g.grad
    new_w = new_g[:, None] * new_v / new_v.norm(dim=1, keepdim=True)
    expected = ((new_w - w).norm() / w.norm()).item()

    def step(params: dict[str, Tensor]) -> None:
        with torch.enable_grad():
            loss = ((stack(x[None]) - target) ** 2).sum()
            grads = torch.autograd.grad(loss, list(params.values()))
        for p, grad in zip(params.values(), grads, strict=True):
            p.sub_(lr * grad)

    (row,) = measured(stack, [lr], step)
    assert row["relative_update"] == pytest.approx(expected, rel=1e-12)
    assert row["v_norm_max"] == pytest.approx(new_v.norm(dim=1).max().item(), rel=1e-12)


def test_the_effective_rate_is_the_rate_that_w_sees() -> None:
    """A small step in v alone moves w by -lr (g/||v||)^2 times its gradient, the part along w left out."""
    torch.manual_seed(0)
    model = normalize(nn.Sequential(nn.Linear(4, 1)), direction="row", gain="free").double()
    stack, x, lr = Stack([model]), torch.randn(6, 4).double(), 1e-7
    with torch.no_grad():
        stack.params["0.g"].fill_(3.0)
    w = probes.snapshot(stack)["0"][0].requires_grad_()
    bias = stack.params["0.bias"][0].detach()
    (slope,) = torch.autograd.grad(((x @ w.T + bias) ** 2).sum(), w)
    along = w / w.norm()
    projected = slope - (slope * along).sum() * along

    def step(params: dict[str, Tensor]) -> None:
        with torch.enable_grad():
            (grad,) = torch.autograd.grad((stack(x[None]) ** 2).sum(), params["0.v"])
        params["0.v"].sub_(lr * grad)

    (row,) = measured(stack, [lr], step)
    expected = row["effective_lr"] * (projected.norm() / w.norm()).item()
    assert row["relative_update"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_and_convolutions_have_finite_rows(preset: str) -> None:
    torch.manual_seed(0)
    nets = [nn.Sequential(nn.Conv2d(2, 4, 3), nn.Flatten(), nn.Linear(16, 3)) for _ in range(2)]
    stack = Stack([normalize(net, **{**DEFAULTS, **PRESETS[preset]}) for net in nets])
    before = probes.snapshot(stack)
    for rows in probes.measure(stack, before, torch.tensor([0.1, 0.2])):
        assert [row["layer"] for row in rows] == ["0", "2"]
        for row in rows:
            assert all(torch.isfinite(torch.tensor(value)) for key, value in row.items() if key != "layer")


def test_a_snapshot_is_a_copy_and_measuring_changes_nothing() -> None:
    for direction, gain in (("plain", "none"), ("row", "free")):
        stack = Stack([layer(direction=direction, gain=gain), layer(1, direction=direction, gain=gain)])
        params = {k: p.detach().clone() for k, p in stack.params.items()}
        before = probes.snapshot(stack)
        kept = before["0"].clone()
        probes.measure(stack, before, torch.tensor([0.1, 0.2], dtype=torch.float64))
        assert all(torch.equal(p, params[k]) for k, p in stack.params.items())
        with torch.no_grad():
            for p in stack.params.values():
                p.add_(1)
        assert torch.equal(before["0"], kept)


# Section 2.1: ||v|| grows, and the faster the larger the learning rate


RATES = (0.003, 0.03, 0.3)


class Watcher(Observer):
    """Keeps ||v|| per unit after each step, and the probes."""

    def __init__(self) -> None:
        self.norms: list[dict[str, Tensor]] = []
        self.probes: dict[int, list[dict[str, Any]]] = {}

    def on_step(self, done: int, total: int) -> None:
        params = self.trainer.stack.params
        self.norms.append({k: p.detach().norm(dim=2) for k, p in params.items() if k.endswith(".v")})

    def on_epoch(self, member: int, metrics: dict[str, Any], probes: list[dict[str, Any]]) -> None:
        self.probes.setdefault(member, []).extend(probes)

    def on_end(self, member: int, status: str, result: dict[str, Any]) -> None:
        assert status == "finished"

    trainer: Trainer


def watch(norm: NormConfig, momentum: float = 0.0, name: Any = "sgd") -> Watcher:
    """Runs at several learning rates, on images whose labels are noise: gradients stay large."""
    torch.manual_seed(0)
    splits = [Split(torch.randn(n, 1, 3, 4).double(), torch.randint(3, (n,))) for n in (60, 9, 9)]
    configs = [
        Config(
            model=MLPConfig(widths=(8, 6)),
            norm=norm,
            optim=OptimConfig(name=name, lr=lr, momentum=momentum),
            trainer=Settings(epochs=8, batch_size=10, probe_every=1, precision="float64"),
        )
        for lr in RATES
    ]
    watcher = Watcher()
    watcher.trainer = Trainer(configs, Dataset(*splits, classes=3), torch.device("cpu"), watcher)
    watcher.trainer.run()
    return watcher


@pytest.mark.parametrize("statistics", ["none", "mean_only"])
@pytest.mark.parametrize("init", ["default", "data"])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_v_never_shrinks_under_gradient_descent(statistics: Any, init: Any, momentum: float) -> None:
    """The paper claims it without momentum; with it <v, m> <= 0 holds by induction, and that is enough."""
    watcher = watch(NormConfig(direction="row", gain="free", statistics=statistics, init=init), momentum)
    assert len(watcher.norms) == 8 * 6
    for earlier, later in itertools.pairwise(watcher.norms):
        for name, norm in later.items():
            assert bool((norm >= earlier[name] * (1 - 1e-14)).all())
    for rows in watcher.probes.values():
        for name in ("hidden1", "hidden2", "logits"):
            own = [row for row in rows if row["layer"] == name]
            assert len(own) == 9
            for statistic in STATISTICS:
                series = [row[f"v_norm_{statistic}"] for row in own]
                assert all(b >= a * (1 - 1e-14) for a, b in itertools.pairwise(series))
                assert series[-1] > series[0]


def test_v_grows_faster_with_a_larger_learning_rate() -> None:
    watcher = watch(NormConfig(direction="row", gain="free"))
    for name in ("hidden1", "hidden2", "logits"):
        series = [[row for row in rows if row["layer"] == name] for rows in watcher.probes.values()]
        growth = [own[-1]["v_norm_mean"] / own[0]["v_norm_mean"] - 1 for own in series]
        assert growth[0] > 0
        assert growth[1] > 10 * growth[0]
        assert growth[2] > 10 * growth[1]


def test_under_adam_v_can_shrink() -> None:
    """Its steps are not along the gradient. So the tests above can fail."""
    watcher = watch(NormConfig(direction="row", gain="free"), name="adam")
    pairs = list(itertools.pairwise(watcher.norms))
    assert any(bool((later[k] < earlier[k] * (1 - 1e-9)).any()) for earlier, later in pairs for k in later)
