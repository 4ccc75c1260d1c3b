"""One training step as a function of tensors: run as it is, compiled, or replayed as a CUDA graph.

A step changes all state in place and on the device, and the host only says which images come next. So torch
can trace it whole, gradient and update included, compile it, and on a GPU replay it.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import disable_saved_tensors_hooks
from torch.fx.experimental.proxy_tensor import make_fx

from wn.config import UserError
from wn.config.errors import short
from wn.data import Split
from wn.metrics import Autocast, Objective
from wn.optim import EMA, Optimizer
from wn.stack import Stack

State = dict[str, dict[str, Tensor]]

COMPILED: dict[Any, Callable[[State, Tensor], None]] = {}
"""What was compiled in this process, by all that it depends on: runs of one kind share it."""

WARM_UP = 3  # eager steps before a CUDA graph is captured, in which cuBLAS and cuDNN choose their kernels


RECOMPUTED = (
    "the model recomputes a part of its pass (torch.utils.checkpoint), with other weights and noise than the "
    "pass had: leave that out"
)
"""A stack is called with the weights of its members, which a recomputation within the backward pass lacks."""


class CaptureFailed(UserError):
    """A step was not captured as a CUDA graph; the allocator may be left amid it, and no stack can train."""


@dataclass(eq=False)
class Step:
    """The training step of a stack that is in training mode. Build a new one if the state is reallocated."""

    stack: Stack
    optimizer: Optimizer
    average: EMA | None  # of parameters and running statistics
    objective: Objective
    train: Split
    totals: Tensor  # [metrics, members]; a step adds its metrics before the update
    autocast: Autocast  # makes the context of the forward pass
    compiled: bool
    captured: bool  # on a GPU
    kind: Hashable  # equal only for one architecture, norm, rule and precision; None: not to be shared
    function: Callable[[State, Tensor], None] | None = None  # once compiled
    taken: int = 0
    batch: Tensor | None = None
    stream: torch.cuda.Stream | None = None
    graph: torch.cuda.CUDAGraph | None = None

    def __post_init__(self) -> None:
        self.captured = self.captured and self.totals.device.type == "cuda"
        self.state: State = {
            "params": self.stack.params,
            "buffers": self.stack.buffers,
            "moments": self.optimizer.state,
            "hyper": self.optimizer.hyper,
            "average": self.average.state if self.average else {},
            "data": {"x": self.train.x, "y": self.train.y, "totals": self.totals},
        }

    def __call__(self, batch: Tensor) -> None:
        """One update on the images with these indices, int64 ``[members, batch]``."""
        if not self.captured:
            return self._take(batch)
        if self.batch is None:
            # One contiguous buffer for warm-up, capture and replay alike: a graph knows addresses, and a
            # batch of other strides would be compiled once more, amid the capture, where torch cannot.
            self.batch = batch.clone(memory_format=torch.contiguous_format)
        self.batch.copy_(batch)
        if self.taken < WARM_UP:  # on a stream of its own, as CUDA asks before a capture
            self.stream = self.stream or torch.cuda.Stream()  # type: ignore[no-untyped-call]
            self.stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self.stream):
                self._take(self.batch)
            return torch.cuda.current_stream().wait_stream(self.stream)
        if self.graph is None:
            self.graph = self._capture(self.batch)
        self.graph.replay()

    def _capture(self, batch: Tensor) -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                self._take(batch)
        except torch.OutOfMemoryError:  # that this comes through says that the capture was ended
            raise
        except Exception as error:
            first = error.__context__ or error  # what broke it, rather than what its end then says
            memory = isinstance(first, torch.OutOfMemoryError)
            what = f"{type(first).__name__}: {short(' '.join(str(first).split()), 200)}"
            cures = ["trainer.compile=false"] * self.compiled + ["trainer.cuda_graph=false"]
            cures = ["hydra.launcher.members=1"] if memory else cures
            why = f"the step cannot be captured as a CUDA graph ({what})"
            raise CaptureFailed(f"{why}; go on with {' or '.join(cures)}") from error
        return graph

    def _take(self, batch: Tensor) -> None:
        self.taken += 1
        if not self.compiled:
            return self._update(self.state, batch)
        if self.function is None:
            key = self._key(batch)
            self.function = COMPILED.get(key) or torch.compile(
                self._trace(batch), dynamic=False, fullgraph=True
            )
            if self.kind is not None:
                COMPILED[key] = self.function
        with torch.no_grad():  # the traced graph holds its own backward pass
            self.function(self.state, batch)

    def _key(self, batch: Tensor) -> Any:
        """All that a trace depends on: kind, constants in it, and the layout of every tensor."""
        constants = self.objective, self.optimizer.decays, self.average and self.average.decay
        named = {f"{tree}/{name}": t for tree, tensors in self.state.items() for name, t in tensors.items()}
        layouts = [(k, t.shape, t.stride(), t.dtype, t.device) for k, t in (*named.items(), ("", batch))]
        return self.kind, constants, tuple(layouts)

    def _update(self, state: State, batch: Tensor) -> None:
        """The step on ``state``, which is the stack's own or, while torch traces, stands for it."""
        stack, optimizer = copy.copy(self.stack), copy.copy(self.optimizer)
        stack.params = optimizer.params = state["params"]
        stack.buffers, optimizer.state, optimizer.hyper = state["buffers"], state["moments"], state["hyper"]
        data = state["data"]
        with self.autocast(), disable_saved_tensors_hooks(RECOMPUTED):
            # A row each, copied whole: indexing would take it number by number.
            images = data["x"].index_select(0, batch.flatten())
            outputs = stack(images.view(*batch.shape, *images.shape[1:]))
        metrics = torch.stack([m.mean(1) for m in self.objective.metrics(outputs, data["y"][batch])])
        params = list(stack.params.values())  # a user's model may leave some out: their gradient is 0
        grads = torch.autograd.grad(metrics[0].sum(), params, materialize_grads=True)
        optimizer.step(dict(zip(stack.params, grads, strict=True)))
        stack.project()
        data["totals"] += metrics.detach()
        if self.average:
            average = copy.copy(self.average)
            average.state = state["average"]
            average.step({**stack.params, **stack.buffers})

    def _trace(self, batch: Tensor) -> Any:
        update = functools.partial(self._update)  # make_fx would count self as an argument of the method
        return make_fx(update, tracing_mode="fake")(self.state, batch)
