"""ZCA whitening as in the authors' code, and its cache.

With x = (byte - 127.5) / 128 an image of D numbers, m and C the mean and the covariance (divided by N) of
the training images, and C = U S U' its eigenvalues and eigenvectors,

    z = (x - m) U (S + 1e-5)^(-1/2) U'

so that along an eigenvector of eigenvalue s the whitened images have the variance s / (s + 1e-5).
"""

from __future__ import annotations

import hashlib
import itertools
import logging
import math
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from wn.data.formats import Arrays, Bytes

EPS = 1e-5  # added to each eigenvalue, as in the authors' code
SCALE = 128  # divides each byte, as in the authors' code: EPS is meant for this scale
CHUNK = 5000  # images that are floats at a time: all of CIFAR-10 in float64 would be 1.5 GB
RECIPE = f"ZCA of (byte - 127.5) / {SCALE}, regularisation {EPS}"  # change it when the numbers change
ARRAYS = ("train_images", "train_labels", "test_images", "test_labels", "centre", "factor")  # in the cache
Floats = np.ndarray[Any, np.dtype[np.floating[Any]]]
log = logging.getLogger(__name__)


class Whitening(NamedTuple):
    """``z = (byte - centre) factor`` of flattened images, in float32."""

    centre: Floats  # [D]
    factor: Floats  # [D, D]


Whitened = tuple[Arrays, Arrays, Whitening]  # training part, test part, and what made them


def whiten(train: Arrays, test: Arrays) -> Whitened:
    """Whiten both parts with the statistics of the first: float32 images, the same labels."""
    mean, matrix = fit(train.images)
    # x - m is (byte - mean) / SCALE: the authors' 127.5 cancels
    made = Whitening(mean.astype(np.float32), (matrix / SCALE).astype(np.float32))
    train, test = (Arrays(apply(part.images, made), part.labels) for part in (train, test))
    return train, test, made


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
    return mean, (vectors / np.sqrt(values + EPS)) @ vectors.T


def apply(images: Bytes, whitening: Whitening) -> Floats:
    """Whitened images, float32, of the shape of ``images``."""
    whitened = np.empty(images.shape, dtype=np.float32)
    for chunk, out in zip(_chunks(images), _chunks(whitened), strict=True):
        np.matmul(chunk.astype(np.float32) - whitening.centre, whitening.factor, out=out)
    return whitened


def _chunks(images: np.ndarray[Any, np.dtype[Any]]) -> Iterator[np.ndarray[Any, np.dtype[Any]]]:
    rows = images.reshape(len(images), -1)
    return (rows[start : start + CHUNK] for start in range(0, len(rows), CHUNK))


def whiten_once(cache: Path, files: Sequence[Path], read: Callable[[], tuple[Arrays, Arrays]]) -> Whitened:
    """The cached images if they were made from these files, else those that ``read`` returns, whitened.

    A cache that is damaged or of other files is made anew. Where it cannot be written, a warning says so.
    """
    checksum = hashlib.sha256(RECIPE.encode())
    for path in files:
        with open(path, "rb") as file:
            checksum.update(hashlib.file_digest(file, "sha256").digest())
    made_from = checksum.hexdigest()
    if (parts := _load(cache, made_from)) is None:
        parts = whiten(*read())
        _save(cache, made_from, parts)
    return parts


def _load(cache: Path, made_from: str) -> Whitened | None:
    """None where the cache is of no use. NumPy verifies a checksum of each array in it."""
    try:
        with open(cache, "rb") as file, np.load(file, allow_pickle=False) as kept:
            if kept["made_from"] == made_from and {*ARRAYS} <= {*kept.files}:
                arrays = [kept[name] for name in ARRAYS]
                return Arrays(*arrays[:2]), Arrays(*arrays[2:4]), Whitening(*arrays[4:])
    except FileNotFoundError:
        pass
    except Exception as error:  # what a damaged archive raises has no common base
        log.warning("%s: damaged (%s); the images are whitened anew", cache, type(error).__name__)
    return None


def _save(cache: Path, made_from: str, parts: Whitened) -> None:
    """Atomic: another process sees a whole cache or none."""
    arrays: dict[str, Any] = dict(zip(ARRAYS, itertools.chain(*parts), strict=True))
    try:
        with tempfile.TemporaryDirectory(dir=cache.parent, prefix=".whitening-") as scratch:
            np.savez(Path(scratch) / "whole.npz", made_from=np.array(made_from), **arrays)
            os.replace(Path(scratch) / "whole.npz", cache)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        log.warning("%s: cannot be written (%s); each start will whiten the images anew", cache, reason)
