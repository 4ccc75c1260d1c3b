"""What the training loop reads and tells, and when; and that it goes on from each of its states."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from trainer_cases import (
    CLASSES,
    CPU,
    RULES,
    Watcher,
    at_rate,
    config,
    dataset,
    load,
    member_of,
    train,
)

from wn import metrics, trainer
from wn.data import Dataset, Split
from wn.trainer import Trainer


class Unused(nn.Module):
    """A head that training leaves out, as torch allows."""

    def __init__(self) -> None:
        super().__init__()
        self.used, self.unused = nn.LazyLinear(CLASSES), nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.used(x.flatten(1))
        return logits


def test_a_parameter_that_no_loss_depends_on_stays() -> None:
    model = Unused()
    model(dataset().train.x[:1].float())
    before = copy.deepcopy(model.double()).state_dict()
    loop = Trainer([config(epochs=1)], dataset(), CPU, Watcher(), models=[model])
    loop.run()
    after = member_of(loop, 0)
    assert torch.equal(after["unused.weight"], before["unused.weight"])
    assert not torch.equal(after["used.weight"], before["used.weight"])


# Checkpoints


def test_checkpoints_come_as_often_as_asked() -> None:
    for members, expected in ((1, [8, 16]), (2, [8, 16, 20])):
        configs = [config(seed=seed, checkpoint_every=2, epochs=5) for seed in range(members)]
        assert [state["step"] for state in train(*configs)[1].states] == expected


@pytest.mark.parametrize("norm", ["spectral_norm", "batch_renorm", "forced_weight_norm"])
def test_a_resumed_run_is_the_uninterrupted_one(norm: str) -> None:
    """Norms with state of their own; at every step, and by the other rules: test_stops_trainer.py."""
    at, late = 2, {"schedule": "constant_then_linear", "late_momentum": 0.5}
    members = [
        config(norm, seed, optim=RULES["adam"].model_copy(update={"lr": lr, **late}), checkpoint_every=1)
        for seed, lr in ((0, 0.01), (1, 0.05))
    ]
    for configs in (members, members[:1]):
        whole, watched = train(*configs)
        state = watched.states[at]
        again = Watcher()
        resumed = Trainer(configs, dataset(), CPU, again)
        resumed.restore(copy.deepcopy(state))
        torch.randn(7)  # a hidden generator would notice
        resumed.run()
        for tree in ("params", "buffers", "moments"):
            ours, theirs = resumed.state()[tree], whole.state()[tree]
            assert ours.keys() == theirs.keys()
            assert all(torch.equal(ours[k], theirs[k]) for k in ours)
        for i in range(len(configs)):
            assert again.rows[i] == watched.rows[i][at + 2 :]
            assert again.probes[i] == [row for row in watched.probes[i] if row["epoch"] > at + 1]
        assert again.ends == watched.ends


def test_a_stack_that_lost_a_member_resumes_without_it() -> None:
    configs = [at_rate(0.05), at_rate(1e6), at_rate(0.1, seed=1)]
    configs = [c.model_copy(update={"trainer": c.trainer.model_copy(update={"epochs": 60})}) for c in configs]
    whole, watched = train(*configs)
    state = watched.states[-2]
    assert state["alive"] == [0, 2]
    again = Watcher()
    resumed = Trainer(configs, dataset(), CPU, again)
    resumed.restore(copy.deepcopy(state))
    resumed.run()
    assert again.ends == {i: watched.ends[i] for i in (0, 2)}
    assert all(torch.equal(p, whole.stack.params[k]) for k, p in resumed.stack.params.items())


def test_a_checkpoint_holds_tensors_numbers_and_lists_alone(tmp_path: Any) -> None:
    _, watched = train(config("batch_norm", checkpoint_every=2), config("batch_norm", 1, checkpoint_every=2))
    torch.save(watched.states[0], tmp_path / "state.pt")
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    assert state.keys() == watched.states[0].keys()
    assert not any(t.requires_grad for tree in ("params", "buffers", "moments") for t in state[tree].values())


def test_a_state_from_after_the_end_gives_the_results_again() -> None:
    configs = [config(seed=seed) for seed in (0, 1)]
    _, watched = train(*configs)
    again = Watcher()
    resumed = Trainer(configs, dataset(), CPU, again)
    resumed.restore(copy.deepcopy(watched.states[-1]))
    resumed.run()
    assert again.ends == watched.ends
    assert not again.rows


# What is read, and when


def test_the_test_split_is_read_at_the_end_only() -> None:
    read: list[int] = []

    class Guarded(Dataset):
        @property
        def test(self) -> Split:  # type: ignore[override]
            read.append(loop.step)
            return dataset().test

        @test.setter
        def test(self, split: Split) -> None: ...

    plain = dataset()
    guarded = object.__new__(Guarded)
    for name in ("train", "valid", "classes"):
        object.__setattr__(guarded, name, getattr(plain, name))
    loop = Trainer([config(), config(seed=1)], guarded, CPU, Watcher())
    loop.run()
    assert read == [loop.total]


def test_the_test_split_decides_nothing_but_its_own_numbers() -> None:
    plain = dataset()
    other = Dataset(plain.train, plain.valid, Split(plain.test.x + 5, plain.test.y), CLASSES)
    (first, a), (second, b) = train(config(), on=plain), train(config(), on=other)
    assert a.rows == b.rows
    assert all(torch.equal(t, member_of(second, 0)[k]) for k, t in member_of(first, 0).items())
    assert a.ends != b.ends


def test_the_result_is_of_the_last_epoch_rather_than_the_best() -> None:
    """A learning rate this large makes the validation error rise again."""
    on, one = dataset(), at_rate(3.0, norm="none", epochs=6, checkpoint_every=1)
    loop, watcher = train(one, on=on)
    errors = [row["valid_error"] for row in watcher.rows[0][1:]]
    best = min(range(6), key=errors.__getitem__)
    assert errors[best] < errors[-1]
    assert watcher.ends[0][0] == "finished"
    last = F.cross_entropy(load(loop, 0, one, on)(on.test.x), on.test.y).item()
    assert watcher.ends[0][1]["test_loss"] == pytest.approx(last)
    loop.restore(copy.deepcopy(watcher.states[best]))
    earlier = F.cross_entropy(load(loop, 0, one, on)(on.test.x), on.test.y).item()
    assert watcher.ends[0][1]["test_loss"] != pytest.approx(earlier)


def test_without_a_validation_split_there_are_no_such_columns() -> None:
    _, watcher = train(config(), on=dataset(valid=0))
    assert watcher.rows[0][0] == {"epoch": 0, "step": 0}
    assert set(watcher.rows[0][1]) == {"epoch", "step", "lr", "train_loss", "train_error"}
    assert watcher.ends[0][0] == "finished"


def test_evaluation_goes_by_parts_that_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    _, whole = train(config(), config(seed=1))
    monkeypatch.setattr(metrics, "BATCH", 7)
    _, parts = train(config(), config(seed=1))
    for i in (0, 1):
        assert parts.rows[i] == [pytest.approx(row, rel=1e-12) for row in whole.rows[i]]
        assert parts.ends[i][1] == pytest.approx(whole.ends[i][1], rel=1e-12)


def test_long_epochs_are_saved_by_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    _, seldom = train(config(checkpoint_every=100))
    monkeypatch.setattr(trainer, "CHECKPOINT_SECONDS", 0.0)
    _, often = train(config(checkpoint_every=100))
    assert (len(seldom.states), len(often.states)) == (0, 15)  # after all of 16 steps but the last


def test_probes_come_as_often_as_asked_and_decide_nothing() -> None:
    _, often = train(config(probe_every=1))
    _, seldom = train(config(probe_every=3))
    layers = ["hidden1", "logits"]
    assert [(p["epoch"], p["layer"]) for p in often.probes[0]] == [(e, n) for e in range(5) for n in layers]
    places = [(p["epoch"], p["step"]) for p in seldom.probes[0] if p["layer"] == "logits"]
    assert places == [(0, 0), (1, 4), (2, 8), (3, 12), (4, 16)]  # 1 and 2 are early, 4 is the last
    assert often.rows == seldom.rows
