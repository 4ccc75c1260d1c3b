"""Data sets as tensors on the device, and the order in which an epoch visits them.

Files are found or downloaded, read into bytes, checked against what was published (:mod:`wn.data.sources`),
whitened where that is configured (:mod:`wn.data.whitening`), divided and scaled.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from wn.config import DataConfig, UserError
from wn.data import own, sources
from wn.data.formats import Arrays
from wn.data.pipeline import STATE, Pipeline
from wn.data.whitening import Whitening

DIGITS_WHITE = 16  # maximum pixel value of digits


@dataclasses.dataclass(frozen=True, eq=False)
class Split:
    """Images ``x`` [N, C, H, W], scaled, and their labels ``y`` [N], int64."""

    x: Tensor
    y: Tensor


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """Three disjoint splits; ``valid`` is empty where nothing is held out."""

    train: Split
    valid: Split
    test: Split
    classes: int
    pipeline: Pipeline | None = None
    """How raw images became ``x``; None for a data set that was made in memory."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of an image."""
        channels, height, width = self.train.x.shape[1:]
        return channels, height, width


def load(
    config: DataConfig,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    unit: bool = False,
    pipeline: Pipeline | None = None,
) -> Dataset:
    """Load a data set, divide it and scale it.

    The splits are stratified by label and always the same. ``digits`` (embedded in scikit-learn) gives a
    fifth of all images to the test; the others keep their official test set. Of the remaining images
    ``config.train_fraction`` is used, and of these ``config.valid_fraction`` is held out.

    Images are standardised by one mean and one standard deviation, of all pixels of the training split; with
    ``unit`` they are left from 0 to 1, as a VAE takes them. With ``config.whiten`` they are whitened, in
    float32, by the statistics of all official training images: unsupervised, so that leaks no labels.
    A ``pipeline``, that of a trained model, does the same with the numbers of the model's own data.

    Raises:
        UserError: files that are missing, corrupt, of another data set or cannot be downloaded; a fraction
            that leaves a split with fewer images than classes; whitening of digits, binary or VAE images; a
            pipeline of images of another shape.
    """
    if pipeline:
        config = config.model_copy(update={"whiten": False})
    if config.whiten and (config.name in ("digits", "plugin") or config.binarize or unit):
        raise UserError("data.whiten=true: digits, binarised images and a VAE's are not whitened; give false")
    rest, test, fitted, white = _read(config, unit)
    dtype_in_files = "uint8" if fitted else str(rest.images.dtype)
    if pipeline and rest.images.shape[1:] != pipeline.shape:
        found, wanted = ("x".join(map(str, shape)) for shape in (rest.images.shape[1:], pipeline.shape))
        raise UserError(f"data={config.label}: images of {found}, and the model takes {wanted}")
    if pipeline and (dtype_in_files, white) != (pipeline.dtype, pipeline.white):
        found, wanted = f"{dtype_in_files} up to {white}", f"{pipeline.dtype} up to {pipeline.white}"
        raise UserError(f"data={config.label}: pixels of {found}, and the model takes {wanted}")
    made = pipeline or Pipeline(rest.images.shape[1:], dtype_in_files, white, config.binarize)
    rest, test = (made.prepare(part, stream) for stream, part in enumerate((rest, test)))
    classes = int(np.max(rest.labels)) + 1  # before a part is taken, which may lack the last
    if config.train_fraction < 1:
        _, rest = _divide(rest, config.train_fraction, "train_fraction")
    train, valid = rest, Arrays(rest.images[:0], rest.labels[:0])
    if config.valid_fraction > 0:
        train, valid = _divide(rest, config.valid_fraction, "valid_fraction")
    if pipeline is None:
        white = 1 if config.binarize else white
        scale = (0.0, float(white)) if unit else (0.0, 1.0) if config.whiten else _mean_std(train.images)
        made = dataclasses.replace(made, whitening=fitted, mean=scale[0], std=scale[1])

    def split(part: Arrays) -> Split:
        # Bytes travel to the device and become floats there: a quarter of the traffic.
        x = torch.from_numpy(part.images).to(device).to(dtype)
        return Split(x=made.scale_(x), y=torch.from_numpy(part.labels).to(device))

    if config.label_noise:
        train = Arrays(train.images, _noisy(train.labels, config.label_noise, classes))
    return Dataset(split(train), split(valid), split(test), classes, made)


def _read(config: DataConfig, unit: bool) -> tuple[Arrays, Arrays, Whitening | None, int]:
    """Training and test images, what whitened them, and their largest value."""
    if config.plugin is None:
        if config.name == "digits":
            return *_digits(), None, DIGITS_WHITE
        return *sources.official(config), 255
    rest, test = own.read(config.plugin)
    floats = rest.images.dtype != np.uint8
    if floats and (config.binarize or (unit and not all(_in_unit(part.images) for part in (rest, test)))):
        raise UserError(f"data={config.plugin}: a VAE takes floats from 0 to 1, and only bytes are binarised")
    return rest, test, None, 1 if floats else 255


def _in_unit(images: np.ndarray[Any, np.dtype[Any]]) -> bool:
    return bool(0 <= images.min() <= images.max() <= 1)


def permutation(seed: int, epoch: int, size: int) -> Tensor:
    """Order in which an epoch visits the training images: int64 [size], on the CPU.

    A pure function of its arguments, so a resumed run needs no state of a loader and every device sees
    the same order. NumPy's ``SeedSequence`` mixes seed and epoch: neighbouring pairs share nothing.

    >>> sorted(permutation(seed=0, epoch=3, size=4).tolist())
    [0, 1, 2, 3]
    """
    mixed = np.random.SeedSequence(seed, spawn_key=(epoch,))
    return torch.from_numpy(np.random.default_rng(mixed).permutation(size).astype(np.int64, copy=False))


def orders(seeds: Sequence[int], epoch: int, size: int) -> Tensor:
    """Permutations of members, ``[members, size]``; those of one seed have one order."""
    found = {seed: permutation(seed, epoch, size) for seed in set(seeds)}
    return torch.stack([found[seed] for seed in seeds])


def _divide(whole: Arrays, fraction: float, setting: str) -> list[Arrays]:
    """The others, and a fraction of all, stratified by label."""
    import sklearn.model_selection  # slow to import, and not needed to say that data are missing

    size = len(whole.labels)
    try:
        divided = sklearn.model_selection.train_test_split(
            np.arange(size), test_size=fraction, stratify=whole.labels, random_state=STATE
        )
    except ValueError:
        raise UserError(
            f"data.{setting}={fraction}: both parts need at least one image a class, and there are "
            f"{size} images to divide; train_fraction=1 uses all, valid_fraction=0 holds none out"
        ) from None
    return [Arrays(whole.images[chosen], whole.labels[chosen]) for chosen in divided]


def _noisy(labels: np.ndarray[Any, np.dtype[np.int64]], share: float, classes: int) -> Any:
    """Labels of which a share is drawn anew; a tenth of these, with ten classes, is drawn as it was."""
    draw = np.random.default_rng(STATE)
    chosen = draw.permutation(len(labels))[: round(share * len(labels))]
    noisy = labels.copy()
    noisy[chosen] = draw.integers(classes, size=len(chosen))
    return noisy


def _mean_std(images: np.ndarray[Any, np.dtype[Any]]) -> tuple[float, float]:
    """Mean and standard deviation of all pixels, from their histogram: exact, so independent of the order."""
    if images.dtype != np.uint8:
        return float(images.mean(dtype=np.float64)), float(images.std(dtype=np.float64)) or 1.0
    counts = torch.bincount(torch.from_numpy(images).flatten(), minlength=256).double()
    values = torch.arange(256, dtype=torch.float64)
    mean = (counts @ values) / counts.sum()
    variance = (counts @ (values - mean).square()) / counts.sum()
    return mean.item(), variance.sqrt().item() or 1.0


def _digits() -> tuple[Arrays, Arrays]:
    import sklearn.datasets  # slow to import

    bunch = sklearn.datasets.load_digits()
    whole = Arrays(bunch.images[:, None].astype(np.uint8), bunch.target.astype(np.int64))
    rest, test = _divide(whole, 0.2, "test_fraction")  # there is no official test set
    return rest, test
