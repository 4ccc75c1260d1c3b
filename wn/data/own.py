"""Data sets of the user's own (:func:`wn.plugins.data`)."""

from __future__ import annotations

from typing import Any

import numpy as np

from wn import plugins
from wn.config import UserError
from wn.data.formats import Arrays


def read(name: str) -> tuple[Arrays, Arrays]:
    """Training and test set of ``data=name``: bytes or float32 [N, C, H, W], labels int64.

    Raises:
        UserError: the function fails, or returns something else.
    """
    returned = plugins.find("data", name)()
    try:
        train, test = (_arrays(*part) for part in returned)
    except (TypeError, ValueError) as error:
        want = "should return ((x, y), (x_test, y_test)), arrays [N, ...] and labels [N]"
        raise UserError(f"data={name}: {want} ({' '.join(str(error).split())})") from None
    if not (len(train.labels) and len(test.labels)):
        raise UserError(f"data={name}: x and x_test need images")
    if train.images.shape[1:] != test.images.shape[1:] or train.images.dtype != test.images.dtype:
        raise UserError(f"data={name}: x and x_test differ in shape or type")
    if (label := test.labels.max(initial=0)) > (last := train.labels.max(initial=0)):
        raise UserError(f"data={name}: y_test has the label {label}, and those of y end at {last}")
    return train, test


def _arrays(x: Any, y: Any) -> Arrays:
    images, labels = np.asarray(x), np.asarray(y)
    if images.dtype != np.uint8:
        images = images.astype(np.float32)
    if images.ndim in (2, 3):  # features [N, D], or images without an axis of channels
        images = images[:, None] if images.ndim == 3 else images[:, None, None]
    if images.ndim != 4 or labels.shape != images.shape[:1]:
        raise ValueError(f"not images {images.shape} and labels {labels.shape}")
    if labels.dtype.kind not in "iu" or labels.min(initial=0) < 0:
        raise ValueError("labels are whole numbers from 0 on")
    if not np.isfinite(images).all():
        raise ValueError("x is not finite")
    return Arrays(np.ascontiguousarray(images), labels.astype(np.int64))
