"""The model that a run trained: kept beside its record, and loaded with all that raw images need.

``model.safetensors`` holds the parameters and buffers of the model that was evaluated (the EMA, if there is
one), and of whitened data the whitening. ``model`` in ``record.json`` says how the images are scaled, and the
SHA-256 of the file. Nothing is unpickled.
"""

from __future__ import annotations

import functools
import glob
import hashlib
import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pydantic
import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from wn import models
from wn import plugins as own_code
from wn.config import Config, UserError, hashes, nearest, parse
from wn.data import Dataset
from wn.data.pipeline import Pipeline
from wn.data.whitening import Whitening
from wn.provenance import other_code
from wn.records import Damaged, Record, Row, write_atomically
from wn.resources import pick_device
from wn.trainer import DTYPES

log = logging.getLogger(__name__)

FILE = "model.safetensors"
WHITENING = tuple(f"whitening/{name}" for name in Whitening._fields)  # no module's name has a slash


class Scaling(pydantic.BaseModel):
    """The numbers of a :class:`Pipeline`."""

    dtype: str
    white: int
    binarize: bool
    mean: float
    std: float


class Saved(pydantic.BaseModel):
    """``model`` in ``record.json``."""

    sha256: str
    classes: int
    shape: tuple[int, ...]
    """Of an input, without the batch axis."""
    pipeline: Scaling | None
    """None where the data set has no pipeline (none that :func:`wn.data.load` makes)."""


def save(record: Record, state: dict[str, Tensor], data: Dataset) -> Row:
    """Write a model beside its record; what the record is to say of it."""
    tensors = {
        name: t.detach().cpu().clone(memory_format=torch.contiguous_format) for name, t in state.items()
    }
    saved: Row = {"classes": data.classes, "shape": list(data.shape), "pipeline": None}
    if made := data.pipeline:
        saved["pipeline"] = {key: getattr(made, key) for key in Scaling.model_fields}
        if made.whitening:
            tensors |= zip(WHITENING, map(torch.from_numpy, made.whitening), strict=True)
    # One word of its own alone: several are written in no fixed order, and equal models are equal files.
    content = safetensors.torch.save(tensors, {"run_id": record.content["run_id"]})
    write_atomically(record.folder / FILE, content)
    return {"sha256": hashlib.sha256(content).hexdigest(), **saved}


class TrainedModel(nn.Module):
    """A trained model that takes images as their files hold them: bytes ``[N, C, H, W]``.

    Attributes:
        model: the network, which takes what ``pipeline`` makes of images (None: it takes them as they are).
        record: what its training left.
    """

    def __init__(self, model: nn.Module, pipeline: Pipeline | None, record: Record, config: Config) -> None:
        super().__init__()
        self.model, self.pipeline, self.record, self.config = model, pipeline, record, config

    def forward(self, images: Tensor | np.ndarray[Any, Any]) -> Any:
        """What the network returns: logits ``[N, classes]``, or a VAE's loss and its two terms ``[N]``."""
        first = next(self.model.parameters())
        x = self.pipeline(images, first.dtype) if self.pipeline else torch.as_tensor(images)
        with self.autocast():
            return self.model(x.to(first.device))

    @property
    def autocast(self) -> Callable[[], AbstractContextManager[Any]]:
        """The precision that it was trained in."""
        device, bfloat16 = next(self.model.parameters()).device, self.config.trainer.precision == "bfloat16"
        return functools.partial(torch.autocast, device.type, torch.bfloat16, enabled=bfloat16)


def load(
    run: str | Path,
    *,
    plugins: Sequence[str | Path] = (),
    device: str = "cpu",
    runs_dir: str | Path = "runs",
) -> TrainedModel:
    """The model of a run, in evaluation mode.

    Args:
        run: a run's folder, or its run_id, which is then looked for in the experiments of ``runs_dir``.
        plugins: the files of code that the run was trained with; they are run.

    Raises:
        UserError: no such run, or it kept no model; the model is damaged, or of other code; a plugin is not
            named, or is another one than the run's.
    """
    record = find(run, Path(runs_dir))
    path = record.folder / FILE
    if "model" not in record.content:
        again = "trainer.save=true trainer.force=true trains it again and keeps it"
        raise UserError(f"{record.folder}: kept no model ({record.status}); {again}")
    config = parse(record.content["config"])
    if config.own:  # others of its sweep may have been of the files that its command named
        check_plugins(record, plugins)
        own_code.load(map(str, plugins))
        own_code.check(config)
    try:
        saved = Saved.model_validate(record.content["model"])
        content = path.read_bytes()
    except pydantic.ValidationError as error:
        raise Damaged(record.folder / "record.json", f"model: {error.errors()[0]['msg']}") from None
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    if hashlib.sha256(content).hexdigest() != saved.sha256:
        raise Damaged(path, "its checksum is not the record's")
    if told := other_code(record.content["provenance"]):
        log.warning("%s: %s", record.folder, told)
    try:
        state = safetensors.torch.load(content)
    except safetensors.SafetensorError as error:
        raise Damaged(path, str(error)) from None
    arrays = [state.pop(name).numpy() for name in WHITENING if name in state]
    whitening = Whitening(*arrays) if arrays else None
    numbers = saved.pipeline and saved.pipeline.model_dump()
    pipeline = Pipeline(saved.shape, whitening=whitening, **numbers) if numbers else None
    model = models.build(config.model, config.norm, saved.shape, saved.classes, config.seed)
    _fill(model.to(DTYPES[config.trainer.precision]), state, path)
    return TrainedModel(model.to(pick_device(device)).eval(), pipeline, record, config).eval()


def find(run: str | Path, runs_dir: Path) -> Record:
    """The record of a run: one with a model, where several experiments have the run."""
    if (Path(run) / "record.json").is_file():
        return Record.read(Path(run))
    folders = [path.parent for path in sorted(runs_dir.glob(f"*/{glob.escape(Path(run).name)}/record.json"))]
    whole = [record for record in map(Record.peek, folders) if record.status != "new"]
    found = whole or [Record.read(folder) for folder in folders]  # which says what is wrong
    if str(run) != Path(run).name or not found:
        known = nearest(str(run), sorted({path.parent.name for path in runs_dir.glob("*/*/record.json")}))
        raise UserError(f"{run}: no run's folder, and no run_id in {runs_dir}{known}")
    return max(found, key=lambda record: "model" in record.content)


def check_plugins(record: Record, plugins: Sequence[str | Path]) -> None:
    """Raise UserError unless the files are those that the run was trained with."""
    named = hashes([str(file) for file in plugins])
    for file, sha256 in record.content["config"].get("plugins", {}).items():
        if sha256 not in named.values():
            what = "it has changed since" if file in named else f"name it, as in plugins={file}"
            raise UserError(f"{record.folder}: trained with the code of {file}; {what}")


def _fill(model: nn.Module, state: dict[str, Tensor], path: Path) -> None:
    """Put every parameter and buffer in its place, those too that state dicts leave out."""
    own = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    if {k: t.shape for k, t in own.items()} != {k: t.shape for k, t in state.items()}:
        other = sorted(own.keys() ^ state.keys()) or [k for k in own if own[k].shape != state[k].shape]
        raise UserError(f"{path}: trained by other code, whose model differs in {other[0]}")
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(state[name])
