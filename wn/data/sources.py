"""Data sets found in the user's folder or downloaded, and checked against what was published.

A new one is an entry of :data:`OFFICIAL`, and a reader in :mod:`wn.data.formats` if its format is new.
"""

from __future__ import annotations

import functools
import http.client
import math
import socket
import tempfile
from collections.abc import Callable, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from wn.config import DataConfig, UserError
from wn.data import formats
from wn.data.formats import Arrays, Unusable
from wn.data.whitening import Whitening, whiten_once

TIMEOUT = 20.0  # seconds to wait for a silent server: some networks drop packets instead of refusing them


class Layout(NamedTuple):
    """One way in which the files of a data set may lie."""

    read: Callable[[Sequence[Path], tuple[int, int, int]], Arrays]  # files of a part, shape of an image
    train: tuple[str, ...]  # names of the training part's files; a * stands for one or more
    test: tuple[str, ...]


def _idx(part: str, mark: str) -> tuple[str, ...]:
    return (f"{part}-images{mark}idx3-ubyte", f"{part}-labels{mark}idx1-ubyte")


# LeCun's spelling, and that of other copies.
IDX = tuple(Layout(formats.read_idx, _idx("train", mark), _idx("t10k", mark)) for mark in "-.")
BATCHES = Layout(formats.read_cifar10, tuple(f"data_batch_{k}" for k in range(1, 6)), ("test_batch",))
PARQUET = Layout(formats.read_parquet, ("train-*.parquet",), ("test-*.parquet",))


class Official(NamedTuple):
    """What was published. The number of images of each class tells one data set from another."""

    name: str  # torchvision's class
    folder: str  # where torchvision keeps the files, below the root
    hub: str  # where Hugging Face's repository does: the name of its configuration
    shape: tuple[int, int, int]
    train: tuple[int, ...]
    test: tuple[int, ...]
    layouts: tuple[Layout, ...]  # torchvision's
    archive: str | None = None  # torchvision's download, where it is a single one
    megabytes: int = 0  # of what is downloaded
    reorder: bool = False  # layouts differ in the order of the images, so a common one is chosen

    @property
    def ways(self) -> str:
        """How to provide the files, for an error message."""
        torchvision = f"{self.folder}/" + (f" or {self.archive}" if self.archive else "")
        return (
            "let it be downloaded (data.download=true), or name with data.root=... a folder that holds "
            f"{torchvision} (torchvision's layout), or train-*.parquet and test-*.parquet (Hugging Face's)"
        )


MNIST_TRAIN = (5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949)
MNIST_TEST = (980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009)
MNIST = Official("MNIST", "MNIST/raw", "mnist", (1, 28, 28), MNIST_TRAIN, MNIST_TEST, IDX, megabytes=12)
FASHION = Official(
    "FashionMNIST", "FashionMNIST/raw", "fashion_mnist", (1, 28, 28), (6000,) * 10, (1000,) * 10, IDX
)._replace(megabytes=31)
CIFAR10 = Official(
    "CIFAR10", "cifar-10-batches-py", "plain_text", (3, 32, 32), (5000,) * 10, (1000,) * 10, (BATCHES,)
)._replace(archive="cifar-10-python.tar.gz", megabytes=170, reorder=True)
OFFICIAL = {"mnist": MNIST, "fashion_mnist": FASHION, "cifar10": CIFAR10}


def megabytes(config: DataConfig) -> int:
    """What a run would download; 0 where its files are there, or it may not."""
    official = OFFICIAL.get(config.name)
    if official is None or not config.download:
        return 0
    root = _root(config)
    archived = official.archive and (root / official.archive).exists()
    return 0 if archived or _find(root, official) else official.megabytes


def _root(config: DataConfig) -> Path:
    root = Path(config.root or "data")
    try:
        return root.expanduser()
    except RuntimeError:
        raise UserError(f"data.root={root}: no such user") from None


def official(config: DataConfig) -> tuple[Arrays, Arrays, Whitening | None]:
    """Official training and test set, from the first layout that is there; whitened if so configured."""
    official = OFFICIAL[config.name]
    root = _root(config)
    if not root.is_dir() and (config.root or root.exists()):
        raise UserError(f"data.root={root}: no such folder; create it and {official.ways}")
    try:
        found = _find(root, official)
        if found is None and (config.download or (official.archive and (root / official.archive).exists())):
            _download(root, official)
            found = _find(root, official)
        if found is None:
            raise UserError(f"data.root={root}: no complete {official.name} there; {official.ways}")
        read = functools.partial(_read, official, *found)
        if not config.whiten:
            return *read(), None
        _, train, test = found
        return whiten_once(train[0].parent / f"{official.name}-whitened.npz", train + test, read)
    except (Unusable, OSError) as error:
        line = " ".join(str(error).split())
        raise UserError(f"{line}; move that away and {official.ways}") from None


def _find(root: Path, official: Official) -> tuple[Layout, list[Path], list[Path]] | None:
    """The first layout of which all files are there, with those of the training and of the test set."""
    places = [(layout, folder) for layout in official.layouts for folder in (official.folder, "raw", ".")]
    places += [(PARQUET, folder) for folder in (".", "data", official.hub)]
    for layout, folder in places:
        train, test = ([_matches(root / folder, n) for n in names] for names in (layout.train, layout.test))
        if all(train + test):
            return layout, [*chain(*train)], [*chain(*test)]
    return None


def _matches(folder: Path, name: str) -> list[Path]:
    """Files of that name in the order of their names; gzipped ones where there is no other."""
    plain, zipped = (sorted(p for p in folder.glob(n) if p.is_file()) for n in (name, f"{name}.gz"))
    return plain or zipped


def _read(official: Official, layout: Layout, train: list[Path], test: list[Path]) -> tuple[Arrays, Arrays]:
    parts = []
    for files, counts in ((train, official.train), (test, official.test)):
        part = layout.read(files, official.shape)
        shape, found = part.images.shape, tuple(int((part.labels == k).sum()) for k in range(len(counts)))
        if shape != (sum(counts), *official.shape) or len(part.labels) != shape[0] or found != counts:
            source = f"{files[0]} and {len(files) - 1} more" if len(files) > 1 else files[0]
            raise Unusable(f"{source}: not {official.name}, but images {shape} in classes of {found}")
        if official.reorder:  # by the images' bytes, which all differ
            rows = part.images.reshape(len(part.images), -1).view(f"S{math.prod(shape[1:])}")
            order = np.argsort(rows[:, 0])
            part = Arrays(part.images[order], part.labels[order])
        parts.append(part)
    return parts[0], parts[1]


def _download(root: Path, official: Official) -> None:
    """Have torchvision download, verify and unpack the files, then move them to where it looks for them.

    Scratch space keeps a killed download's half files from other processes. What is there already stays as
    it is; an archive in the root is unpacked without any network.
    """
    import torchvision.datasets  # slow to import

    published: Any = getattr(torchvision.datasets, official.name)
    archive = root / (official.archive or "")
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(TIMEOUT)
    try:
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=root, prefix=".download-") as scratch:
            if official.archive is None:
                published(scratch, download=True)
            # Not by the class, which would unpickle.
            elif not archive.exists():
                torchvision.datasets.utils.download_and_extract_archive(
                    published.url, scratch, md5=published.tgz_md5
                )
            elif torchvision.datasets.utils.check_integrity(archive, published.tgz_md5):
                torchvision.datasets.utils.extract_archive(archive, scratch)
            else:
                raise Unusable(f"{archive}: not as published (MD5), perhaps a download that was cut short")
            (root / official.folder).mkdir(parents=True, exist_ok=True)
            for path in (Path(scratch) / official.folder).iterdir():
                if not (target := root / official.folder / path.name).exists():
                    path.rename(target)
    except (OSError, RuntimeError, http.client.HTTPException) as error:
        # torchvision names each mirror and what it answered on a line of its own.
        reason = (str(error).strip() or type(error).__name__).splitlines()[-1]
        line = f"data.root={root}: {official.name} could not be downloaded there ({reason})"
        raise UserError(f"{line}; {official.ways}") from None
    finally:
        socket.setdefaulttimeout(before)
