"""Data-dependent initialisation (section 3): one pass over one batch sets gains and biases."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, distributed, nn

from wn.norm.coverage import listed
from wn.norm.layer import NormalizedLayer, normalized_layers
from wn.norm.statistics import Activations


@contextmanager
def initializing(model: nn.Module) -> Iterator[set[NormalizedLayer]]:
    """Context in which a training pass initialises layers with ``init="data"`` and updates none of their
    averages; a module of torch's own, such as nn.BatchNorm, updates its as in any training pass.

    Its value is the set of layers that the pass has not reached yet. A layer that is used twice, or that
    shares what is set here with other layers, is set by the first use. One that shares it with a module of
    another kind (plain weights tied to an embedding's) is left alone.
    """
    layers = [module for module in model.modules() if isinstance(module, Activations)]
    waiting = {m for m in layers if isinstance(m, NormalizedLayer) and m.init == "data" and not m.initialized}
    owners: dict[Tensor, set[Any]] = {}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            owners.setdefault(parameter, set()).add(module)
    together = {a: {a}.union(*(owners[p] for p in _set_by_data(a))) for a in waiting}
    unreached = set(waiting)

    def reached(layer: NormalizedLayer, *_: Any) -> None:
        for other in together[layer]:
            other.phase = "pass"
            other.initialized.fill_(True)
        unreached.difference_update(together[layer])

    with ExitStack() as hooks:
        for layer in layers:
            layer.phase = "pass"
        for layer in waiting:
            if together[layer] <= waiting:
                layer.phase = "initialize"
                hooks.enter_context(layer.register_forward_hook(reached))
        try:
            yield unreached
        finally:
            for layer in layers:
                layer.phase = "normal"


def _set_by_data(layer: NormalizedLayer) -> list[nn.Parameter]:
    names = {"g", "s"} if layer.has_gain else {layer.raw_name}
    if layer.statistics != "mean_only":
        names.add("bias")
    return [p for name, p in layer.named_parameters(recurse=False) if name in names]


@torch.no_grad()
def data_dependent_init(model: nn.Module, *inputs: Any, **named_inputs: Any) -> Any:
    """Set gains and biases so that each pre-activation has mean 0 and variance 1 on ``inputs`` (section 3).

    Layer by layer: each sees the outputs of its initialised predecessors. Noise and dropout are on, as in
    the authors' code. v, running averages (those of torch's layers too), layers with ``init="default"`` and
    layers initialised before are unchanged. Returns the model's output, that of the next forward pass on the
    same inputs. A warning names the layers that the pass did not reach.

    Where torch.distributed runs several processes, every one must call this; the values that rank 0's batch
    sets are broadcast.

    Raises:
        ValueError: a pre-activation is NaN or infinite. After this, or any error, nothing has changed.

    >>> from wn.norm import NormalizedLayer
    >>> layer = NormalizedLayer(nn.Linear(3, 2), init="data")
    >>> y = data_dependent_init(layer, torch.randn(50, 3))
    >>> torch.allclose(y.std(0, correction=0), torch.ones(2))
    True
    """
    group = getattr(model, "process_group", None)
    model = _unwrapped(model)
    layers = {layer: name or "the layer" for name, layer in normalized_layers(model).items()}
    if any(layer.raw_weight.is_meta for layer in layers):
        raise ValueError("the model is on the meta device, without values: load its weights first")

    def check(layer: NormalizedLayer, _: Any, y: Tensor) -> None:
        if not bool(y.isfinite().all()):
            raise ValueError(
                f"{layers[layer]} puts out NaN or infinity on this batch: nothing was initialised"
            )

    modes = {module: module.training for module in model.modules()}
    model.train()
    buffers, parameters = _copies(model)
    error = None
    try:
        with initializing(model) as unreached, ExitStack() as hooks:
            for layer in layers:
                hooks.enter_context(layer.register_forward_hook(check))
            result = model(*inputs, **named_inputs)
    except Exception as caught:
        error = caught
    finally:
        for module, mode in modes.items():
            module.training = mode
    device = next((layer.raw_weight.device for layer in layers), torch.device("cpu"))
    error = _error_anywhere(error, group, device)
    _put_back(buffers if error is None else buffers + parameters)
    if error is not None:
        raise error
    _take_from_first(layers, group)
    if unreached:
        names = listed(name for layer, name in layers.items() if layer in unreached)
        warnings.warn(
            f"not initialised, for the pass did not call them, or other modules share their weights: {names}",
            stacklevel=2,
        )
    return result


def _unwrapped(model: nn.Module) -> nn.Module:
    if isinstance(model, (nn.parallel.DistributedDataParallel, nn.DataParallel)):
        return _unwrapped(model.module)
    return getattr(model, "_orig_mod", model)  # of torch.compile


Copies = list[tuple[dict[str, Any], str, Tensor, Tensor]]


def _copies(model: nn.Module) -> tuple[Copies, Copies]:
    """What a pass may change: buffers that are to stay as they were, and what the initialisation sets."""
    buffers: Copies = []
    state: Copies = []
    for module in model.modules():
        for name, tensor in module._buffers.items():
            if tensor is not None:
                (buffers if _is_torchs(module) else state).append(
                    (module._buffers, name, tensor, tensor.clone())
                )
        if isinstance(module, NormalizedLayer):
            state += [
                (module._parameters, name, p, p.clone()) for name, p in module.named_parameters(recurse=False)
            ]
    return buffers, state


def _is_torchs(module: nn.Module) -> bool:
    """Whether its buffers are averages that a pass moves; a layer's of noise, say, count its passes."""
    return isinstance(module, nn.modules.batchnorm._NormBase) or type(module).__module__.startswith("torch.")


def _put_back(copies: Copies) -> None:
    for owner, name, tensor, value in copies:
        owner[name] = tensor.copy_(value)


def _several(group: Any) -> bool:
    return (
        distributed.is_available() and distributed.is_initialized() and distributed.get_world_size(group) > 1
    )


def _error_anywhere(error: Exception | None, group: Any, device: torch.device) -> Exception | None:
    """This process's error; with several processes, an error if any of them has one."""
    if not _several(group):
        return error
    failed = torch.tensor(float(error is not None), device=device)
    distributed.all_reduce(failed, group=group)
    return error or (ValueError("the initialisation failed in another process") if failed else None)


def _take_from_first(layers: Iterable[NormalizedLayer], group: Any) -> None:
    for layer in layers if _several(group) else ():
        for tensor in (*_set_by_data(layer), *layer.buffers(recurse=False)):
            if tensor.is_floating_point():
                value = tensor.detach().clone(memory_format=torch.contiguous_format)
                distributed.broadcast(value, group=group, group_src=0)
                tensor.copy_(value)
