"""Where the data sets come from: found in the user's folder or downloaded, and checked against what was
published.

A new data set is an entry of :data:`OFFICIAL`, plus a reader in :mod:`wn.data.formats` where its files
have a form of their own.
"""

from __future__ import annotations

import contextlib
import dataclasses
import http.client
import socket
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from wn.config import DataConfig, UserError
from wn.data import formats
from wn.data.formats import Arrays, Unusable
from wn.data.whitening import whiten_once

TIMEOUT = 20.0
"""Seconds that a silent server is waited for: some networks drop packets instead of refusing them."""


class Layout(NamedTuple):
    """One way in which the files of a data set may lie."""

    folders: tuple[str, ...]
    """Below the root, in the order in which they are looked into."""
    train: tuple[str, ...]
    """Names of the training part's files; a * stands for one or more files."""
    test: tuple[str, ...]
    read: Callable[[Sequence[Path], tuple[int, int, int]], Arrays]
    """Files of a part and shape of an image -> images and labels."""


def _idx(folder: str) -> Layout:
    kinds = ("images-idx3-ubyte", "labels-idx1-ubyte")
    train, test = (tuple(f"{part}-{kind}" for kind in kinds) for part in ("train", "t10k"))
    return Layout((folder, "raw", "."), train, test, formats.read_idx)


def _batches(folder: str, suffix: str, read: Callable[..., Arrays]) -> Layout:
    train = tuple(f"data_batch_{k}{suffix}" for k in range(1, 6))
    return Layout((folder, "."), train, (f"test_batch{suffix}",), read)


PARQUET = Layout((".",), ("train-*.parquet",), ("test-*.parquet",), formats.read_parquet)


@dataclasses.dataclass(frozen=True)
class Official:
    """What was published: images of each class, by which one set is also told from another."""

    name: str
    """Name of torchvision's class."""
    folder: str
    """The folder below the root in which torchvision keeps the files."""
    shape: tuple[int, int, int]
    train: tuple[int, ...]
    test: tuple[int, ...]
    layouts: tuple[Layout, ...]
    holds: str
    """torchvision's layout, in words."""
    reorder: bool = False
    """Whether the order of the images differs between layouts, so that a common one has to be chosen."""

    @property
    def ways(self) -> str:
        """The three ways to provide the files, for the user who has to choose one."""
        return (
            "let it be downloaded (data.download=true), or name with data.root=... a folder that holds "
            f"{self.holds} (torchvision's layout), or train-*.parquet and test-*.parquet (Hugging Face's)"
        )


def _like_mnist(name: str, train: tuple[int, ...], test: tuple[int, ...]) -> Official:
    folder = f"{name}/raw"
    layouts, holds = (_idx(folder), PARQUET), f"{folder}/*-ubyte, .gz or not"
    return Official(name, folder, (1, 28, 28), train, test, layouts, holds)


OFFICIAL = {
    "mnist": _like_mnist(
        "MNIST",
        train=(5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949),
        test=(980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009),
    ),
    "fashion_mnist": _like_mnist("FashionMNIST", train=(6000,) * 10, test=(1000,) * 10),
    "cifar10": Official(
        name="CIFAR10",
        folder="cifar-10-batches-py",
        shape=(3, 32, 32),
        train=(5000,) * 10,
        test=(1000,) * 10,
        layouts=(
            _batches("cifar-10-batches-py", "", formats.read_pickled_batches),
            _batches("cifar-10-batches-bin", ".bin", formats.read_binary_batches),
            PARQUET,
        ),
        holds="cifar-10-batches-py/ or cifar-10-batches-bin/",
        reorder=True,
    ),
}


@dataclasses.dataclass(frozen=True)
class Source:
    """Files of a data set that are complete, as far as their names tell."""

    official: Official
    train: tuple[Path, ...]
    test: tuple[Path, ...]
    layout: Layout

    def read(self) -> tuple[Arrays, Arrays]:
        """Training and test set, as bytes."""
        return self._read(self.train, self.official.train), self._read(self.test, self.official.test)

    def _read(self, files: tuple[Path, ...], counts: tuple[int, ...]) -> Arrays:
        """One part, if it is what was published."""
        official, shape = self.official, (sum(counts), *self.official.shape)
        part = self.layout.read(files, official.shape)
        source = f"{files[0]} and {len(files) - 1} more" if len(files) > 1 else files[0]
        if part.images.shape != shape:
            raise Unusable(
                f"{source}: images of shape {part.images.shape}, where {official.name} has {shape}"
            )
        found = tuple(int((part.labels == k).sum()) for k in range(len(counts)))
        if found != counts or len(part.labels) != sum(counts):
            raise Unusable(f"{source}: not {official.name}, whose classes have other numbers of images")
        return _in_order(part) if official.reorder else part

    def whitened(self) -> tuple[Arrays, Arrays]:
        """Training and test set, whitened: from the cache beside them where there is one."""
        cache = self.train[0].parent / f"{self.official.name}-whitened.npz"
        return whiten_once(cache, self.train + self.test, self.read)


def _in_order(part: Arrays) -> Arrays:
    """Ordered by the bytes of the images, which are all different: the same whatever the layout."""
    rows = part.images.reshape(len(part.images), -1)
    order = np.argsort(rows.view(f"S{rows.shape[1]}").ravel())
    return Arrays(part.images[order], part.labels[order])


def official(config: DataConfig) -> tuple[Arrays, Arrays]:
    """Official training and test set, from the first layout that is there; whitened if so configured.

    Raises:
        UserError: as :func:`wn.data.load`.
    """
    official = OFFICIAL[config.name]
    root = Path(config.root or "data").expanduser()
    if not root.is_dir() and (config.root or root.exists()):
        raise UserError(f"data.root={root}: no such folder; create it and {official.ways}")
    try:
        source = _find(root, official)
        if source is None and config.download:
            _download(root, official)
            source = _find(root, official)
        if source is None:
            raise UserError(f"data.root={root}: no complete {official.name} there; {official.ways}")
        return source.whitened() if config.whiten else source.read()
    except (Unusable, OSError) as error:
        line = " ".join(str(error).split())
        raise UserError(f"{line}; move that away and {official.ways}") from None


def _find(root: Path, official: Official) -> Source | None:
    """The first layout of which all files are there."""
    for layout in official.layouts:
        for folder in layout.folders:
            train, test = (
                [_matches(root / folder, n) for n in names] for names in (layout.train, layout.test)
            )
            if all(train + test):
                return Source(official, sum(train, ()), sum(test, ()), layout)
    return None


def _matches(folder: Path, name: str) -> tuple[Path, ...]:
    """Files of that name in the order of their names; gzipped ones where there is no other."""
    return tuple(sorted(folder.glob(name)) or sorted(folder.glob(f"{name}.gz")))


def _download(root: Path, official: Official) -> None:
    """Have torchvision download and verify the files, then move them to where it would look for them.

    It works in a folder of its own: a killed download leaves no half file in the user's folder, another
    process cannot meet one, and a file that is already there stays as it is.
    """
    try:
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=root, prefix=".download-") as scratch, _impatient():
            _fetch(scratch, official)
            target = root / official.folder
            target.mkdir(parents=True, exist_ok=True)
            for path in (Path(scratch) / official.folder).iterdir():
                if not (target / path.name).exists():
                    path.rename(target / path.name)
    except (OSError, RuntimeError, http.client.HTTPException) as error:
        # torchvision names each mirror and what it answered on a line of its own.
        reason = (str(error).strip() or type(error).__name__).splitlines()[-1]
        raise UserError(
            f"data.root={root}: {official.name} could not be downloaded there ({reason}); {official.ways}"
        ) from None


def _fetch(folder: str, official: Official) -> None:
    """The files, verified, in torchvision's layout below ``folder``."""
    import torchvision.datasets  # slow to import, and needed here alone

    published = getattr(torchvision.datasets, official.name)
    if hasattr(published, "tgz_md5"):  # an archive of pickles, which the class itself would load
        torchvision.datasets.utils.download_and_extract_archive(
            published.url, folder, filename=published.filename, md5=published.tgz_md5
        )
    else:
        published(folder, download=True)


@contextlib.contextmanager
def _impatient() -> Iterator[None]:
    """Connections opened inside give up after :data:`TIMEOUT`."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(TIMEOUT)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
