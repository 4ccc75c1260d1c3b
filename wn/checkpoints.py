"""Checkpoints: what a stack goes on from, in two files, the newest and a backup.

A file is what ``torch.save`` writes, of tensors, numbers and lists alone, then its SHA-256 (``torch.load``
checks none). It is replaced as a whole, and any device can read what another one wrote.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import logging
import os
import pickle
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from wn.config import UserError
from wn.config.errors import short
from wn.records import Row, write_atomically

log = logging.getLogger(__name__)

DIGEST = hashlib.sha256().digest_size

FOREIGN = (LookupError, TypeError, AttributeError, EOFError, pickle.UnpicklingError)
"""Raised by code that a whole file does not suit."""


class OtherCode(UserError):
    """A whole checkpoint that the present code cannot take: it must not cost what was trained."""


class Checkpoints:
    """The two newest checkpoints of a stack; ``ids`` are the members' run_ids, in their places."""

    def __init__(self, folder: Path, ids: Sequence[str]) -> None:
        name = ids[0] if len(ids) == 1 else hashlib.sha256("".join(ids).encode()).hexdigest()[:12]
        self.ids = list(ids)
        self.newest, self.before = folder / f"{name}.pt", folder / f"{name}.before.pt"

    def save(self, content: Row) -> None:
        file = io.BytesIO()
        torch.save({"runs": self.ids, **content}, file)
        self.newest.parent.mkdir(exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            os.replace(self.newest, self.before)
        file.seek(0, io.SEEK_END)
        file.write(hashlib.sha256(file.getvalue()).digest())  # getvalue shares its bytes: the file is large
        write_atomically(self.newest, file.getvalue())

    def restore(self, use: Callable[[Row], None]) -> bool:
        """Call ``use`` with the newest content that it can take; say whether there was any.

        A file that is damaged, or whose rows ``use`` misses (a ValueError), is logged and deleted: the next
        save would rotate it into the backup.

        Raises:
            OtherCode: the file is whole, and neither torch nor ``use`` can take it.
        """
        paths = [path for path in (self.newest, self.before) if path.exists()]
        for path in paths:
            try:
                use(self._read(path))
                return True
            except ValueError as error:
                then = "its runs start anew" if path is paths[-1] else "going on from the one before"
                log.warning("%s: damaged (%s); %s", path, " ".join(str(error).split()), then)
                path.unlink()
            except FOREIGN as error:
                why = short(f"{type(error).__name__}: {' '.join(str(error).split())}", 100)
                raise OtherCode(
                    f"{path}: written by other code ({why}); go on with that code, or train anew: delete "
                    f"{' and '.join(path.name for path in paths)}"
                ) from error
        return False

    def exist(self) -> bool:
        return self.newest.exists() or self.before.exists()

    def _read(self, path: Path) -> Row:
        whole = path.read_bytes()
        content = whole[:-DIGEST]
        if hashlib.sha256(content).digest() != whole[-DIGEST:]:
            raise ValueError("its checksum is wrong")
        found: Row = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        if found["runs"] != self.ids:
            raise ValueError("it is of other runs")
        return found

    def remove(self) -> None:
        """Remove both, and what a kill has left of writing one."""
        for path in (self.newest, self.before):
            for file in (path, *path.parent.glob(f".{path.name}.*")):
                file.unlink(missing_ok=True)
