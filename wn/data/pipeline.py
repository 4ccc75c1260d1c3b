"""From images as their files hold them to what a model takes."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch
from torch import Tensor

from wn.data import whitening
from wn.data.formats import Arrays, Bytes
from wn.data.whitening import Whitening

STATE = 0  # of every split and draw: a run's seed never decides which images are trained on
OTHERS = 2  # the stream that binarises other images than the training (0) and test (1) part


@dataclasses.dataclass(frozen=True, eq=False)
class Pipeline:
    """``x -> (x - mean) / std``, of bytes ``[N, C, H, W]`` that are whitened or binarised before.

    Attributes:
        shape: (C, H, W) of an image.
        dtype: of images in files: uint8, or that of a user's own numbers.
        white: the largest byte: 255, of digits 16.
    """

    shape: tuple[int, ...]
    dtype: str = "uint8"
    white: int = 255
    binarize: bool = False
    whitening: Whitening | None = None
    mean: float = 0.0
    std: float = 1.0

    def __call__(self, images: Tensor | np.ndarray[Any, Any], dtype: torch.dtype = torch.float32) -> Tensor:
        """What a model takes for images, on the CPU.

        Raises:
            TypeError: other numbers than those in files. ValueError: images of another shape.
        """
        raw = images.cpu().numpy() if isinstance(images, Tensor) else images
        if raw.dtype != self.dtype:
            numbers = f"bytes (uint8), from 0 to {self.white}" if self.dtype == "uint8" else self.dtype
            raise TypeError(f"images of {raw.dtype}: give them as {numbers}")
        if raw.shape[1:] != self.shape:
            raise ValueError(f"images of shape {raw.shape}: should be {('N', *self.shape)}")
        prepared = self.prepare(Arrays(raw, np.zeros(len(raw), np.int64)), OTHERS)
        return self.scale_(torch.from_numpy(prepared.images).to(dtype, copy=True))

    def prepare(self, part: Arrays, stream: int) -> Arrays:
        """Binarised or whitened images, where that is configured; the draw is that of a stream."""
        if self.binarize:
            return Arrays(_binarized(part.images, self.white, stream), part.labels)
        if self.whitening is not None:
            return Arrays(whitening.apply(part.images, self.whitening), part.labels)
        return part

    def scale_(self, x: Tensor) -> Tensor:
        """In place: ``(x - mean) / std``."""
        return x.sub_(self.mean).div_(self.std)


def _binarized(images: Bytes, white: int, stream: int) -> Bytes:
    """Each pixel 1 with its grey level as probability, else 0: one fixed draw for each place of a part."""
    draw = np.random.default_rng(np.random.SeedSequence(STATE, spawn_key=(stream,)))
    level = draw.integers(white, size=images.shape, dtype=np.uint8)
    return (level < images).astype(np.uint8)
