"""The step traced, compiled and captured is the step."""

from __future__ import annotations

import copy
import gc
import itertools
import weakref
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from step_cases import MLP, PRESETS, VAES, noisy, pair, steps_of, trainer_of, transformer, vaes

from wn import step as steps
from wn.config import Config, parse


def assert_traced_step_is_the_step(configs: list[Config]) -> None:
    eager, traced = trainer_of(configs), trainer_of(configs)
    batches = torch.split(traced._orders(1), 20, dim=1)
    before = copy.deepcopy(steps_of(traced, 0))
    traced.update(batches[0])
    graph = traced._step._trace(batches[0])  # type: ignore[union-attr]
    with torch.no_grad():
        for batch in batches[1:3]:
            graph(traced._step.state, batch)  # type: ignore[union-attr]
    expected, found = steps_of(eager, 3), steps_of(traced, 0)
    assert expected.keys() == found.keys()
    moved = [name for name in found if not torch.equal(found[name], before[name])]
    trained = {name for name in found if name.startswith(("params", "average"))}
    assert set(moved) >= trained
    keys = {name for name in found if name.endswith("key")}  # not all are drawn from in training
    assert bool(keys & {*moved}) == bool(keys)
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, msg=lambda text, name=name: f"{name}: {text}")


PRECISIONS = ("float32", "bfloat16")


def every_second(*axes: Iterable[Any]) -> list[Any]:
    """The product of axes, of which every other case is slow; of three axes any two values still meet."""
    cases = itertools.product(*(enumerate(axis) for axis in axes))
    return [
        pytest.param(*values, marks=[pytest.mark.slow] * (sum(places) % 2))
        for places, values in (zip(*case, strict=True) for case in cases)
    ]


@pytest.mark.parametrize(("norm", "members", "precision"), every_second(PRESETS, (1, 2), PRECISIONS))
def test_the_traced_step_is_the_step(tmp_path: Path, norm: str, members: int, precision: str) -> None:
    assert_traced_step_is_the_step(pair(tmp_path, norm, members, precision=precision))


@pytest.mark.parametrize(("name", "precision"), every_second(VAES, PRECISIONS))
def test_a_vae_s_traced_step_is_its_step(tmp_path: Path, name: str, precision: str) -> None:
    """Alone: what is traced of a stack of convolutions has layouts that torch's compiler alone can run."""
    assert_traced_step_is_the_step(vaes(tmp_path, name, 1, precision=precision))


@pytest.mark.parametrize(("norm", "precision"), every_second(("weight_norm", "batch_norm"), PRECISIONS))
def test_a_transformer_s_traced_step_is_its_step(tmp_path: Path, norm: str, precision: str) -> None:
    configs = pair(tmp_path, norm, 2, precision=precision)
    assert_traced_step_is_the_step([transformer(config) for config in configs])


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What was compiled, which is run as it was traced."""
    graphs: list[Any] = []

    def compile_(graph: Any, **_: Any) -> Any:
        graphs.append(graph)
        return graph

    monkeypatch.setattr(torch, "compile", compile_)
    monkeypatch.setattr(steps, "COMPILED", {})
    return graphs


def test_runs_of_one_kind_share_what_was_compiled(tmp_path: Path, compiled: list[Any]) -> None:
    """And each takes its own steps: seed, learning rate and state are its own."""
    for lr, seed in ((0.003, 0), (0.01, 1)):
        expected = steps_of(trainer_of([noisy(tmp_path, "batch_norm", lr, seed)]), 3)
        found = steps_of(trainer_of([noisy(tmp_path, "batch_norm", lr, seed, compile=True)]), 3)
        for name, tensor in expected.items():
            torch.testing.assert_close(found[name], tensor, msg=lambda text, name=name: f"{name}: {text}")
    assert len(compiled) == 1


def test_what_changes_the_trace_is_compiled_for_itself(tmp_path: Path, compiled: list[Any]) -> None:
    """Weight decay, which a stack's members may differ in, adds a term; the time constant is a number."""
    whole = noisy(tmp_path, "weight_norm", 0.01, compile=True).model_dump(mode="json") | {"model": MLP}
    one = parse(whole)
    averaged = parse({**whole, "optim": {**whole["optim"], "ema_epochs": 1.0}})
    others = [
        [one, one],
        [parse({**whole, "optim": {**whole["optim"], "weight_decay": 0.1}})],
        [parse({**whole, "optim": {**whole["optim"], "eps_inside_root": False}})],
        [parse({**whole, "norm": PRESETS["batch_norm"]})],
        [parse({**whole, "trainer": {**whole["trainer"], "precision": "bfloat16"}})],
        [averaged],
        [parse({**whole, "optim": {**whole["optim"], "ema_epochs": 2.0}})],
    ]
    for i, configs in enumerate([[one], *others]):
        steps_of(trainer_of(configs), 2)
        assert len(compiled) == i + 1
    trainer = trainer_of([averaged])
    trainer.average.decay = 0.5  # type: ignore[union-attr]
    steps_of(trainer, 1)
    trainer._prepare()
    trainer.update(torch.arange(10)[None])  # a batch of another size
    assert len(compiled) == len(others) + 3


def test_what_was_compiled_keeps_no_stack_s_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By torch's own compiler but for the code that it would generate."""
    compile_ = torch.compile
    monkeypatch.setattr(torch, "compile", lambda graph, **_: compile_(graph, backend="eager", dynamic=False))
    monkeypatch.setattr(steps, "COMPILED", {})
    trainer = trainer_of([noisy(tmp_path, "weight_norm", 0.01, compile=True)])
    state = steps_of(trainer, 2)
    assert steps.COMPILED
    alive = [weakref.ref(tensor) for tensor in (*trainer.stack.params.values(), trainer.totals)]
    del trainer, state
    gc.collect()
    assert {ref() for ref in alive} == {None}
    torch._dynamo.reset()


@pytest.mark.slow
@pytest.mark.parametrize("members", [1, 2])
@pytest.mark.parametrize("norm", PRESETS)
def test_the_compiled_step_is_the_step(tmp_path: Path, norm: str, members: int) -> None:
    expected = steps_of(trainer_of(pair(tmp_path, norm, members)), 3)
    found = steps_of(trainer_of(pair(tmp_path, norm, members, compile=True)), 3)
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("members", [1, 2])
@pytest.mark.parametrize("name", VAES)
def test_a_vae_s_compiled_step_is_its_step(tmp_path: Path, name: str, members: int) -> None:
    expected = steps_of(trainer_of(vaes(tmp_path, name, members)), 3)
    found = steps_of(trainer_of(vaes(tmp_path, name, members, compile=True)), 3)
    for key, tensor in expected.items():
        torch.testing.assert_close(found[key], tensor, rtol=1e-3, atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("members", [1, 2])
def test_a_transformer_s_compiled_step_is_its_step(tmp_path: Path, members: int) -> None:
    expected, found = (
        steps_of(
            trainer_of([transformer(c) for c in pair(tmp_path, "batch_norm", members, compile=compiled)]), 3
        )
        for compiled in (False, True)
    )
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-3, atol=1e-4)


@pytest.mark.gpu
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("name", VAES)
def test_a_vae_s_captured_step_is_its_step(tmp_path: Path, name: str, compiled: bool) -> None:
    plain, captured = (
        steps_of(trainer_of(vaes(tmp_path, name, 1, cuda_graph=graph, compile=compiled), "cuda"), 5)
        for graph in (False, True)
    )
    for key, tensor in plain.items():
        torch.testing.assert_close(captured[key], tensor, rtol=1e-3, atol=1e-3)


@pytest.mark.gpu
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("norm", PRESETS)
def test_the_captured_step_is_the_step(tmp_path: Path, norm: str, compiled: bool) -> None:
    settings = {"compile": compiled, "deterministic": True}
    plain, captured = (
        steps_of(trainer_of(pair(tmp_path, norm, 2, cuda_graph=graph, **settings), "cuda"), 5)
        for graph in (False, True)
    )
    for name, tensor in plain.items():
        torch.testing.assert_close(captured[name], tensor, rtol=1e-3, atol=1e-4)
