"""The step traced, compiled and captured is the step."""

from __future__ import annotations

import contextlib
import copy
import gc
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from sweep_cases import tiny

from wn import step as steps
from wn.config import Config, parse
from wn.data import Dataset, Split
from wn.step import WARM_UP, CaptureFailed, Step
from wn.trainer import Observer, Trainer

PRESETS = {
    "none_init": {"init": "data"},
    "scaled_init": {"gain": "fixed", "init": "data"},
    "weight_norm": {"direction": "row", "gain": "free"},
    "batch_norm": {"gain": "free", "statistics": "batch"},
    "weight_norm_mean_only_bn_init": {
        "direction": "row",
        "gain": "free",
        "statistics": "mean_only",
        "init": "data",
    },
}
TREES = ("params", "buffers", "moments", "average")
CONVNET = {"name": "convnet", "width": 4, "depth": 1}
SMALL = {"latents": 3, "flow_width": 6, "posterior": "iaf", "free_bits": 0.1, "kl_warmup_steps": 4}
TRANSFORMER = {"name": "transformer", "patch": 4, "width": 4, "heads": 2, "depth": 1}
VAES: dict[str, dict[str, Any]] = {
    "mlp_vae": {"widths": [9], **SMALL},
    "conv_vae": {"channels": [3, 4], "hidden": 7, **SMALL},
    "resnet_vae": {"channels": 4, "depth": 2, **SMALL},
}


def noisy(folder: Path, norm: str, lr: float, seed: int = 0, **trainer: Any) -> Config:
    """A small network with noise and dropout, trained by the authors' Adam with momentum that changes."""
    plain = tiny(folder, lr=lr, seed=seed).model_dump(mode="json")
    optim = {"name": "adam", "lr": lr, "schedule": "constant_then_linear", "eps_inside_root": True}
    settings = {**plain["trainer"], "batch_size": 20, "init_batch_size": 20, **trainer}
    return parse({**plain, "model": CONVNET, "norm": PRESETS[norm], "optim": optim, "trainer": settings})


def transformer(config: Config) -> Config:
    return parse({**config.model_dump(mode="json"), "model": TRANSFORMER})


def trainer_of(configs: list[Config], device: str = "cpu") -> Trainer:
    draw = torch.Generator().manual_seed(0)
    x = torch.rand(100, 3, 12, 12, generator=draw).to(device)
    split = Split(x=x, y=torch.arange(100, device=device) % 10)
    dataset = Dataset(split, split, split, classes=10)
    trainer = Trainer(configs, dataset, torch.device(device), Observer())
    trainer._initialize()
    trainer.stack.train()
    return trainer


def steps_of(trainer: Trainer, count: int) -> dict[str, torch.Tensor]:
    """Parameters, moments, buffers and totals after some steps."""
    for batch in torch.split(trainer._orders(1), 20, dim=1)[:count]:
        trainer.update(batch)
    state = trainer.state()
    trees = {f"{tree}/{k}": t for tree in TREES for k, t in state[tree].items()}
    return {**trees, "totals": state["totals"]}


def pair(folder: Path, norm: str, members: int, **trainer: Any) -> list[Config]:
    return [noisy(folder, norm, lr, seed, **trainer) for seed, lr in enumerate((0.003, 0.01)[:members])]


def vaes(folder: Path, name: str, members: int, **trainer: Any) -> list[Config]:
    """Small VAEs, their parameters averaged, under the norm that keeps the most state."""
    changes = {"model": {"name": name, **VAES[name]}, "norm": PRESETS["weight_norm_mean_only_bn_init"]}
    changes["optim"] = {"name": "adamax", "lr": 0.002, "momentum": 0.9, "ema_epochs": 1.0}
    changes["optim"]["eps"] = 1e-2  # without which the sign of a gradient's rounding is a step
    plain = [config.model_dump(mode="json") for config in pair(folder, "none_init", members, **trainer)]
    return [parse({**config, **changes}) for config in plain]


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


@pytest.mark.parametrize("members", [1, 2])
@pytest.mark.parametrize("norm", PRESETS)
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_traced_step_is_the_step(tmp_path: Path, norm: str, members: int, precision: str) -> None:
    assert_traced_step_is_the_step(pair(tmp_path, norm, members, precision=precision))


@pytest.mark.parametrize("name", VAES)
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_vae_s_traced_step_is_its_step(tmp_path: Path, name: str, precision: str) -> None:
    """Alone: what is traced of a stack of convolutions has layouts that torch's compiler alone can run."""
    assert_traced_step_is_the_step(vaes(tmp_path, name, 1, precision=precision))


@pytest.mark.parametrize("norm", ["weight_norm", "batch_norm"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_transformer_s_traced_step_is_its_step(tmp_path: Path, norm: str, precision: str) -> None:
    configs = pair(tmp_path, norm, 2, precision=precision)
    assert_traced_step_is_the_step([transformer(config) for config in configs])


def pretend_gpu(patch: pytest.MonkeyPatch, graph: Any) -> list[Any]:
    """Have every step think that it is on a GPU, which captures by ``graph``; the streams that it takes."""
    streams: list[Any] = []
    prepare = Step.__post_init__

    class Stream:
        def __init__(self) -> None:
            streams.append(self)

        def wait_stream(self, other: Any) -> None: ...

    def prepared(step: Step) -> None:
        wanted = step.captured
        prepare(step)
        step.captured = wanted

    current = Stream()
    fakes = {"Stream": Stream, "current_stream": lambda: current, "CUDAGraph": object, "graph": graph}
    for name, fake in {**fakes, "stream": contextlib.nullcontext}.items():
        patch.setattr(torch.cuda, name, fake)
    patch.setattr(Step, "__post_init__", prepared)
    return streams


def test_warm_up_capture_and_replay_share_one_contiguous_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a pretended GPU, whose graph takes the step when it is captured and again when it is replayed."""
    configs = pair(tmp_path, "weight_norm", 2)
    expected = steps_of(trainer_of(configs), 5)
    seen: list[torch.Tensor] = []
    take = Step._take

    def taken(self: Step, batch: torch.Tensor) -> None:
        seen.append(batch)
        take(self, batch)

    class Graph:
        replays = 0

        def replay(self) -> None:
            self.replays += 1
            if self.replays > 1:  # the capture has taken the first
                taken(captured._step, seen[WARM_UP])  # type: ignore[arg-type]

    monkeypatch.setattr(Step, "_take", taken)
    streams = pretend_gpu(monkeypatch, graph=contextlib.nullcontext)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    captured = trainer_of(configs)
    found = steps_of(captured, 5)
    assert len(seen) == 5
    assert {batch.data_ptr() for batch in seen} == {seen[0].data_ptr()}
    assert seen[0].is_contiguous()
    assert len(streams) == 2  # the current one, and one for all of the warm-up
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


@contextlib.contextmanager
def broken(graph: Any) -> Iterator[None]:
    """A capture amid which something is not allowed, and whose end is then an error too."""
    try:
        yield
        raise RuntimeError("not permitted when stream is capturing\nCUDA kernel errors ...")
    finally:
        raise RuntimeError("operation failed due to a previous error during capture")


@contextlib.contextmanager
def short_of_memory(graph: Any) -> Iterator[None]:
    yield
    raise torch.OutOfMemoryError("too large")


@pytest.mark.parametrize(
    ("compiled", "cures"),
    [
        (False, "trainer.cuda_graph=false"),
        (True, "trainer.compile=false or trainer.cuda_graph=false"),
    ],
)
def test_a_capture_that_fails_is_told_by_its_cause_and_the_settings_that_help(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compiled: bool, cures: str
) -> None:
    monkeypatch.setattr(torch, "compile", lambda graph, **_: graph)
    monkeypatch.setattr(steps, "COMPILED", {})
    pretend_gpu(monkeypatch, broken)
    trainer = trainer_of(pair(tmp_path, "weight_norm", 1, compile=compiled))
    with pytest.raises(CaptureFailed) as failed:
        steps_of(trainer, WARM_UP + 1)
    cause = "RuntimeError: not permitted when stream is capturing CUDA kernel errors ..."
    assert str(failed.value) == f"the step cannot be captured as a CUDA graph ({cause}); go on with {cures}"


def test_memory_that_runs_out_in_a_capture_is_left_to_the_stack(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend_gpu(monkeypatch, short_of_memory)
    with pytest.raises(torch.OutOfMemoryError, match="too large"):
        steps_of(trainer_of(pair(tmp_path, "none_init", 1)), WARM_UP + 1)


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
    one = noisy(tmp_path, "weight_norm", 0.01, compile=True)
    whole = one.model_dump(mode="json")
    averaged = parse({**whole, "optim": {**whole["optim"], "ema_epochs": 1.0}})
    others = [
        [one, one],
        [parse({**whole, "optim": {**whole["optim"], "weight_decay": 0.1}})],
        [parse({**whole, "optim": {**whole["optim"], "eps_inside_root": False}})],
        [noisy(tmp_path, "batch_norm", 0.01, compile=True)],
        [noisy(tmp_path, "weight_norm", 0.01, compile=True, precision="bfloat16")],
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
