"""The step captured as a CUDA graph, on a pretended GPU, and what is said where it cannot be."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from step_cases import pair, steps_of, trainer_of

from wn import step as steps
from wn.step import WARM_UP, CaptureFailed, Step


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
