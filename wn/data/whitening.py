"""ZCA whitening as in the authors' code, and the cache that makes it a matter of once.

With x = (byte - 127.5) / 128 an image of D numbers, m and C the mean and the covariance (divided by N) of
the training images, and C = U S U' its eigenvalues and eigenvectors,

    z = (x - m) U (S + 1e-5)^(-1/2) U'

so that along an eigenvector of eigenvalue s the whitened images have the variance s / (s + 1e-5).
"""

from __future__ import annotations

import hashlib
import logging
import math
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from wn.data.formats import Arrays, Bytes

REGULARISATION = 1e-5
"""Added to each eigenvalue, as in the authors' code."""

SCALE = 128
"""What a byte is divided by, as in the authors' code: 1e-5 is meant for this scale."""

CHUNK = 5000
"""Images that are floats at a time."""

RECIPE = f"ZCA of (byte - 127.5) / {SCALE}, regularisation {REGULARISATION}"
"""What a cache was made by, beside the files it was made from. Change it when the numbers change."""

Floats = np.ndarray[Any, np.dtype[np.floating[Any]]]

log = logging.getLogger(__name__)


def whiten(train: Arrays, test: Arrays) -> tuple[Arrays, Arrays]:
    """Whiten both parts with the statistics of the first: float32 images, the same labels."""
    mean, matrix = fit(train.images)
    return (
        Arrays(apply(train.images, mean, matrix), train.labels),
        Arrays(apply(test.images, mean, matrix), test.labels),
    )


def fit(images: Bytes) -> tuple[Floats, Floats]:
    """Mean [D] of the bytes and symmetric whitening matrix [D, D] of images [N, C, H, W], in float64.

    The sums are of whole numbers that float64 holds exactly, so the covariance depends on no order and
    on no number of threads. float32 would not do: CIFAR-10 has eigenvalues below 1e-5.
    """
    size = math.prod(images.shape[1:])
    total, products = np.zeros(size), np.zeros((size, size))
    for chunk in _chunks(images):
        x = chunk.astype(np.float64)
        total += x.sum(0)
        products += x.T @ x
    mean = total / len(images)
    covariance = (products / len(images) - np.outer(mean, mean)) / SCALE**2
    values, vectors = np.linalg.eigh(covariance)
    return mean, (vectors / np.sqrt(values + REGULARISATION)) @ vectors.T


def apply(images: Bytes, mean: Floats, matrix: Floats) -> Floats:
    """Whitened images, float32, of the shape of ``images``; x - m is (byte - mean) / 128, without 127.5."""
    whitened = np.empty(images.shape, dtype=np.float32)
    centre, factor = mean.astype(np.float32), (matrix / SCALE).astype(np.float32)
    for chunk, out in zip(_chunks(images), _chunks(whitened), strict=True):
        np.matmul(chunk.astype(np.float32) - centre, factor, out=out)
    return whitened


def _chunks(images: np.ndarray[Any, np.dtype[Any]]) -> Iterator[np.ndarray[Any, np.dtype[Any]]]:
    """The images as rows, some at a time: views of them."""
    rows = images.reshape(len(images), -1)
    return (rows[start : start + CHUNK] for start in range(0, len(rows), CHUNK))


def whiten_once(
    cache: Path, files: Sequence[Path], read: Callable[[], tuple[Arrays, Arrays]]
) -> tuple[Arrays, Arrays]:
    """What ``cache`` holds if it was made from these files, else what ``read`` returns, whitened and kept.

    A cache that is damaged or of other files is made anew. Where it cannot be written, a warning says so.
    """
    made_from = _checksum(files)
    kept = _load(cache, made_from)
    if kept is None:
        kept = whiten(*read())
        _save(cache, made_from, kept)
    return kept


def _checksum(files: Sequence[Path]) -> str:
    """SHA-256 over the recipe and the files' contents."""
    whole = hashlib.sha256(RECIPE.encode())
    for path in files:
        with open(path, "rb") as file:
            whole.update(hashlib.file_digest(file, "sha256").digest())
    return whole.hexdigest()


def _load(cache: Path, made_from: str) -> tuple[Arrays, Arrays] | None:
    """The cache's content; None where it is of no use. Each array in the file has a checksum of its own."""
    try:
        with open(cache, "rb") as file, np.load(file, allow_pickle=False) as kept:
            if kept["made_from"] != made_from:
                return None
            return (
                Arrays(kept["train_images"], kept["train_labels"]),
                Arrays(kept["test_images"], kept["test_labels"]),
            )
    except FileNotFoundError:
        return None
    except Exception as error:  # what a damaged archive raises has no common base
        log.warning("%s: damaged (%s); the images are whitened anew", cache, type(error).__name__)
        return None


def _save(cache: Path, made_from: str, parts: tuple[Arrays, Arrays]) -> None:
    """Written elsewhere and moved: another process sees a whole cache or none."""
    train, test = parts
    arrays: dict[str, Any] = {
        "made_from": np.array(made_from),
        "train_images": train.images,
        "train_labels": train.labels,
        "test_images": test.images,
        "test_labels": test.labels,
    }
    try:
        with tempfile.TemporaryDirectory(dir=cache.parent, prefix=".whitening-") as scratch:
            np.savez(Path(scratch) / "whole.npz", **arrays)
            os.replace(Path(scratch) / "whole.npz", cache)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        log.warning("%s: cannot be written (%s); each start will whiten the images anew", cache, reason)
